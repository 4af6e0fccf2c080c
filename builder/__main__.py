"""`python -m builder` is the command `sqid`."""

import sys

from builder.cli import main

if __name__ == "__main__":
    sys.exit(main())
