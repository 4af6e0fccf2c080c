"""The ranking table: methods side by side, with intervals, paired tests and slices."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sqid_lib import schemas
from sqid_lib.errors import EvaluationError, UsageError
from sqid_lib.evaluation import metrics as measures
from sqid_lib.evaluation import report, statistics
from sqid_lib.evaluation.fusion import Sweep
from sqid_lib.evaluation.judged import Bools, Floats, Ints, JudgedLists, Store, judged_lists
from sqid_lib.evaluation.methods import DEFAULT_METHODS, Scorer

# nDCG of Table 2 of arXiv 2405.15190; its ESCI_baseline, a fine-tuned cross-encoder, has 0.8562
PUBLISHED_NDCG = {"random": 0.7483, "clip_text": 0.8107, "clip_image": 0.8225, "sbert": 0.8292}
SLICES = ("source", "images", "length")


@dataclass(frozen=True)
class Comparison:
    """The result: one row per method, in the order asked for.

    Attributes:
        rows: dicts with method, every metric with its _low and _high (95 % bootstrap interval over queries), queries,
            gains, baseline; delta, delta_low, delta_high and p_value (of nDCG) but for the baseline; published where
            the data is the official.
        metrics: what was measured, nDCG first.
        query_ids: int64 [Q].
        per_query: method → float64 [Q, metrics].
        scores: method → float64 [J] in the order of `lists`; "random" has none.
        lists: the judged lists.
        slices: rows of the same kind with slice_by and slice, for every slice asked for.
        sweeps: fusion method → what each weight gives.
        notes: lines to read with the table.
    """

    rows: list[dict[str, Any]]
    metrics: list[measures.Metric]
    query_ids: Ints
    per_query: dict[str, Floats]
    scores: dict[str, Floats]
    lists: JudgedLists
    slices: list[dict[str, Any]]
    sweeps: dict[str, Sweep]
    notes: list[str]

    def __str__(self) -> str:
        return report.table(self)

    def to_json(self) -> str:
        """A list of objects, one per method in the order of the table; slices under "slices"."""
        return report.to_json(self)

    def to_csv(self) -> str:
        """A line per method, then one per slice and method where slices were asked for."""
        return report.to_csv(self)

    def per_query_csv(self) -> str:
        """A line per query and method with every metric."""
        return report.per_query_csv(self)

    def plot(self, path: str | Path) -> Path:
        """Draw the table, and the sweep of each fusion weight, as PNG, SVG or PDF (matplotlib, extra "eval")."""
        return report.plot(self, Path(path))


def compare(
    store: Store,
    methods: Sequence[str] | None = None,
    *,
    scores: Mapping[str, npt.ArrayLike] | None = None,
    gains: str = "esci",
    missing: str = "zero",
    relevant: str = "E",
    metrics: str | Sequence[str] = measures.DEFAULT_METRICS,
    baseline: str | None = None,
    slices: Sequence[str] = (),
    folds: int = 5,
    resamples: int = 2_000,
    seed: int = 0,
    engine: str = "fast",
) -> Comparison:
    """Rank every query's judged products with every method and measure the rankings.

    Args:
        store: an EmbeddingStore.
        methods: see `sqid_lib.evaluation`; None means random, clip_text, clip_image, fusion and rrf.
        scores: rankings from elsewhere, name → [J] scores in the order of `store.judgments`; ranked after `methods`.
        gains: "esci", or "esci-repo-swapped" (S and C exchanged, as in the ESCI repository's script).
        missing: a product without image scores "zero", its rescaled "text" score, or "drop"s out of the lists.
        relevant: labels that count as relevant for the binary measures: "E", "ES" or "ESC".
        metrics: "ndcg ndcg@10 p@1 mrr recall@10" and the like; full-list nDCG always comes first.
        baseline: the method the others are compared with; None means the first.
        slices: any of "source", "images" (share of the list with an image) and "length" (of the list).
        folds: of queries, for choosing fusion weights.
        resamples: of the bootstrap; the randomisation test uses five times as many.
        seed: of the random draw, the folds, the bootstrap and the test.
        engine: "fast", or "ir-measures" for trec_eval itself.

    Raises:
        UsageError: an unknown method or option.
        EvaluationError: data or scores that cannot be judged.
        MissingExtraError: a method or the engine needs a package that is not installed.
    """
    wanted = list(dict.fromkeys(measures.parse_metrics("ndcg") + measures.parse_metrics(metrics)))
    lists = judged_lists(store, gains, missing, relevant)
    given = {name: _given_scores(name, values, lists, store) for name, values in (scores or {}).items()}
    names = list(dict.fromkeys([*(DEFAULT_METHODS if methods is None and not given else methods or ()), *given]))
    _check_options(names, baseline, slices, engine, resamples)
    scorer = Scorer(store, lists, missing, folds, seed, given)
    judge = measures.per_query if engine == "fast" else measures.per_query_trec_eval
    per_query = {name: _judge(scorer, name, wanted, judge) for name in names}
    summary = _Summary(wanted, per_query, gains, baseline or names[0], resamples, seed)
    rows = summary.rows()
    official = _is_official(store, lists, gains)
    for row in rows if official else ():
        row["published"] = PUBLISHED_NDCG.get(row["method"])
    return Comparison(
        rows=rows,
        metrics=wanted,
        query_ids=store.queries["query_id"].to_numpy()[lists.query_index],
        per_query=per_query,
        scores={name: scorer.scores(name) for name in names if name != "random"},
        lists=lists,
        slices=[
            {"slice_by": by, "slice": name, **row}
            for by in slices
            for name, chosen in slice_queries(store, lists, by).items()
            for row in summary.rows(chosen)
        ],
        sweeps=scorer.sweeps,
        notes=_notes(store, lists, gains, missing, relevant, scorer.sweeps, official),
    )


def _check_options(names: list[str], baseline: str | None, slices: Sequence[str], engine: str, resamples: int) -> None:
    if not names:
        raise UsageError("no method to compare", expected="one at least")
    if baseline is not None and baseline not in names:
        raise UsageError("the baseline is not compared", expected=" or ".join(names), got=repr(baseline))
    unknown = [by for by in slices if by not in SLICES]
    if unknown:
        raise UsageError("unknown slice", expected=" or ".join(SLICES), got=repr(unknown[0]))
    if engine not in ("fast", "ir-measures"):
        raise UsageError("unknown engine", expected="fast or ir-measures", got=repr(engine))
    if resamples < 100:
        raise UsageError("too few resamples for an interval", expected=">= 100", got=resamples)


def _given_scores(name: str, values: npt.ArrayLike, lists: JudgedLists, store: Store) -> Floats:
    scores = np.asarray(values, np.float64)
    if scores.shape != (store.judgments.num_rows,):
        raise EvaluationError(
            "scores do not fit the judgments", where=name, expected=f"shape ({store.judgments.num_rows},)",
            got=f"shape {scores.shape}",
        )  # fmt: skip
    return scores[lists.row]


_Judge = Callable[[JudgedLists, Floats, Sequence[measures.Metric]], Floats]


def _judge(scorer: Scorer, method: str, metrics: list[measures.Metric], judge: _Judge) -> Floats:
    if method == "random":
        return measures.expected_random(scorer.lists, metrics)
    return judge(scorer.lists, scorer.scores(method), metrics)


@dataclass(frozen=True)
class _Summary:
    metrics: list[measures.Metric]
    per_query: dict[str, Floats]
    gains: str
    baseline: str
    resamples: int
    seed: int

    def rows(self, chosen: Bools | None = None) -> list[dict[str, Any]]:
        """A row per method over the chosen queries (None: all)."""
        keep = slice(None) if chosen is None else chosen
        values = np.stack([v[keep] for v in self.per_query.values()], axis=1)  # [Q, methods, metrics]
        queries, methods, _ = values.shape
        base = values[:, list(self.per_query).index(self.baseline), 0]
        differences = values[:, :, 0] - base[:, None]
        means = statistics.bootstrap_means(
            np.concatenate([values.reshape(queries, -1), differences], axis=1), self.resamples, self.seed
        )
        low, high = (bound.tolist() for bound in statistics.interval(means))
        p_values = statistics.paired_p_values(differences, 5 * self.resamples, self.seed).tolist()
        width = len(self.metrics)
        rows = []
        for m, method in enumerate(self.per_query):
            row: dict[str, Any] = {"method": method}
            for k, metric in enumerate(self.metrics):
                row[metric.key] = float(values[:, m, k].mean())
                row[f"{metric.key}_low"], row[f"{metric.key}_high"] = low[m * width + k], high[m * width + k]
            row |= {"queries": queries, "gains": self.gains, "baseline": self.baseline}
            if method != self.baseline:
                delta = methods * width + m
                row |= {"delta": float(differences[:, m].mean()), "delta_low": low[delta], "delta_high": high[delta]}
                row["p_value"] = p_values[m]
            rows.append(row)
        return rows


def slice_queries(store: Store, lists: JudgedLists, by: str) -> dict[str, Bools]:
    """Which judged queries, bool [Q], are in each slice by "source", "images" or "length"; none is empty."""
    if by == "source":
        sources = np.array([s or "unknown" for s in store.queries["source"].to_pylist()])[lists.query_index]
        return {str(name): sources == name for name in np.unique(sources)}
    if by == "images":
        share = lists.sums(np.asarray(store.has_image)[lists.product].astype(np.float64)) / lists.lengths
        bins = {"under half": share < 0.5, "half to 90 %": (share >= 0.5) & (share < 0.9)}
        bins |= {"90 % to all but one": (share >= 0.9) & (share < 1), "all": share == 1}
    else:
        n = lists.lengths
        bins = {"1–10": n <= 10, "11–20": (n > 10) & (n <= 20), "21–40": (n > 20) & (n <= 40), "over 40": n > 40}
    return {name: chosen for name, chosen in bins.items() if chosen.any()}


def _is_official(store: Store, lists: JudgedLists, gains: str) -> bool:
    counts = {"products": store.products.num_rows, "queries": store.queries.num_rows, "judgments": len(lists.row)}
    return gains == "esci" and all(schemas.PUBLISHED_COUNTS[name] == count for name, count in counts.items())


def _notes(
    store: Store, lists: JudgedLists, gains: str, missing: str, relevant: str, sweeps: dict[str, Sweep], official: bool
) -> list[str]:
    without = int((~np.asarray(store.has_image)[lists.product]).sum())
    notes = [
        f"{len(lists.starts):,} queries, {len(lists.row):,} judgments; binary measures count {' and '.join(relevant)}; "
        f"{without:,} judgments without image (--missing {missing})"
    ]
    if gains != "esci":
        notes.append(f"gains {gains}: S counts 0.01 and C 0.1, the wrong way round, as in the ESCI repository's script")
    for method, sweep in sweeps.items():
        chosen = " ".join(f"{weight:.2f}" for weight in sweep.chosen)
        notes.append(f"{method}: weight of {sweep.first} chosen on the other folds: {chosen}")
    if official:
        notes.append("published: Table 2 of arXiv 2405.15190 (its fine-tuned cross-encoder: 0.8562)")
    return notes
