"""A dual encoder: texts and images in, projected float32 vectors out, in the order given."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from sqid_lib import schemas
from sqid_lib.encoders.batching import (
    Floats,
    VectorBatches,
    in_batches,
    in_turns,
    one_behind,
    read_ahead,
    token_batches,
)
from sqid_lib.encoders.image_inputs import ImageLike, as_image, as_items
from sqid_lib.encoders.pixels import from_table
from sqid_lib.encoders.texts import as_texts
from sqid_lib.errors import EncoderError

if TYPE_CHECKING:
    import torch
    from PIL import Image


class TextInputs(Protocol):
    """Texts to what the network takes: `texts.Tokens`, or what another library has in its place."""

    def rows(self, texts: Sequence[str], /) -> Sequence[Any]: ...

    def length(self, row: Any, /) -> int:
        """Tokens of one row, about."""

    def inputs(self, rows: Sequence[Any], /) -> dict[str, Any]:
        """The network's inputs for some rows: arrays or tensors, [B, …] each."""


class ImageInputs(Protocol):
    """Images to what the network takes: `pixels.Pixels`, or what another library has in its place."""

    @property
    def table(self) -> NDArray[np.float32] | None: ...

    def prepare(self, image: Image.Image, /) -> Any: ...

    def inputs(self, images: Sequence[Any], /) -> dict[str, Any]:
        """The network's inputs for some prepared images: arrays or tensors, [B, …] each."""


