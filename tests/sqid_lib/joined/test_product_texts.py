"""Texts of chosen products: exactly those, in order, whatever the layout of the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_esci
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_esci import MAIN_IDS, write_esci

from sqid_lib import schemas
from sqid_lib.errors import DuplicateKeyError, IntegrityError, TextLengthError
from sqid_lib.files import File
from sqid_lib.joined import product_texts

KEY = pa.schema([("product_id", pa.string()), ("product_locale", pa.string())])


def texts(esci: Path, table: pa.Table, columns: tuple[str, ...] = ("product_title",)) -> list[pa.Table]:
    return list(product_texts.product_texts(File(str(esci / schemas.ESCI_PRODUCTS)), table, columns))


def test_three_doubled_products_are_shown(tmp_path: Path) -> None:
    rows = tiny_esci.products()
    doubled = [dict(r) for r in rows if r["product_locale"] == "us"][:4]
    esci = write_esci(tmp_path, products=[*rows, *doubled])
    every = pa.table({"product_id": sorted(r["product_id"] for r in doubled), "product_locale": ["us"] * 4})
    with pytest.raises(DuplicateKeyError) as raised:
        texts(esci, every)
    assert str(raised.value).count(", us)") == 3
    assert "4 product keys" in str(raised.value)


def test_a_judged_product_without_a_row_is_shown(tmp_path: Path) -> None:
    esci = write_esci(tmp_path, products=[r for r in tiny_esci.products() if r["product_id"] != "B000000012"])
    with pytest.raises(IntegrityError, match=r"\(us, B000000012\)"):
        texts(esci, pa.table([sorted(MAIN_IDS), ["us"] * len(MAIN_IDS)], schema=KEY))


@settings(max_examples=25, deadline=None)
@given(
    chosen=st.sets(st.sampled_from([(r["product_id"], r["product_locale"]) for r in tiny_esci.products()])),
    row_group=st.sampled_from([1, 3, 1000]),
    at_once=st.sampled_from([2, 1000]),
    slice_rows=st.sampled_from([1, 5, 1000]),
)
def test_texts_come_for_exactly_the_keys_in_their_order(
    tmp_path_factory: pytest.TempPathFactory,
    chosen: set[tuple[str, str]],
    row_group: int,
    at_once: int,
    slice_rows: int,
) -> None:
    esci = write_esci(tmp_path_factory.mktemp("esci"), row_group=row_group)
    table = pa.table(
        [[i for i, _ in sorted(chosen)], [locale for _, locale in sorted(chosen)]],
        schema=KEY,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(product_texts, "TEXT_ROWS_AT_ONCE", at_once)
        patch.setattr(product_texts, "_SLICE_ROWS", slice_rows)
        found = texts(esci, table, schemas.TEXT_COLUMNS)
    rows = [row for part in found for row in part.to_pylist()]
    expected = {(r["product_id"], r["product_locale"]): r for r in tiny_esci.products()}
    assert rows == [expected[key] for key in sorted(chosen)]
    assert all(part.num_rows <= slice_rows for part in found)


@pytest.mark.parametrize("at_once", [4, 1_000])
def test_any_range_of_rows_is_read_and_a_block_only_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    esci = write_esci(tmp_path, row_group=3)
    keys = pa.table([sorted(MAIN_IDS), ["us"] * len(MAIN_IDS)], schema=KEY)
    whole, passes, gather = pa.concat_tables(texts(esci, keys)), [], product_texts._gather_texts

    def counted(*given: Any) -> tuple[pa.Table, pa.Array]:
        passes.append(given[2:4])
        return gather(*given)

    monkeypatch.setattr(product_texts, "_gather_texts", counted)
    monkeypatch.setattr(product_texts, "TEXT_ROWS_AT_ONCE", at_once)
    found = product_texts.ProductTexts(File(str(esci / schemas.ESCI_PRODUCTS)), keys, ("product_title",))
    for start, stop in [(0, 3), (3, 4), (4, 9), (2, 7), (5, 5)]:
        parts = list(found.between(start, stop, 2))
        assert all(part.num_rows <= 2 for part in parts)
        assert pa.concat_tables([whole.slice(0, 0), *parts]).equals(whole.slice(start, stop - start))
    blocks = [(0, 4), (4, 8), (8, 12), (0, 4), (4, 8)] if at_once == 4 else [(0, len(MAIN_IDS))]
    assert passes == blocks


def test_which_keys_the_products_file_has(esci: Path) -> None:
    keys = pa.table([["U1", "nowhere", "both", "E1"], ["us", "us", "es", "us"]], schema=KEY)
    known = product_texts.are_known(File(str(esci / schemas.ESCI_PRODUCTS)), keys)
    assert known.to_pylist() == [True, False, True, False]


def test_ids_of_the_products_are_read_without_spaces_around_them(tmp_path: Path) -> None:
    padded = [row | {"product_id": f" {row['product_id']} "} for row in tiny_esci.products()]
    keys = pa.table([["both", "nan"], ["es", "us"]], schema=KEY)
    (found,) = texts(write_esci(tmp_path, products=padded), keys)
    assert found.column("product_title").to_pylist() == ["título both es", "title nan"]


KINDS = {
    "dictionary": lambda column: column.dictionary_encode(),
    "large": lambda column: column.cast(pa.large_string()),
    "view": lambda column: column.cast(pa.string_view()),
    "binary": lambda column: column.cast(pa.binary()),
    "binary view": lambda column: column.cast(pa.binary_view()),
}


@pytest.mark.parametrize("name", KINDS)
def test_texts_may_be_of_any_kind(tmp_path: Path, name: str) -> None:
    path = write_esci(tmp_path) / schemas.ESCI_PRODUCTS
    keys = pa.table([["both", "nan"], ["es", "us"]], schema=KEY)
    before = pa.concat_tables(texts(tmp_path, keys, schemas.TEXT_COLUMNS))
    table = pq.read_table(path)
    columns = [KINDS[name](column.combine_chunks()) for column in table.columns]
    pq.write_table(pa.table(columns, names=table.column_names), path, row_group_size=5)
    assert pa.concat_tables(texts(tmp_path, keys, schemas.TEXT_COLUMNS)).equals(before)


def test_more_text_than_memory_should_hold_is_read_in_more_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{**dict(r), "product_title": f"{r['product_id']} " * 100} for r in tiny_esci.products()]
    esci = write_esci(tmp_path, products=rows)
    keys = pa.table({"product_id": sorted(r["product_id"] for r in rows if r["product_locale"] == "us")})
    keys = keys.append_column("product_locale", pa.repeat("us", keys.num_rows))
    whole = pa.concat_tables(texts(esci, keys))
    passes: list[int] = []
    gather = product_texts._gather_texts

    def counted(file: File, positions: np.ndarray, start: int, stop: int, *rest: Any) -> tuple[pa.Table, pa.Array]:
        table, order = gather(file, positions, start, stop, *rest)
        passes.append(table.num_rows)
        return table, order

    monkeypatch.setattr(product_texts, "_gather_texts", counted)
    monkeypatch.setattr(product_texts, "TEXT_BYTES_AT_ONCE", 5_000)  # a title has 1,100 bytes
    assert pa.concat_tables(texts(esci, keys)).equals(whole)
    assert sum(passes) == keys.num_rows and 1 <= max(passes) <= 4
    monkeypatch.setattr(product_texts, "TEXT_BYTES_AT_ONCE", 1)  # never less than one row
    assert pa.concat_tables(texts(esci, keys)).equals(whole)


def test_a_text_that_no_product_has_is_an_error_that_names_the_product(tmp_path: Path) -> None:
    rows = [dict(r) for r in tiny_esci.products()]
    long = next(r for r in rows if r["product_locale"] == "us")
    keys = pa.table([[long["product_id"]], ["us"]], schema=KEY)
    long["product_title"] = "é" * (schemas.MAX_TEXT_BYTES // 2)
    assert texts(write_esci(tmp_path / "longest", products=rows), keys)[0]["product_title"].to_pylist() == [
        long["product_title"]
    ]
    long["product_title"] += "x"
    said = (
        r"product_title: a text is too long; expected at most 1,048,576 bytes, "
        rf"got 1,048,577 bytes for product {long['product_id']} \(us\)"
    )
    with pytest.raises(TextLengthError, match=said):
        texts(write_esci(tmp_path / "longer", products=rows), keys)
