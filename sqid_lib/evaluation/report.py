"""The result of a comparison, as text, HTML, JSON, CSV and a data frame; `plot` and `exports` write files."""

from __future__ import annotations

import csv
import html
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqid_lib.evaluation import exports, notebook, plot, runs
from sqid_lib.evaluation.arrays import Floats, Ints
from sqid_lib.evaluation.fusion import Sweep
from sqid_lib.evaluation.judged import JudgedLists, Store
from sqid_lib.evaluation.labels import title_suffix
from sqid_lib.evaluation.metrics import Metric

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, repr=False)
class Comparison:
    """The result: one row for each method, in the order asked for.

    Attributes:
        rows: dicts with method, every metric with its _low and _high (95 % bootstrap interval over queries), queries,
            baseline; delta, delta_low, delta_high and p_value (of nDCG) except for the baseline; gains, missing and
            relevant; for a fusion the weights chosen for each fold; published if the data is the official data.
        metrics: what was measured, nDCG first.
        query_ids: int64 [Q].
        per_query: method → float64 [Q, metrics].
        scores: method → float64 [J] in the order of `lists`; none for "random" and for retrieval.
        rankings: method → its ranking; none for "random".
        lists: the judged lists.
        slices: rows of the same kind with slice_by and slice, for every slice asked for.
        sweeps: fusion method → nDCG on the judged lists for each weight.
        notes: lines printed below the table.
    """

    rows: list[dict[str, Any]]
    metrics: list[Metric]
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
        """Aligned text: the methods, the slices, the notes."""
        parts = ["\n".join(_aligned(self._header(), self._cells(self.rows)))]
        for title, rows in self._slice_tables():
            parts.append("\n".join([title, *_aligned(self._header(), self._cells(rows))]))
        return "\n\n".join([*parts, "\n".join(self.notes)])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """The same for notebooks: tables, a list of notes, and images of what the rankings differ in."""
        parts = [notebook.table("", self._header(), self._cells(self.rows))]
        parts += [notebook.table(title, self._header(), self._cells(rows)) for title, rows in self._slice_tables()]
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in self.notes)
        ndcg = {method: values[:, 0] for method, values in self.per_query.items()}
        shown = notebook.examples(self.store, self.lists, self.rankings, ndcg, self.rows[0]["baseline"])
        return "".join([*parts, f"<ul>{notes}</ul>", shown])

    def to_pandas(self) -> pd.DataFrame:
        """A row for each method in the order of the table, with the columns of `to_json`; slices are in `slices`."""
        import pandas as pd

        return pd.DataFrame(self.rows)

    def to_json(self) -> str:
        """A list of objects, one for each method in the order of the table; its slices under "slices"."""
        rows = [dict(row) for row in self.rows]
        for part in self.slices:
            row = next(r for r in rows if r["method"] == part["method"])
            values = {k: v for k, v in part.items() if k not in ("method", "slice_by", "slice")}
            row.setdefault("slices", {}).setdefault(part["slice_by"], {})[part["slice"]] = values
        return json.dumps(rows, indent=2, ensure_ascii=False, allow_nan=False)

    def to_csv(self) -> str:
        """A line for each method, and for each slice and method; columns slice_by and slice only with slices."""
        rows = self.rows
        if self.slices:
            rows = [{"slice_by": "all", "slice": "all", **row} for row in rows] + self.slices
        return _csv(list(dict.fromkeys(key for row in rows for key in row)), rows)

    def per_query_csv(self) -> str:
        """A line for each query and method: query_id, method and every metric."""
        keys = [metric.key for metric in self.metrics]
        rows = [
            {"query_id": int(query_id), "method": method, **dict(zip(keys, map(float, line), strict=True))}
            for method, values in self.per_query.items()
            for query_id, line in zip(self.query_ids, values, strict=True)
        ]
        return _csv(["query_id", "method", *keys], rows)

    def plot(self, path: str | Path) -> Path:
        """Draw the table, and nDCG by fusion weight, as PNG, SVG or PDF.

        Raises:
            UsageError: the path has another suffix.
            MissingExtraError: matplotlib (extra "eval") is not installed.
        """
        return plot.draw(Path(path), self.rows, self.sweeps)

    def export(self, directory: str | Path) -> Path:
        """Write qrels.trec, METHOD.run for every ranking, and beir/ (corpus.jsonl, queries.jsonl, qrels/test.tsv).

        Raises:
            EvaluationError: two methods would have the same file, a product has an empty id, or gains cannot be written
            as whole numbers.
        """
        return exports.export(Path(directory), self.store, self.lists, self.rankings)

    def _header(self) -> list[str]:
        first, *others = [metric.title for metric in self.metrics]
        header = ["method", first + title_suffix(self.rows[0]["gains"]), "95 % interval", *others]
        if len(self.rows) > 1:
            header += [f"vs {self.rows[0]['baseline']}", "p"]
        return header + (["published"] if any("published" in row for row in self.rows) else [])

    def _cells(self, rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
        """A cell for each column of `_header`, for every row."""
        first, *others = [metric.key for metric in self.metrics]
        columns = len(self._header())
        cells = []
        for row in rows:
            line = [row["method"], f"{row[first]:.4f}", f"{row[f'{first}_low']:.4f}-{row[f'{first}_high']:.4f}"]
            line += [f"{row[key]:.4f}" for key in others]
            if len(self.rows) > 1:
                line += [f"{row['delta']:+.4f}", _p_value(row["p_value"])] if "delta" in row else ["", ""]
            if published := row.get("published"):
                line.append(f"{published:.4f}")
            cells.append(line + [""] * (columns - len(line)))
        return cells

    def _slice_tables(self) -> list[tuple[str, list[dict[str, Any]]]]:
        """The title and the rows of each slice."""
        groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for row in self.slices:
            groups.setdefault((row["slice_by"], row["slice"]), []).append(row)
        return [(f"{by}: {name} ({rows[0]['queries']:,} queries)", rows) for (by, name), rows in groups.items()]


def _p_value(p: float) -> str:
    return f"{p:.4f}" if p >= 0.00005 else "<0.0001"


def _aligned(header: list[str], cells: list[list[str]]) -> list[str]:
    rows = [header, *cells]
    widths = [max(len(row[c]) for row in rows) for c in range(len(header))]
    return [
        "  ".join(
            c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _csv(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: " ".join(map(str, v)) if isinstance(v, list) else v for k, v in row.items()} for row in rows)
    return out.getvalue()
