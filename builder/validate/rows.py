"""Every row of one config, read once: schema, layout, values, keys, order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from builder.release.files import MAX_SHARD_BYTES
from builder.release.statistics import Split, count_values, widen_gains
from builder.validate.keys import check_keys, check_unique
from builder.validate.problem import Problem, Tally
from builder.validate.values import (
    check_images,
    check_labels,
    check_nulls,
    check_own_labels,
    check_texts,
    check_vectors,
)
from builder.validate.vectors import check_distinct, hashes
from sqid_lib import schemas
from sqid_lib.errors import first_line
from sqid_lib.files import parse_shard_name
from sqid_lib.tables.vector_columns import read_pages

_MAX_ROWS = 50_000_000  # ESCI has 2.6 million judgments
_MAX_GROUP_BYTES = 100_000_000
_READABLE_GROUP_BYTES = 2_000_000_000  # a file with larger row groups is not read
_BATCH_ROWS = 8_192


class Scan:
    """One pass over the files of a config.

    Args:
        made_here: whether a build made the vectors; those of existing files may lack some images.
        partial: whether text vectors may be zeros.
        gains: every label that may occur, with its gain.
        sources: every `source` that a query may have; None for any.
        of_catalogue: whether the data is a shop's own: images need no URL, and labels may be numbers.
        kept: columns of a catalogue beside the declared ones.

    Attributes:
        splits: split → its files and sizes, of what could be read.
        columns: Arrow schema of the first file that could be read, None if none could.
        kept: the columns other checks compare, over all files; vectors as `hash <column>`, and `split`. Without files
            a table without rows.
        statuses, labels: value → rows. ends: label → its least and its greatest gain.
        complete: whether every file could be read to its end.
    """

    def __init__(
        self,
        release: Path,
        config: str,
        *,
        made_here: bool = True,
        partial: bool = False,
        gains: Mapping[str, float] = schemas.GAINS,
        sources: Collection[str] | None = None,
        of_catalogue: bool = False,
        kept: schemas.Kept = (),
    ) -> None:
        self.release, self.config, self.made_here, self.gains = release, config, made_here, gains
        self._partial, self._sources = partial, sources
        self.of_catalogue, self.carried = of_catalogue, tuple(kept)
        self.splits: dict[str, Split] = {}
        self.columns: pa.Schema | None = None
        self.kept = pa.table({})
        self.statuses: Counter[str] = Counter()
        self.labels: Counter[str] = Counter()
        self.ends: dict[str, tuple[float, float]] = {}
        self.complete = False
        self._tally = Tally()
        self._whole = True
        self._declared = schemas.DECLARED[config]
        self._compared = _compared(config, self.carried)

    def problems(self) -> Iterator[Problem]:
        """Read everything and yield what is wrong."""
        kept: list[pa.Table] = []
        for path in sorted((self.release / "data" / self.config).glob("*.parquet")):
            name = path.relative_to(self.release).as_posix()
            try:
                with pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
                    yield from self._file(file, path, name, kept)
            except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
                self._whole = False
                yield Problem("unreadable", name, f"not a complete parquet file ({first_line(error)})")
        self.kept = pa.concat_tables(kept, promote_options="default") if kept else self._no_rows()
        self.complete = self._whole
        yield from self._tally.problems()
        yield from self._keys()
        yield from check_distinct(self.kept, f"data/{self.config}")

    @property
    def filled(self) -> dict[str, Split]:
        """The splits that have rows: the others cannot be loaded."""
        return {name: split for name, split in self.splits.items() if split.rows}

    @property
    def present(self) -> bool:
        """Whether the config has rows, as far as is known."""
        return bool(self.filled) or not self.complete

    def _no_rows(self) -> pa.Table:
        declared = schemas.config_schema(self.config, kept=self.carried)
        vectors = [(f"hash {f.name}", pa.uint64()) for f in declared if pa.types.is_fixed_size_list(f.type)]
        plain = [declared.field(name) for name in self._compared]
        return pa.schema([*plain, *vectors, ("split", pa.string())]).empty_table()

    def _file(self, file: pq.ParquetFile, path: Path, name: str, kept: list[pa.Table]) -> Iterator[Problem]:
        schema, metadata = file.schema_arrow, file.metadata
        yield from _schema(schema, self._expected(self.columns or schema), name)
        yield from _layout(metadata, path.stat().st_size, name)
        groups = [metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups)]
        if metadata.num_rows > _MAX_ROWS or max(groups, default=0) > _READABLE_GROUP_BYTES:
            self._whole = False
            yield Problem("unreadable", name, "far larger than a release can be: its rows were not read")
            return
        self.columns = self.columns or schema.remove_metadata()
        good = _as_declared(schema, self._expected(schema))
        shard = parse_shard_name(path)
        split = shard.split if shard else ""
        memory = rows = 0
        for batch, size in _batches(file, path):
            memory += size
            columns = self._batch(batch.select(good), name, rows)
            kept.append(columns.append_column("split", pa.array([split] * batch.num_rows, pa.string())))
            rows += batch.num_rows
        before = self.splits.get(split, Split())
        self.splits[split] = before.with_file(name, rows, memory, path.stat().st_size)

    def _batch(self, rows: pa.Table, name: str, start: int) -> pa.Table:
        """Check a batch, of which only columns of the declared type are given; returns the columns to keep."""
        key = [column for column in self._declared.key if column in rows.column_names]

        def report(code: str, message: str, mask: Any) -> None:
            found = np.flatnonzero(np.asarray(mask, dtype=bool))
            if len(found):
                values = ", ".join(f"{column} {rows[column][int(found[0])].as_py()}" for column in key)
                shown = f" ({values})" if values else ""
                self._tally.add(code, name, message, len(found), f"at row {start + int(found[0])}{shown}")

        check_nulls(rows, self.config, report)
        check_texts(rows, self._sources, report)
        vectors = check_vectors(rows, self.config, self._partial, report)
        check_images(rows, vectors, self.made_here, report, of_catalogue=self.of_catalogue)
        if self.of_catalogue:
            check_own_labels(rows, self.gains, report)
        else:
            check_labels(rows, self.gains, report)
        if self.config == schemas.JUDGMENTS and {"esci_label", "gain"} <= set(rows.column_names):
            widen_gains(rows, self.ends)
        for column, counter in (("image_status", self.statuses), ("esci_label", self.labels)):
            if column in rows.column_names:
                count_values(rows[column], counter)
        kept = {column: rows[column] for column in self._compared if column in rows.column_names}
        kept |= {f"hash {column}": pa.chunked_array([hashes(values)]) for column, values in vectors.items()}
        return pa.table(kept)

    def _expected(self, schema: pa.Schema) -> pa.Schema:
        """The declared schema, with vectors of the width that a file has."""
        widths = [field.type.list_size for field in schema if pa.types.is_fixed_size_list(field.type)]
        return schemas.config_schema(self.config, widths[0] if widths else schemas.PUBLISHED_WIDTH, self.carried)

    def _keys(self) -> Iterator[Problem]:
        """Keys are unique and sorted within a split: a product may be judged in several splits."""
        names = self.kept.column_names
        for column in set(self._declared.unique) & set(names):
            yield from check_unique(self.kept.select([column]), f"data/{self.config}")
        key = self._declared.key
        if not set(key) <= set(names):
            return
        for split in self.splits:
            rows = self.kept.select(key).filter(pc.equal(self.kept["split"], split))
            yield from check_keys(rows, f"data/{self.config}/{split}-*")


def _batches(file: pq.ParquetFile, path: Path) -> Iterator[tuple[pa.Table, int]]:
    """All rows of a file, and their bytes in memory; while a row group is checked, the next one's vectors are read."""
    schema, metadata = file.schema_arrow, file.metadata
    vectors = [field.name for field in schema if pa.types.is_fixed_size_list(field.type)]
    if not vectors or len(set(schema.names)) < len(schema.names):
        yield from ((pa.Table.from_batches([batch]), batch.nbytes) for batch in file.iter_batches(_BATCH_ROWS))
        return
    others = [name for name in schema.names if name not in vectors]
    with ThreadPoolExecutor(len(vectors)) as pool:

        def submit(group: int) -> list[Future[pa.Array | None]]:
            there = vectors if group < metadata.num_row_groups else []
            return [pool.submit(read_pages, path, metadata, group, name, _MAX_GROUP_BYTES) for name in there]

        ahead = submit(0)
        for group in range(metadata.num_row_groups):
            lists = [column for task in ahead if (column := task.result()) is not None]
            ahead = submit(group + 1)
            if len(lists) < len(vectors):
                batches = file.iter_batches(_BATCH_ROWS, row_groups=[group])
                yield from ((pa.Table.from_batches([batch]), batch.nbytes) for batch in batches)
                continue
            table = file.read_row_group(group, columns=others, use_threads=False)
            for name, column in zip(vectors, lists, strict=True):
                table = table.append_column(name, column)
            bitmaps = sum(column.nbytes // 32 for column in lists)  # a bit for each float, where pyarrow reads them
            yield table.select(schema.names), table.nbytes + bitmaps


def _compared(config: str, kept: schemas.Kept) -> tuple[str, ...]:
    """Columns that checks between files compare: keys, what configs share, and what the classic files may state.

    urls and supp have no product in common, so their texts are not kept.
    """
    declared = schemas.DECLARED[config]
    others = [other for other in schemas.CONFIGS if {config, other} != {schemas.URLS, schemas.SUPP}]
    pairs = [pair for other in others for pair in ((config, other), (other, config))]
    shared = [name for pair in pairs for name in schemas.shared_columns(*pair, kept)]
    own = [column.name for column in declared.columns if not column.origin and column.type != schemas.VECTOR]
    return tuple(dict.fromkeys((*declared.key, *declared.unique, *shared, *own)))


def _as_declared(schema: pa.Schema, expected: pa.Schema) -> list[str]:
    """Columns that are there once and have the declared type; vectors may have any width."""

    def alike(got: pa.DataType, wanted: pa.DataType) -> bool:
        if pa.types.is_fixed_size_list(wanted):
            return bool(pa.types.is_fixed_size_list(got) and got.value_type == wanted.value_type)
        return bool(got == wanted)

    once = [field for field in schema if field.name in expected.names and schema.names.count(field.name) == 1]
    return [field.name for field in once if alike(field.type, expected.field(field.name).type)]


def _schema(schema: pa.Schema, expected: pa.Schema, name: str) -> Iterator[Problem]:
    for field in expected:
        if field.name not in schema.names:
            yield Problem("schema", name, f"column {field.name} is missing")
        elif schema.names.count(field.name) != 1:
            yield Problem("schema", name, f"column {field.name} occurs twice")
        elif schema.field(field.name).type != field.type:
            yield Problem("schema", name, f"column {field.name} is {schema.field(field.name).type}, not {field.type}")
    for column in schema.names:
        if column not in expected.names:
            yield Problem("schema", name, f"column {column} is not declared")
    if schema.names != expected.names and sorted(schema.names) == sorted(expected.names):
        yield Problem("schema", name, "columns are in another order than declared")
    if b"huggingface" in (schema.metadata or {}):
        yield Problem("schema", name, "holds metadata of datasets, which other generations of datasets refuse")


def _layout(metadata: pq.FileMetaData, size: int, name: str) -> Iterator[Problem]:
    if size > MAX_SHARD_BYTES:
        yield Problem("layout", name, f"{size:,} bytes; a shard has at most {MAX_SHARD_BYTES:,}")
    for i in range(metadata.num_row_groups):
        if metadata.row_group(i).total_byte_size > _MAX_GROUP_BYTES:
            found = metadata.row_group(i).total_byte_size
            yield Problem("layout", name, f"row group {i} has {found:,} bytes, more than {_MAX_GROUP_BYTES:,}")
            return
