"""Outcomes and their images on an object store while a partition is not finished: log-00000.parquet …"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from builder.fetch.ledger import Ledger, Outcome
from sqid_lib.files import numbered_name
from sqid_lib.object_store import ObjectStore

_LOG_BYTES = 64 << 20  # of images in one log
_LOG_SECONDS = 30.0
_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("url", "status")),
        *((name, pa.int64()) for name in ("http_status", "bytes")),
        ("sha256", pa.string()),
        *((name, pa.int64()) for name in ("width", "height")),
        *((name, pa.string()) for name in ("detail", "rules")),
        ("image", pa.binary()),
    ]
)


def log_name(number: int) -> str:
    """The name of a log in the folder of its partition."""
    return numbered_name("log", number)


def read_logs(
    store: ObjectStore, folder: str, logs: int, *, images: bool = True
) -> Iterator[tuple[list[Outcome], list[bytes | None]]]:
    """The outcomes in each of the first `logs` logs of a folder, and their images, or none of them.

    A log that is lost or damaged is left out: its URLs are requested again.
    """
    columns = _SCHEMA.names if images else [*Outcome._fields]
    for number in range(logs):
        data = store.read(f"{folder}/{log_name(number)}")
        with contextlib.suppress(pa.ArrowException, OSError):
            log = pq.read_table(pa.BufferReader(data or b""), columns=columns)
            rows = zip(*(log[name].to_pylist() for name in Outcome._fields), strict=True)
            yield [Outcome(*row) for row in rows], log["image"].to_pylist() if images else [None] * log.num_rows


class OutcomeLog:
    """Outcomes and their images as they are recorded, stored while the next ones are downloaded.

    Args:
        folder: of the partition on the store.
        logs: how many are there.
        count: called with their number after each one is stored.
    """

    def __init__(self, store: ObjectStore, folder: str, logs: int, count: Callable[[int], None]) -> None:
        self._store, self._folder, self._logs, self._count = store, folder, logs, count
        self._waiting: list[tuple[Any, ...]] = []
        self._bytes, self._since = 0, time.monotonic()
        self._thread = ThreadPoolExecutor(1)
        self._storing: Future[None] | None = None

    def add(self, ledger: Ledger, results: Sequence[tuple[Outcome, int | None]]) -> None:
        """Take in outcomes that the ledger has just recorded; waits for a store that is slower than the downloads."""
        for outcome, offset in results:
            image = None
            if offset is not None and outcome.bytes:
                image = os.pread(ledger.spool, outcome.bytes, offset)
                self._bytes += len(image)
            self._waiting.append((*outcome, image))
        if self._bytes >= _LOG_BYTES or time.monotonic() >= self._since + _LOG_SECONDS:
            self._begin()

    def _begin(self) -> None:
        if self._storing is not None:
            self._storing.result()
        rows, self._waiting = self._waiting, []
        self._bytes, self._since = 0, time.monotonic()
        if rows:
            self._storing = self._thread.submit(self._write, rows)

    def _write(self, rows: list[tuple[Any, ...]]) -> None:
        columns = dict(zip(_SCHEMA.names, zip(*rows, strict=True), strict=True))
        sink = pa.BufferOutputStream()
        table = pa.table({name: list(values) for name, values in columns.items()}, schema=_SCHEMA)
        pq.write_table(table, sink, compression="none", use_dictionary=False)
        self._store.write(f"{self._folder}/{log_name(self._logs)}", sink.getvalue())
        self._logs += 1
        self._count(self._logs)

    def close(self) -> int:
        """Store what is left; how many logs there are then."""
        try:
            self._begin()
            if self._storing is not None:
                self._storing.result()
        finally:
            self._thread.shutdown()
        return self._logs
