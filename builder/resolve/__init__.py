"""Stage resolve: product id → image url, image status and where the url came from."""

from builder.resolve.stage import resolve

__all__ = ["resolve"]
