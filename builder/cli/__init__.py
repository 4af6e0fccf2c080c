"""The command `sqid`."""

import sys

try:
    from builder.cli.main import main
except KeyboardInterrupt:  # at the very start
    sys.stderr.write("stopped\n")
    raise SystemExit(130) from None

__all__ = ["main"]
