"""How a method ranks the whole catalogue: what `retrieval` runs for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sqid_lib.evaluation.arrays import Float32s, Floats, Ints


@dataclass(frozen=True)
class Search:
    """Queries whose score of a product is a dot product of vectors.

    Attributes:
        rows: int64 [n], the queries as rows of the store.
        queries: float32 [n, D] of unit length.
        products: product rows [m] of the store → their vectors, float32 [m, D].
        is_portable: whether it pickles as names of files, so that other processes can search without a copy.
    """

    rows: Ints
    queries: Float32s
    products: Callable[[Ints], Float32s]
    is_portable: bool = False


@dataclass(frozen=True)
class Scan:
    """Queries whose scores of all products are computed one query at a time.

    Attributes:
        rows: int64 [n], the queries as rows of the store.
        scores: row of a query → its scores of all products of the store, float64 [P]; -inf where a product is not
            retrieved.
    """

    rows: Ints
    scores: Callable[[int], Floats]


@dataclass(frozen=True)
class RankFusion:
    """The reciprocal rank fusion of the rankings of other methods, by name."""

    methods: tuple[str, ...]
