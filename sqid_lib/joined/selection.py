"""Which judgments, queries and products of ESCI a selection has; used by the builder and the loader."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sqid_lib import schemas
from sqid_lib.errors import EmptyFileError, IntegrityError, LabelError, SchemaError, UsageError
from sqid_lib.files import File
from sqid_lib.tables.keys import check_unique, duplicates
from sqid_lib.tables.reader import conform, open_parquet, read_csv, reporting

_BATCH_ROWS = 8_192  # of text: small enough for the processor's cache
TEXT_ROWS_AT_ONCE = 400_000  # of about 1 KB each: a bound on memory, more rows cost another pass
_SLICE_ROWS = 16_384
_SPAN_ROWS = 131_072
_KEY = pa.schema([field for field in schemas.PRODUCTS_SCHEMA if field.name in schemas.PRODUCT_KEY])
_KEY_ROWS = 524_288  # of product keys: each batch builds the table of wanted ones anew


@dataclass(frozen=True)
class Selection:
    """Which part of ESCI is used. The defaults are the published selection.

    Attributes:
        version: "small" (Task 1) or "large".
        splits: ESCI splits whose judgments make the main part.
        locales: product locales; any that the examples file has.
        supp_min_judgments: a supplementary product is outside the main part and in at least so many judgments
            of the same version and locales, in any split.
        embed_supp: give supplementary products vectors too (the published ones have none).
        labels: every label that may occur, with its gain.
    """

    version: str = "small"
    splits: tuple[str, ...] = ("test",)
    locales: tuple[str, ...] = (schemas.CLASSIC_LOCALE,)
    supp_min_judgments: int = 2
    embed_supp: bool = False
    labels: tuple[tuple[str, float], ...] = tuple(schemas.GAINS.items())

    def __post_init__(self) -> None:
        for name, values, known in (
            ("version", (self.version,), schemas.VERSIONS),
            ("splits", self.splits, schemas.SPLITS),
            ("locales", self.locales, None),
        ):
            unknown = [value for value in values if (value not in known if known else not value.strip())]
            if unknown or not values:
                expected = " or ".join(known) if known else "a locale of the examples file, such as us"
                raise UsageError(
                    f"unknown {name}", where=f"selection.{name}", expected=expected, got=unknown or "nothing"
                )
            if len(set(values)) < len(values):
                raise UsageError(f"{name} named twice", where=f"selection.{name}", got=list(values))
        wrong = [label for label, gain in self.labels if not (label and math.isfinite(gain) and gain >= 0)]
        if wrong or not self.labels:
            raise UsageError(
                "bad labels", where="selection.labels", expected="label = gain, gains >= 0", got=wrong or "nothing"
            )
        if self.supp_min_judgments < 1:
            raise UsageError(
                "too few judgments", where="selection.supp_min_judgments", expected=">= 1", got=self.supp_min_judgments
            )

    @property
    def gains(self) -> dict[str, float]:
        """The gain of each label."""
        return dict(self.labels)


def read_examples(file: File, selection: Selection, columns: Sequence[str]) -> pa.Table:
    """Rows of the examples file of the selection's version and locales, in every split.

    Args:
        columns: columns of `schemas.EXAMPLES_SCHEMA` to return, in that order.

    Raises:
        LabelError: any row of the file has a label that the selection does not name.
        UsageError: the file has no row of one of the locales.
        SchemaError: a null where a key should be.
        SourceError: as `tables.open_parquet`.
    """
    where = file.url
    flag = f"{selection.version}_version"
    small = ("product_locale", "esci_label", "split")
    wanted = pa.schema([f for f in schemas.EXAMPLES_SCHEMA if f.name in {*columns, *small, flag}])
    locales = pa.array(selection.locales)
    kept: list[pa.Table] = []
    found: set[str] = set()
    with open_parquet(file, wanted, dictionary=small) as parquet, reporting(where):
        if not parquet.metadata.num_rows:
            raise EmptyFileError("the examples file has no rows", where=where, fix="Fetch it again.")
        for batch in parquet.iter_batches(_BATCH_ROWS * 16, columns=wanted.names):
            table = pa.Table.from_batches([batch])
            _check_labels(table, selection.gains, where)
            found.update(str(locale) for locale in pc.unique(table.column("product_locale")).to_pylist())
            _check_no_nulls(table, [flag, "product_locale", "split"], where)
            mask = pc.and_(
                pc.equal(table.column(flag).cast(pa.int64()), 1),
                _among(table.column("product_locale"), locales),
            )
            kept.append(conform(table.filter(mask).select(wanted.names), wanted, where))
    absent = [locale for locale in selection.locales if locale not in found]
    if absent:
        known = " or ".join(sorted(found))
        raise UsageError("no judgments of this locale", where=where, expected=known, got=", ".join(absent))
    table = pa.concat_tables(kept).select(list(columns))
    _check_no_nulls(table, columns, where)
    return table


def _check_no_nulls(table: pa.Table, columns: Sequence[str], where: str) -> None:
    for name in columns:
        if table.column(name).null_count:
            raise SchemaError(f"column {name!r} has nulls", where=where, got=f"{table.column(name).null_count} of them")


def _among(column: pa.ChunkedArray, values: pa.Array) -> pa.ChunkedArray:
    """`pc.is_in` on a dictionary column, asked once per distinct value."""
    masks = [
        pc.is_in(chunk.dictionary.cast(pa.string()), value_set=values).take(chunk.indices) for chunk in column.chunks
    ]
    return pa.chunked_array(masks, pa.bool_())


def _check_labels(table: pa.Table, known: Mapping[str, float], where: str) -> None:
    distinct = pc.unique(table.column("esci_label")).to_pylist()
    unknown = sorted(str(v) for v in distinct if v not in known)
    if unknown:
        raise LabelError(
            f"unknown esci_label {unknown[0]!r}",
            where=where,
            expected=" or ".join(known),
            fix="Correct or remove those rows, or give the label a gain in selection.labels.",
        )


def in_splits(examples: pa.Table, splits: Sequence[str]) -> pa.Table:
    """The rows of the main part."""
    return examples.filter(pc.is_in(examples.column("split"), value_set=pa.array(splits)))


def judgments(examples: pa.Table, selection: Selection) -> pa.Table:
    """The judgments of the main part (`schemas.SAMPLED_JUDGMENTS_SCHEMA`: the judgments config and the split), sorted.

    Raises:
        DuplicateKeyError: a product is judged twice for a query.
    """
    table = in_splits(examples, selection.splits)
    table = table.sort_by([(name, "ascending") for name in schemas.DECLARED[schemas.JUDGMENTS].key])
    check_unique(table, schemas.DECLARED[schemas.JUDGMENTS].key, "judgment", schemas.ESCI_EXAMPLES)
    labels = table.column("esci_label").combine_chunks().dictionary_encode()
    gains = np.array([selection.gains[label] for label in labels.dictionary.to_pylist()], np.float32)
    gain = pa.array(gains[labels.indices.to_numpy(zero_copy_only=False)] if len(labels) else gains, pa.float32())
    return conform(table.append_column("gain", gain), schemas.SAMPLED_JUDGMENTS_SCHEMA, schemas.ESCI_EXAMPLES)


def queries(examples: pa.Table, selection: Selection, sources: pa.Table) -> pa.Table:
    """The queries of the main part: query_id, query, source (null where `sources` has none), sorted by query_id.

    Raises:
        DuplicateKeyError: a query_id stands for two texts, or twice in `sources`.
    """
    main = in_splits(examples, selection.splits)
    declared = schemas.DECLARED[schemas.QUERIES]
    table = main.group_by(list(declared.of_origin(schemas.EXAMPLES))).aggregate([]).sort_by("query_id")
    check_unique(table, declared.key, "query", schemas.ESCI_EXAMPLES)
    check_unique(sources, declared.key, "query", schemas.ESCI_SOURCES)
    rows = pc.index_in(table.column("query_id"), value_set=sources.column("query_id").combine_chunks())
    for name in declared.of_origin(schemas.SOURCES):
        table = table.append_column(name, sources.column(name).take(rows))
    return conform(table, schemas.SAMPLED_QUERIES_SCHEMA, schemas.ESCI_EXAMPLES)


def product_keys(examples: pa.Table, selection: Selection, part: str) -> pa.Table:
    """Keys (product_id, product_locale) of the main or the supplementary products, sorted.

    Args:
        part: `schemas.MAIN` or `schemas.SUPPLEMENTARY`.
    """
    names = list(schemas.PRODUCT_KEY)
    if part == schemas.MAIN:
        table = in_splits(examples, selection.splits).group_by(names).aggregate([])
    else:
        main = pc.is_in(examples.column("split"), value_set=pa.array(selection.splits))
        keys = examples.select(names).append_column("main", main)
        counted = keys.group_by(names).aggregate([("main", "any"), ("main", "count")])
        enough = pc.greater_equal(counted.column("main_count"), selection.supp_min_judgments)
        table = counted.filter(pc.and_(pc.invert(counted.column("main_any")), enough)).select(names)
    return table.sort_by([(name, "ascending") for name in names]).combine_chunks()


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
    file: File, keys: pa.Table, columns: Sequence[str], *, positions: np.ndarray | None = None
) -> Iterator[pa.Table]:
    """Rows of the products file for `keys`, in their order, a slice at a time.

    The keys of the file are read first and the texts after, so memory holds at most 400,000 rows of text.

    Args:
        keys: product_id, product_locale; unique.
        columns: text columns wanted besides the two keys.
        positions: result of `locate_products` for these keys, if there is one.

    Yields:
        Tables (product_id, product_locale, *columns) of at most 16,384 rows, text null where ESCI has none.

    Raises:
        DuplicateKeyError, IntegrityError: as `locate_products`.
    """
    schema = pa.schema([schemas.PRODUCTS_SCHEMA.field(c) for c in columns])
    if positions is None:
        positions = locate_products(file, keys)
    for start in range(0, keys.num_rows, TEXT_ROWS_AT_ONCE):
        stop = min(start + TEXT_ROWS_AT_ONCE, keys.num_rows)
        texts = _gather_texts(file, positions, start, stop, schema)
        for begin in range(0, stop - start, _SLICE_ROWS):
            part = texts.slice(begin, _SLICE_ROWS)
            key = keys.slice(start + begin, part.num_rows)
            yield pa.table([*key.columns, *part.columns], [*key.column_names, *columns])


def known_products(file: File, keys: pa.Table) -> int:
    """How many of `keys` (product_id, product_locale) the products file holds."""
    with open_parquet(file, _KEY) as parquet, reporting(file.url):
        positions = _positions(parquet, keys, file.url)
    return len(np.unique(positions[positions >= 0]))


def _positions(parquet: Any, keys: pa.Table, where: str) -> np.ndarray:
    """For every row of the file its position in `keys`, -1 where it is none: int32 [rows]."""
    locales = keys.column("product_locale").combine_chunks()
    wanted = []  # per locale, its ids and their positions: no text is put together for a million rows
    for locale in pc.unique(locales).to_pylist():
        places = np.flatnonzero(pc.equal(locales, locale).to_numpy(zero_copy_only=False)).astype(np.int32)
        wanted.append((locale, keys.column("product_id").take(places).combine_chunks(), places))
    parts = [np.zeros(0, np.int32)]
    for batch in parquet.iter_batches(_KEY_ROWS, columns=_KEY.names):
        table = conform(pa.Table.from_batches([batch]), _KEY, where)
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


def _gather_texts(file: File, positions: np.ndarray, start: int, stop: int, schema: pa.Schema) -> pa.Table:
    """Text rows whose position is in [start, stop), sorted by position, one chunk; columns are read side by side."""
    chosen = (positions >= start) & (positions < stop)
    order = np.argsort(positions[chosen], kind="stable")
    with open_parquet(file, schema) as parquet:
        groups = [parquet.metadata.row_group(g).num_rows for g in range(parquet.metadata.num_row_groups)]
        spans = _spans(groups, chosen)

    def read(name: str, groups: list[int], row: int, stop: int) -> list[pa.Array]:
        field = pa.schema([schema.field(name)])
        kept: list[pa.Array] = []
        with open_parquet(file, field) as parquet, reporting(file.url):
            for batch in parquet.iter_batches(_BATCH_ROWS, row_groups=groups, columns=[name], use_threads=False):
                mask = chosen[row : row + batch.num_rows]
                row += batch.num_rows
                if mask.any():
                    table = pa.Table.from_batches([batch.filter(pa.array(mask))])
                    kept.extend(conform(table, field, file.url).column(0).chunks)
                if row >= stop:  # the rest may be of other locales
                    break
        return kept

    def in_order(name: str) -> pa.Array:  # the unordered texts of a column go before those of the next one come
        chunks = [chunk for task in tasks.pop(name) for chunk in task.result()]
        return pa.chunked_array(chunks, schema.field(name).type).combine_chunks().take(order)

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        tasks = {name: [pool.submit(read, name, *span) for span in spans] for name in schema.names}
        return pa.table([in_order(name) for name in schema.names], schema=schema)


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


def read_sources(file: File) -> pa.Table:
    """The sources file: query_id int64, source."""
    return read_csv(file, schemas.SOURCES_SCHEMA)
