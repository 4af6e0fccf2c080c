"""Stage embed: texts and images to vectors."""

from builder.embed.stage import embed

__all__ = ["embed"]
