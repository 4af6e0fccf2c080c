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

    def update(self, n: int = 1, failed: int = 0, /) -> object:
        """Count `n` finished units, of which `failed` failed."""


def progress(
    label: str, total: int, done: int = 0, *, unit: str = "URL", failed: int | None = None
) -> AbstractContextManager[Progress]:
    """Progress of `total` units, of which earlier runs finished `done`.

    Args:
        label: what is being done, such as "fetch".
        failed: of the units done before; with it, what is ok and what failed is counted apart.
    """
    if sys.stderr.isatty():
        return _Bar(label, total, done, unit, failed)
    return _Lines(label, total, done, unit, failed)


def note(line: str) -> None:
    """Write a line on stderr, before or after a stage's progress."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


class _Bar:
    def __init__(self, label: str, total: int, done: int, unit: str, failed: int | None) -> None:
        self._bar = tqdm(total=total, initial=done, desc=label, unit=unit, file=sys.stderr)
        self._failed = failed

    def __enter__(self) -> Self:
        self.update(0)
        return self

    def update(self, n: int = 1, failed: int = 0, /) -> None:
        if self._failed is not None:
            self._failed += failed
            ok = self._bar.n + n - self._failed
            self._bar.set_postfix_str(f"{ok:,} ok, {self._failed:,} failed", refresh=False)
        self._bar.update(n)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()


class _Lines:
    def __init__(self, label: str, total: int, done: int, unit: str, failed: int | None) -> None:
        self._label, self._total, self._done, self._unit, self._failed = label, total, done, unit, failed
        self._first, self._start = done, time.monotonic()
        self._next = self._start + _INTERVAL
        self._written = -1  # units

    def __enter__(self) -> Self:
        self._write()
        return self

    def update(self, n: int = 1, failed: int = 0, /) -> None:
        self._done += n
        if self._failed is not None:
            self._failed += failed
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _INTERVAL
            self._write()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._done != self._written:
            self._write()

    def _write(self) -> None:
        self._written = self._done
        apart = ""
        if self._failed is not None:
            apart = f": {self._done - self._failed:,} ok, {self._failed:,} failed"
        note(f"{self._label}: {self._done:,} of {self._total:,} {self._unit}s{apart}{self._speed()}")

    def _speed(self) -> str:
        """Units per second of this run, and the time left at that rate; "" before there is one."""
        seconds, units = time.monotonic() - self._start, self._done - self._first
        if not units or seconds < 1:
            return ""
        left = tqdm.format_interval((self._total - self._done) * seconds / units)
        return f", {units / seconds:.1f}/s" + (f", {left} left" if self._done < self._total else "")
