"""WORK as sample and fetch leave it, for the stage embed."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from encoder_fixtures import ODD_TEXTS, encoded, make_image

from sqid_lib import schemas

PRODUCTS = 11
# per product: image_status of fetch, and the bytes stored
Stored = list[tuple[str, bytes | None]]
STORED: Stored = [
    ("ok", encoded(make_image(1))),
    ("missing", None),
    ("ok", encoded(make_image(2), "JPEG")),
    ("generic", encoded(make_image(3))),
    ("generic", encoded(make_image(3))),
    ("ok", encoded(make_image(4))[:-40]),  # damaged, and fetch did not notice
    ("placeholder", None),
    ("timeout", None),
    ("ok", encoded(make_image(1))),
    ("ok", encoded(make_image(5, mode="P"), "GIF")),
    ("ok", encoded(make_image(6, (200, 20)), "WEBP")),
]
FINAL = ["ok", "missing", "ok", "generic", "generic", "truncated", "placeholder", "timeout", "ok", "ok", "ok"]


def title(row: int) -> str | None:
    return None if row == 3 else ODD_TEXTS[row % len(ODD_TEXTS)]


def make_work(work: Path, *, supp: int = 0, stored: Stored = STORED) -> Path:
    """What sample and fetch leave: PRODUCTS products, `supp` more, four queries."""
    total = PRODUCTS + supp
    rows = [
        {"product_id": f"P{row:03d}", "product_locale": "us", "product_title": title(row), "product_brand": "b"}
        for row in range(total)
    ]
    (work / "sample").mkdir(parents=True)
    (work / "fetch").mkdir()
    write(work / "sample/products.parquet", rows[:PRODUCTS], schemas.PRODUCTS_SCHEMA)
    write(work / "sample/supp.parquet", rows[PRODUCTS:], schemas.PRODUCTS_SCHEMA)
    queries = [{"query_id": 7 * i, "query": text, "source": "other"} for i, text in enumerate(ODD_TEXTS[:4])]
    write(work / "sample/queries.parquet", queries, schemas.SAMPLED_QUERIES_SCHEMA)
    of_rows = [stored[row % PRODUCTS] for row in range(total)]
    outcomes = [
        {
            **{key: row[key] for key in schemas.PRODUCT_KEY},
            "image_status": status,
            "sha256": data and hashlib.sha256(data).hexdigest(),
        }
        for row, (status, data) in zip(rows, of_rows, strict=True)
    ]
    write(work / "fetch/outcomes.parquet", outcomes, schemas.OUTCOMES_SCHEMA)
    distinct = {hashlib.sha256(data).hexdigest(): data for _, data in of_rows if data}
    images = [{"sha256": digest, "image": data} for digest, data in distinct.items()]
    write(work / "fetch/images-00000.parquet", images[:3], schemas.IMAGES_SCHEMA)
    write(work / "fetch/images-00001.parquet", images[3:], schemas.IMAGES_SCHEMA)
    return work


def write(path: Path, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)


def read(work: Path, part: str) -> pa.Table:
    return pa.concat_tables(pq.read_table(path) for path in sorted((work / "embed").glob(f"{part}-*.parquet")))


def contents(work: Path) -> dict[str, bytes]:
    folder = work / "embed"
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def encoders(work: Path) -> list[Path]:
    """The folders of vectors, one for each encoder."""
    return sorted((work / "embed/vectors").glob("*"))


def copy_vectors(source: Path, target: Path, names: str) -> None:
    """Copy the files of vectors whose names match from one WORK to another, where they are not made again."""
    for folder in encoders(source):
        for path in (folder / "encoder.json", *folder.glob(names)):
            copy = target / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 4] ^= 1
    path.write_bytes(data)
