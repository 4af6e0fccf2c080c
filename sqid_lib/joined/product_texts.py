"""Texts of chosen products from ESCI's products file, of which only the chosen rows are ever in memory."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sqid_lib import schemas
from sqid_lib.errors import EmptyFileError, IntegrityError, TextLengthError
from sqid_lib.files import File
from sqid_lib.tables.columns import filterable
from sqid_lib.tables.keys import duplicates, trimmed
from sqid_lib.tables.reader import conform, open_parquet, reporting

TEXT_ROWS_AT_ONCE = 400_000  # of about 1 KB each: a bound on memory, more rows cost another pass
TEXT_BYTES_AT_ONCE = 1 << 30  # of one column; Arrow's limit is 2 GiB
_BATCH_BYTES = 64 << 20
_BATCH_ROWS = 8_192  # of text: small enough for the processor's cache
_SLICE_ROWS = 16_384
_SPAN_ROWS = 131_072
_KEY = pa.schema([field for field in schemas.PRODUCTS_SCHEMA if field.name in schemas.PRODUCT_KEY])
_KEY_ROWS = 524_288  # of product keys: the hash table of wanted keys is built again for each batch


def locate_products(file: File, keys: pa.Table) -> np.ndarray:
    """For every row of the products file its position in `keys`, -1 where it is none: int32 [rows].

    Raises:
        DuplicateKeyError: one of the keys occurs twice in the file.
        IntegrityError: one of the keys does not occur.
    """
    with open_parquet(file, _KEY) as parquet, reporting(file.url):
        if not parquet.metadata.num_rows:
            raise EmptyFileError("the products file has no rows", where=file, fix="Fetch it again.")
        positions = _positions(parquet, keys, file.url)
    _check_positions(positions, keys, file.url)
    return positions


def product_texts(
    file: File,
    keys: pa.Table,
    columns: Sequence[str],
    *,
    kept: schemas.Kept = (),
) -> Iterator[pa.Table]:
    """Rows of the products file for `keys`, in the order of `keys`, in slices of at most 16,384; see `ProductTexts`."""
    yield from ProductTexts(file, keys, columns, kept=kept).between(0, keys.num_rows, _SLICE_ROWS)


class ProductTexts:
    """Texts of chosen products from the products file, in the order of `keys`.

    The keys of the file are read first and the texts after, a block of rows at once, so memory holds at most 400,000
    rows of text and 1 GiB of a column. The block that was read last is kept.

    Args:
        keys: product_id, product_locale; unique.
        columns: text columns wanted besides the two keys.
        positions: the result of `locate_products` for these keys, if it is known.
        kept: further columns of the file that are wanted, of any plain type.
    """

    def __init__(
        self,
        file: File,
        keys: pa.Table,
        columns: Sequence[str],
        *,
        positions: np.ndarray | None = None,
        kept: schemas.Kept = (),
    ) -> None:
        self._file, self._keys, self._positions = file, keys, positions
        self._schema = pa.schema([*(schemas.PRODUCTS_SCHEMA.field(c) for c in columns), *kept])
        self._rows = max(1, min(TEXT_ROWS_AT_ONCE, keys.num_rows))
        self._block: tuple[int, pa.Table, pa.Array] | None = None

    def between(self, start: int, stop: int, rows: int) -> Iterator[pa.Table]:
        """The rows of keys[start:stop], at most `rows` a table.

        Yields:
            Tables (product_id, product_locale, *columns, *kept), text null where ESCI has none.

        Raises:
            DuplicateKeyError, IntegrityError: as `locate_products`.
            TextLengthError: a text has more than `schemas.MAX_TEXT_BYTES`.
        """
        while start < stop:
            first, texts, order = self._block_of(start)
            chosen = order.slice(start - first, min(rows, stop - start))
            part, key = texts.take(chosen), self._keys.slice(start, len(chosen))
            yield pa.table([*key.columns, *part.columns], [*key.column_names, *self._schema.names])
            start += len(chosen)

    def _block_of(self, row: int) -> tuple[int, pa.Table, pa.Array]:
        """The block of a row: the number of its first row, its texts as they are in the file, and their order."""
        if self._block is not None and 0 <= row - self._block[0] < len(self._block[2]):
            return self._block
        self._block = None  # free the old block before the new one is read
        if self._positions is None:
            self._positions = locate_products(self._file, self._keys)
        while self._block is None:
            first = row // self._rows * self._rows
            stop = min(first + self._rows, self._keys.num_rows)
            try:
                texts, order = _gather_texts(self._file, self._positions, first, stop, self._schema, self._keys)
                self._block = (first, texts, order)
            except _TooManyBytes:
                self._rows = -(-(stop - first) // 2)
        return self._block


def are_known(file: File, keys: pa.Table) -> pa.Array:
    """Which of `keys` (product_id, product_locale) the products file holds: bool [n]."""
    with open_parquet(file, _KEY) as parquet, reporting(file.url):
        positions = _positions(parquet, keys, file.url)
    known = np.zeros(keys.num_rows, np.bool_)
    known[positions[positions >= 0]] = True
    return pa.array(known)


def _positions(parquet: Any, keys: pa.Table, where: str) -> np.ndarray:
    """For every row of the file its position in `keys`, -1 where it is none: int32 [rows]."""
    locales = keys.column("product_locale").combine_chunks()
    wanted = []  # per locale, its ids and their positions: joining id and locale of a million rows would be slower
    for locale in pc.unique(locales).to_pylist():
        places = np.flatnonzero(pc.equal(locales, locale).to_numpy(zero_copy_only=False)).astype(np.int32)
        wanted.append((locale, keys.column("product_id").take(places).combine_chunks(), places))
    parts = [np.zeros(0, np.int32)]
    for batch in parquet.iter_batches(_KEY_ROWS, columns=_KEY.names):
        table = trimmed(conform(pa.Table.from_batches([batch]), _KEY, where), where)
        positions = np.full(table.num_rows, -1, np.int32)
        for locale, ids, places in wanted:
            found = pc.index_in(table.column("product_id").combine_chunks(), value_set=ids)
            found = pc.if_else(pc.equal(table.column("product_locale").combine_chunks(), locale), found, None)
            there = pc.is_valid(found).to_numpy(zero_copy_only=False)
            positions[there] = places[found.drop_null().to_numpy()]
        parts.append(positions)
    return np.concatenate(parts)


def _check_positions(positions: np.ndarray, keys: pa.Table, where: str) -> None:
    counts = np.bincount(positions[positions >= 0], minlength=keys.num_rows)
    if (counts > 1).any():
        raise duplicates(keys.take(np.flatnonzero(counts > 1)[:3]), int((counts > 1).sum()), "product", where)
    absent = np.flatnonzero(counts == 0)
    if len(absent):
        shown = keys.take(absent[:3]).to_pylist()
        raise IntegrityError(
            f"{len(absent)} judged products are not in the products file",
            where=where,
            expected="every judged (product_locale, product_id)",
            got="none for " + ", ".join(f"({r['product_locale']}, {r['product_id']})" for r in shown),
            fix="Fetch examples and products of the same edition.",
        )


class _TooManyBytes(Exception):
    """These rows have more text than memory should hold."""


def _gather_texts(
    file: File, positions: np.ndarray, start: int, stop: int, schema: pa.Schema, keys: pa.Table
) -> tuple[pa.Table, pa.Array]:
    """Text rows whose position is in [start, stop), as they are in the file, and their order by position.

    Columns are read in parallel, the largest first: it would else be the last, and alone.

    Raises:
        _TooManyBytes: a column has more than TEXT_BYTES_AT_ONCE.
    """
    chosen = (positions >= start) & (positions < stop)
    held, lock, many = dict.fromkeys(schema.names, 0), threading.Lock(), stop - start > 1
    with open_parquet(file, schema) as parquet:
        groups = [parquet.metadata.row_group(g).num_rows for g in range(parquet.metadata.num_row_groups)]
        spans = _spans(groups, chosen)
        sizes = {name: sum(chunk.total_uncompressed_size for chunk in _chunks(parquet, name)) for name in schema.names}

    def read(name: str, groups: list[int], row: int, stop: int) -> list[pa.Array]:
        field = pa.schema([schema.field(name)])
        kept: list[pa.Array] = []
        with open_parquet(file, field) as parquet, reporting(file.url):
            rows = _batch_rows(parquet, groups, name)
            for batch in parquet.iter_batches(rows, row_groups=groups, columns=[name], use_threads=False):
                places = positions[row : row + batch.num_rows]
                mask = chosen[row : row + batch.num_rows]
                row += batch.num_rows
                if mask.any():
                    texts = conform(filterable(batch).filter(pa.array(mask)), field, file.url).column(0)
                    _check_lengths(texts, keys, places[mask], f"{file.url}: {name}")
                    kept.extend(texts.chunks)
                    with lock:
                        held[name] += texts.nbytes
                    if held[name] > TEXT_BYTES_AT_ONCE and many:
                        raise _TooManyBytes
                if row >= stop:  # no chosen row follows: the rest may be of other locales
                    break
        return kept

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        largest_first = sorted(schema.names, key=lambda name: -sizes[name])
        tasks = {name: [pool.submit(read, name, *span) for span in spans] for name in largest_first}

        def joined(name: str) -> pa.Array:
            """The column in one piece: rows taken from many pieces would be joined each time."""
            chunks = [chunk for task in tasks.pop(name) for chunk in task.result()]
            return pa.concat_arrays(chunks) if chunks else pa.array([], schema.field(name).type)

        columns = dict(zip(largest_first, pool.map(joined, largest_first), strict=True))
    texts = pa.table([columns[name] for name in schema.names], schema=schema)
    return texts, pa.array(np.argsort(positions[chosen], kind="stable"))


def _chunks(parquet: Any, name: str, groups: Sequence[int] | None = None) -> Iterator[Any]:
    """The metadata of a column in the row groups, by default in all."""
    for group in range(parquet.metadata.num_row_groups) if groups is None else groups:
        found = parquet.metadata.row_group(group)
        columns = map(found.column, range(found.num_columns))
        yield from (column for column in columns if column.path_in_schema == name)


def _batch_rows(parquet: Any, groups: Sequence[int], name: str) -> int:
    """How many rows of a text column to decode at once: fewer where texts are long."""
    chunks = _chunks(parquet, name, groups)
    sizes = [chunk.total_uncompressed_size / max(chunk.num_values, 1) for chunk in chunks]
    longest = max(sizes, default=0)
    return max(1, min(_BATCH_ROWS, int(_BATCH_BYTES / max(longest, 1))))


def _check_lengths(texts: pa.ChunkedArray, keys: pa.Table, places: np.ndarray, where: str) -> None:
    if not pa.types.is_string(texts.type):  # a kept column of numbers
        return
    lengths = pc.fill_null(pc.binary_length(texts), 0).to_numpy()
    if lengths.max(initial=0) > schemas.MAX_TEXT_BYTES:
        row = int(lengths.argmax())
        key = keys.slice(int(places[row]), 1).to_pylist()[0]
        raise TextLengthError(
            "a text is too long",
            where=where,
            expected=f"at most {schemas.MAX_TEXT_BYTES:,} bytes",
            got=f"{int(lengths[row]):,} bytes for product {key['product_id']} ({key['product_locale']})",
            fix="Shorten it, or leave the product out.",
        )


def _spans(rows: Sequence[int], chosen: np.ndarray) -> list[tuple[list[int], int, int]]:
    """Runs of row groups with chosen rows, about 131,072 rows each: (groups, first row, row after the last chosen)."""
    spans: list[tuple[list[int], int, int]] = []
    groups: list[int] = []
    first = at = 0
    for group, count in enumerate(rows):
        groups.append(group)
        at += count
        if at - first >= _SPAN_ROWS or group == len(rows) - 1:
            there = np.flatnonzero(chosen[first:at])
            if len(there):
                spans.append((groups, first, first + int(there[-1]) + 1))
            groups, first = [], at
    return spans
