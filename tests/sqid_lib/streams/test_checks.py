"""What a store and a stream refuse: the same damage is the same error in both, whenever it can be seen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_release import write_release

from sqid_lib import schemas
from sqid_lib.errors import (
    ContractError,
    CorruptFileError,
    DuplicateKeyError,
    EmptyFileError,
    IntegrityError,
    LabelError,
    MissingFileError,
    SchemaError,
    StoreError,
)
from sqid_lib.files import shard_name
from sqid_lib.store import EmbeddingStore
from sqid_lib.streams.open import stream_pairs

Change = Callable[[pa.Table], pa.Table]
FEATURES, QUERIES, JUDGMENTS = schemas.FEATURES, schemas.QUERIES, schemas.JUDGMENTS
TEXT, IMAGE = schemas.VECTOR_COLUMNS


@pytest.fixture
def release(tmp_path: Path) -> Path:
    return write_release(tmp_path / "release")


@pytest.fixture(params=["store", "stream"])
def read_all(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Path], int]:
    """Open a release and read an epoch of it in one of the two ways; returns the pairs."""

    def store(release: Path, **options: Any) -> int:
        opened = EmbeddingStore.open(release, cache_dir=tmp_path / "cache", progress=False)
        return sum(len(batch.gain) for batch in opened.pairs(format="numpy", **options))

    def stream(release: Path, **options: Any) -> int:
        return sum(len(batch.gain) for batch in stream_pairs(release, format="numpy", **options))

    return store if request.param == "store" else stream


def read(release: Path, config: str) -> pa.Table:
    return pa.concat_tables(pq.read_table(path) for path in sorted((release / "data" / config).glob("test-*")))


def change(release: Path, config: str, how: Change, *, sums: bool = False) -> None:
    """Change the rows of a config; the checksums go, unless they are to disagree."""
    table = how(read(release, config))
    if not sums:
        (release / schemas.SHA256SUMS).unlink(missing_ok=True)
    for path in (release / "data" / config).glob("test-*"):
        path.unlink()
    pq.write_table(table, release / shard_name(config, "test", 0, 1), row_group_size=9)


def with_column(name: str, values: Callable[[list[Any]], Any]) -> Change:
    """Replace a column by what `values` makes of its values."""

    def how(table: pa.Table) -> pa.Table:
        new = values(table[name].to_pylist())
        kept = None if isinstance(new, pa.Array) else table.schema.field(name).type
        return table.set_column(table.column_names.index(name), name, pa.array(new, kept) if kept else new)

    return how


def with_value(name: str, row: int, value: Any) -> Change:
    """Replace one value."""
    return with_column(name, lambda values: [value if i == row else old for i, old in enumerate(values)])


def vector_with(value: float) -> Callable[[list[Any]], list[Any]]:
    return lambda vectors: [*vectors[:-1], [*vectors[-1][:-1], value]]


def row_with_image(table: pa.Table) -> int:
    return int(np.flatnonzero(table["has_image"].to_numpy())[0])


def without_image_vector(table: pa.Table) -> pa.Table:
    return with_value(IMAGE, row_with_image(table), None)(table)


def without_judged_products(table: pa.Table) -> pa.Table:
    return table.slice(0, len(table) // 2)


def twice(table: pa.Table) -> pa.Table:
    return pa.concat_tables([table, table.slice(3, 1)])


def query_twice_with_another_vector(table: pa.Table) -> pa.Table:
    again = with_column(TEXT, lambda vectors: [[1.0] * 8])(table.slice(3, 1))
    return pa.concat_tables([table.slice(0, 4), again, table.slice(4)])


def same(value: Any) -> Callable[[list[Any]], list[Any]]:
    return lambda old: [value] * len(old)


def variable(vectors: list[Any]) -> pa.Array:
    """Lists of variable length, the first shorter than the rest."""
    return pa.array([vectors[0][:-1], *vectors[1:]], pa.list_(pa.float32()))


@pytest.mark.parametrize(
    ("config", "how", "error", "message"),
    [
        (FEATURES, without_judged_products, IntegrityError, "product: judged, and not in the release"),
        (FEATURES, twice, DuplicateKeyError, "product: a key occurs twice.*B0.*/us"),
        (FEATURES, lambda table: table.slice(0, 0), EmptyFileError, "product_features has no rows"),
        (FEATURES, with_value("product_id", 4, None), ContractError, "a row has no key"),
        (FEATURES, with_value(TEXT, 7, None), ContractError, "clip_text_features: a row has no vector"),
        (FEATURES, with_column(TEXT, vector_with(np.nan)), ContractError, "clip_text_features.*not finite: NaN beside"),
        (FEATURES, with_column(IMAGE, vector_with(np.inf)), ContractError, "clip_image_features.*not finite"),
        (FEATURES, with_column(TEXT, vector_with(None)), ContractError, "a vector holds a null"),  # type: ignore[arg-type]
        (FEATURES, with_column(TEXT, variable), SchemaError, "expected|differ in width"),
        (FEATURES, with_column("has_image", lambda v: pa.array(map(str, v))), SchemaError, "has_image.*expected bool"),
        (FEATURES, with_value("has_image", 5, None), ContractError, "'has_image' holds a null"),
        (FEATURES, without_image_vector, ContractError, "has_image is true and there is no vector"),
        (QUERIES, lambda table: table.slice(1), IntegrityError, "query_id: judged, and not in the release; got 7 rows"),
        (QUERIES, query_twice_with_another_vector, DuplicateKeyError, "query_id: a key occurs twice"),
        (QUERIES, lambda table: table.slice(0, 0), EmptyFileError, "query_features has no rows"),
        (QUERIES, with_value("query_id", 2, None), ContractError, "a row has no key"),
        (QUERIES, with_value(TEXT, 2, None), ContractError, "a row has no vector.*row 2"),
        (QUERIES, with_column(TEXT, vector_with(np.nan)), ContractError, "not finite"),
        (JUDGMENTS, with_value("esci_label", 9, None), LabelError, "a judgment has no label"),
        (JUDGMENTS, with_column("gain", same(5.0)), ContractError, "all labels have the same gain.*C 5, E 5"),
        (
            JUDGMENTS,
            with_value("gain", 9, np.nan),
            ContractError,
            "expected a number of 0 or more in every row, got nan",
        ),
        (JUDGMENTS, with_value("gain", 9, -1.0), ContractError, "got -1.0"),
        (JUDGMENTS, with_value("gain", 9, 0.5), ContractError, "a label has several gains"),
        (JUDGMENTS, with_value("gain", 9, None), ContractError, "a judgment has no gain"),
        (JUDGMENTS, with_column("gain", lambda v: pa.array(map(str, v))), SchemaError, "gain.*wrong type"),
        (JUDGMENTS, with_value("product_id", 1, None), ContractError, "a row has no key"),
        (JUDGMENTS, with_value("query_id", 1, None), ContractError, "a row has no key"),
        (JUDGMENTS, lambda table: table.drop_columns(["gain"]), SchemaError, "gain"),
        (JUDGMENTS, lambda table: table.slice(0, 0), StoreError, "there are no judgments"),
    ],
)
def test_the_same_error_in_both(
    release: Path, read_all: Callable[[Path], int], config: str, how: Change, error: type[Exception], message: str
) -> None:
    change(release, config, how)
    with pytest.raises(error, match=message) as raised:
        read_all(release)
    assert raised.type is error


def test_a_missing_shard(release: Path, read_all: Callable[[Path], int]) -> None:
    (release / shard_name(FEATURES, "test", 1, 2)).unlink()
    with pytest.raises(MissingFileError, match=r"shards are missing.*test \(of 2\)': \[1\]"):
        read_all(release)


@pytest.mark.parametrize("config", [FEATURES, QUERIES, JUDGMENTS])
def test_a_file_that_is_not_the_one_of_the_checksums(
    release: Path, read_all: Callable[[Path], int], config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SQID_CACHE", str(tmp_path / "own"))
    assert read_all(release) == 84
    path = release / shard_name(config, "test", 1, 2)
    table = pq.read_table(path)
    pq.write_table(table, path, compression="none")
    with pytest.raises(CorruptFileError, match="not the one in SHA256SUMS") as raised:
        read_all(release)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("content", [b"\xff\xfe not text", b"only-one-word\n"])
def test_checksums_that_cannot_be_read(release: Path, read_all: Callable[[Path], int], content: bytes) -> None:
    (release / schemas.SHA256SUMS).write_bytes(content)
    with pytest.raises(CorruptFileError, match=r"SHA256SUMS: not a list of checksums.*UTF-8"):
        read_all(release)


def test_files_that_macos_leaves_are_passed_over(release: Path, read_all: Callable[[Path], int]) -> None:
    for config in (FEATURES, QUERIES, JUDGMENTS):
        folder = release / "data" / config
        for path in list(folder.iterdir()):
            path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X")
        (folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    assert read_all(release) == 84


def test_float16_that_does_not_fit(release: Path) -> None:
    change(release, FEATURES, with_column(TEXT, vector_with(1e6)))
    assert sum(len(batch.gain) for batch in stream_pairs(release, format="numpy")) == 84
    with pytest.raises(ContractError, match="not finite in float16"):
        list(stream_pairs(release, format="numpy", dtype="float16"))


def test_one_label_may_have_any_gain(release: Path, read_all: Callable[[Path], int]) -> None:
    change(release, JUDGMENTS, with_column("esci_label", same("bought")))
    change(release, JUDGMENTS, with_column("gain", same(5.0)))
    assert read_all(release) == 84


def test_nan_of_an_unjudged_product_is_found_as_well(release: Path, read_all: Callable[[Path], int]) -> None:
    """In the row groups that are read, every row is checked."""
    judged = set(read(release, JUDGMENTS)["product_id"].to_pylist())
    ids = read(release, FEATURES)["product_id"].to_pylist()
    free = next(row for row, product in enumerate(ids) if product not in judged)
    change(release, FEATURES, with_value(TEXT, free, [1.0, np.nan] * 4))
    with pytest.raises(ContractError, match="not finite"):
        read_all(release)
