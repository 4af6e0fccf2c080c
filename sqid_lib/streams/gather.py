"""How the rows of a batch are gathered from a store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sqid_lib.streams.batches import Arrays, Batch, Layout, ListBatch, NegativeBatch, PairBatch, Rows, pair_layout
from sqid_lib.streams.texts import Texts


class Products(Protocol):
    """Vectors of products: a store, or a part of a release in memory."""

    @property
    def text_features(self) -> npt.NDArray[Any]: ...

    @property
    def image_features(self) -> npt.NDArray[Any]: ...

    @property
    def has_image(self) -> npt.NDArray[np.bool_]: ...


class JudgedStore(Products, Protocol):
    """Vectors of products and queries, and the judgments between them, as `sqid_lib.EmbeddingStore` has them."""

    @property
    def width(self) -> int: ...

    @property
    def query_features(self) -> npt.NDArray[Any]: ...

    @property
    def products(self) -> pa.Table: ...

    @property
    def queries(self) -> pa.Table: ...

    @property
    def query_ids(self) -> npt.NDArray[np.int64]: ...

    @property
    def gain(self) -> npt.NDArray[np.float32]: ...

    @property
    def judgment_query_index(self) -> Rows: ...

    @property
    def judgment_product_index(self) -> Rows: ...

    @property
    def judged(self) -> JudgedProducts: ...


class Gather(Protocol):
    """How the batches of one kind are made; `units` are what an epoch visits once each."""

    @property
    def units(self) -> int: ...

    @property
    def kind(self) -> type[Batch]: ...

    @property
    def texts(self) -> Texts | None: ...

    def layout(self, units: Rows) -> Layout: ...

    def fill(self, units: Rows, out: Arrays, draw: tuple[int, ...], /) -> None:
        """Write the batch of `units` into `out`; `draw` seeds whatever is random in it."""

    def read_texts(self, texts: Texts, units: Rows, out: Arrays, /) -> dict[str, Any]:
        """`Batch.texts` of the batch of `units` that was written into `out`."""


@dataclass(frozen=True)
class Pairs:
    """A unit is one of `judgments`, rows of the store's judgments."""

    store: JudgedStore
    judgments: Rows
    dtype: np.dtype[Any]
    texts: Texts | None = None
    kind: type[Batch] = PairBatch

    @property
    def units(self) -> int:
        return len(self.judgments)

    def layout(self, units: Rows) -> Layout:
        return pair_layout(len(units), self.store.width, self.dtype)

    def fill(self, units: Rows, out: Arrays, _draw: tuple[int, ...], /) -> None:
        store, judgments = self.store, self.judgments[units]
        queries = store.judgment_query_index[judgments]
        np.take(store.judgment_product_index, judgments, out=out["product_index"], mode="clip")
        np.take(store.gain, judgments, out=out["gain"], mode="clip")
        take(store.query_features, queries, out["query_features"])
        take_products(store, out["product_index"], out)
        np.take(store.query_ids, queries, out=out["query_id"], mode="clip")

    def read_texts(self, texts: Texts, units: Rows, out: Arrays, /) -> dict[str, Any]:
        queries = self.store.judgment_query_index[self.judgments[units]]
        return {**texts.of_queries(queries), **texts.of_products(out["product_index"])}


