"""Vectors found by key: in file order, scattered, null, of every list type."""

from __future__ import annotations

import errno
import io
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sqid_lib.errors import CorruptFileError, DiskError, DuplicateKeyError, SchemaError
from sqid_lib.files import File
from sqid_lib.joined import joins, vector_lookup
from sqid_lib.tables.vector_columns import present

TYPES = {
    "list": pa.list_(pa.float32()),
    "large": pa.large_list(pa.float32()),
    "fixed": pa.list_(pa.float32(), 3),
    "double": pa.list_(pa.float64()),
}


def write(path: Path, ids: list[str], matrix: np.ndarray, dtype: str = "list", row_group: int = 4) -> None:
    rows = [None if np.isnan(v).all() else v.tolist() for v in matrix]
    columns = {"product_id": ids, "clip_text_features": pa.array(rows, TYPES[dtype])}
    columns["clip_image_features"] = pa.array([r and [x + 1 for x in r] for r in rows], TYPES[dtype])
    pq.write_table(pa.table(columns), path, row_group_size=row_group)


def keys(ids: list[str]) -> pa.Table:
    return pa.table(
        [ids, ["us"] * len(ids)], schema=pa.schema([("product_id", pa.string()), ("product_locale", pa.string())])
    )


def test_which_rows_have_a_vector_that_is_not_zero(tmp_path: Path) -> None:
    matrix = np.array([[1, 2, 3], [0, 0, 0], [np.nan] * 3, [0, 0, 1]], np.float32)
    write(tmp_path / "a.parquet", ["a", "b", "c", "d"], matrix, row_group=2)
    found = joins.open_product_vectors([File(str(tmp_path / "a.parquet"))])
    assert found.present("clip_text_features").tolist() == [True, False, False, True]
    assert found.present("clip_image_features").tolist() == [True, True, False, True]
    assert joins.without_text(found, keys(["d", "gone", "b", "a"])).to_pydict()["product_id"] == ["gone", "b"]


def test_vectors_of_a_remote_file_are_read_by_one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a thread of pyarrow meets, it may still hold when the interpreter ends, which then aborts."""
    write(tmp_path / "a.parquet", ["a", "b"], np.ones((2, 3), np.float32))
    content, threads = (tmp_path / "a.parquet").read_bytes(), set()

    class Remote(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            threads.add(threading.get_ident())
            return super().read(size)

    monkeypatch.setattr("sqid_lib.tables.content.open_ranges", lambda _: Remote(content))
    lookup = joins.open_product_vectors([File("https://host/a.parquet")])
    threads.clear()
    assert [len(taken) for taken in lookup.take(np.array([1, 0]))] == [2, 2]
    assert threads == {threading.get_ident()}
    lookup.close()


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 20),
    seed=st.integers(0, 99),
    row_group=st.integers(1, 8),
    dtype=st.sampled_from(sorted(TYPES)),
    files=st.integers(1, 3),
    big_groups=st.booleans(),
    memory=st.sampled_from([0, 10**6]),
)
def test_each_key_gets_its_own_vector(
    tmp_path_factory: pytest.TempPathFactory,
    count: int,
    seed: int,
    row_group: int,
    dtype: str,
    files: int,
    big_groups: bool,
    memory: int,
) -> None:
    rng, root = np.random.default_rng(seed), tmp_path_factory.mktemp("v")
    ids = [f"B{i}" for i in rng.permutation(count)]
    matrix = rng.normal(size=(count, 3)).astype(np.float32)
    matrix[rng.random(count) < 0.2] = np.nan
    matrix[0] = [1, 2, 3]  # at least one vector decides the width
    pieces = np.array_split(np.arange(count), files)
    paths = []
    for n, part in enumerate(pieces):
        path = root / f"{n}.parquet"
        write(path, [ids[i] for i in part], matrix[part], dtype, row_group)
        paths.append(File(str(path)))
    asked = [*sorted(ids), "unknown"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vector_lookup, "_DIRECT_GROUP_ROWS", 0 if big_groups else 100)
        patch.setattr(vector_lookup, "_BLOCK_ROWS", 4)
        found = joins.open_product_vectors(paths, root / "scratch", memory)
        ordered = found.in_order(joins.find_rows(found, keys(asked)))
        parts = [ordered.take(i, min(i + 3, len(asked))) for i in range(0, len(asked), 3)]
        whole = ordered.take(0, len(asked))  # of memory that was given back
        text, image = (np.concatenate(column) for column in zip(*parts, strict=True))
        found.close()
    expected = {i: np.nan_to_num(v) for i, v in zip(ids, matrix, strict=True)} | {"unknown": np.zeros(3)}
    np.testing.assert_array_equal(text, np.array([expected[i] for i in asked], np.float32))
    has = np.array([expected[i].any() for i in asked])
    np.testing.assert_array_equal(image, np.where(has[:, None], text + 1, 0))
    np.testing.assert_array_equal(present(image), has)
    for again, once in zip(whole, (text, image), strict=True):
        np.testing.assert_array_equal(again, once)
    assert not (root / "scratch").exists() or list((root / "scratch").iterdir()) == []


def test_vectors_of_unequal_width_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    column = pa.array([[1.0, 2.0], [1.0]], pa.list_(pa.float32()))
    pq.write_table(
        pa.table({"product_id": ["a", "b"], "clip_text_features": column, "clip_image_features": column}), path
    )
    found = joins.open_product_vectors([File(str(path))])
    with pytest.raises(SchemaError, match=r"a\.parquet.*expected 2, got \[1\], first in row 1"):
        found.take(np.array([0, 1]))


def test_a_doubled_key_is_shown(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", ["x", "y", "x"], np.ones((3, 3), np.float32))
    with pytest.raises(DuplicateKeyError, match=r"\(x\)"):
        joins.open_product_vectors([File(str(tmp_path / "a.parquet"))])


def test_a_file_without_any_vector_is_reported(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", ["x"], np.full((1, 3), np.nan, np.float32))
    with pytest.raises(CorruptFileError, match="no row of the file has a vector"):
        joins.open_product_vectors([File(str(tmp_path / "a.parquet"))])


def test_a_full_disk_is_reported_with_the_space_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.parquet", ["x", "y"], np.ones((2, 3), np.float32))
    found = joins.open_product_vectors([File(str(tmp_path / "a.parquet"))], tmp_path / "scratch")

    class Full:
        def close(self) -> None: ...

        def write(self, _: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: Full())
    monkeypatch.setattr(vector_lookup, "_DIRECT_GROUP_ROWS", 0)
    with pytest.raises(DiskError, match="GB free"):
        found.in_order(np.array([0, 1]))
