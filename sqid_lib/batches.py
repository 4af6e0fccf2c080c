"""What a stream yields, and how the rows of a batch are gathered from a store."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from sqid_lib.store import EmbeddingStore

Rows = npt.NDArray[np.int64]
Arrays = dict[str, npt.NDArray[Any]]
Layout = dict[str, tuple[np.dtype[Any], tuple[int, ...]]]  # field → dtype and shape


class Batch:
    """Fields are torch tensors, or numpy arrays with format="numpy"; they belong to the one who got the batch."""

    def to(self, device: Any, non_blocking: bool = False) -> Self:
        """The same batch on a torch device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """The same batch in page-locked memory; DataLoader(pin_memory=True) calls this."""
        return self._each(lambda tensor: tensor.pin_memory())

    def __reduce__(self) -> tuple[Any, ...]:
        send = self.__dict__.pop("_send", None)  # of a batch that lies in shared memory
        return send() if send else (type(self), tuple(self.__dict__[f.name] for f in dataclasses.fields(self)))  # type: ignore[arg-type]

    def _each(self, change: Any) -> Self:
        fields = dataclasses.fields(self)  # type: ignore[arg-type]
        return type(self)(**{field.name: change(getattr(self, field.name)) for field in fields})


@dataclass(frozen=True)
class PairBatch(Batch):
    """B judgments.

    Attributes:
        query_features, text_features, image_features: float32 [B, D]; the image row is zero without an image.
        has_image: bool [B].
        gain: float32 [B].
        query_id, product_index: int64 [B]; the latter is a row of the store.
    """

    query_features: Any
    text_features: Any
    image_features: Any
    has_image: Any
    gain: Any
    query_id: Any
    product_index: Any


@dataclass(frozen=True)
class ListBatch(Batch):
    """B queries, each with all its judged products, padded to the longest list L of the batch.

    Attributes:
        query_features: float32 [B, D].
        text_features, image_features: float32 [B, L, D], zero where padded.
        has_image: bool [B, L].
        gain: float32 [B, L].
        mask: bool [B, L], false where padded.
        query_id: int64 [B].
        product_index: int64 [B, L], a row of the store, -1 where padded.
    """

    query_features: Any
    text_features: Any
    image_features: Any
    has_image: Any
    gain: Any
    mask: Any
    query_id: Any
    product_index: Any


@dataclass(frozen=True)
class NegativeBatch(Batch):
    """B judgments, each with N products that nobody judged for its query.

    Attributes:
        query_features, text_features, image_features, has_image, gain, query_id, product_index: as in PairBatch.
        negative_text_features, negative_image_features: float32 [B, N, D].
        negative_has_image: bool [B, N].
        negative_product_index: int64 [B, N].
        in_batch_mask: bool [B, B], true where product j of the batch is not judged for query i: an in-batch negative.
    """

    query_features: Any
    text_features: Any
    image_features: Any
    has_image: Any
    gain: Any
    query_id: Any
    product_index: Any
    negative_text_features: Any
    negative_image_features: Any
    negative_has_image: Any
    negative_product_index: Any
    in_batch_mask: Any


class Products(Protocol):
    """Vectors of products: a store, or a part of a release in memory."""

    @property
    def text_features(self) -> npt.NDArray[Any]: ...

    @property
    def image_features(self) -> npt.NDArray[Any]: ...

    @property
    def has_image(self) -> npt.NDArray[np.bool_]: ...


class Gather(Protocol):
    """How the batches of one kind are made; `units` are what an epoch visits once each."""

    @property
    def units(self) -> int: ...

    @property
    def kind(self) -> type[Batch]: ...

    def layout(self, units: Rows) -> Layout: ...

    def fill(self, units: Rows, out: Arrays, draw: tuple[int, ...], /) -> None:
        """Write the batch of `units` into `out`; `draw` seeds whatever is random in it."""


@dataclass(frozen=True)
class Pairs:
    """A unit is one of `judgments`, rows of the store's judgments."""

    store: EmbeddingStore
    judgments: Rows
    dtype: np.dtype[Any]
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


@dataclass(frozen=True)
class Lists:
    """A unit is a query: a slice of `judgments`, which are sorted by query."""

    store: EmbeddingStore
    judgments: Rows
    starts: Rows  # [units + 1]
    dtype: np.dtype[Any]
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


@dataclass(frozen=True)
class Negatives:
    """Pairs with `count` products each, drawn evenly from those not judged for the query."""

    pairs: Pairs
    count: int
    kind: type[Batch] = NegativeBatch

    @property
    def units(self) -> int:
        return self.pairs.units

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
        out["negative_product_index"][...] = store.judged.draw_others(queries, self.count, np.random.default_rng(draw))
        take_products(store, out["negative_product_index"], out, "negative_")
        np.logical_not(store.judged.has(queries[:, None], out["product_index"][None]), out=out["in_batch_mask"])


def pair_layout(rows: int, width: int, dtype: np.dtype[Any]) -> Layout:
    """Fields of a PairBatch."""
    return {
        **dict.fromkeys(("query_features", "text_features", "image_features"), (dtype, (rows, width))),
        "has_image": (np.dtype(np.bool_), (rows,)),
        "gain": (np.dtype(np.float32), (rows,)),
        "query_id": (np.dtype(np.int64), (rows,)),
        "product_index": (np.dtype(np.int64), (rows,)),
    }


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


class Judged:
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
