"""One dual encoder: texts and pictures in, projected float32 vectors out, in the order given."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from sqid_lib.encoders.pixels import Inputs, Pixels, from_table
from sqid_lib.errors import EncoderError, UsageError

if TYPE_CHECKING:
    import torch
    from PIL import Image

T = TypeVar("T")
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class TextRule:
    """How texts become tokens.

    Attributes:
        limit: most tokens of a text, special tokens included; longer texts are truncated.
        fixed: always pad to the limit (SigLIP pools the last position), or only to the longest of a batch.
    """

    limit: int
    fixed: bool


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
        image_batch: pictures per forward pass that suit the device.
    """

    def __init__(
        self,
        *,
        model_id: str,
        revision: str,
        network: Any,
        tokenizer: Any,
        processor: Any,
        rule: TextRule,
        device: torch.device,
        dtype: str,
        linear: str,
    ) -> None:
        import torch

        self.model_id, self.revision, self.device, self.dtype = model_id, revision, str(device), dtype
        self.text_limit = rule.limit
        self.linear = linear
        self.image_batch = 128 if self.on_gpu else _pictures_at_once(network.config)
        self._network, self._tokenizer, self._pixels, self._rule = network, tokenizer, Pixels(processor), rule
        self._table = None if self._pixels.table is None else torch.from_numpy(self._pixels.table).to(device)
        self.width = int(self._forward_text(self._tokenize([""])).shape[1])

    def encode_text(self, texts: Sequence[str], *, batch_size: int | None = None) -> Floats:
        """Vectors of texts, projected and not normalised; float32 [N, D].

        Texts longer than `text_limit` tokens are truncated; equal texts are encoded once. Batches hold texts of like
        length, and as many tokens as `batch_size` texts of 8 tokens; by default what suits the device: on a CPU 512
        tokens (256 to 512 were fastest, 1,024 a fifth slower; benchmarks/RESULTS.md).

        Raises:
            UsageError: one string instead of a list of them, or something else than text.
            EncoderError: the model fails, or not even one text fits into memory.
        """
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise UsageError("texts must be a list of strings", where="encode_text")
        distinct = list(dict.fromkeys(texts))
        tokens = self._tokenize(distinct)
        vectors = np.empty((len(distinct), self.width), np.float32)
        budget = 8 * (batch_size or (4096 if self.on_gpu else 64))
        batches = list(_token_batches([len(t["input_ids"]) for t in tokens], budget))
        outputs = (self._halving(self._forward_text, [tokens[row] for row in rows]) for rows in batches)
        for rows, part in zip(batches, _one_behind(outputs), strict=True):
            vectors[rows] = part
        place = {text: row for row, text in enumerate(distinct)}
        return vectors[[place[text] for text in texts]] if len(distinct) < len(texts) else vectors

    def encode_images(
        self,
        images: Iterable[T],
        *,
        batch_size: int | None = None,
        decode: Callable[[T], Image.Image | None] | None = None,
        threads: int | None = None,
    ) -> Floats:
        """Vectors of pictures, projected and not normalised; float32 [N, D].

        Pictures are decoded and preprocessed by `threads` threads: for a GPU while the network runs, on a CPU in turns
        with it (0.98 of the network's own rate with B/32, against 0.93 at the same time: what one core does beside the
        network, all cores wait for; benchmarks/RESULTS.md). A few batches are in memory at a time, so `images` may be a
        generator of any length.

        Args:
            images: PIL pictures of any mode, or what `decode` makes pictures of.
            batch_size: pictures per forward pass, by default `image_batch`; halved while they do not fit into memory.
            decode: called in the threads; a picture for which it returns None gets a row of NaN.
            threads: how many; by default one per core.

        Raises:
            EncoderError: the model fails, or not even one picture fits into memory.
        """

        size = batch_size or self.image_batch
        threads = threads or os.cpu_count() or 1

        def prepare(item: T) -> Inputs | None:
            image: Any = item if decode is None else decode(item)
            return None if image is None else self._pixels.prepare(image)

        good: list[NDArray[np.bool_]] = []

        def outputs() -> Iterator[torch.Tensor]:
            if self.on_gpu:
                batches = _batches(_ahead(prepare, images, threads, 3 * size), size)
            else:
                batches = _in_turns(prepare, images, threads, size)
            for batch in batches:
                good.append(np.array([inputs is not None for inputs in batch]))
                if good[-1].any():
                    yield self._halving(self._forward_images, [inputs for inputs in batch if inputs is not None])

        parts = list(_one_behind(outputs()))
        if any(part.shape[1] != self.width for part in parts):
            raise EncoderError(
                "text and image vectors differ in width",
                where=self.model_id,
                expected=self.width,
                got=parts[0].shape[1],
            )
        mask = np.concatenate([np.empty(0, np.bool_), *good])
        vectors = np.full((len(mask), self.width), np.nan, np.float32)
        vectors[mask] = np.concatenate([np.empty((0, self.width), np.float32), *parts])
        return vectors

    @property
    def on_gpu(self) -> bool:
        """Whether it runs on a GPU."""
        return not self.device.startswith("cpu")

    def _tokenize(self, texts: list[str]) -> list[dict[str, list[int]]]:
        padding = "max_length" if self._rule.fixed else False
        columns = self._tokenizer(texts, truncation=True, max_length=self._rule.limit, padding=padding) if texts else {}
        return [{name: column[row] for name, column in columns.items()} for row in range(len(texts))]

    def _forward_text(self, tokens: Sequence[dict[str, list[int]]]) -> torch.Tensor:
        import torch

        length = max(len(row["input_ids"]) for row in tokens)
        pads = {"input_ids": self._tokenizer.pad_token_id or 0, "token_type_ids": self._tokenizer.pad_token_type_id}
        left = self._tokenizer.padding_side == "left"
        inputs = {}
        for name in tokens[0]:
            array = np.full((len(tokens), length), pads.get(name, 0), np.int64)
            for row, token in enumerate(tokens):
                ids = token[name]
                array[row, length - len(ids) if left else 0 :][: len(ids)] = ids
            inputs[name] = torch.from_numpy(array)
        return self._features(self._network.get_text_features, inputs)

    def _forward_images(self, pictures: Sequence[Inputs]) -> torch.Tensor:
        import torch

        inputs = {name: torch.from_numpy(np.stack([p[name] for p in pictures])) for name in pictures[0]}
        return self._features(self._network.get_image_features, inputs)

    def _features(self, method: Callable[..., Any], inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        import torch

        with torch.inference_mode(), self._no_tf32():
            for name, tensor in inputs.items():
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
        """cuDNN's convolutions round float32 to TF32 unless told otherwise, and products where the caller asked."""
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
    words = str(error).lower()
    said = ("out of memory", "alloc_failed", "can't allocate memory")
    return isinstance(error, MemoryError) or any(part in words for part in said)


def _pictures_at_once(config: Any) -> int:
    """What fills a CPU's cores and not its memory: about 1,024 patches (benchmarks/RESULTS.md); L/14 4, B/32 16."""
    vision = getattr(config, "vision_config", None)
    side, patch = getattr(vision, "image_size", None), getattr(vision, "patch_size", None)
    if not isinstance(side, int) or not isinstance(patch, int):
        return 8  # no transformer, or not of square patches
    return min(16, max(1, 1024 // max(1, side // patch) ** 2))


def _token_batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Rows in batches of like length, longest first, each of at most `budget` tokens with its padding (or one row)."""
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    while order:
        size = max(1, budget // max(1, lengths[order[0]]))
        yield order[:size]
        order = order[size:]


def _one_behind(outputs: Iterable[torch.Tensor]) -> Iterator[Floats]:
    """Each output as an array, taken from the device only when the next is under way there."""
    last = None
    for output in outputs:
        if last is not None:
            yield last.cpu().numpy()
        last = output
    if last is not None:
        yield last.cpu().numpy()


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    batch: list[T] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _in_turns(function: Callable[[T], Any], items: Iterable[T], threads: int, size: int) -> Iterator[list[Any]]:
    """Batches of `map(function, items)` in order, each run by threads when it is asked for."""
    with ThreadPoolExecutor(threads, thread_name_prefix="preprocess") as pool:
        for batch in _batches(items, size):
            yield list(pool.map(function, batch))


def _ahead(function: Callable[[T], Any], items: Iterable[T], threads: int, depth: int) -> Iterator[Any]:
    """`map(function, items)` in order, run by threads at most `depth` items ahead of who consumes it."""
    waiting: deque[Future[Any]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="preprocess") as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) >= depth:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
