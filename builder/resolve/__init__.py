"""Stage resolve: product id → image URL, image status and the source of the URL."""

from builder.resolve.stage import resolve

__all__ = ["resolve"]
