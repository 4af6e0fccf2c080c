"""sqid_lib.object_store: whole objects by name, on a small S3 of our own and on a filesystem of fsspec."""

from __future__ import annotations

import pickle
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from loopback_s3 import LoopbackS3, serving

from sqid_lib import object_store
from sqid_lib.errors import DiskError, DownloadError, MissingFileError, UsageError
from sqid_lib.object_store import ObjectStore, is_object_store

LARGE = 11_000_000  # two parts of an upload


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackS3]:
    with serving(monkeypatch) as running:
        yield running


@pytest.fixture(params=["s3://bucket/run 1", "memory://"])
def store(request: pytest.FixtureRequest, s3: LoopbackS3) -> ObjectStore:
    del s3
    return ObjectStore(request.param if request.param != "memory://" else f"memory://{uuid.uuid4().hex}")


def test_objects_are_written_read_and_removed_by_name(store: ObjectStore, tmp_path: Path) -> None:
    assert (store.read("a/b"), store.size("a/b"), store.get("a/b", tmp_path / "none")) == (None, None, False)
    assert not (tmp_path / "none").exists()
    store.write("a/b", b"first")
    store.write("a/b", b"second")
    assert (store.read("a/b"), store.size("a/b")) == (b"second", 6)
    assert store.below("a").read("b") == b"second"
    assert pickle.loads(pickle.dumps(store)).read("a/b") == b"second"
    with store.open("a/b") as file:
        assert (file.seek(2), file.read(3)) == (2, b"con")
    store.remove("a/b")
    store.remove("a/b")
    assert store.size("a/b") is None
    with pytest.raises(MissingFileError, match="a/b: no such object"):
        store.open("a/b")


def test_a_large_file_comes_back_as_it_was(store: ObjectStore, tmp_path: Path) -> None:
    data = bytes(range(250)) * (LARGE // 250)
    (tmp_path / "large").write_bytes(data)
    store.put(tmp_path / "large", "large")
    assert store.size("large") == LARGE
    assert store.get("large", tmp_path / "back/large")
    assert (tmp_path / "back/large").read_bytes() == data


@pytest.mark.parametrize(
    ("code", "status", "words"),
    [
        ("AccessDenied", 403, "ACCESS_DENIED: Access Denied"),
        ("NoSuchBucket", 404, "NO_SUCH_BUCKET: "),
    ],
)
def test_a_refusal_to_write_is_one_line(s3: LoopbackS3, code: str, status: int, words: str) -> None:
    s3.refuse = lambda _method, _key: (status, code, "Access Denied")
    with pytest.raises(DiskError, match=f"^s3://bucket/x/a: the object store failed: {words}.*credentials") as raised:
        ObjectStore("s3://bucket/x").write("a", b"1")
    assert "\n" not in str(raised.value)
    assert "loopback-" not in str(raised.value)  # neither key


def test_a_refusal_to_read_is_not_a_missing_object(s3: LoopbackS3, tmp_path: Path) -> None:
    store = ObjectStore("s3://bucket/x")
    store.write("a", b"1")
    s3.refuse = lambda _method, _key: (403, "AccessDenied", "Access Denied")
    for read in (store.read, store.size, lambda name: store.get(name, tmp_path / "a")):
        with pytest.raises(DownloadError, match=r"^s3://bucket/x/a: the object store failed: ACCESS_DENIED"):
            read("a")


def test_a_store_that_does_not_answer_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(object_store, "_TRIES", 1)
    object_store._filesystem.cache_clear()
    try:
        with pytest.raises(DownloadError, match="the object store failed: NETWORK_CONNECTION"):
            ObjectStore("s3://bucket/x").read("a")
    finally:
        object_store._filesystem.cache_clear()


def test_a_full_disk_here_is_not_the_fault_of_the_store(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write("a", b"1")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DiskError, match="cannot be written"):
        store.get("a", tmp_path / "file/a")


@pytest.mark.parametrize(
    ("text", "is_one"),
    [("s3://b/p", True), ("gs://b", True), ("memory://x", True), ("WORK", False), ("/a/s3://b", False)]
    + [(other, False) for other in ("https://h/p", "hf://datasets/a/b", "file:///a", "ftp://h/a", "C:\\work")],
)
def test_which_addresses_are_object_stores(text: str, is_one: bool) -> None:
    assert is_object_store(text) is is_one


@pytest.mark.parametrize("text", ["s3://key:secret@bucket/x", "s3://bucket/x?access_key=k", "https://h/x", "s3://"])
def test_credentials_and_other_addresses_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not the address of an object store") as raised:
        ObjectStore(text)
    assert "secret" not in str(raised.value)


def test_a_store_without_its_package_is_refused() -> None:
    with pytest.raises(UsageError, match="no package for this address"):
        ObjectStore("oss://x/y").read("a")
