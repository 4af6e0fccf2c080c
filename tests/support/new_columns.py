"""Columns of every kind declared in a copy of schemas.py alone, and a build that must have them everywhere.

Run as a script in that copy: `python new_columns.py DIR` builds a tiny release in DIR and fails if a column is lost.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import builds
import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import tiny_esci

from builder import pipeline, recipe
from builder.validate import validate
from sqid_lib import schemas
from sqid_lib.files import shard_name

_DECLARATIONS = """
_STOCK = Column("stock", pa.bool_(), "whether it is in stock", PRODUCTS, nullable=True)
_RATING = Column("rating", pa.float64(), "mean rating, 1 to 5", PRODUCTS, nullable=True)
_VOTES = Column("votes", pa.int64(), "people who chose the label", EXAMPLES)

"""


def declare(path: Path) -> None:
    """Add stock and rating to the products, votes to the judgments, and the brand to product_features."""
    text = path.read_text(encoding="utf-8")
    brand = "" if "product_brand" in schemas.DECLARED[schemas.FEATURES].names else "_BRAND, "
    for anchor, added in (
        ("PRODUCTS_SCHEMA = pa.schema(\n    [\n", '("stock", pa.bool_()), ("rating", pa.float64()),'),
        ("EXAMPLES_SCHEMA = pa.schema(\n    [\n", '("votes", pa.int64()),'),
        ("\n_PRODUCT_ROW = (\n", "_STOCK, _RATING,"),
        (f'"{schemas.DECLARED[schemas.FEATURES].summary}",\n        (\n', f"{brand}_STOCK, _RATING,"),
        (f'"{schemas.DECLARED[schemas.JUDGMENTS].summary}",\n        (', "_VOTES, "),
    ):
        assert text.count(anchor) == 1, f"schemas.py has another layout: {anchor}"
        text = text.replace(anchor, anchor + added)
    text = text.replace("\n_PRODUCT_ROW = (\n", f"{_DECLARATIONS}_PRODUCT_ROW = (\n")
    path.write_text(text, encoding="utf-8")


def check(root: Path) -> None:
    """Build over ESCI files that have the columns, then look at the data, the card, and what validation finds."""
    products, examples = tiny_esci.products(), tiny_esci.examples()
    for i, row in enumerate(products):
        row |= {"stock": (True, False, None)[i % 3], "rating": (1.5, float("nan"), None)[i % 3]}
    for row in examples:
        row["votes"] = row["example_id"] * 10
    tiny_esci.write_esci(root / "esci", products=products, examples=examples)
    tiny_esci.write_artifacts(root / "artifacts")
    release = pipeline.build(recipe.load(builds.write_recipe(root, builds.FROM_ARTIFACTS)), root / "work")
    stated = {row["product_id"]: row for row in products if row["product_locale"] == "us"}
    _check_data(release, stated, str(root / "cache"))
    _check_card((release / schemas.CARD).read_text(encoding="utf-8"))
    _check_validation(release, stated)


def _check_data(release: Path, stated: dict[str, dict[str, Any]], cache: str) -> None:
    for config in (schemas.URLS, schemas.FEATURES):
        rows = datasets.load_dataset(str(release), config, split="test", cache_dir=cache)
        for name, dtype in (("product_brand", "string"), ("stock", "bool"), ("rating", "float64")):
            assert rows.features[name].dtype == dtype
            wanted = [stated[product_id][name] for product_id in rows["product_id"]]
            assert str(list(rows[name])) == str(wanted), (config, name)  # as text: NaN equals NaN
    judgments = datasets.load_dataset(str(release), schemas.JUDGMENTS, split="test", cache_dir=cache)
    assert judgments.features["votes"].dtype == "int64"
    assert list(judgments["votes"]) == [10 * number for number in judgments["example_id"]]


def _check_card(card: str) -> None:
    for name, dtype, configs in (("product_brand", "string", 3), ("rating", "float64", 3), ("votes", "int64", 1)):
        assert card.count(f"- name: {name}\n    dtype: {dtype}\n") == configs
    assert "| `product_brand` | string | brand, from ESCI |" in card.partition("**`product_features`**")[2]
    assert "| `rating` | float64 | mean rating, 1 to 5 |" in card
    assert "| `stock` | bool | whether it is in stock |" in card
    assert "| `votes` | int64 | people who chose the label |" in card


def _check_validation(release: Path, stated: dict[str, dict[str, Any]]) -> None:
    ids = pq.read_table(release / shard_name(schemas.FEATURES, "test", 0, 1))["product_id"].to_pylist()
    row = next(i for i, product_id in enumerate(ids) if stated[product_id]["rating"] is None)
    for column, value in (("product_brand", "other"), ("stock", True), ("rating", 5.0)):
        assert _problems_with(release, schemas.FEATURES, column, row, value) == [
            f"data/product_features: {column} differs from urls in 1 rows, first {ids[row]} us"
        ]
    (found,) = _problems_with(release, schemas.JUDGMENTS, "votes", 3, None)
    assert "votes is null: 1 row at row 3" in found


def _problems_with(release: Path, config: str, column: str, row: int, value: object) -> list[str]:
    """What validation says of rows while one cell has another value; checksums and the card aside."""
    path = release / shard_name(config, "test", 0, 1)
    whole, table = path.read_bytes(), pq.read_table(path)
    values = table[column].to_pylist()
    values[row] = value
    index, field = table.column_names.index(column), table.schema.field(column)
    pq.write_table(table.set_column(index, field, pa.array(values, field.type)), path)
    try:
        return [f"{p.where}: {p.message}" for p in validate(release) if p.code in ("inconsistent", "null", "schema")]
    finally:
        path.write_bytes(whole)


if __name__ == "__main__":
    check(Path(sys.argv[1]))
