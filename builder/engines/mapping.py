"""The built-in `map` on an engine, for functions whose results are arrays."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np

from builder.engines.job import Engine, Job, Tick, Work
from builder.progress import progress
from sqid_lib.errors import DiskError
from sqid_lib.files import replacing

Value = TypeVar("Value")
Arrays = TypeVar("Arrays", bound=tuple[Any, ...])


@dataclass(frozen=True)
class _Numbered:
    number: int
    value: Any

    def __str__(self) -> str:
        return str(self.value)


def map_on(
    engine: Engine,
    folder: Path,
    label: str,
    function: Callable[[Value], Arrays],
    values: Sequence[Value],
    places: Sequence[str] = ("cpu",),
) -> Iterator[Arrays]:
    """The results of a function, in the order of the values; each is read from its file when it is its turn.

    Args:
        folder: that all machines can reach at this path; results are in a temporary folder in it meanwhile.
        label: what is being done, for the progress on stderr.
        function, values: can be pickled; the function returns a tuple of arrays.
        places: as of `Job`.

    Raises:
        DiskError: the folder cannot be written.
        SqidError: the first error of the function.
    """
    try:
        results = tempfile.TemporaryDirectory(prefix=".results-", dir=folder)
    except OSError as error:
        raise DiskError(f"results cannot be written: {error.strerror}", where=folder) from error
    with results, progress(label, len(values), unit="shard") as bar:
        tasks = [_Numbered(number, value) for number, value in enumerate(values)]
        engine.run(Job(partial(_open, function, Path(results.name)), tasks, places), bar.update)
        for task in tasks:
            with np.load(_path(Path(results.name), task)) as arrays:
                yield cast(Arrays, tuple(arrays.values()))


@contextmanager
def _open(function: Callable[[Any], Arrays], results: Path, _place: str) -> Iterator[Work[_Numbered]]:
    """A worker that writes what the function returns, whole or not at all; a task that was done is not done again."""

    def work(task: _Numbered, tick: Tick) -> None:
        path = _path(results, task)
        if not path.exists():
            found = function(task.value)
            with replacing(path) as part, part.open("wb") as file:
                np.savez(file, *found)
        tick(1)

    yield work


def _path(results: Path, task: _Numbered) -> Path:
    return results / f"{task.number:05d}.npz"
