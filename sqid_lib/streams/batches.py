"""What a stream yields, and how the rows of a batch are gathered from a store."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

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


def pair_layout(rows: int, width: int, dtype: np.dtype[Any]) -> Layout:
    """Fields of a PairBatch."""
    return {
        **dict.fromkeys(("query_features", "text_features", "image_features"), (dtype, (rows, width))),
        "has_image": (np.dtype(np.bool_), (rows,)),
        "gain": (np.dtype(np.float32), (rows,)),
        "query_id": (np.dtype(np.int64), (rows,)),
        "product_index": (np.dtype(np.int64), (rows,)),
    }
