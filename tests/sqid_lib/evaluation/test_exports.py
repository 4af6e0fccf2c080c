"""Exported qrels, run files and BEIR folders: read back here, by trec_eval, and as trec_eval reads numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from evaluation_fixtures import memory_store, random_store, trec_values
from hypothesis import given, settings
from hypothesis import strategies as st

from sqid_lib import evaluation
from sqid_lib.errors import EvaluationError
from sqid_lib.evaluation.exports import write_run
from sqid_lib.evaluation.runs import Ranking, ranking

METRICS = "ndcg ndcg@3 ndcg@10 p@1 p@5 mrr recall@2 recall@10 ap ap@3"
MEASURES = ["nDCG", "nDCG@3", "nDCG@10", "P(rel=100)@1", "P(rel=100)@5", "RR(rel=100)", "R(rel=100)@2", "R(rel=100)@10"]
MEASURES += ["AP(rel=100)", "AP(rel=100)@3"]


@pytest.mark.parametrize("locales", [("us",), ("es", "us")])
def test_every_metric_equals_trec_eval_on_the_exported_files(tmp_path: Path, locales: tuple[str, ...]) -> None:
    store = random_store(1, queries=25, without_image=tuple(range(0, 40, 2)), locales=locales, shuffle=True)
    result = evaluation.compare(
        store, ["clip_text", "clip_image", "fusion", "rrf", "random_draw"], metrics=METRICS, resamples=100
    )
    result.export(tmp_path)
    for method, ours in result.per_query.items():
        outside = trec_values(tmp_path / "qrels.trec", tmp_path / f"{method}.run", MEASURES)
        assert sorted(outside) == sorted(result.query_ids)
        for query_id, values in zip(result.query_ids, ours, strict=True):
            np.testing.assert_allclose(values, outside[query_id], rtol=0, atol=1e-6)


def test_retrieval_equals_trec_eval_on_the_exported_files(tmp_path: Path) -> None:
    store = random_store(2, queries=25, products=300, without_image=tuple(range(0, 300, 7)))
    result = evaluation.retrieve(store, metrics=METRICS, top=40, resamples=100)
    result.export(tmp_path)
    for method, ours in result.per_query.items():
        outside = trec_values(tmp_path / "qrels.trec", tmp_path / f"{method}.run", MEASURES)
        for query_id, values in zip(result.query_ids, ours, strict=True):
            np.testing.assert_allclose(values, outside[query_id], rtol=0, atol=1e-6)


def test_an_exported_run_comes_back_as_the_same_ranking(tmp_path: Path) -> None:
    store = random_store(3, queries=20, locales=("es", "us"))
    result = evaluation.compare(store, ["clip_text", "fusion:0.3"], resamples=100)
    result.export(tmp_path)
    files = [f"run:{tmp_path / name}.run" for name in ("clip_text", "fusion_0.3")]
    back = evaluation.compare(store, files, resamples=100)
    for method, file in zip(result.per_query, files, strict=True):
        np.testing.assert_array_equal(result.per_query[method], back.per_query[file])


def test_shared_ids_are_written_with_their_locale(tmp_path: Path) -> None:
    store = memory_store([[(0, "E"), (1, "S"), (2, "C")]], 3, locales=("es", "us"))  # P000 twice, P001 once
    evaluation.compare(store, ["clip_text"], resamples=100).export(tmp_path)
    lines = (tmp_path / "qrels.trec").read_text().splitlines()
    assert lines == ["10 0 es:P000 100", "10 0 us:P000 10", "10 0 P001 1"]


def test_run_lines_and_qrels_are_those_of_trec(tmp_path: Path) -> None:
    store = memory_store([[(0, "E"), (1, "I")]], 2)
    result = evaluation.compare(store, ["clip_text"], scores={"my method": [0.1, 0.9]}, resamples=100)
    result.export(tmp_path)
    assert (tmp_path / "my_method.run").read_text() == "10 Q0 P001 1 0.9 my_method\n10 Q0 P000 2 0.1 my_method\n"
    assert (tmp_path / "qrels.trec").read_text() == "10 0 P000 100\n10 0 P001 0\n"


def test_two_methods_never_share_a_run_file(tmp_path: Path) -> None:
    store = memory_store([[(0, "E"), (1, "I")]], 2)
    result = evaluation.compare(store, scores={"a b": [0, 1], "a/b": [0, 1]}, resamples=100)
    with pytest.raises(EvaluationError, match="have the same run file"):
        result.export(tmp_path)


def test_beir_folder(tmp_path: Path) -> None:
    store = random_store(4, queries=9)
    title = store.products.schema.get_field_index("product_title")
    store.products = store.products.set_column(title, "product_title", [[None, "téa\n2"] + ["x"] * 38])
    result = evaluation.compare(store, ["clip_text"], resamples=100)
    result.export(tmp_path)
    corpus = [json.loads(line) for line in (tmp_path / "beir" / "corpus.jsonl").read_text().splitlines()]
    assert [doc["_id"] for doc in corpus] == store.products["product_id"].to_pylist()
    assert [doc["text"] for doc in corpus[:3]] == ["", "téa\n2", "x"]
    queries = [json.loads(line) for line in (tmp_path / "beir" / "queries.jsonl").read_text().splitlines()]
    assert {int(q["_id"]) for q in queries} == set(result.query_ids.tolist())
    header, *rows = (tmp_path / "beir" / "qrels" / "test.tsv").read_text().splitlines()
    assert header.split("\t") == ["query-id", "corpus-id", "score"]
    qrels: dict[str, dict[str, int]] = {}
    for row in rows:
        query, product, gain = row.split("\t")
        qrels.setdefault(query, {})[product] = int(gain)
    assert sum(map(len, qrels.values())) == store.judgments.num_rows
    assert {gain for gains in qrels.values() for gain in gains.values()} <= {100, 10, 1, 0}


# -- scores ---------------------------------------------------------------------------------------------------------


def written_scores(tmp_path: Path, scores: list[float]) -> list[str]:
    """The score of each line of the run file of one query, best first."""
    store = memory_store([[(p, "E") for p in range(len(scores))]], len(scores))
    count = len(scores)
    found = ranking(store, np.zeros(count, np.int64), np.arange(count), np.array(scores))
    return [line.split()[4] for line in write_run(tmp_path / "x.run", store, found, "x").read_text().splitlines()]


def test_distinct_scores_are_written_as_they_are(tmp_path: Path) -> None:
    assert written_scores(tmp_path, [0.1, 3.0, -2.5, 0.0, 1e-20, 123456789.0]) == [
        "123456789.0", "3.0", "0.1", "1e-20", "0.0", "-2.5"
    ]  # fmt: skip


def test_ties_are_lowered_to_the_next_32_bit_float(tmp_path: Path) -> None:
    one = np.float32(1)
    below = np.nextafter(one, np.float32(0))
    lower = np.nextafter(below, np.float32(0))
    assert written_scores(tmp_path, [1.0, 1.0, 0.5, 1.0, 1.0 - 1e-12]) == [
        "1.0", str(below), str(lower), str(np.nextafter(lower, np.float32(0))), "0.5"
    ]  # fmt: skip
    assert written_scores(tmp_path, [0.0, 0.0, 0.0])[:2] == ["0.0", str(-np.finfo(np.float32).tiny)]


@settings(max_examples=200, deadline=None)
@given(
    scores=st.lists(
        st.one_of(
            st.sampled_from([0.0, -0.0, 1.0, 1 + 1e-9, -1.0, 1e-45, -1e-45, 3.4e38, -3.4e38, 1e300, -1e300]),
            st.floats(allow_nan=False, allow_infinity=False),
        ),
        min_size=1,
        max_size=12,
    )
)
def test_written_scores_fall_as_32_bit_floats_in_the_order_of_the_ranking(
    tmp_path_factory: pytest.TempPathFactory, scores: list[float]
) -> None:
    written = written_scores(tmp_path_factory.mktemp("run"), scores)
    read = np.array([float(text) for text in written])
    with np.errstate(over="ignore"):
        narrow = read.astype(np.float32)
        exact = np.sort(np.array(scores))[::-1]
        given_narrow = exact.astype(np.float32)
    assert (narrow[1:] < narrow[:-1]).all()
    assert (read[1:] < read[:-1]).all()
    distinct = (given_narrow[1:] < given_narrow[:-1]).all()
    fits = np.abs(exact).max() < 3.4e38
    if fits:
        np.testing.assert_allclose(read, exact, rtol=2e-6, atol=1e-37)
    if fits and distinct and (np.abs(exact[exact != 0]) > 1e-37).all():
        assert read.tolist() == exact.tolist()


def test_every_query_has_its_own_scores(tmp_path: Path) -> None:
    store = memory_store([[(0, "E"), (1, "E")]] * 3, 2)
    found = Ranking(np.repeat(np.arange(3), 2), np.tile([0, 1], 3), np.array([1e300, 1.0, 0.5, 0.5, 2.0, 1.0]))
    lines = write_run(tmp_path / "x.run", store, found, "x").read_text().splitlines()
    scores = [line.split()[4] for line in lines]
    assert scores[:2] == ["2", "1"]  # the first is beyond the 32-bit floats
    assert scores[2:4] == ["0.5", str(np.nextafter(np.float32(0.5), np.float32(0)))]
    assert scores[4:] == ["2.0", "1.0"]


def test_exported_scores_come_back(tmp_path: Path) -> None:
    store = random_store(3, queries=20)
    result = evaluation.compare(store, ["clip_text"], resamples=100)
    result.export(tmp_path)
    back = evaluation.compare(store, [f"run:{tmp_path}/clip_text.run"], resamples=100)
    (scores,) = back.scores.values()
    np.testing.assert_array_equal(scores, result.scores["clip_text"])


def test_tied_and_nearly_tied_rankings_are_those_of_trec_eval(tmp_path: Path) -> None:
    store = random_store(5, queries=30, shuffle=True)
    rng = np.random.default_rng(0)
    size = store.judgments.num_rows
    scores = {"coarse": rng.integers(0, 3, size).astype(float), "near": 1 + 1e-9 * rng.normal(size=size)}
    result = evaluation.compare(store, scores=scores, metrics=METRICS, resamples=100)
    result.export(tmp_path)
    for method, ours in result.per_query.items():
        theirs = trec_values(tmp_path / "qrels.trec", tmp_path / f"{method}.run", MEASURES)
        for query_id, values in zip(result.query_ids, ours, strict=True):
            np.testing.assert_allclose(values, theirs[query_id], rtol=0, atol=1e-6)


# -- names ----------------------------------------------------------------------------------------------------------

ODD = ["A B", "A\tB", "A\nB", "50%", "A%20B", "\N{NO-BREAK SPACE}x", "\N{IDEOGRAPHIC SPACE}", "größe"]


def test_ids_with_white_space_are_written_as_in_urls_and_read_back(tmp_path: Path) -> None:
    store = memory_store([[(p, "ESCI"[p % 4]) for p in range(len(ODD))]], len(ODD))
    store.products = store.products.set_column(0, "product_id", [ODD])
    result = evaluation.compare(store, ["clip_text"], metrics=METRICS, resamples=100)
    result.export(tmp_path)
    qrels = (tmp_path / "qrels.trec").read_text(encoding="utf-8").splitlines()
    expected = ["A%20B", "A%09B", "A%0AB", "50%25", "A%2520B", "%C2%A0x", "%E3%80%80", "größe"]
    assert sorted(line.split()[2] for line in qrels) == sorted(expected)
    assert {len(line.split()) for line in qrels} == {4}
    run = (tmp_path / "clip_text.run").read_text(encoding="utf-8").splitlines()
    assert {len(line.split()) for line in run} == {6}
    corpus = [json.loads(line)["_id"] for line in (tmp_path / "beir" / "corpus.jsonl").read_text("utf-8").splitlines()]
    assert corpus == expected
    tsv = (tmp_path / "beir" / "qrels" / "test.tsv").read_text(encoding="utf-8").splitlines()
    assert {line.split("\t")[1] for line in tsv[1:]} == set(expected)
    back = evaluation.compare(store, [f"run:{tmp_path}/clip_text.run"], metrics=METRICS, resamples=100)
    (ours,), (read,) = result.per_query.values(), back.per_query.values()
    np.testing.assert_array_equal(ours, read)
    theirs = trec_values(tmp_path / "qrels.trec", tmp_path / "clip_text.run", MEASURES)
    np.testing.assert_allclose(ours[0], theirs[10], rtol=0, atol=1e-6)


def test_an_empty_id_is_refused(tmp_path: Path) -> None:
    store = memory_store([[(0, "E"), (1, "S")]], 2)
    store.products = store.products.set_column(0, "product_id", [["", "A"]])
    with pytest.raises(EvaluationError, match="a product has an empty id"):
        evaluation.compare(store, ["clip_text"], resamples=100).export(tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_texts_with_line_ends_stay_in_their_line(tmp_path: Path) -> None:
    odd = "a\nb\r\n\tc\x85d\u2028e\u2029f\x0bg"
    store = memory_store([[(0, "E"), (1, "S")]], 2)
    store.queries = store.queries.set_column(1, "query", [[odd]])
    store.products = store.products.set_column(2, "product_title", [[odd, "é"]])
    evaluation.compare(store, ["clip_text"], resamples=100).export(tmp_path)
    (query,) = (tmp_path / "beir" / "queries.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(query)["text"] == odd
    corpus = (tmp_path / "beir" / "corpus.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["text"] for line in corpus] == [odd, "é"]
    assert '"é"' in corpus[1]


def test_a_tag_is_one_column_of_text(tmp_path: Path) -> None:
    store = memory_store([[(0, "E"), (1, "S")]], 2)
    found = ranking(store, np.zeros(1, np.int64), np.zeros(1, np.int64), np.ones(1))
    written = write_run(tmp_path / "x.run", store, found, "run:a b\t\udcff.run").read_text(encoding="utf-8")
    assert written == "10 Q0 P000 1 1.0 run:a_b_.run\n"
