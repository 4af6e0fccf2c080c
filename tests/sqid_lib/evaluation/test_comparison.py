from __future__ import annotations

import csv
import io
import itertools
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluation_fixtures import memory_store, random_store
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_release import write_release

from sqid_lib import evaluation, schemas
from sqid_lib.errors import EvaluationError, UsageError
from sqid_lib.evaluation.clip import rescaled
from sqid_lib.evaluation.judged import judged_lists
from sqid_lib.evaluation.metrics import expected_random, parse_metrics, per_query, per_query_trec_eval
from sqid_lib.evaluation.statistics import bootstrap_means, interval, paired_p_values
from sqid_lib.evaluation.summary import slice_queries
from sqid_lib.store import EmbeddingStore

ALL = parse_metrics("ndcg ndcg@3 ndcg@10 p@1 p@5 mrr recall@2 recall@10 ap ap@1 ap@3")


def judge(store: Any, scores: list[float], metrics: str = "ndcg", **options: Any) -> list[float]:
    """Values of a store with one query, for scores in the order of its judgments."""
    result = evaluation.compare(store, [], scores={"given": scores}, metrics=metrics, resamples=100, **options)
    return [float(value) for value in result.per_query["given"][0]]


# -- measures -------------------------------------------------------------------------------------------------------


def test_ndcg_by_hand() -> None:
    store = memory_store([[(0, "E"), (1, "S"), (2, "C"), (3, "I")]], 4)
    dcg = 0.0 / math.log2(2) + 0.01 / math.log2(3) + 0.1 / math.log2(4) + 1.0 / math.log2(5)
    ideal = 1.0 / math.log2(2) + 0.1 / math.log2(3) + 0.01 / math.log2(4)
    assert judge(store, [1, 2, 3, 4])[0] == pytest.approx(dcg / ideal, abs=1e-15)
    assert judge(store, [4, 3, 2, 1])[0] == 1.0


def test_binary_measures_by_hand() -> None:
    store = memory_store([[(0, "E"), (1, "E"), (2, "S"), (3, "I")]], 4)
    values = judge(store, [2, 1, 4, 3], "p@1 p@3 mrr recall@3")
    assert values[1:] == pytest.approx([0, 1 / 3, 1 / 3, 1 / 2])
    assert judge(store, [2, 1, 4, 3], "p@1 mrr", relevant="ES")[1:] == [1, 1]


def test_average_precision_by_hand() -> None:
    store = memory_store([[(0, "E"), (1, "I"), (2, "E"), (3, "S"), (4, "E")], [(0, "I"), (1, "S")]], 5)
    scores = [1.0, 3.0, 5.0, 4.0, 2.0, 2.0, 1.0]  # order of the first list: E S I E E
    result = evaluation.compare(store, scores={"given": scores}, metrics="ap ap@4 ap@1", resamples=100)
    ap = (1 / 1 + 2 / 4 + 3 / 5) / 3
    assert result.per_query["given"][0, 1:].tolist() == pytest.approx([ap, (1 / 1 + 2 / 4) / 3, 1 / 3], abs=1e-15)
    assert result.per_query["given"][1, 1:].tolist() == [0, 0, 0]
    assert result.rows[0]["ap"] == pytest.approx(ap / 2)
    assert "ap_at_4" in result.rows[0]
    assert "AP@4" in str(result)


def test_average_precision_counts_only_what_is_retrieved() -> None:
    store = memory_store([[(0, "E"), (1, "E"), (2, "I")]], 3)
    assert judge(store, [-math.inf, 1, 2], "ap")[1] == pytest.approx(1 / 2 / 2)


def test_ties_go_to_the_smaller_product_id_whatever_the_order_of_rows() -> None:
    for seed in range(5):
        store = memory_store([[(5, "I"), (1, "E"), (3, "S")]], 6, shuffle=True, seed=seed)
        assert judge(store, [0.5, 0.5, 0.5], "mrr p@1")[1:] == [1, 1]  # P001 comes first


