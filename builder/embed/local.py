"""The local backend: a transformers dual encoder on this machine's CPU or GPUs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from builder.embed.stored_images import Pictures
from builder.recipe import Recipe
from sqid_lib.errors import missing_extra
from sqid_lib.images import PictureError, decode

if TYPE_CHECKING:
    from PIL import Image

Floats = NDArray[np.float32]
Tick = Callable[[int], object]
_VERSIONED = ("torch", "transformers", "tokenizers", "numpy", "pillow")
_MAX_ASPECT = 500  # the short side is brought to the model's size, and the long one grows with it


class Local:
    """Encodes texts, and pictures that fetch stored, on one device.

    Args:
        recipe: [encoder] and fetch.max_pixels.
        work: the build's work directory.
        device: as torch names it, or "auto".
        record: revision and linear to use: of an earlier run's `record`, to encode exactly as that one did.

    Raises:
        EncoderError, UsageError, MissingExtraError: as `sqid_lib.load_encoder`.
        CorruptFileError, SchemaError: what fetch stored is damaged.
    """

    def __init__(self, recipe: Recipe, work: Path, device: str, record: dict[str, Any]) -> None:
        from sqid_lib.encoders import load_encoder

        settings = recipe.encoder
        self._encoder = load_encoder(
            settings.model,
            revision=record["revision"],
            device=device,
            dtype=settings.dtype,
            linear=record["linear"],
        )
        self._settings, self._max_pixels = settings, recipe.fetch.max_pixels
        self._pictures = Pictures(work / "fetch")

    @property
    def record(self) -> dict[str, Any]:
        """What makes the vectors what they are."""
        return {
            "revision": self._encoder.revision,
            "width": self._encoder.width,
            "linear": self._encoder.linear,
            "versions": versions(),
        }

    def texts(self, texts: Sequence[str], tick: Tick) -> Floats:
        """float32 [N, D]."""
        size = max(self._settings.text_batch, 4096) if self._encoder.on_gpu else self._settings.text_batch
        vectors = self._encoder.encode_text(texts, batch_size=size)
        tick(len(texts))
        return vectors

    def pictures(self, digests: Sequence[str], tick: Tick) -> tuple[Floats, dict[str, str]]:
        """float32 [N, D], NaN where there is no vector, and the status of those that did not decode."""
        self._pictures.check(digests)
        ordered = self._pictures.order(digests)
        failed: dict[str, str] = {}

        def open_picture(item: tuple[str, bytes]) -> Image.Image | None:
            tick(1)
            try:
                image = decode(item[1], self._max_pixels)
                if max(image.size) > _MAX_ASPECT * min(image.size):
                    raise PictureError("too_many_pixels", "far longer than wide: enlarged, it would not fit")
            except PictureError as error:
                failed[item[0]] = error.status
                return None
            return image

        wanted, suits = self._settings.image_batch, self._encoder.image_batch
        size = max(wanted, suits) if self._encoder.on_gpu else min(wanted, suits)
        stored = zip(ordered, self._pictures.read(ordered), strict=True)
        vectors = self._encoder.encode_images(stored, decode=open_picture, batch_size=size)
        place = {digest: row for row, digest in enumerate(ordered)}
        return vectors[[place[digest] for digest in digests]], failed


def devices(setting: str) -> list[str]:
    """The devices to use: those named, with commas between; "auto" means every GPU there is, or the CPU."""
    try:
        import torch
    except ImportError as error:
        raise missing_extra("torch", "build", "to embed") from error
    if setting != "auto":
        return [name.strip() for name in setting.split(",")]
    return [f"cuda:{rank}" for rank in range(torch.cuda.device_count())] or ["cpu"]


def versions() -> dict[str, str]:
    """Of the packages whose numbers end up in the vectors."""
    return {package: metadata.version(package) for package in _VERSIONED}
