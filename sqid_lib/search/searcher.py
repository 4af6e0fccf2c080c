"""Exact search in all products of a store: one matrix product in float32, then the best again in float64.

Where other processes search shards of the store, they find the best, which are scored here once more.
"""

from __future__ import annotations

import os
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from sqid_lib.errors import UsageError
from sqid_lib.evaluation import judged
from sqid_lib.evaluation.arrays import Float32s, Ints
from sqid_lib.evaluation.clip import StoreVectors
from sqid_lib.evaluation.retrieval import Map, search_shards
from sqid_lib.evaluation.search import Search
from sqid_lib.search import encoder as encoders
from sqid_lib.search.encoder import Model, QueryEncoder
from sqid_lib.search.query import Image, query_vectors
from sqid_lib.search.result import Hit, SearchResult
from sqid_lib.search.sides import Halves, Side, halves
from sqid_lib.search.where import Where, matching

_SPARE = 10  # products more than asked for: the last bits of shards are other ones
_ROUNDING = np.float32(1e-5)  # more than the rounding of a float32 dot product of unit vectors
NO_IMAGES = "no product has an image vector: every image_score is 0"
NO_MATCH = "no product has the values that `where` asks for"


class Store(judged.Store, Protocol):
    """What is read of an EmbeddingStore; judgments are not."""

    @property
    def model(self) -> Model | None: ...


class Searcher:
    """The products of a store, ready for searching: the vectors stay where they are, their norms are kept here.

    From the first search by the default weight, 0.5, on, half the sum of both sides is kept too, up to 1 GB: that
    weight then reads few rows of the store, and another weight one side instead of two.
    """

    def __init__(self, store: Store) -> None:
        """Nothing is read yet."""
        self._store = store
        self._text = Side(store.text_features, np.ones(store.products.num_rows, np.bool_))
        self._image = Side(store.image_features, np.asarray(store.has_image))
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
        map_shards: Map | None = None,
    ) -> SearchResult:
        """See `EmbeddingStore.search`."""
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight <= 1:
            raise UsageError("bad weight", where="weight", expected="a number from 0 to 1", got=repr(weight))
        kept = np.flatnonzero(matching(where, self._store.products, self._store.has_image))
        notes: list[str] = [] if self._image.present.any() else [NO_IMAGES]
        vectors = query_vectors(query, image, self._store.width, lambda: self._encoder(encoder, notes))
        if not len(kept):
            return SearchResult((), (*notes, NO_MATCH))
        return SearchResult(self._best(vectors, kept, top, float(weight), map_shards), tuple(notes))

    @cached_property
    def _halves(self) -> Halves | None:
        return halves(self._text, self._image)

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

    def _best(self, vectors: Float32s, kept: Ints, top: int, weight: float, map_shards: Map | None) -> tuple[Hit, ...]:
        sides = [(share, side) for share, side in ((weight, self._text), (1 - weight, self._image)) if share > 0]
        query = vectors.mean(axis=0)
        if map_shards is None:
            near = self._candidates(query, sides, kept, top)
        else:
            near = self._found_in_shards(query, weight, kept, top + _SPARE, map_shards)
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

    def _found_in_shards(self, query: Float32s, weight: float, kept: Ints, top: int, map_shards: Map) -> Ints:
        """The best products of `kept` as other processes find them, by product_id where scores are equal."""
        store = self._store
        products = StoreVectors(store.text_features, store.image_features, np.asarray(store.has_image), weight)
        search = Search(np.zeros(1, np.int64), query[None], products, products.is_mapped)
        candidates = kept[np.argsort(self._position[kept])]
        ((index, _),) = search_shards([search], candidates, min(top, len(candidates)), "auto", map_shards)
        found: Ints = candidates[index[0]]
        return found

    def _parts(self, sides: list[tuple[float, Side]]) -> list[tuple[float, Side | Halves]]:
        """What to multiply with a query: half the sum of both sides, where it is there, in place of one of them."""
        least = min(share for share, _ in sides)
        halves = self._halves if least == 0.5 else self.__dict__.get("_halves")  # not made for other weights
        if len(sides) < 2 or halves is None:
            return [*sides]
        return [(2 * least, halves), *((share - least, side) for share, side in sides if share > least)]

    def _candidates(self, query: Float32s, sides: list[tuple[float, Side]], kept: Ints, top: int) -> Ints:
        """The products of `kept` that may be among the best `top`, whatever the rounding of float32."""
        if top >= len(kept):
            return kept
        scores = np.zeros(self._store.products.num_rows, np.float32)
        for share, part in self._parts(sides):
            scores += np.float32(share) * part.approximate(query)
        unsafe = np.unique(np.concatenate([side.unsafe for _, side in sides]))
        scores[unsafe] = np.inf  # always candidates
        scores = scores[kept]
        wide = min(top + len(unsafe), len(kept))
        border = np.partition(scores, -wide)[-wide]
        near: Ints = kept[scores >= border - _ROUNDING]
        return near
