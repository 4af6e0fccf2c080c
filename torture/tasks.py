"""What children do beside `sqid`: read a release in every way there is, and say in one line what they read."""

from __future__ import annotations

import faulthandler
import hashlib
import inspect
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from sqid_lib.errors import SqidError

_ANSWER = "answer: "


def answer(text: str) -> str:
    """What a task found, of all that its child printed."""
    return next((line for line in text.splitlines() if line.startswith(_ANSWER)), "")


def read_store(release: str, cache: str) -> int:
    """All vectors, keys and batches of the store of a release."""
    from sqid_lib import EmbeddingStore

    def read() -> Iterable[object]:
        options = {"verify": True} if "verify" in inspect.signature(EmbeddingStore.open).parameters else {}
        store = EmbeddingStore.open(release, cache_dir=cache, progress=False, **options)  # type: ignore[arg-type]
        for batch in store.pairs(batch_size=16, shuffle=True, seed=3, format="numpy"):
            yield from (value.tobytes() for _, value in sorted(vars(batch).items()) if hasattr(value, "tobytes"))
        yield from (store.queries.to_pylist(), store.products.to_pylist())

    return _say(read)


def read_dataset(release: str, esci: str, cache: str) -> int:
    """All rows of a config as `sqid.load` joins them."""
    import sqid

    def read() -> Iterable[object]:
        loaded = sqid.load("product_features", "test", esci=esci, artifacts=release, cache_dir=cache)
        yield from (dict(row) for row in loaded)

    return _say(read)


def read_with_killed_worker(release: str, method: str, after: int) -> int:
    """An epoch of a DataLoader of two workers, one of which is killed after some batches; 0 says all rows came."""
    from torch.utils.data import DataLoader

    from sqid_lib.streams.open import stream_pairs

    faulthandler.dump_traceback_later(90)  # shows where it hangs before the harness ends it
    stream = stream_pairs(release, batch_size=4, shuffle=True, seed=1)
    loader: Any = DataLoader(stream, batch_size=None, num_workers=2, multiprocessing_context=method)  # type: ignore[arg-type]
    rows, batches = 0, iter(loader)
    try:
        for number, batch in enumerate(batches):
            rows += len(batch.gain)
            if number == after:
                os.kill(batches._workers[0].pid, signal.SIGKILL)
    except (RuntimeError, OSError, EOFError, SqidError) as error:  # whatever it is, not a short epoch
        sys.stdout.write(f"\n{_ANSWER}raised {type(error).__name__}\n")
        return 1
    sys.stdout.write(f"\n{_ANSWER}{rows} rows\n")
    return 0


def peak(arguments: list[str]) -> int:
    """The command `sqid`; then prints the most memory that it had."""
    from builder.cli import main

    code = main(arguments)
    sys.stdout.write(f"peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MiB\n")
    return code


def _say(read: Callable[[], Iterable[object]]) -> int:
    digest = hashlib.sha256()
    try:
        for part in read():
            digest.update(part if isinstance(part, bytes) else repr(part).encode())
    except SqidError as error:
        sys.stdout.write(f"{type(error).__name__}: {error}\n")
        return 1
    sys.stdout.write(f"\n{_ANSWER}{digest.hexdigest()}\n")
    return 0


def count_rows(release: str) -> int:
    """Rows of the pairs of a release, for comparison."""
    import pyarrow.parquet as pq

    return sum(pq.read_metadata(path).num_rows for path in Path(release, "data", "judgments").glob("*.parquet"))
