"""sbert and cross-encoder with tiny models made from their configurations."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluation_fixtures import memory_store, random_store

from sqid_lib import evaluation
from sqid_lib.errors import EvaluationError, MissingExtraError

pytest.importorskip("sentence_transformers")

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "title", "query", *map(str, range(100))]


def tiny_bert(directory: Path, labels: int | None = None) -> Path:
    """A BERT of two layers with random weights: an encoder, or with `labels` a classifier of pairs."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertModel, BertTokenizerFast

    directory.mkdir(parents=True)
    (directory / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizerFast(str(directory / "vocab.txt")).save_pretrained(directory)
    torch.manual_seed(0)
    size: dict[str, Any] = {"vocab_size": len(WORDS), "hidden_size": 16, "num_hidden_layers": 2}
    size |= {"num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 32}
    if labels is None:
        BertModel(BertConfig(**size)).save_pretrained(directory)
    else:
        BertForSequenceClassification(BertConfig(**size, num_labels=labels)).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("models") / "encoder")


def test_sbert_scores_are_cosines_of_the_models_own_embeddings(encoder: Path) -> None:
    from sentence_transformers import SentenceTransformer

    store = random_store(1, queries=6, products=30)
    method = f"sbert:{encoder}"
    result = evaluation.compare(store, [method], resamples=100)
    model = SentenceTransformer(str(encoder))
    for score, q, p in zip(result.scores[method], result.lists.query, result.lists.product, strict=True):
        a, b = (model.encode(text) for text in (f"query {10 * (q + 1)}", f"title {p}"))
        assert score == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-5)
    assert len(set(result.scores[method].round(6))) > 10


def test_sbert_can_search_and_be_fused(encoder: Path) -> None:
    store = random_store(2, queries=6, products=30)
    method = f"sbert:{encoder}"
    found = evaluation.retrieve(store, [method], top=30, metrics="ndcg", resamples=100)
    judged = evaluation.compare(store, [method, f"{method}+clip_image:0.25", "clip_image"], resamples=100)
    for score, q, p in zip(judged.scores[method], judged.lists.query, judged.lists.product, strict=True):
        here = (found.rankings[method].query == q) & (found.rankings[method].product == p)
        assert found.rankings[method].score[here] == pytest.approx(score, abs=1e-5)
    mixed = 0.25 * judged.scores[method] + 0.75 * judged.scores["clip_image"]
    np.testing.assert_allclose(judged.scores[f"{method}+clip_image:0.25"], mixed)


def test_cross_encoder_scores_are_the_models_own(tmp_path: Path) -> None:
    from sentence_transformers import CrossEncoder

    directory = tiny_bert(tmp_path / "cross", labels=1)
    store = memory_store([[(0, "E"), (7, "S")], [(3, "I")]], 8)
    store.products = store.products.set_column(2, "product_title", [[None, *(f"title {n}" for n in range(1, 8))]])
    method = f"cross-encoder:{directory}"
    scores = evaluation.compare(store, [method], resamples=100).scores[method]
    expected = CrossEncoder(str(directory)).predict(
        [("query 10", ""), ("query 10", "title 7"), ("query 20", "title 3")]
    )
    np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_a_classifier_of_many_labels_is_refused(tmp_path: Path) -> None:
    method = f"cross-encoder:{tiny_bert(tmp_path / 'cross', labels=3)}"
    with pytest.raises(EvaluationError, match=r"one score for each pair.*num_labels = 1"):
        evaluation.compare(memory_store([[(0, "E"), (1, "S")]], 2), [method])


@pytest.mark.parametrize("method", ["sbert", "cross-encoder"])
def test_a_directory_without_a_model_gives_one_line(tmp_path: Path, method: str) -> None:
    with pytest.raises(EvaluationError, match="model cannot be loaded") as failure:
        evaluation.compare(memory_store([[(0, "E")]], 1), [f"{method}:{tmp_path}"])
    assert "\n" not in str(failure.value)


def test_pickled_weights_are_refused(encoder: Path, tmp_path: Path) -> None:
    import shutil

    import torch
    from safetensors.torch import load_file

    copy = shutil.copytree(encoder, tmp_path / "pickled")
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    with pytest.raises(EvaluationError, match="model cannot be loaded"):
        evaluation.compare(memory_store([[(0, "E")]], 1), [f"sbert:{copy}"])


@pytest.mark.parametrize("method", ["sbert", "cross-encoder"])
def test_without_sentence_transformers(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(MissingExtraError, match=r"sentence-transformers.*sqid\[sbert\]"):
        evaluation.compare(memory_store([[(0, "E")]], 1), [method])


@pytest.mark.parametrize(
    ("module", "use"),
    [
        ("ir_measures", lambda store: evaluation.compare(store, ["clip_text"], metrics_engine="ir-measures")),
        ("faiss", lambda store: evaluation.retrieve(store, ["clip_text"], backend="faiss")),
        ("torch", lambda store: evaluation.retrieve(store, ["clip_text"], backend="torch")),
        ("matplotlib.figure", lambda store: evaluation.compare(store, ["clip_text"]).plot("never.png")),
    ],
)
def test_without_another_extra(monkeypatch: pytest.MonkeyPatch, module: str, use: Any) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match="pip install"):
        use(memory_store([[(0, "E")]], 1))


def test_search_without_torch_uses_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    store = random_store(3)
    with_torch = evaluation.retrieve(store, ["clip_text"], resamples=100)
    monkeypatch.setitem(sys.modules, "torch", None)
    without = evaluation.retrieve(store, ["clip_text"], resamples=100)
    np.testing.assert_array_equal(with_torch.rankings["clip_text"].product, without.rankings["clip_text"].product)


def test_evaluation_opens_with_the_base_packages_alone() -> None:
    import subprocess

    heavy = "torch matplotlib sentence_transformers transformers ir_measures faiss scipy"
    code = f"import sys, sqid_lib.evaluation; print([m for m in {heavy.split()} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
