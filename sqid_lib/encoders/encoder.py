"""One dual encoder: texts and pictures in, projected float32 vectors out, in the order given."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from sqid_lib.errors import EncoderError, UsageError

if TYPE_CHECKING:
    import torch
    from PIL import Image

T = TypeVar("T")
Floats = NDArray[np.float32]
Inputs = dict[str, NDArray[Any]]  # what one picture is to the network, without the batch axis


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
        self.model_id, self.revision, self.device, self.dtype = model_id, revision, str(device), dtype
        self.text_limit = rule.limit
        self.linear = linear
        self._network, self._tokenizer, self._processor, self._rule = network, tokenizer, processor, rule
        self.width = int(self._forward_text(self._tokenize([""])).shape[1])

    def encode_text(self, texts: Sequence[str], *, batch_size: int = 64) -> Floats:
        """Vectors of texts, projected and not normalised; float32 [N, D].

        Texts longer than `text_limit` tokens are truncated; equal texts are encoded once. Batches hold texts of like
        length, and about as many tokens as `batch_size` texts of 16 tokens.

        Raises:
            UsageError: one string instead of a list of them, or something else than text.
            EncoderError: the model fails, or not even one text fits into memory.
        """
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise UsageError("texts must be a list of strings", where="encode_text")
        distinct = list(dict.fromkeys(texts))
        tokens = self._tokenize(distinct)
        vectors = np.empty((len(distinct), self.width), np.float32)
        for rows in _token_batches([len(t["input_ids"]) for t in tokens], batch_size * 16):
            vectors[rows] = self._halving(self._forward_text, [tokens[row] for row in rows])
        place = {text: row for row, text in enumerate(distinct)}
        return vectors[[place[text] for text in texts]] if len(distinct) < len(texts) else vectors

    def encode_images(
        self,
        images: Iterable[T],
        *,
        batch_size: int = 8,
        decode: Callable[[T], Image.Image | None] | None = None,
        threads: int = 2,
    ) -> Floats:
        """Vectors of pictures, projected and not normalised; float32 [N, D].

        Pictures are decoded and preprocessed by `threads` threads while the network runs; a few batches are in memory
        at a time, so `images` may be a generator of any length.

        Args:
            images: PIL pictures of any mode, or what `decode` makes pictures of.
            batch_size: pictures per forward pass; halved while they do not fit into memory.
            decode: called in the threads; a picture for which it returns None gets a row of NaN.
            threads: how many.

        Raises:
            EncoderError: the model fails, or not even one picture fits into memory.
        """

        def prepare(item: T) -> Inputs | None:
            image: Any = item if decode is None else decode(item)
            return None if image is None else self._preprocess(image)

        parts: list[Floats] = []
        for batch in _batches(_ahead(prepare, images, threads, 3 * batch_size), batch_size):
            part = np.full((len(batch), self.width), np.nan, np.float32)
            rows = [row for row, inputs in enumerate(batch) if inputs is not None]
            if rows:
                part[rows] = self._halving(self._forward_images, [inputs for inputs in batch if inputs is not None])
            parts.append(part)
        return np.concatenate(parts) if parts else np.empty((0, self.width), np.float32)

    def _tokenize(self, texts: list[str]) -> list[dict[str, list[int]]]:
        padding = "max_length" if self._rule.fixed else False
        columns = self._tokenizer(texts, truncation=True, max_length=self._rule.limit, padding=padding) if texts else {}
        return [{name: column[row] for name, column in columns.items()} for row in range(len(texts))]

    def _preprocess(self, image: Image.Image) -> Inputs:
        if image.mode != "RGB" and not getattr(self._processor, "do_convert_rgb", False):
            image = image.convert("RGB")  # ALIGN's processor takes nothing else
        return {name: np.asarray(value)[0] for name, value in self._processor(image, return_tensors="np").items()}

    def _forward_text(self, tokens: Sequence[dict[str, list[int]]]) -> Floats:
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

    def _forward_images(self, pictures: Sequence[Inputs]) -> Floats:
        import torch

        inputs = {name: torch.from_numpy(np.stack([p[name] for p in pictures])) for name in pictures[0]}
        return self._features(self._network.get_image_features, inputs)

    def _features(self, method: Callable[..., Any], inputs: dict[str, torch.Tensor]) -> Floats:
        import torch

        for name, tensor in inputs.items():
            moved = tensor.pin_memory() if self.device.startswith("cuda") else tensor
            kind = self._network.dtype if tensor.is_floating_point() else None
            inputs[name] = moved.to(self.device, kind, non_blocking=True)
        with torch.inference_mode():
            out = method(**inputs)
        # transformers 5 returns an output whose pooler_output is the projected vector; before, the vector itself
        vectors = out if isinstance(out, torch.Tensor) else out.pooler_output
        array: Floats = vectors.float().cpu().numpy()
        return array

    def _halving(self, forward: Callable[[Sequence[Any]], Floats], batch: Sequence[Any]) -> Floats:
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
        return np.concatenate([self._halving(forward, batch[:half]), self._halving(forward, batch[half:])])


def _out_of_memory(error: BaseException) -> bool:
    # CUDA raises a RuntimeError of its own class, the CPU allocator a plain one that says "can't allocate memory"
    words = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in words or "can't allocate memory" in words


def _token_batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Rows in batches of like length, longest first, each of at most `budget` tokens with its padding (or one row)."""
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    while order:
        size = max(1, budget // max(1, lengths[order[0]]))
        yield order[:size]
        order = order[size:]


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    batch: list[T] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


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
