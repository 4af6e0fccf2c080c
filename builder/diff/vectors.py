"""How far the vectors moved from one release to another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from builder.diff.rows import EXAMPLES, shown_key
from sqid_lib.evaluation.arrays import Matrix
from sqid_lib.evaluation.cosine import unit
from sqid_lib.store import EmbeddingStore
from sqid_lib.tables.keys import key_strings

_BLOCK = 8_192  # pairs of vectors in memory
Rows: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True)
class VectorsDiff:
    """The vectors of one kind that both releases have.

    Attributes:
        name: "product text", "product image" or "query text".
        compared: pairs of vectors with the same key.
        changed: pairs in which any number differs.
        median, minimum: cosine of the pairs that changed; None if none did.
        worst: key and cosine of the pairs that moved most.
        gained, lost: keys of both releases that have a vector in the second, or in the first, alone.
    """

    name: str
    compared: int
    changed: int
    median: float | None
    minimum: float | None
    worst: tuple[tuple[str, float], ...]
    gained: int = 0
    lost: int = 0

    @property
    def same(self) -> bool:
        """Whether there is no difference."""
        return not (self.changed or self.gained or self.lost)


def compare_vectors(one: EmbeddingStore, other: EmbeddingStore) -> tuple[VectorsDiff, ...]:
    """Compare the vectors of two stores of the same width, for products and queries that both have."""
    keys, old, new = _common(key_strings(one.products), key_strings(other.products))
    had, has = np.asarray(one.has_image)[old], np.asarray(other.has_image)[new]
    both = np.flatnonzero(had & has)
    images = (keys.take(pa.array(both)), one.image_features, other.image_features, old[both], new[both])
    query_ids = (store.queries["query_id"].cast(pa.string()).combine_chunks() for store in (one, other))
    queries, old_query, new_query = _common(*query_ids)
    return (
        _compare("product text", keys, one.text_features, other.text_features, old, new),
        _compare("product image", *images, gained=int((~had & has).sum()), lost=int((had & ~has).sum())),
        _compare("query text", queries, one.query_features, other.query_features, old_query, new_query),
    )


def _common(one: pa.Array, other: pa.Array) -> tuple[pa.Array, Rows, Rows]:
    """The keys that both have, and their rows in each."""
    index = pc.index_in(one, value_set=other)
    old = np.flatnonzero(index.is_valid().to_numpy(zero_copy_only=False))
    return one.filter(index.is_valid()), old, index.drop_null().to_numpy().astype(np.int64)


def _compare(
    name: str, keys: pa.Array, one: Matrix, other: Matrix, old: Rows, new: Rows, gained: int = 0, lost: int = 0
) -> VectorsDiff:
    changed, cosines = [np.empty(0, np.int64)], [np.empty(0)]
    for start in range(0, len(old), _BLOCK):
        block = slice(start, start + _BLOCK)
        a, b = one[old[block]], other[new[block]]
        moved = np.flatnonzero((a != b).any(axis=1))
        changed.append(moved + start)
        cosines.append(np.einsum("ij,ij->i", unit(a[moved]).astype(np.float64), unit(b[moved]).astype(np.float64)))
    where, cosine = np.concatenate(changed), np.concatenate(cosines)
    worst = np.argsort(cosine, kind="stable")[:EXAMPLES]
    return VectorsDiff(
        name=name,
        compared=len(old),
        changed=len(where),
        median=float(np.median(cosine)) if len(cosine) else None,
        minimum=float(cosine.min()) if len(cosine) else None,
        worst=tuple((shown_key(keys[int(where[n])].as_py()), float(cosine[n])) for n in worst),
        gained=gained,
        lost=lost,
    )
