"""A shop's tables and a recipe for them, for tests that sample a catalogue."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from builder import recipe
from builder.recipe import Recipe
from builder.sample import sample

PARTS = ("products", "images", "supp", "queries", "judgments")


def shop(root: Path, table: str | bytes | pa.Table, text: str = "", name: str = "shop.csv") -> Recipe:
    """Write `root`/`name` and a recipe of locale de for it; `text` follows `locale` in [catalogue]."""
    path = root / name
    if isinstance(table, pa.Table):
        pq.write_table(table, path)
    else:
        path.write_bytes(table.encode() if isinstance(table, str) else table)
    toml = f'name = "shop"\nversion = "1"\n[catalogue]\nproducts = "{name}"\nlocale = "de"\n{text}'
    (root / "recipe.toml").write_text(toml, encoding="utf-8")
    return recipe.load(root / "recipe.toml")


def sampled(root: Path, table: str | bytes | pa.Table, text: str = "", name: str = "shop.csv") -> dict[str, pa.Table]:
    """The files of WORK/sample for `shop`."""
    sample(shop(root, table, text, name), root / "work")
    return {part: pq.read_table(root / "work" / "sample" / f"{part}.parquet") for part in PARTS}


def rows(table: pa.Table, *columns: str) -> list[Any]:
    """The values of a column, or of columns as tuples."""
    values = [table.column(name).to_pylist() for name in columns]
    return values[0] if len(columns) == 1 else list(zip(*values, strict=True))