class Encoder:
    """A loaded dual encoder; made by `load_encoder`.

    Attributes:
        model_id: the id or directory it was loaded from.
        revision: the commit, or "local-" and a hash of the directory's files.
        width: D, floats per vector.
        device: where it runs, as torch names it.
        dtype: dtype of the weights; vectors are float32 whatever it is.
        text_limit: most tokens of a text; the rest is cut off.
        linear: kernels of the linear layers, "packed" or "plain"; see `sqid_lib.encoders.linear`.
        image_batch: images per forward pass that suit the device.
        has_images: whether it encodes images; a text-only model of sentence-transformers does not.
    """

    def __init__(
        self,
        *,
        model_id: str,
        revision: str,
        network: Any,
        tokens: TextInputs,
        pixels: ImageInputs | None,
        text_limit: int,
        device: torch.device,
        dtype: str,
        linear: str,
    ) -> None:
        """`network` has get_text_features, get_image_features and dtype; `pixels` is None for a text-only model."""
        import torch

        self.model_id, self.revision, self.device, self.dtype = model_id, revision, str(device), dtype
        self.text_limit, self.has_images = text_limit, pixels is not None
        self.linear = linear
        self.image_batch = 128 if self.on_gpu else _images_at_once(network.config)
        self._network, self._tokens, self._pixels = network, tokens, pixels
        table = None if pixels is None else pixels.table
        self._table = None if table is None else torch.from_numpy(table).to(device)
        self.width = int(self._forward_text(self._tokens.rows([""])).shape[1])

    def __repr__(self) -> str:
        short = self.revision[: 13 if self.revision.startswith(schemas.LOCAL_REVISION) else 7]
        return (
            f"Encoder({self.model_id!r}, revision={short!r}, device={self.device!r}, dtype={self.dtype!r}, "
            f"width={self.width})"
        )

    def encode_text(self, texts: str | Iterable[str], *, batch_size: int | None = None) -> Floats:
        """Vectors of texts, projected and not normalised; float32 [N, D]. Equal texts are encoded once.

        Tokens are those of transformers, as for the published vectors; open_clip repairs quotes and HTML entities
        first, which changes about 2 % of real titles (docs/encoders.md).

        Args:
            texts: a list, generator, array or column of strings; one string is one text, [1, D]. Those longer than
                `text_limit` tokens are truncated.
            batch_size: as for `text_batches`.

        Raises:
            UsageError: an item that is not text (None, NaN, a number) or not valid Unicode, by its number.
            EncoderError: the model fails, or not even one text fits into memory.
        """
        texts = as_texts(texts)
        distinct = list(dict.fromkeys(texts))
        vectors = np.empty((len(distinct), self.width), np.float32)
        batches = self.text_batches(distinct, batch_size=batch_size)
        for rows, part in zip(batches.rows, batches.vectors, strict=True):
            vectors[rows] = part
        place = {text: row for row, text in enumerate(distinct)}
        return vectors[[place[text] for text in texts]] if len(distinct) < len(texts) else vectors

    def text_batches(self, texts: str | Iterable[str], *, batch_size: int | None = None) -> VectorBatches:
        """The batches of `encode_text`, to be taken one by one: texts of similar length together, longest first.

        Args:
            texts: as for `encode_text`.
            batch_size: a batch has as many tokens as so many texts of 8 tokens; by default what suits the device: on a
                CPU 512 tokens (256 to 512 were fastest, 1,024 a fifth slower; benchmarks/RESULTS.md).
        """
        tokens = self._tokens.rows(as_texts(texts))
        budget = 8 * (batch_size or (4096 if self.on_gpu else 64))
        batches = list(token_batches([self._tokens.length(row) for row in tokens], budget))
        outputs = (self._halving(self._forward_text, [tokens[row] for row in rows]) for rows in batches)
        return VectorBatches(batches, one_behind(outputs))

    def encode_images(
        self,
        images: ImageLike | Iterable[Any],
        *,
        batch_size: int | None = None,
        decode: Callable[[Any], ImageLike | None] | None = None,
        threads: int | None = None,
        progress: bool | None = None,
    ) -> Floats:
        """Vectors of images, projected and not normalised; float32 [N, D].

        Args:
            images: a list, generator or array [N, H, W, C] of images, or one image, [1, D]. An image is an image of
                Pillow, a path, the bytes of a JPEG, PNG, GIF or WEBP, or a uint8 array or tensor [H, W, C] or [H, W].
            batch_size, decode, threads: as for `image_batches`.
            progress: whether to show a progress bar; by default on a terminal, when it takes more than two seconds.

        Raises:
            UsageError, SourceError, EncoderError: as `image_batches`.
        """
        items = as_items(images)
        total = len(items) if isinstance(items, Sized) else None
        parts = [np.empty((0, self.width), np.float32)]
        shown: dict[str, Any] = {"disable": None, "delay": 2} if progress is None else {"disable": not progress}
        with tqdm(total=total, desc="images", unit="image", **shown) as bar:
            for part in self.image_batches(items, batch_size=batch_size, decode=decode, threads=threads):
                parts.append(part)
                bar.update(len(part))
        return np.concatenate(parts)

    def image_batches(
        self,
        images: ImageLike | Iterable[Any],
        *,
        batch_size: int | None = None,
        decode: Callable[[Any], ImageLike | None] | None = None,
        threads: int | None = None,
        map_ahead: Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]] | None = None,
    ) -> Iterator[Floats]:
        """Vectors of images, `batch_size` after `batch_size`, the last batch with what is left; float32 [B, D] each.

        Images are decoded and preprocessed by `threads` threads: for a GPU while the network runs, on a CPU in turns
        with it (0.98 of the network's own rate with B/32, against 0.93 at the same time: what one core does beside the
        network, all cores wait for; benchmarks/RESULTS.md). A few batches are in memory at a time, so `images` may be a
        generator of any length.

        Args:
            images: as for `encode_images`, or what `decode` makes images of.
            batch_size: images per forward pass, by default `image_batch`; halved while they do not fit into memory.
            decode: called in the threads; an image for which it returns None gets a row of NaN.
            threads: how many; by default one per core.
            map_ahead: used in place of threads: called with a function and numbered images, it yields the function's
                result for each, in order, or None for a row of NaN; it may call the function in other processes.

        Raises:
            UsageError: None, a URL, or anything else that is no image, by its number.
            SourceError: a file is not there, or bytes hold no usable image.
            EncoderError: the model takes no images, it fails, or not even one image fits into memory.
        """
        pixels = self._pixels
        if pixels is None:
            raise EncoderError("the model encodes texts only", where=self.model_id, fix="Name a multimodal model.")
        size = batch_size or self.image_batch
        threads = threads or os.cpu_count() or 1
        numbered = enumerate(as_items(images))
        masks: deque[NDArray[np.bool_]] = deque()  # which images of a batch have a vector
        prepare_image = pixels.prepare

        def prepare(entry: tuple[int, Any]) -> Any | None:
            row, item = entry
            if decode is not None and (item := decode(item)) is None:
                return None
            return prepare_image(as_image(item, row))

        def outputs() -> Iterator[torch.Tensor]:
            import torch

            if map_ahead is not None:
                batches = in_batches(map_ahead(prepare, numbered), size)
            elif self.on_gpu:
                batches = in_batches(read_ahead(prepare, numbered, threads, 3 * size), size)
            else:
                batches = in_turns(prepare, numbered, threads, size)
            for batch in batches:
                good = [inputs for inputs in batch if inputs is not None]
                masks.append(np.array([inputs is not None for inputs in batch]))
                yield self._halving(self._forward_images, good) if good else torch.empty((0, self.width))

        for part in one_behind(outputs()):
            if part.shape[1] != self.width:
                raise EncoderError(
                    "text and image vectors differ in width",
                    where=self.model_id,
                    expected=self.width,
                    got=part.shape[1],
                )
            mask = masks.popleft()
            vectors = np.full((len(mask), self.width), np.nan, np.float32)
            vectors[mask] = part
            yield vectors

    @property
    def on_gpu(self) -> bool:
        """Whether it runs on a GPU."""
        return not self.device.startswith("cpu")

    def _forward_text(self, rows: Sequence[Any]) -> torch.Tensor:
        return self._features(self._network.get_text_features, self._tokens.inputs(rows))

    def _forward_images(self, images: Sequence[Any]) -> torch.Tensor:
        assert self._pixels is not None
        return self._features(self._network.get_image_features, self._pixels.inputs(images))

    def _features(self, method: Callable[..., Any], inputs: dict[str, Any]) -> torch.Tensor:
        import torch

        with torch.inference_mode(), self._no_tf32():
            for name, value in inputs.items():
                tensor = torch.from_numpy(value) if isinstance(value, np.ndarray) else value
                if not isinstance(tensor, torch.Tensor):
                    continue  # what sentence-transformers notes of a batch
                moved = tensor.pin_memory() if self.device.startswith("cuda") else tensor
                moved = moved.to(self.device, non_blocking=True)
                if moved.dtype == torch.uint8 and self._table is not None:
                    moved = from_table(self._table, moved)
                inputs[name] = moved.to(self._network.dtype) if moved.is_floating_point() else moved
            out = method(**inputs)
            # transformers 5 returns an output whose pooler_output is the projected vector; before, the vector itself
            vectors: torch.Tensor = (out if isinstance(out, torch.Tensor) else out.pooler_output).float()
            return vectors

    @contextmanager
    def _no_tf32(self) -> Iterator[None]:
        """No TF32 for float32: cuDNN's convolutions use it by default, matrix products where the caller allowed it."""
        import torch

        if not self.device.startswith("cuda") or self.dtype != "float32":
            yield
            return
        asked = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
                yield
        finally:
            torch.set_float32_matmul_precision(asked)

    def _halving(self, forward: Callable[[Sequence[Any]], torch.Tensor], batch: Sequence[Any]) -> torch.Tensor:
        """`forward` on the batch, or on its halves while it does not fit into memory."""
        import torch

        try:
            return forward(batch)
        except (RuntimeError, MemoryError) as error:
            if not _out_of_memory(error):
                raise EncoderError(f"the model failed: {error}", where=self.model_id) from error
            if len(batch) == 1:
                raise EncoderError(
                    "not even one input fits into memory",
                    where=self.device,
                    fix='Free memory, or choose dtype "bfloat16" or device "cpu".',
                ) from error
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()
        half = len(batch) // 2
        return torch.cat([self._halving(forward, batch[:half]), self._halving(forward, batch[half:])])


def _out_of_memory(error: BaseException) -> bool:
    # CUDA's allocator says "out of memory", cuBLAS and cuDNN "…_STATUS_ALLOC_FAILED", the CPU's "can't allocate memory"
    message = str(error).lower()
    signs = ("out of memory", "alloc_failed", "can't allocate memory")
    return isinstance(error, MemoryError) or any(sign in message for sign in signs)


def _images_at_once(config: Any) -> int:
    """What a CPU's cores and memory can take: about 1,024 patches (benchmarks/RESULTS.md); L/14 4, B/32 16."""
    vision = getattr(config, "vision_config", None)
    side, patch = getattr(vision, "image_size", None), getattr(vision, "patch_size", None)
    if not isinstance(side, int) or not isinstance(patch, int):
        return 8  # not a vision transformer, or without square patches
    return min(16, max(1, 1024 // max(1, side // patch) ** 2))
