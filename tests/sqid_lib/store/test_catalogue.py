"""Stores and streams of a shop's own catalogue: kept columns, no judgments, no queries."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tiny_catalogue import CATEGORIES, CLICKS, NAMES, NONE, PRICES, STOCK, WIDTH, write_release

from sqid_lib import EmbeddingStore, schemas, stream_pairs
from sqid_lib.errors import ContractError, MissingFileError, StoreError, UsageError
from sqid_lib.streams.checks import checked_gains
from sqid_lib.streams.filters import Filters


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {kind: write_release(tmp_path_factory.mktemp(kind), kind) for kind in (NAMES, CLICKS, NONE)}
    return made | {"bare": write_release(tmp_path_factory.mktemp("bare"), NONE, queries=())}


@pytest.fixture
def named(releases: dict[str, Path], tmp_path: Path) -> EmbeddingStore:
    return EmbeddingStore.open(releases[NAMES], cache_dir=tmp_path)


def test_products_have_the_kept_columns(named: EmbeddingStore) -> None:
    assert named.products.column_names[-3:] == ["price", "category", "stock"]
    assert named.products["price"].to_pylist() == list(PRICES)
    assert named.products["category"].to_pylist() == list(CATEGORIES)
    assert named.products["stock"].to_pylist() == list(STOCK)
    assert len(named.queries) == 3 and len(named.judgments) == 6
    assert named.of_catalogue and pickle.loads(pickle.dumps(named)).of_catalogue


def test_search_filters_by_kept_columns(named: EmbeddingStore) -> None:
    query = np.ones(WIDTH, np.float32)

    def ids(**where: object) -> set[str]:
        return {hit.product_id for hit in named.search(query, where=where)}

    assert ids(price=(None, 50)) == {"P-3", "P-4"}
    assert ids(price=(50, None), category="Schuhe") == {"P-0"}
    assert ids(stock=[0, (10, None), None]) == {"P-1", "P-2", "P-4"}
    assert ids(category=[None, "Lampen"]) == {"P-1", "P-3"}


def test_batches_have_the_kept_columns_as_texts(named: EmbeddingStore, releases: dict[str, Path]) -> None:
    texts = ["product_title", "query", "price", "category"]
    place = named.products["product_id"].to_pylist()
    for stream in (
        named.pairs(batch_size=6, texts=texts, format="numpy"),
        stream_pairs(releases[NAMES], batch_size=6, texts=texts, format="numpy"),
    ):
        (batch,) = stream
        prices = [PRICES[place.index(place[at])] for at in batch.product_index.tolist()]
        assert batch.texts["price"] == ["" if price is None else f"{price:g}" for price in prices]
        assert batch.texts["category"] == [CATEGORIES[at] or "" for at in batch.product_index.tolist()]


def test_a_text_that_is_not_there_is_named_with_those_that_are(
    named: EmbeddingStore, releases: dict[str, Path]
) -> None:
    with pytest.raises(UsageError, match=r"no such texts.*product_title.*price, category, stock.*'colour'"):
        named.pairs(texts=["colour"])
    with pytest.raises(UsageError, match=r"no such texts.*price, category, stock.*'colour'"):
        stream_pairs(releases[NAMES], texts=["colour"])


def test_clicks_give_one_label_several_gains(releases: dict[str, Path], tmp_path: Path) -> None:
    store = EmbeddingStore.open(releases[CLICKS], cache_dir=tmp_path)
    labels = store.judgments["esci_label"].to_pylist()
    of_label = {float(gain) for label, gain in zip(labels, store.gain, strict=True) if label == "3/120"}
    assert of_label == {1.0, float(np.float32(1 / 7))}
    (batch,) = stream_pairs(releases[CLICKS], batch_size=5, format="numpy")
    assert sorted(batch.gain) == sorted(store.gain)


@pytest.mark.parametrize(("kind", "queries"), [(NONE, 3), ("bare", 0)])
def test_without_judgments_search_works_and_streams_say_why_not(
    releases: dict[str, Path], tmp_path: Path, kind: str, queries: int
) -> None:
    store = EmbeddingStore.open(releases[kind], cache_dir=tmp_path)
    assert (len(store.queries), len(store.judgments), store.query_features.shape) == (queries, 0, (queries, WIDTH))
    assert store.judgment_query_index.shape == store.gain.shape == (0,)
    assert len(store.search(np.ones(WIDTH, np.float32))) == 6
    for open_stream in (store.pairs, store.lists, store.negatives, lambda: stream_pairs(releases[kind])):
        with pytest.raises(StoreError, match="there are no judgments"):
            open_stream()


def test_positives_are_the_judgments_with_at_least_half_of_the_highest_gain(
    releases: dict[str, Path], tmp_path: Path
) -> None:
    for kind, gains in ((NAMES, [1.0, 1.0]), (CLICKS, [1.0, 1.0])):
        store = EmbeddingStore.open(releases[kind], cache_dir=tmp_path)
        batches = list(store.negatives(1, batch_size=8, format="numpy"))
        assert [gain for batch in batches for gain in batch.gain.tolist()] == gains
        assert sum(len(batch.gain) for batch in store.negatives(1, labels=None, batch_size=8, format="numpy")) > 2


def test_own_labels_may_have_one_gain_and_those_of_esci_may_not() -> None:
    def gains(*labels: str) -> Any:
        judgments = pa.table({"esci_label": labels, "gain": pa.array([1.0] * len(labels), pa.float32())})
        return checked_gains(judgments, "x").tolist()

    assert gains("bought", "liked") == gains("1", "1.0") == [1.0, 1.0]
    with pytest.raises(ContractError, match="all labels have the same gain"):
        gains("E", "S")


def test_few_of_many_labels_are_named_in_a_message(named: EmbeddingStore) -> None:
    known = pa.table({"esci_label": [f"{number:03}/100" for number in range(50)]})
    with pytest.raises(UsageError, match=r"expected 000/100 or .* or 011/100 or …, got E"):
        Filters(labels=("E",)).keep(known, "x")
    with pytest.raises(UsageError, match=r"expected gut or mittel or schlecht, got E"):
        named.negatives(1, labels=["E"])


def test_a_part_that_the_manifest_counts_is_missed(releases: dict[str, Path], tmp_path: Path) -> None:
    release = Path(shutil.copytree(releases[NAMES], tmp_path / "release"))
    shutil.rmtree(release / "data" / schemas.JUDGMENTS)
    (release / schemas.SHA256SUMS).unlink()
    for opened in (lambda: EmbeddingStore.open(release, cache_dir=tmp_path), lambda: stream_pairs(release)):
        with pytest.raises(MissingFileError, match=r"the release lacks a part.*judgments"):
            opened()


def test_only_a_catalogue_may_lack_a_part(releases: dict[str, Path], tmp_path: Path) -> None:
    release = Path(shutil.copytree(releases[NONE], tmp_path / "release"))
    path = release / schemas.MANIFEST
    stated = json.loads(path.read_text())
    stated["recipe"]["catalogue"] = None
    path.write_text(json.dumps(stated))
    with pytest.raises(MissingFileError, match="the release lacks a part"):
        EmbeddingStore.open(release, cache_dir=tmp_path)
