"""Uncertainty of a mean over queries: bootstrap intervals and a paired randomisation test."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from sqid_lib.evaluation.arrays import Floats

_BLOCK_CELLS = 4_000_000  # resampled queries held at once


def bootstrap_means(values: Floats, resamples: int, seed: int) -> Floats:
    """Means over queries drawn with replacement; every column sees the same draws.

    Args:
        values: float64 [Q, K].

    Returns:
        float64 [resamples, K].
    """
    queries = len(values)
    rng = np.random.default_rng(seed)
    means = []
    for size in _blocks(resamples, queries):
        drawn = rng.integers(queries, size=(size, queries)) + queries * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * queries).reshape(size, queries)
        means.append(counts @ values / queries)
    return np.concatenate(means)


def interval(means: Floats) -> tuple[Floats, Floats]:
    """The 2.5th and 97.5th percentile of each column: the percentile bootstrap's 95 % interval."""
    low, high = np.quantile(means, [0.025, 0.975], axis=0)
    return low, high


def paired_p_values(differences: Floats, flips: int, seed: int) -> Floats:
    """Two-sided randomisation test of mean difference 0: signs of the per-query differences are flipped at random.

    Smucker, Allan and Carterette 2007; p = (1 + as extreme) / (1 + flips), never 0.

    Args:
        differences: float64 [Q, K].

    Returns:
        float64 [K].
    """
    observed = np.abs(differences.sum(axis=0))
    slack = 1e-12 * np.abs(differences).sum(axis=0)  # equal sums added in another order still count as equal
    rng = np.random.default_rng(seed)
    extreme = np.zeros(differences.shape[1])
    for size in _blocks(flips, len(differences)):
        signs = rng.integers(2, size=(size, len(differences)), dtype=np.int8) * 2.0 - 1.0
        extreme += (np.abs(signs @ differences) >= observed - slack).sum(axis=0)
    return (1 + extreme) / (1 + flips)


def _blocks(total: int, queries: int) -> Iterator[int]:
    block = max(1, _BLOCK_CELLS // queries)
    for start in range(0, total, block):
        yield min(block, total - start)
