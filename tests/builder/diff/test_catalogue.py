"""Two versions of a shop's own catalogue: kept columns, and parts that one of them lacks."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_catalogue import NAMES, NONE, OWN_LABELS, PRICES, catalogue_recipe, write_release

from builder.diff import diff


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_release(tmp_path_factory.mktemp("first"), NAMES)


def test_a_changed_price_is_named(first: Path, tmp_path: Path) -> None:
    second = write_release(tmp_path, NAMES, recipe=catalogue_recipe(version="1.1.0"), prices=(79.9, *PRICES[1:]))
    found = diff(first, second, cache_dir=tmp_path / "cache")
    (cell,) = found.rows["products"].changed["price"].examples
    assert (cell.key, cell.before, cell.after) == ("P-0 (de)", 89.9, 79.9)
    assert list(found.rows["products"].changed) == ["price"]
    assert found.rows["judgments"].same and found.rows["queries"].same
    assert all(part.same for part in found.vectors)
    assert [setting.key for setting in found.settings] == ["version"]
    assert [row.before == row.after for row in found.ndcg] == [True] * 3
    assert not found.notes
    assert "- price: 1 changed\n  - P-0 (de): 89.9 → 79.9" in str(found)


def test_judgments_that_one_version_lacks_are_a_note(first: Path, tmp_path: Path) -> None:
    second = write_release(tmp_path, NONE, queries=())
    found = diff(first, second, cache_dir=tmp_path / "cache")
    assert found.rows["products"].same
    assert [note.partition(":")[0] for note in found.notes] == [
        "queries are not compared",
        "judgments are not compared",
        f"{second} has no nDCG",
    ]
    assert {setting.key for setting in found.settings} == {f"recipe.catalogue.labels.{name}" for name in OWN_LABELS}
    assert diff(second, second, cache_dir=tmp_path / "cache").same
    assert "ESCI" not in str(found)
