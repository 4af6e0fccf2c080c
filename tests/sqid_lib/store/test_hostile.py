"""Releases from untrusted places and caches that cannot be written: a clear error, and no memory or time lost."""

from __future__ import annotations

import base64
import errno
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_release import write_release

from sqid_lib import schemas
from sqid_lib.errors import ContractError, DiskError, MissingFileError, SchemaError, SqidError
from sqid_lib.files import shard_name
from sqid_lib.store import EmbeddingStore, convert
from sqid_lib.streams.open import stream_pairs

FEATURES = shard_name(schemas.FEATURES, "test", 0, 1)
Reader = Callable[[Path], Any]


def open_store(release: Path) -> EmbeddingStore:
    return EmbeddingStore.open(release, progress=False)


def stream(release: Path) -> int:
    return sum(len(batch.gain) for batch in stream_pairs(release, format="numpy", texts=["product_title"]))


@pytest.fixture(params=[open_store, stream])
def read(request: pytest.FixtureRequest) -> Reader:
    reader: Reader = request.param
    return reader


@pytest.fixture
def release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SQID_CACHE", str(tmp_path / "cache"))
    path = write_release(tmp_path / "release", shards=1)
    (path / schemas.SHA256SUMS).unlink()
    return path


def forge_width(path: Path, width: int) -> None:
    """Let the schema of a parquet file state another width than its vectors have."""
    table = pq.read_table(path)
    vectors = [pa.types.is_fixed_size_list(field.type) for field in table.schema]
    stated = [
        pa.field(f.name, pa.list_(pa.float32(), width)) if v else f for f, v in zip(table.schema, vectors, strict=True)
    ]
    columns = [c.cast(pa.list_(pa.float32())) if v else c for c, v in zip(table.columns, vectors, strict=True)]
    plain = pa.table(columns, names=table.column_names)
    with pq.ParquetWriter(path, plain.schema, store_schema=False) as writer:
        writer.write_table(plain)
        forged = base64.b64encode(pa.schema(stated).serialize().to_pybytes())
        writer.add_key_value_metadata({"ARROW:schema": forged.decode()})


@pytest.mark.parametrize("width", [2**31 - 1, 2**16 + 1, 2**16, 9])
def test_a_width_that_the_vectors_do_not_have(release: Path, read: Reader, width: int) -> None:
    forge_width(release / FEATURES, width)
    with pytest.raises(SqidError) as raised:
        read(release)
    impossible = "no vectors have this width; expected 1 to 65,536" in str(raised.value)
    assert impossible == (width > 2**16)
    assert not isinstance(raised.value, DiskError)


@pytest.mark.parametrize("all_null", [True, False])
def test_has_image_that_is_null(release: Path, read: Reader, all_null: bool) -> None:
    table = pq.read_table(release / FEATURES)
    values = table["has_image"].to_pylist()
    column = pa.nulls(len(values)) if all_null else pa.array([None, *values[1:]])
    pq.write_table(table.set_column(table.column_names.index("has_image"), "has_image", column), release / FEATURES)
    error = SchemaError if all_null else ContractError
    with pytest.raises(error, match=r"column .has_image. (has the wrong type|holds a null)"):
        read(release)


@pytest.mark.parametrize("name", [FEATURES, shard_name(schemas.JUDGMENTS, "test", 0, 1)])
def test_a_pipe_is_no_file_of_a_release(release: Path, read: Reader, name: str) -> None:
    (release / name).unlink()
    os.mkfifo(release / name)
    with pytest.raises(MissingFileError):
        read(release)


def test_texts_of_more_than_two_gigabytes_have_a_type_that_holds_them(release: Path) -> None:
    for batches in (
        open_store(release).pairs(texts=["product_title", "query"], format="numpy"),
        stream_pairs(release, texts=["product_title", "query"], format="numpy"),
    ):
        batch = next(iter(batches))
        assert batch.texts["product_title"][0].startswith("title of B")
    store = open_store(release)
    texts = store._texts(["product_title", "query"])
    assert texts is not None
    assert {column.type for column in (*texts.products.values(), *texts.queries.values())} == {pa.large_string()}


def test_a_failure_of_the_disk_beside_the_writing_is_not_lost(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []

    def fail_once(descriptor: int) -> None:
        synced.append(descriptor)
        if len(synced) == 1:  # as the system does: a later fsync succeeds
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(convert, "_SYNC_BYTES", 1_000)  # over half of a matrix, so that no later write waits for it
    monkeypatch.setattr(convert, "os", SimpleNamespace(**{**vars(os), "fsync": fail_once}))
    with pytest.raises(DiskError, match=os.strerror(errno.EIO)):
        open_store(release)


@pytest.mark.parametrize(
    ("place", "code"),
    [
        ("FileLock", errno.EROFS),
        ("FileLock", errno.EACCES),
        ("tempfile.mkdtemp", errno.ENOSPC),
        ("np.save", errno.ENOSPC),
        ("checksums.state", errno.EIO),
    ],
)
def test_a_cache_that_cannot_be_written_is_a_disk_error_with_advice(
    release: Path, monkeypatch: pytest.MonkeyPatch, place: str, code: int
) -> None:
    def fail(*_: object, **__: object) -> Any:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as context:
        context.setattr(f"{convert.__name__}.{place}", fail)
        with pytest.raises(DiskError) as raised:
            open_store(release)
    message = str(raised.value)
    assert str(release.parent / "cache") in message and os.strerror(code) in message
    assert all(name in message for name in ("SQID_CACHE", "HF_HOME", "cache_dir"))
    assert not [path for path in (release.parent / "cache").glob(".*") if path.is_dir()]
    assert len(open_store(release).judgments) == 84