def test_a_query_without_gains_counts_zero() -> None:
    store = memory_store([[(0, "I"), (1, "I")], [(0, "E")]], 2)
    result = evaluation.compare(store, ["clip_text", "random"], resamples=100)
    assert result.per_query["clip_text"][:, 0].tolist() == [0, 1]
    assert result.per_query["random"][:, 0].tolist() == [0, 1]
    assert result.rows[0]["ndcg"] == 0.5


def test_swapped_gains_swap_and_say_so() -> None:
    store = memory_store([[(0, "S"), (1, "C")]], 2)
    assert judge(store, [1, 0])[0] == 1
    result = evaluation.compare(store, [], scores={"g": [1, 0]}, gains="esci-repo-swapped", resamples=100)
    assert result.rows[0]["ndcg"] < 1
    assert result.rows[0]["gains"] == "esci-repo-swapped"
    assert "S and C swapped" in str(result)
    assert "wrong way round" in str(result)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), coarse=st.booleans(), missing=st.floats(0, 1))
def test_fast_path_equals_trec_eval(seed: int, coarse: bool, missing: float) -> None:
    store = random_store(seed, shuffle=True)
    rng = np.random.default_rng(seed)
    for gains, relevant in (("esci", "E"), ("esci", "ES"), ("esci-repo-swapped", "ESC")):
        lists = judged_lists(store, gains, relevant=relevant)
        scores = rng.normal(size=len(lists.row))
        scores = np.round(scores) if coarse else 1 + 1e-9 * scores  # ties, and what 32-bit floats take for ties
        scores[rng.random(len(scores)) < missing] = -np.inf
        metrics = [m for m in ALL if not (m.kind == "mrr" and m.cutoff)]
        np.testing.assert_allclose(
            per_query(lists, scores, metrics), per_query_trec_eval(lists, scores, metrics), rtol=0, atol=1e-12
        )


@settings(max_examples=20, deadline=None)
@given(labels=st.lists(st.sampled_from("ESCI"), min_size=1, max_size=5), cutoff=st.integers(1, 6))
def test_expected_random_is_the_mean_over_all_orders(labels: list[str], cutoff: int) -> None:
    store = memory_store([list(enumerate(labels))], len(labels))
    lists = judged_lists(store)
    metrics = parse_metrics(f"ndcg ndcg@{cutoff} p@{cutoff} mrr mrr@{cutoff} recall@{cutoff} ap ap@{cutoff}")
    orders = [np.array(order, float) for order in itertools.permutations(range(len(labels)))]
    brute = np.mean([per_query(lists, order, metrics) for order in orders], axis=0)
    np.testing.assert_allclose(expected_random(lists, metrics), brute, rtol=0, atol=1e-12)


def test_ir_measures_engine_gives_the_same_table() -> None:
    store = random_store(3, without_image=(1, 2))
    fast, slow = (evaluation.compare(store, metrics_engine=engine, resamples=100) for engine in ("fast", "ir-measures"))
    for method, values in fast.per_query.items():
        np.testing.assert_allclose(values, slow.per_query[method], rtol=0, atol=1e-12)


def test_trec_eval_refuses_relevance_it_cannot_express() -> None:
    store = memory_store([[(0, "S"), (1, "C")]], 2)
    with pytest.raises(EvaluationError, match=r"relevant products by their gain alone.*got E and S"):
        evaluation.compare(store, ["clip_text"], gains="esci-repo-swapped", relevant="ES", metrics_engine="ir-measures")


@pytest.mark.parametrize("text", ["map", "p", "recall", "ndcg@0", "ndcg@-1", "ndcg@1.5", "ndcg@", "", "p@1 nope"])
def test_unknown_metrics_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="unknown metric"):
        parse_metrics(text)


@pytest.mark.parametrize(
    ("text", "meant"), [("map", "ap"), ("ndgc@10", "ndcg"), ("recal@10", "recall"), ("nope", None), ("p", None)]
)
def test_unknown_metrics_name_the_nearest(text: str, meant: str | None) -> None:
    with pytest.raises(UsageError) as failure:
        parse_metrics(text)
    assert failure.value.fix == (meant and f"Did you mean {meant}?")


