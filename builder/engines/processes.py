"""A process for each place: a program of its own, since multiprocessing would run the caller's script again."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import IO, Any

from builder.engines.job import NAME, Job, Tick, import_path, unexpected
from sqid_lib.errors import SqidError, StageError


def run_in_processes(job: Job[Any], tick: Tick) -> None:
    """Do all tasks of a job, in a process for each of its places."""
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
    command = [sys.executable, "-m", "builder.engines.processes"]
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
                where=place if task is None else f"{str(task)[:NAME]} on {place}",
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
        _send(replies, unexpected(error))


def _received(requests: IO[bytes]) -> Iterator[Any]:
    with contextlib.suppress(EOFError):  # the parent has no more tasks, or has ended
        while True:
            yield pickle.load(requests)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends this process
    own_output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a library that prints must not write into the replies
    _serve(sys.stdin.buffer, own_output)
