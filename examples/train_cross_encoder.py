"""Fine-tune rankers of (query, title) on judged lists: python examples/train_cross_encoder.py WORK/sqid OUT

The cross-encoder is ESCI_baseline of the ESCI paper (arXiv 2206.06588; github.com/amazon-science/esci-data, ranking/):
MiniLM, mean squared error on the gains, learning rate 7e-6, batches of 32, one epoch. Its other losses: --loss bce
(binary cross-entropy, the gain as the probability) and --loss lambda (LambdaLoss, X. Wang et al. 2018: the order of a
query's whole list; a batch is one list). With --kind bi-encoder a sentence-transformers model is trained on the same
pairs with CoSENT loss, which wants the cosines of a batch in the order of their gains.

Queries are split into folds with a seed, and each fold is scored by a model that was trained on the other folds alone.
OUT gets fold-1, fold-2, … (the models; --methods cross-encoder:OUT/fold-1 or sbert:OUT/fold-1), held-out.run (the
scores of all held-out queries, to compare with other methods: sqid evaluate WORK/sqid --run OUT/held-out.run --methods
random), and of a bi-encoder fold-N/features (its vectors, for --features OUT/fold-1/features). The products of a query
may occur in other folds; how many do is printed. Needs the extra "sbert" and accelerate, as the trainers of
sentence-transformers do.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sqid_lib import EmbeddingStore, evaluation, fold_queries, schemas
from sqid_lib.evaluation.exports import write_run

CROSS_ENCODER, BI_ENCODER = "cross-encoder", "bi-encoder"
BASES = {CROSS_ENCODER: "cross-encoder/ms-marco-MiniLM-L-12-v2", BI_ENCODER: "sentence-transformers/all-MiniLM-L12-v2"}
LOSSES = {"mse": "MSELoss", "bce": "BinaryCrossEntropyLoss", "lambda": "LambdaLoss"}  # of the cross-encoder
RATES = {CROSS_ENCODER: 7e-6, BI_ENCODER: 2e-5}


def read_pairs(store: EmbeddingStore, queries: Sequence[int]) -> dict[str, list[Any]]:
    """The judged pairs of some queries: query_id, product (a row of the store), query, title and gain."""
    pairs: dict[str, list[Any]] = {name: [] for name in ("query_id", "product", "query", "title", "gain")}
    for batch in store.pairs(queries=queries, texts=["query", "product_title"], format="numpy"):
        pairs["query_id"] += batch.query_id.tolist()
        pairs["product"] += batch.product_index.tolist()
        pairs["query"] += batch.texts["query"]
        pairs["title"] += batch.texts["product_title"]
        pairs["gain"] += batch.gain.tolist()
    return pairs


def lists(pairs: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """A row for each query: its text, and the lists of its titles and gains."""
    numbers = np.unique(pairs["query_id"], return_inverse=True)[1]
    rows = [np.flatnonzero(numbers == number).tolist() for number in range(numbers.max() + 1)]
    found = {name: [[pairs[name][row] for row in chosen] for chosen in rows] for name in ("title", "gain")}
    return {"query": [pairs["query"][chosen[0]] for chosen in rows], **found}


def train(kind: str, pairs: dict[str, list[Any]], out: Path, options: argparse.Namespace) -> Any:
    """The model of `options.base` after training on the pairs; saved in `out`."""
    import torch
    from datasets import Dataset

    listwise = kind == CROSS_ENCODER and options.loss == "lambda"
    columns = lists(pairs) if listwise else {name: pairs[name] for name in ("query", "title", "gain")}
    data = Dataset.from_dict(columns).rename_column("gain", "label")
    settings: dict[str, Any] = {
        "output_dir": str(out / "checkpoints"),
        "num_train_epochs": options.epochs,
        "per_device_train_batch_size": 1 if listwise else options.batch_size,
        "learning_rate": options.lr or RATES[kind],
        "warmup_steps": options.warmup,
        "seed": options.seed,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": not sys.stderr.isatty(),
        "logging_steps": 50,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "use_cpu": options.bf16 and not torch.cuda.is_available(),
        "bf16": options.bf16 or (torch.cuda.is_available() and torch.cuda.is_bf16_supported()),
    }
    base = options.base or BASES[kind]
    torch.manual_seed(options.seed)  # of the head, where the base has none
    loading: dict[str, Any] = {"trust_remote_code": False, "model_kwargs": {"use_safetensors": True}}
    if kind == CROSS_ENCODER:
        from sentence_transformers import CrossEncoder
        from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments, losses

        # no sigmoid behind the score, neither in training nor later
        model = CrossEncoder(
            base, num_labels=1, max_length=options.max_length or 512, activation_fn=torch.nn.Identity(), **loading
        )
        loss: Any = getattr(losses, LOSSES[options.loss])(model)
        trainer: Any = CrossEncoderTrainer(model, CrossEncoderTrainingArguments(**settings), data, loss=loss)
    else:
        from sentence_transformers import (
            SentenceTransformer,
            SentenceTransformerTrainer,
            SentenceTransformerTrainingArguments,
        )
        from sentence_transformers.sentence_transformer.losses import CoSENTLoss

        model = SentenceTransformer(base, **loading)
        model.max_seq_length = options.max_length or model.max_seq_length
        loss = CoSENTLoss(model)
        trainer = SentenceTransformerTrainer(model, SentenceTransformerTrainingArguments(**settings), data, loss=loss)
    trainer.train()
    model.save_pretrained(str(out))
    return type(model)(str(out), **loading)  # the trainer leaves the one in memory in bfloat16 where it trained so


def score(kind: str, model: Any, pairs: dict[str, list[Any]]) -> np.ndarray[Any, Any]:
    """float [n]: the model's score of each pair."""
    if kind == CROSS_ENCODER:
        found: np.ndarray[Any, Any] = model.predict(list(zip(pairs["query"], pairs["title"], strict=True)))
        return found
    queries, titles = (
        model.encode(pairs[name], normalize_embeddings=True, show_progress_bar=False) for name in ("query", "title")
    )
    cosines: np.ndarray[Any, Any] = (queries * titles).sum(axis=1)
    return cosines


