"""Inputs in batches: by length, by threads ahead of the network, and outputs taken from the device one batch behind."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
Floats = NDArray[np.float32]


class VectorBatches(NamedTuple):
    """Inputs in the batches they are encoded in.

    Attributes:
        rows: numbers of the inputs of each batch.
        vectors: float32 [B, D] of one batch after another; encoded as they are taken, one batch ahead.
    """

    rows: list[list[int]]
    vectors: Iterator[Floats]


def token_batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Rows in batches of similar length, longest first: at most `budget` tokens each, padding included, or one row."""
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    while order:
        size = max(1, budget // max(1, lengths[order[0]]))
        yield order[:size]
        order = order[size:]


def one_behind(outputs: Iterable[torch.Tensor]) -> Iterator[Floats]:
    """Each output as an array, taken from the device only when the next one is under way there."""
    waiting: deque[torch.Tensor] = deque()
    for output in outputs:
        waiting.append(output)
        if len(waiting) > 1:
            yield waiting.popleft().cpu().numpy()
    while waiting:
        yield waiting.popleft().cpu().numpy()


def in_batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items, the last one shorter."""
    batch: list[T] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def in_turns(function: Callable[[T], Any], items: Iterable[T], threads: int, size: int) -> Iterator[list[Any]]:
    """Batches of `map(function, items)` in order, each run by threads when the consumer wants it."""
    with ThreadPoolExecutor(threads, thread_name_prefix="preprocess") as pool:
        for batch in in_batches(items, size):
            yield list(pool.map(function, batch))


def read_ahead(function: Callable[[T], Any], items: Iterable[T], threads: int, depth: int) -> Iterator[Any]:
    """`map(function, items)` in order, run by threads at most `depth` items ahead of the consumer."""
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
