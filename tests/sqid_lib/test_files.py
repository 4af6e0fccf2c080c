"""Files appear whole or not at all, and names of shards read back as they were written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqid_lib import files


def test_a_device_or_pipe_is_written_to_and_stays(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    (tmp_path / "link").symlink_to(pipe)
    for path in (pipe, tmp_path / "link"):
        files.write_text(path, "text")
        assert os.read(reader, 10) == b"text" and pipe.is_fifo()
    os.close(reader)
    output, stdout = (tmp_path / "output").open("w"), tmp_path / "stdout"
    stdout.symlink_to(f"/proc/self/fd/{output.fileno()}")
    files.write_text(stdout, "text")
    assert stdout.is_symlink() and (tmp_path / "output").read_text() == "text"
    output.close()
    assert len(list(tmp_path.iterdir())) == 4


def test_a_file_that_fails_halfway_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "f.run"
    files.write_text(path, "old\n")
    with pytest.raises(RuntimeError), files.replacing(path) as part:
        part.write_text("half")
        assert files.is_part(part)
        raise RuntimeError
    assert path.read_text() == "old\n"
    assert [p.name for p in path.parent.iterdir()] == ["f.run"]


def test_a_file_is_on_disk_before_it_has_its_name_and_its_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, synced = tmp_path / "f.run", list[tuple[int, bool]]()
    monkeypatch.setattr("os.fsync", lambda descriptor: synced.append((os.fstat(descriptor).st_ino, path.exists())))
    files.write_text(path, "new\n")
    assert synced == [(path.stat().st_ino, False), (tmp_path.stat().st_ino, True)]


@given(st.from_regex(r"[a-z]{1,9}", fullmatch=True), st.integers(0, 99_999), st.integers(0, 99_999))
def test_names_of_shards_read_back(name: str, shard: int, shards: int) -> None:
    assert files.parse_shard_name(files.shard_name("urls", name, shard, shards)) == (name, shard, shards)
    assert files.parse_numbered_name(files.numbered_name(name, shard)) == (name, shard)


@pytest.mark.parametrize(
    "name", ["test.parquet", "test-00000-of-1.parquet", ".test-00000-of-00001.parquet.part", "x.csv"]
)
def test_other_names_are_no_shards(name: str) -> None:
    assert files.parse_shard_name(name) is None
    assert files.parse_numbered_name(name) is None
