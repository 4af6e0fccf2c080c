"""Method features:FILE: vectors from a parquet file of products, or from a directory that has query vectors too."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sqid_lib import schemas
from sqid_lib.errors import EvaluationError, MissingFileError, first_line
from sqid_lib.evaluation.arrays import Bools, Floats, Matrix
from sqid_lib.evaluation.cosine import judged_cosine, unit
from sqid_lib.evaluation.judged import Store
from sqid_lib.evaluation.runs import product_rows
from sqid_lib.evaluation.scorer import Scorer
from sqid_lib.evaluation.search import Search
from sqid_lib.tables.reader import open_parquet, reporting
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
    """Read "FILE", "FILE#COLUMN" or the same with a directory; the column follows the last #, a file may have others.

    A file has product_id, product_locale where an id occurs under several locales, and a column of vectors as wide as
    the store's query vectors. A directory has product_features.parquet and query_features.parquet (query_id and vectors
    of the same width). Products of the file that the store lacks are ignored; products without a vector score 0.

    Raises:
        MissingFileError, SourceError: a file is missing, damaged, or lacks a column.
        EvaluationError: no vector column or several, another width, a value that is not finite, a product twice, or
            no product of the store.
    """
    path, column = _split(source)
    if not path.exists():
        raise MissingFileError("no such features file", where=path, expected="a parquet file, or a directory with two")
    products, query_file = path, None
    if path.is_dir():
        products, query_file = path / schemas.PRODUCT_FEATURES, path / schemas.QUERY_FEATURES
    queries: Matrix = np.asarray(store.query_features)
    if query_file is not None:
        rows = {str(query_id): row for row, query_id in enumerate(store.queries["query_id"].to_pylist())}
        queries, found = _read(query_file, "query_id", rows, "", None)
        if not found.all():
            lost = store.queries["query_id"][int(np.argmin(found))]
            raise EvaluationError("a query has no vector", where=query_file, expected=f"query_id {lost}")
    vectors, present = _read(products, "product_id", product_rows(store), column, queries.shape[1])
    return ExternalVectors(queries, vectors, present)


def _split(source: str) -> tuple[Path, str]:
    """The path and the column; the whole is a path if there is such a file."""
    name, mark, column = source.rpartition("#")
    return (Path(name), column) if mark and not Path(source).exists() else (Path(source), "")


def _read(path: Path, key: str, rows: Mapping[str, int], column: str, width: int | None) -> tuple[Matrix, Bools]:
    count = 1 + max(rows.values())
    column = _vector_column(path, key, column)
    found = _width(path, column, width)
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
        if not (finite := np.isfinite(values).all(axis=1)).all():
            raise EvaluationError("a value is not finite", where=f"{where}: {column}", got=f"row {finite.argmin()}")
        keys = enumerate(_keys(table, key, where))
        known = [(rows[name], n) for n, name in keys if valid[n] and name is not None and name in rows]
        index, source = np.array(known, np.int64).reshape(-1, 2).T
        if present[index].any() or len(np.unique(index)) < len(index):
            raise EvaluationError(f"a {key} occurs twice", where=where)
        vectors[index], present[index] = values[source], True
    if not present.any():
        raise EvaluationError(f"no {key} of the dataset", where=path, expected="the dataset's own ids")
    return vectors, present


def _keys(table: pa.Table, key: str, where: str) -> list[str | None]:
    """The key of each row as text: query_id, or product_id with its locale if there is one."""
    try:
        ids, *locales = (
            table[name].cast(pa.string()).to_pylist() for name in (key, "product_locale") if name in table.column_names
        )
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise EvaluationError("the ids cannot be read as text", where=where, got=first_line(error)) from error
    if key == "query_id":  # an integer that was kept as a float ends with .0
        return [i and re.sub(r"\.0*$", "", i.strip()) for i in ids]
    return [i and f"{locale}:{i}" for locale, i in zip(locales[0], ids, strict=True)] if locales else ids


def _vector_column(path: Path, key: str, wanted: str) -> str:
    """The column of vectors: the wanted one, or the only one."""
    if not path.is_file():
        raise MissingFileError("no such features file", where=path)
    with open_parquet(path) as file:
        schema = file.schema_arrow
    if key not in schema.names:
        raise EvaluationError("a column is missing", where=path, expected=key, got=schema.names)
    lists = [field.name for field in schema if _holds_numbers(field.type)]
    if (wanted and wanted not in lists) or (not wanted and len(lists) != 1):
        raise EvaluationError(
            "cannot choose the column of vectors",
            where=path,
            expected=wanted or "one column of lists of numbers",
            got=lists,
            fix="Name it: features:FILE#COLUMN.",
        )
    column = wanted or lists[0]
    for name in (column, key):
        if schema.names.count(name) > 1:
            raise EvaluationError("a column is there twice", where=path, got=name)
    return column


def _holds_numbers(dtype: pa.DataType) -> bool:
    lists = pa.types.is_list(dtype) or pa.types.is_large_list(dtype) or pa.types.is_fixed_size_list(dtype)
    return bool(lists and (pa.types.is_floating(dtype.value_type) or pa.types.is_integer(dtype.value_type)))


def _width(path: Path, column: str, expected: int | None) -> int:
    """The expected length, or the most frequent one, of the lists in the first row group that has any."""
    for table, where in row_groups([path], [column]):
        with reporting(where):
            lengths = Counter(pc.list_value_length(table[column]).drop_null().to_pylist())
        del lengths[0]
        if lengths:
            return expected if expected and expected in lengths else int(lengths.most_common(1)[0][0])
    raise EvaluationError("no row has a vector", where=f"{path}: {column}")