def write_features(model: Any, store: EmbeddingStore, folder: Path) -> None:
    """The vectors of all queries and titles, for `--features`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, table, key, column in (
        (schemas.QUERY_FEATURES, store.queries, ["query_id"], "query"),
        (schemas.PRODUCT_FEATURES, store.products, ["product_id", "product_locale"], "product_title"),
    ):
        vectors = model.encode([text or "" for text in table[column].to_pylist()], show_progress_bar=False)
        lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
        pq.write_table(table.select(key).append_column("vector", lists), folder / name)


def main(arguments: Sequence[str] | None = None) -> float:
    """Train and score every fold; returns the mean nDCG of all held-out queries."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("release", help="a release directory or ORG/name on the Hub")
    parser.add_argument("out", type=Path, help="directory for models, vectors and scores")
    parser.add_argument("--kind", choices=list(BASES), default=CROSS_ENCODER)
    parser.add_argument("--base", help=f"model to start from: a Hub id or a directory; default {BASES}")
    parser.add_argument("--loss", choices=LOSSES, default="mse", help="of a cross-encoder; a bi-encoder has CoSENT")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0, help="of folds, shuffling and new weights")
    parser.add_argument("--epochs", type=float, default=1)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--max-length", type=int, help="tokens of a pair or text; default 512, or the base's own")
    parser.add_argument("--lr", type=float, help=f"learning rate; default {RATES}")
    parser.add_argument(
        "--warmup", type=float, default=0, help="steps, or a share of them below 1; the paper's code has 5,000 steps"
    )
    parser.add_argument("--bf16", action="store_true", help="bfloat16 on a CPU too; a GPU that has it always uses it")
    parser.add_argument("--cache-dir", help="directory of the converted vectors")
    options = parser.parse_args(arguments)

    store = EmbeddingStore.open(options.release, cache_dir=options.cache_dir)
    scores = np.empty(len(store.judgments))
    for number, fold in enumerate(fold_queries(store, options.folds, seed=options.seed), 1):
        known, unseen = read_pairs(store, fold.train), read_pairs(store, fold.test)
        print(f"fold {number}: {len(known['gain']):,} pairs of {fold}", flush=True)
        out = options.out / f"fold-{number}"
        model = train(options.kind, known, out, options)
        # pairs come in the order of the judgments
        scores[np.isin(store.query_ids[store.judgment_query_index], fold.test)] = score(options.kind, model, unseen)
        if options.kind == BI_ENCODER:
            write_features(model, store, out / "features")
    name = f"trained {options.kind}"
    result = evaluation.compare(store, ["random"], scores={name: scores}, seed=options.seed)
    run = write_run(options.out / "held-out.run", store, result.rankings[name], name)
    print(result)
    print(f"compare with other methods: sqid evaluate {options.release} --methods random --run {run}")
    return float(result.rows[-1]["ndcg"])


if __name__ == "__main__":
    main()
