"""What the data of a release says of itself: rows, sizes, statuses and labels, for the card and its check."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from sqid_lib import schemas
from sqid_lib.errors import CorruptFileError
from sqid_lib.files import parse_shard_name

_BATCH_ROWS = 8_192


@dataclass(frozen=True)
class Split:
    """Files of one split of one config, in order; `memory` and `disk` in bytes, as Arrow tables and as parquet."""

    files: tuple[str, ...]
    rows: int
    memory: int
    disk: int


@dataclass(frozen=True)
class Facts:
    """What there is.

    Attributes:
        splits: config → split → its files and sizes; configs without files are absent.
        columns: config → Arrow schema of its first file.
        statuses: config → image_status → rows, for configs that have one.
        labels: esci_label → judgments.
        counts: products, queries, judgments, supp → how many different ones.
    """

    splits: Mapping[str, Mapping[str, Split]]
    columns: Mapping[str, pa.Schema]
    statuses: Mapping[str, Mapping[str, int]]
    labels: Mapping[str, int]
    counts: Mapping[str, int]

    def rows(self, config: str) -> int:
        return sum(split.rows for split in self.splits.get(config, {}).values())

    @property
    def width(self) -> int:
        """Floats in a vector; 0 where there are none."""
        for schema in self.columns.values():
            for field in schema:
                if pa.types.is_fixed_size_list(field.type):
                    return int(field.type.list_size)
        return 0


def gather(release: Path) -> Facts:
    """Read all configs of a release once, in little memory.

    Raises:
        CorruptFileError: a parquet file cannot be read.
    """
    splits: dict[str, dict[str, Split]] = {}
    columns: dict[str, pa.Schema] = {}
    statuses: dict[str, Counter[str]] = {}
    labels: Counter[str] = Counter()
    for config in schemas.CONFIGS:
        for path in sorted((release / "data" / config).glob("*.parquet")):
            shard = parse_shard_name(path)
            if shard is None:
                continue
            try:
                with pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
                    columns.setdefault(config, file.schema_arrow.remove_metadata())
                    memory = _read(file, statuses.setdefault(config, Counter()), labels)
                    rows = file.metadata.num_rows
            except (pa.ArrowException, OSError) as error:
                raise CorruptFileError(f"not a parquet file of ours ({error})", where=path) from error
            old = splits.setdefault(config, {}).get(shard.split, Split((), 0, 0, 0))
            name = path.relative_to(release).as_posix()
            disk = old.disk + path.stat().st_size
            splits[config][shard.split] = Split((*old.files, name), old.rows + rows, old.memory + memory, disk)
    found = {config: dict(sorted(counter.items())) for config, counter in statuses.items() if counter}
    return Facts(splits, columns, found, {label: labels[label] for label in schemas.LABELS}, counts(release))


def counts(release: Path) -> dict[str, int]:
    """How many different products, queries, judgments and supplementary products there are, over all splits.

    Raises:
        CorruptFileError: a parquet file cannot be read.
    """
    found = {}
    for name, config in schemas.COUNTED.items():
        paths = sorted((release / "data" / config).glob("*.parquet"))
        try:
            tables = [pq.read_table(path, columns=list(schemas.DECLARED[config].key)) for path in paths]
            found[name] = distinct(pa.concat_tables(tables)) if tables else 0
        except (pa.ArrowException, OSError, KeyError) as error:
            where = release / "data" / config
            raise CorruptFileError(f"not parquet files of ours ({error})", where=where) from error
    return found


def distinct(keys: pa.Table) -> int:
    """How many different rows a table has."""
    return int(keys.group_by(keys.column_names).aggregate([]).num_rows) if keys.num_rows else 0


def _read(file: pq.ParquetFile, statuses: Counter[str], labels: Counter[str]) -> int:
    """Count into the counters; returns the bytes of the rows as Arrow tables."""
    memory = 0
    for batch in file.iter_batches(_BATCH_ROWS, use_threads=False):
        memory += batch.nbytes
        for column, counter in (("image_status", statuses), ("esci_label", labels)):
            if column in batch.schema.names:
                for count in batch.column(column).value_counts().to_pylist():
                    counter[str(count["values"])] += count["counts"]
    return memory