# -- methods --------------------------------------------------------------------------------------------------------


def test_cosine_ignores_length_and_equals_brute_force() -> None:
    store = random_store(5, without_image=(0, 7, 11))
    store.text_features *= np.random.default_rng(0).uniform(0.1, 50, size=(40, 1)).astype(np.float32)
    result = evaluation.compare(store, ["clip_text", "clip_image"], resamples=100)
    for method, vectors in (("clip_text", store.text_features), ("clip_image", store.image_features)):
        for score, q, p in zip(result.scores[method], result.lists.query, result.lists.product, strict=True):
            a, b = store.query_features[q].astype(float), vectors[p].astype(float)
            expected = a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) if b.any() else 0.0
            assert score == pytest.approx(expected, abs=1e-12)


def test_missing_image_scores_zero_even_if_a_vector_is_there() -> None:
    store = memory_store([[(0, "E"), (1, "S")]], 2)
    store.has_image[0] = False
    assert evaluation.compare(store, ["clip_image"], resamples=100).scores["clip_image"][0] == 0


def test_a_release_without_images_is_named_in_a_note() -> None:
    store = random_store(6, without_image=tuple(range(40)))
    note = "clip_image: no product has an image vector, all of them score 0; so do the image parts of fusions"
    result = evaluation.compare(store, ["clip_image", "fusion:0.5", "rrf", "clip_image+clip_text:0.5"], resamples=100)
    assert result.notes.count(note) == 1
    assert set(result.scores["clip_image"]) == {0}
    assert evaluation.retrieve(store, ["clip_image", "fusion", "rrf"], resamples=100).notes.count(note) == 1
    assert note not in evaluation.compare(store, ["clip_text"], resamples=100).notes
    assert note not in evaluation.compare(random_store(6, without_image=(1,)), resamples=100).notes


def test_missing_text_uses_the_text_score_on_the_scale_of_images() -> None:
    store = random_store(6, without_image=tuple(range(0, 40, 3)))
    result = evaluation.compare(store, ["clip_image", "clip_text"], missing="text", resamples=100)
    there = store.has_image[result.lists.product]
    image, text = result.scores["clip_image"], result.scores["clip_text"]
    assert np.array_equal(np.argsort(image[~there]), np.argsort(text[~there]))
    expected = (text - text[there].mean()) / text[there].std() * image[there].std() + image[there].mean()
    np.testing.assert_allclose(image[~there], expected[~there])
    constant = rescaled(np.ones(4), np.array([1.0, 3.0, 0, 0]), np.array([True, True, False, False]))
    assert constant.tolist() == [2, 2, 2, 2]


def test_missing_drop_leaves_the_judgments_out() -> None:
    store = memory_store([[(0, "E"), (1, "S"), (2, "I")], [(0, "E")]], 3, without_image=(0,))
    result = evaluation.compare(store, ["clip_text"], missing="drop", resamples=100)
    assert len(result.lists.row) == 2
    assert result.query_ids.tolist() == [10]
    with pytest.raises(EvaluationError, match="nothing to judge"):
        evaluation.compare(memory_store([[(0, "E")]], 1, without_image=(0,)), missing="drop")


def test_fusion_with_a_given_weight_and_of_any_two_methods() -> None:
    store = random_store(7)
    methods = ["clip_text", "clip_image", "fusion:0.25", "clip_image+clip_text:0.75", "fusion:0", "fusion:1"]
    scores = evaluation.compare(store, methods, resamples=100).scores
    mixed = 0.25 * scores["clip_text"] + 0.75 * scores["clip_image"]
    np.testing.assert_allclose(scores["fusion:0.25"], mixed)
    np.testing.assert_allclose(scores["clip_image+clip_text:0.75"], mixed)
    np.testing.assert_array_equal(scores["fusion:0"], scores["clip_image"])
    np.testing.assert_array_equal(scores["fusion:1"], scores["clip_text"])


