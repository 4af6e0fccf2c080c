"""sqid.load against the ESCI README's way (pandas: read, merge, filter, merge), at official size, cold cache.

    python benchmarks/load.py --data DIR [--runs 3] [--configs urls+product_features] [--quick]

Makes ESCI and SQID files of official size in DIR once (about 4 GB), then runs both ways in turn, each in a fresh
process, and prints seconds, CPU seconds, peak memory and their ratios as a Markdown table; then the seconds of a second
load in a fresh process. --quick: a tenth of the rows, two runs, under a minute.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from goals import state

import sqid
from sqid_lib import schemas

PART = 10 if "--quick" in sys.argv else 1  # a part of the official sizes
EXAMPLES, PRODUCTS, MAIN = 2_621_288 // PART, 1_814_924 // PART, 164_900 // PART
SMALL_TEST_US = 181_701 // PART
_US, _ES = 1_215_851 // PART, 259_973 // PART  # products by locale, as in the ESCI paper
PER_LOCALE = {"us": _US, "es": _ES, "jp": PRODUCTS - _US - _ES}
ROW_GROUP = 1_048_576  # what pandas writes


def make(root: Path) -> None:
    """Made-up files of official size and official layout; about 1 KB of text a product."""
    if (root / "done").exists():
        return
    rng = np.random.default_rng(0)
    (root / "esci").mkdir(parents=True, exist_ok=True)
    (root / "sqid").mkdir(exist_ok=True)
    ids = np.array([f"B{n:09d}" for n in rng.permutation(2 * PRODUCTS)[:PRODUCTS]])
    locales = np.repeat(list(PER_LOCALE), list(PER_LOCALE.values()))
    _write_examples(root / "esci", rng, ids)
    _write_products(root / "esci", rng, ids, locales)
    queries = np.unique(rng.integers(0, 130_000, 8_956))
    (root / "esci" / schemas.ESCI_SOURCES).write_text("query_id,source\n" + "".join(f"{q},other\n" for q in queries))
    _write_sqid(root / "sqid", rng, ids[:MAIN])
    (root / "done").touch()


def _write_examples(folder: Path, rng: np.random.Generator, ids: np.ndarray) -> None:
    """The main part judges the first MAIN us products; the rest is train, large, or of other locales."""
    product = np.concatenate([np.arange(MAIN), rng.integers(0, MAIN, SMALL_TEST_US - MAIN)])
    product = np.concatenate([product, rng.integers(MAIN, PRODUCTS, EXAMPLES - SMALL_TEST_US)])
    query = np.concatenate([np.arange(SMALL_TEST_US) % 8_956, rng.integers(8_956, 130_652, EXAMPLES - SMALL_TEST_US)])
    main = np.arange(EXAMPLES) < SMALL_TEST_US
    us = product < PER_LOCALE["us"]
    locale = np.where(us, "us", np.where(product < PER_LOCALE["us"] + PER_LOCALE["es"], "es", "jp"))
    small = main | (rng.random(EXAMPLES) < 0.4)
    words = np.array([f"query number {n} with some words" for n in range(130_652)])
    table = pd.DataFrame(
        {
            "example_id": np.arange(EXAMPLES),
            "query": words[query],
            "query_id": query,
            "product_id": ids[product],
            "product_locale": locale,
            "esci_label": np.array(list("EEESSCI"))[rng.integers(0, 7, EXAMPLES)],
            "small_version": small.astype(np.int64),
            "large_version": 1,
            "split": np.where(main, "test", "train"),
        }
    ).drop_duplicates(["query_id", "product_id", "product_locale"])
    table.sort_values("query_id", kind="stable").to_parquet(folder / schemas.ESCI_EXAMPLES, index=False)


def _write_products(folder: Path, rng: np.random.Generator, ids: np.ndarray, locales: np.ndarray) -> None:
    vocabulary = np.array([f"w{n:05d}" for n in range(40_000)])
    pool = [" ".join(vocabulary[rng.integers(0, 40_000, 90)]) for _ in range(20_000)]  # 630 bytes each
    schema = schemas.PRODUCTS_SCHEMA
    with pq.ParquetWriter(folder / schemas.ESCI_PRODUCTS, schema) as writer:
        order = np.argsort(locales, kind="stable")
        order = np.concatenate([rng.permutation(order[locales[order] == locale]) for locale in PER_LOCALE])
        for start in range(0, PRODUCTS, ROW_GROUP):
            rows = order[start : start + ROW_GROUP]
            picked = rng.integers(0, len(pool), (len(rows), 3))
            title = [pool[i][:60] + f" {n}" for n, i in enumerate(picked[:, 0])]
            columns = [
                ids[rows],
                title,
                [pool[i][: 7 * (i % 80)] for i in picked[:, 1]],
                [pool[i] for i in picked[:, 2]],
                [f"brand {i % 5_000}" for i in picked[:, 0]],
                [f"color {i % 50}" for i in picked[:, 0]],
                locales[rows],
            ]
            writer.write_table(pa.table(columns, schema=schema), row_group_size=ROW_GROUP)


def _write_sqid(folder: Path, rng: np.random.Generator, ids: np.ndarray) -> None:
    ids = rng.permutation(ids)
    urls = [f"https://images.example/I/{i}._AC_SX425_.jpg" if n % 20 else "" for n, i in enumerate(ids)]
    pd.DataFrame({"product_id": ids, "image_url": urls}).to_csv(folder / schemas.PRODUCT_URLS, index=False)
    (folder / schemas.SUPP_URLS).write_text("product_id,image_url\n")
    schema = schemas.classic_features_schema("product")
    with pq.ParquetWriter(folder / schemas.PRODUCT_FEATURES, schema) as writer:
        flat = rng.standard_normal(MAIN * schemas.PUBLISHED_WIDTH, dtype=np.float32)
        offsets = pa.array(np.arange(MAIN + 1, dtype=np.int32) * schemas.PUBLISHED_WIDTH)
        text = pa.ListArray.from_arrays(offsets, pa.array(flat))
        image = pa.ListArray.from_arrays(offsets, pa.array(flat + 1), mask=pa.array(np.arange(MAIN) % 20 == 0))
        writer.write_table(pa.table([ids, text, image], schema=schema), row_group_size=ROW_GROUP)
    table = pa.table(
        [np.arange(10), [[0.1] * schemas.PUBLISHED_WIDTH] * 10], schema=schemas.classic_features_schema("query")
    )
    pq.write_table(table, folder / schemas.QUERY_FEATURES)


def with_pandas(root: Path, configs: str) -> list[int]:
    """As the ESCI README: read, merge, filter; then merge SQID's two files."""
    examples = pd.read_parquet(root / "esci" / schemas.ESCI_EXAMPLES)
    products = pd.read_parquet(root / "esci" / schemas.ESCI_PRODUCTS)
    both = pd.merge(
        examples,
        products,
        how="left",
        left_on=["product_locale", "product_id"],
        right_on=["product_locale", "product_id"],
    )
    task = both[both["small_version"] == 1]
    task = task[(task["split"] == "test") & (task["product_locale"] == "us")]
    rows = task.drop_duplicates("product_id")
    rows = rows.merge(pd.read_csv(root / "sqid" / schemas.PRODUCT_URLS), on="product_id", how="left")
    counts = [len(rows)]
    if "product_features" in configs:
        counts.append(len(rows.merge(pd.read_parquet(root / "sqid" / schemas.PRODUCT_FEATURES), on="product_id")))
    return counts


