"""stream_pairs: every pair once over ranks and workers, exact resumption, and no epoch that ends in silence."""

from __future__ import annotations

import copy
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
import warm_python
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
from sqid_lib.tables.vector_pages import UnusualPages

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


def keys(batches: Any) -> list[list[tuple[int, int]]]:
    """The pairs of each batch, as (query_id, product_index)."""
    return [list(zip(b.query_id.tolist(), b.product_index.tolist(), strict=True)) for b in batches]


def flat(batches: Any) -> list[tuple[int, int]]:
    return list(itertools.chain(*keys(batches)))


def every_pair(store: EmbeddingStore) -> list[tuple[int, int]]:
    return sorted(zip(store.judgments["query_id"].to_pylist(), store.judgment_product_index.tolist(), strict=True))


# -- order, ranks and workers -------------------------------------------------------------------------------------

LAYOUTS = {"one group": (1, 60), "eight groups": (2, 9), "a group a product": (1, 1), "uneven": (3, 13)}


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same rows in other row groups."""
    root = tmp_path_factory.mktemp("layouts")
    return {
        name: write_release(root / name.replace(" ", "-"), locales=("us", "es"), shards=shards, row_group=rows)
        for name, (shards, rows) in LAYOUTS.items()
    }


def runs(path: Path, workers: int, epoch: int = 0, **options: Any) -> list[Any]:
    """The stream of each worker, as a DataLoader copies it into its processes."""
    whole: Any = stream_pairs(path, format="numpy", **options)
    whole.set_epoch(epoch)
    streams = [copy.copy(whole) for _ in range(workers)]
    for number, stream in enumerate(streams):
        stream._worker = lambda number=number: (number, workers, True)
    return streams


@settings(max_examples=50, deadline=None)
@given(
    layout=st.sampled_from(list(LAYOUTS)),
    batch_size=st.integers(1, 40),
    world_size=st.integers(1, 9),
    workers=st.integers(1, 4),
    drop_last=st.booleans(),
    shuffle=st.booleans(),
    epoch=st.integers(0, 2),
    buffer=st.integers(1, 80),
    prefetch=st.integers(0, 2),
    few=st.booleans(),
)
def test_ranks_have_equal_numbers_of_batches_and_each_pair_once(
    layouts: dict[str, Path], store: EmbeddingStore, layout: str, workers: int, few: bool, **options: Any
) -> None:
    filters: Any = {"has_image": False} if few else {}
    pairs = sorted(itertools.chain(*keys(store.pairs(format="numpy", **filters))))
    size, ranks, epoch = options["batch_size"], options["world_size"], options.pop("epoch")
    call: Any = lambda rank: runs(layouts[layout], workers, epoch, rank=rank, **options, **filters)  # noqa: E731
    if not options["drop_last"] and len(pairs) % ranks and (size == 1 or len(pairs) < ranks):
        with pytest.raises(UsageError, match="cannot have equal numbers of batches"):
            call(0)
        return
    counts, seen = set(), []
    for rank in range(ranks):
        streams = call(rank)
        by_worker = [keys(stream) for stream in streams]
        assert by_worker == [keys(stream) for stream in streams]  # the order of an epoch is fixed
        batches = list(itertools.chain(*by_worker))
        assert len(batches) == len(streams[0])
        assert all(0 < len(batch) <= size for batch in batches)
        assert not options["drop_last"] or all(len(batch) == size for batch in batches)
        counts.add(len(batches))
        seen += list(itertools.chain(*batches))
    assert len(counts) == 1
    if options["drop_last"]:
        assert len(seen) == len(set(seen)) == len(pairs) // (ranks * size) * ranks * size
        assert set(seen) <= set(pairs)
    else:
        assert sorted(seen) == pairs


@settings(max_examples=40, deadline=None)
@given(
    data=st.data(),
    layout=st.sampled_from(list(LAYOUTS)),
    batch_size=st.integers(2, 30),
    buffer=st.integers(1, 80),
    world_size=st.integers(1, 3),
    workers=st.integers(1, 3),
    drop_last=st.booleans(),
)
def test_resumes_at_any_batch(
    layouts: dict[str, Path], data: st.DataObject, layout: str, workers: int, **options: Any
) -> None:
    rank = data.draw(st.integers(0, options["world_size"] - 1))
    worker = data.draw(st.integers(0, workers - 1))
    first, again = (runs(layouts[layout], workers, 1, rank=rank, shuffle=True, **options)[worker] for _ in range(2))
    whole = keys(first)
    stop = data.draw(st.integers(0, len(whole)))
    list(itertools.islice(first, stop))
    again.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert keys(again) == whole[stop:]
    assert keys(again) == whole


def test_one_state_resumes_every_rank(release: Path) -> None:
    options: Any = {"batch_size": 5, "shuffle": True, "world_size": 2, "format": "numpy"}
    state = None
    for rank in (0, 1):
        whole = keys(stream_pairs(release, rank=rank, **options))
        stream = stream_pairs(release, rank=rank, **options)
        if state is None:
            list(itertools.islice(stream, 3))
            state = stream.state_dict()
        stream.load_state_dict(state)
        assert keys(stream) == whole[3:]


def test_a_large_row_group_is_shared_by_ranks(layouts: dict[str, Path]) -> None:
    """As many batches for two ranks over one row group; before, one rank had none."""
    for name in LAYOUTS:
        ranks = [stream_pairs(layouts[name], batch_size=4, rank=rank, world_size=2, format="numpy") for rank in (0, 1)]
        assert [len(stream) for stream in ranks] == [11, 11]
        assert [sum(len(batch.gain) for batch in stream) for stream in ranks] == [42, 42]


def test_only_the_needed_row_groups_are_read(layouts: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    original = release_reader.FeatureFile.read

    def noted(self: Any, group: int, *arguments: Any) -> Any:
        read.append(group)
        return original(self, group, *arguments)

    monkeypatch.setattr(release_reader.FeatureFile, "read", noted)
    for worker in runs(layouts["a group a product"], 4, batch_size=7, buffer=10):
        list(worker)
    assert len(set(read)) < 60  # products that nobody judged are not read
    assert len(read) - len(set(read)) <= 3  # one row group for each border between workers


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
    expected = flat(store.pairs(queries=some, **filters))
    assert 0 < len(expected) < len(every_pair(store))
    assert sorted(flat(stream_pairs(release, queries=some, **filters))) == sorted(expected)


def test_epochs_differ_and_drop_last_drops(release: Path, store: EmbeddingStore) -> None:
    stream = stream_pairs(release, batch_size=16, shuffle=True, buffer=1000, drop_last=True)
    first = flat(stream)
    assert flat(stream) == first
    stream.set_epoch(1)
    assert flat(stream) != first
    assert len(first) == len(every_pair(store)) // 16 * 16


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_share_out_every_pair(release: Path, store: EmbeddingStore, workers: int) -> None:
    stream = stream_pairs(release, batch_size=7, shuffle=True, buffer=10)
    dataset: Any = stream
    assert sorted(flat(DataLoader(dataset, batch_size=None, num_workers=workers))) == every_pair(store)


@pytest.mark.parametrize("workers", [0, 2])
def test_stateful_dataloader_resumes(release: Path, workers: int) -> None:
    def loader() -> Any:
        stream = stream_pairs(release, batch_size=5, shuffle=True, buffer=10)
        return StatefulDataLoader(stream, batch_size=None, num_workers=workers)

    whole = keys(loader())
    first = loader()
    iterator = iter(first)
    for _ in range(6):
        next(iterator)
    state = pickle.loads(pickle.dumps(first.state_dict()))
    again = loader()
    again.load_state_dict(state)
    assert keys(again) == whole[6:]


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
    monkeypatch.setattr(release_reader, "PIECE", 2)
    for one, other in zip(whole, stream_pairs(release, **options), strict=True):
        for name, field in vars(one).items():
            assert torch.equal(field, getattr(other, name))


@pytest.mark.parametrize("options", [{}, {"dtype": "float16", "labels": ["E"], "has_image": True}])
def test_vectors_read_page_by_page_are_those_of_pyarrow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    filled: list[bool] = []
    original = release_reader.FeatureFile.fill

    def noted(*arguments: Any) -> bool:
        filled.append(original(*arguments))
        return filled[-1]

    def unusual(*_arguments: Any) -> None:
        raise UnusualPages

    release = write_release(tmp_path, width=64)
    (release / "SHA256SUMS").unlink()
    for path in (release / "data" / schemas.FEATURES).iterdir():
        pq.write_table(pq.read_table(path), path, use_dictionary=False, row_group_size=20, compression="zstd")
    stream = stream_pairs(release, batch_size=9, shuffle=True, **options)
    monkeypatch.setattr(release_reader.FeatureFile, "fill", noted)
    fast = list(stream)
    assert filled and all(filled)
    monkeypatch.setattr(release_reader, "fill_vectors", unusual)
    for one, other in zip(fast, stream, strict=True):
        for name, field in vars(one).items():
            assert torch.equal(field, getattr(other, name))
    assert not filled[-1]


def test_pandas_is_not_imported(release: Path) -> None:
    code = (
        "import sys\nfrom sqid_lib import stream_pairs\nassert sum(len(b.gain) for b in stream_pairs(sys.argv[1]))\n"
        "assert 'pandas' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, release], check=True, timeout=100)


def test_splits_that_share_products(release: Path, tmp_path: Path) -> None:
    other = shutil.copytree(release, tmp_path / "two")
    for config in (schemas.FEATURES, schemas.QUERIES, schemas.JUDGMENTS):
        for shard in range(2):
            source = other / shard_name(config, "test", shard, 2)
            shutil.copy(source, other / shard_name(config, "train", shard, 2))
    one, two = (sum(len(b.gain) for b in stream_pairs(path)) for path in (release, other))
    assert two == 2 * one
    assert sum(len(b.gain) for b in stream_pairs(other, split="train")) == one
    # a product of both splits is one product, with the row that a store gives it
    merged = EmbeddingStore.open(other, cache_dir=tmp_path / "cache", progress=False)
    assert sorted(flat(stream_pairs(other))) == sorted(flat(merged.pairs()))
    for batch in stream_pairs(other, split="train"):
        np.testing.assert_array_equal(batch.text_features, merged.text_features[batch.product_index.numpy()])


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"dtype": "int8"}, UsageError),
        ({"buffer": 0}, UsageError),
        ({"rank": 1}, UsageError),
        ({"revision": "main"}, UsageError),
        ({"format": "jax"}, UsageError),
        ({"labels": []}, UsageError),
        ({"split": "train"}, UsageError),
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


# -- damaged files -----------------------------------------------------------------------------------------------


def test_damage_in_the_middle_is_an_error(release: Path, tmp_path: Path) -> None:
    other = shutil.copytree(release, tmp_path / "damaged")
    (other / schemas.SHA256SUMS).unlink()
    path = other / shard_name(schemas.FEATURES, "test", 1, 2)
    last = pq.ParquetFile(path).metadata.row_group(3).column(6)
    data = bytearray(path.read_bytes())
    start = last.dictionary_page_offset or last.data_page_offset
    data[start : start + 30] = bytes(30)
    path.write_bytes(data)
    seen = 0
    with pytest.raises(CorruptFileError, match="row group 3"):
        for batch in stream_pairs(other, batch_size=4, buffer=5, prefetch=0):
            seen += len(batch.gain)
    assert seen > 0


def test_missing_parts(release: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="a directory or a dataset on the Hub"):
        stream_pairs(tmp_path / "nowhere")
    other = shutil.copytree(release, tmp_path / "copy")
    shutil.rmtree(other / "data" / schemas.JUDGMENTS)
    with pytest.raises(MissingFileError, match="judgments"):
        stream_pairs(other)


def test_other_columns_and_unknown_queries(release: Path, tmp_path: Path) -> None:
    other = shutil.copytree(release, tmp_path / "copy")
    (other / schemas.SHA256SUMS).unlink()
    path = other / shard_name(schemas.JUDGMENTS, "test", 0, 2)
    table = pq.read_table(path)
    pq.write_table(table.set_column(1, "query_id", pa.array([-1] * len(table))), path)
    with pytest.raises(IntegrityError, match="query_id: judged, and not in the release"):
        stream_pairs(other)
    first = other / shard_name(schemas.FEATURES, "test", 0, 2)
    pq.write_table(pq.read_table(first).drop_columns(["has_image"]), first)
    with pytest.raises(SchemaError, match="column 'has_image' is missing"):
        stream_pairs(other)


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
    assert sorted(flat(stream)) == every_pair(store)


def test_an_error_in_a_thread_ends_the_epoch_every_time(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> Any:
        raise OSError("disk gone")

    stream = stream_pairs(release, batch_size=3, buffer=5, prefetch=2)
    monkeypatch.setattr("sqid_lib.streams.checks.read_vectors", fail)
    for _ in range(3):
        with pytest.raises(CorruptFileError, match="disk gone"):
            list(stream)
    for thread in gatherers():
        thread.join(timeout=10)
    assert not gatherers()


def test_a_fork_while_a_thread_reads(release: Path, store: EmbeddingStore) -> None:
    stream: Any = stream_pairs(release, batch_size=7, shuffle=True, buffer=10)
    next(iter(stream))
    parents = [file for feature in stream.release.features for file in feature._idle]
    assert parents
    for file in parents:
        file.close()  # a child that read with a parent's file would fail
    loader = DataLoader(stream, batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=60)
    assert sorted(flat(loader)) == every_pair(store)


@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.slow), 2])
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
    return warm_python.run(_STREAM, str(prefetch), env=hub.env())


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


_OPEN = """
import sys
from sqid_lib.streams import release_reader
from sqid_lib import stream_pairs
original, read = release_reader.open_ranges, []
def counting(*arguments, **options):
    stream = original(*arguments, **options)
    plain = stream.read
    def counted(*a):
        data = plain(*a)
        read.append(len(data))
        return data
    stream.read = counted
    return stream
release_reader.open_ranges = counting
stream = stream_pairs("ORG/sqid", batch_size=8, format="numpy")
print(len(stream), sum(read))
"""


def test_opening_on_the_hub_reads_footers_and_keys(tmp_path: Path) -> None:
    release = write_release(tmp_path / "release", products=600, width=256, row_group=50)
    files = sorted((release / "data" / schemas.FEATURES).glob("*.parquet"))
    keys_and_footers = 0
    for path in files:
        metadata = pq.ParquetFile(path).metadata
        keys_and_footers += 65536  # what pyarrow reads at the end of a file
        keys_and_footers += sum(
            metadata.row_group(group).column(column).total_compressed_size
            for group in range(metadata.num_row_groups)
            for column in range(2)
        )
    with LoopbackHub(tmp_path / "hub") as hub:
        hub.add_repo("ORG/sqid", release)
        done = warm_python.run(_OPEN, env=hub.env())
    batches, read = map(int, done.stdout.split())
    assert batches == 11
    assert 0 < read <= keys_and_footers < sum(path.stat().st_size for path in files) / 4


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
