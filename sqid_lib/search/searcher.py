"""Exact search in all products of a store: one matrix product in float32, then the best again in float64."""

from __future__ import annotations

import os
import threading
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from sqid_lib.errors import UsageError
from sqid_lib.evaluation import judged
from sqid_lib.evaluation.arrays import Bools, Float32s, Floats, Ints, Matrix
from sqid_lib.evaluation.cosine import unit
from sqid_lib.search import encoder as encoders
from sqid_lib.search.encoder import Model, QueryEncoder
from sqid_lib.search.query import Image, query_vectors
from sqid_lib.search.result import Hit, SearchResult
from sqid_lib.search.where import Where, matching

_BLOCK = 8_192  # rows of which a copy is in memory
_ROUNDING = np.float32(1e-5)  # more than the rounding of a float32 dot product of unit vectors
_RECENT = 4  # queries whose dot products are kept, 4 bytes a product each
_SAFE_NORMS = (1e-15, 1e15)  # of vectors whose squares float32 can hold
NO_IMAGES = "no product has an image vector: every image_score is 0"
NO_MATCH = "no product has the values that `where` asks for"


class Store(judged.Store, Protocol):
    """What is read of an EmbeddingStore; judgments are not."""

    @property
    def model(self) -> Model | None: ...


class Searcher:
    """The products of a store, ready for searching: the vectors stay where they are, their norms are kept here."""

    def __init__(self, store: Store) -> None:
        """Read all vectors once, block by block."""
        self._store = store
        self._text = _Side(store.text_features, np.ones(store.products.num_rows, np.bool_))
        self._image = _Side(store.image_features, np.asarray(store.has_image))
        self._position = judged.product_order(store)
        self._loaded: dict[str | None, QueryEncoder] = {}
        # by id; the encoder is kept with it, so that no other gets its id
        self._checked: dict[int, tuple[QueryEncoder, str | None]] = {}

    def search(
        self,
        query: str | np.ndarray[Any, Any] | None,
        image: Image | None,
        top: int,
        where: Where | None,
        weight: float,
        encoder: QueryEncoder | str | os.PathLike[str] | None,
    ) -> SearchResult:
        """See `EmbeddingStore.search`."""
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight <= 1:
            raise UsageError("bad weight", where="weight", expected="a number from 0 to 1", got=repr(weight))
        kept = np.flatnonzero(matching(where, self._store.products, self._store.has_image))
        notes: list[str] = [] if self._image.present.any() else [NO_IMAGES]
        vectors = query_vectors(query, image, self._store.width, lambda: self._encoder(encoder, notes))
        if not len(kept):
            return SearchResult((), (*notes, NO_MATCH))
        return SearchResult(self._best(vectors, kept, top, float(weight)), tuple(notes))

    def _encoder(self, encoder: QueryEncoder | str | os.PathLike[str] | None, notes: list[str]) -> QueryEncoder:
        """A loaded and checked encoder; each is loaded and checked once."""
        store = self._store
        if encoder is None or isinstance(encoder, str | os.PathLike):
            name = None if encoder is None else os.fspath(encoder)
            if name not in self._loaded:
                self._loaded[name] = encoders.load(name, store.model)
            encoder = self._loaded[name]
        if id(encoder) not in self._checked:
            note = encoders.check(encoder, store.model, store.width, store.queries, store.query_features)
            self._checked[id(encoder)] = encoder, note
        note = self._checked[id(encoder)][1]
        if note and note not in notes:
            notes.append(note)
        return encoder

    def _best(self, vectors: Float32s, kept: Ints, top: int, weight: float) -> tuple[Hit, ...]:
        sides = [(share, side) for share, side in ((weight, self._text), (1 - weight, self._image)) if share > 0]
        near = self._candidates(vectors.mean(axis=0), sides, kept, top)
        scores = sum((share * side.cosines(vectors, near) for share, side in sides), np.zeros(len(near)))
        rows = near[np.lexsort((self._position[near], -scores))[:top]]
        text, image = self._text.cosines(vectors, rows), self._image.cosines(vectors, rows)
        found = self._store.products.take(pa.array(rows)).to_pylist()
        return tuple(
            Hit(
                product_id=product["product_id"],
                product_locale=product["product_locale"],
                title=product.get("product_title"),
                image_url=product.get("image_url"),
                image_status=product.get("image_status"),
                score=float(weight * t + (1 - weight) * i),
                text_score=float(t),
                image_score=float(i),
            )
            for product, t, i in zip(found, text, image, strict=True)
        )

    def _candidates(self, query: Float32s, sides: list[tuple[float, _Side]], kept: Ints, top: int) -> Ints:
        """The products of `kept` that may be among the best `top`, whatever the rounding of float32."""
        if top >= len(kept):
            return kept
        scores = np.zeros(self._store.products.num_rows, np.float32)
        for share, side in sides:
            scores += np.float32(share) * side.approximate(query)
        unsafe = np.unique(np.concatenate([side.unsafe for _, side in sides]))
        scores[unsafe] = np.inf  # always candidates
        scores = scores[kept]
        wide = min(top + len(unsafe), len(kept))
        border = np.partition(scores, -wide)[-wide]
        near: Ints = kept[scores >= border - _ROUNDING]
        return near


