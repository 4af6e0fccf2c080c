"""Statistics of a release: rows, sizes, values and distinct keys of its configs, for the card and the manifest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sqid_lib import schemas
from sqid_lib.errors import CorruptFileError, MissingFileError
from sqid_lib.files import parse_shard_name
from sqid_lib.tables.keys import Increasing

_BATCH_ROWS = 8_192
_MAX_VALUE = 100  # characters; statuses and labels are short, a damaged file may hold anything


@dataclass(frozen=True)
class Split:
    """Files of one split of one config, in order; `memory` and `disk` in bytes, as Arrow tables and as parquet."""

    files: tuple[str, ...] = ()
    rows: int = 0
    memory: int = 0
    disk: int = 0

    def with_file(self, name: str, rows: int, memory: int, disk: int) -> Split:
        """The same split with one more file."""
        return Split((*self.files, name), self.rows + rows, self.memory + memory, self.disk + disk)


@dataclass(frozen=True)
class Statistics:
    """What the configs of a release contain.

    Attributes:
        splits: config → split → its files and sizes; configs and splits without rows are absent.
        columns: config → Arrow schema of its first file.
        statuses: config → image_status → rows, for configs that have one.
        labels: esci_label → judgments.
        counts: products, queries, judgments, supp → distinct keys, over all splits.
        gains: esci_label → its least and its greatest gain.
    """

    splits: Mapping[str, Mapping[str, Split]]
    columns: Mapping[str, pa.Schema]
    statuses: Mapping[str, Mapping[str, int]]
    labels: Mapping[str, int]
    counts: Mapping[str, int]
    gains: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def rows(self, config: str) -> int:
        """Rows of a config, over all splits."""
        return sum(split.rows for split in self.splits.get(config, {}).values())

    @property
    def width(self) -> int:
        """Floats in a vector; 0 where there are no vectors."""
        types = (field.type for schema in self.columns.values() for field in schema)
        return next((int(dtype.list_size) for dtype in types if pa.types.is_fixed_size_list(dtype)), 0)


def gather_statistics(release: Path) -> Statistics:
    """Read all configs of a release once; keys that are not sorted, or of several splits, are read once more.

    Raises:
        CorruptFileError: a parquet file cannot be read.
        MissingFileError: the default config has no rows.
    """
    splits: dict[str, dict[str, Split]] = {}
    columns: dict[str, pa.Schema] = {}
    statuses: dict[str, Counter[str]] = {config: Counter() for config in schemas.CONFIGS}
    labels: Counter[str] = Counter()
    gains: dict[str, tuple[float, float]] = {}
    orders: dict[tuple[str, str], Increasing] = {}
    for config in schemas.CONFIGS:
        for path in sorted((release / "data" / config).glob("*.parquet")):
            shard = parse_shard_name(path)
            if shard is None:
                continue
            try:
                with pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
                    rows = file.metadata.num_rows
                    if not rows:
                        continue
                    columns.setdefault(config, file.schema_arrow.remove_metadata())
                    counted = config in schemas.COUNTED.values()
                    order = orders.setdefault((config, shard.split), Increasing()) if counted else None
                    memory = _read(file, config, statuses[config], labels, gains, order)
            except (pa.ArrowException, OSError, KeyError) as error:
                raise CorruptFileError(f"not a parquet file of a release ({error})", where=path) from error
            name, before = path.relative_to(release).as_posix(), splits.setdefault(config, {}).get(shard.split, Split())
            splits[config][shard.split] = before.with_file(name, rows, memory, path.stat().st_size)
    if schemas.DEFAULT_CONFIG not in splits:
        raise MissingFileError("the default config has no rows", where=release / "data" / schemas.DEFAULT_CONFIG)
    found = {config: dict(sorted(counter.items())) for config, counter in statuses.items() if counter}
    counts = {
        name: _count_keys(release, config, splits.get(config, {}), [o for (of, _), o in orders.items() if of == config])
        for name, config in schemas.COUNTED.items()
    }
    return Statistics(splits, columns, found, dict(labels), counts, gains)


def _count_keys(release: Path, config: str, splits: Mapping[str, Split], orders: Sequence[Increasing]) -> int:
    """How many different keys a config has."""
    if len(splits) <= 1 and all(order.so_far for order in orders):
        return sum(split.rows for split in splits.values())
    files = [release / name for split in splits.values() for name in split.files]
    key = list(schemas.DECLARED[config].key)
    return distinct(pa.concat_tables([pq.read_table(path, columns=key, partitioning=None) for path in files]))


def distinct(keys: pa.Table) -> int:
    """How many different rows a table has."""
    return int(keys.group_by(keys.column_names).aggregate([]).num_rows) if keys.num_rows else 0


def count_values(column: Any, counter: Counter[str]) -> None:
    """Add the rows of each value of an Arrow column, cut after 100 characters, to `counter`."""
    for count in column.value_counts().to_pylist():
        counter[str(count["values"])[:_MAX_VALUE]] += count["counts"]


def widen_gains(rows: Any, gains: dict[str, tuple[float, float]]) -> None:
    """Take the gains of some judgments, an Arrow table or batch, into label → least and greatest gain."""
    table = pa.table({"label": rows["esci_label"], "gain": rows["gain"]})
    found = table.group_by("label", use_threads=False).aggregate([("gain", "min"), ("gain", "max")])
    for row in found.to_pylist():
        low, high = row["gain_min"], row["gain_max"]
        if low is not None:
            label = str(row["label"])[:_MAX_VALUE]
            before = gains.get(label, (low, high))
            gains[label] = (min(before[0], low), max(before[1], high))


def _read(
    file: pq.ParquetFile,
    config: str,
    statuses: Counter[str],
    labels: Counter[str],
    gains: dict[str, tuple[float, float]],
    order: Increasing | None,
) -> int:
    """Count into the counters and add the keys to `order`; returns the bytes of the rows as Arrow tables."""
    memory, key = 0, list(schemas.DECLARED[config].key)
    for batch in file.iter_batches(_BATCH_ROWS, use_threads=False):
        memory += batch.nbytes
        for column, counter in (("image_status", statuses), ("esci_label", labels)):
            if column in batch.schema.names:
                count_values(batch.column(column), counter)
        if config == schemas.JUDGMENTS and "gain" in batch.schema.names:
            widen_gains(batch, gains)
        if order is not None:
            order.add(pa.Table.from_batches([batch]).select(key))
    return memory
