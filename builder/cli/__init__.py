"""The command `sqid`."""

import sys

try:
    from builder.cli.main import main
except KeyboardInterrupt:  # these imports take a second
    sys.stderr.write("stopped\n")
    raise SystemExit(130) from None

__all__ = ["main"]
