"""What a stream yields."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import numpy as np
import numpy.typing as npt

from sqid_lib.errors import UsageError

B = TypeVar("B")
Rows = npt.NDArray[np.int64]
Arrays = dict[str, npt.NDArray[Any]]
Layout = dict[str, tuple[np.dtype[Any], tuple[int, ...]]]  # field → dtype and shape


class Batch:
    """Fields are torch tensors, or numpy arrays with format="numpy"; the user may keep and change them."""

    text_features: Any
    gain: Any

    @property
    def texts(self) -> dict[str, Any]:
        """The texts that the stream was asked for, by name; "" for null.

        A list of B texts; a list of B lists for the products of a ListBatch and for names that begin with `negative_`.
        """
        found: dict[str, Any] = self.__dict__.get("_texts", {})
        return found

    def to(self, device: Any, non_blocking: bool = False) -> Self:
        """The same batch on a torch device; texts stay as they are.

        Raises:
            UsageError: the batch is of numpy arrays.
        """
        self._need_tensors("to")
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """The same batch in page-locked memory; DataLoader(pin_memory=True) calls this.

        Raises:
            UsageError: the batch is of numpy arrays.
        """
        self._need_tensors("pin_memory")
        return self._each(lambda tensor: tensor.pin_memory())

    def __repr__(self) -> str:
        size = " × ".join(map(str, self.text_features.shape))
        device = getattr(self.text_features, "device", "cpu")
        parts = [f"batch {size}"]
        if str(device) != "meta":  # which has no values
            parts.append(f"{int((self.gain > 0).sum())} with gain > 0")
        dtype = str(self.text_features.dtype).removeprefix("torch.")
        texts = [f"texts {', '.join(self.texts)}"] if self.texts else []
        return f"{type(self).__name__}({', '.join([*parts, dtype, str(device), *texts])})"

    def __reduce__(self) -> tuple[Any, ...]:
        send = self.__dict__.pop("_send", None)  # of a batch that lies in shared memory
        make, args = send() if send else (type(self), tuple(self.__dict__[f.name] for f in self._fields()))
        return (with_texts, (make, args, self.texts)) if self.texts else (make, args)

    @classmethod
    def _fields(cls) -> tuple[dataclasses.Field[Any], ...]:
        return dataclasses.fields(cls)  # type: ignore[arg-type]

    def _each(self, change: Callable[[Any], Any]) -> Self:
        fields = {field.name: change(getattr(self, field.name)) for field in self._fields()}
        return with_texts(type(self), (), self.texts, **fields)

    def _need_tensors(self, method: str) -> None:
        if isinstance(self.gain, np.ndarray):
            raise UsageError("the batch is of numpy arrays", where=method, fix='Make the stream with format="torch".')


def with_texts(make: Callable[..., B], args: tuple[Any, ...], texts: dict[str, Any], **fields: Any) -> B:
    """The batch that `make` makes, with texts."""
    batch = make(*args, **fields)
    if texts:
        batch.__dict__["_texts"] = texts  # not a field: fields are arrays
    return batch


@dataclass(frozen=True, repr=False)
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


@dataclass(frozen=True, repr=False)
class ImagePairBatch(PairBatch):
    """B judgments with the pixels of their products.

    Attributes:
        query_features, text_features, image_features, gain, query_id, product_index: as in PairBatch.
        has_image: bool [B], whether `pixel_values` has an image: false where the source of images has none for the
            product, or one that cannot be decoded.
        pixel_values: float32 [B, 3, H, W], zero without an image.
    """

    pixel_values: Any


@dataclass(frozen=True, repr=False)
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


@dataclass(frozen=True, repr=False)
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
