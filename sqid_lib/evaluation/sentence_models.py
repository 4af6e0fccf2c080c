"""Methods sbert and cross-encoder: sentence-transformers models on query texts and product titles."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from sqid_lib.errors import EvaluationError, first_line, missing_extra
from sqid_lib.evaluation.arrays import Floats, Ints, Matrix
from sqid_lib.evaluation.cosine import cosine, unit
from sqid_lib.evaluation.judged import Store
from sqid_lib.evaluation.scorer import Scorer
from sqid_lib.evaluation.search import Search

SBERT = "sentence-transformers/all-MiniLM-L12-v2"
CROSS_ENCODER = "cross-encoder/ms-marco-MiniLM-L-12-v2"


def sbert_scores(scorer: Scorer, model: str) -> Floats:
    """Cosine of query text and title, float64 [J]; errors as in `embed`."""
    rows, product = np.unique(scorer.lists.product, return_inverse=True)
    queries, titles = embed(scorer.store, scorer.lists.query_index, rows, model or SBERT)
    return cosine(queries, titles, scorer.lists.query, product)


def sbert_searches(scorer: Scorer, model: str) -> list[Search]:
    """One search by title; errors as in `embed`."""
    rows, everything = scorer.lists.query_index, np.arange(scorer.store.products.num_rows)
    queries, titles = embed(scorer.store, rows, everything, model or SBERT)
    return [Search(rows, unit(queries), lambda products: unit(titles[products]))]


def embed(store: Store, query_rows: Ints, product_rows: Ints, model: str) -> tuple[Matrix, Matrix]:
    """Embeddings of query texts [len(query_rows), D] and titles [len(product_rows), D].

    Raises:
        MissingExtraError: sentence-transformers is not installed.
        EvaluationError: the model cannot be loaded.
    """
    encoder = _load("SentenceTransformer", model)
    texts = [_query(store, int(row)) for row in query_rows], [_title(store, int(row)) for row in product_rows]
    queries, titles = (
        encoder.encode(part, show_progress_bar=sys.stderr.isatty(), convert_to_numpy=True) for part in texts
    )
    return queries, titles


def cross_encoder_scores(scorer: Scorer, model: str) -> Floats:
    """A cross-encoder's scores of (query text, title), float64 [J]; errors as in `embed`."""
    model, store, lists = model or CROSS_ENCODER, scorer.store, scorer.lists
    encoder = _load("CrossEncoder", model)
    texts = [_query(store, int(row)) for row in lists.query_index]
    pairs = [(texts[q], _title(store, int(p))) for q, p in zip(lists.query, lists.product, strict=True)]
    scores = np.asarray(encoder.predict(pairs, show_progress_bar=sys.stderr.isatty()), np.float64)
    if scores.shape != (len(pairs),):
        raise EvaluationError(
            "a cross-encoder must give one score for each pair",
            where=model,
            got=f"shape {scores.shape}",
            fix="Use a model with num_labels = 1.",
        )
    return scores


def _load(kind: str, model: str) -> Any:
    try:
        import sentence_transformers
    except ImportError:
        raise missing_extra("sentence-transformers", "sbert", f"to rank with {model}") from None
    try:
        return getattr(sentence_transformers, kind)(
            model, trust_remote_code=False, model_kwargs={"use_safetensors": True}
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise EvaluationError("the model cannot be loaded", where=model, got=first_line(error)) from error


def _title(store: Store, row: int) -> str:
    return store.products["product_title"][row].as_py() or ""


def _query(store: Store, row: int) -> str:
    return store.queries["query"][row].as_py() or ""
