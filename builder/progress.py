"""How a long stage shows how far it is: a bar on a terminal, a plain line now and then elsewhere, on stderr."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Self

from sqid_lib.errors import missing_extra

_EVERY = 10.0  # seconds between two plain lines


class Progress:
    """Counts finished units. A context manager.

    Args:
        label: what is being done, such as "fetch".
        total: units in all.
        done: units finished by earlier runs.
    """

    def __init__(self, label: str, total: int, done: int = 0, *, unit: str = "url") -> None:
        self._label, self._total, self._done, self._unit = label, total, done, unit
        self._bar: Any = None
        self._next = time.monotonic() + _EVERY

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            try:
                from tqdm import tqdm
            except ImportError:
                raise missing_extra("tqdm", "build", "to show progress") from None
            self._bar = tqdm(total=self._total, initial=self._done, desc=self._label, unit=self._unit, file=sys.stderr)
        else:
            self._line()
        return self

    def step(self, units: int = 1) -> None:
        """Count finished units."""
        self._done += units
        if self._bar is not None:
            self._bar.update(units)
        elif time.monotonic() >= self._next:
            self._next = time.monotonic() + _EVERY
            self._line()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self._total:
            self._line()

    def _line(self) -> None:
        sys.stderr.write(f"{self._label}: {self._done:,} of {self._total:,} {self._unit}s\n")
        sys.stderr.flush()
