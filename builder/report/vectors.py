"""The sections that show vectors: norms, cosines by label, and the map of products."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from builder.report import charts, numbers, projection
from builder.report.charts import Line
from builder.report.markup import (
    as_json,
    count,
    data,
    empty,
    figure,
    note,
    number,
    percent,
    plain,
    section,
    table,
    text,
    things,
)
from builder.report.numbers import Histogram
from builder.report.release import Release
from builder.report.work import Work
from sqid_lib.evaluation.arrays import Ints
from sqid_lib.evaluation.mapped import drop_pages

_LINES = (
    "Where the lines of two labels lie on each other, the vectors cannot tell these labels apart. Cosines of a text "
    "and an image are lower than those of two texts: compare shapes, not values, between the charts."
)
_THUMBNAILS = 600
_SIDE = 72
_LISTED = 200  # points in the table of the map
_GROUPINGS = ("label", "status", "brand")
Grouping = tuple[dict[int, str], list[int]]  # number → name of its groups, and the number of each point


def vectors_section(release: Release) -> str:
    """Norms, and cosines by label."""
    if not release.width:
        return section("vectors", "Vectors", empty("The release has no vectors: it has no product_features."))
    _, titles = numbers.title_cosines(release)
    charts_ = [
        _histograms("norms", "Norms", numbers.norms(release), "length of the vector", "vectors", "No vector is there."),
        _histograms(
            "cosine-title",
            "A product's text and its image",
            numbers.histograms({"all products": titles} if len(titles) else {}),
            "cosine of text and image vector",
            "products",
            "No product has both vectors.",
        ),
    ]
    for kind, what in (("text", "Query and product text"), ("image", "Query and product image")):
        found = numbers.judged_cosines(release, kind) if len(release.judgments) else []
        reason = "No judged product has such a vector." if len(release.judgments) else "The release has no judgments."
        charts_.append(
            _histograms(f"cosine-{kind}", what, found, f"cosine of query and {kind} vector", "judgments", reason)
        )
    return section("vectors", "Vectors", note(_LINES), f'<div class="pair">{"".join(charts_)}</div>')


def _histograms(name: str, title: str, found: Sequence[Histogram], x: str, what: str, reason: str) -> str:
    head = f"<h3>{text(title)}</h3>"
    if not found:
        return f"<div>{head}{empty(reason)}</div>"
    lines = [Line(h.name, h.edges, 100 * h.counts / h.total) for h in found]
    means = "; ".join(f"{h.name} {number(h.mean, 3)} ± {h.spread:.3f}" for h in found)
    edges = found[0].edges
    header = (f"{x}: from", "to", *(h.name for h in found))
    rows = [
        (number(low, 4), number(high, 4), *(count(int(h.counts[n])) for h in found))
        for n, (low, high) in enumerate(pairwise(edges))
    ]
    chart = charts.lines(
        lines, x, f"share of {what} per bin, %", f"{title}: {x}, mean ± standard deviation: {means}", steps=True
    )
    shown = table(f"{name}-data", f"{title}: {what} per bin", header, rows)
    summary = table(
        f"{name}-means",
        f"{title}: mean and standard deviation",
        ("", what, "mean", "standard deviation"),
        [(h.name, count(h.total), number(h.mean, 4), number(h.spread, 4)) for h in found],
    )
    values = things(sum(h.total for h in found), what.removesuffix("s"))
    caption = f"{values}, {len(edges) - 1} bins. Means: {text(means, 600)}."
    return f"<div>{head}{figure(chart, caption, data(summary, shown))}</div>"


# -- the map --------------------------------------------------------------------------------------------------------


def map_section(release: Release, work: Work | None, method: str) -> tuple[str, str]:
    """The map of products, and the JSON that its script reads; "" where there is no map."""
    title = "Map of products"
    if not release.width or not release.has_text.any():
        return section("map", title, empty("The release has no text vectors of products.")), ""
    rows, shown = projection.sample_rows(len(release.products))
    groupings = _groupings(release, rows)
    thumbnails, why = _thumbnails(work, rows, shown)
    plots, captions = [], []
    for kind, matrix, there in (
        ("text", release.text_features, release.has_text),
        ("image", release.image_features, release.has_image),
    ):
        kept = np.flatnonzero(there[rows])
        if len(kept):
            vectors = matrix[rows[kept]]
            drop_pages(matrix)
            plot, words = _plot(kind, vectors, kept, groupings, method)
            plots.append((kind, plot, kept))
            captions.append(words)
    sampled = f"{count(len(rows))} of {things(len(release.products), 'product')}, a sample drawn with a fixed seed"
    everything = f"All {things(len(rows), 'product')}"
    caption = f"{sampled if len(rows) < len(release.products) else everything}. {' '.join(captions)} {text(why, 300)}"
    legends = "".join(charts.legend(names, f"by-{name}") for name, (names, _) in groupings.items())
    drawing = "".join(plot for _, plot, _ in plots)
    kinds = [kind for kind, _, _ in plots]
    maps = f'<div class="maps" data-by="label" data-kind="{kinds[0] if kinds else "text"}">{legends}{drawing}</div>'
    tip = '<div id="tip" role="status" hidden></div>'
    return (
        section(
            "map",
            title,
            note(_HOW),
            figure(_controls(kinds) + maps + tip, caption, data(*_map_tables(release, rows, groupings))),
        ),
        as_json(_map_data(release, rows, groupings, thumbnails, {kind: kept for kind, _, kept in plots})),
    )


_HOW = (
    "Near points have similar vectors. Move the pointer over a point, or focus the map and use the arrow keys, to see "
    "its product. A product judged for several queries has the colour of its highest gain."
)


def _groupings(release: Release, rows: Ints) -> dict[str, Grouping]:
    labels = [label or "" for label in _best_labels(release)]
    statuses, brands = release.statuses, release.texts("product_brand")
    return {
        "label": _by_label(release, [labels[row] for row in rows]),
        "status": numbers.cut_groups([statuses[row] for row in rows], charts.SERIES, "no status"),
        "brand": numbers.cut_groups([brands[row] for row in rows], charts.SERIES, "no brand stated"),
    }


def _best_labels(release: Release) -> list[str | None]:
    """Of every product the label with the highest gain among its judgments."""
    gains = release.gains
    best: list[str | None] = [None] * len(release.products)
    labels = release.judgments["esci_label"].to_pylist()
    for product, label in zip(release.judgment_product_index.tolist(), labels, strict=True):
        known = best[product]
        if known is None or gains[label] > gains[known]:
            best[product] = label
    return best


def _by_label(release: Release, labels: Sequence[str]) -> Grouping:
    """Labels in the order of their gains, so that a label has the colour that it has in the histograms."""
    names = numbers.main_labels(release, charts.SERIES - 1)
    number = {name: n for n, name in enumerate(names)} | {"": charts.SERIES}
    group = [number.get(label, len(names)) for label in labels]
    legend = dict(enumerate([*names, numbers.OTHER])) | {charts.SERIES: "not judged"}
    return {n: name for n, name in legend.items() if n in set(group)}, group


def _thumbnails(work: Work | None, rows: Ints, shown: Ints) -> tuple[dict[int, str], str]:
    if work is None:
        return {}, "No thumbnails: a release holds no images."
    with_image = [int(row) for row in shown if work.sha256s[int(row)]]
    step = max(1, -(-len(with_image) // _THUMBNAILS))
    found, why = work.thumbnails(with_image[::step], _SIDE)
    if why:
        return {}, f"No thumbnails: {why}."
    return found, "" if len(found) >= len(rows) else f"{things(len(found), 'point')} with a thumbnail."


def _plot(kind: str, vectors: np.ndarray, kept: Ints, groupings: dict[str, Grouping], method: str) -> tuple[str, str]:
    found = projection.project(vectors, method)
    groups = [[group[n] for n in kept] for _, group in groupings.values()]
    title = f"Map of {things(len(kept), 'product')} by their {kind} vectors; the table behind it lists them."
    plot = charts.points(f"map-{kind}", found.x, found.y, groups, "lsb", title)
    if found.explained is None:
        return plot, f"By {kind} vectors: UMAP of {things(len(kept), 'product')}."
    share = " and ".join(percent(part) for part in found.explained)
    return plot, f"By {kind} vectors: the first two principal axes, with {share} of the variance."


def _controls(kinds: Sequence[str]) -> str:
    """Menus, which the script shows: without it the map is still there."""
    by = "".join(f'<option value="{name}">{name}</option>' for name in _GROUPINGS)
    of = "".join(f'<option value="{name}">{name} vectors</option>' for name in kinds)
    return (
        f'<form id="map-controls" hidden><label>Colour by <select name="by">{by}</select></label>'
        f'<label>Placed by <select name="kind">{of}</select></label></form>'
    )


def _map_data(
    release: Release,
    rows: Ints,
    groupings: dict[str, Grouping],
    thumbnails: dict[int, str],
    kept: dict[str, Ints],
) -> dict[str, object]:
    """What the tip of each point shows."""
    titles, brands, statuses = (release.texts(name) for name in ("product_title", "product_brand", "image_status"))
    names, group = groupings["label"]
    points = [
        [
            plain(titles[row], 120),
            plain(brands[row], 40),
            plain(statuses[row], 40),
            plain(names[group[n]], 40),
            thumbnails.get(row, ""),
        ]
        for n, row in enumerate(rows.tolist())
    ]
    return {"points": points, "shown": {kind: found.tolist() for kind, found in kept.items()}}


def _map_tables(release: Release, rows: Ints, groupings: dict[str, Grouping]) -> list[str]:
    tables = []
    for name, (names, group) in groupings.items():
        counts = Counter(group)
        lines = [(group_name, count(counts[n])) for n, group_name in names.items()]
        tables.append(table(f"map-{name}", f"Points by {name}", (name, "points"), lines))
    names, group = groupings["label"]
    columns = [release.texts(column) for column in ("product_id", "product_title", "product_brand", "image_status")]
    lines = [(*(values[row] for values in columns), names[group[n]]) for n, row in enumerate(rows[:_LISTED].tolist())]
    caption = f"The first {count(len(lines))} of {things(len(rows), 'point')}"
    return [*tables, table("map-points", caption, ("product", "title", "brand", "status", "label"), lines, 5)]
