"""stream_pairs: every pair once over ranks and workers, exact resumption, and no epoch that ends in silence."""

from __future__ import annotations

import itertools
import json
import pickle
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loopback_hub import LoopbackHub
from tiny_release import write_release
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from sqid_lib import schemas
from sqid_lib.errors import CorruptFileError, IntegrityError, MissingFileError, SchemaError, StoreError, UsageError
from sqid_lib.files import shard_name
from sqid_lib.store import EmbeddingStore
from sqid_lib.streams import release_reader
from sqid_lib.streams.open import stream_pairs

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning"),
    pytest.mark.filterwarnings("ignore:Length of IterableDataset:UserWarning"),
]


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_release(tmp_path_factory.mktemp("stream") / "release", locales=("us", "es"))


@pytest.fixture(scope="module")
def store(release: Path, tmp_path_factory: pytest.TempPathFactory) -> EmbeddingStore:
    return EmbeddingStore.open(release, cache_dir=tmp_path_factory.mktemp("cache"), progress=False)


def keys(batches: Any) -> list[tuple[int, int]]:
    return [key for b in batches for key in zip(b.query_id.tolist(), b.product_index.tolist(), strict=True)]


def every_pair(store: EmbeddingStore) -> list[tuple[int, int]]:
    return sorted(zip(store.judgments["query_id"].to_pylist(), store.judgment_product_index.tolist(), strict=True))


@settings(max_examples=25, deadline=None)
@given(
    batch_size=st.integers(1, 40),
    world_size=st.integers(1, 9),  # the release has eight row groups
    shuffle=st.booleans(),
    buffer=st.integers(1, 80),
    prefetch=st.integers(0, 2),
)
def test_ranks_share_out_every_pair(
    release: Path, store: EmbeddingStore, batch_size: int, world_size: int, shuffle: bool, buffer: int, prefetch: int
) -> None:
    options: Any = {"batch_size": batch_size, "shuffle": shuffle, "buffer": buffer, "prefetch": prefetch}
    seen = []
    for rank in range(world_size):
        batches = list(stream_pairs(release, rank=rank, world_size=world_size, **options))
        assert all(len(batch.gain) == batch_size for batch in batches[:-1])
        seen += keys(batches)
    assert sorted(seen) == every_pair(store)


@settings(max_examples=25, deadline=None)
@given(data=st.data(), batch_size=st.integers(1, 30), buffer=st.integers(1, 80), world_size=st.integers(1, 3))
def test_resumes_at_any_batch(
    release: Path, data: st.DataObject, batch_size: int, buffer: int, world_size: int
) -> None:
    options: Any = {"batch_size": batch_size, "buffer": buffer, "shuffle": True, "world_size": world_size, "rank": 0}
    stream = stream_pairs(release, **options)
    stream.set_epoch(1)
    whole = [keys([batch]) for batch in stream]
    stop = data.draw(st.integers(0, len(whole)))
    list(itertools.islice(stream, stop))
    state = json.loads(json.dumps(stream.state_dict()))
    again = stream_pairs(release, **options)
    again.load_state_dict(state)
    assert [keys([batch]) for batch in again] == whole[stop:]


def test_content(release: Path, store: EmbeddingStore) -> None:
    gains = dict(
        zip(
            zip(store.judgment_query_index.tolist(), store.judgment_product_index.tolist(), strict=True),
            store.gain.tolist(),
            strict=True,
        )
    )
    for batch in stream_pairs(release, batch_size=11, shuffle=True, buffer=20):
        rows = [store.query_index(query) for query in batch.query_id.tolist()]
        products = batch.product_index.numpy()
        np.testing.assert_array_equal(batch.query_features, store.query_features[rows])
        np.testing.assert_array_equal(batch.text_features, store.text_features[products])
        np.testing.assert_array_equal(batch.image_features, store.image_features[products])
        np.testing.assert_array_equal(batch.has_image, store.has_image[products])
        expected = [gains[key] for key in zip(rows, products.tolist(), strict=True)]
        np.testing.assert_array_equal(batch.gain, np.array(expected, dtype=np.float32))


