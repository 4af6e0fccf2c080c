"""Write, check and convert a release of the official size: `python benchmarks/release.py [--quick] [DIR]`.

Made-up rows pass through the writer, card, manifest and validation of a release, with the time and peak memory of each.
Then, interleaved: writing vectors against pyarrow alone with the same settings; validation against hashing all files
and decoding all columns once, by as many threads; and conversion to a store against copying the store to the disk.
"""

from __future__ import annotations

import argparse
import hashlib
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from goals import state

from builder.recipe import EsciSettings, Recipe, ReleaseSettings
from builder.release import card, files, manifest
from builder.release.files import write_shards
from builder.release.statistics import gather_statistics
from builder.validate import validate
from sqid_lib import EmbeddingStore, schemas
from sqid_lib.files import sha256, sync

RECIPE = Recipe(
    name="made-up", version="1.0.0", esci=EsciSettings(path="/made/up"), release=ReleaseSettings(classic_files=False)
)
BLOCK = 4_096
WORDS = {"product_title": 15, "product_description": 80, "product_bullet_point": 100}
COUNTS = schemas.PUBLISHED_COUNTS


def blocks(rows: int) -> Iterator[tuple[int, int]]:
    for start in range(0, rows, BLOCK):
        yield start, min(BLOCK, rows - start)


def table(config: str, values: dict[str, Any], start: int) -> pa.Table:
    """Rows of a config: `values` by column, and made-up ones for all other declared columns."""
    schema, count = schemas.config_schema(config), len(values[schemas.DECLARED[config].key[0]])
    for field in schema:
        if field.name not in values:
            values[field.name] = made_up(field, start, count)
    return pa.table({name: values[name] for name in schema.names}, schema=schema)


def made_up(field: pa.Field, start: int, count: int) -> Any:
    """Values by type: vectors, texts of as many words as ESCI's have, or numbers."""
    if pa.types.is_fixed_size_list(field.type):
        return vectors(np.random.default_rng(start), count)
    if not pa.types.is_string(field.type):
        return pa.array(np.arange(start, start + count) % 2).cast(field.type)
    length = WORDS.get(field.name, 1)
    vocabulary = np.array([hashlib.md5(str(i).encode()).hexdigest()[:6] for i in range(2_000)])
    chosen = np.random.default_rng(start + length).integers(0, len(vocabulary), size=(count, length))
    return [" ".join(line) for line in vocabulary[chosen]]


def vectors(rng: np.random.Generator, count: int) -> pa.Array:
    values = (rng.standard_normal((count, schemas.PUBLISHED_WIDTH), dtype=np.float32) * np.float32(0.5)).ravel()
    return pa.FixedSizeListArray.from_arrays(values, schemas.PUBLISHED_WIDTH)


def products(prefix: str, rows: int, config: str) -> Iterator[pa.Table]:
    """Products in the columns of a config, 1 in 20 without an image."""
    for start, count in blocks(rows):
        there = np.arange(start, start + count) % 20 != 0
        ids = [f"{prefix}{i:08d}" for i in range(start, start + count)]
        image = vectors(np.random.default_rng(start + 1), count).flatten().to_numpy(zero_copy_only=False)
        image = image.reshape(count, -1) * there[:, None]
        values: dict[str, Any] = {
            "product_id": ids,
            "product_locale": ["us"] * count,
            "image_url": [f"https://images.example/{i}.jpg" if t else None for i, t in zip(ids, there, strict=True)],
            "image_status": np.where(there, schemas.OK, schemas.MISSING),
            "has_image": there,
            "clip_image_features": pa.FixedSizeListArray.from_arrays(image.ravel(), image.shape[1]),
        }
        yield table(config, values, start)


def queries(rows: int) -> Iterator[pa.Table]:
    for start, count in blocks(rows):
        ids = np.arange(start, start + count)
        yield table(schemas.QUERIES, {"query_id": ids, "query": [f"query {i}" for i in ids]}, start)


