"""examples/train_fusion.py: scores of methods as features, models that learn from them, and what is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import train_fusion
from evaluation_fixtures import memory_store
from tiny_release import write_release

from sqid_lib import EmbeddingStore, evaluation

NETWORKS = ["linear", "logistic", "mlp"]


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_release(tmp_path_factory.mktemp("release") / "sqid", products=60, queries=21, per_query=12)


@pytest.fixture(scope="module")
def runs(release: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two run files: gain times 100 plus noise, and the noise alone."""
    rng, table = np.random.default_rng(0), pq.read_table(release / "data" / "judgments")
    noise = rng.normal(size=len(table)) * 100
    methods = []
    for name, scores in (("mixed", np.array(table["gain"]) * 100 + noise), ("noise", noise)):
        path = tmp_path_factory.mktemp("runs") / f"{name}.run"
        ids = zip(table["query_id"].to_pylist(), table["product_id"].to_pylist(), scores, strict=True)
        path.write_text("".join(f"{query} Q0 {product} 1 {score} {name}\n" for query, product, score in ids))
        methods.append(f"run:{path}")
    return methods


def run(release: Path, out: Path, methods: list[str], *options: str) -> evaluation.Comparison:
    cache = str(release.parent / "cache")
    named = ["--methods", *methods] if methods else []
    return train_fusion.main([str(release), str(out), *named, "--cache-dir", cache, *options])


def ndcg(result: evaluation.Comparison) -> dict[str, float]:
    return {row["method"]: row["ndcg"] for row in result.rows}


def test_models_learn_what_no_method_has_alone(
    release: Path, runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run(release, tmp_path / "out", [*runs, "clip_image"], "--models", *NETWORKS, "--folds", "3")
    found = ndcg(result)
    assert list(found) == [f"only {m}" for m in (*runs, "clip_image")] + ["equal weights", *NETWORKS]
    assert min(found[name] for name in NETWORKS) > max(found[f"only {runs[0]}"], found["equal weights"]) + 0.03
    assert found["linear"] > 0.98
    assert {row["baseline"] for row in result.rows} == {f"only {runs[0]}"}
    printed = capsys.readouterr().out
    assert "split 3: 14 queries to train on, 7 held out; no query text is in both; " in printed
    store = EmbeddingStore.open(release, cache_dir=release.parent / "cache", progress=False)
    back = evaluation.compare(store, [f"run:{tmp_path / 'out' / 'linear.run'}"], resamples=100)
    assert back.rows[0]["ndcg"] == pytest.approx(found["linear"], abs=1e-9)


def test_a_saved_model_gives_its_scores_again(release: Path, runs: list[str], tmp_path: Path) -> None:
    first = run(release, tmp_path / "a", runs, "--models", *NETWORKS, "--test", "0.3", "--steps", "20")
    assert len(first.query_ids) == 6
    saved = json.loads((tmp_path / "a" / "fusion.json").read_text())
    assert (saved["methods"], saved["models"], saved["normalise"]) == (runs, NETWORKS, "both")
    again = run(release, tmp_path / "b", [], "--apply", str(tmp_path / "a"))
    assert len(again.query_ids) == 21
    kept = np.isin(again.query_ids[again.lists.query], first.query_ids)
    for name in NETWORKS:
        np.testing.assert_allclose(again.scores[name][kept], first.scores[name], rtol=1e-6)
    same = run(release, tmp_path / "c", runs, "--models", *NETWORKS, "--test", "0.3", "--steps", "20")
    assert ndcg(same) == ndcg(first)


def test_lambdamart_learns_and_is_saved(release: Path, runs: list[str], tmp_path: Path) -> None:
    pytest.importorskip("lightgbm")
    result = run(release, tmp_path / "a", runs, "--models", "lambdamart", "--folds", "2")
    found = ndcg(result)
    assert found["lambdamart"] > found[f"only {runs[0]}"] + 0.03
    result = run(release, tmp_path / "a2", runs, "--models", "lambdamart", "--test", "0.3")
    assert (tmp_path / "a" / "lambdamart.txt").read_text().startswith("tree\n")
    again = run(release, tmp_path / "b", [], "--apply", str(tmp_path / "a2"))
    kept = np.isin(again.query_ids[again.lists.query], result.query_ids)
    np.testing.assert_allclose(again.scores["lambdamart"][kept], result.scores["lambdamart"])


def test_features_are_the_scores_of_the_evaluation() -> None:
    store: Any = memory_store([[(0, "E"), (1, "S"), (2, "I")], [(1, "E"), (3, "C")]], 4, without_image=(3,))
    compared = evaluation.compare(store, ["clip_text"], scores={"own": [1.0, 2.0, -np.inf, 3.0, 3.0]}, resamples=100)
    pairs = train_fusion.read_pairs(compared, ["clip_text", "own"], "both")
    columns = dict(zip(pairs.names, pairs.features.T, strict=True))
    np.testing.assert_array_equal(columns["clip_text"], compared.scores["clip_text"])
    assert columns["own"].tolist() == [1, 2, 1, 3, 3]
    assert columns["own retrieved"].tolist() == [1, 1, 0, 1, 1]
    root = 2**0.5
    np.testing.assert_allclose(columns["own in its list"], [-1 / root, root, -1 / root, 0, 0])
    assert columns["has image"].tolist() == [1, 1, 1, 1, 0]
    assert train_fusion.read_pairs(compared, ["own"], "query").names[0] == "own in its list"
    assert train_fusion.read_pairs(compared, ["own"], "none").names == ["own", "own retrieved", "has image"]


def test_a_weight_chosen_on_held_out_queries_is_refused(
    release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for methods in (["fusion", "clip_text"], ["random", "clip_text"]):
        with pytest.raises(SystemExit):
            run(release, tmp_path / "out", methods)
        assert "needs its weight, such as rrf or fusion:0.5; random has no scores" in capsys.readouterr().err
