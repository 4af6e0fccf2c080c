"""builder.embed.shards: a file is what was written, or it is refused before it is parsed."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from builder.embed import shards
from sqid_lib.errors import CorruptFileError

TABLE = pa.table({"id": ["a", "b"], "vector": pa.array([[1.0, 2.0], [3.0, 4.0]], pa.list_(pa.float32(), 2))})


def test_what_was_written_is_read(tmp_path: Path) -> None:
    shards.write(tmp_path / "a", TABLE, {"stamp": "one"})
    table = shards.read(tmp_path / "a")
    assert table.equals(TABLE)
    assert (shards.metadata(table, "stamp"), shards.metadata(table, "other")) == ("one", "")
    assert shards.read(tmp_path / "a", ["id"]).column_names == ["id"]


def test_equal_tables_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        shards.write(tmp_path / name, TABLE, {"stamp": "one"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_flipped_byte_anywhere_is_found(tmp_path: Path) -> None:
    shards.write(path := tmp_path / "a", TABLE, {"stamp": "one"})
    whole = path.read_bytes()
    for at in [
        *range(64),
        *range(64, len(whole), 7),
        len(whole) - 1,
    ]:  # values, names of columns, metadata, the checksum itself
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        with pytest.raises(CorruptFileError, match="does not match its checksum"):
            shards.read(path)


@pytest.mark.parametrize("length", [0, 1, 4, 100, -1])
def test_a_truncated_file_is_found(tmp_path: Path, length: int) -> None:
    shards.write(path := tmp_path / "a", TABLE, {})
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CorruptFileError):
        shards.read(path)


def test_a_file_without_a_checksum_is_refused(tmp_path: Path) -> None:
    pa.parquet.write_table(TABLE, tmp_path / "a")
    with pytest.raises(CorruptFileError):
        shards.read(tmp_path / "a")


def test_leftovers_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    for name in (".texts-00000.parquet.1-2.part", "mine.part", "texts-00000.parquet"):
        (tmp_path / name).touch()
    shards.remove_unfinished([tmp_path, tmp_path / "absent"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.part", "texts-00000.parquet"]
