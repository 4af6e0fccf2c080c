"""A release: its files, card, manifest and checksums."""

from builder.release.stage import release

__all__ = ["release"]
