"""Which column of a shop's table is which of ours: as the recipe says, or by the usual names."""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

from builder.catalogue.tables import Tables
from sqid_lib.errors import RecipeError, SchemaError, did_you_mean

_PRODUCT_ID = (
    *("product_id", "sku", "asin", "parent_asin", "item_id", "item_no", "item_number", "item_sku", "product_no"),
    *("product_number", "product_code", "product_sku", "article_id", "article_no", "article_number", "article_code"),
    *("artikelnummer", "artikel_nr", "artikel_id", "art_nr", "produkt_id", "produktnummer", "produkt_nr"),
    *("referencia", "商品id", "商品番号", "商品コード"),
)
_QUERY = (
    *("query", "query_text", "search_query", "search_term", "search_phrase", "search", "keyword", "keywords", "q"),
    *("suchbegriff", "suchanfrage", "suchwort", "consulta", "検索語", "検索キーワード", "クエリ"),
)
_QUERY_ID = ("query_id", "qid")
PRODUCTS: Mapping[str, tuple[str, ...]] = {  # our column → its usual names, compared by `normalised`
    "product_id": (*_PRODUCT_ID, "id"),
    "product_title": (
        *("product_title", "title", "name", "product_name", "item_name", "item_title", "titel", "produktname"),
        *("produkttitel", "artikelname", "artikelbezeichnung", "bezeichnung", "titulo", "nombre", "商品名", "タイトル"),
    ),
    "product_description": (
        *("product_description", "description", "desc", "long_description", "item_description", "body_html"),
        *("beschreibung", "produktbeschreibung", "artikelbeschreibung", "descripcion", "商品説明", "説明"),
    ),
    "product_bullet_point": (
        *("product_bullet_point", "bullet_point", "bullet_points", "bullets", "feature_bullets", "features"),
        *("highlights", "merkmale", "caracteristicas", "特徴"),
    ),
    "product_brand": ("product_brand", "brand", "brand_name", "marke", "markenname", "marca", "ブランド", "ブランド名"),
    "product_color": (
        *("product_color", "color", "colour", "product_colour", "color_name", "colour_name", "base_color"),
        *("base_colour", "farbe", "farbname", "色", "カラー"),
    ),
    "image": (
        *("image", "images", "image_url", "image_urls", "image_link", "image_path", "image_file", "image_src"),
        *("product_image", "main_image", "main_image_url", "primary_image", "img", "img_url", "picture", "pictures"),
        *("picture_url", "photo", "photos", "photo_url", "file_name", "bild", "bilder", "bild_url", "produktbild"),
        *("foto", "fotos", "imagen", "imagenes", "画像", "画像url", "商品画像"),
    ),
}
JUDGMENTS: Mapping[str, tuple[str, ...]] = {
    "query": _QUERY,
    "product_id": _PRODUCT_ID,
    "label": (
        *("label", "esci_label", "relevance", "relevance_label", "relevancy", "rel", "judgment", "judgement", "grade"),
        *("rating", "gain", "score", "relevanz", "bewertung", "関連度", "ラベル"),
    ),
    "impressions": ("impressions", "impression_count", "n_impressions", "views", "shown", "einblendungen", "表示回数"),
    "clicks": ("clicks", "click_count", "n_clicks", "click", "klicks", "クリック数"),
    "query_id": _QUERY_ID,
    "split": ("split",),
}
QUERIES: Mapping[str, tuple[str, ...]] = {"query": _QUERY, "query_id": (*_QUERY_ID, "id")}
HINTS = tuple(dict.fromkeys(name for known in (PRODUCTS, JUDGMENTS, QUERIES) for f in known.values() for name in f))

_log = logging.getLogger(__name__)
Stated: TypeAlias = Mapping[str, "str | Sequence[str]"]  # our column → the table's, or what several tables call it


