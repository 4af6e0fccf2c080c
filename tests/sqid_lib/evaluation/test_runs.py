from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from evaluation_fixtures import MemoryStore, memory_store, random_store, trec_values

from sqid_lib import evaluation, schemas
from sqid_lib.errors import EmptyFileError, EvaluationError, MissingFileError, SqidError

METRICS = "ndcg ndcg@3 ndcg@10 p@1 p@5 mrr recall@2 recall@10"
MEASURES = ["nDCG", "nDCG@3", "nDCG@10", "P(rel=100)@1", "P(rel=100)@5", "RR(rel=100)", "R(rel=100)@2", "R(rel=100)@10"]


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
    assert (tmp_path / "my_method.run").read_text() == "10 Q0 P001 1 2 my_method\n10 Q0 P000 2 1 my_method\n"
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


# -- run files of users ---------------------------------------------------------------------------------------------


def run_of(tmp_path: Path, text: str | bytes) -> str:
    path = tmp_path / "user.run"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return f"run:{path}"


def test_a_run_is_ordered_by_score_and_ties_by_product_id(tmp_path: Path) -> None:
    store = memory_store([[(0, "E"), (1, "S"), (2, "I")]], 3)
    run = run_of(tmp_path, "10 Q0 P002 1 0.5 x\n\n10 Q0 us:P000 2 0.5 x\r\n10\tQ0\tP001\t3\t7e-1\tx\n")
    found = evaluation.compare(store, [run], resamples=100).rankings[run]
    assert found.product.tolist() == [1, 0, 2]


def test_products_that_a_run_leaves_out_have_gain_0(tmp_path: Path) -> None:
    store = memory_store([[(0, "E"), (1, "E")], [(0, "E")]], 2)
    run = run_of(tmp_path, "10 Q0 P001 1 0.5 x\n")
    result = evaluation.compare(store, [run], metrics="recall@10", resamples=100)
    assert result.per_query[run][:, 1].tolist() == [0.5, 0]
    assert result.per_query[run][0, 0] == pytest.approx(1 / (1 + 1 / np.log2(3)))


def test_a_run_may_hold_judgments_that_were_dropped(tmp_path: Path) -> None:
    store = memory_store([[(0, "E"), (1, "S"), (2, "I")]], 3, without_image=(0,))
    run = run_of(tmp_path, "10 Q0 P000 1 3 x\n10 Q0 P002 2 2 x\n10 Q0 P001 3 1 x\n")
    result = evaluation.compare(store, [run], missing="drop", resamples=100)
    assert result.rankings[run].product.tolist() == [2, 1]


def test_a_run_can_be_fused(tmp_path: Path) -> None:
    store = memory_store([[(0, "E"), (1, "S"), (2, "I")]], 3)
    run = run_of(tmp_path, "10 Q0 P002 1 100 x\n10 Q0 P001 2 50 x\n10 Q0 P000 3 0 x\n")
    fused = evaluation.compare(store, [f"{run}+clip_text:0.9"], resamples=100)
    assert next(iter(fused.rankings.values())).product.tolist() == [2, 1, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("10 Q0 P000 1 1 x\n10 Q0 P001 2 x\n", r"user.run:2: not a line of a run file; expected query_id Q0"),
        ("10 Q0 P000 1 nan x\n", r"user.run:1: scores must be finite.*'nan'"),
        ("10 Q0 P000 1 inf x\n", r"user.run:1: scores must be finite"),
        ("10 Q0 P000 1 high x\n", r"user.run:1: scores must be finite.*'high'"),
        ("11 Q0 P000 1 1 x\n", r"user.run:1: unknown query.*'11'"),
        ("10 Q0 P999 1 1 x\n", r"user.run:1: unknown product.*'P999'"),
        ("10 Q0 es:P000 1 1 x\n", r"user.run:1: unknown product"),
        ("10 Q0 P000 1 1 x\n10 Q0 us:P000 2 0 x\n", r"user.run:2: a product occurs twice"),
        ("10 Q0 P002 1 1 x\n", r"not judged.*1 pairs, first query_id 10, product_id P002.*--retrieve"),
        (b"10 Q0 P000 1 1 x\n\xff\xfe\n", r"user.run, after line \d: not text in UTF-8"),
        (b"\x00" * 50, r"user.run:1: not a line of a run"),
    ],
)
def test_bad_runs_name_the_line(tmp_path: Path, text: str | bytes, message: str) -> None:
    store = memory_store([[(0, "E"), (1, "S")]], 3)
    with pytest.raises(EvaluationError, match=message) as failure:
        evaluation.compare(store, [run_of(tmp_path, text)])
    assert "\n" not in str(failure.value)


def test_absent_and_empty_runs(tmp_path: Path) -> None:
    store = memory_store([[(0, "E"), (1, "S")]], 3)
    with pytest.raises(MissingFileError, match="no such run file"):
        evaluation.compare(store, [f"run:{tmp_path / 'nope'}"])
    with pytest.raises(EmptyFileError, match="no lines"):
        evaluation.compare(store, [run_of(tmp_path, "\n\n")])


# -- features of users ----------------------------------------------------------------------------------------------


def write_features(path: Path, ids: list[Any], vectors: Any, key: str = "product_id", **columns: Any) -> str:
    table = {key: ids, **columns, "vector": pa.array(vectors, pa.list_(pa.float32()))}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table), path)
    return f"features:{path}"


