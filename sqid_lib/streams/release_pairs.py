"""The judgments of a release and their queries, in memory, in the order in which its products lie in the files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sqid_lib import schemas
from sqid_lib.errors import EmptyFileError
from sqid_lib.files import File
from sqid_lib.streams.arrow import repeated, select_rows
from sqid_lib.streams.batches import Rows
from sqid_lib.streams.checks import (
    check_keys,
    checked_gains,
    checked_has_image,
    checked_texts,
    find_rows,
    new_rows,
)
from sqid_lib.streams.filters import Filters, no_judgments
from sqid_lib.streams.release_reader import PIECE, Release
from sqid_lib.streams.texts import QUERY_TEXTS, long_texts
from sqid_lib.tables.columns import dense
from sqid_lib.tables.keys import key_strings
from sqid_lib.tables.reader import conform, open_parquet, read_parquet, reporting

_JUDGMENT_SCHEMA = pa.schema(
    [
        schemas.config_schema(schemas.JUDGMENTS).field(name)
        for name in ("query_id", "product_id", "product_locale", "esci_label", "gain")
    ]
)


@dataclass(frozen=True)
class Pairs:
    """J judgments, sorted by the place of their product in the release, and their Q queries.

    Attributes:
        products: [J] int64 ascending, rows of product_features counted through its files.
        product_index: [J] int64, the same in a store, which has a product of several splits once.
        queries: [J] int64, rows of query_ids.
        gain: [J] float32.
        query_ids: [Q] int64.
        query_features: [Q, D] float32.
        query_texts: name → [Q] texts, those that were asked for.
        group_starts: [row groups + 1] int64, the first pair of each row group.
    """

    products: Rows
    product_index: Rows
    queries: Rows
    gain: npt.NDArray[np.float32]
    query_ids: npt.NDArray[np.int64]
    query_features: npt.NDArray[np.float32]
    query_texts: dict[str, pa.Array]
    group_starts: Rows

    @property
    def digest(self) -> str:
        """Hash of all of it but the texts."""
        parts = (self.products, self.queries, self.gain, self.query_ids, self.query_features, self.group_starts)
        found = hashlib.sha256()
        for part in parts:
            found.update(np.ascontiguousarray(part).data)
        return found.hexdigest()


def read_pairs(release: Release, filters: Filters, dtype: np.dtype[Any], texts: tuple[str, ...] = ()) -> Pairs:
    """The judgments that the filters keep; errors as `stream_pairs`.

    Every judgment is checked, kept or not.
    """
    if not release.judgments:
        raise no_judgments(release.name)
    judgments = _read_judgments(release)
    where = f"{release.name}: {schemas.JUDGMENTS}"
    gain = checked_gains(judgments, where) if len(judgments) else np.empty(0, np.float32)
    columns = [*schemas.PRODUCT_KEY, *(["has_image"] if filters.has_image is not None else [])]
    tables = release.read_keys(columns)
    keys = [(split, check_keys(key_strings(table), f"{release.name}: {schemas.FEATURES}")) for split, table in tables]
    rows = np.flatnonzero(new_rows(keys))
    known = select_rows(pa.concat_arrays([part for _, part in keys]), rows)
    index = find_rows(check_keys(key_strings(judgments), where), known, "product")
    products = rows[index]
    shown = None
    if filters.has_image is not None:
        shown = np.concatenate([checked_has_image(table, f"{release.name}: has_image") for _, table in tables])[
            products
        ]
    del tables, keys, known
    query_ids, queries, query_features, query_texts = _read_queries(release, judgments, dtype, texts)
    kept = filters.keep(judgments, release.name, shown)
    del judgments
    kept = kept[np.argsort(products[kept], kind="stable")]
    used, query_rows = np.unique(queries[kept], return_inverse=True)
    if len(used) < len(query_ids):  # a copy only where it is smaller
        query_ids, query_features = query_ids[used], query_features[used]
        query_texts = {name: select_rows(column, used) for name, column in query_texts.items()}
    _, first_rows = release.groups()
    pa.default_memory_pool().release_unused()
    return Pairs(
        products[kept],
        index[kept],
        query_rows.astype(np.int64),
        gain[kept],
        query_ids,
        query_features,
        query_texts,
        np.searchsorted(products[kept], first_rows),
    )


def _read_judgments(release: Release) -> pa.Table:
    tables = []
    for split, file in release.judgments:
        table = read_parquet(file, _JUDGMENT_SCHEMA)
        tables.append(table.append_column("split", repeated(split, len(table))))
    return pa.concat_tables(tables).combine_chunks()


def _read_queries(
    release: Release, judgments: pa.Table, dtype: np.dtype[Any], texts: Sequence[str]
) -> tuple[npt.NDArray[np.int64], Rows, npt.NDArray[np.float32], dict[str, pa.Array]]:
    """Ids, vectors and texts of all queries, and the row of each judgment's query."""
    names = [name for name in texts if name in QUERY_TEXTS]
    read = [(split, *_read_file(file, release.width, dtype, names)) for split, file in release.queries]
    ids = [(split, table["query_id"].combine_chunks()) for split, table, _ in read]
    new = np.flatnonzero(new_rows(ids))
    if not len(new):
        raise EmptyFileError(f"{schemas.QUERIES} has no rows", where=release.queries[0][1])
    known = select_rows(pa.concat_arrays([part for _, part in ids]), new)
    wanted = check_keys(judgments["query_id"].combine_chunks(), f"{release.name}: {schemas.JUDGMENTS}")
    rows = find_rows(wanted, known, "query_id")
    vectors = read[0][2] if len(read) == 1 else np.concatenate([vectors for _, _, vectors in read])
    columns = select_rows(pa.concat_tables([table for _, table, _ in read]), new)
    if len(new) < len(vectors):
        vectors = vectors[new]
    return dense(known), rows, vectors, {name: long_texts(columns[name]).combine_chunks() for name in names}


def _read_file(
    file: File, width: int, dtype: np.dtype[Any], texts: Iterable[str]
) -> tuple[pa.Table, npt.NDArray[np.float32]]:
    """query_id and texts of a file of queries, and their vectors, which are decoded in pieces."""
    declared = schemas.config_schema(schemas.QUERIES, width)
    column = schemas.VECTOR_COLUMNS[0]
    schema = pa.schema([declared.field(name) for name in ("query_id", *texts)])
    with open_parquet(file, schema.append(declared.field(column))) as parquet, reporting(file.url):
        vectors = np.empty((parquet.metadata.num_rows, width), np.float32)
        pieces, row = [pa.table([pa.nulls(0, field.type) for field in schema], schema=schema)], 0
        for piece in parquet.iter_batches(PIECE, columns=[*schema.names, column]):
            table, where = pa.Table.from_batches([piece]), f"{file}, rows from {row}"
            vectors[row : row + len(table)] = checked_texts(table, column, width, dtype, where)
            pieces.append(conform(table, schema, where))
            row += len(table)
    table = pa.concat_tables(pieces)
    check_keys(table["query_id"].combine_chunks(), str(file))
    return table, vectors
