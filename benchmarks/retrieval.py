"""Exact retrieval against the bare matrix product of the same blocks: `python benchmarks/retrieval.py [--quick]`.

    python benchmarks/retrieval.py [--quick] [--backend numpy] [--rounds 3]
    python benchmarks/retrieval.py --memory 1_000_000_000 --products 2_000_000 --queries 512 --width 512 --dtype float16

Each round times both, one after the other, on made-up vectors that lie in a file. With --memory there is no product to
compare with: the process may allocate that many bytes at most, files that are mapped not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sqid_lib import schemas
from sqid_lib.evaluation import nearest
from sqid_lib.evaluation.clip import StoreVectors
from sqid_lib.evaluation.cosine import unit
from sqid_lib.evaluation.search import Search

Array = np.ndarray[Any, Any]
_BLOCK = 8_192


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="60,000 products, 4,096 queries")
    parser.add_argument("--products", type=int, default=schemas.PUBLISHED_COUNTS["products"])
    parser.add_argument("--queries", type=int, default=schemas.PUBLISHED_COUNTS["queries"])
    parser.add_argument("--width", type=int, default=schemas.PUBLISHED_WIDTH)
    parser.add_argument("--dtype", choices=("float32", "float16"), default="float32")
    parser.add_argument("--top", type=int, default=100)
    parser.add_argument("--backend", choices=("torch", "numpy"), default="torch")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", type=int, metavar="BYTES", help="search once, with at most so much memory")
    args = parser.parse_args()
    if args.quick:
        args.products, args.queries = 60_000, 4_096
    with tempfile.TemporaryDirectory() as folder:
        vectors = draw(Path(folder) / "vectors", args.products, args.width, args.dtype)
        queries = unit(np.random.default_rng(1).standard_normal((args.queries, args.width), np.float32))
        products = StoreVectors(vectors, vectors, np.ones(len(vectors), np.bool_), 1.0)
        search, backend = Search(np.arange(len(queries)), queries, products), nearest.find_backend(args.backend)
        rows = np.arange(len(vectors))
        print(f"{args.products:,} products, {args.queries:,} queries, D = {args.width}, {args.dtype}, {args.backend}")

        def retrieve() -> object:
            return nearest.search_top(search, rows, args.top, backend)

        if args.memory:
            within(args.memory, retrieve, vectors.nbytes)
        else:
            compare(args.rounds, retrieve, lambda: bare(vectors, queries, args.backend))


def draw(path: Path, rows: int, width: int, dtype: str) -> Array:
    """Random vectors in a file, mapped."""
    rng = np.random.default_rng(0)
    with path.open("wb") as file:
        for start in range(0, rows, _BLOCK):
            block = rng.standard_normal((min(_BLOCK, rows - start), width), np.float32)
            file.write(block.astype(dtype).data)
    return np.asarray(np.memmap(path, dtype, "r")).reshape(-1, width)


def bare(vectors: Array, queries: Array, backend: str) -> None:
    """The matrix product of the blocks that retrieval reads, and nothing else."""
    import torch

    for start in range(0, len(vectors), nearest._PRODUCTS):
        block = np.asarray(vectors[start : start + nearest._PRODUCTS], np.float32)
        block = block.copy() if not block.flags.writeable else block
        for q in range(0, len(queries), nearest._QUERIES):
            some = queries[q : q + nearest._QUERIES]
            if backend == "numpy":
                some @ block.T
            else:
                torch.from_numpy(some) @ torch.from_numpy(block).T


def compare(rounds: int, retrieve: Callable[[], object], product: Callable[[], object]) -> None:
    clocks, cpus = [], []
    for number in range(rounds):
        (bare_clock, bare_cpu), (clock, cpu) = timed(product), timed(retrieve)
        clocks.append(clock / bare_clock)
        cpus.append(cpu / bare_cpu)
        print(
            f"round {number + 1}: product {bare_clock:.2f} s ({bare_cpu:.2f} s of CPU), retrieval {clock:.2f} s "
            f"({cpu:.2f} s of CPU), ratio {clocks[-1]:.2f} ({cpus[-1]:.2f} of CPU)",
            flush=True,
        )
    note = f"by CPU seconds {statistics.median(cpus):.2f}"
    stated = {"ratio": statistics.median(clocks), "low": min(clocks), "high": max(clocks), "load": os.getloadavg()[0]}
    print(json.dumps({"goal": "retrieval", **stated, "note": note}), flush=True)


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds by the clock and of the CPU."""
    start, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start, time.process_time() - cpu


def within(limit: int, retrieve: Callable[[], object], size: int) -> None:
    """Search with a limit of what may be allocated; states the peak of resident memory that is not a mapped file."""
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    peak, ended = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not ended.wait(0.02):
            peak = max(peak, allocated())

    before = allocated()
    thread = threading.Thread(target=watch)
    thread.start()
    clock, cpu = timed(retrieve)
    ended.set()
    thread.join()
    print(
        f"searched {size / 1e9:.2f} GB of vectors in {clock:.1f} s ({cpu:.1f} s of CPU), limit {limit / 1e9:.2f} GB: "
        f"peak {peak / 1e6:.0f} MB, of which {before / 1e6:.0f} MB before it began"
    )


def allocated() -> int:
    """Resident bytes of this process that are not of mapped files."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("RssAnon"))
    return int(line.split()[1]) * 1_024


if __name__ == "__main__":
    main()