def with_sqid(root: Path, configs: str, cache: str) -> list[int]:
    """The same configs, joined and written to a cold cache."""
    options: dict[str, Any] = {"esci": str(root / "esci"), "artifacts": str(root / "sqid"), "cache_dir": cache}
    return [len(sqid.load(config, "test", **options)) for config in configs.split("+")]


def once(way: str, root: Path, configs: str) -> dict[str, float]:
    """Run one way in a fresh process; seconds, CPU seconds, peak megabytes, and the seconds of loading again."""
    with tempfile.TemporaryDirectory(dir=root) as cache:
        command = [sys.executable, __file__, "--data", str(root), "--way", way, "--configs", configs, "--cache", cache]
        measured = _measured([*command, "--quick"] if PART > 1 else command)
        if way == "sqid.load":
            measured["again"] = _measured([*command, "--quick"] if PART > 1 else command)["seconds"]
        return measured


def _measured(command: list[str]) -> dict[str, float]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def child(way: str, root: Path, configs: str, cache: str) -> None:
    start, before = time.perf_counter(), sum(os.times()[:2])
    counts = with_pandas(root, configs) if way == "pandas" else with_sqid(root, configs, cache)
    seconds, cpu = time.perf_counter() - start, sum(os.times()[:2]) - before
    assert set(counts) == {MAIN}, counts
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "cpu": cpu, "megabytes": peak}))


