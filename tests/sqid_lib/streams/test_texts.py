"""Texts of batches, in every kind of stream, through workers and onto devices."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tiny_release import write_release
from torch.utils.data import DataLoader

from sqid_lib import schemas
from sqid_lib.errors import UsageError
from sqid_lib.files import shard_name
from sqid_lib.store import EmbeddingStore
from sqid_lib.streams.open import stream_pairs

Open = Callable[..., Any]
NAMES = ("query", "source", "product_id", "product_title", "image_url")


def expected_of(store: EmbeddingStore, name: str, batch: Any) -> list[str]:
    if name in store.queries.column_names:
        rows, table = [store.query_index(query) for query in batch.query_id.tolist()], store.queries
    else:
        rows, table = batch.product_index.tolist(), store.products
    return [text or "" for text in table[name].take(rows).to_pylist()]


@pytest.mark.parametrize("workers", [None, 0, 2])
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
def test_pairs(open_pairs: Open, tiny_store: EmbeddingStore, workers: int | None) -> None:
    stream = open_pairs(batch_size=9, shuffle=True, texts=NAMES[::-1])
    batches = stream if workers is None else DataLoader(stream, batch_size=None, num_workers=workers)
    seen = 0
    for batch in batches:
        assert tuple(batch.texts) == NAMES
        for name in NAMES:
            assert batch.texts[name] == expected_of(tiny_store, name, batch)
        assert batch.texts["image_url"].count("") < len(batch.gain)
        seen += len(batch.gain)
    assert seen == 84


def test_a_missing_text_is_empty(tiny_store: EmbeddingStore) -> None:
    missing = [url is None for url in tiny_store.products["image_url"].to_pylist()]
    assert any(missing)
    for batch in tiny_store.pairs(texts=["image_url"]):
        assert [text == "" for text in batch.texts["image_url"]] == [missing[p] for p in batch.product_index.tolist()]


def test_lists_hold_the_texts_of_each_product(tiny_store: EmbeddingStore) -> None:
    for batch in tiny_store.lists(batch_size=5, shuffle=True, has_image=False, texts=["query", "product_title"]):
        assert batch.texts["query"] == expected_of(tiny_store, "query", batch)
        for titles, products in zip(batch.texts["product_title"], batch.product_index.tolist(), strict=True):
            judged = [product for product in products if product >= 0]
            assert titles == tiny_store.products["product_title"].take(judged).to_pylist()


def test_negatives_have_texts_too(tiny_store: EmbeddingStore) -> None:
    for batch in tiny_store.negatives(3, batch_size=8, texts=["query", "product_title"]):
        assert list(batch.texts) == ["query", "product_title", "negative_product_title"]
        assert batch.texts["product_title"] == expected_of(tiny_store, "product_title", batch)
        for titles, products in zip(
            batch.texts["negative_product_title"], batch.negative_product_index.tolist(), strict=True
        ):
            assert titles == tiny_store.products["product_title"].take(products).to_pylist()


def test_texts_travel_with_the_batch(tiny_store: EmbeddingStore) -> None:
    batch = next(iter(tiny_store.pairs(batch_size=4, texts=["query"])))
    assert batch.to("cpu").texts == pickle.loads(pickle.dumps(batch)).texts == batch.texts != {}
    assert torch.equal(pickle.loads(pickle.dumps(batch)).gain, batch.gain)
    assert next(iter(tiny_store.pairs(batch_size=4))).texts == {}


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["query", "titel"], "texts: no such texts; expected a list of query, source, product_id, .*, got 'titel'"),
        ("query", "texts: no such texts; .*, got 'query'"),
        (5, "texts: no such texts; .*, got 5"),
        (["clip_text_features"], "got 'clip_text_features'"),
    ],
)
def test_unknown_texts(open_pairs: Open, texts: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_pairs(texts=texts)


def test_texts_in_row_groups_of_several_pieces_and_types(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = write_release(tmp_path / "release", shards=1, row_group=60)
    (release / schemas.SHA256SUMS).unlink()
    path = release / shard_name(schemas.FEATURES, "test", 0, 1)
    table = pq.read_table(path)
    at = table.column_names.index("product_title")
    pq.write_table(table.set_column(at, "product_title", table["product_title"].cast(pa.large_string())), path)
    monkeypatch.setattr("sqid_lib.streams.release_reader.PIECE", 7)
    titles = table["product_title"].to_pylist()
    for batch in stream_pairs(release, batch_size=11, shuffle=True, buffer=9, texts=["product_title"]):
        assert batch.texts["product_title"] == [titles[product] for product in batch.product_index.tolist()]
