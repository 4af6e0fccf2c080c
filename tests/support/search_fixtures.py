"""An encoder that knows the vectors of a store's queries, and brute-force search."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sqid_lib.search.searcher import Store

Floats = npt.NDArray[np.float64]


class QueryVectors:
    """Gives each query text of a store its stored vector; other texts and images a vector of their own."""

    def __init__(self, store: Store, *, revision: str = "made up") -> None:
        self.model_id, self.revision, self.width = "vectors of the queries", revision, store.width
        self._known = dict(zip(store.queries["query"].to_pylist(), store.query_features, strict=True))
        self.encoded: list[str] = []
        self.images: list[Any] = []

    def encode_text(self, texts: Sequence[str], /) -> npt.NDArray[np.float32]:
        self.encoded += texts
        rows = [self._known[text] if text in self._known else self._other(text) for text in texts]
        return np.stack(rows).astype(np.float32)

    def encode_images(self, images: Iterable[Any], /) -> npt.NDArray[np.float32]:
        found = list(images)
        self.images += found
        return np.stack([self._other(repr(image.size)) for image in found])

    def _other(self, name: str) -> npt.NDArray[np.float32]:
        seed = int.from_bytes(name.encode("utf-8")[:8], "little")
        return np.random.default_rng(seed).normal(size=self.width).astype(np.float32)


def cosines(vectors: npt.NDArray[Any], query: npt.NDArray[Any]) -> Floats:
    """float64 [P]: cosine of each row with the query; 0 for a row of zeros."""
    rows, one = np.asarray(vectors, np.float64), np.asarray(query, np.float64)
    lengths = np.sqrt((rows**2).sum(axis=1)) * np.sqrt((one**2).sum())
    found: Floats = np.divide((rows * one).sum(axis=1), lengths, out=np.zeros(len(rows)), where=lengths > 0)
    return found


def brute_force(
    store: Store, queries: Sequence[npt.NDArray[Any]], weight: float, kept: Sequence[int] | None = None
) -> list[tuple[float, str, str]]:
    """(score, product_id, locale) of all products, best first; scores that differ by rounding alone are ties."""
    text = np.mean([cosines(store.text_features, query) for query in queries], axis=0)
    image = np.mean([cosines(store.image_features, query) for query in queries], axis=0)
    scores = weight * text + (1 - weight) * image
    ids, locales = store.products["product_id"].to_pylist(), store.products["product_locale"].to_pylist()
    rows = range(len(ids)) if kept is None else kept
    found = [(round(float(scores[row]), 6), ids[row], locales[row]) for row in rows]
    return sorted(found, key=lambda row: (-row[0], row[1], row[2]))