def test_features_equal_to_the_stores_own_score_the_same(tmp_path: Path) -> None:
    store = random_store(5, locales=("es", "us"))
    order = np.random.default_rng(0).permutation(40)
    ids, locales = (store.products[name].take(order) for name in ("product_id", "product_locale"))
    vectors = list(store.text_features[order])
    method = write_features(tmp_path / "f.parquet", ids.to_pylist(), vectors, product_locale=locales.to_pylist())
    result = evaluation.compare(store, ["clip_text", method], resamples=100)
    np.testing.assert_array_equal(result.scores["clip_text"], result.scores[method])


def test_products_without_features_score_zero_and_unknown_ones_are_ignored(tmp_path: Path) -> None:
    store = memory_store([[(0, "E"), (1, "S"), (2, "I")]], 3, width=2)
    method = write_features(tmp_path / "f.parquet", ["P001", "OTHER", "P002"], [[1, 2], [3, 4], None])
    result = evaluation.compare(store, [method], resamples=100)
    assert "2 judged products have no vector and score 0" in str(result)
    scores = result.scores[method]
    assert scores[0] == scores[2] == 0 != scores[1]


def test_a_directory_brings_its_own_query_vectors(tmp_path: Path) -> None:
    store = memory_store([[(0, "E"), (1, "S")]], 2, width=6)
    write_features(tmp_path / schemas.PRODUCT_FEATURES, ["P000", "P001"], [[1, 0], [0, 1]])
    write_features(tmp_path / schemas.QUERY_FEATURES, ["10", "77"], [[0.6, 0.8], [1, 1]], key="query_id")
    method = f"features:{tmp_path}"
    np.testing.assert_allclose(evaluation.compare(store, [method], resamples=100).scores[method], [0.6, 0.8], rtol=1e-6)
    found = evaluation.retrieve(store, [method], resamples=100).rankings[method]
    assert found.product.tolist() == [1, 0]


def test_a_column_is_named_where_there_are_several(tmp_path: Path) -> None:
    store = random_store(6)
    ids = store.products["product_id"].to_pylist()
    method = write_features(
        tmp_path / "f.parquet", ids, list(store.text_features), other=pa.FixedSizeListArray.from_arrays(
            store.image_features.ravel(), 6
        )
    )  # fmt: skip
    with pytest.raises(EvaluationError, match=r"cannot choose the column.*'other', 'vector'.*#COLUMN"):
        evaluation.compare(store, [method])
    result = evaluation.compare(store, ["clip_text", "clip_image", f"{method}#vector", f"{method}#other"])
    text, image, vector, other = result.scores.values()
    np.testing.assert_array_equal(text, vector)
    np.testing.assert_array_equal(image, other)


def _wrong_width(store: MemoryStore, path: Path) -> str:
    return write_features(path, ["P000"], [[1, 2, 3]])


def _ragged(store: MemoryStore, path: Path) -> str:
    return write_features(path, ["P000", "P001"], [[1] * 6, [1] * 5])


def _not_finite(store: MemoryStore, path: Path) -> str:
    return write_features(path, ["P000"], [[np.nan] * 5 + [1]])


def _twice(store: MemoryStore, path: Path) -> str:
    return write_features(path, ["P000", "P000"], [[1] * 6] * 2)


def _no_product(store: MemoryStore, path: Path) -> str:
    return write_features(path, ["X"], [[1] * 6])


def _all_null(store: MemoryStore, path: Path) -> str:
    return write_features(path, ["P000"], [None])


def _no_key(store: MemoryStore, path: Path) -> str:
    return write_features(path, ["P000"], [[1] * 6], key="asin")


def _no_vectors(store: MemoryStore, path: Path) -> str:
    pq.write_table(pa.table({"product_id": ["P000"]}), path)
    return f"features:{path}"


def _not_parquet(store: MemoryStore, path: Path) -> str:
    path.write_text("product_id,vector\n")
    return f"features:{path}"


def _absent(store: MemoryStore, path: Path) -> str:
    return f"features:{path}"


def _missing_query(store: MemoryStore, path: Path) -> str:
    write_features(path / schemas.PRODUCT_FEATURES, ["P000"], [[1, 0]])
    write_features(path / schemas.QUERY_FEATURES, [77, 20], [[1, 1]] * 2, key="query_id")
    return f"features:{path}"


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (_wrong_width, "f.parquet: vector: the vectors have another width.*expected 6, got 3"),
        (_ragged, "vectors differ in width"),
        (_not_finite, "not finite"),
        (_twice, "product_id occurs twice"),
        (_no_product, "no product_id of the dataset"),
        (_all_null, "no row has a vector"),
        (_no_key, "a column is missing; expected product_id"),
        (_no_vectors, "cannot choose the column of vectors"),
        (_not_parquet, "f.parquet"),
        (_absent, "no such features"),
        (_missing_query, "a query has no vector; expected query_id 10"),
    ],
)
def test_bad_features_give_one_line(tmp_path: Path, write: Callable[[MemoryStore, Path], str], message: str) -> None:
    store = memory_store([[(0, "E"), (1, "S")], [(0, "E")]], 2)
    with pytest.raises(SqidError, match=message) as failure:
        evaluation.compare(store, [write(store, tmp_path / "f.parquet")])
    assert "\n" not in str(failure.value)