@pytest.mark.parametrize(
    "filters", [{"labels": ["E"]}, {"has_image": True}, {"has_image": False, "labels": ["I", "S"]}, {"split": "test"}]
)
def test_filters_as_the_store(release: Path, store: EmbeddingStore, filters: Any) -> None:
    some = store.query_ids[::2].tolist()
    expected = keys(store.pairs(queries=some, **filters))
    assert 0 < len(expected) < len(every_pair(store))
    assert sorted(keys(stream_pairs(release, queries=some, **filters))) == sorted(expected)


def test_epochs_differ_and_drop_last_drops(release: Path, store: EmbeddingStore) -> None:
    stream = stream_pairs(release, batch_size=16, shuffle=True, buffer=1000, drop_last=True)
    first = keys(stream)
    assert keys(stream) == first
    stream.set_epoch(1)
    assert keys(stream) != first
    assert len(first) == len(every_pair(store)) // 16 * 16


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_share_out_every_pair(release: Path, store: EmbeddingStore, workers: int) -> None:
    stream = stream_pairs(release, batch_size=7, shuffle=True, buffer=10)
    dataset: Any = stream
    assert sorted(keys(DataLoader(dataset, batch_size=None, num_workers=workers))) == every_pair(store)


@pytest.mark.parametrize("workers", [0, 2])
def test_stateful_dataloader_resumes(release: Path, workers: int) -> None:
    def loader() -> Any:
        stream = stream_pairs(release, batch_size=5, shuffle=True, buffer=10)
        return StatefulDataLoader(stream, batch_size=None, num_workers=workers)

    whole = [keys([batch]) for batch in loader()]
    first = loader()
    iterator = iter(first)
    for _ in range(6):
        next(iterator)
    state = pickle.loads(pickle.dumps(first.state_dict()))
    again = loader()
    again.load_state_dict(state)
    assert [keys([batch]) for batch in again] == whole[6:]


def test_numpy_and_dtype(release: Path) -> None:
    for numpy, tensors in zip(
        stream_pairs(release, format="numpy", dtype="float16"), stream_pairs(release, dtype="float16"), strict=True
    ):
        assert isinstance(numpy.gain, np.ndarray)
        assert tensors.text_features.dtype == torch.float16
        np.testing.assert_array_equal(numpy.text_features, tensors.text_features)


