"""TREC run files, qrels and BEIR folders: read and written for other tools.

A query is named by its query_id; a product by its product_id, or by "locale:product_id" where the id occurs under
several locales of the store (when reading, the long form is always understood). In qrels gains are whole numbers, as
trec_eval needs them: hundredths, or a smaller unit if needed. Scores are written as whole numbers that fall with the
rank: trec_eval breaks ties by descending id, and this leaves no ties.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sqid_lib.errors import EmptyFileError, EvaluationError, MissingFileError
from sqid_lib.evaluation.arrays import Floats, Ints
from sqid_lib.evaluation.judged import JudgedLists, Store, judged_lists, product_order
from sqid_lib.evaluation.metrics import whole_gains
from sqid_lib.files import replacing

RUN_LINE = "query_id Q0 product_id rank score tag"


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


def product_names(store: Store) -> list[str]:
    """The document id of each product of the store."""
    ids, locales = store.products["product_id"].to_pylist(), store.products["product_locale"].to_pylist()
    count: dict[str, int] = {}
    for name in ids:
        count[name] = count.get(name, 0) + 1
    return [name if count[name] == 1 else f"{locale}:{name}" for locale, name in zip(locales, ids, strict=True)]


def product_rows(store: Store) -> dict[str, int]:
    """Row of a product by "locale:product_id", and by product_id where that is unique."""
    keys = zip(store.products["product_locale"].to_pylist(), store.products["product_id"].to_pylist(), strict=True)
    rows = {f"{locale}:{name}": row for row, (locale, name) in enumerate(keys)}
    return rows | {name: row for row, name in enumerate(product_names(store))}


def read_run(path: Path, store: Store) -> Ranking:
    """Read a TREC run file: lines `query_id Q0 product_id rank score tag`; the rank is ignored, as in trec_eval.

    Raises:
        MissingFileError, EmptyFileError: no such file, or no line in it.
        EvaluationError: a malformed line, an id that is not in the store, a score that is not a finite number, or a
            product twice for one query; the message names the line.
    """
    if not path.is_file():
        raise MissingFileError("no such run file", where=path)
    queries = {str(query_id): row for row, query_id in enumerate(store.queries["query_id"].to_pylist())}
    products, seen = product_rows(store), set[tuple[int, int]]()
    pairs: list[tuple[int, int]] = []
    scores: list[float] = []
    for where, fields in _lines(path):
        pair = _known(queries, fields[0], "query", where), _known(products, fields[2], "product", where)
        if pair in seen:
            raise EvaluationError("a product occurs twice for one query", where=where, got=f"{fields[0]} {fields[2]}")
        seen.add(pair)
        pairs.append(pair)
        scores.append(_score(fields[4], where))
    if not pairs:
        raise EmptyFileError("the run file has no lines", where=path, expected=RUN_LINE)
    query, product = np.array(pairs, np.int64).T
    return ranking(store, query, product, np.array(scores))


def _lines(path: Path) -> Iterator[tuple[str, list[str]]]:
    number = 0
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                fields = line.split()
                if fields and len(fields) != 6:
                    raise EvaluationError(
                        "not a line of a run file",
                        where=f"{path}:{number}",
                        expected=RUN_LINE,
                        got=repr(line.strip()[:80]),
                    )
                if fields:
                    yield f"{path}:{number}", fields
    except UnicodeDecodeError as error:
        raise EvaluationError("not text in UTF-8", where=f"{path}, after line {number}", expected=RUN_LINE) from error


def _known(rows: Mapping[str, int], name: str, kind: str, where: str) -> int:
    if name not in rows:
        raise EvaluationError(f"unknown {kind}", where=where, expected=f"a {kind}_id of the dataset", got=repr(name))
    return rows[name]


def _score(text: str, where: str) -> float:
    try:
        score = float(text)
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        raise EvaluationError("scores must be finite", where=where, expected="a number", got=repr(text))
    return score


def judged_scores(path: Path, store: Store, lists: JudgedLists) -> Floats:
    """Scores of the judged pairs from a run file, float64 [J]; -inf for those the run does not retrieve.

    Raises:
        EvaluationError: as `read_run`, or a pair is not judged.
    """
    found = read_run(path, store)
    known, _ = find_judged(store, judged_lists(store), found)  # `lists` may have dropped some
    if len(known) < len(found.query):
        other = int(np.setdiff1d(np.arange(len(found.query)), known)[0])
        query_id = store.queries["query_id"][int(found.query[other])]
        product_id = store.products["product_id"][int(found.product[other])]
        raise EvaluationError(
            "the run ranks pairs that are not judged",
            where=path,
            got=f"{len(found.query) - len(known):,} pairs, first query_id {query_id}, product_id {product_id}",
            fix="Measure it as retrieval over all products: --retrieve.",
        )
    index, judgment = find_judged(store, lists, found)
    scores = np.full(len(lists.row), -np.inf)
    scores[judgment] = found.score[index]
    return scores


# -- writing ----------------------------------------------------------------------------------------------------------


def write_qrels(path: Path, store: Store, lists: JudgedLists) -> Path:
    """Write lines `query_id 0 product_id gain`; gains are whole numbers (`metrics.whole_gains`)."""
    return _write(path, (f"{q} 0 {p} {gain}" for q, p, gain in _qrels(store, lists)))


def write_run(path: Path, store: Store, found: Ranking, tag: str) -> Path:
    """Write lines `query_id Q0 product_id rank score tag`, best first, ranks from 1, score = length - rank + 1."""
    names, query_ids = product_names(store), store.queries["query_id"].to_pylist()
    listed = np.searchsorted(found.query, found.query, side="right") - np.searchsorted(found.query, found.query)
    tag = re.sub(r"\s+", "_", tag)
    rows = zip(found.query.tolist(), found.product.tolist(), found.rank.tolist(), listed.tolist(), strict=True)
    return _write(path, (f"{query_ids[q]} Q0 {names[p]} {rank + 1} {n - rank} {tag}" for q, p, rank, n in rows))


def write_beir(directory: Path, store: Store, lists: JudgedLists) -> Path:
    """Write corpus.jsonl (every product; its title as text), queries.jsonl and qrels/test.tsv, for BEIR and mteb."""
    titles = store.products["product_title"].to_pylist()
    corpus = zip(product_names(store), titles, strict=True)
    _write(directory / "corpus.jsonl", (_json({"_id": i, "title": "", "text": t or ""}) for i, t in corpus))
    queries = store.queries.select(["query_id", "query"]).take(lists.query_index).to_pylist()
    _write(directory / "queries.jsonl", (_json({"_id": str(q["query_id"]), "text": q["query"] or ""}) for q in queries))
    header = "query-id\tcorpus-id\tscore"
    rows = [f"{q}\t{p}\t{gain}" for q, p, gain in _qrels(store, lists)]
    _write(directory / "qrels" / "test.tsv", iter([header, *rows]))
    return directory


def _qrels(store: Store, lists: JudgedLists) -> Iterator[tuple[int, str, int]]:
    names, query_ids = product_names(store), store.queries["query_id"].to_pylist()
    rows = zip(
        lists.query_index[lists.query].tolist(), lists.product.tolist(), whole_gains(lists).tolist(), strict=True
    )
    return ((query_ids[q], names[p], gain) for q, p, gain in rows)


def _json(row: Mapping[str, str]) -> str:
    return json.dumps(row, ensure_ascii=False)


def _write(path: Path, lines: Iterator[str]) -> Path:
    with replacing(path) as part, part.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{line}\n" for line in lines)
    return path


def export(directory: Path, store: Store, lists: JudgedLists, rankings: Mapping[str, Ranking]) -> Path:
    """Write qrels.trec, METHOD.run for every ranking (characters other than letters, digits and _.+- become _), beir/.

    Raises:
        EvaluationError: two methods would have the same file, or gains cannot be written as whole numbers.
    """
    names = {method: re.sub(r"[^\w.+-]+", "_", method).lstrip(".") for method in rankings}
    if len(set(names.values())) < len(names):
        raise EvaluationError("two methods would have the same run file", where=directory, got=sorted(names))
    write_qrels(directory / "qrels.trec", store, lists)
    for method, found in rankings.items():
        write_run(directory / f"{names[method]}.run", store, found, method)
    write_beir(directory / "beir", store, lists)
    return directory
