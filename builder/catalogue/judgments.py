"""Judgments of a catalogue: labels, numbers or a click log to gains, and the queries that they are about."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from builder.catalogue import columns
from builder.catalogue.clicks import add_up, click_gains
from builder.catalogue.queries import given_ids, number_queries, queries_table, query_texts, stable_id
from builder.catalogue.rows import Numbers, Rows, read_rows
from builder.catalogue.tables import Tables
from sqid_lib import schemas
from sqid_lib.errors import ContractError, DuplicateKeyError, IntegrityError, LabelError, SchemaError, did_you_mean
from sqid_lib.tables.columns import one_piece
from sqid_lib.tables.keys import check_unique

if TYPE_CHECKING:
    from builder.recipe import CatalogueSettings

SPLIT = "test"  # of every judgment
UNKNOWN = (REFUSE, DROP) = ("refuse", "drop")  # what is done with judgments of products that there are not
CLICK_LOG = ("impressions", "clicks")
_ROWS = 65_536  # at once, of those whose texts become Python's
_KNOWN = 1_000_000  # ids at once, of which a hash table is made
_LARGEST = float(np.finfo(np.float32).max)
_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)(e[+-]?[0-9]+)?|[+-]?(nan|inf|infinity)", re.IGNORECASE)
_COMMA = re.compile(r"[0-9]+,[0-9]+")
_CORRECT = "Correct the row, or give the label a gain in [catalogue.labels]."
_log = logging.getLogger(__name__)


def read_judgments(
    tables: Mapping[str, Tables], products: pa.Table, settings: CatalogueSettings
) -> tuple[pa.Table, pa.Table]:
    """The queries and judgments of a catalogue, as `queries_and_judgments`; no rows where there are no tables of them.

    Args:
        tables: those named "judgments" and "queries" are read, where they are there.
        products: the keys of the products (product_id, product_locale), sorted, each once.

    Raises:
        SourceError: a file is damaged, or columns are not recognised.
        ContractError, SchemaError: as `judgment_columns` and `queries_and_judgments`.
    """
    judged = listed = None
    if "judgments" in tables:
        judged = read_rows(tables["judgments"], judgment_columns(tables["judgments"], settings.columns))
    if "queries" in tables:
        names = columns.recognise(tables["queries"], columns.QUERIES, settings.columns, ("query",))
        listed = read_rows(tables["queries"], names)
    return queries_and_judgments(judged, listed, products, settings)


def judgment_columns(tables: Tables, stated: columns.Stated) -> dict[str, str]:
    """Our column → that of a table of judgments: a label, or else impressions and clicks.

    Args:
        stated: [catalogue.columns].

    Raises:
        SchemaError: as `columns.recognise`; or there are neither.
    """
    known = {ours: names for ours, names in columns.JUDGMENTS.items() if ours != "split"}
    found = columns.guess(tables.names, known, stated)
    if "split" in columns.guess(tables.names, columns.JUDGMENTS, stated).chosen:
        _log.info("%s: its column split is not used: all judgments are of the split %s", tables.address, SPLIT)
    if set(found.chosen) <= {"query", "query_id"} and "query" in found.chosen and not found.unclear:
        raise SchemaError(
            "queries without judgments",
            where=tables.address,
            expected="columns of a product id, and of a label or of impressions and clicks",
            got=f"the columns {', '.join(tables.names)}",
            fix="Say which they are in [catalogue.columns]; or name a list of queries as queries = … in [catalogue].",
        )
    counts = [name for name in CLICK_LOG if name in (*found.chosen, *found.unclear)]
    labelled = "label" in (*found.chosen, *found.unclear)
    if counts and not labelled:
        return columns.recognise(tables, known, stated, ("query", "product_id", *CLICK_LOG))
    if counts:
        _log.info("%s: its labels are used; its %s are not", tables.address, " and ".join(counts))
    known = {ours: names for ours, names in known.items() if ours not in CLICK_LOG}
    return columns.recognise(tables, known, stated, ("query", "product_id", "label"))


def queries_and_judgments(
    rows: Rows | None, listed: Rows | None, products: pa.Table, settings: CatalogueSettings
) -> tuple[pa.Table, pa.Table]:
    """The queries and judgments of a catalogue, as `schemas.SAMPLED_QUERIES_SCHEMA` and `SAMPLED_JUDGMENTS_SCHEMA`.

    Texts of judgments are dictionaries.

    Args:
        rows: the table of judgments: query, product_id, and label or impressions and clicks; query_id if there is one.
        listed: the table of queries without judgments: query; query_id if there is one.
        products: the keys of the products (product_id, product_locale), sorted, each once.

    Raises:
        SchemaError: an empty or malformed cell.
        LabelError: a label that is neither in the recipe nor a number, or a number that is no gain.
        DuplicateKeyError: two labels for one query and product; ids of queries that are not one-to-one.
        IntegrityError: a judged product is not among the products.
        ContractError: more clicks than impressions; or no judgment is left.
    """
    tables = [table for table in (rows, listed) if table is not None]
    texts = [query_texts(table) for table in tables]
    ids = number_queries(
        [text for of_table, _ in texts for text in of_table],
        [given_ids(table, *of_table) for table, of_table in zip(tables, texts, strict=True)],
        settings.locale,
        " and ".join(table.name for table in tables),
    )
    judgments = schemas.SAMPLED_JUDGMENTS_SCHEMA.empty_table()
    if rows is not None:  # its queries are the first of all
        judgments = _judgments(rows, texts[0][1], ids, products, settings)
    return queries_table(ids), judgments


def _judgments(
    rows: Rows, query: Numbers, ids: Mapping[str, int], products: pa.Table, settings: CatalogueSettings
) -> pa.Table:
    product = _product_of_row(rows, products, settings)
    known = product >= 0
    if not known.all():
        rows, query, product = rows.only(known), query[known], product[known]
    pair, first = _pairs(query, product)
    if "label" in rows.table.column_names:
        labels, gains = _labelled(rows, pair, first, settings.labels)
    else:
        log = add_up(rows, pair, first)
        kept = log.impressions >= settings.clicks.min_impressions
        if not kept.all():
            left, least = int((~kept).sum()), settings.clicks.min_impressions
            _log.info("%s: pairs left out, since they have fewer than %d impressions: %d", rows.name, least, left)
        log, first = log.only(kept), first[kept]
        labels, gains = pa.array(log.labels(), pa.string()), click_gains(log, query[first], settings.clicks)
    if not len(first):
        raise ContractError(
            "no judgment is left",
            where=rows.name,
            expected="at least one",
            got=f"{int((~known).sum()):,} of {len(known):,} rows with products that the catalogue does not have",
            fix="Correct the ids, lower clicks.min_impressions, or leave judgments out of [catalogue].",
        )
    return _table(query[first], products, product[first], labels, gains, ids)


def _table(
    query: Numbers,
    products: pa.Table,
    product: Numbers,
    labels: pa.Array,
    gains: npt.NDArray[np.float32],
    ids: Mapping[str, int],
) -> pa.Table:
    """One row per judgment, sorted by its key; texts as dictionaries.

    Args:
        query: the number of the query of each judgment among `ids`, [judgments].
        product: the row of its product among `products`, [judgments].
    """
    texts = list(ids)
    examples = np.empty(len(query), np.int64)
    for start in range(0, len(query), _ROWS):
        rows = slice(start, start + _ROWS)
        keys = products.take(product[rows]).to_pydict()
        keys_of_rows = zip(query[rows].tolist(), *(keys[name] for name in schemas.PRODUCT_KEY), strict=True)
        examples[rows] = [stable_id(locale, texts[number], key) for number, key, locale in keys_of_rows]
    numbers = np.array(list(ids.values()), np.int64)
    order = np.lexsort((product, np.argsort(np.argsort(numbers)).astype(np.int32)[query]))
    query, product, examples = query[order], product[order], examples[order]
    found = {
        "example_id": examples,
        "query_id": numbers[query],
        "query": _dictionary(query, pa.array(texts, pa.string())),
        **{name: _dictionary(product, one_piece(products.column(name))) for name in schemas.PRODUCT_KEY},
        "esci_label": labels.take(order).dictionary_encode(),
        "gain": gains[order],
        "split": _dictionary(np.zeros(len(order), np.int32), pa.array([SPLIT])),
    }
    del order
    table, known = pa.table(found), np.sort(examples)
    if (known[1:] == known[:-1]).any():
        check_unique(table, schemas.DECLARED[schemas.JUDGMENTS].unique, "judgment", "example_id")
    return table


def _dictionary(numbers: Numbers, values: pa.Array) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(numbers, values)


def _product_of_row(rows: Rows, products: pa.Table, settings: CatalogueSettings) -> Numbers:
    """The row of `products` that each row judges; -1 where there is none and such rows are to be dropped."""
    column = rows.column("product_id")
    known = one_piece(products.column("product_id"))
    found = _positions(column, known)
    missing = np.flatnonzero(found < 0)
    if len(missing) and settings.unknown_products == DROP:
        _log.info("%s: rows left out, since the catalogue does not have their products: %d", rows.name, len(missing))
    elif len(missing):
        value = column[int(missing[0])].as_py()
        fix = 'Correct the ids, or set unknown_products = "drop" in [catalogue] to leave such rows out.'
        near = like(value, known.to_pylist())
        raise IntegrityError(
            f"a judged product is not in the catalogue, in {len(missing):,} of {len(found):,} rows",
            where=f"{rows.place(int(missing[0]))}, the first of them",
            expected=f"an id of {settings.products}",
            got=repr(value),
            fix=f"{near}{fix}",
        )
    return found


def _positions(column: pa.Array, known: pa.Array) -> Numbers:
    """The row of each value among the sorted texts `known`, -1 where there is none; by parts, for memory."""
    found = np.full(len(column), -1, np.int32)
    for first in range(0, len(known), _KNOWN):
        part = known.slice(first, _KNOWN)
        inside = pc.and_(pc.greater_equal(column, part[0]), pc.less_equal(column, part[-1]))
        rows = pc.index_in(column.filter(inside), value_set=part)
        found[inside.to_numpy(zero_copy_only=False)] = pc.fill_null(rows, -1 - first).to_numpy() + np.int32(first)
    return found


def like(value: str, known: Sequence[str]) -> str:
    """A sentence that names the id that differs from `value` in case, spaces or leading zeros only; "" without one."""
    near = next((other for other in known if _loose(other) == _loose(value)), None)
    return f"The catalogue has {near!r}, which differs in case, spaces or leading zeros. " if near is not None else ""


def _loose(value: str) -> str:
    return "".join(value.casefold().split()).lstrip("0")


def _pairs(query: Numbers, product: Numbers) -> tuple[Numbers, Numbers]:
    """The pair of each row, numbered by their first rows, and the first row of each pair."""
    keys = query.astype(np.int64) * (int(product.max(initial=0)) + 1) + product
    ordered = np.sort(keys)
    if (ordered[1:] != ordered[:-1]).all():
        return (every := np.arange(len(keys), dtype=np.int32)), every
    _, first, pair = np.unique(keys, return_index=True, return_inverse=True)
    order = np.argsort(first, kind="stable")
    rank = np.empty(len(order), np.int32)
    rank[order] = np.arange(len(order))
    return rank[pair], first[order].astype(np.int32)


def _labelled(
    rows: Rows, pair: Numbers, first: Numbers, labels: Mapping[str, float]
) -> tuple[pa.DictionaryArray, npt.NDArray[np.float32]]:
    """The label and the gain of each pair; a pair that occurs again with the same label counts once."""
    coded = rows.column("label").dictionary_encode()
    texts: list[str | None] = [*coded.dictionary.to_pylist(), *([None] if coded.null_count else [])]
    codes = pc.fill_null(coded.indices, len(texts) - 1).to_numpy(zero_copy_only=False)
    gains = np.zeros(len(texts), np.float32)
    for code, text in enumerate(texts):
        gain = gain_of(text, labels)
        if isinstance(gain, LabelError):
            gain.where = rows.place(int(np.argmax(codes == code)))
            raise gain
        gains[code] = gain
    of_pair = codes[first]
    contradictory = np.flatnonzero(of_pair[pair] != codes)
    if len(contradictory):
        row = int(contradictory[0])
        before = int(first[pair[row]])
        raise DuplicateKeyError(
            "a query and a product have two labels",
            where=f"{rows.place(before)} and {rows.place(row)}",
            expected="one label for each query and product",
            got=f"{texts[codes[before]]!r} and {texts[codes[row]]!r} for product {rows.values('product_id')[row]!r}",
            fix="Remove one of them.",
        )
    if again := len(pair) - len(first):
        _log.info("%s: rows left out, since another row says the same: %d", rows.name, again)
    return _dictionary(of_pair, pa.array(texts, pa.string())), gains[of_pair]


def gain_of(label: str | None, labels: Mapping[str, float]) -> float | LabelError:
    """The gain of a label: that of the recipe, or the number that it is; otherwise the error, without its place."""
    if label is None:
        return LabelError("the label is empty", fix="Fill it in or remove the row.")
    if label in labels:
        return labels[label]
    if _NUMBER.fullmatch(label):
        gain = float(label)
        if 0 <= gain <= _LARGEST:
            return gain
        expected = "a finite number, 0 or more"
        return LabelError("a label that is a number is a gain", expected=expected, got=repr(label), fix=_CORRECT)
    expected = f"{' or '.join(labels)}, or a number" if labels else "a number, since [catalogue.labels] names no label"
    if _COMMA.fullmatch(label):
        fix = f'Write numbers with a point, or give this label a gain: "{label}" = … in [catalogue.labels].'
    else:
        near = next((known for known in labels if known.strip().casefold() == label.strip().casefold()), None)
        hint = f"Did you mean {near!r}? Case and spaces count. " if near else ""
        hint = hint or (f"{question} " if (question := did_you_mean(label, labels)) else "")
        fix = f"{hint}{_CORRECT}"
    return LabelError(f"unknown label {label!r}", expected=expected, fix=fix)
