"""A release on an object store is read from a checked copy in the cache."""

from __future__ import annotations

import hashlib
import uuid
from pathlib import Path

import datasets
import pytest

from sqid_lib import schemas
from sqid_lib.errors import CorruptFileError, MissingFileError
from sqid_lib.object_store import ObjectStore
from sqid_lib.sources import parse_address
from sqid_lib.sources.object_copy import local_copy

FILES = {"README.md": b"card", "data/urls/test-00000-of-00001.parquet": b"rows"}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    monkeypatch.setenv("SQID_CACHE", str(tmp_path / "cache"))
    store = ObjectStore(f"memory://{uuid.uuid4().hex}/sqid")
    put(store, FILES)
    return store


def put(store: ObjectStore, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        store.write(name, data)
    lines = (f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in files.items())
    store.write(schemas.SHA256SUMS, "".join(lines).encode())


def copied(folder: Path) -> dict[str, bytes]:
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    del files[schemas.SHA256SUMS]
    return files


def test_the_copy_follows_the_release(store: ObjectStore) -> None:
    address = parse_address(store.url)
    assert address.local is not None and copied(address.local) == FILES
    newer = {"README.md": b"another card"}
    put(store, newer)
    assert copied(local_copy(store.url)) == newer


def test_without_the_network_the_copy_is_used(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = local_copy(store.url)
    store.remove(schemas.SHA256SUMS)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    assert local_copy(store.url) == folder


def test_an_object_that_is_not_that_of_its_checksum_is_refused_until_it_is_mended(store: ObjectStore) -> None:
    store.write("README.md", b"other")
    with pytest.raises(CorruptFileError, match=r"sqid/README\.md: differs from SHA256SUMS"):
        local_copy(store.url)
    store.remove("README.md")
    with pytest.raises(MissingFileError, match=r"sqid/README\.md"):
        local_copy(store.url)
    store.write("README.md", FILES["README.md"])
    assert copied(local_copy(store.url)) == FILES


@pytest.mark.parametrize("line", ["../x", "/etc/x", "a/../../x", "a\\..\\x"])
def test_names_stay_in_the_copy(store: ObjectStore, line: str) -> None:
    store.write(schemas.SHA256SUMS, f"{'0' * 64}  {line}\n".encode())
    with pytest.raises(CorruptFileError, match=r"SHA256SUMS: is damaged"):
        local_copy(store.url)


def test_what_is_no_release_must_be_copied_to_a_disk(store: ObjectStore) -> None:
    with pytest.raises(MissingFileError, match=r"no release here.*copy other files to a disk"):
        parse_address(f"{store.url}/data")
