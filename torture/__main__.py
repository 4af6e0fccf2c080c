"""Nothing but the start: children import this module, and must not import what the harness needs."""

import sys

if __name__ == "__main__":
    from torture.command import main

    sys.exit(main())
