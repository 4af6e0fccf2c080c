"""A comparison as a table, JSON, CSV or picture."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqid_lib.errors import UsageError, missing_extra
from sqid_lib.evaluation import metrics as measures
from sqid_lib.evaluation import runs
from sqid_lib.evaluation.fusion import Sweep
from sqid_lib.evaluation.judged import Floats, Ints, JudgedLists, Store
from sqid_lib.files import replacing

_PLOT_FORMATS = (".png", ".svg", ".pdf")


@dataclass(frozen=True, repr=False)
class Comparison:
    """The result: one row per method, in the order asked for.

    Attributes:
        rows: dicts with method, every metric with its _low and _high (95 % bootstrap interval over queries), queries,
            baseline; delta, delta_low, delta_high and p_value (of nDCG) but for the baseline; gains and missing;
            weights chosen for each fold, for a fusion; published where the data is the official.
        metrics: what was measured, nDCG first.
        query_ids: int64 [Q].
        per_query: method → float64 [Q, metrics].
        scores: method → float64 [J] in the order of `lists`; none for "random" and for retrieval.
        rankings: method → its ranking; none for "random".
        lists: the judged lists.
        slices: rows of the same kind with slice_by and slice, for every slice asked for.
        sweeps: fusion method → what each weight gives on the judged lists.
        notes: lines to read with the table.
    """

    rows: list[dict[str, Any]]
    metrics: list[measures.Metric]
    query_ids: Ints
    per_query: dict[str, Floats]
    scores: dict[str, Floats]
    rankings: dict[str, runs.Ranking]
    store: Store
    lists: JudgedLists
    slices: list[dict[str, Any]]
    sweeps: dict[str, Sweep]
    notes: list[str]

    def __str__(self) -> str:
        return table(self)

    __repr__ = __str__

    def to_json(self) -> str:
        """A list of objects, one per method in the order of the table; slices under "slices"."""
        return to_json(self)

    def to_csv(self) -> str:
        """A line per method, then one per slice and method where slices were asked for."""
        return to_csv(self)

    def per_query_csv(self) -> str:
        """A line per query and method with every metric."""
        return per_query_csv(self)

    def plot(self, path: str | Path) -> Path:
        """Draw the table, and the sweep of each fusion weight, as PNG, SVG or PDF (matplotlib, extra "eval")."""
        return plot(self, Path(path))

    def export(self, directory: str | Path) -> Path:
        """Write qrels.trec, METHOD.run for every ranking, and beir/ (corpus.jsonl, queries.jsonl, qrels/test.tsv)."""
        return runs.export(Path(directory), self.store, self.lists, self.rankings)


def table(comparison: Comparison) -> str:
    """Aligned text: the methods, the slices, the notes."""
    parts = ["\n".join(_aligned(_header(comparison), [_cells(comparison, row) for row in comparison.rows]))]
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in comparison.slices:
        groups.setdefault((row["slice_by"], row["slice"]), []).append(row)
    for (by, name), rows in groups.items():
        title = f"{by}: {name} ({rows[0]['queries']:,} queries)"
        parts.append("\n".join([title, *_aligned(_header(comparison), [_cells(comparison, row) for row in rows])]))
    return "\n\n".join([*parts, "\n".join(comparison.notes)])


def _header(comparison: Comparison) -> list[str]:
    first, *others = [metric.title for metric in comparison.metrics]
    first += "" if comparison.rows[0]["gains"] == "esci" else " (S and C swapped)"
    header = ["method", first, "95 % interval", *others]
    if len(comparison.rows) > 1:
        header += [f"Δ {comparison.rows[0]['baseline']}", "p"]
    return header + (["published"] if any("published" in row for row in comparison.rows) else [])


def _cells(comparison: Comparison, row: Mapping[str, Any]) -> list[str]:
    first, *others = [metric.key for metric in comparison.metrics]
    cells = [row["method"], f"{row[first]:.4f}", f"{row[f'{first}_low']:.4f}–{row[f'{first}_high']:.4f}"]
    cells += [f"{row[key]:.4f}" for key in others]
    if len(comparison.rows) > 1:
        cells += [f"{row['delta']:+.4f}", _p_value(row["p_value"])] if "delta" in row else ["", ""]
    published = row.get("published")
    return cells + ([f"{published:.4f}" if published else ""] if "published" in row else [])


def _p_value(p: float) -> str:
    return f"{p:.4f}" if p >= 0.00005 else "<0.0001"


def _aligned(header: list[str], rows: list[list[str]]) -> list[str]:
    rows = [header, *(row + [""] * (len(header) - len(row)) for row in rows)]
    widths = [max(len(row[c]) for row in rows) for c in range(len(header))]
    return [
        "  ".join(
            c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def to_json(comparison: Comparison) -> str:
    """A list of objects, one per method; with slices, each has its own under "slices", by kind and name."""
    rows = [dict(row) for row in comparison.rows]
    for part in comparison.slices:
        row = next(r for r in rows if r["method"] == part["method"])
        values = {k: v for k, v in part.items() if k not in ("method", "slice_by", "slice")}
        row.setdefault("slices", {}).setdefault(part["slice_by"], {})[part["slice"]] = values
    return json.dumps(rows, indent=2, ensure_ascii=False, allow_nan=False)


def to_csv(comparison: Comparison) -> str:
    """A line per method; with slices, columns slice_by and slice say which queries a line is about."""
    rows = comparison.rows
    if comparison.slices:
        rows = [{"slice_by": "all", "slice": "all", **row} for row in rows] + comparison.slices
    return _csv(list(dict.fromkeys(key for row in rows for key in row)), rows)


def per_query_csv(comparison: Comparison) -> str:
    """A line per query and method: query_id, method and every metric."""
    keys = [metric.key for metric in comparison.metrics]
    rows = [
        {"query_id": int(query_id), "method": method, **dict(zip(keys, map(float, line), strict=True))}
        for method, values in comparison.per_query.items()
        for query_id, line in zip(comparison.query_ids, values, strict=True)
    ]
    return _csv(["query_id", "method", *keys], rows)


def _csv(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: " ".join(map(str, v)) if isinstance(v, list) else v for k, v in row.items()} for row in rows)
    return out.getvalue()


def plot(comparison: Comparison, path: Path) -> Path:
    """Draw the methods with their intervals and, beside them, the sweep of every fusion weight.

    Raises:
        UsageError: the file is to be neither PNG, SVG nor PDF.
        MissingExtraError: matplotlib is not installed.
    """
    if path.suffix.lower() not in _PLOT_FORMATS:
        raise UsageError(
            "unknown picture format", where=str(path), expected=" or ".join(_PLOT_FORMATS), got=path.suffix
        )
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise missing_extra("matplotlib", "eval", "to draw the table") from None
    columns = 2 if comparison.sweeps else 1
    figure = Figure(figsize=(6.4 * columns, max(3.2, 1.4 + 0.4 * len(comparison.rows))), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, columns, squeeze=False)[0]
    _draw_methods(axes[0], comparison)
    if comparison.sweeps:
        _draw_sweeps(axes[1], comparison)
    with replacing(path) as part:
        figure.savefig(part, format=path.suffix[1:].lower(), dpi=150)
    return path


def _draw_methods(axes: Any, comparison: Comparison) -> None:
    rows = comparison.rows[::-1]
    middle = [row["ndcg"] for row in rows]
    spread = [[row["ndcg"] - row["ndcg_low"] for row in rows], [row["ndcg_high"] - row["ndcg"] for row in rows]]
    axes.errorbar(middle, range(len(rows)), xerr=spread, fmt="o", capsize=3, color="#1f5a8c")
    axes.set_yticks(range(len(rows)), [row["method"] for row in rows])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    for place, row in enumerate(rows):
        axes.annotate(f"{row['ndcg']:.4f}", (row["ndcg"], place), (0, 6), textcoords="offset points", ha="center")
    top, swapped = rows[0].get("top"), "" if rows[0]["gains"] == "esci" else " (S and C swapped)"
    over = f"the best {top} of all products" if top else "the judged list"
    axes.set_xlabel(f"nDCG{swapped} over {over}, 95 % bootstrap interval")
    axes.set_title(f"{len(comparison.query_ids):,} queries")
    axes.grid(axis="x", alpha=0.3)


def _draw_sweeps(axes: Any, comparison: Comparison) -> None:
    for number, (method, sweep) in enumerate(comparison.sweeps.items()):
        color = f"C{number}"
        axes.plot(sweep.weights, sweep.ndcg, "-", color=color, marker=".", label=method)
        for weight in sorted(set(sweep.chosen)):
            label = "chosen on the other folds" if number == 0 and weight == min(sweep.chosen) else None
            axes.axvline(weight, color=color, linestyle=":", alpha=0.7, label=label)
        axes.set_xlabel(
            f"weight of {sweep.first} (the rest is {sweep.second})" if number == 0 else "weight of the first"
        )
    axes.set_ylabel("nDCG, all queries")
    axes.set_title("fusion weight")
    axes.grid(alpha=0.3)
    axes.legend()
