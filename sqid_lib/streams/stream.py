"""Streams of batches: every row once per epoch, and exact resumption."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar, cast

from sqid_lib.errors import StoreError, UsageError
from sqid_lib.streams.batches import Batch
from sqid_lib.streams.buffers import Memory, Recycler, carve, size_of
from sqid_lib.streams.gather import Gather
from sqid_lib.streams.order import Order, whole_number

B = TypeVar("B", bound=Batch)
T = TypeVar("T")
_STATE_FORMAT = 2  # a change makes every older state unusable


class Stream(Generic[B]):
    """Iterate for one epoch of batches. Iterating again repeats it: call `set_epoch` for another order."""

    def __init__(self, order: Order, units: int, *, name: str, prefetch: int) -> None:
        """`units` make an epoch over all ranks; `name` identifies the rows, for states."""
        order.check(units)
        self.order, self.units, self.name, self.prefetch = order, units, name, prefetch
        self._epoch = 0
        self._resume = 0  # the number of the batch where the next iteration starts
        self._at = (0, 0)  # epoch and number of the next batch of the latest iteration
        self._kept: tuple[int, Memory, Recycler] | None = None  # a process and its memory

    def __len__(self) -> int:
        """Batches of this rank in an epoch, over all its workers; every rank has as many."""
        return self.order.batches(self.units)

    def __getitem__(self, index: Any) -> Any:
        """UsageError: rows are only iterated. A DataLoader asks for them by number if the stream is of numpy arrays."""
        fix = 'Iterate it; for a DataLoader make it with format="torch".'
        raise UsageError("a stream has no rows by number", where=type(self).__name__, got=index, fix=fix)

    def __repr__(self) -> str:
        shown = {
            "batch_size": self.order.batch_size,
            "batches": len(self),
            "rows": self.units,
            **{name: getattr(self.order, name) for name in ("shuffle", "seed", "rank", "world_size", "drop_last")},
            "epoch": self.epoch,
        }
        settings = ", ".join(f"{name}={value}" for name, value in shown.items())
        return f"{type(self).__name__}({self._kind().__name__}, {settings})"

    @property
    def epoch(self) -> int:
        """The epoch that the next iteration visits."""
        return self._epoch

    def set_epoch(self, epoch: int) -> None:
        """Visit `epoch` from the next iteration on, from its start unless a state of that epoch was just loaded.

        Raises:
            UsageError: not a whole number of 0 or more.
        """
        epoch = whole_number("epoch", epoch)
        if epoch != self.epoch:
            self._go_to(epoch, 0)

    def state_dict(self) -> dict[str, Any]:
        """Position of the latest iteration, in plain ints, bools and strings, whatever was gathered ahead.

        It is the same for every rank: one saved state resumes all of them. It names the rows by their content, so that
        the same release elsewhere can go on with it.
        """
        epoch, position = self._at
        return {"format": _STATE_FORMAT, "epoch": epoch, "position": position, **self._settings()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next iteration go on behind the last batch that was yielded when the state was taken.

        Raises:
            StoreError: the state is of a stream over other rows or with other settings, was saved by another version of
                sqid, or has no epoch and position of this stream.
        """
        if not isinstance(state, Mapping) or "position" not in state:
            raise StoreError("not a state of a stream", where="load_state_dict", expected="what state_dict() returned")
        if state.get("format") != _STATE_FORMAT:
            raise StoreError(
                "the state was saved by another version of sqid",
                where="format",
                expected=_STATE_FORMAT,
                got=state.get("format", "an older state without format"),
                fix="Start the epoch again with set_epoch().",
            )
        for key, value in self._settings().items():
            if state.get(key) != value:
                fix = "Make the stream from the same release, with the settings it was saved with."
                raise StoreError(
                    "the state is of another stream", where=key, expected=value, got=state.get(key), fix=fix
                )
        self._go_to(_stated(state, "epoch", None), _stated(state, "position", self._end()))

    def __iter__(self) -> Iterator[B]:
        start, self._resume = self._resume, 0
        self._at = (self.epoch, start)
        return self._batches(self.epoch, start)

    def _go_to(self, epoch: int, position: int) -> None:
        self._epoch, self._resume, self._at = epoch, position, (epoch, position)

    def _settings(self) -> dict[str, Any]:
        order = self.order
        names = ("batch_size", "shuffle", "seed", "world_size", "drop_last")
        return {"rows": self.name, **{name: getattr(order, name) for name in names}}

    def _end(self) -> int:
        """The largest position in an epoch."""
        return len(self)

    def _kind(self) -> type[Any]:
        raise NotImplementedError

    def _batches(self, epoch: int, start: int) -> Iterator[B]:
        raise NotImplementedError

    def _worker(self) -> tuple[int, int, bool]:
        """Which of how many workers this is, and whether it is one."""
        return 0, 1, False

    def _memory(self) -> Memory:
        return Recycler()

    def _kept_memory(self) -> tuple[Memory, Recycler]:
        """This process's memory for batches, and for what they are gathered from, the same from epoch to epoch.

        Fresh pages cost more than the gather.
        """
        if self._kept is None or self._kept[0] != os.getpid():
            self._kept = os.getpid(), self._memory(), Recycler()
        return self._kept[1:]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}


def _stated(state: Mapping[str, Any], key: str, most: int | None) -> int:
    """A whole number of a state, at most `most`."""
    value = state.get(key)
    if type(value) is not int or value < 0 or (most is not None and value > most):
        expected = "a whole number of 0 or more" if most is None else f"a whole number from 0 to {most}"
        raise StoreError("the state is damaged", where=key, expected=expected, got=repr(value))
    return value


class StoreStream(Stream[B]):
    """Batches gathered from a store by threads, ahead of their use."""

    def __init__(
        self, gather: Gather, order: Order, *, name: str, verify: Callable[[], None], prefetch: int = 2
    ) -> None:
        super().__init__(order, gather.units, name=name, prefetch=prefetch)
        self.gather, self.verify = gather, verify

    def _kind(self) -> type[Any]:
        return self.gather.kind

    def _batches(self, epoch: int, start: int) -> Iterator[B]:
        units, starts = self.order.units(epoch, self.units), self.order.starts(self.units).tolist()
        worker, workers, in_worker = self._worker()
        # batch k belongs to worker k % workers: DataLoader asks them in turn, which gives the order of one process
        mine = (k for k in range(start, len(self)) if k % workers == worker)
        memory, _ = self._kept_memory()

        def make(k: int) -> B:
            chosen = units[starts[k] : starts[k + 1]]
            layout = self.gather.layout(chosen)
            buffer = memory.take(size_of(layout))
            out = carve(buffer.bytes, layout)
            self.gather.fill(chosen, out, (self.order.seed, epoch, self.order.rank, k))
            batch = cast(B, memory.batch(self.gather.kind, buffer, layout))
            if self.gather.texts is not None:
                batch.__dict__["_texts"] = self.gather.read_texts(self.gather.texts, chosen, out)
            return batch

        for k, batch in ahead(make, mine, 0 if in_worker else self.prefetch):
            self._at = (epoch, k + 1)
            yield memory.hand_over(batch)
            del batch  # its memory is free while the next one is made
        self.verify()


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
        for _, future in waiting:  # not shutdown's cancel_futures, which fails where the interpreter is ending
            future.cancel()
        pool.shutdown(wait=False)


def _first(waiting: deque[tuple[int, Future[T]]]) -> tuple[int, T]:
    key, future = waiting.popleft()
    return key, future.result()
