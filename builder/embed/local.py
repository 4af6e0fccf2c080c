"""The local backends: an encoder of transformers, open_clip or sentence-transformers on this machine's CPU or GPUs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from builder.engines import MapAhead
from builder.recipe import Recipe
from sqid_lib.encoders.batching import VectorBatches, in_batches
from sqid_lib.errors import missing_extra
from sqid_lib.images import ImageError, decode_for_model
from sqid_lib.object_store import ObjectStore
from sqid_lib.stored_images import StoredImages

if TYPE_CHECKING:
    from PIL import Image

_VERSIONED = ("torch", "transformers", "tokenizers", "numpy", "pillow")
_ALSO = {  # by backend
    "open_clip": ("open_clip_torch", "torchvision", "timm", "ftfy"),
    "sentence-transformers": ("sentence-transformers",),
}
NOT_ENCODED = "not_encoded"


class Local:
    """Encodes texts, and images that fetch stored, on one device.

    Args:
        recipe: [encoder], fetch.max_pixels and fetch.truncated.
        work: the build's work directory.
        device: as torch names it, or "auto".
        record: revision and linear to use: of an earlier run's `record`, to encode exactly as that run did.
        store: where the images are, if that is not `work`.
        map_ahead: what decodes images, if not threads of this process.

    Raises:
        EncoderError, UsageError, MissingExtraError: as `sqid_lib.load_encoder`.
    """

    def __init__(
        self,
        recipe: Recipe,
        work: Path,
        device: str,
        record: dict[str, Any],
        store: ObjectStore | None = None,
        map_ahead: MapAhead | None = None,
    ) -> None:
        from sqid_lib.encoders import load_encoder

        settings = recipe.encoder
        self._encoder = load_encoder(
            settings.model,
            revision=record["revision"],
            device=device,
            dtype=settings.dtype,
            linear=record["linear"],
            backend=settings.backend,
        )
        self._settings = settings
        self._decode = _Decode(recipe.fetch.max_pixels, recipe.fetch.truncated == "keep")
        self._folder, self._store, self._map_ahead = work / "fetch", store, map_ahead

    @property
    def record(self) -> dict[str, Any]:
        """What the vectors depend on."""
        return {
            "revision": self._encoder.revision,
            "width": self._encoder.width,
            "linear": self._encoder.linear,
            "versions": versions(self._settings.backend),
        }

    def texts(self, texts: Sequence[str]) -> VectorBatches:
        """Texts of similar length together."""
        size = max(self._settings.text_batch, 4096) if self._encoder.on_gpu else self._settings.text_batch
        return self._encoder.text_batches(texts, batch_size=size)

    def images(self, names: Sequence[str]) -> tuple[VectorBatches, dict[str, str]]:
        """Images in the order given, and the status of those that cannot be decoded.

        A model of texts alone gives no vector and the status `NOT_ENCODED`; then no image is read.

        Args:
            names: sha256 of each image.

        Raises:
            CorruptFileError, SchemaError, IntegrityError: what fetch stored is damaged or not complete.
        """
        if not self._encoder.has_images:
            nothing = np.full((len(names), self._encoder.width), np.nan, np.float32)
            return VectorBatches([list(range(len(names)))], iter([nothing])), dict.fromkeys(names, NOT_ENCODED)
        self._stored.check(names)
        failed: dict[str, str] = {}

        def open_image(item: tuple[str, bytes]) -> Image.Image | None:
            try:
                return self._decode(item[1])
            except ImageError as error:
                failed[item[0]] = error.status
                return None

        def prepare_ahead(prepare: Callable[[Any], Any], numbered: Iterable[Any]) -> Iterator[Any]:
            assert self._map_ahead is not None
            results = self._map_ahead(_Prepare(self._decode, prepare), numbered)
            for name, (prepared, status) in zip(names, results, strict=True):
                if prepared is None:
                    failed[name] = status
                yield prepared

        wanted, suits = self._settings.image_batch, self._encoder.image_batch
        size = max(wanted, suits) if self._encoder.on_gpu else min(wanted, suits)
        if self._map_ahead is None:
            stored = zip(names, self._stored.read(names), strict=True)
            vectors = self._encoder.image_batches(stored, decode=open_image, batch_size=size)
        else:
            vectors = self._encoder.image_batches(self._stored.read(names), map_ahead=prepare_ahead, batch_size=size)
        return VectorBatches(list(in_batches(range(len(names)), size)), vectors), failed

    @cached_property
    def _stored(self) -> StoredImages:
        return StoredImages(self._folder) if self._store is None else StoredImages.of_store(self._store)


@dataclass(frozen=True)
class _Decode:
    max_pixels: int
    keep_truncated: bool

    def __call__(self, data: bytes) -> Image.Image:
        return decode_for_model(data, self.max_pixels, keep_truncated=self.keep_truncated)


@dataclass(frozen=True)
class _Prepare:
    """A numbered image's bytes → what the network takes and "", or None and the status; for another process."""

    decode: _Decode
    prepare: Callable[[tuple[int, Image.Image]], Any]

    def __call__(self, numbered: tuple[int, bytes]) -> tuple[Any, str]:
        row, data = numbered
        try:
            return self.prepare((row, self.decode(data))), ""
        except ImageError as error:
            return None, error.status


def devices(setting: str) -> list[str]:
    """The devices to use: those named, with commas between; "auto" means every GPU, or the CPU if there is none."""
    try:
        import torch
    except ImportError as error:
        raise missing_extra("torch", "build", "to embed") from error
    if setting != "auto":
        return [name.strip() for name in setting.split(",")]
    return [f"cuda:{rank}" for rank in range(torch.cuda.device_count())] or ["cpu"]


def versions(backend: str = "transformers") -> dict[str, str]:
    """Versions of the packages that the vectors of a backend depend on."""
    return {package: metadata.version(package) for package in (*_VERSIONED, *_ALSO.get(backend, ()))}
