"""Rows of the table from per-query values: means, intervals, differences from a baseline, slices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sqid_lib.errors import UsageError, did_you_mean
from sqid_lib.evaluation import statistics
from sqid_lib.evaluation.arrays import Bools, Floats
from sqid_lib.evaluation.judged import JudgedLists, Store
from sqid_lib.evaluation.metrics import Metric

SLICES = ("source", "images", "length")


@dataclass(frozen=True)
class Summary:
    """Settings and values of the rows.

    Attributes:
        metrics: the first one is compared with `baseline`.
        per_query: method → float64 [Q, metrics].
        resamples, seed: of the bootstrap; the randomisation test has five times as many sign flips.
    """

    metrics: list[Metric]
    per_query: dict[str, Floats]
    baseline: str
    resamples: int
    seed: int

    def rows(self, chosen: Bools | None = None) -> list[dict[str, Any]]:
        """A row for each method over the chosen queries, bool [Q] (None: all)."""
        keep = slice(None) if chosen is None else chosen
        values = np.stack([v[keep] for v in self.per_query.values()], axis=1)  # [Q, methods, metrics]
        queries, methods, width = values.shape
        differences = values[:, :, 0] - values[:, [list(self.per_query).index(self.baseline)], 0]
        means = statistics.bootstrap_means(
            np.concatenate([values.reshape(queries, -1), differences], axis=1), self.resamples, self.seed
        )
        low, high = (bound.tolist() for bound in statistics.interval(means))
        p_values = statistics.paired_p_values(differences, 5 * self.resamples, self.seed).tolist()
        rows = []
        for m, method in enumerate(self.per_query):
            row: dict[str, Any] = {"method": method}
            for k, metric in enumerate(self.metrics):
                row[metric.key] = float(values[:, m, k].mean())
                row[f"{metric.key}_low"], row[f"{metric.key}_high"] = low[m * width + k], high[m * width + k]
            row |= {"queries": queries, "baseline": self.baseline}
            if method != self.baseline:
                delta = methods * width + m
                row |= {"delta": float(differences[:, m].mean()), "delta_low": low[delta], "delta_high": high[delta]}
                row["p_value"] = p_values[m]
            rows.append(row)
        return rows

    def slices(self, store: Store, lists: JudgedLists, kinds: Sequence[str]) -> list[dict[str, Any]]:
        """Rows for every slice of every kind that has a query, with slice_by and slice."""
        return [
            {"slice_by": by, "slice": name, **row}
            for by in kinds
            for name, chosen in slice_queries(store, lists, by).items()
            if chosen.any()
            for row in self.rows(chosen)
        ]


def check_slices(kinds: Sequence[str]) -> list[str]:
    """The kinds, each once; raises UsageError for an unknown one."""
    for by in kinds:
        if by not in SLICES:
            raise UsageError("unknown slice", expected=" or ".join(SLICES), got=repr(by), fix=did_you_mean(by, SLICES))
    return list(dict.fromkeys(kinds))


def slice_notes(store: Store, lists: JudgedLists, kinds: Sequence[str]) -> list[str]:
    """Which slices have no query, and that slices of several kinds overlap."""
    notes = []
    for by in kinds:
        if empty := [name for name, chosen in slice_queries(store, lists, by).items() if not chosen.any()]:
            notes.append(f"slices by {by}: no query in {', '.join(empty)}")
    if len(kinds) > 1:
        notes.append(f"slices by {' and by '.join(kinds)} overlap: those of each kind hold every query once")
    return notes


def slice_queries(store: Store, lists: JudgedLists, by: str) -> dict[str, Bools]:
    """Slice → its queries, bool [Q]; every query is in one slice, and a slice may be empty.

    Args:
        by: one of `SLICES`: "source", "images" (share of the list with an image) or "length" (of the list).
    """
    if by == "source":
        sources = np.array([s or "unknown" for s in store.queries["source"].to_pylist()])[lists.query_index]
        return {str(name): sources == name for name in np.unique(sources)}
    if by == "images":
        share = lists.sums(np.asarray(store.has_image)[lists.product].astype(np.float64)) / lists.lengths
        bins = {"under 50 %": share < 0.5, "50 % to under 90 %": (share >= 0.5) & (share < 0.9)}
        return bins | {"90 % to under 100 %": (share >= 0.9) & (share < 1), "100 %": share == 1}
    n = lists.lengths
    return {"1-10": n <= 10, "11-20": (n > 10) & (n <= 20), "21-40": (n > 20) & (n <= 40), "over 40": n > 40}
