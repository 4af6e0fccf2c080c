"""How much of a release has to be uploaded again when a few rows change: `python benchmarks/growth.py [--rows N]`.

Writes product_features and urls twice with the release's own writer, before and after a change, and cuts all files
into chunks as Xet does (Gear hash, 8 to 128 KiB, 64 KiB on average; another random Gear table). What counts as sent are
the chunks of the new files that the old files do not have. The same rows with zstd alone stand beside it.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from builder import parquet
from sqid_lib import schemas

Array = np.ndarray[Any, np.dtype[Any]]

WIDTH = schemas.PUBLISHED_WIDTH
TOUCHED = 50
_MIN, _MAX = 8 << 10, 128 << 10
_MASK = np.uint64(0xFFFF_0000_0000_0000)  # 16 bits: a cut every 64 KiB on average
_GEAR = np.random.default_rng(7).integers(0, 2**64, size=256, dtype=np.uint64)
_WINDOW = 64  # bytes a 64-bit Gear hash remembers
_BLOCK = 1 << 22


def chunks(data: bytes) -> Iterator[tuple[bytes, int]]:
    """(digest, size) of each content-defined chunk."""
    view, found = np.frombuffer(data, np.uint8), [np.array([], int)]
    for start in range(0, len(view), _BLOCK):
        low = max(0, start - _WINDOW + 1)
        hashes = _GEAR[view[low : start + _BLOCK]]
        step = 1
        while step < _WINDOW:  # h[i] = gear[i] + 2 h[i-1], for 2, 4, … 64 bytes at a time
            shifted = np.zeros_like(hashes)
            shifted[step:] = hashes[:-step] << np.uint64(step)
            hashes = hashes + shifted
            step *= 2
        cuts = np.flatnonzero((hashes & _MASK) == 0) + low
        found.append(cuts[cuts >= start])
    cuts, position, memory = np.concatenate(found), 0, memoryview(data)
    while position < len(data):
        following = int(np.searchsorted(cuts, position + _MIN - 1))
        end = min(len(data), position + _MAX)
        if following < len(cuts):
            end = min(end, int(cuts[following]) + 1)
        yield hashlib.blake2b(memory[position:end], digest_size=16).digest(), end - position
        position = end


def sent(old: Path, new: Path) -> tuple[int, int]:
    """Bytes of `new` that chunks of `old` do not cover, and all bytes of `new`."""
    known = {digest for path in sorted(old.rglob("*.parquet")) for digest, _ in chunks(path.read_bytes())}
    fresh: dict[bytes, int] = {}
    total = 0
    for path in sorted(new.rglob("*.parquet")):
        total += path.stat().st_size
        fresh |= {digest: size for digest, size in chunks(path.read_bytes()) if digest not in known}
    return sum(fresh.values()), total


def shop(rows: int) -> pa.Table:
    """Made-up products with the columns of product_features and urls; 1 in 20 has no image."""
    rng = np.random.default_rng(0)
    ids = [f"B{i:09d}" for i in range(rows)]
    vectors = (rng.normal(size=(2, rows, WIDTH)) * 0.5).astype(np.float32)
    has_image = np.arange(rows) % 20 != 0
    vectors[1][~has_image] = 0
    words = np.array([hashlib.md5(str(i).encode()).hexdigest()[:6] for i in range(5_000)])
    urls = [f"https://m.media-amazon.com/images/I/{hashlib.md5(i.encode()).hexdigest()[:11]}.jpg" for i in ids]

    def text(length: int) -> list[str]:
        return [" ".join(line) for line in words[rng.integers(0, len(words), size=(rows, length))]]

    columns: dict[str, Any] = {
        "product_id": ids,
        "product_locale": ["us"] * rows,
        "image_url": [u if seen else None for u, seen in zip(urls, has_image, strict=True)],
        "image_status": np.where(has_image, schemas.OK, schemas.MISSING),
        "has_image": has_image,
        "product_title": text(15),
        "product_description": text(60),
        "product_bullet_point": text(80),
        "product_brand": text(1),
        "product_color": text(1),
        **{name: _lists(vectors[i]) for i, name in enumerate(schemas.VECTOR_COLUMNS)},
    }
    return pa.table(columns)


def with_other_pictures(table: pa.Table, rows: Array) -> pa.Table:
    """The same products, `rows` of them with another image url and image vector."""
    image = np.stack(table["clip_image_features"].to_numpy()).astype(np.float32)
    image[rows] = np.random.default_rng(1).normal(size=(len(rows), WIDTH)) * 0.5
    urls = table["image_url"].to_pylist()
    for row in rows:
        urls[int(row)] = f"https://m.media-amazon.com/images/I/new{row}.jpg"
    table = table.set_column(table.column_names.index("image_url"), "image_url", pa.array(urls))
    return table.set_column(table.column_names.index("clip_image_features"), "clip_image_features", _lists(image))


def _lists(vectors: Array) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), WIDTH)


def write_released(root: Path, table: pa.Table) -> None:
    """The two configs with the writer of a release."""
    for config in (schemas.URLS, schemas.FEATURES):
        schema = schemas.config_schema(config)
        parquet.write_shards(root, config, "test", [table.select(schema.names)], schema, rows=table.num_rows)


def write_plain(root: Path, table: pa.Table) -> None:
    """The same columns and row groups with zstd alone."""
    for config in (schemas.URLS, schemas.FEATURES):
        path = root / schemas.shard_name(config, "test", 0, 1)
        path.parent.mkdir(parents=True)
        names = schemas.config_schema(config).names
        size = parquet.VECTOR_GROUP_ROWS if config == schemas.FEATURES else parquet.TEXT_GROUP_ROWS
        pq.write_table(table.select(names), path, compression="zstd", row_group_size=size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000, help="products before the change")
    rows: int = parser.parse_args().rows
    every = shop(rows + TOUCHED)
    some = np.sort(np.random.default_rng(2).choice(rows + TOUCHED, TOUCHED, replace=False))
    before = every.take(pa.array(np.setdiff1d(np.arange(rows + TOUCHED), some)))
    versions = {
        f"{TOUCHED} other pictures": with_other_pictures(before, some[some < rows]),
        f"{TOUCHED} new products": every,
        "nothing": before,
    }
    writers: dict[str, Callable[[Path, pa.Table], None]] = {"release": write_released, "zstd alone": write_plain}
    print("| change | writer | all files, MB | sent again, MB | share |\n|---|---|---:|---:|---:|")
    for change, after in versions.items():
        for name, write in writers.items():
            with tempfile.TemporaryDirectory() as scratch:
                old, new = Path(scratch, "old"), Path(scratch, "new")
                write(old, before)
                write(new, after)
                again, total = sent(old, new)
            print(f"| {change} | {name} | {total / 1e6:.1f} | {again / 1e6:.2f} | {again / total:.1%} |", flush=True)


if __name__ == "__main__":
    main()
