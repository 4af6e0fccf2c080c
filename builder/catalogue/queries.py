"""Queries of a catalogue: how a text is normalised, and ids that stay the same from version to version."""

from __future__ import annotations

import hashlib
import logging
import re
import unicodedata
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from builder.catalogue.rows import Numbers, Rows
from sqid_lib import schemas
from sqid_lib.errors import DuplicateKeyError, SchemaError

_log = logging.getLogger(__name__)
_WHOLE = re.compile(r"-?[0-9]{1,19}(?=(?:\.0+)?$)")
_INT64 = range(-(2**63), 2**63)


def normalised(query: str) -> str:
    """The text that counts as the query: Unicode NFC, one space for any run of white space, none at the ends.

    Case is kept: "Red Shoes" and "red shoes" are two queries, as in ESCI.
    """
    return " ".join(unicodedata.normalize("NFC", query).split())


def stable_id(*parts: str) -> int:
    """The first 63 bits of the SHA-256 of the parts with a zero byte between them: the same in every version."""
    return int.from_bytes(hashlib.sha256("\0".join(parts).encode()).digest()[:8], "big") >> 1


def query_texts(rows: Rows) -> tuple[list[str], Numbers]:
    """The normalised queries, each once in order of appearance, and the number of that of each row, [rows].

    Raises:
        SchemaError: a query is empty.
    """
    coded = rows.column("query").dictionary_encode()
    spellings = coded.dictionary.to_pylist()
    numbers: dict[str, int] = {}
    of_spelling = [numbers.setdefault(normalised(spelling), len(numbers)) for spelling in [*spellings, ""]]
    number = np.array(of_spelling, np.int32)[pc.fill_null(coded.indices, len(spellings)).to_numpy(zero_copy_only=False)]
    empty = numbers[""]
    if len(wrong := np.flatnonzero(number == empty)):
        raise SchemaError("the query is empty", where=rows.place(int(wrong[0])), fix="Fill it in or remove the row.")
    merged = len(spellings) - empty  # which is the last of the numbers
    if merged:
        _log.info("%s: queries that equal another one but for white space or Unicode form: %d", rows.name, merged)
    return list(numbers)[:empty], number


def given_ids(rows: Rows, texts: Sequence[str], number: Numbers) -> dict[str, int]:
    """The ids that the column query_id gives to queries; none without that column, or where no value is a number.

    Args:
        texts, number: the result of `query_texts`.

    Raises:
        SchemaError: some values are whole numbers, and others are not.
        DuplicateKeyError: a query has two ids, or an id has two queries.
    """
    if "query_id" not in rows.table.column_names:
        return {}
    coded = rows.column("query_id").dictionary_encode()
    values = [*coded.dictionary.to_pylist(), None]
    codes = pc.fill_null(coded.indices, len(values) - 1).to_numpy(zero_copy_only=False)
    wholes = [_whole(value) for value in values]
    wrong = np.flatnonzero(np.array([whole is None for whole in wholes])[codes])
    if len(codes) and len(wrong) == len(codes):
        got = f"such as {values[codes[0]]!r} in {rows.place(0)}"
        _log.info("%s: query_id is no whole number, %s: ids are made from the queries", rows.name, got)
        return {}
    if len(wrong):
        value = values[codes[wrong[0]]]
        raise SchemaError(
            "the query_id is not a whole number",
            where=rows.place(int(wrong[0])),
            expected="a whole number of 64 bits, as in other rows",
            got="an empty cell" if value is None else repr(value),
            fix="Correct it, or remove the column: then ids are made from the queries.",
        )
    rows_of_text: dict[str, int] = {}
    rows_of_id: dict[int, int] = {}
    ids: dict[str, int] = {}
    _, firsts = np.unique(number.astype(np.int64) * len(values) + codes, return_index=True)
    for row in np.sort(firsts).tolist():
        text, whole = texts[number[row]], wholes[codes[row]]
        assert whole is not None
        first = rows_of_text.setdefault(text, row)
        if ids.setdefault(text, whole) != whole:
            raise _not_one_to_one(rows, first, row, f"the query {text!r} has two ids", f"{ids[text]} and {whole}")
        first = rows_of_id.setdefault(whole, row)
        other = texts[number[first]]
        if other != text:
            raise _not_one_to_one(rows, first, row, f"the query_id {whole} has two queries", f"{other!r} and {text!r}")
    return ids


def _whole(value: str | None) -> int | None:
    match = _WHOLE.match(value or "")
    return int(match[0]) if match and int(match[0]) in _INT64 else None


def _not_one_to_one(rows: Rows, first: int, row: int, what: str, got: str) -> DuplicateKeyError:
    fix = "Correct one of them, or remove the column: then ids are made from the queries."
    where = f"{rows.place(first)} and {rows.place(row)}"
    return DuplicateKeyError(what, where=where, expected="one id for each query", got=got, fix=fix)


def number_queries(texts: Sequence[str], given: Sequence[Mapping[str, int]], locale: str, where: str) -> dict[str, int]:
    """The id of each distinct query, in order: the given one, otherwise the stable id of (locale, query).

    Args:
        given: what `given_ids` found, for each table.

    Raises:
        DuplicateKeyError: two queries get the same id, or the tables give a query different ones.
    """
    known: dict[str, int] = {}
    for text, number in (pair for ids in given for pair in ids.items()):
        if known.setdefault(text, number) != number:
            got = f"{known[text]} and {number} for {text!r}"
            raise DuplicateKeyError("two tables give a query different ids", where=where, got=got, fix="Correct one.")
    ids = {text: known[text] if text in known else stable_id(locale, text) for text in dict.fromkeys(texts)}
    texts_of: dict[int, str] = {}
    for text, number in ids.items():
        other = texts_of.setdefault(number, text)
        if other != text:
            raise DuplicateKeyError(
                f"two queries get the query_id {number}",
                where=where,
                expected="one id for each query",
                got=f"{other!r} and {text!r}",
                fix="Add a column query_id with a whole number for each query.",
            )
    return ids


def queries_table(ids: Mapping[str, int]) -> pa.Table:
    """Query → id as `schemas.SAMPLED_QUERIES_SCHEMA`, sorted by query_id; no source is known."""
    columns = {"query_id": list(ids.values()), "query": list(ids), "source": [None] * len(ids)}
    return pa.table(columns, schemas.SAMPLED_QUERIES_SCHEMA).sort_by("query_id")
