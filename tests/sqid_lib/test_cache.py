"""The cache's place: which settings move it, and what happens where it cannot be written."""

from __future__ import annotations

import logging
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from loopback_hub import LoopbackHub
from tiny_release import write_release

from sqid_lib import cache
from sqid_lib.errors import DiskError, UsageError
from sqid_lib.store import EmbeddingStore
from sqid_lib.streams.open import stream_pairs

NOT_WRITABLE = Path("/proc/sqid")  # no folder can be made there, not even by root


@pytest.fixture
def read_only_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A home that cannot be written; returns the folder of temporary files."""
    for name in ("SQID_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", lambda: NOT_WRITABLE)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path / "temporary"


def test_a_temporary_folder_where_home_cannot_be_written(
    read_only_home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    release = write_release(tmp_path / "release")
    with caplog.at_level(logging.WARNING):
        first = EmbeddingStore.open(release, progress=False)
    assert first.path.is_relative_to(read_only_home)
    assert stat.S_IMODE(first.path.parent.stat().st_mode) == 0o700
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith(f"{NOT_WRITABLE}/.cache/sqid cannot be written: {first.path.parent} is used instead.")
    assert all(name in message for name in ("SQID_CACHE", "HF_HOME", "cache_dir"))
    assert "\n" not in message
    assert EmbeddingStore.open(release, progress=False).path == first.path  # converted once
    assert sum(len(batch.gain) for batch in stream_pairs(release, format="numpy")) == 84


@pytest.mark.parametrize("named", ["SQID_CACHE", "cache_dir"])
def test_a_place_that_was_named_is_not_replaced(
    read_only_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    release = write_release(tmp_path / "release")
    options = {"cache_dir": NOT_WRITABLE} if named == "cache_dir" else {}
    if named == "SQID_CACHE":
        monkeypatch.setenv("SQID_CACHE", str(NOT_WRITABLE))
    with pytest.raises(
        DiskError, match=r"/proc/sqid: the cache cannot be written. Set SQID_CACHE or HF_HOME to a folder"
    ):
        EmbeddingStore.open(release, progress=False, **options)  # type: ignore[arg-type]
    assert not list(read_only_home.iterdir())


def test_a_conversion_in_a_cache_that_is_read_only_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = write_release(tmp_path / "release")
    first = EmbeddingStore.open(release, cache_dir=tmp_path / "cache", progress=False)
    monkeypatch.setattr(cache, "writable", lambda folder: False)
    again = EmbeddingStore.open(release, cache_dir=tmp_path / "cache", progress=False)
    assert np.array_equal(again.text_features, first.text_features)
    with pytest.raises(DiskError, match="the cache cannot be written"):
        EmbeddingStore.open(release, cache_dir=tmp_path / "cache", progress=False, dtype="float16")


def test_a_cache_dir_that_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = write_release(tmp_path / "release")
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(UsageError, match=f"{file}: cache_dir is a file; expected a folder"):
        EmbeddingStore.open(release, cache_dir=file)
    monkeypatch.setenv("SQID_CACHE", str(file))
    with pytest.raises(UsageError, match=f"{file}: the cache is a file; expected a folder"):
        EmbeddingStore.open(release)


def test_the_temporary_folder_of_another_user_is_not_used(
    read_only_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = cache.temporary_cache()
    theirs.mkdir()
    assert cache.writable(theirs)
    monkeypatch.setattr(cache, "temporary_cache", lambda: theirs)
    monkeypatch.setattr("os.getuid", lambda: 12345)
    assert not cache.writable(theirs)
    assert cache.cache_places() == (NOT_WRITABLE / ".cache" / "sqid",)
    with pytest.raises(DiskError, match="the cache cannot be written"):
        cache.writable_place(cache.cache_places())


def test_a_link_in_place_of_the_temporary_folder_is_not_used(read_only_home: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    cache.temporary_cache().symlink_to(tmp_path / "elsewhere")
    assert not cache.writable(cache.temporary_cache())
    assert len(cache.cache_places()) == 1


def test_downloads_move_as_well(read_only_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    from huggingface_hub import constants

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert cache.download_cache(None) is None
    assert cache.download_cache(tmp_path / "own") == tmp_path / "own" / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(NOT_WRITABLE))
    assert cache.download_cache(None) == cache.temporary_cache() / "hub"
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    assert cache.download_cache(None) is None


_READ = """
import sys
from sqid_lib import EmbeddingStore, stream_pairs
store = EmbeddingStore.open("ORG/sqid", progress=False)
print(store.path, sum(len(batch.gain) for batch in stream_pairs("ORG/sqid", format="numpy")))
"""


def test_the_hub_with_a_home_that_cannot_be_written(tmp_path: Path) -> None:
    release = write_release(tmp_path / "release")
    with LoopbackHub(tmp_path / "hub") as hub:
        hub.add_repo("ORG/sqid", release)
        env = {k: v for k, v in hub.env().items() if k not in ("HF_HUB_CACHE", "HF_DATASETS_CACHE", "SQID_CACHE")}
        env |= {"HF_HOME": str(NOT_WRITABLE), "HOME": str(NOT_WRITABLE), "TMPDIR": str(tmp_path)}
        command = [sys.executable, "-W", "ignore", "-c", _READ]
        done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=100, check=False)
    path, pairs = done.stdout.split() or ["", ""]
    assert (Path(path).parent.parent, pairs) == (tmp_path, "84"), done.stderr
    assert "SQID_CACHE" in done.stderr
