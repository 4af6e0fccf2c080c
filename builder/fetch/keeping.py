"""The process that hashes and writes what was downloaded: in a thread it would slow the event loop down by half.

It alone has the ledger open while it runs. It ends with its input, so after the death of the build too, and records
the batch at hand first; until then a new build waits for the ledger's lock.
"""

from __future__ import annotations

import json
import mmap
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from builder.fetch.ledger import Ledger, Outcome
from sqid_lib.errors import SqidError


def serve(folder: Path, requests: BinaryIO, replies: BinaryIO) -> None:
    """Record batches until the input ends.

    A request is a line of JSON: the descriptor of memory where pictures lie one after the other, and for each result
    its outcome's fields and the picture's length or null. A reply is a line of JSON: null, or a class of
    `sqid_lib.errors` and its arguments, after which nothing follows. The first reply says that the ledger is open.
    """
    memory: dict[int, memoryview] = {}
    try:
        with Ledger(folder) as ledger:
            _say(replies, None)
            for line in requests:
                if line.endswith(b"\n"):  # else the build was killed while it spoke
                    descriptor, rows = json.loads(line)
                    if descriptor not in memory:
                        memory[descriptor] = memoryview(mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ))
                    ledger.record(list(_results(memory[descriptor], rows)))
                    _say(replies, None)
    except SqidError as error:
        texts = (v if v is None else str(v) for v in (error.where, error.expected, error.got, error.fix))
        _say(replies, [type(error).__name__, error.what, *texts])


def _results(memory: memoryview, rows: list[list[Any]]) -> Iterator[tuple[Outcome, memoryview | None]]:
    start = 0
    for *fields, length in rows:
        end = start + (length or 0)
        yield Outcome(*fields), None if length is None else memory[start:end]
        start = end


def _say(replies: BinaryIO, message: Any) -> None:
    replies.write(json.dumps(message).encode() + b"\n")
    replies.flush()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which then closes the pipe
    serve(Path(sys.argv[1]), sys.stdin.buffer, sys.stdout.buffer)
