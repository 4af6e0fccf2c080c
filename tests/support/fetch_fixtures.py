"""Recipes and inputs for tests of fetch, and what it left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from builder.recipe import EsciSettings, ExpectSettings, FetchSettings, Recipe
from sqid_lib import schemas

HOST = "https://images.example"


def recipe(mirrors: dict[str, str], min_images: int | None = None, **changes: Any) -> Recipe:
    """[fetch] with URL prefix → its mirror, both without the last slash; the mirrors are allowed hosts."""
    hosts = tuple(mirror.removeprefix("http://").split("/")[0] for mirror in mirrors.values())
    settings: dict[str, Any] = {
        "allow_hosts": hosts,
        "timeout": 5.0,
        "read_timeout": 2.0,
        "max_bytes": 1_000_000,
        "retries": 0,
        **changes,
    }
    limits = FetchSettings(mirrors={f"{url}/": f"{mirror}/" for url, mirror in mirrors.items()}, **settings)
    expect = ExpectSettings(min_images=min_images)
    return Recipe(name="t", version="1", esci=EsciSettings(path="."), fetch=limits, expect=expect)


def resolved(work: Path, *urls: str) -> Path:
    """WORK as resolve leaves it: a product for each URL."""
    rows = [
        {
            "part": schemas.MAIN,
            "product_locale": "us",
            "product_id": f"B{i:04}",
            "image_url": url,
            "image_status": schemas.OK,
        }
        for i, url in enumerate(urls)
    ]
    (work / "resolve").mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schemas.RESOLVED_SCHEMA), work / "resolve" / "urls.parquet")
    return work


def statuses(work: Path) -> list[str]:
    """The statuses that fetch left, in the order of the URLs."""
    found: list[str] = pq.read_table(work / "fetch" / "outcomes.parquet")["image_status"].to_pylist()
    return found