class _Side:
    """The text vectors or the image vectors of all products.

    Attributes:
        present: bool [P], which products have a vector; the others have cosine 0.
        unsafe: rows whose norm is too small or large for float32.
    """

    def __init__(self, vectors: Matrix, present: Bools) -> None:
        self._vectors, self.present = vectors, present
        self._recent: dict[bytes, Float32s] = {}
        self._lock = threading.Lock()
        norms = np.empty(len(vectors), np.float32)
        with np.errstate(over="ignore", under="ignore"):
            for start in range(0, len(vectors), _BLOCK):
                block = np.asarray(vectors[start : start + _BLOCK], np.float32)
                norms[start : start + _BLOCK] = np.sqrt(np.einsum("ij,ij->i", block, block))
        least, most = _SAFE_NORMS
        safe = (norms > least) & (norms < most)
        self.unsafe = np.flatnonzero(present & ~safe)
        self._inverse = np.divide(1, norms, out=np.zeros_like(norms), where=safe & present)

    def approximate(self, query: Float32s) -> Float32s:
        """float32 [P]: dot products of `query` [D] with the vectors at unit length; anything for `unsafe` rows.

        Those of the last queries are kept: another weight for the same query reads no vectors.
        """
        key = query.tobytes()
        with self._lock:
            found = self._recent.get(key)
        if found is None:
            found = self._dot_products(query)
            with self._lock:
                self._recent[key] = found
                for oldest in list(self._recent)[:-_RECENT]:
                    del self._recent[oldest]
        return found

    def _dot_products(self, query: Float32s) -> Float32s:
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            # float32 in one piece, float16 in blocks: a copy of all of it as float32 would not be small
            rows = len(self._vectors) if self._vectors.dtype == np.float32 else _BLOCK
            starts = range(0, len(self._vectors), rows)
            blocks = [np.asarray(self._vectors[start : start + rows], np.float32) @ query for start in starts]
            return np.concatenate(blocks) * self._inverse

    def cosines(self, vectors: Float32s, rows: Ints) -> Floats:
        """float64 [n]: mean cosine of unit `vectors` [m, D] with those of `rows` [n]; 0 where there is none."""
        found = np.zeros(len(rows))
        there = np.flatnonzero(self.present[rows])
        for start in range(0, len(there), _BLOCK):
            block = there[start : start + _BLOCK]
            # in float64 beforehand: a cast within einsum would make the order of a sum depend on the row
            products = unit(self._vectors[rows[block]]).astype(np.float64)
            for vector in vectors.astype(np.float64):
                found[block] += np.einsum("ij,j->i", products, vector)
        return found / len(vectors)
