"""Every row of one config, read once: types, nulls, vectors, statuses, labels, keys, order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from builder.release.statistics import Split
from builder.validate.problem import Problem, Tally
from sqid_lib import schemas
from sqid_lib.files import parse_shard_name

Mask = np.ndarray[Any, np.dtype[np.bool_]]
Vectors = np.ndarray[Any, np.dtype[np.float32]]

_CLASSIC_COLUMNS = ("image_url", "has_image")  # which the classic files are compared by
_MAX_ROWS = 50_000_000  # ESCI has 2.6 million judgments
_MAX_GROUP_BYTES = 100_000_000
_MAX_SHARD_BYTES = 500_000_000
_READABLE_GROUP_BYTES = 2_000_000_000  # beyond this a file is not opened further
_BATCH_ROWS = 8_192


class Scan:
    """One pass over the files of a config.

    Args:
        made_here: whether the vectors come from a build; those of existing artifacts may lack some of their pictures.

    Attributes:
        splits: split → its files and sizes, of what could be read.
        columns: Arrow schema of the first file that could be read, None if none could.
        kept: the columns other checks compare, over all files; vectors as `hash <column>`, and `split`.
        statuses, labels: values → rows.
        complete: whether every file could be read to its end.
    """

    def __init__(self, release: Path, config: str, *, made_here: bool = True) -> None:
        self.release, self.config, self.made_here = release, config, made_here
        self.splits: dict[str, Split] = {}
        self.columns: pa.Schema | None = None
        self.kept = pa.table({})
        self.statuses: Counter[str] = Counter()
        self.labels: Counter[str] = Counter()
        self.complete = False
        self._tally = Tally()
        self._whole = True
        self._declared = schemas.DECLARED[config]
        self._nullable = {column.name for column in self._declared.columns if column.nullable}
        pairs = [pair for other in schemas.CONFIGS for pair in ((config, other), (other, config))]
        shared = (name for pair in pairs for name in schemas.shared_columns(*pair))
        always = (*self._declared.key, *self._declared.unique, *_CLASSIC_COLUMNS)
        self._compared = tuple(dict.fromkeys((*always, *shared)))

    @property
    def rows(self) -> int:
        return sum(split.rows for split in self.splits.values())

    def problems(self) -> Iterator[Problem]:
        """Read everything, then say what is wrong."""
        kept: list[pa.Table] = []
        for path in sorted((self.release / "data" / self.config).glob("*.parquet")):
            name = path.relative_to(self.release).as_posix()
            try:
                with pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
                    yield from self._file(file, path, name, kept)
            except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
                self._whole = False
                reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
                yield Problem("unreadable", name, f"not a whole parquet file ({reason})")
        self.kept = pa.concat_tables(kept, promote_options="default").combine_chunks() if kept else pa.table({})
        self.complete = self._whole
        yield from self._tally.problems()
        yield from self._keys()

    def _file(self, file: pq.ParquetFile, path: Path, name: str, kept: list[pa.Table]) -> Iterator[Problem]:
        schema = file.schema_arrow
        yield from self._schema(schema, name)
        yield from _layout(file.metadata, path.stat().st_size, name)
        groups = [file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups)]
        if file.metadata.num_rows > _MAX_ROWS or max(groups, default=0) > _READABLE_GROUP_BYTES:
            self._whole = False
            yield Problem("unreadable", name, "far larger than ESCI can be: its rows were not read")
            return
        self.columns = self.columns or schema.remove_metadata()
        good = [f.name for f in schema if self._wanted(f.name) and schema.names.count(f.name) == 1]
        good = [
            column for column in good if _like(schema.field(column).type, self._expected(schema).field(column).type)
        ]
        shard = parse_shard_name(path)
        split = shard.split if shard else ""
        memory = rows = 0
        for batch in file.iter_batches(_BATCH_ROWS, use_threads=False):
            memory += batch.nbytes
            columns = self._batch(pa.Table.from_batches([batch]).select(good), name, rows)
            kept.append(columns.append_column("split", pa.array([split] * batch.num_rows, pa.string())))
            rows += batch.num_rows
        old = self.splits.get(split, Split((), 0, 0, 0))
        disk = old.disk + path.stat().st_size
        self.splits[split] = Split((*old.files, name), old.rows + rows, old.memory + memory, disk)

    def _expected(self, schema: pa.Schema) -> pa.Schema:
        widths = [field.type.list_size for field in schema if pa.types.is_fixed_size_list(field.type)]
        return schemas.config_schema(self.config, widths[0] if widths else schemas.PUBLISHED_WIDTH)

    def _wanted(self, column: str) -> bool:
        return column in schemas.config_schema(self.config).names

    def _schema(self, schema: pa.Schema, name: str) -> Iterator[Problem]:
        expected = self._expected(self.columns or schema)
        for field in expected:
            if field.name not in schema.names:
                yield Problem("schema", name, f"column {field.name} is missing")
            elif schema.names.count(field.name) != 1:
                yield Problem("schema", name, f"column {field.name} is there twice")
            elif schema.field(field.name).type != field.type:
                yield Problem(
                    "schema", name, f"column {field.name} is {schema.field(field.name).type}, not {field.type}"
                )
        for column in schema.names:
            if column not in expected.names:
                yield Problem("schema", name, f"column {column} does not belong here")
        if schema.names != expected.names and sorted(schema.names) == sorted(expected.names):
            yield Problem("schema", name, "columns are in another order than declared")
        if b"huggingface" in (schema.metadata or {}):
            yield Problem("schema", name, "holds metadata of datasets, which other generations of it refuse")

    # -- one batch ------------------------------------------------------------------------------------------------

    def _batch(self, rows: pa.Table, name: str, start: int) -> pa.Table:
        """Check a batch; returns the columns to keep."""
        have = rows.column_names
        key = [name for name in self._declared.key if name in have]

        def bad(code: str, message: str, mask: Any) -> None:
            found = np.flatnonzero(np.asarray(mask, dtype=bool))
            if len(found):
                values = ", ".join(f"{column} {rows[column][int(found[0])].as_py()}" for column in key)
                shown = f" ({values})" if values else ""
                self._tally.add(code, name, message, len(found), f"at row {start + int(found[0])}{shown}")

        for column in have:
            if column not in self._nullable:
                bad("null", f"{column} is null", _mask(pc.is_null(rows[column])))
        kept = {column: rows[column] for column in self._compared if column in have}
        real: dict[str, Mask] = {}
        for column in schemas.VECTOR_COLUMNS:
            if column in have:
                vectors, null = _vectors(rows[column])
                finite = np.isfinite(vectors).all(axis=1)
                bad("null", f"{column} holds a null number", null)
                bad("non-finite", f"{column} is not finite", ~finite & ~null)
                real[column] = (vectors != 0).any(axis=1)
                kept[f"hash {column}"] = pa.chunked_array([hashes(vectors)])
        self._statuses(rows, real, bad)
        self._labels(rows, bad)
        return pa.table(kept)

    def _statuses(self, rows: pa.Table, real: dict[str, Mask], bad: Callable[[str, str, Any], None]) -> None:
        have = rows.column_names
        image = _mask(rows["has_image"]) if "has_image" in have else None
        if image is not None and "clip_image_features" in real:
            vector = real["clip_image_features"]
            bad("has-image", "has_image is true and the image vector is zero", image & ~vector)
            bad("has-image", "has_image is false and the image vector is not zero", ~image & vector)
        if "image_status" not in have:
            return
        status = rows["image_status"]
        self._count(status, self.statuses)
        bad("image-status", "unknown image_status", _mask(pc.invert(_among(status, tuple(schemas.IMAGE_STATUS)))))
        if image is not None and self.made_here:
            shown = (schemas.OK, schemas.GENERIC, schemas.PLACEHOLDER)
            bad("status-image", "image_status is ok and has_image is false", _mask(_among(status, ("ok",))) & ~image)
            bad(
                "status-image",
                "image_status tells of a failure and has_image is true",
                ~_mask(_among(status, shown)) & image,
            )
        if "image_url" in have:
            url = _mask(pc.is_valid(rows["image_url"]))
            needed = _mask(_among(status, (schemas.OK, schemas.GENERIC, schemas.PLACEHOLDER)))
            bad("status-url", "image_status says there is an url and there is none", needed & ~url)
            bad("status-url", "image_status is missing and there is an url", _mask(_among(status, ("missing",))) & url)

    def _labels(self, rows: pa.Table, bad: Callable[[str, str, Any], None]) -> None:
        if "esci_label" not in rows.column_names:
            return
        label = rows["esci_label"]
        self._count(label, self.labels)
        known = _mask(_among(label, tuple(schemas.LABELS)))
        bad("label", f"esci_label is not one of {', '.join(schemas.LABELS)}", ~known)
        if "gain" in rows.column_names:
            gains = pa.array(list(schemas.GAINS.values()), pa.float32())
            index = pc.index_in(label, value_set=pa.array(list(schemas.GAINS)))
            right = pc.fill_null(pc.equal(gains.take(index.combine_chunks()), rows["gain"].combine_chunks()), False)
            bad("gain", "gain is not that of the label", known & ~_mask(right))

    def _count(self, column: pa.ChunkedArray, counter: Counter[str]) -> None:
        for count in pc.value_counts(column).to_pylist():
            counter[str(count["values"])[:100]] += count["counts"]

    # -- all rows -------------------------------------------------------------------------------------------------

    def _keys(self) -> Iterator[Problem]:
        """Keys are unique and sorted within a split; a product may be judged in several splits."""
        names = self.kept.column_names
        for column in set(self._declared.unique) & set(names):
            yield from _unique(self.kept.select([column]), f"data/{self.config}")
        key = self._declared.key
        if not set(key) <= set(names):
            return
        for split in self.splits:
            where = f"data/{self.config}/{split}-*"
            rows = self.kept.filter(pc.equal(self.kept["split"], split))
            yield from _unique(rows.select(key), where)
            wrong = _descents(rows.select(key))
            if len(wrong):
                message = f"rows are not sorted by {', '.join(key)}: first at row {int(wrong[0]) + 1}"
                yield Problem("order", where, message)


def hashes(vectors: Vectors) -> pa.Array:
    """[N, D] → one uint64 a row, equal for equal bits; a fingerprint, not a defence."""
    bits = np.ascontiguousarray(vectors, np.float32).view(np.uint32)
    random = np.random.default_rng(0)
    weights = np.asarray(random.integers(0, 2**64, size=bits.shape[1], dtype=np.uint64), np.uint64) | 1
    total = np.zeros(len(bits), np.uint64)
    for column in range(bits.shape[1]):
        total += bits[:, column] * weights[column]  # wraps, as meant
    return pa.array(total)


def _layout(metadata: pq.FileMetaData, size: int, name: str) -> Iterator[Problem]:
    if size > _MAX_SHARD_BYTES:
        yield Problem("layout", name, f"{size:,} bytes; a shard has at most {_MAX_SHARD_BYTES:,}")
    for i in range(metadata.num_row_groups):
        if metadata.row_group(i).total_byte_size > _MAX_GROUP_BYTES:
            found = metadata.row_group(i).total_byte_size
            yield Problem("layout", name, f"row group {i} has {found:,} bytes, more than {_MAX_GROUP_BYTES:,}")
            return


def _unique(keys: pa.Table, where: str) -> Iterator[Problem]:
    counts = keys.group_by(keys.column_names, use_threads=False).aggregate([([], "count_all")])
    again = counts.filter(pc.greater(counts["count_all"], 1))
    if again.num_rows:
        first = ", ".join(str(again[name][0].as_py()) for name in keys.column_names)
        names = ", ".join(keys.column_names)
        yield Problem("duplicate-key", where, f"{again.num_rows:,} keys ({names}) occur more than once, first {first}")


def _descents(keys: pa.Table) -> np.ndarray[Any, Any]:
    """Rows that are smaller than the row before them, minus one."""
    if keys.num_rows < 2:
        return np.array([], int)
    smaller = np.zeros(keys.num_rows - 1, bool)
    equal = np.ones(keys.num_rows - 1, bool)
    for column in keys.columns:
        before, after = column.slice(0, keys.num_rows - 1).combine_chunks(), column.slice(1).combine_chunks()
        smaller |= equal & _mask(pc.less(after, before))
        equal &= _mask(pc.equal(after, before))
    return np.flatnonzero(smaller)


def _like(got: pa.DataType, expected: pa.DataType) -> bool:
    if pa.types.is_fixed_size_list(expected):
        return bool(pa.types.is_fixed_size_list(got) and got.value_type == expected.value_type)
    return bool(got == expected)


def _vectors(column: pa.ChunkedArray) -> tuple[Vectors, Mask]:
    """[N, D] float32 and which rows are null or hold a null; those are zeros."""
    array = column.combine_chunks()
    array = array.chunk(0) if isinstance(array, pa.ChunkedArray) else array
    size = array.type.list_size
    values = array.values.slice(array.offset * size, len(array) * size)
    null = _mask(pc.is_null(array))
    if values.null_count:
        null |= _mask(pc.is_null(values)).reshape(-1, size).any(axis=1)
        values = pc.fill_null(values, 0.0)
    vectors = values.to_numpy(zero_copy_only=False).reshape(-1, size)
    if null.any():
        vectors = np.where(null[:, None], np.float32(0), vectors)
    return vectors, null


def _among(column: pa.ChunkedArray, values: tuple[str, ...]) -> pa.ChunkedArray:
    return pc.is_in(column, value_set=pa.array(values))


def _mask(array: Any) -> Mask:
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    return np.asarray(pc.fill_null(array, False).to_numpy(zero_copy_only=False), dtype=bool)
