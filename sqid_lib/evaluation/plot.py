"""A comparison as an image: the methods with their intervals, and nDCG by fusion weight."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sqid_lib.errors import UsageError, missing_extra
from sqid_lib.evaluation.fusion import Sweep
from sqid_lib.evaluation.labels import title_suffix
from sqid_lib.files import replacing

_FORMATS = (".png", ".svg", ".pdf")


def check_format(path: Path) -> None:
    """Raise UsageError unless the path ends with .png, .svg or .pdf."""
    if path.suffix.lower() not in _FORMATS:
        raise UsageError("unknown image format", where=str(path), expected=" or ".join(_FORMATS), got=path.suffix)


def draw(path: Path, rows: Sequence[Mapping[str, Any]], sweeps: Mapping[str, Sweep]) -> Path:
    """Draw the rows and the sweeps of a `Comparison`.

    Raises:
        UsageError: the path ends with neither .png, .svg nor .pdf.
        MissingExtraError: matplotlib is not installed.
    """
    check_format(path)
    columns = 2 if sweeps else 1
    figure = _figure((6.4 * columns, max(3.2, 1.4 + 0.4 * len(rows))))
    axes = figure.subplots(1, columns, squeeze=False)[0]
    _draw_methods(axes[0], rows)
    if sweeps:
        _draw_sweeps(axes[1], sweeps)
    with replacing(path) as part:
        figure.savefig(part, format=path.suffix[1:].lower(), dpi=150)
    return path


def _figure(size: tuple[float, float]) -> Any:
    """An empty figure that draws without a window."""
    with _without_backend():
        try:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
        except ImportError:
            raise missing_extra("matplotlib", "eval", "to draw the table") from None
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


@contextmanager
def _without_backend() -> Iterator[None]:
    """Import matplotlib although MPLBACKEND, as in a notebook's shell, names a backend that is not installed."""
    wanted = None if "matplotlib" in sys.modules else os.environ.pop("MPLBACKEND", None)
    try:
        yield
    finally:
        if wanted is not None:
            os.environ["MPLBACKEND"] = wanted
    if wanted:
        import matplotlib

        with suppress(ValueError):
            matplotlib.rcParams["backend"] = wanted


def _plain(name: str) -> str:
    """A name as matplotlib can draw it: no formula between dollar signs, no bytes of a path that is not UTF-8."""
    return name.replace("$", r"\$").encode("utf-8", "backslashreplace").decode("utf-8")


def _draw_methods(axes: Any, table: Sequence[Mapping[str, Any]]) -> None:
    rows = table[::-1]
    middle = [row["ndcg"] for row in rows]
    spread = [[row["ndcg"] - row["ndcg_low"] for row in rows], [row["ndcg_high"] - row["ndcg"] for row in rows]]
    axes.errorbar(middle, range(len(rows)), xerr=spread, fmt="o", capsize=3, color="#1f5a8c")
    axes.set_yticks(range(len(rows)), [_plain(row["method"]) for row in rows])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    for height, row in enumerate(rows):
        axes.annotate(f"{row['ndcg']:.4f}", (row["ndcg"], height), (0, 6), textcoords="offset points", ha="center")
    top = rows[0].get("top")
    over = f"the best {top} of all products" if top else "the judged list"
    axes.set_xlabel(f"nDCG{title_suffix(rows[0]['gains'])} over {over}, 95 % bootstrap interval")
    axes.set_title(f"{rows[0]['queries']:,} queries")
    axes.grid(axis="x", alpha=0.3)


def _draw_sweeps(axes: Any, sweeps: Mapping[str, Sweep]) -> None:
    for number, (method, sweep) in enumerate(sweeps.items()):
        color = f"C{number}"
        axes.plot(sweep.weights, sweep.ndcg, "-", color=color, marker=".", label=_plain(method))
        for weight in sorted(set(sweep.chosen)):
            label = "chosen on the other folds" if number == 0 and weight == min(sweep.chosen) else None
            axes.axvline(weight, color=color, linestyle=":", alpha=0.7, label=label)
        names = _plain(f"weight of {sweep.first} (the rest is {sweep.second})")
        axes.set_xlabel(names if number == 0 else "weight of the first")
    axes.set_ylabel("nDCG, all queries")
    axes.set_title("fusion weight")
    axes.grid(alpha=0.3)
    axes.legend()