@dataclass(frozen=True)
class Lists:
    """A unit is a query: a slice of `judgments`, which are sorted by query."""

    store: JudgedStore
    judgments: Rows
    starts: Rows  # [units + 1]
    dtype: np.dtype[Any]
    texts: Texts | None = None
    kind: type[Batch] = ListBatch

    @property
    def units(self) -> int:
        return len(self.starts) - 1

    def layout(self, units: Rows) -> Layout:
        shape = (len(units), int((self.starts[units + 1] - self.starts[units]).max()))
        vectors = (self.dtype, (*shape, self.store.width))
        return {
            "query_features": (self.dtype, (len(units), self.store.width)),
            "text_features": vectors,
            "image_features": vectors,
            "has_image": (np.dtype(np.bool_), shape),
            "gain": (np.dtype(np.float32), shape),
            "mask": (np.dtype(np.bool_), shape),
            "query_id": (np.dtype(np.int64), shape[:1]),
            "product_index": (np.dtype(np.int64), shape),
        }

    def fill(self, units: Rows, out: Arrays, _draw: tuple[int, ...], /) -> None:
        store, mask = self.store, out["mask"]
        starts, stops = self.starts[units, None], self.starts[units + 1, None]
        positions = starts + np.arange(mask.shape[1])
        np.less(positions, stops, out=mask)
        judgments = self.judgments[np.minimum(positions, stops - 1)]
        products = store.judgment_product_index[judgments]
        take_products(store, products, out)
        for name, padded in (("text_features", 0), ("image_features", 0), ("has_image", False)):
            out[name][~mask] = padded
        out["gain"][...] = np.where(mask, store.gain[judgments], 0)
        out["product_index"][...] = np.where(mask, products, -1)
        queries = store.judgment_query_index[judgments[:, 0]]
        take(store.query_features, queries, out["query_features"])
        out["query_id"][...] = store.query_ids[queries]

    def read_texts(self, texts: Texts, units: Rows, out: Arrays, /) -> dict[str, Any]:
        queries = self.store.judgment_query_index[self.judgments[self.starts[units]]]
        lengths = self.starts[units + 1] - self.starts[units]
        products = texts.of_products(out["product_index"][out["mask"]])
        return {**texts.of_queries(queries), **{name: split(found, lengths) for name, found in products.items()}}


@dataclass(frozen=True)
class OverPairs:
    """A row for each of some pairs, with more in it."""

    pairs: Pairs

    @property
    def units(self) -> int:
        return self.pairs.units

    @property
    def texts(self) -> Texts | None:
        return self.pairs.texts


@dataclass(frozen=True)
class Negatives(OverPairs):
    """Pairs with `count` products each, drawn evenly from those not judged for the query."""

    count: int
    kind: type[Batch] = NegativeBatch

    def layout(self, units: Rows) -> Layout:
        shape = (len(units), self.count)
        vectors = (self.pairs.dtype, (*shape, self.pairs.store.width))
        return {
            **self.pairs.layout(units),
            "negative_text_features": vectors,
            "negative_image_features": vectors,
            "negative_has_image": (np.dtype(np.bool_), shape),
            "negative_product_index": (np.dtype(np.int64), shape),
            "in_batch_mask": (np.dtype(np.bool_), (len(units), len(units))),
        }

    def fill(self, units: Rows, out: Arrays, draw: tuple[int, ...], /) -> None:
        self.pairs.fill(units, out, draw)
        store = self.pairs.store
        queries = store.judgment_query_index[self.pairs.judgments[units]]
        out["negative_product_index"][...] = self.draw(units, queries, np.random.default_rng(draw))
        take_products(store, out["negative_product_index"], out, "negative_")
        np.logical_not(store.judged.has(queries[:, None], out["product_index"][None]), out=out["in_batch_mask"])

    def draw(self, units: Rows, queries: Rows, rng: np.random.Generator) -> Rows:
        """[B, count] negatives of the pairs `units`, whose queries are given."""
        del units
        return self.pairs.store.judged.draw_others(queries, self.count, rng)

    def read_texts(self, texts: Texts, units: Rows, out: Arrays, /) -> dict[str, Any]:
        negatives = texts.of_products(out["negative_product_index"].reshape(-1))
        lengths = np.full(len(units), self.count)
        return {
            **self.pairs.read_texts(texts, units, out),
            **{f"negative_{name}": split(found, lengths) for name, found in negatives.items()},
        }


