"""One release for all tests of the explorer, and one server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from explore_fixtures import Served, odd_release, served, write_work
from search_fixtures import QueryVectors

from builder.explore.catalogue import Catalogue
from builder.explore.release import read_brands
from builder.explore.work_images import WorkImages
from sqid_lib.store import EmbeddingStore


@pytest.fixture(scope="package")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """release/, work/ with stored images, cache/ and mine.run."""
    root = tmp_path_factory.mktemp("explore")
    release = odd_release(root)
    write_work(root / "work", release)
    store = EmbeddingStore.open(release, cache_dir=root / "cache")
    query_id = store.queries["query_id"][0].as_py()
    rows = [int(p) for q, p in zip(store.judgment_query_index, store.judgment_product_index, strict=True) if q == 0]
    ids = [store.products["product_id"][row].as_py() for row in sorted(rows)[:5]]
    lines = [f"{query_id} Q0 {name} {rank} {9 - rank} mine\n" for rank, name in enumerate(ids, 1)]
    (root / "mine.run").write_text("".join(lines))
    return root


@pytest.fixture(scope="package")
def store(place: Path) -> EmbeddingStore:
    return EmbeddingStore.open(place / "release", cache_dir=place / "cache")


@pytest.fixture(scope="package")
def explorer(place: Path, store: EmbeddingStore) -> Iterator[Served]:
    catalogue = Catalogue(
        store,
        "release",
        brands=read_brands(store, place / "release", None, None),
        images=WorkImages(place / "work", store.products),
        run_files=[place / "mine.run"],
        encoder=QueryVectors(store),
    )
    with served(catalogue) as found:
        yield found
