"""Stage fetch: image url → bytes and status; every product gets an outcome, every distinct picture is kept once."""

from builder.fetch.stage import fetch

__all__ = ["fetch"]
