"""Decoding untrusted images in processes of their own: an image that kills its decoder costs one image, not the run."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from builder.engines import import_path
from builder.fetch import decoder
from builder.fetch.ledger import Ledger
from sqid_lib import schemas
from sqid_lib.errors import StageError, write_error
from sqid_lib.images import ImageError, check_format

_IMAGES, _BYTES = 32, 1 << 20  # most images of a request, and bytes after which it takes no further one
_REQUESTS = 2  # that a process has at once, so that it does not wait for the next one
_REPLY = 1 << 20  # most bytes of one
_LIBRARY_PATHS = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH")


class Checked(NamedTuple):
    """An image that was decoded: hash, offset in the spool, size in pixels; or status and detail of its refusal.

    Only a truncated image that was kept has all of them.
    """

    status: str
    sha256: str | None = None
    offset: int | None = None
    width: int | None = None
    height: int | None = None
    detail: str | None = None


@dataclass(eq=False, slots=True)
class _Image:
    """An image in the spool that is to be checked; `suspect` if the process ended that had it before."""

    offset: int
    length: int
    checked: asyncio.Future[Checked]
    suspect: bool = False


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
        self._waiting: deque[_Image] = deque()
        self._suspects: deque[_Image] = deque()
        self._more = asyncio.Event()
        self._workers: list[asyncio.Task[None]] = []
        self.running: set[asyncio.subprocess.Process] = set()
        self._starting: set[asyncio.Task[asyncio.subprocess.Process]] = set()

    async def __aenter__(self) -> Self:
        self._workers = [asyncio.create_task(self._work()) for _ in range(self.processes)]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, *self._starting, return_exceptions=True)
        for process in list(self.running):
            await self._end(process)

    def check(self, data: bytes) -> asyncio.Future[Checked]:
        """Write an image to the spool, and have it decoded wholly in one of the processes.

        Raises, at once or when it is awaited:
            DiskError: the spool cannot be written or read. Nothing is raised because of what the bytes are.
            StageError: the processes do not start, or lose their pipe.
        """
        checked = asyncio.get_running_loop().create_future()
        try:
            check_format(data)
        except ImageError as error:  # pages of a server, mostly: they would fill the spool
            checked.set_result(Checked(error.status, detail=error.detail))
            return checked
        self._waiting.append(_Image(self._ledger.write(data), len(data), checked))
        self._more.set()
        return checked

    async def _work(self) -> None:
        """Give what waits to a process, and to another one when that has ended."""
        process, asked = None, deque[list[_Image]]()
        while True:
            if not asked:
                await self._more.wait()
            try:
                images = self._next(asked)
                if images:
                    asked.append(images)
                    process = process or await self._started()
                    _ask(process, images)
                elif asked:
                    assert process is not None
                    process = await self._receive(process, asked)
            except Exception as error:
                process = None
                for image in chain.from_iterable(asked):
                    if not image.checked.done():  # else cancelled
                        image.checked.set_exception(error)
                asked.clear()
            except asyncio.CancelledError:
                if process and asked:
                    process.kill()  # cancelled before its reply; it is waited for when the pool ends
                raise

    def _next(self, asked: Sequence[list[_Image]]) -> list[_Image]:
        """The images of the next request to a process that has not answered those in `asked`: its share of what waits.

        Of small images these are several, as a request each would cost more than to decode them.
        """
        images, size = list[_Image](), 0
        if self._suspects and not asked:
            images.append(self._suspects.popleft())
        elif not self._suspects and len(asked) < _REQUESTS and not (asked and asked[0][0].suspect):
            share = min(_IMAGES, -(-len(self._waiting) // self.processes))
            while len(images) < share and size < _BYTES:
                images.append(self._waiting.popleft())
                size += images[-1].length
        if not self._waiting and not self._suspects:
            self._more.clear()
        return [image for image in images if not image.checked.done()]  # the others are cancelled

    async def _receive(
        self, process: asyncio.subprocess.Process, asked: deque[list[_Image]]
    ) -> asyncio.subprocess.Process | None:
        """Take the next reply; returns the process if it still runs."""
        assert process.stdout is not None
        try:
            async with asyncio.timeout(decoder.SECONDS + 5):  # it ends itself before, unless it was stopped
                replies = json.loads(await process.stdout.readuntil(b"\n"))
        except (asyncio.IncompleteReadError, BrokenPipeError, ConnectionResetError, TimeoutError) as error:
            code = await self._end(process)
            if code == 0 and not isinstance(
                error, TimeoutError
            ):  # it read the end of its requests: our pipe broke, and the images have no part in it
                raise StageError(
                    "a decoder process lost its pipe", got=str(error), fix="Run the build again; finished work is kept."
                ) from error
            self._ended(list(chain.from_iterable(asked)), _reason(code, error))
            asked.clear()
            return None
        for image, reply in zip(asked.popleft(), replies, strict=True):
            if not image.checked.done():  # else cancelled
                self._settle(image, reply)
        return process

    def _settle(self, image: _Image, reply: dict[str, Any]) -> None:
        if "errno" not in reply:
            offset = image.offset if reply["status"] == schemas.OK else None
            image.checked.set_result(Checked(**reply, offset=offset))
            return
        error = OSError(reply["errno"], os.strerror(reply["errno"]))
        image.checked.set_exception(write_error(error, self._ledger.spool_path, doing="read"))

    def _ended(self, images: Sequence[_Image], reason: str) -> None:
        """A process ended on one of the images, or was killed from outside: each is tried once more, on its own."""
        for image in images:
            if image.checked.done():  # cancelled
                continue
            if image.suspect:
                detail = f"the decoder ended on this image ({reason})"
                image.checked.set_result(Checked("corrupt", detail=detail))
            else:
                image.suspect = True
                self._suspects.append(image)
                self._more.set()

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
                *("-P", decoder.__file__, str(self._ledger.spool), str(self._max_pixels)),
                "keep" if self._keep_truncated else "refuse",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=_REPLY,
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


def _ask(process: asyncio.subprocess.Process, images: Sequence[_Image]) -> None:
    assert process.stdin is not None
    places = b"".join(decoder.IMAGE.pack(image.offset, image.length) for image in images)
    process.stdin.write(decoder.COUNT.pack(len(images)) + places)  # a few hundred bytes: no need to wait


def environment() -> dict[str, str]:
    """What a decoder process needs to find its packages, and nothing else: no token, no proxy's password."""
    found = {name: os.environ[name] for name in _LIBRARY_PATHS if name in os.environ}
    return found | {"PYTHONPATH": import_path()}


def cpus() -> int:
    """The CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _reason(code: int | None, error: BaseException) -> str:
    if code == -signal.SIGALRM:
        return f"not done after {decoder.SECONDS} s"
    if code is not None and code < 0:
        return signal.Signals(-code).name
    return f"exit status {code}" if code is not None else str(error)
