"""examples/train_cross_encoder.py with tiny models: folds by query, and what the evaluation takes of its results."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from tiny_release import write_release

pytest.importorskip("sentence_transformers")
pytest.importorskip("accelerate")

from sqid_lib import EmbeddingStore, evaluation, fold_queries

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of the trainers' own imports
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
SCRIPT = Path(__file__).parent.parent / "examples" / "train_cross_encoder.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_cross_encoder", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_release(tmp_path_factory.mktemp("release") / "sqid", products=40, queries=9, per_query=6)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT of one layer."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "title", "of", "query", "number", *"0123456789b"]
    (folder / "vocab.txt").write_text("\n".join([*words, *(f"##{n}" for n in range(10))]))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=len(words) + 10, max_position_embeddings=32, **size)).save_pretrained(folder)
    return folder


def test_a_row_of_lists_for_each_query(script: ModuleType) -> None:
    pairs = {"query_id": [7, 3, 7], "query": ["b", "a", "b"], "title": ["x", "y", None], "gain": [1.0, 0.1, 0.0]}
    assert script.lists(pairs) == {"query": ["a", "b"], "title": [["y"], ["x", None]], "gain": [[0.1], [1.0, 0.0]]}


@pytest.mark.parametrize(
    ("kind", "loss"),
    [
        ("cross-encoder", "lambda"),
        pytest.param("cross-encoder", "mse", marks=pytest.mark.slow),
        pytest.param("cross-encoder", "bce", marks=pytest.mark.slow),
        ("bi-encoder", "mse"),
    ],
)
def test_what_is_written_can_be_evaluated(
    script: ModuleType,
    release: Path,
    base: Path,
    tmp_path: Path,
    kind: str,
    loss: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, cache = tmp_path / "out", tmp_path / "cache"
    words = f"--kind {kind} --loss {loss} --folds 2 --max-length 32 --lr 1e-2 --batch-size 16 --bf16".split()
    found = script.main([str(release), str(out), *words, "--base", str(base), "--cache-dir", str(cache)])
    assert "fold 2: 30 pairs of 5 queries to train on, 4 held out; no query text is in both" in capsys.readouterr().out
    store = EmbeddingStore.open(release, cache_dir=cache, progress=False)
    model = f"{'sbert' if kind == 'bi-encoder' else kind}:{out / 'fold-1'}"
    methods = [f"run:{out / 'held-out.run'}", model]
    if kind == "bi-encoder":
        methods.append(f"features:{out / 'fold-1' / 'features'}")
    result = evaluation.compare(store, methods, resamples=100)
    assert result.rows[0]["ndcg"] == pytest.approx(found, abs=1e-9)
    first = fold_queries(store, 2)[0].test
    held_out = np.isin(store.query_ids[result.lists.query_index[result.lists.query]], first)
    np.testing.assert_allclose(  # the scores of the first fold's queries are those of the first fold's model
        result.scores[methods[0]][held_out], result.scores[model][held_out], rtol=1e-4, atol=1e-5
    )
    if kind == "bi-encoder":
        np.testing.assert_allclose(result.scores[methods[2]], result.scores[model], atol=1e-5)
