"""Independent tasks, and what an engine is."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, Self, TypeVar, runtime_checkable

from sqid_lib.errors import StageError, first_line

Task = TypeVar("Task")


class Tick(Protocol):
    """What a task reports its progress to."""

    def __call__(self, units: int, failed: int = 0, /) -> object:
        """Count units just finished, of which some failed."""


@runtime_checkable
class Divisible(Protocol):
    """A task of several items: where its workers end, the items that end them are found and given up."""

    @property
    def items(self) -> Sequence[str]:
        """The items, as errors name them."""

    def only(self, trial: range) -> Self:
        """A task that handles some items alone; its results may be thrown away."""

    def without(self, given_up: Sequence[int]) -> Self:
        """The whole task, in which the items of these numbers get a status and nothing else is done with them."""


Work = Callable[[Task, Tick], None]
MapAhead = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]  # as `map`, and some items ahead of its user
NAME = 120  # characters of a task in an error


@dataclass(frozen=True)
class Job(Generic[Task]):
    """Independent tasks and the worker that does them: all of it picklable, for other processes and machines.

    Attributes:
        open: place → context manager that opens what a worker needs, such as a model, and gives the function that does
            one task. A task may be done again, even twice at a time: that function skips what is finished and writes
            results whole or not at all.
        tasks: plain values, each read once and not before it is its turn; `str` of one names it in errors. One that is
            `Divisible` survives items that end its workers.
        places: devices as torch names them; locally one worker for each, on a cluster the first one for all.
        whole_machine: whether one worker uses all that a machine has.
    """

    open: Callable[[str], AbstractContextManager[Work[Task]]]
    tasks: Sequence[Task]
    places: Sequence[str] = ("cpu",)
    whole_machine: bool = False


@dataclass(frozen=True)
class Engine:
    """What runs jobs, while it is open.

    Attributes:
        run: does all tasks of a job and raises the first error of one.
        machines: how many there are, for stages that make a task for each.
        map_ahead: runs a small function within a task, on CPUs anywhere; function, items and results can be pickled.
            None: a worker uses threads of its own.
    """

    run: Callable[[Job[Any], Tick], None]
    machines: int = 1
    map_ahead: MapAhead | None = None


def import_path() -> str:
    """PYTHONPATH for a process of our own: it imports what this process would."""
    root = str(Path(__file__).resolve().parents[2])  # an editable install may not put it on sys.path
    return os.pathsep.join(path for path in (*sys.path, root) if path)


def unexpected(error: Exception) -> StageError:
    """The error of a worker for an exception that nobody foresaw."""
    return StageError(f"a worker failed: {type(error).__name__}: {first_line(error)}")
