"""Write, check and describe a release of the official size: `python benchmarks/release.py [--products N] [DIR]`.

Made-up rows stream through the release's own writer, card, manifest and validate, each step timed with its peak memory.
"""

from __future__ import annotations

import argparse
import hashlib
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from builder.recipe import EsciSettings, Recipe, ReleaseSettings
from builder.release import card, manifest
from builder.release.files import write_shards
from builder.validate import validate
from sqid_lib import schemas

RECIPE = Recipe(
    name="made-up", version="1.0.0", esci=EsciSettings(path="/made/up"), release=ReleaseSettings(classic_files=False)
)
BLOCK = 4_096
COUNTS = schemas.PUBLISHED_COUNTS


def blocks(rows: int) -> Iterator[tuple[int, int]]:
    for start in range(0, rows, BLOCK):
        yield start, min(BLOCK, rows - start)


def products(prefix: str, rows: int, config: str) -> Iterator[pa.Table]:
    """Products in the columns of a config, 1 in 20 without an image."""
    schema = schemas.config_schema(config)
    for start, count in blocks(rows):
        rng = np.random.default_rng(start)
        there = np.arange(start, start + count) % 20 != 0
        ids = [f"{prefix}{i:08d}" for i in range(start, start + count)]
        words = np.array([hashlib.md5(str(i).encode()).hexdigest()[:6] for i in range(2_000)])
        columns: dict[str, Any] = {
            "product_id": ids,
            "product_locale": ["us"] * count,
            "image_url": [f"https://images.example/{i}.jpg" if t else None for i, t in zip(ids, there, strict=True)],
            "image_status": np.where(there, schemas.OK, schemas.MISSING),
            "has_image": there,
        }
        for name, length in zip(schemas.TEXT_COLUMNS, (15, 80, 100, 1, 1), strict=True):
            seeded = np.random.default_rng(start + length)
            columns[name] = [" ".join(line) for line in words[seeded.integers(0, 2_000, size=(count, length))]]
        if config == schemas.FEATURES:
            for name in schemas.VECTOR_COLUMNS:
                columns[name] = vectors(rng, count)
            image = columns["clip_image_features"].flatten().to_numpy(zero_copy_only=False).reshape(count, -1).copy()
            image[~there] = 0
            columns["clip_image_features"] = pa.FixedSizeListArray.from_arrays(image.ravel(), image.shape[1])
        yield pa.table({name: columns[name] for name in schema.names}, schema=schema)


def vectors(rng: np.random.Generator, count: int) -> pa.Array:
    values = (rng.standard_normal((count, schemas.PUBLISHED_WIDTH), dtype=np.float32) * np.float32(0.5)).ravel()
    return pa.FixedSizeListArray.from_arrays(values, schemas.PUBLISHED_WIDTH)


def queries(rows: int) -> Iterator[pa.Table]:
    for start, count in blocks(rows):
        ids = np.arange(start, start + count)
        text = [f"query {i}" for i in ids]
        columns = [ids, text, ["other"] * count, vectors(np.random.default_rng(start), count)]
        yield pa.table(columns, schema=schemas.config_schema(schemas.QUERIES))


def judgments(rows: int, queries: int, products: int) -> pa.Table:
    """Every query and every product is judged; the rest as it comes."""
    pairs = np.unique(np.stack([np.arange(rows) * queries // rows, np.arange(rows) % products], axis=1), axis=0)
    label = np.array(list(schemas.LABELS))[np.arange(len(pairs)) % 4]
    columns = [
        np.arange(len(pairs)),
        pairs[:, 0],
        [f"query {q}" for q in pairs[:, 0]],
        [f"B0{p:08d}" for p in pairs[:, 1]],
        ["us"] * len(pairs),
        label,
        pa.array([schemas.GAINS[name] for name in label], pa.float32()),
    ]
    return pa.table(columns, schema=schemas.config_schema(schemas.JUDGMENTS))


def timed(what: str, call: Callable[[], Any]) -> Any:
    clock, cpu = time.perf_counter(), time.process_time()
    result = call()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    clock, cpu = time.perf_counter() - clock, time.process_time() - cpu
    print(f"| {what} | {clock:.1f} s | {cpu:.1f} s | {peak:,.0f} MB |", flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--products", type=int, default=COUNTS["products"])
    parser.add_argument("release", nargs="?", type=Path, help="where to write; default a temporary directory")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        run(args.release or Path(scratch, "release"), args.products)


def run(root: Path, count: int) -> None:
    asked = max(1, COUNTS["queries"] * count // COUNTS["products"])
    judged = judgments(max(count, COUNTS["judgments"] * count // COUNTS["products"]), asked, count)
    supp = COUNTS["supp"] * count // COUNTS["products"]

    def write(config: str, split: str, tables: Iterator[pa.Table], rows: int) -> None:
        write_shards(root, config, split, tables, schemas.config_schema(config), rows=rows)

    print("| step | clock | CPU | peak memory so far |\n|---|---:|---:|---:|")
    timed("write urls", lambda: write(schemas.URLS, "test", products("B0", count, schemas.URLS), count))
    timed(
        "write product_features",
        lambda: write(schemas.FEATURES, "test", products("B0", count, schemas.FEATURES), count),
    )
    timed("write query_features", lambda: write(schemas.QUERIES, "test", queries(asked), asked))
    timed("write supp", lambda: write(schemas.SUPP, schemas.SUPP_SPLIT, products("B1", supp, schemas.SUPP), supp))
    timed("write judgments", lambda: write(schemas.JUDGMENTS, "test", iter([judged]), judged.num_rows))
    timed("card", lambda: card.write_card(root, RECIPE, revision=None))
    timed("manifest and sums", lambda: manifest.write(root, RECIPE, revision=None))
    problems = timed("validate", lambda: validate(root))
    files = [path for path in root.rglob("*") if path.is_file()]
    total = sum(path.stat().st_size for path in files) / 1e6
    print(f"\n{len(files)} files, {total:,.0f} MB, {len(problems)} problems {problems[:3]}")


if __name__ == "__main__":
    main()
