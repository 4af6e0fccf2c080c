"""Decoding untrusted images in processes of their own: an image that kills its decoder costs one image, not the run."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from builder.database import reporting_disk_errors
from builder.engines import import_path
from builder.fetch import decoder
from builder.fetch.ledger import Ledger
from sqid_lib.errors import StageError

_PIPE = 1 << 20  # bytes
_ENDED = "ended"
_LIBRARY_PATHS = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH")


@dataclass(frozen=True)
class Checked:
    """An image that was decoded: hash, offset in the spool, size in pixels; or status and detail of its refusal.

    Only a truncated image that was kept has all of them.
    """

    status: str
    sha256: str | None = None
    offset: int | None = None
    width: int | None = None
    height: int | None = None
    detail: str | None = None


class Decoders:
    """A pool of decoder processes, for one event loop. An async context manager.

    Args:
        ledger: its spool takes the images; the processes share the spool's lock.
        max_pixels, keep_truncated: as for `sqid_lib.images.decode`.
        processes: how many; default one per CPU this process may use.
    """

    def __init__(
        self, ledger: Ledger, *, max_pixels: int, keep_truncated: bool = False, processes: int | None = None
    ) -> None:
        self.processes = processes or cpus()
        self._ledger, self._max_pixels, self._keep_truncated = ledger, max_pixels, keep_truncated
        self._idle: asyncio.Queue[asyncio.subprocess.Process | None] = asyncio.Queue()
        self.running: set[asyncio.subprocess.Process] = set()
        self._starting: set[asyncio.Task[asyncio.subprocess.Process]] = set()

    async def __aenter__(self) -> Self:
        for _ in range(self.processes):
            self._idle.put_nowait(None)  # started when first needed
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.gather(*self._starting, return_exceptions=True)
        for process in list(self.running):
            await self._end(process)

    async def check(self, data: bytes) -> Checked:
        """Decode an image wholly in one of the processes, which writes its bytes to the spool.

        Raises:
            DiskError: the bytes could not be written. Nothing is raised because of what the bytes are.
            StageError: the processes do not start, or lose their pipe.
        """
        checked = await self._try(data)
        if checked.status == _ENDED:  # the process may have been killed from outside, so try once in another one
            checked = await self._try(data)
        if checked.status == _ENDED:
            return Checked("corrupt", detail=f"the decoder ended on this image ({checked.detail})")
        return checked

    async def _try(self, data: bytes) -> Checked:
        process = await self._idle.get()
        answered = False
        try:
            process = process or await self._started()
            async with asyncio.timeout(decoder.SECONDS + 5):  # it ends itself before, unless it was stopped
                reply = await self._ask(process, data)
            answered = True
        except (asyncio.IncompleteReadError, BrokenPipeError, ConnectionResetError, TimeoutError) as error:
            code = await self._end(process) if process else None
            if code == 0 and not isinstance(
                error, TimeoutError
            ):  # it read the end of its requests: our pipe broke, and the image has no part in it
                raise StageError(
                    "a decoder process lost its pipe", got=str(error), fix="Run the build again; finished work is kept."
                ) from error
            return Checked(_ENDED, detail=_reason(code, error))
        finally:
            if not answered and process in self.running:
                process.kill()  # cancelled before its reply; it is waited for when the pool ends
            self._idle.put_nowait(process if answered else None)
        if "errno" in reply:
            with reporting_disk_errors(self._ledger.spool_path):
                raise OSError(reply["errno"], os.strerror(reply["errno"]))
        return Checked(**reply)

    async def _ask(self, process: asyncio.subprocess.Process, data: bytes) -> dict[str, Any]:
        assert process.stdin is not None
        assert process.stdout is not None
        header = decoder.REQUEST.pack(len(data), self._max_pixels, self._ledger.reserve(len(data)))
        process.stdin.write(header + data)  # one system call, one wake-up
        await process.stdin.drain()
        reply: dict[str, Any] = json.loads(await process.stdout.readuntil(b"\n"))
        return reply

    async def _started(self) -> asyncio.subprocess.Process:
        start = asyncio.create_task(self._start())
        self._starting.add(start)
        start.add_done_callback(self._starting.discard)
        return await asyncio.shield(start)  # cancelling a start would leave its process behind

    async def _start(self) -> asyncio.subprocess.Process:
        # a program of its own, since multiprocessing would run the caller's script again
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-P", decoder.__file__, str(self._ledger.spool), "keep" if self._keep_truncated else "refuse"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                pass_fds=(self._ledger.spool,),
                env=environment(),
                process_group=0,  # Ctrl-C is for the parent, also before this process can ignore it
            )
        except OSError as error:  # too many open files or processes, no memory
            raise StageError(
                "decoder processes cannot be started",
                got=error.strerror or str(error),
                fix="Raise the limits of this machine (ulimit -n, ulimit -u) and build again; finished work is kept.",
            ) from error
        self.running.add(process)
        _widen(process)
        assert process.stdout is not None
        if await process.stdout.read(1) != decoder.READY:
            raise StageError(
                "the decoder process does not start",
                where=Path(decoder.__file__).name,
                got=f"exit status {await self._end(process)}",
                fix="Its own message is above.",
            )
        return process

    async def _end(self, process: asyncio.subprocess.Process) -> int:
        self.running.discard(process)
        if process.stdin is not None:
            process.stdin.close()
        try:
            async with asyncio.timeout(1):
                return await process.wait()
        except TimeoutError:
            process.kill()
            return await process.wait()


def environment() -> dict[str, str]:
    """What a decoder process needs to find its packages, and nothing else: no token, no proxy's password."""
    found = {name: os.environ[name] for name in _LIBRARY_PATHS if name in os.environ}
    return found | {"PYTHONPATH": import_path()}


def _widen(process: asyncio.subprocess.Process) -> None:
    """Let a whole image into the pipe at once: with the default of 64 KiB both processes would wait for each other."""
    if process.stdin is not None and hasattr(fcntl, "F_SETPIPE_SZ"):  # Linux
        with contextlib.suppress(OSError):  # more than the user may have
            fcntl.fcntl(process.stdin.transport.get_extra_info("pipe"), fcntl.F_SETPIPE_SZ, _PIPE)


def cpus() -> int:
    """The CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _reason(code: int | None, error: BaseException) -> str:
    if code == -signal.SIGALRM:
        return f"not done after {decoder.SECONDS} s"
    if code is not None and code < 0:
        return signal.Signals(-code).name
    return f"exit status {code}" if code is not None else str(error)
