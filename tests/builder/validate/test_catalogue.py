"""validate on the release of a shop's own catalogue: what is allowed there, and each of some corruptions."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from tiny_catalogue import CLICKS, NAMES, NUMBERS, catalogue_recipe, write_release

from builder.release.stage import describe
from builder.validate import validate
from builder.validate.rows import Scan
from sqid_lib import schemas
from sqid_lib.files import shard_name


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: write_release(tmp_path_factory.mktemp(kind), kind) for kind in (NAMES, NUMBERS, CLICKS)}


def changed(good: Path, root: Path, config: str, column: str, values: list[Any], kind: str = NAMES) -> set[str]:
    """The problems, code and message, once a column has other values."""
    release = Path(shutil.copytree(good, root / "release"))
    path = release / shard_name(config, "test", 0, 1)
    table = pq.read_table(path)
    at = table.column_names.index(column)
    pq.write_table(table.set_column(at, table.schema.field(at), pa.array(values, table.schema.field(at).type)), path)
    describe(release, catalogue_recipe(kind), revision=None)
    return {f"{problem.code}: {problem.message}" for problem in validate(release)}


def column(release: Path, config: str, name: str) -> list[Any]:
    return list(pq.read_table(release / shard_name(config, "test", 0, 1))[name].to_pylist())


@pytest.mark.parametrize(
    ("kind", "name", "value", "problem"),
    [
        (NAMES, "gain", 0.5, "gain: gain is not that of the label"),
        (NAMES, "esci_label", "prima", "label: esci_label is not one of gut, mittel, schlecht, a number or"),
        (NAMES, "esci_label", "", "label: esci_label is not one of"),
        (NUMBERS, "gain", 0.5, "gain: gain is not that of the label"),
        (NUMBERS, "esci_label", "gut", "label: esci_label is not a number or clicks/impressions"),
        (NUMBERS, "esci_label", "-3", "label: esci_label is not"),
        (NUMBERS, "esci_label", "1_0", "label: esci_label is not"),
        (NUMBERS, "esci_label", "inf", "label: esci_label is not"),
        (CLICKS, "gain", 1.5, "gain: gain of clicks is above 1"),
        (CLICKS, "gain", -1.0, "gain: gain is not a finite number of 0 or more"),
        (CLICKS, "gain", float("nan"), "gain: gain is not a finite number of 0 or more"),
        (CLICKS, "esci_label", "3 of 120", "label: esci_label is not"),
    ],
)
def test_labels_and_gains_belong_together(
    good: dict[str, Path], tmp_path: Path, kind: str, name: str, value: Any, problem: str
) -> None:
    values = column(good[kind], schemas.JUDGMENTS, name)
    found = changed(good[kind], tmp_path, schemas.JUDGMENTS, name, [value, *values[1:]], kind)
    assert [text for text in found if text.startswith(problem) and "1 row at row 0" in text]


def test_a_number_is_its_own_gain_beside_stated_labels(good: dict[str, Path], tmp_path: Path) -> None:
    labels = column(good[NAMES], schemas.JUDGMENTS, "esci_label")
    assert labels[0] == "gut"
    assert changed(good[NAMES], tmp_path, schemas.JUDGMENTS, "esci_label", ["1.0", *labels[1:]]) == set()


def test_a_kept_value_that_differs_between_configs_is_named(good: dict[str, Path], tmp_path: Path) -> None:
    prices = column(good[NAMES], schemas.URLS, "price")
    found = changed(good[NAMES], tmp_path, schemas.URLS, "price", [1.0, *prices[1:]])
    assert [text for text in found if text.startswith("inconsistent: price differs from")]


def test_a_kept_value_may_be_null_a_key_may_not(good: dict[str, Path], tmp_path: Path) -> None:
    ids = column(good[NAMES], schemas.URLS, "product_id")
    found = changed(good[NAMES], tmp_path, schemas.URLS, "product_id", [" ", *ids[1:]])
    assert [text for text in found if text.startswith("blank: product_id is blank")]


def test_a_column_that_the_manifest_does_not_state_is_a_problem(good: dict[str, Path], tmp_path: Path) -> None:
    release = Path(shutil.copytree(good[NAMES], tmp_path / "release"))
    path = release / shard_name(schemas.URLS, "test", 0, 1)
    table = pq.read_table(path)
    pq.write_table(table.append_column("margin", pc.multiply(table["price"], 0.2)), path)
    found = {f"{problem.code}: {problem.message}" for problem in validate(release)}
    assert "schema: column margin is not declared" in found
    pq.write_table(table.drop_columns(["price"]), path)
    assert "schema: column price is missing" in {f"{problem.code}: {problem.message}" for problem in validate(release)}


def test_a_query_of_a_judgment_must_be_there(good: dict[str, Path], tmp_path: Path) -> None:
    release = Path(shutil.copytree(good[NAMES], tmp_path / "release"))
    path = release / shard_name(schemas.QUERIES, "test", 0, 1)
    table = pq.read_table(path)
    pq.write_table(table.slice(1), path)
    describe(release, catalogue_recipe(), revision=None)
    assert [
        p for p in validate(release) if p.code == "integrity" and "1 queries are not in query_features" in p.message
    ]


def test_judgments_that_the_manifest_counts_must_be_there(good: dict[str, Path], tmp_path: Path) -> None:
    release = Path(shutil.copytree(good[NAMES], tmp_path / "release"))
    shutil.rmtree(release / "data" / schemas.JUDGMENTS)
    assert ("missing-file", f"data/{schemas.JUDGMENTS}") in {(p.code, p.where) for p in validate(release)}


@pytest.mark.parametrize("kind", [NAMES, NUMBERS, CLICKS])
def test_no_rows_of_a_valid_release_are_read_again(
    good: dict[str, Path], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    def again(*_: object) -> pa.Table:
        raise AssertionError("a column is read again")

    monkeypatch.setattr(Scan, "table", again)
    assert validate(good[kind]) == []
