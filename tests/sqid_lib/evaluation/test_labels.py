"""Labels of ESCI and labels of the release's own: gains, relevance, qrels."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from evaluation_fixtures import MemoryStore, memory_store, random_store, trec_values

from sqid_lib import evaluation
from sqid_lib.errors import EvaluationError, UsageError
from sqid_lib.evaluation.judged import judged_lists

NEARNESS = {"exact": 1.0, "near": 0.3, "no": 0.0}
GRADES = {"perfect": 3.0, "good": 2.0, "fair": 1.0, "bad": 0.0}
THOUSANDTHS = {"exact": 1.0, "near": 0.125, "no": 0.0}


def own_store(gains: Mapping[str, float], seed: int = 0, **options: Any) -> MemoryStore:
    return random_store(seed, labels=list(gains), gains=gains, **options)


def with_column(store: MemoryStore, name: str, values: pa.Array) -> MemoryStore:
    store.judgments = store.judgments.set_column(store.judgments.schema.get_field_index(name), name, values)
    return store


# -- the release's own labels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gains", "relevant", "threshold"),
    [
        (NEARNESS, None, 100),
        (NEARNESS, ["exact", "near"], 30),
        (GRADES, None, 300),
        (GRADES, "perfect", 300),
        (GRADES, ["good", "perfect"], 200),
        (THOUSANDTHS, ["exact", "near"], 125),
    ],
)
def test_own_gains_equal_trec_eval_on_the_exported_files(
    tmp_path: Path, gains: dict[str, float], relevant: Any, threshold: int
) -> None:
    store = own_store(gains, queries=25, shuffle=True)
    options: dict[str, Any] = {"relevant": relevant, "metrics": "ndcg ndcg@3 p@1 p@5 mrr recall@2", "resamples": 100}
    methods = ["clip_text", "fusion", "rrf"]
    result = evaluation.compare(store, methods, **options)
    result.export(tmp_path)
    rel = f"(rel={threshold})"
    measures = ["nDCG", "nDCG@3", f"P{rel}@1", f"P{rel}@5", f"RR{rel}", f"R{rel}@2"]
    for method, ours in result.per_query.items():
        theirs = trec_values(tmp_path / "qrels.trec", tmp_path / f"{method}.run", measures)
        for query_id, values in zip(result.query_ids, ours, strict=True):
            np.testing.assert_allclose(values, theirs[query_id], rtol=0, atol=1e-12)
    slow = evaluation.compare(store, methods, metrics_engine="ir-measures", **options)
    for method, values in result.per_query.items():
        np.testing.assert_allclose(values, slow.per_query[method], rtol=0, atol=1e-12)
    retrieved = evaluation.retrieve(store, ["clip_text"], top=30, **options)
    retrieved.export(tmp_path / "retrieved")
    theirs = trec_values(tmp_path / "retrieved/qrels.trec", tmp_path / "retrieved/clip_text.run", measures)
    for query_id, values in zip(retrieved.query_ids, retrieved.per_query["clip_text"], strict=True):
        np.testing.assert_allclose(values, theirs[query_id], rtol=0, atol=1e-12)


def test_own_gains_by_hand() -> None:
    store = memory_store([[(0, "near"), (1, "exact"), (2, "no")]], 3, gains=NEARNESS)
    result = evaluation.compare(store, scores={"s": [3, 2, 1]}, metrics="ndcg p@1 p@2", resamples=100)
    ndcg = (0.3 + 1 / np.log2(3)) / (1 + 0.3 / np.log2(3))
    assert result.per_query["s"][0].tolist() == pytest.approx([ndcg, 0, 0.5], abs=1e-15)  # float32 0.3 means 0.3


def test_nothing_of_esci_is_in_the_output_for_other_labels(tmp_path: Path) -> None:
    store = own_store(NEARNESS, queries=20)
    result = evaluation.compare(store, slices=("source",), resamples=100)
    row = json.loads(result.to_json())[0]
    assert (row["gains"], row["relevant"]) == ("release", ["exact"])
    assert "gains of the release: exact 1, near 0.3, no 0" in result.notes
    assert "binary measures count exact" in result.notes[0]
    result.export(tmp_path)
    assert {line.split()[-1] for line in (tmp_path / "qrels.trec").read_text().splitlines()} == {"100", "30", "0"}
    for text in (str(result), result.to_json(), result.to_csv(), (tmp_path / "qrels.trec").read_text()):
        assert not [word for word in ("esci", "ESCI", "S and C", "Exact", "binary measures count E") if word in text]


def test_published_numbers_are_not_beside_other_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    from sqid_lib import schemas

    store = own_store(NEARNESS)
    counts = {"products": 40, "queries": 12, "judgments": store.judgments.num_rows}
    monkeypatch.setattr(schemas, "PUBLISHED_COUNTS", counts)
    assert "published" not in evaluation.compare(store, ["random"], resamples=100).rows[0]


def test_all_labels_with_the_highest_gain_are_relevant_by_default() -> None:
    tied = {"exact": 1.0, "same": 1.0, "near": 0.3, "no": 0.0}
    store = memory_store([list(enumerate(tied))], 4, gains=tied)
    assert judged_lists(store).labels.relevant == ("exact", "same")
    assert judged_lists(store).relevant.tolist() == [True, True, False, False]
    nothing = memory_store([[(0, "no"), (1, "no")]], 2, gains={"no": 0.0})
    assert judged_lists(nothing).labels.relevant == ()
    row = evaluation.compare(nothing, ["clip_text"], metrics_engine="ir-measures", resamples=100).rows[0]
    assert row["ndcg"] == row["precision_at_1"] == 0


def test_the_default_is_chosen_before_judgments_are_left_out() -> None:
    store = memory_store([[(0, "exact"), (1, "near")]], 2, gains=NEARNESS, without_image=(0,))
    lists = judged_lists(store, missing="drop")
    assert lists.labels.relevant == ("exact",)
    assert not lists.relevant.any()
    result = evaluation.compare(
        store, ["clip_text"], missing="drop", metrics="mrr", metrics_engine="ir-measures", resamples=100
    )
    assert result.per_query["clip_text"].tolist() == [[1, 0]]


# -- ESCI's labels --------------------------------------------------------------------------------------------------


def test_escis_labels_have_escis_gains_whatever_the_gain_column_says() -> None:
    for labels in ("ESCI", "EI", "S"):
        store = memory_store([list(enumerate(labels))], 4)
        store = with_column(store, "gain", pa.array([7.0] * len(labels), pa.float32()))
        lists = judged_lists(store)
        assert (lists.labels.gains, lists.labels.relevant_value, lists.labels.notes) == ("esci", "E", [])
        assert lists.gain.tolist() == [{"E": 1.0, "S": 0.1, "C": 0.01, "I": 0.0}[label] for label in labels]


def test_one_other_label_is_enough_for_the_releases_gains() -> None:
    store = memory_store([[(0, "E"), (1, "X")]], 2, gains={"E": 0.5, "X": 2.0})
    assert judged_lists(store).gain.tolist() == [0.5, 2.0]
    assert judged_lists(store).labels.relevant == ("X",)


def test_the_releases_gains_can_be_asked_for() -> None:
    gains = {"E": 4.0, "S": 2.0, "C": 1.0, "I": 0.0}
    store = memory_store([list(enumerate("ESCI"))], 4, gains=gains)
    lists = judged_lists(store, "release", relevant=["E", "S"])
    assert lists.gain.tolist() == [4, 2, 1, 0]
    assert lists.labels.relevant_value == ["E", "S"]
    assert judged_lists(store, "esci").gain.tolist() == [1, 0.1, 0.01, 0]


def test_relevant_labels_of_esci_as_text_or_list() -> None:
    store = memory_store([list(enumerate("ESCI"))], 4)
    for relevant in ("ES", ["E", "S"]):
        lists = judged_lists(store, relevant=relevant)
        assert lists.relevant.tolist() == [True, True, False, False]
        assert lists.labels.relevant_value == "ES"


# -- whole gains for trec_eval --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gain", "unit"),
    [(0.5, 100), (0.25, 100), (0.125, 1_000), (0.0625, 10_000), (0.00001, 100_000), (0.000001, 1_000_000)],
)
def test_the_unit_of_qrels_is_the_smallest_that_makes_gains_whole(tmp_path: Path, gain: float, unit: int) -> None:
    store = memory_store([[(0, "all"), (1, "some"), (2, "none")]], 3, gains={"all": 2.0, "some": gain, "none": 0.0})
    result = evaluation.compare(store, ["clip_text"], resamples=100)
    result.export(tmp_path)
    written = [int(line.split()[-1]) for line in (tmp_path / "qrels.trec").read_text().splitlines()]
    assert written == [2 * unit, round(gain * unit), 0]
    assert [note for note in result.notes if f"qrels: gains times {unit:,}," in note] == result.notes[2:]
    assert (len(result.notes) == 3) == (unit > 100)


@pytest.mark.parametrize("gain", [1 / 3, 1e-7, 3e6])
def test_gains_that_no_unit_makes_whole_are_refused_only_where_they_must_be_whole(tmp_path: Path, gain: float) -> None:
    store = memory_store([[(0, "all"), (1, "some")]], 2, gains={"all": gain, "some": gain / 2})
    result = evaluation.compare(store, ["clip_text"], resamples=100)
    assert 0 < result.rows[0]["ndcg"] <= 1
    with pytest.raises(EvaluationError, match=r"label 'all': trec_eval reads whole gains only.*at most 6 decimals"):
        result.export(tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(EvaluationError, match="trec_eval reads whole gains only"):
        evaluation.compare(store, ["clip_text"], metrics_engine="ir-measures", resamples=100)


def test_trec_eval_is_not_slowed_by_a_small_unit() -> None:
    gains = {"all": 50.0, "some": 0.000001}
    store = memory_store([[(0, "some"), (1, "all")]], 2, gains=gains)
    options: dict[str, Any] = {"scores": {"s": [2, 1]}, "metrics": "ndcg ndcg@2 ndcg@3", "resamples": 100}
    slow = evaluation.compare(store, metrics_engine="ir-measures", **options)  # 50 million levels of gain
    fast = evaluation.compare(store, **options)
    np.testing.assert_allclose(fast.per_query["s"], slow.per_query["s"], rtol=0, atol=1e-12)
    assert fast.rows[0]["ndcg"] == pytest.approx(1 / np.log2(3), abs=1e-6)


def test_a_long_list_of_labels_is_shortened_in_the_note() -> None:
    gains = {f"grade {n:02}": n / 100 for n in range(40)}
    notes = judged_lists(memory_store([list(enumerate(gains))], 40, gains=gains)).labels.notes
    assert notes[0].startswith("gains of the release: grade 39 0.39, grade 38 0.38, ")
    assert notes[0].endswith("grade 28 0.28, …")


# -- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"gains": "esci-repo-swapped"},
            r"'esci-repo-swapped' are for ESCI's labels.*got label 'exact'.*'release'",
        ),
        ({"gains": "esci"}, r"'esci' are for ESCI's labels only"),
        ({"gains": "other"}, r"unknown gains; expected esci or esci-repo-swapped or release, got other"),
        ({"relevant": "E"}, r"unknown relevant; expected exact or near or no, got E"),
        ({"relevant": ["exact", "far"]}, r"unknown relevant; expected exact or near or no, got exact or far"),
        ({"relevant": []}, r"unknown relevant; expected exact or near or no, got none"),
    ],
)
def test_wrong_usage_with_own_labels(options: dict[str, Any], message: str) -> None:
    store = memory_store([list(enumerate(NEARNESS))], 3, gains=NEARNESS)
    with pytest.raises(UsageError, match=message):
        evaluation.compare(store, ["clip_text"], **options)


@pytest.mark.parametrize("relevant", ["I", "SE", "", ["E", "C"], []])
def test_wrong_relevant_labels_of_esci(relevant: Any) -> None:
    with pytest.raises(UsageError, match="unknown relevant; expected E or ES or ESC"):
        judged_lists(memory_store([list(enumerate("ESCI"))], 4), relevant=relevant)


@pytest.mark.parametrize(
    ("gain", "message"),
    [
        ([1.0, 0.5, None], r"judgment 2: bad gain; expected a number >= 0, got nan"),
        ([1.0, float("inf"), 0.0], r"judgment 1: bad gain"),
        ([1.0, 0.5, -1.0], r"judgment 2: bad gain; expected a number >= 0, got -1"),
        ([1.0, 0.5, 0.5], r"label 'exact': a label has two gains; expected one, got 1.0 and 0.5"),
    ],
)
def test_bad_gains_name_the_judgment(gain: list[float | None], message: str) -> None:
    store = memory_store([[(0, "exact"), (1, "near"), (2, "exact")]], 3, gains=NEARNESS)
    with pytest.raises(EvaluationError, match=message):
        judged_lists(with_column(store, "gain", pa.array(gain, pa.float32())))


def test_a_missing_label_names_the_judgment() -> None:
    store = memory_store([[(0, "E"), (1, "S")]], 2)
    with pytest.raises(EvaluationError, match="judgment 1: a label is missing"):
        judged_lists(with_column(store, "esci_label", pa.array(["E", None])))


def test_trec_eval_needs_relevant_labels_with_more_gain_than_the_others() -> None:
    store = memory_store([list(enumerate(NEARNESS))], 3, gains=NEARNESS)
    for relevant in (["near"], ["exact", "near", "no"]):
        with pytest.raises(EvaluationError, match="relevant products by their gain alone"):
            evaluation.compare(store, ["clip_text"], relevant=relevant, metrics_engine="ir-measures")
        evaluation.compare(store, ["clip_text"], relevant=relevant, resamples=100)
