"""Judgments of a catalogue: ids, labels, duplicates, and every bad row with its message."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder.catalogue import columns, judgments, queries
from builder.catalogue.judgments import queries_and_judgments, read_judgments
from builder.catalogue.rows import Rows
from builder.catalogue.tables import open_tables
from builder.recipe import CatalogueSettings
from sqid_lib import schemas
from sqid_lib.errors import ContractError, DuplicateKeyError, IntegrityError, LabelError, SchemaError, SqidError
from sqid_lib.tables.columns import conform

PRODUCTS = ["a1", "a2", "B3", "7"]
KEYS = pa.table({"product_id": sorted(PRODUCTS), "product_locale": ["de"] * len(PRODUCTS)})


def rows(name: str = "j.csv", **columns: Sequence[str | None]) -> Rows:
    table = pa.table({key: pa.array(values, pa.string()) for key, values in columns.items()})
    return Rows(name, table, lambda row: f"{name}, line {row + 2}")


def made(
    judged: Rows | None, listed: Rows | None = None, labels: Mapping[str, float] | None = None, **settings: Any
) -> tuple[pa.Table, pa.Table]:
    catalogue = CatalogueSettings(products="shop.csv", locale="de", labels=dict(labels or {}), **settings)
    return without_dictionaries(queries_and_judgments(judged, listed, KEYS, catalogue))


def without_dictionaries(made: tuple[pa.Table, pa.Table]) -> tuple[pa.Table, pa.Table]:
    asked, found = made
    return asked, conform(found, schemas.SAMPLED_JUDGMENTS_SCHEMA, "judgments")


def test_labels_and_numbers_become_gains_and_all_is_sorted() -> None:
    judged = rows(query=["Schuh", "Schuh", "rot"], product_id=["a2", "a1", "7"], label=["gut", "0.5", "2"])
    asked, found = made(judged, labels={"gut": 1.5})
    assert found.schema == schemas.SAMPLED_JUDGMENTS_SCHEMA and asked.schema == schemas.SAMPLED_QUERIES_SCHEMA
    values = {(row["query"], row["product_id"]): (row["esci_label"], row["gain"]) for row in found.to_pylist()}
    assert values == {("Schuh", "a1"): ("0.5", 0.5), ("Schuh", "a2"): ("gut", 1.5), ("rot", "7"): ("2", 2.0)}
    keys = [(row["query_id"], row["product_id"]) for row in found.to_pylist()]
    assert keys == sorted(keys)
    assert asked.column("query_id").to_pylist() == sorted(asked.column("query_id").to_pylist())
    assert asked.column("source").null_count == 2
    assert set(found.column("split").to_pylist()) == {"test"} and set(found.column("product_locale").to_pylist()) == {
        "de"
    }


def test_a_label_of_the_recipe_that_looks_like_a_number_has_the_gain_of_the_recipe() -> None:
    _, found = made(rows(query=["q"], product_id=["a1"], label=["3"]), labels={"3": 1.0})
    assert (found["esci_label"][0].as_py(), found["gain"][0].as_py()) == ("3", 1.0)


def test_ids_stay_the_same_between_versions() -> None:
    first, judged = made(rows(query=["rote Schuhe", "Hut"], product_id=["a1", "a1"], label=["1", "1"]))
    later, again = made(rows(query=["neu", " rote  Schuhe"], product_id=["a2", "a1"], label=["1", "0"]))
    by_text = dict(zip(first["query"].to_pylist(), first["query_id"].to_pylist(), strict=True))
    assert (
        by_text["rote Schuhe"]
        == dict(zip(*(later[c].to_pylist() for c in ("query", "query_id")), strict=True))["rote Schuhe"]
    )
    digest = hashlib.sha256(b"de\x00rote Schuhe").digest()
    assert by_text["rote Schuhe"] == int(digest.hex(), 16) >> (256 - 63) == 4389099834726794736
    examples = [dict(zip(t["query"].to_pylist(), t["example_id"].to_pylist(), strict=True)) for t in (judged, again)]
    digest = hashlib.sha256(b"de\0rote Schuhe\0a1").digest()
    assert {found["rote Schuhe"] for found in examples} == {int(digest.hex(), 16) >> (256 - 63)}


def test_white_space_and_unicode_form_do_not_make_another_query_but_case_does(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    spellings = ["Schüh  rot", " Schu\u0308h\u3000rot ", "schüh rot"]
    asked, found = made(rows(query=spellings, product_id=["a1", "a2", "a1"], label=["1", "1", "1"]))
    assert sorted(asked["query"].to_pylist()) == ["Schüh rot", "schüh rot"] and found.num_rows == 3
    assert "j.csv: queries that equal another one but for white space or Unicode form: 1" in caplog.text


def test_ids_of_the_table_are_used_as_they_are() -> None:
    judged = rows(query=["q", "r", "q"], query_id=["7", "-2", "7.0"], product_id=["a1", "a1", "a2"], label=["1"] * 3)
    asked, found = made(judged, rows("list.csv", query=["r", "new"]))
    assert asked["query_id"].to_pylist() == sorted([-2, 7, queries.stable_id("de", "new")])
    assert found["query_id"].to_pylist() == [-2, 7, 7]


def test_ids_that_are_no_numbers_are_not_used(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    asked, _ = made(rows(query=["q"], query_id=["q-1"], product_id=["a1"], label=["1"]))
    assert asked["query_id"].to_pylist() == [queries.stable_id("de", "q")]
    assert "query_id is no whole number, such as 'q-1' in j.csv, line 2: ids are made from the queries" in caplog.text


def test_a_list_of_queries_is_added(caplog: pytest.LogCaptureFixture) -> None:
    listed = rows("list.csv", query=["q", "neu", "neu "])
    asked, found = made(rows(query=["q"], product_id=["a1"], label=["1"]), listed)
    assert sorted(asked["query"].to_pylist()) == ["neu", "q"] and found.num_rows == 1
    asked, found = made(None, listed)
    assert sorted(asked["query"].to_pylist()) == ["neu", "q"] and found.num_rows == 0
    assert [table.num_rows for table in made(None)] == [0, 0]


def test_a_pair_that_is_said_twice_counts_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    _, found = made(rows(query=["q", "q", "q "], product_id=["a1", "a2", "a1"], label=["1", "1", "1"]))
    assert found["product_id"].to_pylist() == ["a1", "a2"]
    assert "j.csv: rows left out, since another row says the same: 1" in caplog.text


def test_products_that_are_gone_can_be_dropped(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    judged = rows(query=["q", "r"], product_id=["a1", "gone"], label=["1", "bad label"])
    asked, found = made(judged, unknown_products="drop")
    assert found["product_id"].to_pylist() == ["a1"] and asked.num_rows == 2
    assert "j.csv: rows left out, since the catalogue does not have their products: 1" in caplog.text
    lost = rows(query=["q", "r"], product_id=["lost", "gone"], label=["1", "1"])
    with pytest.raises(
        ContractError, match=r"j\.csv: no judgment is left; expected at least one, got 2 of 2 rows with"
    ):
        made(lost, unknown_products="drop")


ESCI = {"exact": 1.0, "substitute": 0.1}


@pytest.mark.parametrize(
    ("cells", "labels", "error", "said"),
    [
        ({"query": ["q", " "]}, {}, SchemaError, "j.csv, line 3: the query is empty"),
        ({"query": ["q", None]}, {}, SchemaError, "j.csv, line 3: the query is empty"),
        ({"label": ["1", None]}, {}, LabelError, "j.csv, line 3: the label is empty"),
        (
            {"label": ["1", "-1"]},
            {},
            LabelError,
            "line 3: a label that is a number is a gain; expected a finite number, 0 or more, got '-1'",
        ),
        ({"label": ["1", "NaN"]}, {}, LabelError, "line 3: a label that is a number is a gain"),
        ({"label": ["1", "1e39"]}, {}, LabelError, "line 3: a label that is a number is a gain"),
        ({"label": ["1", "inf"]}, {}, LabelError, "line 3: a label that is a number is a gain"),
        (
            {"label": ["1", "0,5"]},
            {},
            LabelError,
            "line 3: unknown label '0,5'; expected a number, since [catalogue.labels] names no label. Write "
            "numbers with a point",
        ),
        ({"label": ["1", "gut"]}, {}, LabelError, "line 3: unknown label 'gut'; expected a number, since"),
        (
            {"label": ["exact", "Exact"]},
            ESCI,
            LabelError,
            "line 3: unknown label 'Exact'; expected exact or substitute, or a number. Did you mean "
            "'exact'? Case and spaces count",
        ),
        ({"label": ["exact", "substitut"]}, ESCI, LabelError, "Did you mean substitute?"),
        (
            {"product_id": ["a1", "b 3"]},
            {},
            IntegrityError,
            "j.csv, line 3, the first of them: a judged product is not in the catalogue, in 1 of 2 rows; "
            "expected an id of shop.csv, got 'b 3'. The catalogue has 'B3', which differs in case",
        ),
        (
            {"product_id": ["a1", "007"]},
            {},
            IntegrityError,
            "The catalogue has '7', which differs in case, spaces or leading zeros",
        ),
        (
            {"product_id": ["a1", "none"]},
            {},
            IntegrityError,
            "got 'none'. Correct the ids, or set unknown_products = \"drop\"",
        ),
        (
            {"query": ["q", "q"], "product_id": ["a1", "a1"], "label": ["1", "2"]},
            {},
            DuplicateKeyError,
            "j.csv, line 2 and j.csv, line 3: a query and a product have two labels; expected one label for "
            "each query and product, got '1' and '2' for product 'a1'",
        ),
        (
            {"query_id": ["1", "x"]},
            {},
            SchemaError,
            "line 3: the query_id is not a whole number; expected a whole number of 64 bits, as in other rows, got 'x'",
        ),
        (
            {"query_id": ["1", None]},
            {},
            SchemaError,
            "line 3: the query_id is not a whole number; expected a whole number of 64 bits, as in other "
            "rows, got an empty cell",
        ),
        ({"query_id": ["1", "9223372036854775808"]}, {}, SchemaError, "line 3: the query_id is not a whole number"),
        (
            {"query_id": ["1", "1"]},
            {},
            DuplicateKeyError,
            "line 2 and j.csv, line 3: the query_id 1 has two queries; expected one id for each query, got 'q' and 'r'",
        ),
        (
            {"query": ["q", " q"], "query_id": ["1", "2"]},
            {},
            DuplicateKeyError,
            "the query 'q' has two ids; expected one id for each query, got 1 and 2",
        ),
    ],
)
def test_a_bad_row_is_named(
    cells: dict[str, list[str | None]], labels: dict[str, float], error: type[SqidError], said: str
) -> None:
    whole: dict[str, Any] = {"query": ["q", "r"], "product_id": ["a1", "a2"], "label": ["1", "1"]} | cells
    if labels and "label" not in cells:
        whole["label"] = ["exact", "exact"]
    with pytest.raises(error) as caught:
        made(rows(**whole), labels=labels)
    assert said in str(caught.value)


def read(folder: Path, **files: str) -> tuple[pa.Table, pa.Table]:
    settings = CatalogueSettings(products="shop.csv", locale="de")
    tables = {kind: open_tables(str(folder / name), columns.HINTS) for kind, name in files.items()}
    return without_dictionaries(read_judgments(tables, KEYS, settings))


def test_tables_are_read_as_shops_write_them(tmp_path: Path) -> None:
    text = "Suchbegriff;Artikelnummer;Relevanz\r\nMütze;a1;3\r\n\r\nMütze;B3;0.5\r\n"
    (tmp_path / "j.csv").write_bytes(text.encode("cp1252"))
    (tmp_path / "q.jsonl").write_text('{"query": "帽子"}\n{"query": "Schal"}\n', encoding="utf-8")
    asked, found = read(tmp_path, judgments="j.csv", queries="q.jsonl")
    assert sorted(asked["query"].to_pylist()) == ["Mütze", "Schal", "帽子"]
    assert found["esci_label"].to_pylist() == ["0.5", "3"] and found["product_id"].to_pylist() == ["B3", "a1"]


def test_numbers_of_parquet_are_labels_and_ids(tmp_path: Path) -> None:
    columns = {"query": ["q", "q"], "sku": ["a1", "7"], "grade": [1.0, 0.25], "qid": [3, 3]}
    pq.write_table(pa.table(columns), tmp_path / "j.parquet")
    asked, found = read(tmp_path, judgments="j.parquet")
    assert found["esci_label"].to_pylist() == ["0.25", "1"] and found["query_id"].to_pylist() == [3, 3]
    assert asked["query_id"].to_pylist() == [3]


def test_a_recipe_without_judgments(tmp_path: Path) -> None:
    asked, found = read(tmp_path)
    assert asked.equals(schemas.SAMPLED_QUERIES_SCHEMA.empty_table()) and found.num_rows == 0
    assert found.schema == schemas.SAMPLED_JUDGMENTS_SCHEMA


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("query,sku,label\nq,a1,1\nq,,1\n", "j.csv, line 3: the id is empty (column 'sku')"),
        ("query,sku,label\nq,a1,1\n\nr,a2,\n", "j.csv, line 4: the label is empty"),
        ("query,sku,label\n", "j.csv: the table has no rows"),
        ("query,sku,clicks\nq,a1,1\n", "j.csv: no column is known to be impressions"),
        ("query\nq\n", "or name a list of queries as queries = … in [catalogue]."),
        ("query,sku\nq,a1\n", "j.csv: no column is known to be label"),
        ("query,sku,impressions,clicks\nq,a1,2,3\n", "j.csv, line 2: more clicks than impressions"),
    ],
)
def test_a_bad_table_is_named(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "j.csv").write_text(text, encoding="utf-8")
    with pytest.raises(SqidError) as caught:
        read(tmp_path, judgments="j.csv")
    assert said in str(caught.value)


def test_columns_that_are_not_used_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    text = "query,sku,label,impressions,clicks,split\nq,a1,1,x,x,train\n"
    (tmp_path / "j.csv").write_text(text, encoding="utf-8")
    _, found = read(tmp_path, judgments="j.csv")
    assert found["split"].to_pylist() == ["test"]
    assert "its labels are used; its impressions and clicks are not" in caplog.text
    assert "its column split is not used: all judgments are of the split test" in caplog.text


def test_two_queries_with_one_hash_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queries, "stable_id", lambda *parts: 5)
    with pytest.raises(
        DuplicateKeyError, match="two queries get the query_id 5; expected one id for each query, got 'q' and 'r'"
    ):
        made(None, rows("list.csv", query=["q", "r"]))


def test_two_tables_that_contradict_each_other_in_ids_are_an_error() -> None:
    judged = rows(query=["q"], query_id=["1"], product_id=["a1"], label=["1"])
    with pytest.raises(
        DuplicateKeyError, match=r"j.csv and list.csv: two tables give a query different ids; got 1 and 2"
    ):
        made(judged, rows("list.csv", query=["q"], query_id=["2"]))


@given(
    st.lists(st.tuples(st.sampled_from(["q", "r", "s"]), st.sampled_from(PRODUCTS)), min_size=1, max_size=30),
    st.randoms(use_true_random=False),
)
def test_each_pair_is_kept_once_in_any_order(pairs: list[tuple[str, str]], random: Any) -> None:
    label = {(query, product): str(len(query + product)) for query, product in pairs}
    columns = [[q for q, _ in pairs], [p for _, p in pairs], [label[pair] for pair in pairs]]
    asked, found = made(rows(query=columns[0], product_id=columns[1], label=columns[2]))
    assert {(row["query"], row["product_id"]): row["esci_label"] for row in found.to_pylist()} == label
    assert found.num_rows == len(label) and asked.num_rows == len({q for q, _ in pairs})
    assert np.array_equal(found["gain"].to_numpy(), [float(text) for text in found["esci_label"].to_pylist()])
    order = list(range(len(pairs)))
    random.shuffle(order)
    query, product, shuffled = ([column[i] for i in order] for column in columns)
    assert made(rows(query=query, product_id=product, label=shuffled))[1].equals(found)


def test_products_are_found_by_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    judged = rows(query=["q"] * 4, product_id=["a2", "7", "B3", "a1"], label=["1", "2", "3", "4"])
    _, whole = made(judged)
    for size in (1, 2, 3):
        monkeypatch.setattr(judgments, "_KNOWN", size)
        assert made(judged)[1].equals(whole)
        with pytest.raises(IntegrityError, match="in 2 of 3 rows"):
            made(rows(query=["q"] * 3, product_id=["a3", "a1", "0"], label=["1"] * 3))
