"""Method features:FILE: vectors from a parquet file of products, or from a directory that has query vectors too."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sqid_lib import schemas
from sqid_lib.errors import EvaluationError, MissingFileError
from sqid_lib.evaluation.arrays import Bools, Floats, Matrix
from sqid_lib.evaluation.cosine import Search, judged_cosine, unit
from sqid_lib.evaluation.judged import Store
from sqid_lib.evaluation.runs import product_rows
from sqid_lib.evaluation.scorer import Scorer
from sqid_lib.tables.reader import open_parquet
from sqid_lib.tables.vector_columns import read_vectors, row_groups


@dataclass(frozen=True)
class ExternalVectors:
    """Vectors for the rows of a store.

    Attributes:
        queries: float32 [queries, D].
        products: float32 [products, D].
        present: bool [products], false where there is no vector (zeros then).
    """

    queries: Matrix
    products: Matrix
    present: Bools


def scores(scorer: Scorer, source: str) -> Floats:
    """Cosine of every judged pair, float64 [J]; notes how many judged products have no vector."""
    vectors = read_features(source, scorer.store)
    absent = int((~vectors.present[np.unique(scorer.lists.product)]).sum())
    if absent:
        scorer.notes.append(f"features:{source}: {absent:,} judged products have no vector and score 0")
    return judged_cosine(scorer.lists, vectors.queries, vectors.products)


def searches(scorer: Scorer, source: str) -> list[Search]:
    """One search with all judged queries."""
    vectors, rows = read_features(source, scorer.store), scorer.lists.query_index
    return [Search(rows, unit(vectors.queries[rows]), lambda products: unit(vectors.products[products]))]


def read_features(source: str, store: Store) -> ExternalVectors:
    """Read "FILE", "FILE#COLUMN" or the same with a directory.

    A file has product_id, product_locale where an id occurs under several locales, and a column of vectors as wide as
    the store's query vectors. A directory has product_features.parquet and query_features.parquet (query_id and vectors
    of the same width). Products of the file that the store lacks are ignored; products without a vector score 0.

    Raises:
        MissingFileError, SourceError: a file is missing, damaged, or lacks a column.
        EvaluationError: no vector column or several, another width, a value that is not finite, a product twice, or
            no product of the store.
    """
    name, _, column = source.partition("#")
    path = Path(name)
    if not path.exists():
        raise MissingFileError("no such features file", where=path, expected="a parquet file, or a directory with two")
    products, query_file = path, None
    if path.is_dir():
        products, query_file = path / schemas.PRODUCT_FEATURES, path / schemas.QUERY_FEATURES
    queries: Matrix = np.asarray(store.query_features)
    if query_file is not None:
        rows: dict[Any, int] = {query_id: row for row, query_id in enumerate(store.queries["query_id"].to_pylist())}
        queries, found = _read(query_file, "query_id", rows, "", None)
        if not found.all():
            lost = store.queries["query_id"][int(np.argmin(found))]
            raise EvaluationError("a query has no vector", where=query_file, expected=f"query_id {lost}")
    vectors, present = _read(products, "product_id", dict(product_rows(store)), column, queries.shape[1])
    return ExternalVectors(queries, vectors, present)


def _read(path: Path, key: str, rows: dict[Any, int], column: str, width: int | None) -> tuple[Matrix, Bools]:
    count = 1 + max(rows.values())
    column, found = _vector_column(path, key, column)
    if width is not None and found != width:
        raise EvaluationError(
            "the vectors have another width than the query vectors",
            where=f"{path}: {column}",
            expected=width,
            got=found,
            fix="Give a directory with product_features.parquet and query_features.parquet.",
        )
    vectors, present = np.zeros((count, found), np.float32), np.zeros(count, np.bool_)
    for table, where in row_groups([path], (key, "product_locale", column)):
        values, valid = read_vectors(table, column, found, where)
        if not np.isfinite(values).all():
            raise EvaluationError("a value is not finite", where=f"{where}: {column}")
        known = [(rows[name], n) for n, name in enumerate(_keys(table, key)) if valid[n] and name in rows]
        index, source = np.array(known, np.int64).reshape(-1, 2).T
        if present[index].any() or len(np.unique(index)) < len(index):
            raise EvaluationError(f"a {key} occurs twice", where=where)
        vectors[index], present[index] = values[source], True
    if not present.any():
        raise EvaluationError(f"no {key} of the dataset", where=path, expected="the dataset's own ids")
    return vectors, present


def _keys(table: pa.Table, key: str) -> list[Any]:
    ids: list[Any] = table[key].to_pylist()
    if key == "query_id":
        return [int(i) if str(i).lstrip("-").isdigit() else i for i in ids]
    if "product_locale" not in table.column_names:
        return ids
    return [f"{locale}:{i}" for locale, i in zip(table["product_locale"].to_pylist(), ids, strict=True)]


def _vector_column(path: Path, key: str, wanted: str) -> tuple[str, int]:
    """The column of vectors and their width."""
    if not path.is_file():
        raise MissingFileError("no such features file", where=path)
    with open_parquet(path) as file:
        schema = file.schema_arrow
    if key not in schema.names:
        raise EvaluationError("a column is missing", where=path, expected=key, got=schema.names)
    lists = [f.name for f in schema if pa.types.is_list(f.type) or pa.types.is_fixed_size_list(f.type)]
    if (wanted and wanted not in lists) or (not wanted and len(lists) != 1):
        raise EvaluationError(
            "cannot choose the column of vectors",
            where=path,
            expected=wanted or "one column of lists of float",
            got=lists,
            fix="Name it: features:FILE#COLUMN.",
        )
    column = wanted or lists[0]
    if pa.types.is_fixed_size_list(schema.field(column).type):
        return column, int(schema.field(column).type.list_size)
    for table, _ in row_groups([path], [column]):
        for vector in table[column]:
            if vector.is_valid:
                return column, len(vector)
    raise EvaluationError("no row has a vector", where=f"{path}: {column}")