def judgments(rows: int, queries: int, products: int) -> pa.Table:
    """Every query and every product is judged; the other pairs follow from a count."""
    pairs = np.unique(np.stack([np.arange(rows) * queries // rows, np.arange(rows) % products], axis=1), axis=0)
    label = np.array(list(schemas.LABELS))[np.arange(len(pairs)) % 4]
    values = {
        "example_id": np.arange(len(pairs)),
        "query_id": pairs[:, 0],
        "query": [f"query {q}" for q in pairs[:, 0]],
        "product_id": [f"B0{p:08d}" for p in pairs[:, 1]],
        "product_locale": ["us"] * len(pairs),
        "esci_label": label,
        "gain": [schemas.GAINS[name] for name in label],
    }
    return table(schemas.JUDGMENTS, values, 0)


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
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="30,000 products and three rounds")
    parser.add_argument("release", nargs="?", type=Path, help="where to write; default a temporary directory")
    args = parser.parse_args()
    if args.quick:
        args.products, args.rounds = 30_000, 3
    with tempfile.TemporaryDirectory() as scratch:
        root = args.release or Path(scratch, "release")
        if not (root / schemas.MANIFEST).exists():
            run(root, args.products)
        else:  # the first validation imports datasets
            validate(root)
        compare("write vectors", args.rounds, *writers(Path(scratch)))
        compare("validate", args.rounds, partial(validate, root), partial(read, root), seconds=True)
        compare("store", args.rounds, *converters(root, Path(scratch)))


def compare(goal: str, rounds: int, ours: Callable[[], Any], bare: Callable[[], Any], *, seconds: bool = False) -> None:
    """State the share of the bare rate that ours reaches; with `seconds` how many times as long it takes."""
    clocks, cpus, shown = [], [], []
    for _ in range(rounds):
        times = []
        for call in (ours, bare):
            clock, cpu = time.perf_counter(), time.process_time()
            call()
            times.append((time.perf_counter() - clock, time.process_time() - cpu))
        (our_clock, our_cpu), (bare_clock, bare_cpu) = times
        clocks.append(our_clock / bare_clock if seconds else bare_clock / our_clock)
        cpus.append(our_cpu / bare_cpu if seconds else bare_cpu / our_cpu)
        shown.append(f"{our_clock:.2f} s ({our_cpu:.2f} s of CPU) and {bare_clock:.2f} s ({bare_cpu:.2f} s)")
    print(f"{goal}, ours and bare: {', '.join(shown)}")
    state(goal, clocks, f"by CPU seconds {statistics.median(cpus):.2f}")


def writers(folder: Path, rows: int = 20_480) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Write product_features as a release does, and as pyarrow does with the same settings; both are synced."""
    schema = schemas.config_schema(schemas.FEATURES)
    tables = list(products("B0", rows, schemas.FEATURES))
    whole = pa.concat_tables(tables).combine_chunks()
    options = files._options(schema, whole.slice(0, files.VECTOR_GROUP_ROWS))

    def bare() -> None:
        pq.write_table(whole, folder / "bare.parquet", row_group_size=files.VECTOR_GROUP_ROWS, **options)
        sync(folder / "bare.parquet")

    return lambda: write_shards(folder / "ours", schemas.FEATURES, "test", iter(tables), schema, rows=rows), bare


def read(root: Path) -> None:
    """The least that a check of all bytes does: hash every file, decode every column."""
    paths = sorted(path for path in root.rglob("*") if path.is_file())
    with ThreadPoolExecutor() as pool:
        list(pool.map(sha256, paths))
    for path in paths:
        if path.suffix == ".parquet":
            with pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
                for _ in file.iter_batches(8_192):
                    pass


def converters(root: Path, folder: Path) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Convert the release with a cold cache; copy what was made, synced as it is."""
    cache, copy = folder / "cache", folder / "copy"

    def convert() -> None:
        shutil.rmtree(cache, ignore_errors=True)
        EmbeddingStore.open(root, cache_dir=cache, progress=False)

    def copy_store() -> None:
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(next(path for path in cache.glob("*") if (path / "store.json").exists()), copy)
        for path in copy.iterdir():
            sync(path)

    return convert, copy_store


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
    statistics = timed("statistics", lambda: gather_statistics(root))
    timed("card", lambda: card.write_card(root, RECIPE, statistics, revision=None))
    timed("manifest and checksums", lambda: manifest.write(root, RECIPE, statistics, revision=None))
    problems = timed("validate", lambda: validate(root))
    made = [path for path in root.rglob("*") if path.is_file()]
    total = sum(path.stat().st_size for path in made) / 1e6
    print(f"\n{len(made)} files, {total:,.0f} MB, {len(problems)} problems {problems[:3]}")


if __name__ == "__main__":
    main()
