"""Stage fetch: image URL → bytes and status; every product gets an outcome, every distinct image is stored once."""

from builder.fetch.stage import fetch

__all__ = ["fetch"]
