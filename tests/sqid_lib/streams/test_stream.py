"""Streams: every row once, the same order whatever the workers, exact resumption, batches that are the user's own."""

from __future__ import annotations

import itertools
import pickle
import subprocess
import sys
import traceback
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tiny_release import write_release
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from sqid_lib.errors import MissingExtraError, StoreError, UsageError
from sqid_lib.store import EmbeddingStore
from sqid_lib.streams import open as opening
from sqid_lib.streams import tensors
from sqid_lib.streams.batches import PairBatch
from sqid_lib.streams.buffers import Recycler
from sqid_lib.streams.gather import JudgedProducts
from sqid_lib.streams.order import Order

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),  # more workers than cores
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning"),  # torchdata 0.11 with torch 2.13
]
PAIRS = 84  # of the tiny release: 12 queries of 7 products


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> EmbeddingStore:
    root = tmp_path_factory.mktemp("store")
    return EmbeddingStore.open(write_release(root / "release"), cache_dir=root / "cache", progress=False)


def keys(batches: Any) -> list[list[tuple[int, int]]]:
    """The judgments of each batch, as (query_id, product_index)."""
    return [list(zip(b.query_id.tolist(), b.product_index.tolist(), strict=True)) for b in batches]


def flat(batches: list[list[tuple[int, int]]]) -> list[tuple[int, int]]:
    return list(itertools.chain.from_iterable(batches))


def every_pair(store: EmbeddingStore) -> list[tuple[int, int]]:
    return list(zip(store.judgments["query_id"].to_pylist(), store.judgment_product_index.tolist(), strict=True))


def load(dataset: Any, workers: int, kind: Any = DataLoader, **options: Any) -> Any:
    return kind(dataset, batch_size=None, num_workers=workers, **options)


# -- order -----------------------------------------------------------------------------------------------------


