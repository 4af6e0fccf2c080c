"""What the checksums of WORK cost of a build: `python benchmarks/checks.py RECIPE --work WORK [--set key=value]`.

Builds in this process and adds up the time in which files of WORK are read for their checksums, when they are written
and before they are used; then reads every stored image once for its sha256, as embed does. Prints both as shares of the
build, and the bytes, from which the cost of other sizes follows. WORK should be new.
"""

from __future__ import annotations

import argparse
import hashlib
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from builder import pipeline, stamps
from builder.recipe import load


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--set", action="append", default=[], metavar="key=value")
    args = parser.parse_args()
    spent, read, checksum = 0.0, 0, vars(stamps)["checksum"]

    def timed(path: Path) -> Any:
        nonlocal spent, read
        start = time.perf_counter()
        found = checksum(path)
        spent += time.perf_counter() - start
        read += path.stat().st_size
        return found

    vars(stamps)["checksum"] = timed
    start = time.perf_counter()
    pipeline.build(load(args.recipe, args.set), args.work)
    whole = time.perf_counter() - start
    start, images = time.perf_counter(), 0
    for path in sorted((args.work / "fetch").glob("images-*.parquet")):
        with pq.ParquetFile(path) as parquet:
            for batch in parquet.iter_batches(1_000, columns=["image"]):
                for image in batch.column(0):
                    content = image.as_buffer()
                    hashlib.sha256(content).digest()
                    images += content.size
    hashed = time.perf_counter() - start
    print(f"build {whole:.1f} s")
    print(f"checksums of files: {spent:.2f} s, {spent / whole:.2%} of the build; {read / 1e6:,.0f} MB read")
    print(f"images read and hashed: {hashed:.2f} s, {hashed / whole:.2%} of the build; {images / 1e6:,.0f} MB")


if __name__ == "__main__":
    main()
