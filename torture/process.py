"""Child processes that run a command of sqid, or a function, and can be harmed: one fork for each, of a warm server."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

from torture import patches

_CONTEXT: ForkServerContext = multiprocessing.get_context("forkserver")
LONGEST = 120.0  # seconds; what takes longer counts as hanging


@dataclass(frozen=True)
class Ran:
    """How a child ended: exit status (negative: the signal), all it printed, and seconds."""

    code: int
    text: str
    seconds: float

    @property
    def rude(self) -> bool:
        """Whether it ended in any other way than with success, an error in one line, or our own signal."""
        return "Traceback (most recent call last)" in self.text or self.code not in (0, 1, 130, -9)


class Child:
    """A running child, leader of a process group as in a terminal.

    Args:
        call: a function of a module that can be imported, and its arguments; its result is the exit status.
        output: file for all it prints.
        patch: of `patches.apply`.
        limits: of `resource.setrlimit`.
    """

    def __init__(
        self,
        call: tuple[Callable[..., Any], Sequence[object]],
        output: Path,
        *,
        patch: patches.Patch | None = None,
        limits: Sequence[tuple[int, int]] = (),
    ) -> None:
        self._output, self._began = output, time.monotonic()
        self._process: ForkServerProcess = _CONTEXT.Process(target=_run, args=(call, str(output), patch, tuple(limits)))
        self._process.start()

    @property
    def pid(self) -> int:
        """Its process number, which is also that of its group."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.is_alive()

    def signal(self, number: int, *, group: bool) -> None:
        """Send a signal to it, or to its whole group as a terminal does."""
        try:
            if group and os.getpgid(self.pid) == self.pid:
                os.killpg(self.pid, number)
            else:
                os.kill(self.pid, number)
        except ProcessLookupError:
            pass

    def wait(self, seconds: float = LONGEST) -> Ran:
        """Wait until it ends; -15 as the status of one that had to be killed."""
        self._process.join(seconds)
        hung = self._process.is_alive()
        if hung:
            self.signal(signal.SIGKILL, group=True)
            self._process.join()
        code = -15 if hung else self._process.exitcode
        assert code is not None
        text = self._output.read_text(errors="replace") if self._output.exists() else ""
        return Ran(code, text, time.monotonic() - self._began)


def warm(environment: dict[str, str]) -> None:
    """Start the server of children: it imports what they need once, and gives them its environment."""
    os.environ.update(environment)
    _CONTEXT.set_forkserver_preload(["torture.warmup"])


def _run(
    call: tuple[Callable[..., Any], Sequence[object]],
    output: str,
    patch: patches.Patch | None,
    limits: Sequence[tuple[int, int]],
) -> None:
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", closefd=False)
    code = 0
    try:
        if patch:
            patches.apply(patch)
        for name, value in limits:
            resource.setrlimit(name, (value, resource.getrlimit(name)[1]))
        function, arguments = call
        code = function(*arguments) or 0
    except SystemExit as ended:
        code = int(ended.code or 0)
    except BaseException:
        traceback.print_exc()
        code = 70
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            code = code or 1
    os._exit(code)


def sqid(arguments: Sequence[str]) -> int:
    """The command `sqid`, in a child."""
    main: Callable[[Sequence[str]], int] = importlib.import_module("builder.cli").main
    return main(list(arguments))