def test_row_groups_in_many_pieces(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options: Any = {"batch_size": 11, "shuffle": True, "buffer": 20, "has_image": True, "labels": ["E", "S"]}
    whole = list(stream_pairs(release, **options))
    monkeypatch.setattr(release_reader, "_PIECE", 2)
    for one, other in zip(whole, stream_pairs(release, **options), strict=True):
        for name, field in vars(one).items():
            assert torch.equal(field, getattr(other, name))


def test_pandas_is_not_imported(release: Path) -> None:
    code = (
        "import sys\nfrom sqid_lib import stream_pairs\nassert sum(len(b.gain) for b in stream_pairs(sys.argv[1]))\n"
        "assert 'pandas' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, release], check=True, timeout=100)


def test_splits_that_share_products(release: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(release, tmp_path / "two")
    for config in (schemas.FEATURES, schemas.QUERIES, schemas.JUDGMENTS):
        for shard in range(2):
            source = copy / shard_name(config, "test", shard, 2)
            shutil.copy(source, copy / shard_name(config, "train", shard, 2))
    one, two = (sum(len(b.gain) for b in stream_pairs(path)) for path in (release, copy))
    assert two == 2 * one
    assert sum(len(b.gain) for b in stream_pairs(copy, split="train")) == one


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"dtype": "int8"}, UsageError),
        ({"buffer": 0}, UsageError),
        ({"rank": 1}, UsageError),
        ({"revision": "main"}, UsageError),
        ({"format": "jax"}, UsageError),
        ({"labels": []}, StoreError),
        ({"split": "train"}, StoreError),
    ],
)
def test_wrong_options(release: Path, options: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        stream_pairs(release, **options)


def test_states_of_other_streams_are_refused(release: Path) -> None:
    state = stream_pairs(release, batch_size=5).state_dict()
    for change in ({"batch_size": 6}, {"buffer": 9}, {"world_size": 2, "rank": 1}, {"labels": ["E"]}):
        options: Any = {"batch_size": 5, **change}
        with pytest.raises(StoreError, match="another stream"):
            stream_pairs(release, **options).load_state_dict(state)


def test_no_length(release: Path) -> None:
    with pytest.raises(TypeError):
        len(stream_pairs(release))  # type: ignore[arg-type]


# -- damaged files -----------------------------------------------------------------------------------------------


def test_damage_in_the_middle_is_an_error(release: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(release, tmp_path / "damaged")
    path = copy / shard_name(schemas.FEATURES, "test", 1, 2)
    last = pq.ParquetFile(path).metadata.row_group(3).column(0)
    data = bytearray(path.read_bytes())
    start = last.dictionary_page_offset or last.data_page_offset
    data[start : start + 30] = bytes(30)
    path.write_bytes(data)
    seen = 0
    with pytest.raises(CorruptFileError, match="row group 3"):
        for batch in stream_pairs(copy, batch_size=4, buffer=5, prefetch=0):
            seen += len(batch.gain)
    assert seen > 0


def test_missing_parts(release: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="a directory or a dataset on the Hub"):
        stream_pairs(tmp_path / "nowhere")
    copy = shutil.copytree(release, tmp_path / "copy")
    shutil.rmtree(copy / "data" / schemas.JUDGMENTS)
    with pytest.raises(MissingFileError, match="judgments"):
        stream_pairs(copy)


def test_other_columns_and_unknown_queries(release: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(release, tmp_path / "copy")
    path = copy / shard_name(schemas.JUDGMENTS, "test", 0, 2)
    table = pq.read_table(path)
    pq.write_table(table.set_column(1, "query_id", pa.array([-1] * len(table))), path)
    with pytest.raises(IntegrityError, match="judged query"):
        stream_pairs(copy)
    first = copy / shard_name(schemas.FEATURES, "test", 0, 2)
    pq.write_table(pq.read_table(first).drop_columns(["has_image"]), first)
    with pytest.raises(SchemaError, match="not the columns of a release"):
        stream_pairs(copy)


# -- threads and forks ---------------------------------------------------------------------------------------------


def gatherers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("sqid-gather")]


@pytest.mark.parametrize("prefetch", [1, 3])
@pytest.mark.parametrize("batches", [1, 5])
def test_leaving_early_ends_the_threads(release: Path, store: EmbeddingStore, prefetch: int, batches: int) -> None:
    stream = stream_pairs(release, batch_size=3, buffer=5, shuffle=True, prefetch=prefetch)
    for _ in range(5):
        iterator = iter(stream)
        list(itertools.islice(iterator, batches))
        iterator.close()  # type: ignore[attr-defined]
    for thread in gatherers():
        thread.join(timeout=10)
    assert not gatherers()
    assert sorted(keys(stream)) == every_pair(store)


def test_an_error_in_a_thread_ends_the_epoch_every_time(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> Any:
        raise OSError("disk gone")

    stream = stream_pairs(release, batch_size=3, buffer=5, prefetch=2)
    monkeypatch.setattr("sqid_lib.streams.release.read_vectors", fail)
    for _ in range(3):
        with pytest.raises(CorruptFileError, match="disk gone"):
            list(stream)
    for thread in gatherers():
        thread.join(timeout=10)
    assert not gatherers()


def test_a_fork_while_a_thread_reads(release: Path, store: EmbeddingStore) -> None:
    stream: Any = stream_pairs(release, batch_size=7, shuffle=True, buffer=10)
    with stream.release.features[0]._lock, stream.release.features[1]._lock:  # as a thread that reads ahead holds them
        loader = DataLoader(stream, batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=60)
        assert sorted(keys(loader)) == every_pair(store)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_process_that_leaves_iterators_behind_ends(release: Path, workers: int) -> None:
    code = (
        "import sys\nfrom sqid_lib import stream_pairs\nfrom torch.utils.data import DataLoader\n"
        "stream = stream_pairs(sys.argv[1], batch_size=2, buffer=3, prefetch=2, shuffle=True)\n"
        f"iterators = [iter(DataLoader(stream, batch_size=None, num_workers={workers})) for _ in range(2)]\n"
        "for iterator in iterators:\n    next(iterator)\n"
        "print('done', flush=True)"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, str(release)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    assert (done.stdout, done.stderr) == ("done\n", "")


# -- over the Hub ------------------------------------------------------------------------------------------------

_STREAM = """
import sys, time
sleep, time.sleep = time.sleep, lambda seconds: sleep(min(seconds, 0.01))
from sqid_lib import stream_pairs
stream = stream_pairs("ORG/sqid", batch_size=8, buffer=10, shuffle=True, format="numpy", prefetch=int(sys.argv[1]))
print("opened", flush=True)
for batch in stream:
    print(*zip(batch.query_id.tolist(), batch.product_index.tolist()), sep=";", flush=True)
print("end")
"""


def client(hub: LoopbackHub, prefetch: int = 1) -> subprocess.CompletedProcess[str]:
    arguments = [sys.executable, "-c", _STREAM, str(prefetch)]
    return subprocess.run(arguments, capture_output=True, text=True, env=hub.env(), timeout=100, check=False)


def pairs_of(lines: list[str]) -> list[tuple[int, int]]:
    found = [tuple(map(int, pair.strip("()").split(","))) for line in lines for pair in line.split(";")]
    return sorted((q, p) for q, p in found)


def test_streams_from_the_hub_without_a_copy(release: Path, store: EmbeddingStore, tmp_path: Path) -> None:
    with LoopbackHub(tmp_path / "hub") as hub:
        hub.add_repo("ORG/sqid", release)
        done = client(hub)
        lines = done.stdout.splitlines()
        assert (lines[0], lines[-1]) == ("opened", "end"), done.stderr
        assert pairs_of(lines[1:-1]) == every_pair(store)
        cached = [path.name for path in (hub.root / "home").rglob("*.parquet") if "product_features" in str(path)]
        assert not cached


@pytest.mark.parametrize("kind", [503, "cut"])
def test_passing_faults_are_retried(release: Path, store: EmbeddingStore, tmp_path: Path, kind: int | str) -> None:
    with LoopbackHub(tmp_path / "hub") as hub:
        hub.add_repo("ORG/sqid", release)
        fail_between(hub, 8, 10, kind)
        done = client(hub)
        lines = done.stdout.splitlines()
        assert lines[-1] == "end", done.stderr
        assert pairs_of(lines[1:-1]) == every_pair(store)


@pytest.mark.parametrize("kind", [503, "cut", 404])
def test_lasting_faults_end_in_an_error(release: Path, tmp_path: Path, kind: int | str) -> None:
    with LoopbackHub(tmp_path / "hub") as hub:
        hub.add_repo("ORG/sqid", release)
        fail_between(hub, 9, 10**9, kind)
        done = client(hub, prefetch=0)
        lines = done.stdout.splitlines()
        assert len(lines) > 1  # some batches came
        assert done.returncode == 1
        assert "end" not in lines
        error = "MissingFileError" if kind == 404 else "DownloadError"
        assert f"sqid_lib.errors.{error}" in done.stderr
        assert "row group" in done.stderr.splitlines()[-1]


def fail_between(hub: LoopbackHub, first: int, last: int, kind: int | str) -> None:
    """Let the requests for content from number `first` to `last` fail."""
    count = itertools.count()

    def before(hub: LoopbackHub) -> None:
        if first <= next(count) < last:
            hub.fail("lfs-get", kind, 1)

    hub.hooks["lfs-get"] = before
