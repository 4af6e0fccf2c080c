"""States: plain values that name the content, the same on another mount, and refused where they cannot be right."""

from __future__ import annotations

import io
import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import warm_python
from file_server import FileServer
from loopback_hub import LoopbackHub

from sqid_lib import schemas
from sqid_lib.errors import CorruptFileError, StoreError
from sqid_lib.files import shard_name
from sqid_lib.store import EmbeddingStore
from sqid_lib.streams.open import stream_pairs

Open = Callable[..., Any]


def pairs_of(batches: Any) -> list[tuple[int, int]]:
    found = [list(zip(b.query_id.tolist(), b.product_index.tolist(), strict=True)) for b in batches]
    return list(itertools.chain(*found))


def rebuild(release: Path, rows: int) -> None:
    """The same rows in row groups of another size."""
    for path in (release / "data" / schemas.FEATURES).glob("*.parquet"):
        pq.write_table(pq.read_table(path), path, row_group_size=rows)


def test_a_state_is_plain(open_pairs: Open) -> None:
    numbers: Any = {"batch_size": np.int64(5), "seed": np.int32(3), "rank": np.int64(0), "world_size": np.uint8(2)}
    stream = open_pairs(shuffle=np.True_, drop_last=np.False_, **numbers)
    stream.set_epoch(np.int64(2))
    next(iter(stream))
    state = stream.state_dict()
    assert {type(value) for value in state.values()} <= {int, bool, str}
    assert (state["epoch"], state["position"], state["batch_size"], state["shuffle"]) == (2, 1, 5, True)
    assert json.loads(json.dumps(state)) == state
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    whole = pairs_of(stream)
    stream.load_state_dict(torch.load(file, weights_only=True))
    assert pairs_of(stream) == whole[5:]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"position": -3}, "position: the state is damaged; expected a whole number from 0 to 9, got -3"),
        ({"position": 10**9}, "position: the state is damaged; expected a whole number from 0 to 9, got 1000000000"),
        ({"position": 10}, "from 0 to 9, got 10"),
        ({"position": 2.0}, r"position: the state is damaged; .* got 2\.0"),
        ({"position": True}, "position: the state is damaged"),
        ({"position": (0, 4)}, "position: the state is damaged"),
        ({"epoch": 1.5}, r"epoch: the state is damaged; expected a whole number of 0 or more, got 1\.5"),
        ({"epoch": -1}, "epoch: the state is damaged"),
        ({"epoch": None}, "epoch: the state is damaged"),
        ({"format": 1}, "format: the state was saved by another version of sqid; expected 2, got 1. Start the epoch"),
        ({"batch_size": 7}, "batch_size: the state is of another stream; expected 9, got 7"),
        ({"rows": "pairs x"}, "rows: the state is of another stream"),
    ],
)
def test_states_that_cannot_be(open_pairs: Open, change: Any, message: str) -> None:
    stream = open_pairs(batch_size=9, drop_last=True)
    with pytest.raises(StoreError, match=message):
        stream.load_state_dict({**stream.state_dict(), **change})
    assert len(list(stream)) == 9  # a refused state changes nothing


@pytest.mark.parametrize("state", [{}, None, [], {"epoch": 0}])
def test_what_is_not_a_state(open_pairs: Open, state: Any) -> None:
    with pytest.raises(StoreError, match="not a state of a stream"):
        open_pairs().load_state_dict(state)


def test_states_of_older_versions_are_refused(open_pairs: Open) -> None:
    state = {"epoch": 0, "position": (3, 1), "rows": "/mnt/a/release None float32 4096 ab", "batch_size": 1024}
    with pytest.raises(StoreError, match="saved by another version of sqid; expected 2, got an older state without"):
        open_pairs().load_state_dict(state)


@pytest.mark.parametrize("sums", [True, False])
def test_the_same_release_elsewhere_resumes(tiny: Path, tmp_path: Path, sums: bool) -> None:
    first, second = tmp_path / "mount-a" / "release", tmp_path / "mount-b"
    shutil.copytree(tiny, first)
    if not sums:
        (first / schemas.SHA256SUMS).unlink()
    shutil.copytree(first, second, copy_function=shutil.copyfile)  # with other times
    stream = stream_pairs(first, batch_size=8, shuffle=True)
    whole = pairs_of(stream)
    list(itertools.islice(stream, 4))
    other = stream_pairs(second, batch_size=8, shuffle=True)
    other.load_state_dict(stream.state_dict())
    assert pairs_of(other) == whole[32:]


def test_a_release_rebuilt_in_place_is_refused(tiny: Path, tmp_path: Path) -> None:
    release = shutil.copytree(tiny, tmp_path / "release")
    (release / schemas.SHA256SUMS).unlink()
    state = stream_pairs(release, batch_size=8).state_dict()
    rebuild(release, 4)
    with pytest.raises(StoreError, match="rows: the state is of another stream"):
        stream_pairs(release, batch_size=8).load_state_dict(state)


def test_a_file_that_changes_while_it_is_streamed(tiny: Path, tmp_path: Path) -> None:
    release = shutil.copytree(tiny, tmp_path / "release")
    (release / schemas.SHA256SUMS).unlink()
    stream: Any = stream_pairs(release, batch_size=8)
    rebuild(release, 4)
    for file in stream.release.features:
        file._close()  # as a worker of a DataLoader that begins now
    with pytest.raises(CorruptFileError, match="the file changed while it was streamed"):
        list(stream)


def test_the_names_of_other_content_differ(tiny: Path, tmp_path: Path) -> None:
    name = stream_pairs(tiny).name
    assert stream_pairs(tiny).name == name
    assert stream_pairs(tiny, has_image=True).name != name
    for config, column in ((schemas.JUDGMENTS, "query_id"), (schemas.QUERIES, "query_id")):
        release = shutil.copytree(tiny, tmp_path / config)
        (release / schemas.SHA256SUMS).unlink()
        path = release / shard_name(config, "test", 0, 2)
        table = pq.read_table(path)
        assert column in table.column_names
        order = np.arange(len(table))[::-1].tolist() if config == schemas.QUERIES else list(range(len(table) - 1))
        pq.write_table(table.take(order), path)
        assert stream_pairs(release).name != name


# -- one name wherever the release lies -------------------------------------------------------------------------------

_NAME = """
import sys
from sqid_lib import stream_pairs
print(stream_pairs(sys.argv[1], batch_size=8, format="numpy").name)
"""


def name_of(address: str, env: dict[str, str]) -> str:
    """The name of a stream in another process."""
    done = warm_python.run(_NAME, address, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_hub_http_and_a_local_copy_share_states(tiny: Path, tmp_path: Path) -> None:
    with LoopbackHub(tmp_path / "hub") as hub, FileServer(tiny) as server:
        hub.add_repo("ORG/sqid", tiny)
        names = {address: name_of(address, hub.env()) for address in (str(tiny), "ORG/sqid", server.url)}
    assert set(names.values()) == {stream_pairs(tiny, batch_size=8, format="numpy").name}, names


def test_states_of_a_store_do_not_name_its_place(tiny: Path, tmp_path: Path) -> None:
    stores = []
    for place in ("one", "two"):
        release = shutil.copytree(tiny, tmp_path / place / "release")
        stores.append(EmbeddingStore.open(release, cache_dir=tmp_path / place / "cache", progress=False))
    first, second = (store.pairs(batch_size=8, shuffle=True) for store in stores)
    list(itertools.islice(first, 4))
    whole = pairs_of(second)
    second.load_state_dict(first.state_dict())
    assert pairs_of(second) == whole[32:]
