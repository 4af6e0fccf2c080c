"""builder.engines: tasks that are done once, in this process or in one for each place."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from builder import engines
from builder.engines import ENGINES, Job, Tick, Work
from builder.engines.mapping import map_on
from builder.recipe import EngineSettings
from sqid_lib.errors import DiskError, EncoderError, StageError, UsageError


@contextmanager
def open_writer(folder: Path, place: str) -> Iterator[Work[str]]:
    """Does a task by writing a file; notes each opening. A few tasks misbehave."""
    with (folder / "opened").open("a") as opened:
        opened.write(f"{place} {os.getpid()}\n")

    def write(task: str, tick: Tick) -> None:
        if (folder / task).exists():
            return
        if task == "fails":
            raise EncoderError("it failed", where=task, got=place, fix="Try again.")
        if task == "breaks":
            raise RuntimeError("unexpected")
        if task == "kills":
            os.kill(os.getpid(), signal.SIGKILL)
        sys.stdout.write("noise on standard output")
        (folder / task).write_text(place)
        tick(1)
        tick(2, 1)

    yield write


def run(folder: Path, tasks: list[str], *places: str) -> int:
    ticks: list[tuple[int, int]] = []
    job = Job(partial(open_writer, folder), tasks, places)
    with engines.find("local")(EngineSettings()) as engine:
        engine.run(job, lambda units, failed=0: ticks.append((units, failed)))
    assert set(ticks) <= {(1, 0), (2, 1)}
    return sum(units for units, _ in ticks)


def opened(folder: Path) -> list[list[str]]:
    return [line.split() for line in (folder / "opened").read_text().splitlines()]


TASKS = [f"task-{n}" for n in range(9)]


@pytest.mark.parametrize("places", [("cpu",), ("left", "right"), pytest.param(("a", "b", "c"), marks=pytest.mark.slow)])
def test_every_task_is_done_and_each_worker_opened_once(tmp_path: Path, places: tuple[str, ...]) -> None:
    assert run(tmp_path, TASKS, *places) == 3 * len(TASKS)
    assert {(tmp_path / task).read_text() for task in TASKS} <= set(places)
    assert sorted(place for place, _ in opened(tmp_path)) == sorted(places)
    here = {int(process) == os.getpid() for _, process in opened(tmp_path)}
    assert here == {len(places) == 1}


def test_without_tasks_nothing_is_opened(tmp_path: Path) -> None:
    assert run(tmp_path, [], "cpu") == run(tmp_path, [], "left", "right") == 0
    assert not (tmp_path / "opened").exists()


@pytest.mark.parametrize("places", [("cpu",), ("left", "right")])
def test_each_task_is_read_once_when_it_is_its_turn(tmp_path: Path, places: tuple[str, ...]) -> None:
    read: list[int] = []

    class Lazy(Sequence[str]):
        def __len__(self) -> int:
            return len(TASKS)

        def __getitem__(self, number: Any) -> Any:
            read.append(number)
            assert len(read) <= len(list(tmp_path.glob("task-*"))) + len(places)
            return TASKS[number]

    with engines.find("local")(EngineSettings()) as engine:
        engine.run(Job(partial(open_writer, tmp_path), Lazy(), places), lambda *_: None)
    assert read[: len(TASKS)] == list(range(len(TASKS)))


def test_no_more_processes_than_tasks(tmp_path: Path) -> None:
    run(tmp_path, ["one"], "left", "right")
    assert len(opened(tmp_path)) == 1


@pytest.mark.parametrize("places", [("cpu",), ("left", "right")])
def test_an_error_of_a_task_ends_the_run_and_finished_tasks_are_kept(tmp_path: Path, places: tuple[str, ...]) -> None:
    with pytest.raises(EncoderError, match=r"fails: it failed; got (cpu|left|right)\. Try again\."):
        run(tmp_path, ["first", "fails", *TASKS], *places)
    assert (tmp_path / "first").exists() or len(places) > 1
    (tmp_path / "fails").touch()
    run(tmp_path, ["first", "fails", *TASKS], *places)
    assert all((tmp_path / task).exists() for task in ["first", *TASKS])


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("breaks", "a worker failed: RuntimeError: unexpected"),
        ("kills", "kills on (left|right): a worker process ended; got SIGKILL.*kept"),
    ],
)
def test_a_worker_process_that_breaks_is_reported(tmp_path: Path, task: str, message: str) -> None:
    with pytest.raises(StageError, match=message):
        run(tmp_path, [task, "other"], "left", "right")


def test_an_error_of_opening_is_reported(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="a worker failed: FileNotFoundError"):
        run(tmp_path / "gone", ["one", "two"], "left", "right")


def powers(offset: int, value: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    if value == 13:
        raise EncoderError("it failed", where=value)
    return np.arange(value), np.array([[float(value + offset) ** 2, os.getpid()]])


@pytest.mark.parametrize("places", [("cpu",), ("left", "right")])
def test_arrays_are_mapped_in_order_and_nothing_is_left_behind(tmp_path: Path, places: tuple[str, ...]) -> None:
    with engines.find("local")(EngineSettings()) as engine:
        found = list(map_on(engine, tmp_path, "square", partial(powers, 1), range(9), places))
        with pytest.raises(EncoderError, match="13: it failed"):
            list(map_on(engine, tmp_path, "square", partial(powers, 1), [13], places))
    assert [first.tolist() for first, _ in found] == [list(range(n)) for n in range(9)]
    assert [second[0, 0] for _, second in found] == [(n + 1) ** 2 for n in range(9)]
    assert {int(second[0, 1]) == os.getpid() for _, second in found} == {len(places) == 1}
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there_is_reported(tmp_path: Path) -> None:
    with engines.find("local")(EngineSettings()) as engine, pytest.raises(DiskError, match="results cannot be written"):
        list(map_on(engine, tmp_path / "none", "square", partial(powers, 1), [1]))


def test_an_unknown_engine_names_those_there_are() -> None:
    with pytest.raises(UsageError, match=f"--engine: unknown engine; expected {' or '.join(ENGINES)}, got 'steam'"):
        engines.find("steam")
