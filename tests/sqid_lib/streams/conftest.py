"""One tiny release, its store, and the two kinds of streams over it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_release import write_release

from sqid_lib.store import EmbeddingStore
from sqid_lib.streams.open import stream_pairs


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_release(tmp_path_factory.mktemp("tiny") / "release")


@pytest.fixture(scope="module")
def tiny_store(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> EmbeddingStore:
    return EmbeddingStore.open(tiny, cache_dir=tmp_path_factory.mktemp("cache"), progress=False)


@pytest.fixture(params=["store.pairs", "stream_pairs"])
def open_pairs(request: pytest.FixtureRequest, tiny: Path, tiny_store: EmbeddingStore) -> Callable[..., Any]:
    """`store.pairs` and `stream_pairs` of the same release."""
    if request.param == "store.pairs":
        return tiny_store.pairs
    return lambda **options: stream_pairs(tiny, **options)