def table(runs: list[dict[str, dict[str, float]]]) -> Iterator[str]:
    yield "| way | seconds (median, min-max) | CPU seconds | peak MB (max) |"
    yield "|---|---|---|---|"
    for way in ("pandas", "sqid.load"):
        peak = max(run[way]["megabytes"] for run in runs)
        yield (
            f"| {way} | {_spread(run[way]['seconds'] for run in runs)} | {_spread(run[way]['cpu'] for run in runs)} "
            + (f"| {peak:,.0f} |")
        )
    ratios = {
        name: _spread(run["pandas"][name] / run["sqid.load"][name] for run in runs) for name in ("seconds", "cpu")
    }
    memory = [run["sqid.load"]["megabytes"] / run["pandas"]["megabytes"] for run in runs]
    yield ""
    yield f"times faster: {ratios['seconds']}; by CPU seconds {ratios['cpu']}"
    yield f"share of its memory: {statistics.median(memory):.2f} (worst {max(memory):.2f})"
    yield f"loaded again in a fresh process, seconds: {_spread((run['sqid.load']['again'] for run in runs), 2)}"


def state_goals(runs: list[dict[str, dict[str, float]]], configs: str) -> None:
    """How many times faster than pandas; of both configs also the share of its memory."""
    note = "short form" if PART > 1 else ""
    both = "+" in configs
    state(
        f"load {'both' if both else configs}",
        [run["pandas"]["seconds"] / run["sqid.load"]["seconds"] for run in runs],
        note,
    )
    if both:
        state("load memory", [run["sqid.load"]["megabytes"] / run["pandas"]["megabytes"] for run in runs], note)


def _spread(numbers: Iterable[float], digits: int = 1) -> str:
    found = list(numbers)
    return f"{statistics.median(found):.{digits}f} ({min(found):.{digits}f}-{max(found):.{digits}f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--configs", default="urls+product_features", help="urls, product_features, or both with a +")
    parser.add_argument("--quick", action="store_true", help="a tenth of the rows, two runs")
    parser.add_argument("--way", choices=("pandas", "sqid.load"), help=argparse.SUPPRESS)
    parser.add_argument("--cache", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.quick and not args.way:
        args.data, args.runs = args.data / "quick", 2
    if args.way:
        child(args.way, args.data, args.configs, args.cache)
        return
    args.data.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(args.data).free < 12e9 / PART:
        raise SystemExit(f"{12 / PART} GB of free disk are needed")
    make(args.data)
    runs = [{way: once(way, args.data, args.configs) for way in ("pandas", "sqid.load")} for _ in range(args.runs)]
    print("\n".join(table(runs)))
    state_goals(runs, args.configs)


if __name__ == "__main__":
    main()
