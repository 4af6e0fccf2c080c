"""Measures of a ranking, for each query: a fast path equal to trec_eval, and trec_eval itself through ir-measures.

Gain is linear and the discount 1/log2(rank + 1) (Järvelin and Kekäläinen 2002, as in trec_eval). A query whose gains
are all zero counts with 0. The binary measures count the products of `JudgedLists.relevant`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sqid_lib.errors import EvaluationError, UsageError, did_you_mean, missing_extra
from sqid_lib.evaluation.arrays import Bools, Floats, Ints
from sqid_lib.evaluation.judged import JudgedLists

# kind → name in JSON, name in tables, name in ir-measures
_NAMES = {
    "ndcg": ("ndcg", "nDCG", "nDCG"),
    "p": ("precision", "P", "P"),
    "mrr": ("mrr", "MRR", "RR"),
    "recall": ("recall", "R", "R"),
    "ap": ("ap", "AP", "AP"),
}
METRICS = "ndcg, ndcg@K, p@K, mrr, mrr@K, recall@K, ap or ap@K"


@dataclass(frozen=True)
class Metric:
    """One measure: `kind` is ndcg, p, mrr, recall or ap (average precision, of which the mean is MAP).

    `cutoff` None means the whole list.
    """

    kind: str
    cutoff: int | None = None

    @property
    def key(self) -> str:
        """The name in JSON, CSV and rows: ndcg, ndcg_at_10, precision_at_1, mrr, recall_at_10, ap."""
        name = _NAMES[self.kind][0]
        return name if self.cutoff is None else f"{name}_at_{self.cutoff}"

    @property
    def title(self) -> str:
        """The name in tables and plots."""
        name = _NAMES[self.kind][1]
        return name if self.cutoff is None else f"{name}@{self.cutoff}"

    def depth(self, lengths: Ints) -> Ints:
        """int64 [Q]: how many products of each list, best first, are measured."""
        return lengths if self.cutoff is None else np.minimum(lengths, self.cutoff)


NDCG = Metric("ndcg")
DEFAULT_METRICS = "ndcg ndcg@10 p@1 mrr recall@10"


def parse_metrics(text: str | Sequence[str]) -> list[Metric]:
    """Read "ndcg ndcg@10 p@1 mrr recall@10 ap" (spaces or commas); raises UsageError."""
    words = re.split(r"[,\s]+", (text if isinstance(text, str) else " ".join(text)).strip())
    metrics = []
    for word in words:
        kind, at, cutoff = word.lower().partition("@")
        whole = not at and kind not in ("p", "recall")
        if kind not in _NAMES or not (whole or re.fullmatch(r"[1-9][0-9]{0,5}", cutoff)):
            fix = did_you_mean(kind, _NAMES) if kind not in _NAMES else None
            raise UsageError("unknown metric", expected=METRICS, got=repr(word), fix=fix)
        metrics.append(Metric(kind, int(cutoff) if at else None))
    return list(dict.fromkeys(metrics))


def per_query(lists: JudgedLists, scores: Floats, metrics: Sequence[Metric]) -> Floats:
    """Measure a ranking of every judged list.

    Args:
        scores: float64 [J], any scale; -inf means not retrieved (no gain, as in trec_eval).

    Returns:
        float64 [Q, len(metrics)].
    """
    rank = np.empty(len(scores))
    order = lists.order(scores)
    rank[order] = lists.position
    rank[np.isneginf(scores)] = np.inf
    return measure(lists, rank, metrics)


def measure(lists: JudgedLists, rank: Floats, metrics: Sequence[Metric]) -> Floats:
    """Measure the ranks of the judged products.

    Args:
        rank: float64 [J], how many products, judged or not, rank higher; inf where not retrieved.

    Returns:
        float64 [Q, len(metrics)].
    """
    return np.stack([_measure(lists, metric, rank) for metric in metrics], axis=1)


def _measure(lists: JudgedLists, metric: Metric, rank: Floats) -> Floats:
    depth = np.inf if metric.cutoff is None else float(metric.cutoff)
    inside = rank < depth
    if metric.kind == "ndcg":
        ideal = np.where(lists.position < depth, lists.ideal_gain / np.log2(lists.position + 2.0), 0.0)
        return _ratio(lists.sums(np.where(inside, lists.gain / np.log2(rank + 2.0), 0.0)), lists.sums(ideal))
    hit = lists.relevant & inside
    if metric.kind == "mrr":
        return np.maximum.reduceat(np.where(hit, 1.0 / (rank + 1.0), 0.0), lists.starts)
    if metric.kind == "p":
        return lists.sums(hit.astype(np.float64)) / depth
    found = _precisions(lists, rank, hit) if metric.kind == "ap" else hit.astype(np.float64)
    return _ratio(lists.sums(found), lists.sums(lists.relevant.astype(np.float64)))


def _precisions(lists: JudgedLists, rank: Floats, hit: Bools) -> Floats:
    """float64 [J]: for the products of `hit`, the share of them among all products down to their rank; else 0."""
    hits = np.flatnonzero(hit)
    hits = hits[np.lexsort((rank[hits], lists.query[hits]))]
    query = lists.query[hits]
    precisions = np.zeros(len(rank))
    precisions[hits] = (1.0 + np.arange(len(hits)) - np.searchsorted(query, query)) / (rank[hits] + 1.0)
    return precisions


def _ratio(above: Floats, below: Floats) -> Floats:
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)


def expected_random(lists: JudgedLists, metrics: Sequence[Metric]) -> Floats:
    """The expected value of each measure under a uniformly random ranking, in closed form: float64 [Q, M].

    At each rank every product has probability 1/n, so E[DCG] is the mean gain times the sum of the discounts; the
    first of R relevant products among n has rank i with probability R/(n-i+1) · Π_{j<i} (n-R-j+1)/(n-j+1). Two given
    ranks both hold relevant products with probability R(R-1)/n(n-1), so with H the sum of 1/i over the ranks i down to
    depth d, E[AP] = H/n + (d-H)(R-1)/n(n-1).
    """
    n = lists.lengths.astype(np.float64)
    found = lists.sums(lists.relevant.astype(np.float64))
    columns = []
    for metric in metrics:
        depth = metric.depth(lists.lengths)
        inside = lists.position < depth[lists.query]
        if metric.kind == "ndcg":
            discount = inside / np.log2(lists.position + 2.0)
            ideal = lists.sums(lists.ideal_gain * discount)
            columns.append(_ratio(lists.sums(lists.gain) / n * lists.sums(discount), ideal))
        elif metric.kind == "p":
            columns.append(found / n * depth / float(metric.cutoff or 1))
        elif metric.kind == "recall":
            columns.append(np.where(found > 0, depth / n, 0.0))
        elif metric.kind == "ap":
            harmonic = lists.sums(inside / (lists.position + 1.0))
            two = _ratio((depth - harmonic) * (found - 1), n * (n - 1))
            columns.append(np.where(found > 0, harmonic / n + two, 0.0))
        else:
            lists_of_one = zip(lists.lengths, found, depth, strict=True)
            columns.append(np.array([_expected_reciprocal_rank(int(a), int(b), int(c)) for a, b, c in lists_of_one]))
    return np.stack(columns, axis=1)


def _expected_reciprocal_rank(n: int, relevant: int, depth: int) -> float:
    before = np.arange(depth)  # products that rank higher
    none_above = np.cumprod(np.concatenate([[1.0], ((n - relevant - before) / (n - before))[:-1].clip(0)]))
    return float(np.sum(none_above * relevant / (n - before) / (before + 1)))


def ranked_scores(lists: JudgedLists, scores: Floats) -> Floats:
    """float64 [J]: whole numbers from n down to 1, in the order of `scores`; -inf stays.

    trec_eval keeps scores as 32-bit floats and breaks ties by descending document id: distinct whole scores avoid both.
    """
    out = np.empty_like(scores)
    out[lists.order(scores)] = (lists.lengths[lists.query] - lists.position).astype(np.float64)
    return np.where(np.isneginf(scores), -np.inf, out)


def whole_gains(lists: JudgedLists) -> Ints:
    """int64 [J]: gains as whole numbers for qrels, for trec_eval reads no others; nDCG does not depend on the unit.

    Raises:
        EvaluationError: as `Labels.qrels_unit`.
    """
    return np.rint(lists.gain * lists.labels.qrels_unit).astype(np.int64)


def per_query_trec_eval(lists: JudgedLists, scores: Floats, metrics: Sequence[Metric]) -> Floats:
    """As `per_query`, by trec_eval through ir-measures: the reference, and slower.

    Raises:
        MissingExtraError: ir-measures (extra "eval") is not installed.
        EvaluationError: gains that cannot be scaled to whole numbers, or relevant labels not above the others.
        UsageError: mrr@K, which trec_eval does not have.
    """
    try:
        import ir_measures
    except ImportError:
        raise missing_extra("ir-measures", "eval", "to measure with trec_eval") from None
    gains = whole_gains(lists)
    threshold = int(gains[lists.relevant].min(initial=gains.max() + 1))
    if threshold < 1 or (gains[~lists.relevant] >= threshold).any():
        raise EvaluationError(
            "trec_eval finds relevant products by their gain alone",
            expected="relevant labels that have more gain than all others, and more than 0",
            got=" and ".join(lists.labels.relevant),
            fix="Choose other relevant labels, or the fast metrics engine.",
        )
    whole = 1 + max(int(lists.lengths.max()), *(metric.cutoff or 0 for metric in metrics))
    measures = {metric: ir_measures.parse_measure(_ir_name(metric, threshold, whole)) for metric in metrics}
    column = {str(measure): m for m, measure in enumerate(measures.values())}
    qrels: dict[str, dict[str, int]] = {}
    run: dict[str, dict[str, float]] = {str(q): {} for q in range(len(lists.starts))}
    for q, p, gain, score in zip(lists.query, lists.product, gains, ranked_scores(lists, scores), strict=True):
        qrels.setdefault(str(q), {})[str(p)] = int(gain)
        if not np.isneginf(score):
            run[str(q)][str(p)] = float(score)
    values = np.zeros((len(lists.starts), len(metrics)))
    for found in ir_measures.pytrec_eval.iter_calc(list(measures.values()), qrels, run):
        values[int(found.query_id), column[str(found.measure)]] = found.value
    return values


def _ir_name(metric: Metric, threshold: int, whole: int) -> str:
    if metric.kind == "ndcg":
        # trec_eval's nDCG without a cutoff takes time that grows with the square of the largest gain
        return f"nDCG@{metric.cutoff or whole}"
    name = _NAMES[metric.kind][2]
    if metric.kind == "mrr" and metric.cutoff is not None:
        raise UsageError("trec_eval has no mrr@K", expected="mrr", got=f"mrr@{metric.cutoff}")
    return f"{name}(rel={threshold})" + ("" if metric.cutoff is None else f"@{metric.cutoff}")
