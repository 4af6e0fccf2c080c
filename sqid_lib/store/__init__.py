"""A release as memory-mapped matrices."""

from sqid_lib.cache import default_cache
from sqid_lib.store.store import EmbeddingStore

__all__ = ["EmbeddingStore", "default_cache"]
