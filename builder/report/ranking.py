"""The sections at the end: the ranking table with the fusion curve, and how the release was made."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from builder.report import charts
from builder.report.charts import Line
from builder.report.markup import data, empty, figure, number, section, table, text
from builder.report.release import Release
from builder.report.work import Work
from builder.stages import STAGES
from sqid_lib import evaluation, schemas
from sqid_lib.errors import SqidError
from sqid_lib.evaluation import Comparison
from sqid_lib.evaluation.labels import RELEASE

_FIRST = ("random", "clip_text")


def compare(release: Release) -> tuple[Comparison | None, str]:
    """The ranking table of a release; where it cannot be made, None and the reason."""
    if not release.width or not len(release.query_features):
        return None, "The release has no vectors of queries."
    if not len(release.judgments):
        return None, "The release has no judgments."
    stated = {label: schemas.GAINS.get(label) for label in release.gains}
    several = len(np.unique(release.judgment_query_index)) > 1  # a fusion weight is chosen on other queries
    methods = [m for m in evaluation.DEFAULT_METHODS if m in _FIRST or release.has_image.any()]
    methods = [m for m in methods if several or m != "fusion"]
    try:
        return evaluation.compare(release, methods, gains=None if stated == release.gains else RELEASE), ""
    except SqidError as error:
        return None, f"The ranking table cannot be made: {error.what}."


def ranking_section(comparison: Comparison | None, why: str) -> str:
    """The ranking table, its intervals, and nDCG by fusion weight."""
    if comparison is None:
        return section("ranking", "Ranking", empty(why))
    parts = [_intervals(comparison)]
    for method, sweep in comparison.sweeps.items():
        parts.append(_curve(method, sweep))
    if not comparison.sweeps:
        parts.append(
            f"<div><h3>Fusion weight</h3>{empty('A fusion weight needs images and at least two judged queries.')}</div>"
        )
    notes = "".join(f"<li>{text(words, 600)}</li>" for words in comparison.notes)
    return section(
        "ranking",
        "Ranking",
        _table(comparison),
        f'<div class="pair">{"".join(parts)}</div><ul class="note">{notes}</ul>',
    )


def _table(comparison: Comparison) -> str:
    first, *others = comparison.metrics
    published = any(row.get("published") for row in comparison.rows)
    header = [
        "method",
        first.title,
        "95 % interval",
        *(m.title for m in others),
        f"vs {comparison.rows[0]['baseline']}",
        "p",
    ]
    rows = []
    for row in comparison.rows:
        line = [row["method"], f"{row[first.key]:.4f}", f"{row[f'{first.key}_low']:.4f}–{row[f'{first.key}_high']:.4f}"]
        line += [f"{row[m.key]:.4f}" for m in others]
        line += [number(row["delta"], 4, sign=True), f"{row['p_value']:.4f}"] if "delta" in row else ["", ""]
        rows.append([*line, f"{row['published']:.4f}" if row.get("published") else ""] if published else line)
    return table(
        "ranking-table",
        "Rankings of the judged products of each query",
        header + (["published"] if published else []),
        rows,
    )


def _intervals(comparison: Comparison) -> str:
    rows = [(str(r["method"]), float(r["ndcg_low"]), float(r["ndcg"]), float(r["ndcg_high"])) for r in comparison.rows]
    title = "nDCG of each method: " + ", ".join(f"{name} {middle:.4f}" for name, _, middle, _ in rows)
    chart = charts.intervals(rows, "nDCG over the judged list, from 0 to 1", title)
    caption = "nDCG with its 95 % bootstrap interval over queries; the values are in the table above."
    return f"<div><h3>nDCG</h3>{figure(chart, caption)}</div>"


def _curve(method: str, sweep: evaluation.Sweep) -> str:
    line = Line(method, sweep.weights, sweep.ndcg)
    axes = charts.axes_of([line])
    chosen = sorted(set(sweep.chosen))
    marks = "".join(axes.vertical(weight, "chosen") for weight in chosen)
    best = int(sweep.ndcg.argmax())
    highest = f"Highest: {sweep.ndcg[best]:.4f} at {sweep.weights[best]:.2f}."
    x_label, title = f"weight of {sweep.first}; the rest is {sweep.second}", f"nDCG by fusion weight. {highest}"
    chart = charts.lines([line], x_label, "nDCG, all queries", title, steps=False, markers=marks)
    rows = [(f"{weight:.2f}", f"{value:.4f}") for weight, value in zip(sweep.weights, sweep.ndcg, strict=True)]
    words = ", ".join(f"{weight:.2f}" for weight in chosen)
    caption = f"Dashed: the weights chosen on the other folds of queries ({words}). {highest}"
    shown = data(table(f"{method}-curve", "nDCG by fusion weight", (f"weight of {sweep.first}", "nDCG"), rows))
    return f"<div><h3>Fusion weight</h3>{figure(chart, caption, shown)}</div>"


def build_section(release: Release, work: Work | None) -> str:
    """Times of the stages, model, versions and recipe."""
    times = _times(work)
    manifest = release.manifest
    if not manifest:
        return section(
            "build",
            "Build",
            times,
            empty("The release has no manifest.json that can be read: model and versions are not known."),
        )
    rows = [
        ("model", manifest.get("model") or "not stated"),
        ("revision of the model", manifest.get("revision") or "not stated"),
        ("width", release.width or "no vectors"),
    ]
    versions = manifest.get("versions")
    rows += sorted(versions.items()) if isinstance(versions, dict) else []
    made = table("versions", "Model, and the versions of packages that made the release", ("", "value"), rows, 2)
    recipe = manifest.get("recipe")
    settings = _settings(recipe) if isinstance(recipe, dict) else []
    shown = table("recipe", "Settings that manifest.json states", ("key", "value"), settings, 2)
    return section(
        "build",
        "Build",
        times,
        f"<h3>Model and versions</h3>{made}",
        f"<h3>Recipe</h3><details><summary>Settings</summary>{shown}</details>",
    )


def _times(work: Work | None) -> str:
    title = "<h3>Time of the stages</h3>"
    if work is None:
        return title + empty("A release does not say how long its build took; the work directory does.")
    found = {stage: work.times[stage] for stage in STAGES if stage in work.times}
    if not found:
        return title + empty("No times are recorded: this work directory was built by an earlier version.")
    bars = [charts.Bar(stage, seconds, seconds, duration(seconds)) for stage, seconds in found.items()]
    rows = [(stage, f"{seconds:.1f}") for stage, seconds in found.items()]
    caption = "Of the run that finished each stage, not of interrupted ones before. Release includes its validation."
    return title + figure(
        charts.bars(bars, "time of each stage"),
        caption,
        data(table("times", "Time of each stage", ("stage", "seconds"), rows)),
    )


def duration(seconds: float) -> str:
    """ "0.4 s", "3 min 20 s", "2 h 5 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _settings(recipe: Mapping[str, object], prefix: str = "") -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for key, value in recipe.items():
        if isinstance(value, dict) and value:
            found += _settings(value, f"{prefix}{key}.")
        elif value not in (None, [], {}):
            found.append((f"{prefix}{key}", ", ".join(map(str, value)) if isinstance(value, list) else str(value)))
    return found
