"""Decoding pictures of strangers in processes of their own: what kills a decoder costs one picture, not the run."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from sqid_lib.errors import StageError
from sqid_lib.images import PictureError, check

SECONDS = 20  # for one picture; the slowest honest ones take under one
_REQUEST = struct.Struct("<QQ")  # bytes that follow, pixels allowed
_PIPE = 1 << 20
_READY = b"+"
_ENDED = "ended"
_REPLY = struct.Struct("<iiQ")  # width, height (0 if refused), bytes of text that follow: "status\ndetail"


@dataclass(frozen=True)
class Checked:
    """A decoded picture's size in pixels, or the status and detail of its refusal."""

    status: str
    width: int | None = None
    height: int | None = None
    detail: str | None = None


class Decoders:
    """A pool of decoder processes, for one event loop. An async context manager.

    Args:
        processes: how many; default one per CPU this process may use.
        max_pixels: as for `sqid_lib.images.decode`.
    """

    def __init__(self, processes: int | None = None, *, max_pixels: int) -> None:
        self.processes = processes or _cpus()
        self._max_pixels = max_pixels
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
        """Decode a picture wholly in one of the processes. Raises nothing a picture causes."""
        checked = await self._try(data)
        if checked.status == _ENDED:  # perhaps killed from outside, so a fresh process may try once
            checked = await self._try(data)
        if checked.status == _ENDED:
            return Checked("corrupt", detail=f"the decoder ended on this picture ({checked.detail})")
        return checked

    async def _try(self, data: bytes) -> Checked:
        process = await self._idle.get()
        answered = False
        try:
            process = process or await self._started()
            async with asyncio.timeout(SECONDS + 5):  # the process ends itself before; this is for a stopped one
                checked = await self._ask(process, data)
            answered = True
            return checked
        except (asyncio.IncompleteReadError, BrokenPipeError, ConnectionResetError, TimeoutError) as error:
            return Checked(_ENDED, detail=_reason(await self._end(process) if process else None, error))
        finally:
            if not answered and process in self.running:
                process.kill()  # cancelled half-way: its pipe is out of step; reaped as the pool ends
            self._idle.put_nowait(process if answered else None)

    async def _ask(self, process: asyncio.subprocess.Process, data: bytes) -> Checked:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(_REQUEST.pack(len(data), self._max_pixels) + data)  # one system call, one wake-up
        await process.stdin.drain()
        width, height, length = _REPLY.unpack(await process.stdout.readexactly(_REPLY.size))
        if not length:
            return Checked("ok", width, height)
        status, _, detail = (await process.stdout.readexactly(length)).decode().partition("\n")
        return Checked(status, detail=detail)

    async def _started(self) -> asyncio.subprocess.Process:
        start = asyncio.create_task(self._start())
        self._starting.add(start)
        start.add_done_callback(self._starting.discard)
        return await asyncio.shield(start)  # a start cancelled half-way would leave its process behind

    async def _start(self) -> asyncio.subprocess.Process:
        # a program of its own, not multiprocessing: that would run the caller's script again
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "builder.fetch.decoders",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=environment(),
        )
        self.running.add(process)
        _widen(process)
        assert process.stdout is not None
        if await process.stdout.read(1) != _READY:
            raise StageError(
                "the decoder process does not start",
                where="builder.fetch.decoders",
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
    """For processes of our own: they import what this one would."""
    root = str(Path(__file__).resolve().parents[1])  # which an editable install finds by other means
    return {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in (*sys.path, root) if p)}


def _widen(process: asyncio.subprocess.Process) -> None:
    """Let a whole picture into the pipe at once; 64 KiB, the default, would take turns."""
    if process.stdin is not None and hasattr(fcntl, "F_SETPIPE_SZ"):  # Linux
        with contextlib.suppress(OSError):  # above the user's allowance
            fcntl.fcntl(process.stdin.transport.get_extra_info("pipe"), fcntl.F_SETPIPE_SZ, _PIPE)


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _reason(code: int | None, error: BaseException) -> str:
    if code == -signal.SIGALRM:
        return f"not done after {SECONDS} s"
    if code is not None and code < 0:
        return signal.Signals(-code).name
    return f"exit status {code}" if code is not None else str(error)


def serve(requests: BinaryIO, replies: BinaryIO) -> None:
    """What a decoder process does until its input ends."""
    while header := requests.read(_REQUEST.size):
        length, max_pixels = _REQUEST.unpack(header)
        data = requests.read(length)
        signal.alarm(SECONDS)  # its default action ends the process, even inside a C decoder
        try:
            reply = _REPLY.pack(*check(data, max_pixels), 0)
        except PictureError as error:
            text = f"{error.status}\n{error.detail}".encode()
            reply = _REPLY.pack(0, 0, len(text)) + text
        signal.alarm(0)
        replies.write(reply)
        replies.flush()


def _main() -> None:
    import resource
    import warnings

    import PIL.Image  # noqa: F401 - a missing package shows here, not as a damaged picture

    warnings.simplefilter("ignore")  # Pillow warns of odd metadata, which nobody reads here
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which then closes the pipe
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a library that prints must not speak into the replies
    replies.write(_READY)
    replies.flush()
    serve(sys.stdin.buffer, replies)


if __name__ == "__main__":
    _main()
