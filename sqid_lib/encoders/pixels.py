"""Images to pixel values: the model's own image processor, or the same numbers faster.

What CLIP's and SigLIP's processors do after resizing and cropping maps each of 256 byte values of each channel to one
float. So an image can stay bytes until it is on the device, where a table made with the processor does the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sqid_lib.errors import EncoderError

if TYPE_CHECKING:
    import torch
    from PIL import Image

Inputs = dict[str, NDArray[Any]]  # what the network takes for one image, without the batch axis
_PROBES = ((61, 300), (333, 97), (224, 224), (3, 5))  # width, height


class Pixels:
    """Preprocessing for one model.

    Args:
        processor: a transformers image processor on its PIL path.

    Attributes:
        table: float32 [3, 256], value of each byte of each channel; None where the processor does more than that.
    """

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        self._geometry = _geometry(processor)
        self.table: NDArray[np.float32] | None = self._make_table() if self._geometry else None
        if self.table is not None and not self._is_exact():
            self.table = None

    def prepare(self, image: Image.Image) -> Inputs:
        """One image of any mode: uint8 [3, H, W] for `table`, or what the processor gives."""
        if self.table is not None and self._geometry is not None and image.mode == "RGB":
            return {"pixel_values": self._geometry.apply(image)}
        whole = self._whole(image)
        return whole if self.table is None else {"pixel_values": self._bytes(whole["pixel_values"])}

    def inputs(self, images: Sequence[Inputs]) -> Inputs:
        """The network's inputs for some images, [B, …] each."""
        return {name: np.stack([image[name] for image in images]) for name in images[0]}

    def floats(self, image: Image.Image) -> NDArray[Any]:
        """One image as the network takes it, float32 [3, H, W].

        Raises:
            EncoderError: the network takes more than pixel_values.
        """
        inputs = self.prepare(image)
        if set(inputs) != {"pixel_values"}:
            raise EncoderError("images of this model are more than pixels", where="preprocess", got=", ".join(inputs))
        pixels = inputs["pixel_values"]
        if self.table is None:
            return pixels
        return np.stack([np.take(row, plane) for row, plane in zip(self.table, pixels, strict=True)])

    def _bytes(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        """The bytes that `table` makes `values` of; float32 [3, H, W] → uint8."""
        assert self.table is not None
        return np.stack([np.searchsorted(row, plane) for row, plane in zip(self.table, values, strict=True)]).astype(
            np.uint8
        )

    def _whole(self, image: Image.Image) -> Inputs:
        if image.mode != "RGB" and not getattr(self._processor, "do_convert_rgb", False):
            image = image.convert("RGB")  # ALIGN's processor takes only RGB
        return {name: np.asarray(value)[0] for name, value in self._processor(image, return_tensors="np").items()}

    def _make_table(self) -> NDArray[np.float32] | None:
        from PIL import Image

        ramp = Image.fromarray(np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2))
        values = self._processor(ramp, do_resize=False, do_center_crop=False, return_tensors="np")["pixel_values"][0]
        table = np.asarray(values).reshape(3, 256)
        return table if table.dtype == np.float32 and (np.diff(table) > 0).all() else None

    def _is_exact(self) -> bool:
        from PIL import Image

        rng = np.random.default_rng(0)
        for width, height in _PROBES:
            image = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
            whole = self._whole(image)
            if set(whole) != {"pixel_values"} or self.table is None:
                return False
            values = np.stack(
                [row[plane] for row, plane in zip(self.table, self.prepare(image)["pixel_values"], strict=True)]
            )
            if not np.array_equal(values, whole["pixel_values"]):
                return False
        return True


def from_table(table: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """uint8 [B, 3, H, W] → floats of the same shape; `table` is [3, 256] on the same device."""
    import torch

    index = pixels.int()
    planes = [torch.index_select(table[c], 0, index[:, c].reshape(-1)).view_as(index[:, c]) for c in range(3)]
    return torch.stack(planes, dim=1)


@dataclass(frozen=True)
class _Geometry:
    """Resize (to `shortest`, or to exactly `size`), then the centre `crop`; sizes are (height, width)."""

    resample: int
    shortest: int | None
    size: tuple[int, int] | None
    crop: tuple[int, int] | None

    def apply(self, image: Image.Image) -> NDArray[np.uint8]:
        width, height = image.size
        if self.size is not None:
            height, width = self.size
        elif self.shortest is not None:
            long = int(self.shortest * max(width, height) / min(width, height))
            width, height = (self.shortest, long) if width <= height else (long, self.shortest)
        pixels = np.asarray(image.resize((width, height), self.resample))
        if self.crop is not None:
            top, left = (height - self.crop[0]) // 2, (width - self.crop[1]) // 2
            pixels = pixels[top : top + self.crop[0], left : left + self.crop[1]]
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _geometry(processor: Any) -> _Geometry | None:
    """None where the processor does something else than resize and crop; `_is_exact` checks the rest."""
    size, crop = (_sides(getattr(processor, name, None)) for name in ("size", "crop_size"))
    if not getattr(processor, "do_resize", False) or getattr(processor, "do_pad", False):
        return None
    cropped = (crop["height"], crop["width"]) if getattr(processor, "do_center_crop", False) else None
    if set(size) == {"shortest_edge"}:
        if cropped is None or max(cropped) > size["shortest_edge"]:
            return None
        return _Geometry(int(processor.resample), size["shortest_edge"], None, cropped)
    if set(size) == {"height", "width"} and cropped is None:
        return _Geometry(int(processor.resample), None, (size["height"], size["width"]), None)
    return None


def _sides(size: Any) -> dict[str, int]:
    return {name: value for name, value in dict(size or {}).items() if value is not None}
