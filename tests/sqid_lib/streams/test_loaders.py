"""Streams in torch's DataLoader as people call it, and what streams and batches show of themselves."""

from __future__ import annotations

import inspect
import os
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_release import write_release
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

import sqid_lib
from sqid_lib.errors import UsageError
from sqid_lib.store import EmbeddingStore
from sqid_lib.streams.open import StreamOptions, stream_pairs
from sqid_lib.streams.order import Order

Open = Callable[..., Any]
pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning"),
    pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but no accelerator:UserWarning"),
]


@pytest.mark.parametrize("kind", [DataLoader, StatefulDataLoader])
@pytest.mark.parametrize("workers", [0, 2])
def test_without_batch_size_none(open_pairs: Open, kind: Any, workers: int) -> None:
    """The default batch_size=1 of a DataLoader gives the batches as they are."""
    loader = kind(open_pairs(batch_size=10), num_workers=workers)
    assert len(loader) == 9
    assert sorted(len(batch.gain) for batch in loader) == [4] + [10] * 8


def test_another_batch_size_says_what_to_do(open_pairs: Open) -> None:
    stream = open_pairs(batch_size=10)
    with pytest.raises(UsageError, match=r"DataLoader: the stream makes batches itself; expected batch_size=None, got"):
        list(DataLoader(stream, batch_size=4))
    with pytest.raises(UsageError, match=r"Use DataLoader\(stream, batch_size=None\)") as raised:
        list(DataLoader(stream, batch_size=4, num_workers=1))
    traceback.clear_frames(raised.tb)  # ends the worker now: later, the garbage collector would wait 5 s for it


@pytest.mark.parametrize("workers", [0, 1])
def test_pin_memory_of_a_data_loader(open_pairs: Open, workers: int) -> None:
    pinned = DataLoader(open_pairs(batch_size=10), batch_size=None, num_workers=workers, pin_memory=True)
    for one, other in zip(pinned, open_pairs(batch_size=10), strict=True):
        assert type(one) is type(other)
        for name in vars(other):
            assert torch.equal(getattr(one, name), getattr(other, name)), name
            assert getattr(one, name).is_pinned() == torch.cuda.is_available()


def test_numpy_streams_are_not_for_a_data_loader(open_pairs: Open) -> None:
    with pytest.raises(UsageError, match=r'a stream has no rows by number; got 0\. .* make it with format="torch"'):
        list(DataLoader(open_pairs(format="numpy"), batch_size=None))


def test_numpy_batches_say_that_they_are_not_tensors(open_pairs: Open) -> None:
    batch = next(iter(open_pairs(format="numpy")))
    for call in (lambda: batch.to("cpu"), batch.pin_memory):
        with pytest.raises(UsageError, match=r'the batch is of numpy arrays\. Make the stream with format="torch"'):
            call()


# -- what they show ---------------------------------------------------------------------------------------------------


def test_a_batch_in_one_line(tiny_store: EmbeddingStore) -> None:
    for format, dtype in (("torch", "float32"), ("numpy", "float16")):
        pair = next(iter(tiny_store.pairs(batch_size=9, format=format, dtype=dtype)))
        positives = int((np.asarray(pair.gain) > 0).sum())
        assert repr(pair) == f"PairBatch(batch 9 × 8, {positives} with gain > 0, {dtype}, cpu)"
    listed = next(iter(tiny_store.lists(batch_size=3, texts=["query"])))
    positives = int((listed.gain > 0).sum())
    assert repr(listed) == f"ListBatch(batch 3 × 7 × 8, {positives} with gain > 0, float32, cpu, texts query)"
    negative = next(iter(tiny_store.negatives(2, batch_size=5)))
    assert repr(negative) == "NegativeBatch(batch 5 × 8, 5 with gain > 0, float32, cpu)"
    assert repr(negative.to("meta")) == "NegativeBatch(batch 5 × 8, float32, meta)"


def test_a_stream_in_one_line(open_pairs: Open, tiny_store: EmbeddingStore) -> None:
    stream = open_pairs(batch_size=10, shuffle=True, world_size=2)
    stream.set_epoch(3)
    shown = "batch_size=10, batches=5, rows=84, shuffle=True, seed=0, rank=0, world_size=2, drop_last=False, epoch=3"
    assert repr(stream) == f"{type(stream).__name__}(PairBatch, {shown})"
    assert repr(tiny_store.lists()).startswith("TorchStream(ListBatch, batch_size=1024, batches=1, rows=12, ")


@pytest.mark.parametrize(
    "function", [EmbeddingStore.pairs, EmbeddingStore.lists, EmbeddingStore.negatives, stream_pairs]
)
def test_signatures_show_every_option(function: Any) -> None:
    parameters = inspect.signature(function).parameters
    assert set(StreamOptions.__annotations__) <= set(parameters)
    assert not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    for name in ("batch_size", "shuffle", "seed", "rank", "world_size", "drop_last"):
        assert parameters[name].default == getattr(Order(), name)
    assert (parameters["prefetch"].default, parameters["format"].default) == (2, "auto")


def test_shown_defaults_are_the_real_ones(tiny_store: EmbeddingStore) -> None:
    shown = {name: p.default for name, p in inspect.signature(tiny_store.pairs).parameters.items()}
    assert repr(tiny_store.pairs(**shown)) == repr(tiny_store.pairs())
    assert tiny_store.pairs(**shown).prefetch == tiny_store.pairs().prefetch


def test_the_package_lists_what_there_is() -> None:
    assert {"EmbeddingStore", "evaluation", "load_encoder", "stream_pairs"} <= set(dir(sqid_lib))
    assert all(getattr(sqid_lib, name) is not None for name in sqid_lib.__all__)


def test_one_module_imports_the_tensors() -> None:
    root = Path(sqid_lib.__file__).parent
    users = [path.name for path in root.rglob("*.py") if "streams.tensors" in path.read_text(encoding="utf-8")]
    assert users == ["open.py"]


# -- killed workers ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def long_streams(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Streams of 350 batches: more than workers send ahead."""
    root = tmp_path_factory.mktemp("killed")
    release = write_release(root / "release", products=600, queries=200)
    store = EmbeddingStore.open(release, cache_dir=root / "cache", progress=False)
    return {"store": store.pairs(batch_size=4), "release": stream_pairs(release, batch_size=4, buffer=20)}


@pytest.mark.slow  # a kill in the middle of a message can leave torch's own queue waiting for its rest
@pytest.mark.parametrize("kind", ["store", "release"])
@pytest.mark.parametrize(("method", "victim"), [("fork", 0), ("fork", 1), ("spawn", 0), ("forkserver", 1)])
@pytest.mark.filterwarnings("ignore:Exception ignored in. <function _MultiProc:pytest.PytestUnraisableExceptionWarning")
def test_a_killed_worker_is_an_error_and_never_a_short_epoch(
    long_streams: dict[str, Any], kind: str, method: str, victim: int
) -> None:
    loader = DataLoader(long_streams[kind], batch_size=None, num_workers=2, multiprocessing_context=method)
    iterator: Any = iter(loader)
    workers = iterator._workers
    for _ in range(3):
        next(iterator)
    os.kill(workers[victim].pid, signal.SIGKILL)
    with pytest.raises((RuntimeError, ConnectionError, EOFError, FileNotFoundError)):
        for _ in iterator:
            pass
    for worker in workers:  # the other one may wait for ever to send, with memory that later tests would find
        worker.kill()
        worker.join()
