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


class _Lines:
    def __init__(self, label: str, total: int, done: int, unit: str) -> None:
        self._label, self._total, self._done, self._unit = label, total, done, unit
        self._next = time.monotonic() + _INTERVAL

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
        sys.stderr.write(f"{self._label}: {self._done:,} of {self._total:,} {self._unit}s\n")
        sys.stderr.flush()
