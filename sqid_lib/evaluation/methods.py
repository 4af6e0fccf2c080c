"""What can rank the judged lists: names such as "clip_image", "fusion:0.1" or "sbert:MODEL" become scores."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sqid_lib.errors import EvaluationError, UsageError, missing_extra
from sqid_lib.evaluation import fusion
from sqid_lib.evaluation.features import read_features
from sqid_lib.evaluation.judged import Bools, Floats, Ints, JudgedLists, Store, Vectors
from sqid_lib.evaluation.runs import judged_scores

DEFAULT_METHODS = ("random", "clip_text", "clip_image", "fusion", "rrf")
KNOWN = (
    "random, random_draw, clip_text, clip_image, fusion[:WEIGHT], rrf, sbert[:MODEL], cross-encoder[:MODEL], run:FILE, "
    "features:FILE, A+B[:WEIGHT]"
)
_NAMES = {re.split(r"[\[:]", form)[0] for form in KNOWN.split(", ")}
_COSINES = {"clip_text", "clip_image", "sbert", "features"}
SBERT = "sentence-transformers/all-MiniLM-L12-v2"
CROSS_ENCODER = "cross-encoder/ms-marco-MiniLM-L-12-v2"
_BLOCK = 8_192


@dataclass
class Scorer:
    """Scores of the judged lists by method name, each computed once.

    Attributes:
        known: scores by name, as they are computed.
        given: scores by name that come from elsewhere (run files, features, the caller), float64 [J] as in `lists`.
        sweeps: filled as fusions choose their weights.
        notes: lines to read with the results, filled likewise.
    """

    store: Store
    lists: JudgedLists
    missing: str = "zero"
    folds: int = 5
    seed: int = 0
    given: dict[str, Floats] = field(default_factory=dict)
    sweeps: dict[str, fusion.Sweep] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    known: dict[str, Floats] = field(default_factory=dict)

    def scores(self, method: str) -> Floats:
        """float64 [J]; raises UsageError for an unknown method, EvaluationError for scores that are not numbers."""
        if method not in self.known:
            scores = self.given[method] if method in self.given else self._compute(method)
            bad = np.flatnonzero(np.isnan(scores) | np.isposinf(scores))
            if len(bad):
                raise EvaluationError(
                    "scores must be finite",
                    where=f"{method}, {self._pair(int(bad[0]))}",
                    expected="a number",
                    got=scores[bad[0]],
                )
            self.known[method] = scores
        return self.known[method]

    def _pair(self, judgment: int) -> str:
        query = self.store.queries["query_id"][int(self.lists.query_index[self.lists.query[judgment]])]
        return f"query_id {query}, product_id {self.store.products['product_id'][int(self.lists.product[judgment])]}"

    def _compute(self, method: str) -> Floats:
        head, _, argument = method.partition(":")
        first, _, second = method.partition("+")
        if second and self._is_known(first):
            unweighted, _, weight = second.rpartition(":")
            if _is_number(weight) and self._is_known(unweighted):
                return self._fuse(method, first, unweighted, weight)
            if self._is_known(second):
                return self._fuse(method, first, second, "")
        if head == "fusion":
            return self._fuse(method, "clip_text", "clip_image", argument)
        if head == "run" and argument:
            return judged_scores(Path(argument), self.store, self.lists)
        if head == "features" and argument:
            features = read_features(argument, self.store)
            absent = int((~features.present[np.unique(self.lists.product)]).sum())
            if absent:
                self.notes.append(f"{method}: {absent:,} judged products have no vector and score 0")
            return judged_cosine(self.lists, features.queries, features.products)
        if head == "sbert":
            rows, product = np.unique(self.lists.product, return_inverse=True)
            queries, titles = sbert_vectors(self.store, self.lists.query_index, rows, argument or SBERT)
            return cosine(queries, titles, self.lists.query, product)
        if head == "cross-encoder":
            return cross_encoder_scores(self.store, self.lists, argument or CROSS_ENCODER)
        plain: dict[str, Callable[[], Floats]] = {
            "random_draw": lambda: np.random.default_rng(self.seed).random(len(self.lists.row)),
            "clip_text": self._clip_text,
            "clip_image": self._clip_image,
            "rrf": lambda: fusion.reciprocal_ranks(self.lists, self.scores("clip_text"), self.scores("clip_image")),
        }
        if method not in plain:
            raise UsageError("unknown method", expected=KNOWN, got=repr(method))
        return plain[method]()

    def _is_known(self, method: str) -> bool:
        return method in self.given or is_method(method)

    def _fuse(self, method: str, first: str, second: str, weight: str) -> Floats:
        a, b = self.scores(first), self.scores(second)
        if not {first.partition(":")[0], second.partition(":")[0]} <= _COSINES:
            a, b = fusion.standardised(a), fusion.standardised(b)
        if weight:
            return fusion.weighted(a, b, parse_weight(weight, method))
        scores, self.sweeps[method] = fusion.cross_validated(self.lists, a, b, (first, second), self.folds, self.seed)
        return scores

    def _clip_text(self) -> Floats:
        return judged_cosine(self.lists, self.store.query_features, self.store.text_features)

    def _clip_image(self) -> Floats:
        scores = judged_cosine(self.lists, self.store.query_features, self.store.image_features)
        has_image = np.asarray(self.store.has_image)[self.lists.product]
        if self.missing != "text" or has_image.all() or not has_image.any():
            return np.where(has_image, scores, 0.0)
        return np.where(has_image, scores, rescaled(self.scores("clip_text"), scores, has_image))


def is_method(name: str) -> bool:
    """Whether the name, or what stands before its colon, is one of a method."""
    return name.partition(":")[0] in _NAMES


def parse_weight(text: str, method: str) -> float:
    """A weight between 0 and 1; raises UsageError."""
    if not _is_number(text) or not 0 <= float(text) <= 1:
        raise UsageError("bad fusion weight", where=method, expected="a number from 0 to 1", got=repr(text))
    return float(text)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def judged_cosine(lists: JudgedLists, queries: Vectors, products: Vectors) -> Floats:
    """Cosine of every judged pair, in float64; a zero vector has cosine 0.

    Args:
        queries: float32 [queries of the store, D]. products: float32 [products of the store, D].

    Returns:
        float64 [J].
    """
    return cosine(queries, products, lists.query_index[lists.query], lists.product)


def cosine(queries: Vectors, products: Vectors, query_rows: Ints, product_rows: Ints) -> Floats:
    """Cosine of the named rows, pair by pair, float64 [N]; a zero vector has cosine 0."""
    out = np.empty(len(query_rows))
    for start in range(0, len(out), _BLOCK):
        block = slice(start, start + _BLOCK)
        q = np.asarray(queries[query_rows[block]], np.float64)
        p = np.asarray(products[product_rows[block]], np.float64)
        norms = np.sqrt(np.einsum("ij,ij->i", q, q) * np.einsum("ij,ij->i", p, p))
        dots = np.einsum("ij,ij->i", q, p)
        out[block] = np.divide(dots, norms, out=np.zeros_like(dots), where=norms != 0)
    return out


def rescaled(scores: Floats, like: Floats, where: Bools) -> Floats:
    """`scores` shifted and stretched to the mean and spread that `like` has on the pairs `where`.

    Text–text cosines are far above text–image ones: unscaled, products without a picture would all come first.
    """
    mean, spread = scores[where].mean(), scores[where].std()
    unit = (scores - mean) / spread if spread > 0 else np.zeros_like(scores)
    return np.asarray(like[where].mean() + unit * like[where].std())


def sbert_vectors(store: Store, query_rows: Ints, product_rows: Ints, model: str) -> tuple[Vectors, Vectors]:
    """A sentence-transformers model's embeddings of queries [len(query_rows), D] and titles [len(product_rows), D].

    Raises:
        MissingExtraError: sentence-transformers is not installed.
        EvaluationError: the model cannot be loaded.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise missing_extra("sentence-transformers", "sbert", f"to rank with {model}") from None
    encoder = _load(SentenceTransformer, model)
    texts = [_query(store, int(row)) for row in query_rows], [_title(store, int(row)) for row in product_rows]
    queries, titles = (
        encoder.encode(part, show_progress_bar=sys.stderr.isatty(), convert_to_numpy=True) for part in texts
    )
    return queries, titles


