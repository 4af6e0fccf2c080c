"""Columns of a shop's tables: usual names, names that the recipe states, and what is not clear."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from builder.catalogue import columns
from builder.catalogue.tables import Tables, open_tables
from builder.recipe import CATALOGUE_COLUMNS
from sqid_lib.errors import RecipeError, SchemaError


def header(tmp_path: Path, *names: str) -> Tables:
    (tmp_path / "a.csv").write_text(",".join(names) + "\n" + ",".join("x" * len(names)) + "\n", encoding="utf-8")
    return open_tables(str(tmp_path / "a.csv"), columns.HINTS)


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (("sku", "title", "colour"), {"product_id": "sku", "product_title": "title", "product_color": "colour"}),
        (("Article Number", "Product-Name"), {"product_id": "Article Number", "product_title": "Product-Name"}),
        (("Artikelnummer", "Bezeichnung"), {"product_id": "Artikelnummer", "product_title": "Bezeichnung"}),
        (("Bild-URL", "Farbe", "Marke"), {"product_brand": "Marke", "product_color": "Farbe", "image": "Bild-URL"}),
        (("商品番号", "商品名", "画像URL"), {"product_id": "商品番号", "product_title": "商品名", "image": "画像URL"}),
        (("imageLink", "ＳＫＵ"), {"product_id": "ＳＫＵ", "image": "imageLink"}),
        # our own name comes before other usual ones
        (("product_id", "sku", "id", "title"), {"product_id": "product_id", "product_title": "title"}),
        (("identity", "subtitle", "imagery"), {}),
    ],
)
def test_usual_names_of_products(names: tuple[str, ...], found: dict[str, str]) -> None:
    assert columns.guess(names, columns.PRODUCTS, {}) == (found, {})


def test_usual_names_of_judgments() -> None:
    names = ("Search Term", "asin", "relevance", "views", "Clicks", "qid", "id")
    assert columns.guess(names, columns.JUDGMENTS, {}).chosen == {
        "query": "Search Term",
        "product_id": "asin",
        "label": "relevance",
        "impressions": "views",
        "clicks": "Clicks",
        "query_id": "qid",
    }


def test_what_is_stated_wins_and_is_not_guessed_for_another_column(tmp_path: Path) -> None:
    tables = header(tmp_path, "id", "sku", "title", "name")
    stated = {"product_id": "sku", "product_title": "name", "product_brand": "title", "query": "elsewhere"}
    found = columns.recognise(tables, columns.PRODUCTS, stated, ("product_id",))
    assert found == {"product_id": "sku", "product_title": "name", "product_brand": "title"}


def test_a_list_has_the_names_of_several_tables(tmp_path: Path) -> None:
    stated = {"product_id": ("nummer", "pos"), "product_title": ("text",)}
    found = columns.recognise(header(tmp_path, "nummer", "text", "id"), columns.PRODUCTS, stated, ("product_id",))
    assert found == {"product_id": "nummer", "product_title": "text"}
    judged = columns.recognise(header(tmp_path, "query", "pos", "label"), columns.JUDGMENTS, stated, ("product_id",))
    assert judged == {"query": "query", "product_id": "pos", "label": "label"}


def test_the_log_reports_the_columns_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        columns.recognise(header(tmp_path, "sku", "Titel", "weight"), columns.PRODUCTS, {}, ("product_id",))
    assert caplog.messages == [f"{tmp_path}/a.csv: columns: product_id = sku, product_title = Titel; others: weight"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("id", "sku", "title"), r'id or sku could be product_id.*id, sku, title.*product_id = "id"'),
        (("sku", "title", "bild", "photo", "img"), "bild or photo or img could be image"),
        (("ean", "text"), "no column is known to be product_id or product_title.*ean, text.*product_id = .ean."),
        (("sku", "text"), "no column is known to be product_title.*such as product_title = .text."),
        (("sku",), "no column is known to be product_title.*such as product_title = .…."),
        (("sku~title",), "no column is known to be product_id or product_title.*sku~title.*delimiter"),
    ],
)
def test_what_is_not_clear_is_an_error_that_lists_the_columns(
    tmp_path: Path, names: tuple[str, ...], message: str
) -> None:
    with pytest.raises(SchemaError, match=message):
        columns.recognise(header(tmp_path, *names), columns.PRODUCTS, {}, ("product_id", "product_title"))


def test_a_stated_column_must_be_in_one_of_the_tables(tmp_path: Path) -> None:
    tables = header(tmp_path, "sku", "title")
    columns.check_stated({"product_id": "sku"}, [tables])
    with pytest.raises(RecipeError, match=r"catalogue.columns.product_id: no table has.*got 'pos'"):
        columns.check_stated({"product_id": ("sku", "pos")}, [tables])
    with pytest.raises(RecipeError, match=r"catalogue.columns.image: no table has.*sku, title, got 'titel'.*title\?"):
        columns.check_stated({"image": "titel"}, [tables])


def test_the_recipe_knows_the_columns_that_are_recognised() -> None:
    known = (columns.PRODUCTS, columns.JUDGMENTS, columns.QUERIES)
    assert set(CATALOGUE_COLUMNS) == {name for ours in known for name in ours}


def test_no_usual_name_stands_for_two_columns_of_a_table() -> None:
    for known in (columns.PRODUCTS, columns.JUDGMENTS, columns.QUERIES):
        names = [key for usual in known.values() for key in {columns.normalised(name) for name in usual}]
        assert len(names) == len(set(names))