@given(
    units=st.integers(0, 70),
    order=st.builds(
        dict,
        batch_size=st.integers(1, 20),
        shuffle=st.booleans(),
        seed=st.integers(0, 3),
        world_size=st.integers(1, 6),
        drop_last=st.booleans(),
    ),
    epoch=st.integers(0, 3),
)
def test_ranks_share_out_every_unit(units: int, order: dict[str, Any], epoch: int) -> None:
    orders = [Order(rank=rank, **order) for rank in range(order["world_size"])]
    ranks, size = order["world_size"], order["batch_size"]
    if not order["drop_last"] and units % ranks and (units < ranks or size == 1):
        with pytest.raises(UsageError, match="cannot have equal numbers of batches"):
            orders[0].check(units)
        return
    orders[0].check(units)
    parts = [one.units(epoch, units).tolist() for one in orders]
    seen = list(itertools.chain(*parts))
    assert len(set(seen)) == len(seen)
    if order["drop_last"]:
        assert {len(part) for part in parts} == {units // len(parts) // order["batch_size"] * order["batch_size"]}
    else:
        assert sorted(seen) == list(range(units))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert len({one.batches(units) for one in orders}) == 1
    for one, part in zip(orders, parts, strict=True):
        sizes = np.diff(one.starts(units))
        assert len(sizes) == one.batches(units)
        assert sum(sizes) == len(part)
        assert ((sizes > 0) & (sizes <= size)).all()
        assert (sizes[:-2] == size).all()  # only the last two may be shorter


@settings(max_examples=40, deadline=None)
@given(data=st.data(), batch_size=st.integers(1, 40), world_size=st.integers(1, 4), shuffle=st.booleans())
def test_resumes_at_any_batch_of_any_rank(
    store: EmbeddingStore, data: st.DataObject, batch_size: int, world_size: int, shuffle: bool
) -> None:
    rank = data.draw(st.integers(0, world_size - 1))
    order: Any = {"batch_size": batch_size, "shuffle": shuffle, "rank": rank, "world_size": world_size, "seed": 5}
    stream = store.pairs(format="numpy", **order)
    stream.set_epoch(2)
    whole = keys(stream)
    stop = data.draw(st.integers(0, len(whole)))
    first = iter(stream)
    assert keys(itertools.islice(first, stop)) == whole[:stop]
    state = pickle.loads(pickle.dumps(stream.state_dict()))
    again = store.pairs(format="numpy", **order)
    again.load_state_dict(state)
    assert keys(again) == whole[stop:]
    assert keys(again) == whole  # only the iteration after loading is cut short
    assert again.epoch == 2


@pytest.mark.parametrize("kind", ["pairs", "lists", "negatives"])
@pytest.mark.parametrize("shuffle", [False, True])
def test_every_unit_once_per_epoch(store: EmbeddingStore, kind: str, shuffle: bool) -> None:
    options: Any = {"labels": None} if kind == "negatives" else {}
    stream = getattr(store, kind)(batch_size=5, shuffle=shuffle, **options)
    epochs = []
    for epoch in range(3):
        stream.set_epoch(epoch)
        batches = list(stream)
        assert len(batches) == len(stream)
        epochs.append([q for b in batches for q in b.query_id.tolist()])
        if kind == "lists":
            assert sorted(epochs[-1]) == store.query_ids.tolist()
        else:
            assert sorted(flat(keys(batches))) == sorted(every_pair(store))
    assert (epochs[0] != epochs[1]) == (epochs[1] != epochs[2]) == shuffle


def test_without_shuffling_rows_keep_their_order(store: EmbeddingStore) -> None:
    assert flat(keys(store.pairs(batch_size=9))) == every_pair(store)


@settings(max_examples=6, deadline=None)
@given(
    workers=st.integers(1, 3),
    batch_size=st.integers(1, 30),
    world_size=st.integers(1, 3),
    kind=st.sampled_from(["pairs", "lists", "negatives"]),
)
def test_workers_do_not_change_the_order(
    store: EmbeddingStore, workers: int, batch_size: int, world_size: int, kind: str
) -> None:
    assume(world_size == 1 or batch_size > 1)  # ranks with batches of one row may have unequal numbers: refused
    for rank in range(world_size):
        options: Any = {"batch_size": batch_size, "shuffle": True, "rank": rank, "world_size": world_size, "seed": 3}
        stream = getattr(store, kind)(**options)
        for alone, loaded in zip(stream, load(stream, workers), strict=True):
            assert_same(alone, loaded)


def assert_same(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    for name, value in vars(one).items():
        if not name.startswith("_"):
            np.testing.assert_array_equal(np.asarray(value), np.asarray(getattr(other, name)), err_msg=name)


@pytest.mark.parametrize("workers", [0, 2, 3])
@pytest.mark.parametrize("stop", [0, 4, 17])
def test_stateful_dataloader_resumes_at_the_exact_batch(store: EmbeddingStore, workers: int, stop: int) -> None:
    def loader() -> Any:
        return load(store.pairs(batch_size=5, shuffle=True, seed=1), workers, StatefulDataLoader)

    whole = keys(loader())
    first = loader()
    iterator = iter(first)
    assert keys(itertools.islice(iterator, stop)) == whole[:stop]
    state = pickle.loads(pickle.dumps(first.state_dict()))
    again = loader()
    again.load_state_dict(state)
    rest = keys(again)
    assert rest == whole[stop:]


def test_set_epoch_reaches_workers_that_live_on(store: EmbeddingStore) -> None:
    stream = store.pairs(batch_size=16, shuffle=True)
    loader = load(stream, 2, persistent_workers=True)
    for epoch in (0, 3, 1):
        stream.set_epoch(epoch)
        alone = store.pairs(batch_size=16, shuffle=True)
        alone.set_epoch(epoch)
        assert keys(loader) == keys(alone)


def test_a_new_epoch_forgets_where_to_resume(store: EmbeddingStore) -> None:
    stream = store.pairs(batch_size=16, shuffle=True)
    next(iter(stream))
    stream.load_state_dict(stream.state_dict())
    stream.set_epoch(0)  # the epoch it is in: goes on
    assert len(list(stream)) == len(stream) - 1
    stream.load_state_dict({**stream.state_dict(), "position": 3})
    stream.set_epoch(1)
    assert len(list(stream)) == len(stream)


@pytest.mark.parametrize(
    "change", [{"batch_size": 6}, {"seed": 1}, {"world_size": 2}, {"shuffle": False}, {"labels": ["E"]}]
)
def test_a_state_of_another_stream_is_refused(store: EmbeddingStore, change: dict[str, Any]) -> None:
    base: dict[str, Any] = {"batch_size": 5, "shuffle": True}
    state = store.pairs(**base).state_dict()
    with pytest.raises(StoreError, match="the state is of another stream"):
        store.pairs(**(base | change)).load_state_dict(state)
    with pytest.raises(StoreError, match="another stream"):
        store.lists(**base).load_state_dict(state)


# -- content ---------------------------------------------------------------------------------------------------


def test_pairs_hold_the_rows_of_the_store(store: EmbeddingStore) -> None:
    at = {key: row for row, key in enumerate(every_pair(store))}
    for batch in store.pairs(batch_size=10, shuffle=True):
        assert isinstance(batch, PairBatch)
        judgments = [at[key] for key in keys([batch])[0]]
        products = batch.product_index.numpy()
        queries = store.judgment_query_index[judgments]
        np.testing.assert_array_equal(batch.query_features, store.query_features[queries])
        np.testing.assert_array_equal(batch.text_features, store.text_features[products])
        np.testing.assert_array_equal(batch.image_features, store.image_features[products])
        np.testing.assert_array_equal(batch.has_image, store.has_image[products])
        np.testing.assert_array_equal(batch.gain, store.gain[judgments])
        assert (batch.query_features.dtype, batch.has_image.dtype) == (torch.float32, torch.bool)
        assert (batch.gain.dtype, batch.query_id.dtype) == (torch.float32, torch.int64)


def test_lists_hold_all_judged_products_and_a_mask(store: EmbeddingStore) -> None:
    # has_image=False leaves lists of different lengths
    judged = every_pair(store)
    for without in (None, False):
        keep = [p for p in judged if without is None or store.has_image[p[1]] == without]
        seen = []
        for batch in store.lists(batch_size=4, shuffle=True, has_image=without):
            mask = batch.mask.numpy()
            assert mask.any(0).all()  # no column is padding only
            assert (np.diff(mask.astype(int), axis=1) <= 0).all()  # padding is at the end
            for name in ("text_features", "image_features", "gain", "has_image"):
                assert not getattr(batch, name).numpy()[~mask].any()
            assert (batch.product_index.numpy()[~mask] == -1).all()
            for b, at in zip(*np.nonzero(mask), strict=True):
                product = int(batch.product_index[b, at])
                seen.append((int(batch.query_id[b]), product))
                np.testing.assert_array_equal(batch.text_features[b, at], store.text_features[product])
                assert batch.gain[b, at] == store.gain[judged.index(seen[-1])]
            rows = [store.query_index(q) for q in batch.query_id.tolist()]
            np.testing.assert_array_equal(batch.query_features, store.query_features[rows])
        assert sorted(seen) == sorted(keep)


def test_negatives_are_not_judged_for_the_query(store: EmbeddingStore) -> None:
    judged = set(every_pair(store))
    stream = store.negatives(6, batch_size=8, shuffle=True)
    drawn = []
    for batch in stream:
        assert (batch.gain == 1).all()  # positives are E unless asked otherwise
        for b, query in enumerate(batch.query_id.tolist()):
            for product in batch.negative_product_index[b].tolist():
                assert (query, product) not in judged
            for c, product in enumerate(batch.product_index.tolist()):
                assert bool(batch.in_batch_mask[b, c]) == ((query, product) not in judged)
        products = batch.negative_product_index.numpy()
        np.testing.assert_array_equal(batch.negative_text_features, store.text_features[products])
        np.testing.assert_array_equal(batch.negative_image_features, store.image_features[products])
        np.testing.assert_array_equal(batch.negative_has_image, store.has_image[products])
        drawn.append(products)
    again = [batch.negative_product_index.numpy() for batch in stream]
    assert all(np.array_equal(a, b) for a, b in zip(drawn, again, strict=True))
    stream.set_epoch(1)
    assert not np.array_equal(next(iter(stream)).negative_product_index, drawn[0])


@given(data=st.data(), queries=st.integers(1, 4), products=st.integers(2, 12))
def test_negatives_reach_every_unjudged_product(data: st.DataObject, queries: int, products: int) -> None:
    pairs = data.draw(
        st.lists(st.tuples(st.integers(0, queries - 1), st.integers(0, products - 1)), min_size=1, max_size=12)
    )
    q, p = np.array(pairs, dtype=np.int64).T
    judged = JudgedProducts(q, p, queries, products)
    for query in range(queries):
        free = {product for product in range(products) if (query, product) not in pairs}
        assert {x for x in range(products) if not judged.has(np.array(query), np.array(x))} == free
        if free:
            drawn = judged.draw_others(np.array([query]), 400, np.random.default_rng(0))
            assert set(drawn[0].tolist()) == free  # 400 draws of at most 12: a miss has odds below 1e-14


@pytest.mark.parametrize(
    ("filters", "keep"),
    [
        ({"labels": ["E", "C"]}, lambda row, store: row["esci_label"] in "EC"),
        ({"has_image": False}, lambda row, store: not store.has_image[store.product_index(row["product_id"])]),
        ({"split": "test", "labels": ["I"]}, lambda row, store: row["esci_label"] == "I"),
    ],
)
def test_filters(store: EmbeddingStore, filters: Any, keep: Any) -> None:
    wanted = [
        (row["query_id"], store.product_index(row["product_id"]))
        for row in store.judgments.to_pylist()
        if keep(row, store)
    ]
    assert 0 < len(wanted) < PAIRS
    assert flat(keys(store.pairs(batch_size=7, **filters))) == wanted


def test_filter_by_queries(store: EmbeddingStore) -> None:
    some = store.query_ids[[2, 7]].tolist()
    assert sorted(q for batch in store.lists(queries=some) for q in batch.query_id.tolist()) == some


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": ["E", "X"]}, "no judgment has this esci_label.*X"),
        ({"split": "train"}, "no judgment has this split"),
        ({"batch_size": 0}, "batch_size: has to be a whole number of 1 or more; got 0"),
        ({"rank": 2, "world_size": 2}, "no such rank"),
        ({"format": "jax"}, "auto, torch or numpy"),
        ({"dtype": "float8"}, "unknown dtype"),
        ({"prefetch": -1}, "prefetch: has to be a whole number of 0 or more; got -1"),
        ({"seed": 1.5}, "seed: has to be a whole number"),
        ({"rank": True}, "rank: has to be a whole number"),
        ({"format": "numpy", "device": "cpu"}, "need tensors"),
    ],
)
def test_wrong_options(store: EmbeddingStore, options: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        store.pairs(**options)


def test_filters_that_leave_nothing(store: EmbeddingStore) -> None:
    with pytest.raises(StoreError, match="no judgment is left"):
        store.pairs(queries=[-1])
    with pytest.raises(UsageError, match="count: has to be a whole number of 0 or more; got -1"):
        store.negatives(-1)
    for epoch in (-1, 1.5, True, "1"):
        with pytest.raises(UsageError, match="epoch: has to be a whole number of 0 or more"):
            store.pairs().set_epoch(epoch)  # type: ignore[arg-type]


# -- memory ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefetch", [0, 1, 3])
@pytest.mark.parametrize("format", ["numpy", "torch"])
def test_kept_batches_are_never_written_over(store: EmbeddingStore, prefetch: int, format: str) -> None:
    stream = store.pairs(batch_size=3, shuffle=True, prefetch=prefetch, format=format)
    kept = list(stream)  # all of them, while buffers are recycled
    some = []  # one field, or a part of one, of each batch
    for batch in stream:
        some.append((batch.text_features[1:], batch.product_index[1:].tolist()))
    for batch in kept:
        np.testing.assert_array_equal(batch.text_features, store.text_features[np.asarray(batch.product_index)])
    for part, products in some:
        np.testing.assert_array_equal(part, store.text_features[products])


@pytest.mark.parametrize("workers", [1, 2])
def test_kept_batches_of_workers_are_never_written_over(store: EmbeddingStore, workers: int) -> None:
    loader = load(store.pairs(batch_size=3, shuffle=True), workers, persistent_workers=True)
    kept = list(loader)
    some = [(batch.text_features[1:], batch.product_index[1:].tolist()) for batch in loader]
    list(loader)
    for batch in kept:
        np.testing.assert_array_equal(batch.text_features, store.text_features[batch.product_index.numpy()])
    for part, products in some:
        np.testing.assert_array_equal(part, store.text_features[products])


def test_batches_can_be_changed_in_a_worker(store: EmbeddingStore) -> None:
    class Doubled(torch.utils.data.IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            for batch in store.pairs(batch_size=9, shuffle=True):
                batch.text_features.mul_(2)
                yield batch

    for batch in load(Doubled(), 1):
        np.testing.assert_array_equal(batch.text_features, 2 * store.text_features[batch.product_index.numpy()])


def test_worker_memory_is_let_go(store: EmbeddingStore) -> None:

    for _ in range(2):
        batches = load(store.pairs(batch_size=9), 2)
        assert sum(len(batch.gain) for batch in batches) == PAIRS
    tensors._unmap()
    assert not tensors._mapped


def test_workers_that_live_on_keep_to_their_memory(store: EmbeddingStore) -> None:

    def mapped() -> set[tuple[int, int]]:
        assert sum(len(batch.gain) for batch in loader) == PAIRS
        return set(tensors._mapped)

    loader = load(store.pairs(batch_size=9, shuffle=True), 1, persistent_workers=True)
    epochs = [mapped() for _ in range(6)]
    assert len(set.union(*epochs)) <= 6  # two wait, one is in use, one is being made, and some slack


def test_slots_that_became_too_small_are_let_go(store: EmbeddingStore) -> None:

    loader = load(store.lists(batch_size=3, shuffle=True), 1, persistent_workers=True)
    for _ in range(3):
        assert sum(batch.mask.sum().item() for batch in loader) == PAIRS
    assert all(not slot[2] for slot in tensors._mapped.values())


def test_the_recycler_gives_a_buffer_again_only_when_all_views_are_gone() -> None:
    memory = Recycler()
    first = memory.take(100)
    address = first.bytes.ctypes.data
    view = torch.from_numpy(first.bytes[10:20].view(np.uint8))[3:]
    del first
    assert memory.take(100).bytes.ctypes.data != address
    del view
    assert address in {memory.take(60).bytes.ctypes.data for _ in range(1)} | {memory.take(60).bytes.ctypes.data}


def test_leaving_early_ends_the_threads(store: EmbeddingStore) -> None:
    import threading

    before = threading.active_count()
    iterator = iter(store.pairs(batch_size=2, prefetch=2))
    next(iterator)
    iterator.close()  # type: ignore[attr-defined]
    for thread in threading.enumerate():
        if thread.name.startswith("sqid-gather"):
            thread.join(timeout=10)
    assert threading.active_count() <= before


def test_an_error_while_gathering_reaches_the_user(store: EmbeddingStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        raise OSError("disk gone")

    stream = store.pairs(batch_size=10)
    monkeypatch.setattr(type(stream.gather), "fill", fail)
    with pytest.raises(OSError, match="disk gone"):
        list(stream)


# -- tensors, devices, numpy -------------------------------------------------------------------------------


def test_dtype_and_device(store: EmbeddingStore) -> None:
    batch = next(iter(store.pairs(batch_size=4, dtype="float16", device="cpu")))
    assert batch.text_features.dtype == torch.float16
    assert batch.gain.dtype == torch.float32
    whole = next(iter(store.pairs(batch_size=4)))
    assert torch.equal(batch.text_features, whole.text_features.half())
    assert_same(whole.to("cpu"), whole)
    on_meta = next(iter(store.pairs(batch_size=4, device="meta")))
    assert (on_meta.image_features.device.type, on_meta.image_features.shape) == ("meta", (4, 8))


def test_devices_are_not_for_workers(store: EmbeddingStore) -> None:
    with pytest.raises(UsageError, match="not for the workers") as raised:
        list(load(store.pairs(device="cpu"), 1))
    traceback.clear_frames(raised.tb)  # ends the worker now: later, the garbage collector would wait 5 s for it


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("options", [{"pin_memory": True}, {"device": "cuda"}, {"device": "cuda:1"}])
def test_no_gpu(store: EmbeddingStore, options: Any) -> None:
    with pytest.raises(UsageError, match="no CUDA device"):
        store.pairs(**options)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_batches_on_a_gpu(store: EmbeddingStore) -> None:
    here = list(store.pairs(batch_size=9, shuffle=True))
    for options in ({"device": "cuda"}, {"pin_memory": True}):
        for stream in (torch.cuda.current_stream(), torch.cuda.Stream()):  # type: ignore[no-untyped-call]
            with torch.cuda.stream(stream):
                kept = list(store.pairs(batch_size=9, shuffle=True, **options))
                sums = [batch.text_features.sum() for batch in store.pairs(batch_size=9, shuffle=True, **options)]
            stream.synchronize()
            for one, other, total in zip(here, kept, sums, strict=True):
                assert_same(one, other.to("cpu"))
                torch.testing.assert_close(one.text_features.sum(), total.cpu())


def test_numpy_batches(store: EmbeddingStore) -> None:
    for ours, theirs in zip(store.pairs(batch_size=9, format="numpy"), store.pairs(batch_size=9), strict=True):
        assert all(isinstance(value, np.ndarray) for value in vars(ours).values())
        assert_same(ours, theirs)


def test_without_torch_streams_are_numpy(store: EmbeddingStore) -> None:
    code = (
        "import sys, pathlib, importlib.util\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *rest: None if name == 'torch' else find(name, *rest)\n"
        "sys.modules['torch'] = None\n"
        "from sqid_lib.store import EmbeddingStore\n"
        "store = EmbeddingStore(pathlib.Path(sys.argv[1]))\n"
        "print(*{type(b.gain).__name__ for s in (store.pairs(), store.lists(), store.negatives()) for b in s})\n"
        "try:\n    store.pairs(format='torch')\nexcept ImportError as error:\n    print(error)\n"
    )
    run = subprocess.run([sys.executable, "-c", code, store.path], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[0] == "ndarray"
    assert "sqid[train]" in run.stdout
    assert issubclass(MissingExtraError, ImportError)


def test_streams_pickle(store: EmbeddingStore) -> None:
    stream = store.pairs(batch_size=11, shuffle=True)
    stream.set_epoch(4)
    copy = pickle.loads(pickle.dumps(stream))
    assert copy.epoch == 4
    assert keys(copy) == keys(stream)


def test_spawned_workers(store: EmbeddingStore) -> None:
    stream = store.pairs(batch_size=11, shuffle=True)
    assert keys(load(stream, 1, multiprocessing_context="spawn")) == keys(stream)


def test_options_are_documented() -> None:
    documented = opening.StreamOptions.__doc__ or ""
    assert all(name in documented for name in opening.StreamOptions.__annotations__)


def test_a_stream_that_is_left_says_nothing_when_the_interpreter_ends() -> None:
    pytest.importorskip("torch")
    code = """
import torch  # before: then the iterator ends after the modules
from itertools import count
from sqid_lib.streams.stream import ahead
a, b = ahead(str, count(), 2), ahead(str, count(), 2)
next(a), next(b)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stderr == ""
