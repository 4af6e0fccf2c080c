"""Every row of one config, read once: schema, layout, values, keys, order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from builder.release.statistics import Split, count_values, distinct, widen_gains
from builder.validate.keys import check_keys, check_unique
from builder.validate.layout import MAX_GROUP_BYTES, as_declared, check_layout, check_schema
from builder.validate.problem import Problem, Tally
from builder.validate.split_rows import Hashes, SplitRows, row_hashes
from builder.validate.values import (
    check_images,
    check_labels,
    check_nulls,
    check_own_labels,
    check_texts,
    check_vectors,
)
from builder.validate.vectors import EqualVectors, Matrix, hashes
from sqid_lib import schemas
from sqid_lib.errors import first_line
from sqid_lib.files import parse_shard_name
from sqid_lib.tables.vector_columns import read_pages

_MAX_ROWS = 50_000_000  # ESCI has 2.6 million judgments
_READABLE_GROUP_BYTES = 2_000_000_000  # a file with larger row groups is not read
_BATCH_ROWS = 8_192
_CLASSIC = ("image_url", "has_image")  # what the classic files state besides keys and vectors


class Scan:
    """One pass over the files of a config.

    Args:
        made_here: whether a build made the vectors; those of existing files may lack some images.
        partial: whether text vectors may be zeros.
        gains: every label that may occur, with its gain.
        sources: every `source` that a query may have; None for any.
        of_catalogue: whether the data is a shop's own: images need no URL, and labels may be numbers.
        kept: columns of a catalogue beside the declared ones.
        with_classic: whether classic files are compared with the rows.

    Attributes:
        splits: split → its files and sizes, of what could be read.
        columns: Arrow schema of the first file that could be read, None if none could.
        classic: what the classic files state, over all files, if it is wanted; vectors as `hash <column>`. Without
            files a table without rows.
        statuses, labels: value → rows. ends: label → its least and its greatest gain. locales: of products.
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
        with_classic: bool = False,
    ) -> None:
        self.release, self.config, self.made_here, self.gains = release, config, made_here, gains
        self._partial, self._sources = partial, sources
        self.of_catalogue, self.carried = of_catalogue, tuple(kept)
        self.splits: dict[str, Split] = {}
        self.columns: pa.Schema | None = None
        self.classic = pa.table({})
        self.locales: set[str] = set()
        self.statuses: Counter[str] = Counter()
        self.labels: Counter[str] = Counter()
        self.ends: dict[str, tuple[float, float]] = {}
        self.complete = False
        self._tally = Tally()
        self._whole = True
        self._declared = schemas.DECLARED[config]
        self._with_classic = with_classic
        self._files: dict[str, list[tuple[Path, list[str]]]] = {}  # split → files and their columns of declared types
        self._rows: dict[str, SplitRows] = {}
        self._unique: dict[str, list[Hashes]] = {name: [] for name in self._declared.unique}
        vectors = [column.name for column in self._declared.columns if column.type == schemas.VECTOR]
        self._equal = {name: EqualVectors(name) for name in vectors}

    def problems(self) -> Iterator[Problem]:
        """Read everything and yield what is wrong."""
        classic: list[pa.Table] = []
        for path in sorted((self.release / "data" / self.config).glob("*.parquet")):
            name = path.relative_to(self.release).as_posix()
            try:
                with pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
                    yield from self._file(file, path, name, classic)
            except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
                self._whole = False
                yield Problem("unreadable", name, f"not a complete parquet file ({first_line(error)})")
        if self._with_classic:
            self.classic = pa.concat_tables(classic, promote_options="default") if classic else self._no_rows()
        for rows in self._rows.values():
            rows.end()
        self.complete = self._whole
        yield from self._tally.problems()
        yield from self._keys()
        for vectors in self._equal.values():
            yield from vectors.problems(f"data/{self.config}")

    def rows_of(self, split: str) -> SplitRows:
        """What is kept of the rows of a split; of no rows if there is none."""
        if split not in self._rows:
            self._rows[split] = SplitRows(self.config, self.carried)
            self._rows[split].end()
        return self._rows[split]

    def table(self, columns: Sequence[str], split: str | None = None) -> pa.Table:
        """Some columns of a split, or of all, read again; those that no file has are left out."""
        files = [file for name, files in self._files.items() if split in (None, name) for file in files]
        declared = schemas.config_schema(self.config, kept=self.carried)
        if not files:
            return pa.schema([declared.field(name) for name in columns]).empty_table()
        tables = [
            pq.read_table(path, columns=[n for n in columns if n in names], partitioning=None) for path, names in files
        ]
        return pa.concat_tables(tables, promote_options="default")

    def distinct_keys(self) -> int | None:
        """How many different keys all splits have; None where a column of the key is missing."""
        if len(self.filled) <= 1 and all(rows.increasing for rows in self._rows.values()):
            return sum(split.rows for split in self.splits.values())
        keys = self.table(self._declared.key)
        return distinct(keys) if set(self._declared.key) <= set(keys.column_names) else None

    @property
    def filled(self) -> dict[str, Split]:
        """The splits that have rows: the others cannot be loaded."""
        return {name: split for name, split in self.splits.items() if split.rows}

    @property
    def present(self) -> bool:
        """Whether the config has rows, as far as is known."""
        return bool(self.filled) or not self.complete

    def _no_rows(self) -> pa.Table:
        declared = schemas.config_schema(self.config)
        hashed = [(f"hash {name}", pa.uint64()) for name in self._equal]
        return pa.schema([*(declared.field(name) for name in self._of_classic(declared.names)), *hashed]).empty_table()

    def _of_classic(self, names: Sequence[str]) -> list[str]:
        """Those of the columns that tell what the classic files state, besides the vectors."""
        return [name for name in dict.fromkeys([*self._declared.key, *_CLASSIC]) if name in names]

    def _file(self, file: pq.ParquetFile, path: Path, name: str, classic: list[pa.Table]) -> Iterator[Problem]:
        schema, metadata = file.schema_arrow, file.metadata
        yield from check_schema(schema, self._expected(self.columns or schema), name)
        yield from check_layout(metadata, path.stat().st_size, name)
        groups = [metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups)]
        if metadata.num_rows > _MAX_ROWS or max(groups, default=0) > _READABLE_GROUP_BYTES:
            self._whole = False
            yield Problem("unreadable", name, "far larger than a release can be: its rows were not read")
            return
        self.columns = self.columns or schema.remove_metadata()
        good = as_declared(schema, self._expected(schema))
        shard = parse_shard_name(path)
        split = shard.split if shard else ""
        self._files.setdefault(split, []).append((path, good))
        of_split = self._rows.setdefault(split, SplitRows(self.config, self.carried))
        memory = rows = 0
        for batch, size in _batches(file, path):
            memory += size
            columns = batch.select(good)
            vectors = self._batch(columns, name, rows)
            of_split.add(columns)
            if self._with_classic:
                hashed = {f"hash {column}": pa.chunked_array([hashes(values)]) for column, values in vectors.items()}
                classic.append(pa.table({n: columns[n] for n in self._of_classic(good)} | hashed))
            rows += batch.num_rows
        before = self.splits.get(split, Split())
        self.splits[split] = before.with_file(name, rows, memory, path.stat().st_size)

    def _batch(self, rows: pa.Table, name: str, start: int) -> dict[str, Matrix]:
        """Check a batch, of which only columns of the declared type are given; returns its vectors by column."""
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
        if "product_locale" in rows.column_names:
            self.locales.update(pc.unique(rows["product_locale"]).drop_null().to_pylist())
        for column in set(self._unique) & set(rows.column_names):
            self._unique[column].append(row_hashes(rows.select([column])))
        for column, matrix in vectors.items():
            self._equal[column].add(matrix, rows)
        return vectors

    def _expected(self, schema: pa.Schema) -> pa.Schema:
        """The declared schema, with vectors of the width that a file has."""
        widths = [field.type.list_size for field in schema if pa.types.is_fixed_size_list(field.type)]
        return schemas.config_schema(self.config, widths[0] if widths else schemas.PUBLISHED_WIDTH, self.carried)

    def _keys(self) -> Iterator[Problem]:
        """Keys are unique and sorted within a split: a product may be judged in several splits."""
        for column, parts in self._unique.items():
            numbers = np.sort(np.concatenate(parts)) if parts else np.zeros(0, np.uint64)
            parts.clear()
            if (numbers[1:] == numbers[:-1]).any():
                yield from check_unique(self.table([column]), f"data/{self.config}")
        key = self._declared.key
        for split, rows in self._rows.items():
            if not rows.increasing:
                keys = self.table(key, split)
                if set(key) <= set(keys.column_names):
                    yield from check_keys(keys.select(key), f"data/{self.config}/{split}-*")


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
            return [pool.submit(read_pages, path, metadata, group, name, MAX_GROUP_BYTES) for name in there]

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
