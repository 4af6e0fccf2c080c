"""Rankings, and TREC run files as the input of methods; files for other tools are written by `exports`.

A query is named by its query_id; a product by its product_id, or by "locale:product_id" where the id occurs under
several locales of the store (when reading, the long form is always understood). White space and % in an id are written
as in URLs, "A B" as "A%20B", for columns are separated by white space; ids are read in either form.
"""

from __future__ import annotations

import gzip
import io
import math
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import numpy as np

from sqid_lib.errors import EmptyFileError, EvaluationError, MissingFileError
from sqid_lib.evaluation.arrays import Floats, Ints
from sqid_lib.evaluation.fusion import is_number
from sqid_lib.evaluation.judged import JudgedLists, Store, judged_lists, product_order

RUN_LINE = "query_id Q0 product_id rank score tag"
_GZIP = b"\x1f\x8b"
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_UNSAFE = re.compile(r"[\s%\x00-\x1f\x7f]")


@dataclass(frozen=True)
class Ranking:
    """Products of queries, query by query and best first.

    Attributes:
        query: int64 [N], row in `store.queries`, ascending.
        product: int64 [N], row in `store.products`.
        score: float64 [N].
    """

    query: Ints
    product: Ints
    score: Floats

    @property
    def rank(self) -> Ints:
        """int64 [N]: 0-based rank within the query."""
        first = np.searchsorted(self.query, self.query)
        return np.arange(len(self.query)) - first


def ranking(store: Store, query: Ints, product: Ints, score: Floats) -> Ranking:
    """Sort pairs by query, best score first, ties by ascending product_id; pairs with score -inf are left out."""
    order = np.lexsort((product_order(store)[product], -score, query))
    order = order[~np.isneginf(score[order])]
    return Ranking(query[order], product[order], score[order])


def judged_ranking(lists: JudgedLists, scores: Floats) -> Ranking:
    """The judged lists in the order of `scores` [J]."""
    order = lists.order(scores)
    order = order[~np.isneginf(scores[order])]
    return Ranking(lists.query_index[lists.query[order]], lists.product[order], scores[order])


def find_judged(store: Store, lists: JudgedLists, found: Ranking) -> tuple[Ints, Ints]:
    """The pairs that are judged: their indices in `found`, and for each its index in the [J] arrays of `lists`."""
    products = store.products.num_rows
    keys = lists.query_index[lists.query] * products + lists.product
    by_key = np.argsort(keys)
    wanted = found.query * products + found.product
    index = np.searchsorted(keys[by_key], wanted).clip(max=len(keys) - 1)
    judgment = by_key[index]
    judged = np.flatnonzero(keys[judgment] == wanted)
    return judged, judgment[judged]


def document_ids(store: Store) -> list[str]:
    """The name of each product in run files, qrels and BEIR folders."""
    ids, locales = store.products["product_id"].to_pylist(), store.products["product_locale"].to_pylist()
    count: dict[str, int] = {}
    for name in ids:
        count[name] = count.get(name, 0) + 1
    names = (name if count[name] == 1 else f"{locale}:{name}" for locale, name in zip(locales, ids, strict=True))
    return [_UNSAFE.sub(lambda character: quote(character[0], safe=""), name) for name in names]


def product_rows(store: Store) -> dict[str, int]:
    """Row of a product by "locale:product_id", and by product_id where that is unique."""
    ids, locales = store.products["product_id"].to_pylist(), store.products["product_locale"].to_pylist()
    by_id: dict[str, int] = {}
    shared: set[str] = set()
    for row, name in enumerate(ids):
        if by_id.setdefault(name, row) != row:
            shared.add(name)
    rows = {f"{locale}:{name}": row for row, (locale, name) in enumerate(zip(locales, ids, strict=True))}
    return rows | {name: row for name, row in by_id.items() if name not in shared}


# -- reading a run file ---------------------------------------------------------------------------------------------


class _Line(NamedTuple):
    query: str
    product: str
    rank: str
    score: str


