"""What the report counts: the funnel, coverage, and the distributions of norms and cosines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc

from builder.report.release import Release
from sqid_lib import schemas
from sqid_lib.evaluation.arrays import Bools, Float32s, Floats, Ints
from sqid_lib.evaluation.cosine import cosine
from sqid_lib.evaluation.mapped import drop_pages

NO_VECTOR = "no vector"  # a product whose image is there and whose vector is not
OTHER = "all others"
_BINS = 40
_NORM_BLOCK = 8_192


@dataclass(frozen=True)
class Step:
    """One step of the funnel: what is left, and how many products were lost on the way to it, by reason."""

    name: str
    count: int
    lost: Mapping[str, int]


@dataclass(frozen=True)
class Share:
    """A group of things and how many of them have an image vector."""

    name: str
    total: int
    covered: int

    @property
    def share(self) -> float:
        """From 0 to 1."""
        return self.covered / self.total if self.total else 0.0


@dataclass(frozen=True)
class Source:
    """The queries of one source.

    Attributes:
        judged: their judgments, and how many of the judged products have an image vector.
        complete: queries all of whose judged products have one.
    """

    name: str
    queries: int
    judged: Share
    complete: int


@dataclass(frozen=True)
class Histogram:
    """One distribution.

    Attributes:
        edges: float64 [B + 1], shared by the histograms of one chart.
        counts: int64 [B].
        mean, spread: of the values; the spread is their standard deviation.
    """

    name: str
    edges: Floats
    counts: Ints
    mean: float
    spread: float

    @property
    def total(self) -> int:
        """How many values there are."""
        return int(self.counts.sum())


def funnel(release: Release) -> list[Step]:
    """From the products of the catalogue to those with an image vector; a loss is counted by its image_status."""
    status = np.array(release.statuses, dtype=object)
    conditions = [
        ("have an image URL or a local image", _is_known(release, status)),
        ("have a URL of the product's own image", status != schemas.PLACEHOLDER),
        ("have an image that was fetched and decoded", _has_file(release, status)),
        ("have an image vector", release.has_image),
    ]
    left = np.ones(len(status), np.bool_)
    steps = [Step("products", len(status), {})]
    for name, condition in conditions:
        lost = Counter(map(_reason, status[left & ~condition]))
        left = left & condition
        steps.append(Step(name, int(left.sum()), _largest_first(lost)))
    return steps


def _is_known(release: Release, status: np.ndarray) -> Bools:
    """Which products have an image to fetch; a release publishes no URL of a local one, but how reading it ended."""
    urls: Bools = pc.is_valid(release.products["image_url"]).to_numpy()
    return urls | ~np.isin(status, (schemas.MISSING, ""))


def _has_file(release: Release, status: np.ndarray) -> Bools:
    return np.isin(status, (*schemas.EMBEDDED_STATUSES, "non_finite", "not_encoded")) | release.has_image


def _reason(status: str) -> str:
    return NO_VECTOR if status in schemas.EMBEDDED_STATUSES else status or "no status"


def by_status(release: Release) -> dict[str, int]:
    """image_status → products, the most frequent first."""
    return _largest_first(Counter(release.statuses))


def by_brand(release: Release, most: int = 20) -> list[Share]:
    """The largest brands, then all others together, then the products without a brand."""
    brands = release.texts("product_brand")
    total = Counter(brands)
    covered = Counter(brand for brand, there in zip(brands, release.has_image, strict=True) if there)
    named = [brand for brand in _largest_first(total) if brand]
    shares = [Share(brand, total[brand], covered[brand]) for brand in named[:most]]
    rest = named[most:]
    if rest:
        name = f"{OTHER} ({len(rest):,} brands)"
        shares.append(Share(name, sum(total[b] for b in rest), sum(covered[b] for b in rest)))
    if total[""]:
        shares.append(Share("no brand stated", total[""], covered[""]))
    return shares


def by_source(release: Release) -> list[Source]:
    """The query sources, the one with the most queries first."""
    names = ["not stated" if name is None else str(name) for name in release.queries["source"].to_pylist()]
    asked = Counter(names)
    covered = release.has_image[release.judgment_product_index]
    judged = np.bincount(release.judgment_query_index, minlength=len(names))
    shown = np.bincount(release.judgment_query_index, weights=covered, minlength=len(names)).astype(np.int64)
    whole = (judged > 0) & (judged == shown)
    found = []
    for name in _largest_first(asked):
        rows = np.array([other == name for other in names])
        share = Share(name, int(judged[rows].sum()), int(shown[rows].sum()))
        found.append(Source(name, asked[name], share, int(whole[rows].sum())))
    return found


def norms(release: Release) -> list[Histogram]:
    """Euclidean lengths of the vectors that are there."""
    matrices = {
        "product text": (release.text_features, release.has_text),
        "product image": (release.image_features, release.has_image),
        "query text": (release.query_features, np.ones(len(release.query_features), np.bool_)),
    }
    return histograms({name: _norms(matrix)[there] for name, (matrix, there) in matrices.items() if there.any()})


def _norms(matrix: Float32s) -> Floats:
    parts = [
        np.linalg.norm(matrix[start : start + _NORM_BLOCK].astype(np.float64), axis=1)
        for start in range(0, len(matrix), _NORM_BLOCK)
    ]
    drop_pages(matrix)
    return np.concatenate(parts) if parts else np.zeros(0)


def title_cosines(release: Release) -> tuple[Ints, Floats]:
    """Rows of the products with both vectors, and the cosine of each one's text and image."""
    rows = np.flatnonzero(release.has_text & release.has_image)
    return rows, cosine(release.text_features, release.image_features, rows, rows)