class Guess(NamedTuple):
    """What is known of the columns of a table.

    Attributes:
        chosen: our column → the table's.
        unclear: our column → several of the table's that could be it.
    """

    chosen: dict[str, str]
    unclear: dict[str, list[str]]


def normalised(name: str) -> str:
    """The form in which names are compared: without case, spaces, marks and other spellings of the same letters."""
    return "".join(letter for letter in unicodedata.normalize("NFKC", name).casefold() if letter.isalnum())


def guess(names: Sequence[str], known: Mapping[str, Sequence[str]], stated: Stated) -> Guess:
    """Our columns among `names`: those stated, then those with our own name, then those with one of its usual names.

    Args:
        known: PRODUCTS, JUDGMENTS or QUERIES.
        stated: [catalogue.columns]; what it says about other tables, whose columns are not there, is passed over.
    """
    chosen = {
        ours: next(name for name in _names(theirs) if name in names)
        for ours, theirs in stated.items()
        if ours in known and any(name in names for name in _names(theirs))
    }
    free = [name for name in names if name not in chosen.values()]
    unclear: dict[str, list[str]] = {}
    for ours, usual in known.items():
        if ours in chosen:
            continue
        keys = {normalised(name) for name in usual}
        found = [name for name in free if normalised(name) in keys]
        own = [name for name in found if normalised(name) == normalised(ours)]
        if len(own or found) == 1:
            chosen[ours] = (own or found)[0]
        elif found:
            unclear[ours] = own or found
    return Guess({ours: chosen[ours] for ours in known if ours in chosen}, unclear)


def recognise(
    tables: Tables, known: Mapping[str, Sequence[str]], stated: Stated, required: Iterable[str]
) -> dict[str, str]:
    """Our column → the table's, which the log reports in one line.

    Args:
        known: PRODUCTS, JUDGMENTS or QUERIES.
        stated: [catalogue.columns].
        required: our columns that the table must have.

    Raises:
        SchemaError: a required column is not recognised, or it is not clear which column one of ours is.
    """
    names = tables.names
    chosen, unclear = guess(names, known, stated)
    if unclear:
        ours, found = next(iter(unclear.items()))
        raise SchemaError(
            f"{' or '.join(found)} could be {ours}",
            where=tables.address,
            got=f"the columns {', '.join(names)}",
            fix=f'Say which in [catalogue.columns], such as {ours} = "{found[0]}".',
        )
    missing = [ours for ours in required if ours not in chosen]
    if missing:
        free = next((name for name in names if name not in chosen.values()), "…")
        one = " Is the delimiter another than a comma, semicolon, tab or vertical bar?" if len(names) == 1 else ""
        raise SchemaError(
            f"no column is known to be {' or '.join(missing)}",
            where=tables.address,
            expected=", ".join(f"{ours} ({', '.join(known[ours][1:4])} …)" for ours in missing),
            got=f"the columns {', '.join(names)}",
            fix=f'Say which in [catalogue.columns], such as {missing[0]} = "{free}".{one}',
        )
    unused = [name for name in names if name not in chosen.values()]
    _log.info(
        "%s: columns: %s%s",
        tables.address,
        ", ".join(f"{ours} = {theirs}" for ours, theirs in chosen.items()),
        f"; others: {', '.join(unused)}" if unused else "",
    )
    return chosen


def check_stated(stated: Stated, tables: Sequence[Tables]) -> None:
    """Raise RecipeError unless each value of [catalogue.columns] is a column of one of the tables."""
    names = list(dict.fromkeys(name for table in tables for name in table.names))
    for ours, theirs in ((ours, name) for ours, value in stated.items() for name in _names(value)):
        if theirs not in names:
            raise RecipeError(
                "no table has this column",
                where=f"catalogue.columns.{ours}",
                expected=f"one of {', '.join(names)}",
                got=repr(theirs),
                fix=did_you_mean(theirs, names),
            )


def _names(theirs: str | Sequence[str]) -> Sequence[str]:
    return (theirs,) if isinstance(theirs, str) else theirs
