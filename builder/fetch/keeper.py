"""Hands results to the process that keeps them, some at a time, while the event loop goes on downloading."""

from __future__ import annotations

import asyncio
import contextlib
import json
import mmap
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self, cast

from builder.fetch.decoders import environment
from builder.fetch.ledger import Outcome
from sqid_lib import errors

_BATCH = 8  # results worth a message; fewer wait
_PATIENCE = 0.005  # seconds that they wait
_ROOM = 8 << 20  # bytes of pictures in a batch, at least


@dataclass
class _Batch:
    """Results on their way. Their pictures lie one after the other in memory that both processes see."""

    descriptor: int
    memory: mmap.mmap
    rows: list[tuple[Any, ...]] = field(default_factory=list)
    done: list[asyncio.Future[None]] = field(default_factory=list)
    size: int = 0


class Keeper:
    """Results that arrive while one transaction is written go together into the next. An async context manager.

    Args:
        folder: of the ledger, which nobody else may have open.
        largest: bytes of the largest picture.
    """

    def __init__(self, folder: Path, largest: int) -> None:
        self._folder = folder
        self._room = max(largest, _ROOM)
        self._problem: errors.SqidError | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._heard = b""
        self._busy = True  # with opening the ledger

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._gathered, self._sent = (_Batch(*_memory(self._room)) for _ in range(2))
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-m", "builder.fetch.keeping", str(self._folder)],  # -S: a third of the start
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=(self._gathered.descriptor, self._sent.descriptor),
            env=environment(),
        )
        self._requests = cast(BinaryIO, self._process.stdin)
        self._replies = cast(BinaryIO, self._process.stdout)
        self._loop.add_reader(self._replies, self._hear)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.remove_reader(self._replies)
        if self._timer:
            self._timer.cancel()
        if self._gathered.rows:  # of tasks that were cancelled
            self._send()
        with contextlib.suppress(BrokenPipeError):
            self._requests.close()
        self._process.wait()
        self._replies.close()
        for batch in (self._gathered, self._sent):
            batch.memory.close()
            os.close(batch.descriptor)

    async def keep(self, outcome: Outcome, picture: bytes | None) -> None:
        """Returns when the result is committed.

        Raises:
            DiskError: no space left.
            CorruptFileError: the ledger cannot be opened.
            StageError: the process ended.
        """
        length = 0 if picture is None else len(picture)
        while self._gathered.size + length > self._room:
            await asyncio.wait(self._gathered.done)
        if self._problem:
            raise self._problem
        batch, done = self._gathered, self._loop.create_future()
        if picture is not None:
            batch.memory[batch.size : batch.size + length] = picture
            batch.size += length
        batch.rows.append((*outcome, None if picture is None else length))
        batch.done.append(done)
        self._send_soon()
        await done

    def _send_soon(self) -> None:
        if self._busy:
            return  # the reply calls again
        if len(self._gathered.rows) >= _BATCH:
            self._send()
        elif self._timer is None and self._gathered.rows:
            self._timer = self._loop.call_later(_PATIENCE, self._waited)

    def _waited(self) -> None:
        self._timer = None
        if self._gathered.rows and not self._busy:
            self._send()

    def _send(self) -> None:
        self._sent, self._gathered = self._gathered, _Batch(self._sent.descriptor, self._sent.memory)
        self._busy = True
        with contextlib.suppress(BrokenPipeError):  # _hear tells why
            self._requests.write(json.dumps([self._sent.descriptor, self._sent.rows]).encode() + b"\n")
            self._requests.flush()

    def _hear(self) -> None:
        heard = os.read(self._replies.fileno(), 1 << 16)
        self._heard += heard
        if heard and not self._heard.endswith(b"\n"):
            return
        reply, self._heard = self._heard, b""
        if reply == b"null\n":
            self._settle(self._sent.done)
            self._busy = False
            self._send_soon()
        else:
            self._loop.remove_reader(self._replies)
            self._problem = self._told(reply)
            self._settle([*self._sent.done, *self._gathered.done])

    def _told(self, reply: bytes) -> errors.SqidError:
        if not reply.endswith(b"\n"):
            code = self._process.wait()
            return errors.StageError(
                "the process that keeps pictures ended",
                where=self._folder,
                got=signal.Signals(-code).name if code < 0 else f"exit status {code}",
                fix="Run the build again; what is done is kept.",
            )
        name, what, where, expected, got, fix = json.loads(reply)
        error: errors.SqidError = getattr(errors, name)(what, where=where, expected=expected, got=got, fix=fix)
        return error

    def _settle(self, futures: list[asyncio.Future[None]]) -> None:
        for future in futures:
            if future.done():  # cancelled
                continue
            if self._problem is None:
                future.set_result(None)
            else:
                future.set_exception(self._problem)


def _memory(size: int) -> tuple[int, mmap.mmap]:
    """Memory to share with another process, and its descriptor."""
    if hasattr(os, "memfd_create"):  # Linux
        descriptor = os.memfd_create("pictures")
        os.ftruncate(descriptor, size)
    else:
        with tempfile.TemporaryFile() as file:
            file.write(bytes(size))  # a hole that the disk cannot fill later would be fatal
            file.flush()
            descriptor = os.dup(file.fileno())
    return descriptor, mmap.mmap(descriptor, size)
