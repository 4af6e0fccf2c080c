"""Rows that were put aside come back in any order, block by block."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from sqid_lib.errors import DiskError
from sqid_lib.tables import spool
from sqid_lib.tables.spool import Spool


def filled(folder: Path, rows: int, each: int = 10) -> tuple[Spool, pa.Table]:
    table = pa.table({"id": [f"row {i}" if i % 7 else None for i in range(rows)], "number": pa.array(range(rows))})
    made = Spool(folder / "made" / "here")
    for first in range(0, rows, each):
        made.append(table.slice(first, each))
    return made, table


@pytest.mark.parametrize("order", ["as read", "backwards", "scattered", "some, some twice"])
def test_rows_come_back_in_any_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: str) -> None:
    monkeypatch.setattr(spool, "GROUP_ROWS", 16)
    made, table = filled(tmp_path, 101)
    rng = np.random.default_rng(0)
    rows = {
        "as read": np.arange(101),
        "backwards": np.arange(101)[::-1],
        "scattered": rng.permutation(101),
        "some, some twice": rng.integers(0, 101, 77),
    }[order]
    parts = list(made.take(rows, lambda part: part))
    assert pa.concat_tables(parts).equals(table.take(pa.array(rows)))
    assert all(len(part) % 16 == 0 for part in parts[:-1]) and all(part["id"].num_chunks == 1 for part in parts)
    assert len(parts) == (7 if order == "as read" else 1)


def test_parts_of_other_types_are_converted(tmp_path: Path) -> None:
    made = Spool(tmp_path)
    made.append(pa.table({"n": [1, 2]}))
    made.append(pa.table({"n": ["3", None]}))
    (found,) = made.take(np.array([3, 0, 2, 1]), lambda part: part.cast(pa.schema([("n", pa.string())])))
    assert found["n"].to_pylist() == [None, "1", "3", "2"]


def test_no_file_has_a_name_and_a_full_disk_is_reported(tmp_path: Path) -> None:
    made, _ = filled(tmp_path, 3)
    assert list((tmp_path / "made" / "here").iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(DiskError, match="cannot be written"):
        Spool(tmp_path / "file")
    assert next(made.take(np.array([2]), lambda part: part))["id"].to_pylist() == ["row 2"]
