"""Files for other tools: TREC qrels and run files, and BEIR folders. Products are named as in `runs`.

In qrels gains are whole numbers, as trec_eval needs them: hundredths, or a smaller unit if needed. trec_eval keeps
scores as 32-bit floats and breaks ties by descending document id. So a score that is not below the one before it, read
as a 32-bit float, is written as the next lower 32-bit float; all other scores are written as they are. If scores of a
query are beyond the 32-bit floats, whole numbers that fall with the rank are written for that query.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from sqid_lib.errors import EvaluationError
from sqid_lib.evaluation.arrays import Float32s, Floats, Ints
from sqid_lib.evaluation.judged import JudgedLists, Store
from sqid_lib.evaluation.metrics import whole_gains
from sqid_lib.evaluation.runs import Ranking, document_ids
from sqid_lib.files import replacing

_SUBNORMAL = 0x7FFFFF  # bits of the largest 32-bit float below the normal ones; some readers take those for 0
_BY_QUERY = 2**34  # more than twice the bits of a 32-bit float and the ranks of a list
# characters that some readers take for the end of a line, though JSON does not
_LINE_ENDS = str.maketrans({end: f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"})


def write_qrels(path: Path, store: Store, lists: JudgedLists) -> Path:
    """Write lines `query_id 0 product_id gain`; gains are whole numbers (`metrics.whole_gains`)."""
    return _write(path, (f"{q} 0 {p} {gain}" for q, p, gain in _qrels(store, lists)))


def write_run(path: Path, store: Store, found: Ranking, tag: str) -> Path:
    """Write lines `query_id Q0 product_id rank score tag`, best first, ranks from 1."""
    names, query_ids = document_ids(store), store.queries["query_id"].to_pylist()
    tag = re.sub(r"[\s\ud800-\udfff]+", "_", tag)
    rows = zip(found.query.tolist(), found.product.tolist(), found.rank.tolist(), _falling(found), strict=True)
    return _write(path, (f"{query_ids[q]} Q0 {names[p]} {rank + 1} {score} {tag}" for q, p, rank, score in rows))


def _falling(found: Ranking) -> list[str]:
    """The scores as text, of which the 32-bit floats fall with the rank within each query."""
    # Floats are ordered as their bits are. The lowest of all steps down from an earlier score is the score to write.
    wanted = _steps(found.score)
    offset = found.rank - found.query * _BY_QUERY
    steps = np.minimum.accumulate(wanted + offset) - offset
    floats = _floats(steps)
    scores = [
        repr(score) if kept else str(lower)
        for score, kept, lower in zip(found.score.tolist(), (steps == wanted).tolist(), floats, strict=True)
    ]
    beyond = np.unique(found.query[~np.isfinite(floats)])
    if len(beyond):  # for these queries, whole numbers down to 1
        length = np.searchsorted(found.query, found.query, "right") - np.searchsorted(found.query, found.query)
        for n in np.flatnonzero(np.isin(found.query, beyond)):
            scores[n] = str(length[n] - found.rank[n])
    return scores


def _steps(scores: Floats) -> Ints:
    """int64 [N]: neighbouring 32-bit floats are neighbouring numbers; subnormal ones are 0."""
    with np.errstate(over="ignore"):  # infinite then
        rounded = scores.astype(np.float32)
    size = (np.abs(rounded).view(np.int32).astype(np.int64) - _SUBNORMAL).clip(min=0)
    return np.where(rounded < 0, -size, size)


def _floats(steps: Ints) -> Float32s:
    """The reverse of `_steps`, float32 [N]; below the lowest float is -inf."""
    bits = np.where(steps == 0, 0, np.abs(steps) + _SUBNORMAL).clip(max=np.float32(np.inf).view(np.int32))
    return np.copysign(bits.astype(np.int32).view(np.float32), np.where(steps < 0, -1, 1).astype(np.float32))


def write_beir(directory: Path, store: Store, lists: JudgedLists) -> Path:
    """Write corpus.jsonl (every product; its title as text), queries.jsonl and qrels/test.tsv, for BEIR."""
    titles = store.products["product_title"].to_pylist()
    corpus = zip(document_ids(store), titles, strict=True)
    _write(directory / "corpus.jsonl", (_json({"_id": i, "title": "", "text": t or ""}) for i, t in corpus))
    queries = store.queries.select(["query_id", "query"]).take(lists.query_index).to_pylist()
    _write(directory / "queries.jsonl", (_json({"_id": str(q["query_id"]), "text": q["query"] or ""}) for q in queries))
    header = "query-id\tcorpus-id\tscore"
    rows = [f"{q}\t{p}\t{gain}" for q, p, gain in _qrels(store, lists)]
    _write(directory / "qrels" / "test.tsv", iter([header, *rows]))
    return directory


def _qrels(store: Store, lists: JudgedLists) -> Iterator[tuple[int, str, int]]:
    names, query_ids = document_ids(store), store.queries["query_id"].to_pylist()
    rows = zip(
        lists.query_index[lists.query].tolist(), lists.product.tolist(), whole_gains(lists).tolist(), strict=True
    )
    return ((query_ids[q], names[p], gain) for q, p, gain in rows)


def _json(row: Mapping[str, str]) -> str:
    return json.dumps(row, ensure_ascii=False).translate(_LINE_ENDS)


def _write(path: Path, lines: Iterator[str]) -> Path:
    with replacing(path) as part, part.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{line}\n" for line in lines)
    return path


def export(directory: Path, store: Store, lists: JudgedLists, rankings: Mapping[str, Ranking]) -> Path:
    """Write qrels.trec, METHOD.run for every ranking (characters other than letters, digits and _.+- become _), beir/.

    Raises:
        EvaluationError: two methods would have the same file, a product has an empty id, or gains cannot be written as
            whole numbers.
    """
    if "" in document_ids(store):
        raise EvaluationError("a product has an empty id", where=directory, expected="an id to write in every line")
    names = {method: re.sub(r"[^\w.+-]+", "_", method).lstrip(".") for method in rankings}
    if len(set(names.values())) < len(names):
        raise EvaluationError("two methods would have the same run file", where=directory, got=sorted(names))
    write_qrels(directory / "qrels.trec", store, lists)
    for method, found in rankings.items():
        write_run(directory / f"{names[method]}.run", store, found, method)
    write_beir(directory / "beir", store, lists)
    return directory
