"""A map of products: vectors in two dimensions."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from sqid_lib.errors import MissingExtraError
from sqid_lib.evaluation.arrays import Float32s, Floats, Ints
from sqid_lib.evaluation.cosine import unit

PCA, UMAP = "pca", "umap"
POINTS = 3_000
_RUNS, _RUN = 12, 50  # runs of neighbouring products, whose images lie together on disk
_SEED = 0


@dataclass(frozen=True)
class Projection:
    """Points in the unit square.

    Attributes:
        method: PCA or UMAP.
        x, y: float64 [N], from 0 to 1.
        explained: the share of the variance along each of the two axes; None for UMAP.
    """

    method: str
    x: Floats
    y: Floats
    explained: tuple[float, float] | None


def sample_rows(count: int, size: int = POINTS) -> tuple[Ints, Ints]:
    """Rows of the map, ascending, and those of them that get a thumbnail: all if there are no more than `size`.

    Otherwise some are runs of neighbours, which get thumbnails, and the rest are drawn at random.
    """
    if count <= size:
        rows = np.arange(count)
        return rows, rows
    starts = np.linspace(0, count - _RUN, _RUNS).astype(np.int64)
    runs = np.unique((starts[:, None] + np.arange(_RUN)).ravel())
    others = np.setdiff1d(np.arange(count), runs)
    drawn = np.random.default_rng(_SEED).choice(others, size - len(runs), replace=False)
    return np.sort(np.concatenate([runs, drawn])), runs


def project(vectors: Float32s, method: str = PCA) -> Projection:
    """Two dimensions of some vectors [N, D], scaled to length 1 before.

    Raises:
        MissingExtraError: UMAP is wanted and not installed.
    """
    normed = unit(vectors).astype(np.float64)
    if len(normed) < 4 or normed.shape[1] < 2:
        method = PCA
    points, explained = _umap(normed) if method == UMAP else _pca(normed)
    low, high = (points.min(axis=0), points.max(axis=0)) if len(points) else (np.zeros(2), np.ones(2))
    points = (points - low) / np.where(high > low, high - low, 1.0)
    return Projection(method, points[:, 0], points[:, 1], explained)


def _pca(vectors: Floats) -> tuple[Floats, tuple[float, float]]:
    if not len(vectors):
        return np.zeros((0, 2)), (0.0, 0.0)
    centred = vectors - vectors.mean(axis=0)
    values, axes = np.linalg.eigh(centred.T @ centred)
    axes = axes[:, ::-1][:, :2]
    if axes.shape[1] < 2:
        axes = np.pad(axes, ((0, 0), (0, 1)))
    # the sign of an axis is arbitrary: its largest part is positive, so that equal releases have equal maps
    sign = np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(2)])
    total = float(values.sum())
    shares = np.maximum(np.append(values[::-1], 0.0)[:2], 0.0) / (total if total > 0 else 1.0)
    return centred @ (axes * np.where(sign == 0, 1.0, sign)), (float(shares[0]), float(shares[1]))


def _umap(vectors: Floats) -> tuple[Floats, None]:
    make = require_umap()
    neighbours = min(15, len(vectors) - 1)
    made = make(n_neighbors=neighbours, metric="cosine", random_state=_SEED, n_jobs=1)
    return np.asarray(made.fit_transform(vectors), np.float64), None


def has_umap() -> bool:
    """Whether UMAP is installed; it is not imported, which takes seconds."""
    return importlib.util.find_spec("umap") is not None


def require_umap() -> Callable[..., Any]:
    """The class UMAP.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        from umap import UMAP as Reducer
    except ImportError:
        raise MissingExtraError(
            "the package 'umap-learn' is needed to draw the map with UMAP",
            fix="Install it with: pip install umap-learn",
        ) from None
    found: Callable[..., Any] = Reducer
    return found