def test_fusion_weight_of_a_fold_does_not_depend_on_that_fold() -> None:
    store = random_store(8, queries=30)
    before = evaluation.compare(store, ["fusion"], folds=3, resamples=100)
    fold = np.random.default_rng(0).permutation(30) % 3
    labels = np.array(store.judgments["esci_label"].to_pylist())
    inside = fold[store.judgment_query_index] == 0
    labels[inside] = np.random.default_rng(1).permutation(labels[inside])
    column = store.judgments.schema.get_field_index("esci_label")
    store.judgments = store.judgments.set_column(column, "esci_label", [labels.tolist()])
    after = evaluation.compare(store, ["fusion"], folds=3, resamples=100)
    assert before.sweeps["fusion"].chosen[0] == after.sweeps["fusion"].chosen[0]
    assert not np.array_equal(before.per_query["fusion"], after.per_query["fusion"])


def test_fusion_chooses_the_better_side() -> None:
    store = random_store(9, queries=40)
    best = judged_lists(store).gain
    good = np.empty(len(best))
    good[judged_lists(store).row] = best
    noise = np.random.default_rng(0).normal(size=len(best))
    result = evaluation.compare(store, ["noise+good"], scores={"good": good, "noise": noise}, resamples=100)
    assert result.rows[0]["ndcg"] == result.rows[1]["ndcg"] > result.rows[2]["ndcg"]
    assert set(result.sweeps["noise+good"].chosen) == {0.0}
    assert result.sweeps["noise+good"].ndcg.argmax() == 0


def test_scores_on_another_scale_are_standardised_before_they_are_added() -> None:
    store = random_store(9, queries=40)
    mine = 1e6 * np.random.default_rng(0).normal(size=store.judgments.num_rows) + 1e7
    mine[3] = -np.inf
    result = evaluation.compare(store, ["clip_text+mine:0.5", "clip_text"], scores={"mine": mine}, resamples=100)
    text, other = result.scores["clip_text"], result.scores["mine"]
    there = np.isfinite(other)
    expected = 0.5 * (text - text.mean()) / text.std() + 0.5 * (other - other[there].mean()) / other[there].std()
    np.testing.assert_allclose(result.scores["clip_text+mine:0.5"], expected)
    assert "mine: 1 judged pairs are not retrieved" in str(result)


def test_the_chosen_weights_are_in_the_rows() -> None:
    result = evaluation.compare(random_store(9), ["clip_text", "fusion"], folds=3, resamples=100)
    assert result.rows[1]["weights"] == list(result.sweeps["fusion"].chosen)
    assert len(result.rows[1]["weights"]) == 3
    line = list(csv.DictReader(io.StringIO(result.to_csv())))[1]
    assert [float(weight) for weight in line["weights"].split()] == result.rows[1]["weights"]


def test_very_large_scores_can_be_added() -> None:
    store = memory_store([[(0, "E"), (1, "S"), (2, "I")], [(0, "E")]], 3)
    mine = [1e308, -1e308, 0, 5]
    result = evaluation.compare(store, ["mine+clip_text:1"], scores={"mine": mine}, resamples=100)
    assert result.rankings["mine+clip_text:1"].product.tolist() == [0, 2, 1, 0]


def test_reciprocal_rank_fusion_by_hand() -> None:
    store = memory_store([[(0, "E"), (1, "S"), (2, "I")]], 3)
    result = evaluation.compare(store, ["rrf", "clip_text", "clip_image"], resamples=100)
    ranks = [(-result.scores[m]).argsort().argsort() + 1 for m in ("clip_text", "clip_image")]
    np.testing.assert_allclose(result.scores["rrf"], 1 / (60 + ranks[0]) + 1 / (60 + ranks[1]))


def test_random_draw_follows_the_seed() -> None:
    store = random_store(10)
    first, again, other = (
        evaluation.compare(store, ["random_draw"], seed=seed, resamples=100).scores["random_draw"] for seed in (1, 1, 2)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


# -- statistics -----------------------------------------------------------------------------------------------------


def test_bootstrap_interval_is_that_of_the_mean() -> None:
    values = np.random.default_rng(0).normal(5, 2, size=(400, 1))
    low, high = interval(bootstrap_means(values, 4_000, 0))
    error = values.std() / math.sqrt(400)
    assert low[0] == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
    assert high[0] == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)


