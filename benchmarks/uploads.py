"""How much of a release is uploaded again after a few rows changed: `python benchmarks/uploads.py [--rows N]`.

Writes product_features and urls twice with the release's own writer, before and after a change, and uploads both to an
empty local store with hf_xet, the client of the Hub's uploads: what it reports as new in the second upload is what
would be sent, before its own compression. Measured for comparison: the same rows with zstd alone.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from builder.release import files
from sqid_lib import schemas
from sqid_lib.files import shard_name

Array = np.ndarray[Any, np.dtype[Any]]

WIDTH = schemas.PUBLISHED_WIDTH
TOUCHED = 50


def sent(old: Path, new: Path, store: Path) -> tuple[int, int]:
    """Bytes that the genuine Xet client finds new in `new` after it uploaded `old`, and all bytes of `new`."""
    import hf_xet  # type: ignore[import-untyped]

    again = total = 0
    for folder in (old, new):
        again = total = 0
        with hf_xet.XetSession().new_upload_commit(endpoint=f"local://{store}") as commit:
            files = [
                commit.start_upload_file(str(path), sha256=hf_xet.COMPUTE_SHA256)
                for path in sorted(folder.rglob("*.parquet"))
            ]
        for file in files:
            metrics = file.result().dedup_metrics
            again += metrics.new_bytes
            total += metrics.total_bytes
    return again, total


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


def with_other_images(table: pa.Table, rows: Array) -> pa.Table:
    """The same products, `rows` of them with another image URL and image vector."""
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
        files.write_shards(root, config, "test", [table.select(schema.names)], schema, rows=table.num_rows)


def write_plain(root: Path, table: pa.Table) -> None:
    """The same columns and row groups with zstd alone."""
    for config in (schemas.URLS, schemas.FEATURES):
        path = root / shard_name(config, "test", 0, 1)
        path.parent.mkdir(parents=True)
        names = schemas.config_schema(config).names
        size = files.VECTOR_GROUP_ROWS if config == schemas.FEATURES else files.TEXT_GROUP_ROWS
        pq.write_table(table.select(names), path, compression="zstd", row_group_size=size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000, help="products before the change")
    rows: int = parser.parse_args().rows
    every = shop(rows + TOUCHED)
    some = np.sort(np.random.default_rng(2).choice(rows + TOUCHED, TOUCHED, replace=False))
    before = every.take(pa.array(np.setdiff1d(np.arange(rows + TOUCHED), some)))
    versions = {
        f"{TOUCHED} other images": with_other_images(before, some[some < rows]),
        f"{TOUCHED} new products": every,
        "nothing": before,
    }
    writers: dict[str, Callable[[Path, pa.Table], None]] = {"release": write_released, "zstd alone": write_plain}
    print("| change | writer | all files, MB | sent again, MB | share |\n|---|---|---:|---:|---:|")
    for change, after in versions.items():
        for name, write in writers.items():
            with tempfile.TemporaryDirectory() as scratch:
                old, new, store = (Path(scratch, name) for name in ("old", "new", "store"))
                write(old, before)
                write(new, after)
                again, total = sent(old, new, store)
            print(f"| {change} | {name} | {total / 1e6:.1f} | {again / 1e6:.2f} | {again / total:.1%} |", flush=True)


if __name__ == "__main__":
    main()
