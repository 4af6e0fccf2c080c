"""The rows of one config in two releases: added, removed, and changed column by column.

Of each row its key and a 64-bit hash of each other value are in memory, never the texts. The few values that are shown
are read again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sqid_lib import schemas
from sqid_lib.tables.columns import is_list, plain_type
from sqid_lib.tables.reader import open_parquet, reporting

EXAMPLES = 3
SPLIT = "split"
Ints: TypeAlias = npt.NDArray[np.int64]
Shards: TypeAlias = tuple[tuple[str, Path], ...]  # (split, file)
_SEPARATOR = "\x1f"  # between the columns of a key; no id holds it


@dataclass(frozen=True)
class Keys:
    """How many rows, and the keys of the first ones."""

    count: int
    examples: tuple[str, ...]


@dataclass(frozen=True)
class Cell:
    """One value that changed."""

    key: str
    before: Any
    after: Any


@dataclass(frozen=True)
class Changed:
    """How many values of a column changed, and the first ones."""

    count: int
    examples: tuple[Cell, ...]


@dataclass(frozen=True)
class RowsDiff:
    """The rows of one config in two releases.

    Attributes:
        config: the config that was read.
        before, after: rows with different keys.
        added, removed: rows whose key only one release has.
        changed: column → its changes, of columns that both have; those without a change are left out.
        new_columns, lost_columns: columns that only one release has.
    """

    config: str
    before: int
    after: int
    added: Keys
    removed: Keys
    changed: Mapping[str, Changed]
    new_columns: tuple[str, ...]
    lost_columns: tuple[str, ...]

    @property
    def same(self) -> bool:
        """Whether there is no difference."""
        return not (self.added.count or self.removed.count or self.changed or self.new_columns or self.lost_columns)


@dataclass(frozen=True)
class Table:
    """One config of a release.

    Attributes:
        keys: string [N], each once: of a product in two splits, the first.
        number: int64 [N], row number over all files.
        cells: column → int64 [N], the hash of each value.
        statuses: image_status → rows.
    """

    config: str
    files: Shards
    keys: pa.Array
    number: Ints
    cells: Mapping[str, Ints]
    statuses: Counter[str]


def read_table(config: str, files: Shards) -> Table:
    """Read the keys and hash the other values, row group by row group.

    Raises:
        SourceError: a file is damaged or lacks a column of the key.
    """
    key = schemas.DECLARED[config].key
    names = _value_columns(config, files)
    keys: list[pa.Array] = []
    statuses: Counter[str] = Counter()
    cells: dict[str, list[Ints]] = {name: [] for name in names}
    if config == schemas.JUDGMENTS:
        cells[SPLIT] = []
    for split, table, _ in _row_groups(files, [*key, *names]):
        keys.append(_key_strings(table, key))
        if "image_status" in table.column_names:
            statuses.update(map(str, table["image_status"].to_pylist()))
        for name in names:
            there = name in table.column_names
            cells[name].append(_hashes(table[name].to_pylist()) if there else np.zeros(len(table), np.int64))
        if SPLIT in cells:
            cells[SPLIT].append(np.full(len(table), _hash(split)))
    found = pa.concat_arrays([pa.array([], pa.string()), *keys])
    codes = found.dictionary_encode().indices.to_numpy()
    number = np.sort(np.unique(codes, return_index=True)[1]).astype(np.int64)
    empty = np.empty(0, np.int64)
    values = {name: np.concatenate([empty, *parts])[number] for name, parts in cells.items()}
    return Table(config, files, found.take(pa.array(number)), number, values, statuses)


def compare_tables(one: Table, other: Table) -> RowsDiff:
    """What changed from `one` to `other`."""
    index = pc.index_in(one.keys, value_set=other.keys)
    old = np.flatnonzero(index.is_valid().to_numpy(zero_copy_only=False))
    new = index.drop_null().to_numpy().astype(np.int64)
    removed = one.keys.filter(index.is_null())
    added = other.keys.filter(pc.invert(pc.is_in(other.keys, value_set=one.keys)))
    changes = {}
    for name in one.cells:
        if name in other.cells:
            different = np.flatnonzero(one.cells[name][old] != other.cells[name][new])
            if len(different):
                changes[name] = different
    return RowsDiff(
        config=one.config,
        before=len(one.keys),
        after=len(other.keys),
        added=_keys(added),
        removed=_keys(removed),
        changed=_examples(one, other, {name: (old[d], new[d]) for name, d in changes.items()}),
        new_columns=tuple(name for name in other.cells if name not in one.cells),
        lost_columns=tuple(name for name in one.cells if name not in other.cells),
    )


def shown_key(key: str) -> str:
    """A key for people: "B00X (us)", "123", or "123 B00X (us)" of a judgment."""
    *first, last = key.split(_SEPARATOR)
    return " ".join([*first, f"({last})"]) if first else last


def _keys(keys: pa.Array) -> Keys:
    return Keys(len(keys), tuple(shown_key(key) for key in keys.slice(0, EXAMPLES).to_pylist()))


def _examples(one: Table, other: Table, changes: Mapping[str, tuple[Ints, Ints]]) -> dict[str, Changed]:
    """The changes of each column with the values of the first ones, which are read again."""
    few = {name: (old[:EXAMPLES], new[:EXAMPLES]) for name, (old, new) in changes.items()}
    before = _values(one, {name: one.number[old] for name, (old, _) in few.items()})
    after = _values(other, {name: other.number[new] for name, (_, new) in few.items()})
    found = {}
    for name, (old, new) in few.items():
        cells = (
            Cell(shown_key(one.keys[int(a)].as_py()), before[name, one.number[a]], after[name, other.number[b]])
            for a, b in zip(old, new, strict=True)
        )
        found[name] = Changed(len(changes[name][0]), tuple(cells))
    return found


def _values(table: Table, wanted: Mapping[str, Ints]) -> dict[tuple[str, int], Any]:
    """(column, row number) → value."""
    found: dict[tuple[str, int], Any] = {}
    rows = np.unique(np.concatenate([np.empty(0, np.int64), *wanted.values()]))
    columns = [name for name in wanted if name != SPLIT]
    for split, group, first in _row_groups(table.files, columns, rows) if len(rows) else ():
        for name, numbers in wanted.items():
            for number in numbers[(numbers >= first) & (numbers < first + len(group))].tolist():
                there = name in group.column_names
                value = split if name == SPLIT else group[name][number - first].as_py() if there else None
                found[name, number] = value
    return found


def _row_groups(files: Shards, columns: Iterable[str], rows: Ints | None = None) -> Iterator[tuple[str, pa.Table, int]]:
    """(split, rows, number of the first row) of each row group, or of those only that hold one of `rows`."""
    first, columns = 0, list(columns)
    for split, path in files:
        with open_parquet(path) as parquet:
            names = [name for name in columns if name in parquet.schema_arrow.names]
            for group in range(parquet.num_row_groups):
                size = parquet.metadata.row_group(group).num_rows
                if rows is None or ((rows >= first) & (rows < first + size)).any():
                    with reporting(f"{path}, row group {group}"):
                        table = parquet.read_row_group(group, columns=names or None)
                    yield split, table, first
                first += size


def _value_columns(config: str, files: Shards) -> list[str]:
    """Names of the columns of any file that hold neither the key nor vectors."""
    names: dict[str, None] = {}
    key = schemas.DECLARED[config].key
    needed = pa.schema([schemas.config_schema(config).field(name) for name in key])
    for _, path in files:
        with open_parquet(path, needed) as parquet:
            schema = parquet.schema_arrow
            names |= {f.name: None for f in schema if f.name not in key and not is_list(plain_type(f.type))}
    return list(names)


def _key_strings(table: pa.Table, key: tuple[str, ...]) -> pa.Array:
    columns = (table[name].cast(pa.string()).combine_chunks() for name in key)
    return pc.binary_join_element_wise(*columns, _SEPARATOR, null_handling="replace", null_replacement="")


def _hashes(values: list[Any]) -> Ints:
    return np.fromiter(map(_hash, values), np.int64, len(values))


def _hash(value: Any) -> int:
    """64 bits of a text or a number, the same within one process; 0 for None."""
    return 0 if value is None else hash(value if isinstance(value, str) else repr(value))
