"""Ray: the tasks are the rows of a Dataset that an actor pool maps; Ray places its workers, restarts and retries them.

Only this file and ray_tasks.py import Ray.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import signal
import socket
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from builder.engines.job import NAME, Divisible, Job, Tick, Work, import_path, unexpected
from builder.engines.trials import ENDS, Trials
from builder.progress import note
from sqid_lib.errors import SqidError, StageError, first_line, missing_extra

if TYPE_CHECKING:
    from builder.recipe import EngineSettings

_ANSWERS = 10.0  # seconds within which a cluster answers
_TICKS = 0.5  # seconds between two reports of progress
_TASK, _ERROR = "task", "error"  # columns of the dataset, before and after


@contextmanager
def connected(settings: EngineSettings) -> Iterator[int]:
    """A connection to the cluster; how many machines it has, or soon has."""
    with _environment():
        try:
            import ray
            import ray.data
        except ImportError as error:
            raise missing_extra("ray", "ray", "for --engine ray") from error
        logging.getLogger("ray.data").setLevel(logging.ERROR)  # its import has set another level
        ours = not ray.is_initialized()  # else the caller's: used, and left as it is
        address = settings.address or os.environ.get("RAY_ADDRESS") or "local"
        try:
            if ours:
                _start(address)
            there = ray.cluster_resources()
            if _room(settings, there) == 0 and address == "local":
                raise StageError(
                    "this machine has no room for a worker",
                    where="engine",
                    expected=f"{_cpus(settings):g} CPUs and {settings.num_gpus:g} GPUs at least",
                    got=f"{there.get('CPU', 0):g} CPUs and {there.get('GPU', 0):g} GPUs",
                    fix="Lower num_cpus or num_gpus in [engine].",
                )
            yield max(settings.min_workers, sum("CPU" in node["Resources"] for node in ray.nodes() if node["Alive"]))
        except (ConnectionError, ray.exceptions.RayError) as error:
            raise StageError(
                f"the Ray cluster failed: {first_line(error)}",
                where=address,
                fix="Check it with: ray status. Run the build again; finished work is kept.",
            ) from error
        finally:
            if ours:
                ray.shutdown()


def _start(address: str) -> None:
    import ray

    host, colon, port = address.rpartition(":")
    if colon and port.isdigit() and "/" not in host:  # Ray would wait for minutes
        try:
            socket.create_connection((host.strip("[]"), int(port)), _ANSWERS).close()
        except OSError as error:
            raise ConnectionError(f"no answer: {error.strerror or error}") from error
    local: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    descriptor = os.dup(2)
    try:
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), 2)  # its part in C++ reports each start
        ray.init(address, logging_level=logging.ERROR, log_to_driver=False, **local)
    finally:
        os.dup2(descriptor, 2)
        os.close(descriptor)


@contextmanager
def _environment() -> Iterator[None]:
    """What Ray reads while it runs: no statistics are sent, nothing is printed but by us."""
    set_here = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal", "PYTHONPATH": import_path()}
    before = {name: os.environ.get(name) for name in set_here}
    handler = signal.getsignal(signal.SIGTERM)
    os.environ.update(set_here)
    try:
        with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
            yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray sets its own


def _room(settings: EngineSettings, resources: Mapping[str, float]) -> int:
    """How many workers fit into the cluster as it is now."""
    rooms = [resources.get("CPU", 0) / _cpus(settings)]
    if settings.num_gpus:
        rooms.append(resources.get("GPU", 0) / settings.num_gpus)
    return int(min(rooms))


def _cpus(settings: EngineSettings) -> float:
    """What a worker needs, with one for the images that are decoded for it elsewhere."""
    return settings.num_cpus + (settings.decode == "tasks")


def run_on_ray(settings: EngineSettings, job: Job[Any], tick: Tick) -> None:
    """Do all tasks of a job with a pool of workers."""
    import ray.data
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    tasks = len(job.tasks)
    if not tasks:
        return
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board = ray.remote(_Board).options(num_cpus=0, scheduling_strategy=here).remote()
    room = len(ray.nodes()) if job.whole_machine else _room(settings, ray.cluster_resources())
    most = min(tasks, settings.max_workers or max(room, settings.min_workers))
    least = min(settings.min_workers, most)
    pool = ray.data.ActorPoolStrategy(
        min_size=least,
        max_size=most,
        initial_size=max(least, min(most, room)),
        max_tasks_in_flight_per_actor=1,  # a task waits for a free worker, not for one that is busy
    )
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.autoscaling_config.actor_pool_util_upscaling_threshold = 1.0  # more workers when all have a task
    with _reporting_board(board, tick):
        numbers = ray.data.from_items([{_TASK: number} for number in range(tasks)], override_num_blocks=tasks)
        done = numbers.map_batches(
            _Worker,
            fn_constructor_args=(job.open, job.places[0], [ray.put(job.tasks)], board),
            batch_size=1,
            compute=pool,
            num_cpus=settings.num_cpus,
            num_gpus=settings.num_gpus if job.places[0].startswith("cuda") else 0,
        )  # Ray Data spreads its actors over the machines
        for row in done.iter_rows():
            if row[_ERROR]:
                raise pickle.loads(row[_ERROR])


class _Worker:
    """An actor of the pool. It opens what it needs with its first task.

    Args:
        tasks: a list with the reference of all tasks, which lie in the shared memory of each machine.
    """

    def __init__(self, opener: Any, place: str, tasks: list[Any], board: Any) -> None:
        import ray

        self._opener, self._place, self._board = opener, place, board
        self._tasks: Sequence[Any] = ray.get(tasks[0])
        self._open = contextlib.ExitStack()
        self._work: Work[Any] | None = None

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[bytes]]:
        """Do one task; the reply is empty, or a pickled SqidError."""
        error = b""
        try:
            self._do(int(batch[_TASK][0]))
        except SqidError as raised:
            error = pickle.dumps(raised)
        except Exception as raised:
            traceback.print_exc()
            error = pickle.dumps(unexpected(raised))
        return {_ERROR: [error]}

    def _do(self, number: int) -> None:
        import ray

        def turn(event: str) -> tuple[range | None, list[int]]:
            failure, trial, given_up = ray.get(self._board.turn.remote(number, event, name, len(items)))
            if failure:
                fix = "The cause, such as too little memory, is in Ray's log. Finished work is kept."
                raise StageError(failure, where=name, fix=fix)
            return trial, given_up

        task = self._tasks[number]
        name, items = str(task)[:NAME], task.items if isinstance(task, Divisible) else ()
        turn("begin")
        if self._work is None:
            self._work = self._open.enter_context(self._opener(self._place))
        trial, given_up = turn("opened")
        with _TicksTo(self._board) as tick:
            while trial is not None:
                self._work(task.only(trial), tick)
                trial, given_up = turn("passed")
            for item in given_up:
                self._board.note.remote(f"{name}: {items[item][:NAME]} ended {ENDS} workers and is given up")
            self._work(task.without(given_up) if given_up else task, tick)


class _TicksTo:
    """Sends ticks to the board, several together."""

    def __init__(self, board: Any) -> None:
        self._board, self._units, self._failed, self._sent = board, 0, 0, time.monotonic()

    def __call__(self, units: int, failed: int = 0) -> None:
        self._units, self._failed = self._units + units, self._failed + failed
        if time.monotonic() >= self._sent + _TICKS:
            self._send()

    def _send(self) -> Any:
        counted = self._board.add.remote(self._units, self._failed)
        self._units, self._failed, self._sent = 0, 0, time.monotonic()
        return counted

    def __enter__(self) -> _TicksTo:
        return self

    def __exit__(self, *_: object) -> None:
        import ray

        ray.get(self._send())  # the board has it before the task counts as done


class _Board:
    """An actor beside the driver: what workers finished, and the attempts of each task."""

    def __init__(self) -> None:
        self._trials: dict[int, Trials] = {}
        self._units, self._failed, self._notes = 0, 0, [""] * 0

    def turn(self, number: int, event: str, name: str, items: int) -> tuple[str, range | None, list[int]]:
        """Count an event of a task: why it cannot be done, the items to try now, and those that are given up."""
        if (trials := self._trials.get(number)) is None:
            trials = self._trials[number] = Trials(items)
        elif event == "begin":
            self.note(f"a worker ended; {name} is begun again")
        getattr(trials, event)()
        for said in trials.notes:
            self.note(f"{name}: {said}")
        trials.notes.clear()
        return trials.failure, trials.trial, trials.given_up

    def note(self, line: str) -> None:
        """Something to tell the user."""
        self._notes.append(line)

    def add(self, units: int, failed: int) -> None:
        """Count finished units."""
        self._units, self._failed = self._units + units, self._failed + failed

    def take(self) -> tuple[int, int, list[str]]:
        """Units, those that failed, and notes, all since the last call."""
        taken = self._units, self._failed, self._notes
        self._units, self._failed, self._notes = 0, 0, []
        return taken


@contextmanager
def _reporting_board(board: Any, tick: Tick) -> Iterator[None]:
    """Report what the board counts, in a thread, until the block ends."""
    import ray

    ended = threading.Event()

    def report() -> None:
        last = False
        with contextlib.suppress(ray.exceptions.RayError):  # the driver meets it too
            while not last:
                last = ended.wait(_TICKS)
                units, failed, notes = ray.get(board.take.remote(), timeout=60)
                if units:
                    tick(units, failed)
                for line in notes:
                    note(f"ray: {line}")

    thread = threading.Thread(target=report, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
