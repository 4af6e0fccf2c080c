"""Execution engines: what runs the independent tasks of a stage, and where.

An engine is one context manager and an entry in ENGINES; the stages know nothing else of it. Only this file imports
Ray.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import IO, TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from builder.progress import note
from sqid_lib.errors import SqidError, StageError, first_line, missing_extra, unknown_name

if TYPE_CHECKING:
    from builder.recipe import EngineSettings

Task = TypeVar("Task")


class Tick(Protocol):
    """What a task reports its progress to."""

    def __call__(self, units: int, failed: int = 0, /) -> object:
        """Count units just finished, of which some failed."""


Work = Callable[[Task, Tick], None]
_NAME = 120  # characters of a task in an error


@dataclass(frozen=True)
class Job(Generic[Task]):
    """Independent tasks and the worker that does them: all of it picklable, for other processes and machines.

    Attributes:
        open: place → context manager that opens what a worker needs, such as a model, and gives the function that does
            one task. A task may be done again, even twice at a time: that function skips what is finished and writes
            results whole or not at all.
        tasks: plain values, each read once and not before it is its turn; `str` of one names it in errors.
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
    """

    run: Callable[[Job[Any], Tick], None]
    machines: int = 1


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
    with _connected_to_ray(settings) as machines:
        yield Engine(partial(_run_on_ray, settings), machines)


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


def import_path() -> str:
    """PYTHONPATH for a process of our own: it imports what this process would."""
    root = str(Path(__file__).resolve().parents[1])  # an editable install may not put it on sys.path
    return os.pathsep.join(path for path in (*sys.path, root) if path)


def _run_here(job: Job[Any], tick: Tick) -> None:
    if len(job.places) > 1:
        _in_processes(job, tick)
    elif job.tasks:
        with job.open(job.places[0]) as work:
            for task in job.tasks:
                work(task, tick)


# -- a process for each place: a program of its own, since multiprocessing would run the caller's script again ------


def _in_processes(job: Job[Any], tick: Tick) -> None:
    left, lock = iter(job.tasks), threading.Lock()

    def take() -> Any:
        with lock:
            return next(left, None)

    def tick_in_turn(units: int, failed: int = 0) -> None:
        with lock:
            tick(units, failed)

    with ThreadPoolExecutor(len(job.places)) as threads:
        processes = [_start() for _ in job.places[: len(job.tasks)]]
        try:
            running = [
                threads.submit(_drive, process, job.open, place, take, tick_in_turn)
                for process, place in zip(processes, job.places, strict=False)
            ]
            for finished in as_completed(running):
                finished.result()
        finally:
            for process in processes:
                process.kill()  # after an error or Ctrl-C: a task may be interrupted anywhere


def _start() -> subprocess.Popen[bytes]:
    # the processes share the cores, unless the user set it otherwise
    environment = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": import_path()}
    command = [sys.executable, "-m", "builder.engines"]
    # in a group of its own: Ctrl-C is for the parent, also before the process can ignore it
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, process_group=0)


def _drive(process: subprocess.Popen[bytes], opener: Any, place: str, take: Callable[[], Any], tick: Tick) -> None:
    """Give a process one task after another until none is left."""
    with process:  # at the end closes its pipes, which ends it, and waits
        assert process.stdin is not None
        assert process.stdout is not None
        task = None
        try:
            _send(process.stdin, (opener, place))
            while (task := take()) is not None:
                _send(process.stdin, task)
                while (reply := pickle.load(process.stdout)) is not None:
                    if isinstance(reply, SqidError):
                        raise reply
                    tick(*reply)
        except (EOFError, BrokenPipeError, pickle.UnpicklingError) as error:
            code = process.wait()
            raise StageError(
                "a worker process ended",
                where=place if task is None else f"{str(task)[:_NAME]} on {place}",
                got=signal.Signals(-code).name if code < 0 else f"exit status {code}",
                fix="Run the build again; finished work is kept.",
            ) from error


def _send(pipe: IO[bytes], value: object) -> None:
    pickle.dump(value, pipe)
    pipe.flush()


def _serve(requests: IO[bytes], replies: IO[bytes]) -> None:
    """The other end of `_drive`: finished units and failures, None after each task, a SqidError where one fails."""
    try:
        opener, place = pickle.load(requests)
        with opener(place) as work:
            for task in _received(requests):
                work(task, lambda units, failed=0: _send(replies, (units, failed)))
                _send(replies, None)
    except SqidError as error:
        _send(replies, error)
    except BrokenPipeError:
        os._exit(1)  # the parent ended: nobody reads replies
    except Exception as error:
        traceback.print_exc()
        _send(replies, _unexpected(error))


def _unexpected(error: Exception) -> StageError:
    return StageError(f"a worker failed: {type(error).__name__}: {first_line(error)}")


def _received(requests: IO[bytes]) -> Iterator[Any]:
    with contextlib.suppress(EOFError):  # the parent has no more tasks, or has ended
        while True:
            yield pickle.load(requests)


# -- Ray: the tasks are the rows of a Dataset that an actor pool maps; Ray places, restarts and retries ---------------

_ANSWERS = 10.0  # seconds within which a cluster answers
_ENDS = 3  # workers that may end while they do one task
_TICKS = 0.5  # seconds between two reports of progress
_TASK, _ERROR = "task", "error"  # columns of the dataset, before and after


@contextmanager
def _connected_to_ray(settings: EngineSettings) -> Iterator[int]:
    """A connection to the cluster; how many machines it has, or soon has."""
    with _ray_environment():
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
                _start_ray(address)
            room = _room(settings, ray.cluster_resources())
            if room == 0 and address == "local":
                raise StageError(
                    "this machine has no room for a worker",
                    where="engine",
                    expected=f"num_cpus = {settings.num_cpus:g} and num_gpus = {settings.num_gpus:g} at most",
                    got=f"{ray.cluster_resources()}",
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


def _start_ray(address: str) -> None:
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
def _ray_environment() -> Iterator[None]:
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
    rooms = [resources.get("CPU", 0) / settings.num_cpus]
    if settings.num_gpus:
        rooms.append(resources.get("GPU", 0) / settings.num_gpus)
    return int(min(rooms))


def _run_on_ray(settings: EngineSettings, job: Job[Any], tick: Tick) -> None:
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
            _RayWorker,
            fn_constructor_args=(job.open, job.places[0], [ray.put(job.tasks)], board),
            batch_size=1,
            compute=pool,
            num_cpus=settings.num_cpus,
            num_gpus=settings.num_gpus if job.places[0].startswith("cuda") else 0,
        )  # Ray Data spreads its actors over the machines
        for row in done.iter_rows():
            if row[_ERROR]:
                raise pickle.loads(row[_ERROR])


class _RayWorker:
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
            error = pickle.dumps(_unexpected(raised))
        return {_ERROR: [error]}

    def _do(self, number: int) -> None:
        import ray

        task = self._tasks[number]
        name = str(task)[:_NAME]
        if ray.get(self._board.begin.remote(number, name)) > _ENDS:
            raise StageError(
                f"{_ENDS} workers ended while they did this task",
                where=name,
                fix="The cause, such as too little memory, is in Ray's log. Finished work is kept.",
            )
        if self._work is None:
            self._work = self._open.enter_context(self._opener(self._place))
        with _TicksTo(self._board) as tick:
            self._work(task, tick)


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
    """An actor beside the driver: what workers finished, and how often each task was begun."""

    def __init__(self) -> None:
        self._begun: Counter[int] = Counter()
        self._units, self._failed, self._again = 0, 0, [""] * 0

    def begin(self, number: int, name: str) -> int:
        """How often this task was begun, this time included."""
        self._begun[number] += 1
        if self._begun[number] > 1:
            self._again.append(name)
        return self._begun[number]

    def add(self, units: int, failed: int) -> None:
        """Count finished units."""
        self._units, self._failed = self._units + units, self._failed + failed

    def take(self) -> tuple[int, int, list[str]]:
        """Units, those that failed, and tasks begun again, all since the last call."""
        taken = self._units, self._failed, self._again
        self._units, self._failed, self._again = 0, 0, []
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
                units, failed, again = ray.get(board.take.remote(), timeout=60)
                if units:
                    tick(units, failed)
                for name in again:
                    note(f"ray: a worker ended; {name} is begun again")

    thread = threading.Thread(target=report, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends this process
    own_output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a library that prints must not write into the replies
    _serve(sys.stdin.buffer, own_output)
