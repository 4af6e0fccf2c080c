"""Progress of a long stage on stderr: tqdm's bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Protocol, Self

from tqdm import tqdm

_INTERVAL = 10.0  # seconds between two plain lines


class Progress(Protocol):
    """What a stage reports finished units to."""

    def update(self, n: int = 1, /) -> object:
        """Count `n` finished units."""


def progress(label: str, total: int, done: int = 0, *, unit: str = "URL") -> AbstractContextManager[Progress]:
    """Progress of `total` units, of which earlier runs finished `done`.

    Args:
        label: what is being done, such as "fetch".
    """
    if sys.stderr.isatty():
        return tqdm(total=total, initial=done, desc=label, unit=unit, file=sys.stderr)
    return _Lines(label, total, done, unit)


def note(line: str) -> None:
    """Write a line on stderr, before or after a stage's progress."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


class _Lines:
    def __init__(self, label: str, total: int, done: int, unit: str) -> None:
        self._label, self._total, self._done, self._unit = label, total, done, unit
        self._first, self._start = done, time.monotonic()
        self._next = self._start + _INTERVAL

    def __enter__(self) -> Self:
        self._write()
        return self

    def update(self, n: int = 1, /) -> None:
        self._done += n
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _INTERVAL
            self._write()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._write()

    def _write(self) -> None:
        note(f"{self._label}: {self._done:,} of {self._total:,} {self._unit}s{self._speed()}")

    def _speed(self) -> str:
        """Units per second of this run, and the time left at that rate; "" before there is one."""
        seconds, units = time.monotonic() - self._start, self._done - self._first
        if not units or seconds < 1:
            return ""
        left = tqdm.format_interval((self._total - self._done) * seconds / units)
        return f", {units / seconds:.1f}/s" + (f", {left} left" if self._done < self._total else "")