def judged_cosines(release: Release, kind: str, most: int = 6) -> list[Histogram]:
    """Cosines of query and product by label, the highest gain first; rare labels are taken together.

    Args:
        kind: "text" or "image", the product's vector; pairs without one are left out.
    """
    matrix, there = {
        "text": (release.text_features, release.has_text),
        "image": (release.image_features, release.has_image),
    }[kind]
    kept = there[release.judgment_product_index]
    if not kept.any():
        return []
    values = cosine(
        release.query_features, matrix, release.judgment_query_index[kept], release.judgment_product_index[kept]
    )
    labels = np.array(release.judgments["esci_label"].to_pylist(), dtype=object)[kept]
    groups = {name: values[labels == name] for name in main_labels(release, most) if (labels == name).any()}
    rest = ~np.isin(labels, list(groups))
    if rest.any():
        groups[OTHER] = values[rest]
    return histograms(groups)


def main_labels(release: Release, most: int) -> list[str]:
    """The most frequent labels, in the order of their gains; all of them if there are no more than `most`."""
    counts, gains = Counter(release.judgments["esci_label"].to_pylist()), list(release.gains)
    frequent = sorted(gains, key=lambda name: -counts[name])[:most]  # of equal ones that with the higher gain
    return [name for name in gains if name in frequent]


def histograms(groups: Mapping[str, Floats], bins: int = _BINS) -> list[Histogram]:
    """Histograms over the same bins, which span all values."""
    if not groups:
        return []
    low = min(float(values.min()) for values in groups.values())
    high = max(float(values.max()) for values in groups.values())
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, bins + 1)
    return [
        Histogram(name, edges, np.histogram(values, edges)[0], float(values.mean()), float(values.std()))
        for name, values in groups.items()
    ]


def _largest_first(counts: Mapping[str, int] | Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def cut_groups(values: Sequence[str], most: int, empty: str) -> tuple[dict[int, str], list[int]]:
    """Number → name of the most frequent values, and the number of each value; number `most` is of all others.

    Args:
        empty: the name for "".
    """
    named = [value or empty for value in values]
    names = list(_largest_first(Counter(named)))
    number = {name: n for n, name in enumerate(names[:most])}
    legend = {n: name for name, n in number.items()} | ({most: OTHER} if len(names) > most else {})
    return legend, [number.get(name, most) for name in named]
