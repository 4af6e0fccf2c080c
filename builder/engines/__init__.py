"""Execution engines: what runs the independent tasks of a stage, and where.

An engine is one context manager and an entry in ENGINES; the stages know nothing else of it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from builder.engines.job import Divisible, Engine, Job, MapAhead, Tick, Work, import_path
from sqid_lib.errors import unknown_name

if TYPE_CHECKING:
    from builder.recipe import EngineSettings

__all__ = ["ENGINES", "Divisible", "Engine", "Job", "MapAhead", "Tick", "Work", "find", "import_path", "threads"]


@contextmanager
def local(_: EngineSettings) -> Iterator[Engine]:
    """On this machine: in this process for one place, in a process each for several."""
    yield Engine(_run_here)


@contextmanager
def ray(settings: EngineSettings) -> Iterator[Engine]:
    """On a Ray cluster, or on one of this machine's cores that lives as long as the engine is open.

    Raises:
        MissingExtraError: Ray is not installed.
        StageError: the cluster does not answer, or has no room for a worker.
    """
    from builder.engines.ray_cluster import connected, run_on_ray
    from builder.engines.ray_tasks import map_in_tasks

    with connected(settings) as machines:
        yield Engine(partial(run_on_ray, settings), machines, map_in_tasks if settings.decode == "tasks" else None)


ENGINES: Mapping[str, Callable[[EngineSettings], AbstractContextManager[Engine]]] = MappingProxyType(
    {"local": local, "ray": ray}
)


def find(name: str) -> Callable[[EngineSettings], AbstractContextManager[Engine]]:
    """What opens the engine of that name with the settings of a recipe's [engine].

    Raises:
        UsageError: there is none.
    """
    if name not in ENGINES:
        raise unknown_name("engine", name, ENGINES, "--engine")
    return ENGINES[name]


def threads(name: str, settings: EngineSettings) -> int | None:
    """Threads of the network in one worker on a CPU, where the engine decides that."""
    if name == "local" or "OMP_NUM_THREADS" in os.environ:
        return None
    return max(1, int(settings.num_cpus))  # Ray sets OMP_NUM_THREADS to it


def _run_here(job: Job[Any], tick: Tick) -> None:
    if len(job.places) > 1:
        from builder.engines.processes import run_in_processes  # imported when it is run as a program, too

        run_in_processes(job, tick)
    elif job.tasks:
        with job.open(job.places[0]) as work:
            for task in job.tasks:
                work(task, tick)
