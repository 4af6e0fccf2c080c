"""The command `sqid`."""

from builder.cli.main import main

__all__ = ["main"]
