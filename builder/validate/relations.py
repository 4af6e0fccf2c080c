"""Configs against each other: every reference exists, and shared columns have the same values."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from builder.validate.problem import Problem
from builder.validate.rows import Scan
from builder.validate.split_rows import Hashes, SplitRows, refers
from builder.validate.vectors import mask
from sqid_lib import schemas
from sqid_lib.tables.columns import one_piece

Unjudged = Collection[tuple[str, ...]]


@dataclass(frozen=True)
class _Rows:
    """The rows of some splits of a config."""

    scan: Scan
    splits: tuple[str, ...]

    def one(self) -> SplitRows | None:
        """What is kept of them, if they are one split."""
        return self.scan.rows_of(self.splits[0]) if len(self.splits) == 1 else None

    def table(self, columns: Sequence[str]) -> pa.Table:
        """Some of their columns, read again."""
        return pa.concat_tables([self.scan.table(columns, split) for split in self.splits or ("",)])


_Part = Mapping[str, _Rows]


def check_relations(scans: Mapping[str, Scan], *, unjudged: Unjudged = ()) -> Iterator[Problem]:
    """Compare all configs of each part of the release; those that could not be read whole are left out.

    Checksums and hashes show that configs agree. Where they do not, the columns are read again and compared by row.

    Args:
        unjudged: keys whose rows may be without a judgment: of products, of queries.
    """
    whole = {config: scan for config, scan in scans.items() if scan.complete}
    kept = next((scan.carried for scan in scans.values()), ())
    for part in _parts(whole):
        for other, config in combinations(part, 2):
            if set(schemas.DECLARED[other].key) <= set(schemas.DECLARED[config].names):
                yield from _compare(part, config, other, kept, unjudged)
            elif set(schemas.DECLARED[config].key) <= set(schemas.DECLARED[other].names):
                yield from _compare(part, other, config, kept, unjudged)
    if {schemas.SUPP, schemas.URLS} <= set(whole):
        yield from _apart(*(_every(whole[config]) for config in (schemas.SUPP, schemas.URLS)))


def _parts(scans: Mapping[str, Scan]) -> Iterator[_Part]:
    """The rows that belong together: those of each split, and those of the supplementary products."""
    main = {config: scan for config, scan in scans.items() if config != schemas.SUPP}
    splits = {split for scan in main.values() for split in scan.splits} - {schemas.SUPP_VECTORS_SPLIT}
    for split in sorted(splits):
        yield {config: _Rows(scan, (split,)) for config, scan in main.items()}
    with_vectors = [scan for scan in main.values() if schemas.SUPP_VECTORS_SPLIT in scan.splits]
    if schemas.SUPP in scans:
        of_supp = {scan.config: _Rows(scan, (schemas.SUPP_VECTORS_SPLIT,)) for scan in with_vectors}
        yield {schemas.SUPP: _every(scans[schemas.SUPP]), **of_supp}


def _every(scan: Scan) -> _Rows:
    return _Rows(scan, tuple(scan.splits))


def _apart(supp: _Rows, main: _Rows) -> Iterator[Problem]:
    """No product of `supp` is in `main`."""
    hashes = [[r.scan.rows_of(split).hashes[schemas.PRODUCT_KEY] for split in r.splits] for r in (supp, main)]
    if not any(len(np.intersect1d(one, two)) for one in hashes[0] for two in hashes[1]):
        return
    theirs, ours = (_keys(rows.table(schemas.PRODUCT_KEY), schemas.PRODUCT_KEY) for rows in (supp, main))
    if theirs is None or ours is None:
        return
    both = theirs.filter(pc.is_in(theirs, value_set=ours))
    if len(both):
        message = f"{len(both):,} supplementary products are in {schemas.URLS} too, first {_shown(both[0])}"
        yield Problem("integrity", f"data/{schemas.SUPP}", message)


def _compare(part: _Part, config: str, other: str, kept: schemas.Kept, unjudged: Unjudged) -> Iterator[Problem]:
    """Both configs have the same keys of `other`, and equal values in the columns they share; null equals null."""
    names = schemas.DECLARED[other].key
    shared = schemas.shared_columns(config, other, kept)
    left, right, both_ways = part[config], part[other], not (config == schemas.JUDGMENTS and names in unjudged)
    if _agree(left, right, (*names, *shared), both_ways=both_ways):
        return
    keys, known = (_keys(rows.table(names), names) for rows in (left, right))
    if keys is None or known is None:
        return
    things = next((n for n, counted in schemas.COUNTED.items() if schemas.DECLARED[counted].key == names), "keys")
    same = keys.equals(known)
    if not same:
        yield from _within(keys, known, things, config, other)
        if both_ways:
            yield from _within(known, keys, things, other, config)
        index = pc.index_in(keys, value_set=known)
        common = pc.is_valid(index)
        index, keys = index.filter(common), keys.filter(common)
    for name in shared:
        columns = [rows.table([name]) for rows in (left, right)]
        if any(name not in column.column_names for column in columns):
            continue
        one, two = (column[name] for column in columns)
        if not same:
            one, two = one.filter(common), two.take(index)
        if one.equals(two):  # far quicker than row by row
            continue
        different = ~_equal(one, two)
        if different.any():
            first = _shown(keys[int(np.flatnonzero(different)[0])])
            message = f"{name} differs from {other} in {int(different.sum()):,} rows, first {first}"
            yield Problem("inconsistent", f"data/{config}", message)


def _agree(left: _Rows, right: _Rows, names: tuple[str, ...], *, both_ways: bool) -> bool:
    """Whether it is certain, from what is kept, that the rows agree in these columns."""
    one, two = left.one(), right.one()
    if one is None or two is None:
        return False
    if refers(left.scan.config, right.scan.config):
        mine, theirs = one.hashes[names], two.hashes[names]
        return _among(mine, theirs) and (not both_ways or _among(theirs, mine))
    return all(one.checksums[name] == two.checksums[name] for name in names)


def _among(hashes: Hashes, others: Hashes) -> bool:
    """Whether all of the hashes are among others, both sorted."""
    places = np.searchsorted(others, hashes)
    return not len(hashes) or (places[-1] < len(others) and bool((others[places] == hashes).all()))


def _within(keys: pa.Array, others: pa.Array, things: str, config: str, other: str) -> Iterator[Problem]:
    absent = pc.unique(keys.filter(pc.invert(pc.is_in(keys, value_set=others)))).drop_null()
    if len(absent):
        message = f"{len(absent):,} {things} are not in {other}, first {_shown(absent[0])}"
        yield Problem("integrity", f"data/{config}", message)


def _equal(left: pa.ChunkedArray, right: pa.ChunkedArray) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """[N] bool; null equals null, NaN equals NaN."""
    same = pc.or_(pc.fill_null(pc.equal(left, right), False), pc.and_(pc.is_null(left), pc.is_null(right)))
    if pa.types.is_floating(left.type):
        same = pc.or_(same, pc.fill_null(pc.and_(pc.is_nan(left), pc.is_nan(right)), False))
    return mask(same)


def _keys(rows: pa.Table | None, names: tuple[str, ...]) -> pa.Array | None:
    """The key of each row as one text; None where a column of it is missing."""
    if rows is None or not set(names) <= set(rows.column_names):
        return None
    parts = [one_piece(rows[name].cast(pa.string())) for name in names]
    return parts[0] if len(parts) == 1 else pc.binary_join_element_wise(*parts, "\0")


def _shown(key: Any) -> str:
    return str(key.as_py()).replace("\0", " ")