def test_randomisation_test_equals_all_sign_flips_on_a_small_sample() -> None:
    differences = np.array([0.3, -0.1, 0.4, 0.25, -0.05, 0.2, 0.15])
    sums = [abs(np.dot(signs, differences)) for signs in itertools.product((-1, 1), repeat=7)]
    exact = np.mean(np.array(sums) >= abs(differences.sum()) - 1e-12)
    p = paired_p_values(np.stack([differences, np.zeros(7)], axis=1), 40_000, 0)
    assert p[0] == pytest.approx(exact, abs=0.005)
    assert p[1] == 1


def test_rows_hold_intervals_differences_and_the_baseline() -> None:
    result = evaluation.compare(random_store(11, queries=40), baseline="clip_text")
    for row in result.rows:
        assert row["ndcg_low"] <= row["ndcg"] <= row["ndcg_high"]
        assert row["baseline"] == "clip_text"
        assert ("delta" in row) == (row["method"] != "clip_text")
    text, image = result.rows[1], result.rows[2]
    assert image["delta"] == pytest.approx(image["ndcg"] - text["ndcg"])
    assert image["delta_low"] <= image["delta"] <= image["delta_high"]
    assert 0 < image["p_value"] <= 1


# -- slices, published numbers --------------------------------------------------------------------------------------


def test_slices_split_the_queries() -> None:
    store = random_store(12, queries=30, without_image=tuple(range(12)))
    result = evaluation.compare(store, ["clip_text"], slices=("source", "images", "length"), resamples=100)
    for by in ("source", "images", "length"):
        rows = [row for row in result.slices if row["slice_by"] == by]
        assert sum(row["queries"] for row in rows) == 30
        mean = sum(row["queries"] * row["ndcg"] for row in rows) / 30
        assert mean == pytest.approx(result.rows[0]["ndcg"])
    assert {row["slice"] for row in result.slices if row["slice_by"] == "source"} == {"other", "negations"}
    assert "source: negations (15 queries)" in str(result)
    parsed = json.loads(result.to_json())
    assert parsed[0]["slices"]["source"]["other"]["queries"] == 15


def test_published_numbers_only_beside_the_official_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    store = random_store(13)
    assert all("published" not in row for row in evaluation.compare(store).rows)
    counts = {"products": 40, "queries": 12, "judgments": store.judgments.num_rows}
    monkeypatch.setattr(schemas, "PUBLISHED_COUNTS", counts)
    result = evaluation.compare(store)
    assert [row["published"] for row in result.rows] == [0.7483, 0.8107, 0.8225, None, None]
    assert "published" in str(result)
    assert "0.8225" in str(result)
    assert "published" not in evaluation.compare(store, gains="esci-repo-swapped").rows[0]
    monkeypatch.setattr(schemas, "PUBLISHED_COUNTS", {**counts, "judgments": 1})
    assert "published" not in evaluation.compare(store).rows[0]


# -- output ---------------------------------------------------------------------------------------------------------


def test_a_real_store_from_a_release(tmp_path: Path) -> None:
    release = write_release(tmp_path / "release", queries=20, products=80, per_query=12)
    store = EmbeddingStore.open(release, cache_dir=tmp_path / "cache")
    result = evaluation.compare(store)
    rows = json.loads(result.to_json())
    assert [row["method"] for row in rows] == ["random", "clip_text", "clip_image", "fusion", "rrf"]
    assert list(rows[0])[:4] == ["method", "ndcg", "ndcg_low", "ndcg_high"]
    assert rows[2]["ndcg"] > rows[0]["ndcg"]  # the vectors of the release carry signal
    lines = list(csv.DictReader(io.StringIO(result.to_csv())))
    assert [float(line["ndcg"]) for line in lines] == [row["ndcg"] for row in rows]
    values = list(csv.DictReader(io.StringIO(result.per_query_csv())))
    assert len(values) == 5 * 20
    assert np.mean([float(v["ndcg"]) for v in values if v["method"] == "rrf"]) == pytest.approx(rows[4]["ndcg"])
    again = evaluation.compare(store)
    assert again.to_json() == result.to_json()