def read_run(path: Path, store: Store) -> tuple[Ranking, list[str]]:
    """Read a TREC run file: lines `query_id Q0 product_id rank score tag`; the rank is ignored, as in trec_eval.

    The file may be compressed with gzip, start with a byte-order mark and with a line of column names, have its columns
    separated by tabs (they may hold spaces then), and lack Q0 or the tag. Lines of queries and products that the store
    does not have are left out.

    Returns:
        The ranking, and notes of what was left out.

    Raises:
        MissingFileError, EmptyFileError: no such file, or no line in it.
        EvaluationError: a malformed line, a score that is not a finite number, a product twice for one query, or no
            line with a query and a product of the store; the message names the line.
    """
    if not path.is_file():
        raise MissingFileError("no such run file", where=path)
    queries = {str(query_id): row for row, query_id in enumerate(store.queries["query_id"].to_pylist())}
    products = product_rows(store) | {name: row for row, name in enumerate(document_ids(store))}
    pairs: dict[tuple[int, int], float] = {}
    unknown: list[tuple[str, str, str]] = []  # place, kind and name
    for number, (where, line) in enumerate(_lines(path)):
        if number == 0 and not (is_number(line.rank) or is_number(line.score) or line.query in queries):
            continue  # names of columns
        score = _score(line.score, where)
        if line.query not in queries or line.product not in products:
            kind, name = ("query", line.query) if line.query not in queries else ("product", line.product)
            unknown.append((where, kind, name))
            continue
        pair = queries[line.query], products[line.product]
        if pair in pairs:
            got = f"{line.query} {line.product}"
            raise EvaluationError("a product occurs twice for one query", where=where, got=got)
        pairs[pair] = score
    if not pairs:
        raise _nothing_left(path, unknown)
    notes = []
    if unknown:
        where, kind, name = unknown[0]
        count = f"{len(unknown):,} of {len(unknown) + len(pairs):,} lines"
        notes.append(f"{count} name a query or product that the dataset lacks; first {where}: {kind} {name!r}")
    query, product = np.array(list(pairs), np.int64).T
    return ranking(store, query, product, np.array(list(pairs.values()))), notes


def _nothing_left(path: Path, unknown: list[tuple[str, str, str]]) -> EmptyFileError | EvaluationError:
    if not unknown:
        return EmptyFileError("the run file has no lines", where=path, expected=RUN_LINE)
    where, kind, name = unknown[0]
    fix = "No line of the file has a query and a product of the dataset."
    return EvaluationError(
        f"unknown {kind}", where=where, expected=f"a {kind}_id of the dataset", got=repr(name), fix=fix
    )


def _lines(path: Path) -> Iterator[tuple[str, _Line]]:
    """(place, columns) of every line that is not blank."""
    number = 0
    try:
        with _open_text(path) as file:
            for number, text in enumerate(file, 1):
                if not text.strip():
                    continue
                where = f"{path}:{number}"
                line = _parse(text)
                if line is None:
                    raise EvaluationError(
                        "not a line of a run file", where=where, expected=RUN_LINE, got=repr(text.strip()[:80])
                    )
                yield where, line
    except UnicodeError as error:
        raise EvaluationError("not text in UTF-8", where=f"{path}, after line {number}", expected=RUN_LINE) from error
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise EvaluationError("the gzip file is damaged", where=f"{path}, after line {number}", got=error) from error


def _open_text(path: Path) -> io.TextIOWrapper:
    with path.open("rb") as file:
        compressed = file.read(2) == _GZIP
    stream = gzip.open(path) if compressed else path.open("rb")  # noqa: SIM115 - the wrapper closes it
    encoding = "utf-16" if stream.peek(2)[:2] in _UTF_16 else "utf-8-sig"
    return io.TextIOWrapper(stream, encoding)


def _parse(text: str) -> _Line | None:
    fields = text.strip("\r\n").split("\t") if text.count("\t") in (4, 5) else text.split()
    fields = [field.strip() for field in fields]
    if len(fields) == 6 or (len(fields) == 5 and fields[1] == "Q0" and is_number(fields[4])):  # without a tag
        return _Line(fields[0], *fields[2:5])
    if len(fields) == 5 and fields[1] != "Q0":  # without Q0
        return _Line(*fields[:4])
    return None


def _score(text: str, where: str) -> float:
    score = float(text) if is_number(text) else math.nan
    if not math.isfinite(score):
        raise EvaluationError("scores must be finite", where=where, expected="a number", got=repr(text))
    return score


def judged_scores(path: Path, store: Store, lists: JudgedLists) -> tuple[Floats, list[str]]:
    """Scores of the judged pairs from a run file, and notes of what was left out.

    Pairs that are not judged are left out before ranks are counted, as by `trec_eval -J`.

    Returns:
        float64 [J]; -inf for pairs that the run does not retrieve. The notes.

    Raises:
        EvaluationError: as `read_run`, or no pair is judged.
    """
    found, notes = read_run(path, store)
    known, _ = find_judged(store, judged_lists(store), found)  # `lists` may have dropped some
    others = len(found.query) - len(known)
    if not len(known):
        query_id = store.queries["query_id"][int(found.query[0])]
        product_id = store.products["product_id"][int(found.product[0])]
        raise EvaluationError(
            "the pairs of the run are not judged",
            where=path,
            got=f"{others:,} pairs, first query_id {query_id}, product_id {product_id}",
            fix="Measure it as retrieval over all products: --retrieve.",
        )
    if others:
        notes.append(f"{others:,} of {len(found.query):,} pairs are not judged and left out, as by trec_eval -J")
    index, judgment = find_judged(store, lists, found)
    scores = np.full(len(lists.row), -np.inf)
    scores[judgment] = found.score[index]
    return scores, notes
