"""What users import. This needs the base packages only; torch and transformers are imported where they are used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sqid_lib import evaluation
    from sqid_lib.encoders import load_encoder
    from sqid_lib.product_images import ProductImages
    from sqid_lib.store import EmbeddingStore
    from sqid_lib.streams.open import stream_pairs
    from sqid_lib.streams.split import fold_queries, split_queries

__all__ = [
    "EmbeddingStore",
    "ProductImages",
    "evaluation",
    "fold_queries",
    "load_encoder",
    "split_queries",
    "stream_pairs",
]

_HOMES = {
    "EmbeddingStore": "store",
    "ProductImages": "product_images",
    "fold_queries": "streams.split",
    "load_encoder": "encoders",
    "split_queries": "streams.split",
    "stream_pairs": "streams.open",
}


def __getattr__(name: str) -> Any:
    if name == "evaluation":
        return importlib.import_module("sqid_lib.evaluation")
    if name in _HOMES:
        return getattr(importlib.import_module(f"sqid_lib.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'sqid_lib' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
