from __future__ import annotations

import gzip
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


LINES = "10 Q0 P000 1 0.5 x\n10 Q0 P001 2 0.75 x\n20 Q0 P001 1 -3 x\n"
TABS = LINES.replace(" ", "\t")
HEADER = "query_id Q0 product_id rank score tag\n"


@pytest.mark.parametrize(
    "content",
    [
        LINES.encode(),
        TABS.encode(),
        TABS.replace("\tx\n", "\tmy own run\r\n").encode(),
        b"\xef\xbb\xbf" + LINES.encode(),
        LINES.encode("utf-16"),
        (HEADER + LINES).encode(),
        b"\xef\xbb\xbf\n" + (HEADER + LINES).replace(" ", "\t").encode(),
        LINES.replace("Q0 ", "").encode(),
        TABS.replace("Q0\t", "").replace("x\n", "my run\n").encode(),
        ("qid docno rank score run\n" + LINES.replace("Q0 ", "")).encode(),
        LINES.replace(" x\n", "\n").encode(),
        gzip.compress(LINES.encode(), mtime=0),
        gzip.compress(b"\xef\xbb\xbf" + (HEADER + TABS).encode(), mtime=0),
    ],
)
def test_run_files_as_people_write_them(tmp_path: Path, content: bytes) -> None:
    store = memory_store([[(0, "E"), (1, "S")], [(0, "E"), (1, "S")]], 2)
    run = run_of(tmp_path, content)
    found = evaluation.compare(store, [run], resamples=100)
    assert found.rankings[run].query.tolist() == [0, 0, 1]
    assert found.rankings[run].product.tolist() == [1, 0, 1]
    assert found.rankings[run].score.tolist() == [0.75, 0.5, -3]
    assert evaluation.retrieve(store, [run], resamples=100).rankings[run].score.tolist() == [0.75, 0.5, -3]


def test_ids_with_spaces_are_read_between_tabs_and_as_in_urls(tmp_path: Path) -> None:
    store = memory_store([[(0, "E"), (1, "S"), (2, "C")]], 3)
    store.products = store.products.set_column(0, "product_id", [["A B", "100%", "C"]])
    tabs = run_of(tmp_path, "10\tQ0\tC\t1\t3\tx\n10\tA B\t2\t2\tx\n10\t100%\t3\t1\tx\n")
    assert evaluation.compare(store, [tabs], resamples=100).rankings[tabs].product.tolist() == [2, 0, 1]
    encoded = run_of(tmp_path, "10 Q0 C 1 3 x\n10 Q0 A%20B 2 2 x\n10 Q0 us:100% 3 1 x\n")
    assert evaluation.compare(store, [encoded], resamples=100).rankings[encoded].product.tolist() == [2, 0, 1]


def test_pairs_that_are_not_judged_are_left_out_as_by_trec_eval_j(tmp_path: Path) -> None:
    store = memory_store([[(0, "E"), (1, "S")], [(2, "E")]], 4)
    run = run_of(tmp_path, "10 Q0 P002 1 4 x\n10 Q0 P001 2 3 x\n10 Q0 P003 3 2 x\n10 Q0 P000 4 1 x\n20 Q0 P000 1 1 x\n")
    result = evaluation.compare(store, [run], metrics="mrr p@1", resamples=100)
    assert result.rankings[run].product.tolist() == [1, 0]
    assert result.per_query[run][:, 1].tolist() == [1 / 2, 0]  # P000 is second among the judged
    assert f"{run}: 3 of 5 pairs are not judged and left out, as by trec_eval -J" in result.notes
    result.export(tmp_path / "runs")
    measures = ["RR(rel=100,judged_only=True)", "nDCG(judged_only=True)"]
    theirs = trec_values(tmp_path / "runs" / "qrels.trec", tmp_path / "user.run", measures)
    for query, values in zip((10, 20), result.per_query[run][:, [1, 0]].tolist(), strict=True):
        assert theirs[query] == pytest.approx(values, abs=1e-12)
    retrieved = evaluation.retrieve(store, [run], metrics="mrr p@1", resamples=100)
    assert retrieved.per_query[run][:, 1].tolist() == [1 / 4, 0]  # there they have a rank and gain 0
    assert not [note for note in retrieved.notes if "judged and left out" in note]


def test_unknown_queries_and_products_are_counted(tmp_path: Path) -> None:
    store = memory_store([[(0, "E"), (1, "S")]], 2)
    run = run_of(tmp_path, "10 Q0 P001 1 2 x\n77 Q0 P000 1 1 x\n10 Q0 ZZZ 1 1 x\n10 Q0 P000 2 1 x\n")
    for judge in (evaluation.compare, evaluation.retrieve):
        result = judge(store, [run], resamples=100)
        assert result.rankings[run].product.tolist() == [1, 0]
        path = run.removeprefix("run:")
        note = f"{run}: 2 of 4 lines name a query or product that the dataset lacks; first {path}:2: query '77'"
        assert note in result.notes


