"""Fusion of two rankings: a weighted sum with its weight chosen on other queries, and reciprocal ranks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sqid_lib.errors import EvaluationError, UsageError
from sqid_lib.evaluation.arrays import Floats, Ints
from sqid_lib.evaluation.judged import JudgedLists
from sqid_lib.evaluation.metrics import NDCG, per_query

WEIGHTS = np.linspace(0.0, 1.0, 21)
_RRF_K = 60  # Cormack, Clarke and Büttcher 2009


@dataclass(frozen=True)
class Sweep:
    """nDCG for each weight of the first ranking, and the weights that were chosen.

    Attributes:
        first, second: the two methods.
        weights: float64 [W], weight a of `first`; the score is a·first + (1-a)·second.
        ndcg: float64 [W], mean over all queries.
        chosen: the weight used for each fold, chosen on the other folds.
        by_query: float64 [Q], the weight of each query's fold.
    """

    first: str
    second: str
    weights: Floats
    ndcg: Floats
    chosen: tuple[float, ...]
    by_query: Floats


def parse_weight(text: str, method: str) -> float:
    """A weight between 0 and 1; raises UsageError, which names `method`."""
    if not is_number(text) or not 0 <= float(text) <= 1:
        raise UsageError("bad fusion weight", where=method, expected="a number from 0 to 1", got=repr(text))
    return float(text)


def is_number(text: str) -> bool:
    """Whether `float` reads it."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def weighted(first: Floats, second: Floats, weight: Floats | float) -> Floats:
    """a·first + (1-a)·second; -inf for a pair that either ranking did not retrieve."""
    lost = np.isneginf(first) | np.isneginf(second)
    mixed = weight * np.where(lost, 0.0, first) + (1.0 - weight) * np.where(lost, 0.0, second)
    return np.where(lost, -np.inf, mixed)


def standardised(scores: Floats) -> Floats:
    """Scores with mean 0 and standard deviation 1 over the pairs retrieved, so that any two scales can be added."""
    retrieved = ~np.isneginf(scores)
    if not retrieved.any():
        return scores
    scores = scores / max(1.0, float(np.abs(scores[retrieved]).max()))  # squares of very large numbers overflow
    spread = float(scores[retrieved].std())
    return (scores - float(scores[retrieved].mean())) / (spread if spread > 0 else 1.0)


def cross_validated(
    lists: JudgedLists, first: Floats, second: Floats, names: tuple[str, str], folds: int, seed: int
) -> tuple[Floats, Sweep]:
    """Fuse with a weight per fold of queries, the one that is best by nDCG on all the other folds.

    Returns:
        The scores, float64 [J], and the sweep.

    Raises:
        EvaluationError: fewer than two queries.
    """
    queries = len(lists.starts)
    folds = min(folds, queries)
    if folds < 2:
        raise EvaluationError(
            "a fusion weight cannot be chosen on other queries",
            expected="at least 2 queries and 2 folds",
            got=f"{queries} queries, {folds} folds",
            fix="Give the weight: fusion:0.5",
        )
    ndcg = np.stack([per_query(lists, weighted(first, second, float(w)), [NDCG])[:, 0] for w in WEIGHTS])
    fold = np.random.default_rng(seed).permutation(queries) % folds
    best = [int(ndcg[:, fold != f].mean(axis=1).argmax()) for f in range(folds)]
    chosen = WEIGHTS[best]
    sweep = Sweep(*names, WEIGHTS, ndcg.mean(axis=1), tuple(float(w) for w in chosen), chosen[fold])
    return weighted(first, second, sweep.by_query[lists.query]), sweep


def reciprocal_ranks(lists: JudgedLists, *rankings: Floats) -> Floats:
    """Reciprocal rank fusion: the sum of 1/(60 + rank) over the rankings; pairs not retrieved add nothing."""
    total = np.zeros(len(lists.row))
    for scores in rankings:
        order = lists.order(scores)
        total[order] += np.where(np.isneginf(scores[order]), 0.0, reciprocal_rank(lists.position))
    return np.where(total > 0, total, -np.inf)


def reciprocal_rank(rank: Ints) -> Floats:
    """1/(60 + rank) for ranks from 1; `rank` counts from 0."""
    return np.asarray(1.0 / (_RRF_K + 1.0 + rank), np.float64)
