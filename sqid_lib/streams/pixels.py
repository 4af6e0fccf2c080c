"""Pixels of a batch: images read, decoded, augmented and preprocessed by the threads that gather it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sqid_lib.errors import UsageError, missing_extra
from sqid_lib.images import ImageError
from sqid_lib.product_images import ProductImages
from sqid_lib.streams.batches import Arrays, Batch, ImagePairBatch, Layout, Rows
from sqid_lib.streams.gather import OverPairs
from sqid_lib.streams.texts import Texts

if TYPE_CHECKING:
    from PIL import Image

Preprocess = Callable[["Image.Image"], Any]
Augment = Callable[["Image.Image", np.random.Generator], "Image.Image"]
_PROBE = (48, 32)  # width and height of the image that shows the shape of what `preprocess` returns
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pixels:
    """How products become pixels.

    Attributes:
        images: where their bytes are.
        numbers: [P], of each product its image among `images`, −1 where there is none.
        preprocess: RGB image → float32 [3, H, W].
        augment: called before `preprocess`, with a generator that depends on the place in the stream alone; or None.
        shape: of what `preprocess` returns.
    """

    images: ProductImages
    numbers: Rows
    preprocess: Preprocess
    augment: Augment | None
    shape: tuple[int, ...]
    _reported: set[int] = field(default_factory=set)

    def fill(self, products: Rows, out: Arrays, draw: tuple[int, ...]) -> None:
        """Write `pixel_values` and `has_image` of some products; zeros where an image is missing or not usable."""
        for row, product in enumerate(products.tolist()):
            pixels = self._pixels(product, (*draw, row))
            out["has_image"][row] = pixels is not None
            out["pixel_values"][row] = 0 if pixels is None else pixels

    def _pixels(self, product: int, draw: tuple[int, ...]) -> npt.NDArray[Any] | None:
        number = int(self.numbers[product])
        if number < 0:
            return None
        try:
            image = self.images.decode(number)
        except ImageError as error:
            if product not in self._reported:
                self._reported.add(product)
                _log.warning("%s: the image of product row %d is left out: %s", self.images.where, product, error)
            return None
        if self.augment is not None:
            image = self.augment(image, np.random.default_rng(draw))
        pixels = as_pixels(self.preprocess(image))
        if pixels.shape != self.shape:
            raise UsageError(
                "images differ in shape", where="preprocess", expected=list(self.shape), got=list(pixels.shape)
            )
        return pixels


@dataclass(frozen=True)
class ImagePairs(OverPairs):
    """Pairs with the pixels of their products."""

    pixels: Pixels
    kind: type[Batch] = ImagePairBatch

    def layout(self, units: Rows) -> Layout:
        return {
            **self.pairs.layout(units),
            "pixel_values": (np.dtype(np.float32), (len(units), *self.pixels.shape)),
        }

    def fill(self, units: Rows, out: Arrays, draw: tuple[int, ...], /) -> None:
        self.pairs.fill(units, out, draw)
        self.pixels.fill(out["product_index"], out, draw)

    def read_texts(self, texts: Texts, units: Rows, out: Arrays, /) -> dict[str, Any]:
        return self.pairs.read_texts(texts, units, out)


def open_pixels(images: ProductImages, numbers: Rows, preprocess: Preprocess, augment: Augment | None) -> Pixels:
    """`Pixels` of checked arguments; the shape of the pixels is that of a probe.

    Raises:
        UsageError: not such arguments, or `preprocess` does not return numbers [3, H, W].
        MissingExtraError: Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError:
        raise missing_extra("pillow", "build", "to decode images") from None
    for name, value in (("preprocess", preprocess), ("augment", augment)):
        if not callable(value) and not (name == "augment" and value is None):
            raise UsageError("not a function of an image", where=name, got=repr(value)[:80])
    shape = as_pixels(preprocess(Image.new("RGB", _PROBE, "white"))).shape
    if len(shape) != 3 or shape[0] != 3:
        raise UsageError("not the pixels of one image", where="preprocess", expected="[3, H, W]", got=list(shape))
    return Pixels(images, numbers, preprocess, augment, shape)


def as_pixels(value: Any) -> npt.NDArray[Any]:
    """An array or tensor of numbers as an array; UsageError for anything else."""
    array = np.asarray(value)
    if array.dtype.kind not in "fiu":
        fix = 'For a processor of transformers: lambda image: processor(image, return_tensors="np")["pixel_values"][0]'
        expected = "an array or tensor [3, H, W]"
        raise UsageError(
            "does not return pixels", where="preprocess", expected=expected, got=type(value).__name__, fix=fix
        )
    return array
