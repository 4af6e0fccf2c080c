"""A column declared in schemas.py alone is read, released, described on the card, loaded and validated."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]

# file of ESCI, config and column as they would be edited: (before, after), each once in schemas.py
EDITS = (
    (
        '("product_color", pa.string()),',
        '("product_color", pa.string()), ("stock", pa.bool_()), ("rating", pa.float64()),',
    ),
    ('("split", pa.string()),\n    ]', '("split", pa.string()),\n        ("votes", pa.int64()),\n    ]'),
    (
        "_IMAGE_URL = Column(",
        '_STOCK = Column("stock", pa.bool_(), "whether it is in stock", PRODUCTS, nullable=True)\n'
        '_RATING = Column("rating", pa.float64(), "mean rating, 1 to 5", PRODUCTS, nullable=True)\n'
        '_VOTES = Column("votes", pa.int64(), "people who chose the label", EXAMPLES)\n'
        "_IMAGE_URL = Column(",
    ),
    (
        "(_TITLE, _DESCRIPTION, _BULLETS, _BRAND, _COLOR)",
        "(_TITLE, _DESCRIPTION, _BULLETS, _BRAND, _COLOR, _STOCK, _RATING)",
    ),
    ("_TITLE, _IMAGE_URL, _IMAGE_STATUS)", "_TITLE, _BRAND, _STOCK, _RATING, _IMAGE_URL, _IMAGE_STATUS)"),
    ("_PRODUCT_LOCALE, _LABEL, _GAIN)", "_PRODUCT_LOCALE, _LABEL, _GAIN, _VOTES)"),
)

SCRIPT = """
import sys
from pathlib import Path
import datasets, numpy as np, pyarrow as pa, pyarrow.parquet as pq
import builds, tiny_esci
from builder import pipeline, recipe
from builder.validate import validate
from sqid_lib import schemas
from sqid_lib.files import shard_name

root = Path(sys.argv[1])
products, examples = tiny_esci.products(), tiny_esci.examples()
for i, row in enumerate(products):
    row |= {"stock": (True, False, None)[i % 3], "rating": (1.5, float("nan"), None)[i % 3]}
for row in examples:
    row["votes"] = row["example_id"] * 10
tiny_esci.write_esci(root / "esci", products=products, examples=examples)
tiny_esci.write_artifacts(root / "artifacts")
release = pipeline.build(recipe.load(builds.write_recipe(root, builds.FROM_ARTIFACTS)), root / "work")  # validates it

expected = {row["product_id"]: row for row in products if row["product_locale"] == "us"}
for config in ("urls", "product_features"):
    rows = datasets.load_dataset(str(release), config, split="test", cache_dir=str(root / "cache"))
    assert {n: rows.features[n].dtype for n in ("stock", "rating")} == {"stock": "bool", "rating": "float64"}
    for name in ("product_brand", "stock", "rating"):
        wanted = [expected[i][name] for i in rows["product_id"]]
        assert str(list(rows[name])) == str(wanted), (config, name)  # as text: NaN equals NaN
rows = datasets.load_dataset(str(release), "judgments", split="test", cache_dir=str(root / "cache"))
assert rows["votes"] == [10 * i for i in rows["example_id"]] and rows.features["votes"].dtype == "int64"

card = (release / "README.md").read_text()
assert card.count("- name: product_brand\\n    dtype: string\\n") == 3  # urls, product_features, supp
assert card.count("- name: rating\\n    dtype: float64\\n") == 3
assert "| `product_brand` | string | brand, from ESCI |" in card.partition("**`product_features`**")[2]
assert "| `rating` | float64 | mean rating, 1 to 5 |" in card
assert "| `stock` | bool | whether it is in stock |" in card
assert "| `votes` | int64 | people who chose the label |" in card

path = release / shard_name("product_features", "test", 0, 1)
whole, votes = pq.read_table(path), release / shard_name("judgments", "test", 0, 1)
def problems(path, table, column, row, value):
    values = table[column].to_pylist()
    values[row] = value
    index, field = table.column_names.index(column), table.schema.field(column)
    pq.write_table(table.set_column(index, field, pa.array(values, field.type)), path)
    return [f"{p.where}: {p.message}" for p in validate(release) if p.code in ("inconsistent", "null", "schema")]
ids = whole["product_id"].to_pylist()
no_rating = next(i for i, key in enumerate(ids) if expected[key]["rating"] is None)
for column, row, value in (("product_brand", 2, "other"), ("stock", no_rating, True), ("rating", no_rating, 5.0)):
    assert problems(path, whole, column, row, value) == [
        f"data/product_features: {column} differs from urls in 1 rows, first {ids[row]} us"
    ], problems(path, whole, column, row, value)
pq.write_table(whole, path)
(found,) = problems(votes, pq.read_table(votes), "votes", 3, None)
assert "votes is null: 1 row at row 3" in found, found
"""


def test_a_column_declared_in_schemas_alone(tmp_path: Path) -> None:
    for name in ("sqid_lib", "builder"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("demo", "__pycache__"))
    schemas = tmp_path / "sqid_lib" / "schemas.py"
    text = schemas.read_text(encoding="utf-8")
    for before, after in EDITS:
        assert text.count(before) == 1, before
        text = text.replace(before, after)
    schemas.write_text(text, encoding="utf-8")
    path = os.pathsep.join([str(tmp_path), str(ROOT / "tests" / "support")])
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