def test_damaged_gzip_files_give_one_line(tmp_path: Path) -> None:
    store = memory_store([[(0, "E"), (1, "S")]], 2)
    whole = gzip.compress("".join(f"10 Q0 P{n} 1 1 x\n" for n in range(999)).encode(), mtime=0)
    for content in (whole[:-20], whole[:40] + bytes(40) + whole[80:], b"\x1f\x8b"):
        with pytest.raises(EvaluationError, match=r"user.run, after line \d+: the gzip file is damaged") as failure:
            evaluation.compare(store, [run_of(tmp_path, content)])
        assert "\n" not in str(failure.value)


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
        ("10 Q0 P000 one high x\n", r"user.run:1: scores must be finite.*'high'"),  # no header: 10 is a query
        (HEADER * 2, r"user.run:2: scores must be finite.*'score'"),
        (HEADER, r"no lines"),
        ("11 Q0 P000 1 1 x\n10 Q0 P999 1 1 x\n", r"user.run:1: unknown query.*'11'. No line of the file has"),
        (b"\xff\xfe1\x00\x00\xd8\n\x00", r"user.run, after line 0: not text in UTF-8"),
    ],
)
def test_bad_runs_name_the_line(tmp_path: Path, text: str | bytes, message: str) -> None:
    store = memory_store([[(0, "E"), (1, "S")]], 3)
    with pytest.raises((EvaluationError, EmptyFileError), match=message) as failure:
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


def test_a_file_whose_name_holds_a_number_sign(tmp_path: Path) -> None:
    store = random_store(6)
    ids = store.products["product_id"].to_pylist()
    method = write_features(tmp_path / "a#1" / "f#vector.parquet", ids, list(store.text_features))
    text, whole, column = evaluation.compare(store, ["clip_text", method, f"{method}#vector"]).scores.values()
    np.testing.assert_array_equal(text, whole)
    np.testing.assert_array_equal(text, column)
    other = write_features(tmp_path / "f", ids, list(store.image_features))
    image, whole, column = evaluation.compare(store, ["clip_image", other, f"{other}#vector"]).scores.values()
    np.testing.assert_array_equal(image, whole)
    np.testing.assert_array_equal(image, column)
    (tmp_path / "f#vector").write_bytes((tmp_path / "a#1" / "f#vector.parquet").read_bytes())
    (same,) = evaluation.compare(store, [f"{other}#vector"]).scores.values()  # a file of the whole name comes first
    np.testing.assert_array_equal(text, same)
    with pytest.raises(MissingFileError, match=r"nope#x: no such features file"):
        evaluation.compare(store, [f"features:{tmp_path}/nope#x#column"])


@pytest.mark.parametrize(
    ("dtype", "ids"),
    [
        (pa.list_(pa.int8()), pa.array(["P000", "P001", "X"])),
        (pa.large_list(pa.float64()), pa.array(["P000", "P001", "X"]).dictionary_encode()),
        (pa.list_(pa.float16(), 6), pa.array([b"P000", b"P001", b"X"])),
    ],
)
def test_types_of_vectors_and_ids(tmp_path: Path, dtype: pa.DataType, ids: pa.Array) -> None:
    store = memory_store([[(0, "E"), (1, "S")]], 3)
    vectors = np.arange(18).reshape(3, 6) - 8
    rows = pa.array(list(vectors.astype(np.float16 if pa.types.is_fixed_size_list(dtype) else np.int8)), dtype)
    pq.write_table(pa.table({"product_id": ids, "vector": rows}), tmp_path / "f.parquet")
    (scores,) = evaluation.compare(store, [f"features:{tmp_path}/f.parquet"], resamples=100).scores.values()
    query = store.query_features[0].astype(float)
    expected = [v @ query / np.linalg.norm(v) / np.linalg.norm(query) for v in vectors[:2].astype(float)]
    np.testing.assert_allclose(scores, expected)


def test_numbers_as_ids(tmp_path: Path) -> None:
    store = memory_store([[(0, "E"), (1, "S")], [(1, "E")]], 2)
    store.products = store.products.set_column(0, "product_id", [["123", "124"]])
    write_features(tmp_path / schemas.PRODUCT_FEATURES, [123, 124], [[1, 0], [0, 1]])
    write_features(tmp_path / schemas.QUERY_FEATURES, [20.0, 10.0], [[1, 0], [0.6, 0.8]], key="query_id")
    (scores,) = evaluation.compare(store, [f"features:{tmp_path}"], resamples=100).scores.values()
    np.testing.assert_allclose(scores, [0.6, 0.8, 0], rtol=1e-6)


def _first_shorter(store: MemoryStore, path: Path) -> str:
    return write_features(path, ["P001", "P000"], [[1] * 5, [1] * 6])


def _empty(store: MemoryStore, path: Path) -> str:
    return write_features(path, pa.array([], pa.string()), [])


def _no_bytes(store: MemoryStore, path: Path) -> str:
    path.write_bytes(b"")
    return f"features:{path}"


def _one_nan(store: MemoryStore, path: Path) -> str:
    return write_features(path, ["P001", "P000"], [[1] * 6, [1] * 5 + [np.nan]])


def _texts(store: MemoryStore, path: Path) -> str:
    pq.write_table(pa.table({"product_id": ["P000"], "vector": [["1"] * 6]}), path)
    return f"features:{path}"


def _bad_ids(store: MemoryStore, path: Path) -> str:
    return write_features(path, [{"a": 1}], [[1] * 6])


def _bad_query_id(store: MemoryStore, path: Path) -> str:
    write_features(path / schemas.PRODUCT_FEATURES, ["P000"], [[1, 0]])
    write_features(path / schemas.QUERY_FEATURES, ["\N{SUPERSCRIPT TWO}", "20"], [[1, 1]] * 2, key="query_id")
    return f"features:{path}"


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
        (_first_shorter, r"vectors differ in width; expected 6, got"),
        (_empty, "f.parquet: vector: no row has a vector"),
        (_no_bytes, "f.parquet: the file is empty"),
        (_one_nan, r"vector: .*(not finite; got row 1|NaN beside numbers)"),
        (_texts, r"cannot choose the column of vectors; expected one column of lists of numbers, got \[\]"),
        (_bad_ids, "the ids cannot be read as text"),
        (_bad_query_id, "a query has no vector; expected query_id 10"),
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
