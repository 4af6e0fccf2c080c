"""Ten times the shop and 100,000 rows in flat memory; and no token in any byte that was written."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tiny_esci
from loopback_hub import WRITE_TOKEN

from sqid_lib import schemas
from torture import tasks
from torture.outcome import Fault, Lost
from torture.process import Child, sqid
from torture.world import World, check_plain

_TIMES_TEN = 150  # MiB that ten times the images may cost
_ROWS = 400  # MiB that ten times the rows may cost, of which the table of all keys is most
_PEAK = re.compile(r"peak (\d+) MiB")


def ten_times(world: World, _: Random) -> None:
    """sample to validate for 300 products with images, and for 3,000: the memory grows little."""
    _check_growth(world, "tables", (300, 3_000), _TIMES_TEN)


def many_rows(world: World, _: Random) -> None:
    """A release of 100,000 products from existing vectors, against one of 10,000."""
    _check_growth(world, "artifacts", (10_000, 100_000), _ROWS)


def no_token(world: World, _: Random) -> None:
    """The token of the Hub is in no file and in no output, whatever was tried so far."""
    folder = world.folder()
    work = folder / "work"
    check_plain(world.build("tables", work))
    release = str(work / "sqid")
    for number, call in enumerate(
        (
            (sqid, [["push", release, "--repo", f"ORG/{folder.name}"]]),
            (tasks.read_store, [f"ORG/{folder.name}", str(folder / "cache")]),
        )
    ):
        ran = Child(call, folder / f"{number}.log").wait()  # type: ignore[arg-type]
        check_plain(ran)
        if ran.code:
            raise Lost(ran.text[-500:])
    for path in world.root.rglob("*"):
        if path.is_file() and not path.is_symlink() and WRITE_TOKEN.encode() in path.read_bytes():
            raise Lost(f"the token is in {path.relative_to(world.root)}")
    shutil.rmtree(folder)


def _check_growth(world: World, recipe: str, sizes: Sequence[int], allowed: int) -> None:
    folder, peaks = world.folder(), []
    for size in sizes:
        inputs = folder / str(size)
        _write_inputs(inputs, size, vectors=recipe == "artifacts")
        text = (world.root / f"{recipe}.toml").read_text().replace(str(world.root), str(inputs))
        (inputs / "recipe.toml").write_text(re.sub(r"max_shard_bytes = \d+|shard_rows = 8", "", text))
        command = ["build", str(inputs / "recipe.toml"), "--work", str(inputs / "work")]
        ran = Child((tasks.peak, [command]), inputs / "log").wait(600)
        check_plain(ran)
        found = _PEAK.search(ran.text)
        if ran.code or not found:
            raise Lost(ran.text[-500:])
        peaks.append(int(found[1]))
    if peaks[1] - peaks[0] > allowed:
        raise Lost(f"peaks of {peaks[0]} and {peaks[1]} MiB for {sizes[0]:,} and {sizes[1]:,} products")
    shutil.rmtree(folder)


def _write_inputs(root: Path, size: int, *, vectors: bool) -> None:
    """An ESCI of `size` products, each judged once, with URLs and, if wanted, vectors."""
    ids = [f"X{number:08d}" for number in range(size)]
    judged: list[dict[str, Any]] = [
        {
            "example_id": number,
            "query": f"query {number // 20}",
            "query_id": 100 + number // 20,
            "product_id": product,
            "product_locale": "us",
            "esci_label": "ESCI"[number % 4],
            "small_version": 1,
            "large_version": 1,
            "split": "test",
        }
        for number, product in enumerate(ids)
    ]
    products = [{"product_id": i, "product_title": f"title {i} " * 9, "product_locale": "us"} for i in ids]
    tiny_esci.write_esci(root / "esci", row_group=10_000, examples=judged, products=products)
    urls = {product: f"https://images.example/{product}.jpg" for product in ids}
    tiny_esci.write_csv(root / "urls.csv", urls)
    if not vectors:
        return
    artifacts = root / "artifacts"
    artifacts.mkdir()
    tiny_esci.write_csv(artifacts / schemas.PRODUCT_URLS, urls)
    tiny_esci.write_csv(artifacts / schemas.SUPP_URLS, {})
    queries = sorted({row["query_id"] for row in judged})
    for name, key, values in (
        (schemas.PRODUCT_FEATURES, "product", ids),
        (schemas.QUERY_FEATURES, "query", queries),
    ):
        schema = schemas.classic_features_schema(key)
        flat = np.random.default_rng(1).standard_normal((len(values), 32), dtype=np.float32)
        lists = pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), 32)
        columns = [values, *[lists.cast(field.type) for field in list(schema)[1:]]]
        pq.write_table(pa.table(columns, schema=schema), artifacts / name, row_group_size=5_000)


FAULTS = [
    Fault("ten times the images in flat memory", ten_times, 0, 1),
    Fault("100,000 rows in flat memory", many_rows, 0, 1),
    Fault("no token in any byte written", no_token, 1, 2),
]