@dataclass(frozen=True)
class HardProducts:
    """The unjudged products that score best for some queries.

    Attributes:
        where: int64 [Q], the row of `products` for each query of the store, -1 where there is none.
        products: int64 [n, top], rows of the store, best score first, -1 where there are no more.
        scores: float32 [n, top], -inf where there are no more.
    """

    where: Rows
    products: Rows
    scores: npt.NDArray[np.float32]

    def allowed(self, queries: Rows, most: npt.NDArray[np.float32] | None) -> npt.NDArray[np.bool_]:
        """bool [B, top]: the products that may be negatives of each query: their scores are at most `most` [B]."""
        rows = self.where[queries]
        found = self.products[rows] >= 0
        return found if most is None else found & (self.scores[rows] <= most[:, None])

    def draw(self, queries: Rows, most: npt.NDArray[np.float32] | None, count: int, rng: np.random.Generator) -> Rows:
        """[B, count] of the allowed products of each query, drawn evenly without replacement; there must be as many."""
        keys = np.where(self.allowed(queries, most), rng.random((len(queries), self.products.shape[1])), 2)
        columns = np.argsort(keys, axis=1, kind="stable")[:, :count]
        return np.asarray(self.products[self.where[queries][:, None], columns])


@dataclass(frozen=True, kw_only=True)
class HardNegatives(Negatives):
    """Pairs with `count` of the products that are hard for the query, not judged for it.

    Attributes:
        hard: where they are drawn from.
        most: float32 [units], the highest score that a negative of each pair may have; None for no limit.
    """

    hard: HardProducts
    most: npt.NDArray[np.float32] | None

    def draw(self, units: Rows, queries: Rows, rng: np.random.Generator) -> Rows:
        return self.hard.draw(queries, None if self.most is None else self.most[units], self.count, rng)


def split(values: list[str], lengths: Rows) -> list[list[str]]:
    """The values in lists of these lengths."""
    stops = np.cumsum(lengths)
    return [values[stop - length : stop] for stop, length in zip(stops.tolist(), lengths.tolist(), strict=True)]


def take(matrix: npt.NDArray[Any], rows: Rows, out: npt.NDArray[Any]) -> None:
    """out[...] = matrix[rows], without a copy between where the dtypes agree."""
    if matrix.dtype == out.dtype:
        np.take(matrix, rows, axis=0, out=out, mode="clip")  # the other modes buffer `out`
    else:
        out[...] = matrix[rows]


def take_products(store: Products, rows: Rows, out: Arrays, prefix: str = "") -> None:
    """Write the vectors of products and whether they have an image."""
    take(store.text_features, rows, out[f"{prefix}text_features"])
    take(store.image_features, rows, out[f"{prefix}image_features"])
    np.take(store.has_image, rows, out=out[f"{prefix}has_image"], mode="clip")


class JudgedProducts:
    """Which products are judged for which query; answers in one binary search."""

    def __init__(self, queries: Rows, products: Rows, query_count: int, product_count: int) -> None:
        self.products = product_count
        self.keys = np.unique(queries * product_count + products)
        self.starts = np.searchsorted(self.keys, np.arange(query_count + 1) * product_count)
        ranks = np.arange(len(self.keys)) - np.repeat(self.starts[:-1], np.diff(self.starts))
        # how many unjudged products come before each judged one, made increasing over all queries
        self.gaps = self.keys + self.keys // product_count - ranks

    def has(self, queries: Rows, products: Rows) -> npt.NDArray[np.bool_]:
        """Whether each (query row, product row) is judged; the two broadcast."""
        keys = queries * self.products + products
        found = self.keys[np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)]
        return np.asarray(found == keys)

    def draw_others(self, queries: Rows, count: int, rng: np.random.Generator) -> Rows:
        """[B, count] products not judged for each query, drawn evenly with replacement."""
        free = self.products - (self.starts[queries + 1] - self.starts[queries])
        nth = rng.integers(0, free[:, None], size=(len(queries), count))
        # the nth unjudged product comes after as many judged ones as have at most nth unjudged before them
        before = np.searchsorted(self.gaps, nth + queries[:, None] * (self.products + 1), side="right")
        return np.asarray(nth + before - self.starts[queries, None])
