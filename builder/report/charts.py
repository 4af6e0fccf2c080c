"""Charts as SVG. Colours are classes of the style sheet, so that they follow light and dark."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from builder.report.markup import percent, plain, text
from sqid_lib.evaluation.arrays import Floats

_WIDTH, _HEIGHT = 400, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 12, 42
SERIES = 7  # colours of the palette; a series after the last has the colour of "others"
MAP = 640  # units of the map's sides
_MARGIN = 14


@dataclass(frozen=True)
class Bar:
    """One bar: `part` of `value` is drawn in the accent colour."""

    name: str
    value: float
    part: float
    shown: str


@dataclass(frozen=True)
class Line:
    """One line of a chart."""

    name: str
    x: Floats
    y: Floats


def bars(rows: Sequence[Bar], label: str) -> str:
    """Horizontal bars from 0 to the largest value; names and numbers are HTML, which stays readable on a phone."""
    largest = max((row.value for row in rows), default=0) or 1
    lines = []
    for row in rows:
        whole, part = (f"{1000 * value / largest:.1f}" for value in (row.value, row.part))
        drawing = (
            '<svg class="bar" viewBox="0 0 1000 10" preserveAspectRatio="none" aria-hidden="true">'
            f'<rect class="rest" width="{whole}" height="10"/><rect class="part" width="{part}" height="10"/></svg>'
        )
        lines.append(f"<li><span><bdi>{text(row.name, 60)}</bdi></span>{drawing}<span>{text(row.shown)}</span></li>")
    return f'<ul class="bars" aria-label="{text(label)}">{"".join(lines)}</ul>'


def lines(series: Sequence[Line], x_label: str, y_label: str, title: str, *, steps: bool, markers: str = "") -> str:
    """Lines over common axes, with a legend.

    Args:
        title: what the chart shows, for readers who do not see it.
        steps: the y are the bins between the x, of which there is one more.
        markers: further SVG, made with `Axes.vertical`.
    """
    axes = axes_of(series, from_zero=steps)
    drawn = []
    for number, line in enumerate(series):
        points = zip(*(np.repeat(line.x, 2)[1:-1], np.repeat(line.y, 2)) if steps else (line.x, line.y), strict=True)
        path = " ".join(f"{axes.x(x):.1f},{axes.y(y):.1f}" for x, y in points)
        drawn.append(f'<polyline class="line {colour(number)}" points="{path}"/>')
    body = axes.frame(x_label, y_label) + markers + "".join(drawn)
    return _svg(body, title) + (legend({n: line.name for n, line in enumerate(series)}) if len(series) > 1 else "")


@dataclass(frozen=True)
class Axes:
    """From values to the units of a chart."""

    low_x: float
    high_x: float
    low_y: float
    high_y: float
    height: float = _HEIGHT

    def x(self, value: float) -> float:
        """Units from the left."""
        return _LEFT + (value - self.low_x) / (self.high_x - self.low_x) * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        """Units from the top."""
        share = (value - self.low_y) / (self.high_y - self.low_y)
        return self.height - _BOTTOM - share * (self.height - _BOTTOM - _TOP)

    def vertical(self, value: float, kind: str) -> str:
        """A vertical line at a value."""
        x = f"{self.x(value):.1f}"
        return f'<line class="{kind}" x1="{x}" x2="{x}" y1="{_TOP}" y2="{self.height - _BOTTOM}"/>'

    def frame(self, x_label: str, y_label: str) -> str:
        """Grid, ticks and the names of the axes."""
        bottom, middle = self.height - _BOTTOM, (_TOP + self.height - _BOTTOM) / 2
        parts = [f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{bottom}" y2="{bottom}"/>']
        for value in ticks(self.low_y, self.high_y, 4):
            y = self.y(value)
            parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(_words("tick", _LEFT - 6, y + 3.5, "end", _tick(value)))
        turned = f' transform="rotate(-90 11 {middle})"'
        return "".join(parts) + self.below(x_label) + _words("label", 11, middle, "middle", y_label, turned)

    def below(self, x_label: str) -> str:
        """Ticks and name of the axis below."""
        bottom = self.height - _BOTTOM
        parts = [
            _words("tick", self.x(value), bottom + 15, "middle", _tick(value))
            for value in ticks(self.low_x, self.high_x)
        ]
        return "".join(parts) + _words("label", (_LEFT + _WIDTH - _RIGHT) / 2, self.height - 8, "middle", x_label)


def axes_of(series: Sequence[Line], *, from_zero: bool = False) -> Axes:
    """Axes that hold all lines, with some room above, and below unless they start at 0."""
    xs, ys = (np.concatenate([getattr(line, name) for line in series]) for name in "xy")
    low, high = (0.0 if from_zero else float(ys.min())), float(ys.max())
    room = 0.06 * (high - low) or 0.5
    low_x, high_x = float(xs.min()), float(xs.max())
    if high_x <= low_x:
        low_x, high_x = low_x - 0.5, high_x + 0.5
    return Axes(low_x, high_x, low if from_zero else low - room, high + room)


def ticks(low: float, high: float, about: int = 6) -> list[float]:
    """Round numbers between two values."""
    rough = (high - low) / about
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * unit for factor in (1, 2, 2.5, 5, 10) if factor * unit >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    found = [round(n * step, 10) for n in range(first, first + 2 * about + 2) if n * step <= high + 1e-9]
    return [value + 0.0 for value in found]  # no -0


def _tick(value: float) -> str:
    return f"{value:g}".replace("-", "−")


def _words(kind: str, x: float, y: float, anchor: str, words: str, more: str = "") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{text(words, 60)}</text>'


def intervals(rows: Sequence[tuple[str, float, float, float]], x_label: str, title: str) -> str:
    """A dot and an interval for each row: name, low, middle, high. Names are drawn above the dots."""
    height = _TOP + _BOTTOM + 30 * len(rows)
    low, high = min(row[1] for row in rows), max(row[3] for row in rows)
    room = 0.06 * (high - low) or 0.05
    axes = Axes(low - room, high + room, 0, 1, height)
    parts = [axes.vertical(value, "grid") for value in ticks(axes.low_x, axes.high_x)]
    for number, (name, left, centre, right) in enumerate(rows):
        y = _TOP + 30 * number + 20
        x1, x, x2 = (f"{axes.x(value):.1f}" for value in (left, centre, right))
        parts.append(f'<line class="whisker" x1="{x1}" x2="{x2}" y1="{y}" y2="{y}"/>')
        parts.append(f'<circle class="dot" cx="{x}" cy="{y}" r="4"/>')
        to_the_right = axes.x(left) < 0.7 * _WIDTH
        place, anchor = (left, "start") if to_the_right else (right, "end")
        parts.append(_words("name", axes.x(place), y - 7, anchor, name))
    return _svg("".join(parts) + axes.below(x_label), title, height)


def points(name: str, x: Floats, y: Floats, groups: Sequence[Sequence[int]], prefixes: str, title: str) -> str:
    """A scatter plot; each point has a class for its group in each grouping, such as "l2 s0 b5".

    Args:
        groups: for each grouping, the group of every point.
        prefixes: the letter of each grouping.
    """
    inner, radius = MAP - 2 * _MARGIN, 4 if len(x) <= 1_000 else 3
    circles = []
    for at, (left, down) in enumerate(zip(x, y, strict=True)):
        kinds = " ".join(f"{prefix}{min(group[at], SERIES)}" for prefix, group in zip(prefixes, groups, strict=True))
        place = f'cx="{_MARGIN + inner * left:.1f}" cy="{MAP - _MARGIN - inner * down:.1f}"'
        circles.append(f'<circle class="{kinds}" {place} r="{radius}"/>')
    shown = f'role="img" tabindex="0" aria-label="{text(title, 400)}"'
    return f'<svg class="map" id="{name}" viewBox="0 0 {MAP} {MAP}" {shown}>{"".join(circles)}</svg>'


def legend(names: Mapping[int, str], kind: str = "") -> str:
    """Colours, by number, and their names."""
    items = "".join(
        f'<li><span class="swatch {colour(number)}" aria-hidden="true"></span><bdi>{text(name, 40)}</bdi></li>'
        for number, name in names.items()
    )
    return f'<ul class="legend{" " + kind if kind else ""}">{items}</ul>'


def colour(number: int) -> str:
    """The class of a series."""
    return f"c{min(number, SERIES)}"


def share_bar(name: str, covered: int, total: int) -> Bar:
    """A bar of a group and its share that is covered."""
    share = covered / total if total else 0.0
    return Bar(plain(name), total, covered, f"{covered:,} of {total:,} · {percent(share)}")


def _svg(body: str, title: str, height: float = _HEIGHT) -> str:
    return f'<svg class="chart" viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{text(title, 400)}">{body}</svg>'
