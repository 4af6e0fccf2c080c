"""Products and queries worth a look: equal images, images unlike their title, labels that the vectors contradict."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import xxhash

from builder.report.numbers import title_cosines
from builder.report.release import Release
from sqid_lib import schemas
from sqid_lib.evaluation.arrays import Float32s, Floats, Ints
from sqid_lib.evaluation.cosine import cosine, unit
from sqid_lib.evaluation.judged import JudgedLists
from sqid_lib.evaluation.mapped import drop_pages

NEAR = 0.98  # cosine of two image vectors from which they count as near-duplicates
COMPARED = 8_000  # distinct image vectors that are compared pair by pair
_BLOCK = 1_000
_LEAST_PAIRS = 6  # pairs of judgments with different gains that a query must have


@dataclass(frozen=True)
class Duplicates:
    """Products that share one image.

    Attributes:
        rows: of the products, ascending.
        same_file: whether the stored files are the same; otherwise only the vectors are known to be.
        titles: the lowest cosine of the first one's text vector with those of the others.
    """

    rows: tuple[int, ...]
    same_file: bool
    titles: float


@dataclass(frozen=True)
class NearPair:
    """Two products whose image vectors are nearly the same."""

    first: int
    second: int
    cosine: float


@dataclass(frozen=True)
class NearDuplicates:
    """What `near_duplicates` found.

    Attributes:
        compared: distinct vectors that were compared with each other, of `distinct`.
        found: pairs with a cosine of NEAR or more; `pairs` are the nearest of them.
    """

    pairs: list[NearPair]
    found: int
    compared: int
    distinct: int


@dataclass(frozen=True)
class FarImage:
    """A product whose image is unlike its title.

    Attributes:
        cosine: of its text and image vectors.
        deviations: how many standard deviations it lies below the mean of all products.
    """

    row: int
    cosine: float
    deviations: float


@dataclass(frozen=True)
class Contradicted:
    """A query some of whose products are ranked against their labels.

    Attributes:
        query: its row.
        judged: its judged products.
        pairs: pairs of them that have different gains.
        wrong: the share of these pairs in which the product with the lower gain has the higher score.
        z: Kendall's statistic of the agreement: negative where labels and scores disagree.
        best, worst: judgments, by their row: the lowest-scored of the highest gain, the highest-scored of the lowest.
    """

    query: int
    judged: int
    pairs: int
    wrong: float
    z: float
    best: int
    worst: int


def duplicates(release: Release, sha256s: Sequence[str | None] | None) -> list[Duplicates]:
    """Groups of products with the same image, over all products; the generic image, shared on purpose, is left out.

    The largest come first, and of equal ones those whose titles differ most.

    Args:
        sha256s: of each product's stored image; None where they are not known.
    """
    rows = _own_images(release)
    by_file = _groups((sha256s[row], row) for row in rows if sha256s[row]) if sha256s else []
    in_files = {frozenset(group) for group in by_file}
    by_vector = _groups((xxhash.xxh3_128_digest(release.image_features[row].tobytes()), int(row)) for row in rows)
    drop_pages(release.image_features)
    groups = [(group, True) for group in by_file]
    groups += [(group, False) for group in by_vector if frozenset(group) not in in_files]
    found = [Duplicates(group, same_file, _titles(release, group)) for group, same_file in groups]
    return sorted(found, key=lambda group: (-len(group.rows), group.titles, group.rows))


def _titles(release: Release, group: tuple[int, ...]) -> float:
    others = np.array(group[1:], np.int64)
    first = np.full(len(others), group[0], np.int64)
    return float(cosine(release.text_features, release.text_features, first, others).min())


def _own_images(release: Release) -> list[int]:
    statuses = release.statuses
    return [int(row) for row in np.flatnonzero(release.has_image) if statuses[row] != schemas.GENERIC]


def _groups(pairs: Iterable[tuple[Hashable, int]]) -> list[tuple[int, ...]]:
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for key, row in pairs:
        groups[key].append(row)
    return [tuple(rows) for rows in groups.values() if len(rows) > 1]


def near_duplicates(release: Release, same: Sequence[Duplicates], most: int = 12) -> NearDuplicates:
    """Pairs of different images with nearly the same vector: all pairs of up to `COMPARED` vectors, block by block.

    Args:
        same: products with the same image, of which one is compared.
    """
    repeated = {row for group in same for row in group.rows[1:]}
    rows = np.array([row for row in _own_images(release) if row not in repeated], np.int64)
    chosen = rows if len(rows) <= COMPARED else rows[np.linspace(0, len(rows) - 1, COMPARED).astype(np.int64)]
    vectors = unit(release.image_features[chosen]) if len(chosen) else np.zeros((0, release.width), np.float32)
    best: list[NearPair] = []
    found = 0
    for start in range(0, len(chosen), _BLOCK):
        left, right, cosines = _near(vectors, start)
        found += len(left)
        order = np.lexsort((right, left, -cosines))[:most]
        best += [NearPair(int(chosen[left[n]]), int(chosen[right[n]]), float(cosines[n])) for n in order]
    best.sort(key=lambda pair: (-pair.cosine, pair.first, pair.second))
    return NearDuplicates(best[:most], found, len(chosen), len(rows))


def _near(vectors: Float32s, start: int) -> tuple[Ints, Ints, Floats]:
    """Pairs of one block with the vectors behind: positions, and cosines of at most 1."""
    cosines = vectors[start : start + _BLOCK] @ vectors[start:].T
    left, right = np.nonzero(cosines >= NEAR)
    later = right > left
    left, right = left[later], right[later]
    return left + start, right + start, np.minimum(cosines[left, right].astype(np.float64), 1.0)


def far_images(release: Release, most: int = 12) -> list[FarImage]:
    """The products whose image vector is farthest from their text vector, the farthest first; no generic images."""
    rows, cosines = title_cosines(release)
    own = np.isin(rows, _own_images(release))
    rows, cosines = rows[own], cosines[own]
    if len(rows) < 2 or not (spread := float(cosines.std())):
        return []
    order = np.argsort(cosines, kind="stable")[:most]
    below = (cosines.mean() - cosines) / spread
    return [FarImage(int(rows[n]), float(cosines[n]), float(below[n])) for n in order if below[n] > 0]


def contradicted(lists: JudgedLists, scores: Floats, most: int = 12) -> list[Contradicted]:
    """The queries whose labels and scores disagree most, by Kendall's statistic.

    Args:
        scores: float64 [J] in the order of `lists`.
    """
    found = []
    ends = np.append(lists.starts[1:], len(lists.row))
    for query, (start, end) in enumerate(zip(lists.starts, ends, strict=True)):
        case = _contradicted(int(lists.query_index[query]), int(start), lists.gain[start:end], scores[start:end])
        if case is not None and case.wrong:
            found.append(case)
    found.sort(key=lambda case: (case.z, case.query))
    rows = lists.row
    return [
        Contradicted(c.query, c.judged, c.pairs, c.wrong, c.z, int(rows[c.best]), int(rows[c.worst]))
        for c in found[:most]
    ]


def _contradicted(query: int, start: int, gain: Floats, score: Floats) -> Contradicted | None:
    """One query; None if it has too few pairs with different gains. `best` and `worst` count in the lists."""
    above = np.sign(gain[:, None] - gain)
    order = np.sign(score[:, None] - score)
    pairs = int(np.count_nonzero(above)) // 2
    if pairs < _LEAST_PAIRS:
        return None
    agreement = float((above * order).sum()) / 2
    wrong = int(np.count_nonzero(above * order < 0)) // 2
    top, bottom = np.flatnonzero(gain == gain.max()), np.flatnonzero(gain == gain.min())
    return Contradicted(
        query=query,
        judged=len(gain),
        pairs=pairs,
        wrong=wrong / pairs,
        z=agreement / np.sqrt(_variance(gain)),
        best=start + int(top[score[top].argmin()]),
        worst=start + int(bottom[score[bottom].argmax()]),
    )


def _variance(gain: Floats) -> float:
    """Variance of Kendall's S for scores in random order, with ties among the gains."""
    _, ties = np.unique(gain, return_counts=True)

    def part(n: Ints) -> Ints:
        return n * (n - 1) * (2 * n + 5)

    return float((part(np.array([len(gain)])).sum() - part(ties).sum()) / 18)
