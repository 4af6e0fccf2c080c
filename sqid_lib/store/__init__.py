"""A release as memory-mapped matrices."""

from sqid_lib.store.store import EmbeddingStore, default_cache

__all__ = ["EmbeddingStore", "default_cache"]