def cross_encoder_scores(store: Store, lists: JudgedLists, model: str) -> Floats:
    """A sentence-transformers cross-encoder's scores of (query, title), float64 [J]; raises as `sbert_vectors`."""
    try:
        from sentence_transformers import CrossEncoder
    except ImportError:
        raise missing_extra("sentence-transformers", "sbert", f"to rank with {model}") from None
    encoder = _load(CrossEncoder, model)
    texts = [_query(store, int(row)) for row in lists.query_index]
    pairs = [(texts[q], _title(store, int(p))) for q, p in zip(lists.query, lists.product, strict=True)]
    scores = np.asarray(encoder.predict(pairs, show_progress_bar=sys.stderr.isatty()), np.float64)
    if scores.shape != (len(pairs),):
        raise EvaluationError(
            "a cross-encoder must give one score a pair",
            where=model,
            got=f"shape {scores.shape}",
            fix="Use a model with num_labels = 1.",
        )
    return scores


def _load(kind: type, model: str) -> Any:
    try:
        return kind(model, trust_remote_code=False, model_kwargs={"use_safetensors": True})
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise EvaluationError("the model cannot be loaded", where=model, got=str(error).partition("\n")[0]) from error


def _title(store: Store, row: int) -> str:
    return store.products["product_title"][row].as_py() or ""


def _query(store: Store, row: int) -> str:
    return store.queries["query"][row].as_py() or ""