def test_half_precision_and_classic_files(tmp_path: Path) -> None:
    release = write_release(tmp_path / "release", queries=20, products=80, per_query=12, classic=True)
    full, half = (
        EmbeddingStore.open(release, cache_dir=tmp_path / "cache", dtype=dtype) for dtype in ("float32", "float16")
    )
    for judge in (evaluation.compare, evaluation.retrieve):
        one, two = (judge(store, ["clip_image"], resamples=100).rows[0]["ndcg"] for store in (full, half))
        assert one == pytest.approx(two, abs=0.02)
    shutil.rmtree(release / "data")
    with pytest.raises(EvaluationError, match=r"nothing to judge.*classic files alone"):
        evaluation.compare(EmbeddingStore.open(release, cache_dir=tmp_path / "cache"))


# -- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": ["nope"]}, "unknown method"),
        ({"methods": ["clip_text+nope"]}, "unknown method"),
        ({"methods": ["clip_text:3"]}, "unknown method"),
        ({"methods": ["fusion:1.5"]}, "bad fusion weight"),
        ({"methods": ["fusion:nan"]}, "bad fusion weight"),
        ({"methods": ["fusion:x"]}, "bad fusion weight"),
        ({"methods": []}, "no method"),
        ({"methods": ["random"], "baseline": "clip_text"}, "baseline is not among"),
        ({"gains": "other"}, "unknown gains"),
        ({"missing": "guess"}, "unknown missing"),
        ({"relevant": "I"}, "unknown relevant"),
        ({"slices": ["brand"]}, r"unknown slice; expected source or images or length, got 'brand'$"),
        ({"slices": ["sorce"]}, r"unknown slice.*Did you mean source\?"),
        ({"metrics_engine": "java"}, "unknown metrics engine"),
        ({"resamples": 1}, "resamples: number too small.*>= 100"),
        ({"folds": 1}, "folds: number too small"),
        ({"seed": -1}, "seed: number too small"),
        ({"metrics_engine": "ir-measures", "metrics": "mrr@5"}, "no mrr@K"),
        ({"metrics": "map"}, "unknown metric"),
    ],
)
def test_wrong_usage(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as failure:
        evaluation.compare(random_store(16), **options)
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize("options", [{"slices": ["sorce"]}, {"metrics": "map"}])
def test_options_are_checked_before_anything_is_ranked(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = random_store(16)
    monkeypatch.setattr(store, "text_features", None)
    for judge_with in (evaluation.compare, evaluation.retrieve):
        with pytest.raises(UsageError):
            judge_with(store, ["clip_text"], **options)


def test_scores_may_not_have_the_name_of_a_method() -> None:
    store = memory_store([[(0, "E"), (1, "S")]], 2)
    for name in ("random", "clip_text", "sbert:mine"):
        with pytest.raises(UsageError, match="name of a method"):
            evaluation.compare(store, scores={name: [1, 2]})


def test_scores_that_cannot_be_ranked_name_the_pair() -> None:
    store = memory_store([[(0, "E"), (1, "S")]], 2)
    with pytest.raises(EvaluationError, match="mine, query_id 10, product_id P001: scores must be finite"):
        evaluation.compare(store, scores={"mine": [1, math.nan]})
    with pytest.raises(EvaluationError, match=r"do not fit.*\(2,\).*\(3,\)"):
        evaluation.compare(store, scores={"mine": [1, 2, 3]})
    store.text_features[1, 0] = np.nan
    with pytest.raises(EvaluationError, match="finite"):
        evaluation.compare(store, ["clip_text"])


def test_a_pair_judged_twice_is_refused() -> None:
    store = memory_store([[(0, "E"), (1, "S"), (0, "I")]], 2)
    with pytest.raises(EvaluationError, match=r"query_id 10: a product is judged twice.*P000"):
        evaluation.compare(store)


def test_choosing_a_weight_needs_other_queries() -> None:
    store = memory_store([[(0, "E"), (1, "S")]], 2)
    with pytest.raises(EvaluationError, match="on other queries"):
        evaluation.compare(store, ["fusion"])
    assert evaluation.compare(store, ["fusion:0.5"], resamples=100).rows[0]["queries"] == 1


def test_slice_bounds_cover_every_list() -> None:
    store = memory_store([[(p, "E") for p in range(n)] for n in (1, 10, 11, 20, 21, 40, 41)], 41)
    slices = slice_queries(store, judged_lists(store), "length")
    assert {name: int(chosen.sum()) for name, chosen in slices.items()} == {
        "1-10": 2,
        "11-20": 2,
        "21-40": 2,
        "over 40": 1,
    }


def test_slices_by_share_of_images() -> None:
    lists = [[(p, "E") for p in range(10 - n, 20 - n)] for n in (0, 1, 5, 6)]  # products 10 and more have an image
    store = memory_store(lists, 20, without_image=tuple(range(10)))
    slices = slice_queries(store, judged_lists(store), "images")
    assert {name: np.flatnonzero(chosen).tolist() for name, chosen in slices.items()} == {
        "under 50 %": [3],
        "50 % to under 90 %": [2],
        "90 % to under 100 %": [1],
        "100 %": [0],
    }


def test_empty_and_overlapping_slices_are_named_in_notes() -> None:
    store = memory_store([[(0, "E"), (1, "S")], [(0, "I")]], 2)
    result = evaluation.compare(store, ["clip_text"], slices=("length", "images", "length"), resamples=100)
    assert result.notes[-3:] == [
        "slices by length: no query in 11-20, 21-40, over 40",
        "slices by images: no query in under 50 %, 50 % to under 90 %, 90 % to under 100 %",
        "slices by length and by images overlap: those of each kind hold every query once",
    ]
    assert [(row["slice_by"], row["slice"]) for row in result.slices] == [("length", "1-10"), ("images", "100 %")]
    one = evaluation.compare(store, ["clip_text"], slices=("source",), resamples=100)
    assert not [note for note in one.notes if "slices" in note]


def test_some_queries_alone(tmp_path: Path) -> None:
    """The values of each query are those among all; the order of ids does not matter."""
    release = write_release(tmp_path / "release")
    store = EmbeddingStore.open(release, cache_dir=tmp_path / "cache", progress=False)
    some = store.query_ids[[7, 2, 5]].tolist()
    for call in (evaluation.compare, evaluation.retrieve):
        whole = call(store, ["clip_image"], resamples=100)
        part = call(store, ["clip_image"], resamples=100, queries=iter(some))
        assert part.query_ids.tolist() == sorted(some)
        rows = np.flatnonzero(np.isin(whole.query_ids, some))
        np.testing.assert_array_equal(part.per_query["clip_image"], whole.per_query["clip_image"][rows])
        assert part.rows[0]["queries"] == 3
    scores = np.random.default_rng(0).random(len(store.judgments))
    given = [evaluation.compare(store, scores={"mine": scores}, resamples=100, queries=q) for q in (None, some)]
    np.testing.assert_array_equal(given[1].per_query["mine"], given[0].per_query["mine"][rows])
    with pytest.raises(EvaluationError, match=r"nothing to judge.*none of the queries asked for"):
        evaluation.compare(store, queries=[-1])
    for wrong in ([some[0] + 0.7], [str(some[0])], str(some[0]), [float("nan")], [None], [2**70], some[0], []):
        with pytest.raises(UsageError, match="queries"):
            evaluation.compare(store, queries=wrong)  # type: ignore[arg-type]


def test_one_name_is_no_list_of_methods() -> None:
    for call in (evaluation.compare, evaluation.retrieve):
        with pytest.raises(UsageError, match=r"not a list of methods.*got 'clip_text'"):
            call(random_store(3), "clip_text")


def test_scores_that_are_not_numbers() -> None:
    store = random_store(3)
    with pytest.raises(EvaluationError, match="mine: scores are not numbers"):
        evaluation.compare(store, scores={"mine": ["x"] * store.judgments.num_rows})
