"""Streams of batches: every row once per epoch, in an order that neither workers nor resuming can change."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

import numpy as np

from sqid_lib.errors import StoreError, UsageError
from sqid_lib.streams.batches import Batch, Rows
from sqid_lib.streams.buffers import Memory, Recycler, carve, size_of
from sqid_lib.streams.gather import Gather

B = TypeVar("B", bound=Batch)
T = TypeVar("T")
_ALIGN = 64  # bytes; a cache line


@dataclass(frozen=True)
class Order:
    """Which units make which batch.

    Attributes:
        batch_size: units of a batch.
        shuffle: a new permutation each epoch, from `seed` and the epoch alone.
        rank, world_size: this process has every world_size-th unit of the epoch, from `rank` on.
        drop_last: only full batches, and as many on every rank; otherwise ranks may differ by one batch.
    """

    batch_size: int = 1024
    shuffle: bool = False
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    drop_last: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.world_size < 1:
            raise UsageError(
                "batch_size and world_size start at 1", where="stream", got=(self.batch_size, self.world_size)
            )
        if not 0 <= self.rank < self.world_size:
            raise UsageError("no such rank", where="stream", expected=f"0 to {self.world_size - 1}", got=self.rank)

    def units(self, epoch: int, units: int) -> Rows:
        """This rank's units of an epoch, in order."""
        order = np.random.default_rng([self.seed, epoch]).permutation(units) if self.shuffle else np.arange(units)
        mine = order[self.rank :: self.world_size]
        return mine[: self.batches(units) * self.batch_size]

    def batches(self, units: int) -> int:
        """How many batches this rank has in an epoch."""
        if self.drop_last:
            return units // self.world_size // self.batch_size
        return -(-len(range(self.rank, units, self.world_size)) // self.batch_size)


class Stream(Generic[B]):
    """Iterate for one epoch of batches. Iterating again repeats it: call `set_epoch` for another order."""

    _START: Any = 0  # a position is the number of the next batch

    def __init__(self, order: Order, *, name: str, prefetch: int) -> None:
        """`name` tells the rows of one stream from those of another, for states."""
        self.order, self.name, self.prefetch = order, name, prefetch
        self._epoch = 0
        self._resume: Any = self._START  # where the next iteration starts
        self._at = (0, self._START)  # epoch and position of the latest iteration
        self._kept: tuple[int, Memory] | None = None  # a process and its memory

    @property
    def epoch(self) -> int:
        """The epoch that the next iteration visits."""
        return self._epoch

    def set_epoch(self, epoch: int) -> None:
        """Visit `epoch` from the next iteration on, from its start unless a state of that epoch was just loaded."""
        if epoch < 0:
            raise UsageError("epochs start at 0", where="set_epoch", got=epoch)
        if epoch != self.epoch:
            self._go_to(epoch, self._START)

    def state_dict(self) -> dict[str, Any]:
        """Where the latest iteration stands: plain values, the same for every rank, whatever was gathered ahead."""
        epoch, position = self._at
        return {"epoch": epoch, "position": position, **self._settings()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next iteration go on behind the last batch that was yielded when the state was taken.

        Raises:
            StoreError: the state is of a stream over other rows, or with other settings.
        """
        for key, value in self._settings().items():
            if state.get(key) != value:
                fix = "Make the stream with the settings it was saved with."
                raise StoreError(
                    "the state is of another stream", where=key, expected=value, got=state.get(key), fix=fix
                )
        self._go_to(state["epoch"], state["position"])

    def __iter__(self) -> Iterator[B]:
        start, self._resume = self._resume, self._START
        self._at = (self.epoch, start)
        return self._batches(self.epoch, start)

    def _go_to(self, epoch: int, position: Any) -> None:
        self._epoch, self._resume, self._at = epoch, position, (epoch, position)

    def _settings(self) -> dict[str, Any]:
        order = self.order
        names = ("batch_size", "shuffle", "seed", "world_size", "drop_last")
        return {"rows": self.name, **{name: getattr(order, name) for name in names}}

    def _batches(self, epoch: int, start: Any) -> Iterator[B]:
        raise NotImplementedError

    def _worker(self) -> tuple[int, int, bool]:
        """Which of how many workers this is, and whether it is one."""
        return 0, 1, False

    def _memory(self) -> Memory:
        return Recycler()

    def _kept_memory(self) -> Memory:
        """This process's memory, the same from epoch to epoch: fresh pages cost more than the gather."""
        if self._kept is None or self._kept[0] != os.getpid():
            self._kept = os.getpid(), self._memory()
        return self._kept[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}


class StoreStream(Stream[B]):
    """Batches gathered from a store by threads, ahead of their use."""

    def __init__(self, gather: Gather, order: Order, *, name: str, prefetch: int = 2) -> None:
        super().__init__(order, name=name, prefetch=prefetch)
        self.gather = gather

    def __len__(self) -> int:
        """Batches of this rank in an epoch, over all its workers."""
        return self.order.batches(self.gather.units)

    def _batches(self, epoch: int, start: Any) -> Iterator[B]:
        units = self.order.units(epoch, self.gather.units)
        size = self.order.batch_size
        worker, workers, in_worker = self._worker()
        # batch k is worker k % workers's, so DataLoader, which asks them in turn, gives the order of one process
        mine = (k for k in range(start, len(self)) if k % workers == worker)
        memory = self._kept_memory()

        def make(k: int) -> B:
            chosen = units[k * size : (k + 1) * size]
            layout = self.gather.layout(chosen)
            buffer = memory.take(size_of(layout))
            self.gather.fill(chosen, carve(buffer.bytes, layout), (self.order.seed, epoch, self.order.rank, k))
            return cast(B, memory.batch(self.gather.kind, buffer, layout))

        for k, batch in ahead(make, mine, 0 if in_worker else self.prefetch):
            self._at = (epoch, k + 1)
            yield memory.hand_over(batch)
            del batch  # not held on to while the next one is made


def ahead(make: Callable[[int], T], keys: Iterator[int], depth: int) -> Iterator[tuple[int, T]]:
    """(key, make(key)) in order, with `depth` of them made ahead by threads: gathering releases the GIL."""
    if not depth:
        for key in keys:
            yield key, make(key)
        return
    pool = ThreadPoolExecutor(min(depth, os.cpu_count() or 1), thread_name_prefix="sqid-gather")
    waiting: deque[tuple[int, Future[T]]] = deque()
    try:
        for key in keys:
            waiting.append((key, pool.submit(make, key)))
            if len(waiting) > depth:
                yield _first(waiting)
        while waiting:
            yield _first(waiting)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _first(waiting: deque[tuple[int, Future[T]]]) -> tuple[int, T]:
    key, future = waiting.popleft()
    return key, future.result()
