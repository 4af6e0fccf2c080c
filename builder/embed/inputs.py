"""What embed works on: rows as sample and fetch left them, and the distinct texts and pictures among them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from builder.recipe import Recipe
from sqid_lib import schemas
from sqid_lib.errors import CountError, IntegrityError
from sqid_lib.tables.reader import read_parquet

PRODUCTS, SUPP, QUERIES = "products", "supp", "queries"
_AGAIN = "Run the sample, resolve and fetch stages again."
Items = NDArray[np.int64]


@dataclass(frozen=True)
class Part:
    """The rows of one part, in the order of sample.

    Attributes:
        name: "products", "supp" or "queries".
        ids: the columns of the output that are not vectors; products with the image_status of fetch.
        text: row → number of its text among the distinct ones.
        picture: row → number of its picture, −1 where there is none; empty for queries.
    """

    name: str
    ids: pa.Table
    text: Items
    picture: Items


@dataclass(frozen=True)
class Inputs:
    """All rows, and what is to be encoded for them, in order of first appearance.

    Attributes:
        parts: products, queries, then supp if wanted.
        texts: distinct texts.
        pictures: distinct pictures: sha256 of their bytes, or urls for a backend that fetches them itself.
    """

    parts: tuple[Part, ...]
    texts: list[str]
    pictures: list[str]


def read_inputs(recipe: Recipe, work: Path, *, pictures: str = "sha256") -> Inputs:
    """Read WORK/sample and WORK/fetch/outcomes.parquet.

    Args:
        pictures: column of the outcomes that names a picture: "sha256" or "image_url".

    Raises:
        SourceError: a file is missing or damaged.
        IntegrityError: sample and fetch speak of different products, or a good picture was not stored.
        CountError: fetch has more or fewer outcomes than sample has products.
    """
    outcomes = read_parquet(str(work / "fetch" / "outcomes.parquet"), schemas.OUTCOMES_SCHEMA)
    names = [PRODUCTS, QUERIES, *([SUPP] if recipe.selection.embed_supp else [])]
    columns, start = [], 0
    for name in names:
        path = work / "sample" / f"{name}.parquet"
        if name == QUERIES:
            queries = read_parquet(str(path), schemas.SAMPLED_QUERIES_SCHEMA)
            columns.append((queries.select(["query_id"]), queries["query"], None))
            continue
        wanted = [*schemas.PRODUCT_KEY, "product_title"]
        products = read_parquet(str(path), pa.schema([schemas.PRODUCTS_SCHEMA.field(name) for name in wanted]))
        ids, picture = _with_outcomes(products, outcomes.slice(start, products.num_rows), pictures, path)
        columns.append((ids, products["product_title"], picture))
        start += products.num_rows
    if recipe.selection.embed_supp and start != outcomes.num_rows:
        raise CountError(
            "fetch and sample differ", where=work, expected=f"{start} outcomes", got=outcomes.num_rows, fix=_AGAIN
        )
    texts, text_items = _distinct([pc.fill_null(text, "") for _, text, _ in columns])
    distinct, picture_items = _distinct([pa.chunked_array([], pa.string()) if p is None else p for _, _, p in columns])
    parts = (
        Part(name, ids, text, picture)
        for name, (ids, _, _), text, picture in zip(names, columns, text_items, picture_items, strict=True)
    )
    return Inputs(tuple(parts), texts, distinct)


def _with_outcomes(
    products: pa.Table, outcomes: pa.Table, pictures: str, path: Path
) -> tuple[pa.Table, pa.ChunkedArray]:
    """Id columns with image_status, and what names each row's picture (null: none)."""
    if any(not outcomes[key].equals(products[key]) for key in schemas.PRODUCT_KEY):
        raise IntegrityError("the products of sample are not those of fetch/outcomes.parquet", where=path, fix=_AGAIN)
    embedded = pc.is_in(outcomes["image_status"], pa.array(schemas.EMBEDDED_STATUSES))
    picture = pc.if_else(embedded, outcomes[pictures], None)
    unnamed = pc.and_(embedded, pc.is_null(picture))
    if pc.any(unnamed).as_py():
        first = outcomes["product_id"].filter(unnamed)[0]
        raise IntegrityError(
            f"the picture is ok, and its {pictures} is null", where="fetch/outcomes.parquet", got=first, fix=_AGAIN
        )
    ids = products.select(list(schemas.PRODUCT_KEY)).append_column("image_status", outcomes["image_status"])
    return ids, picture


def _distinct(columns: list[pa.ChunkedArray]) -> tuple[list[str], list[Items]]:
    """Distinct values of all columns in order of appearance; per column, the number of each row's value (−1: null)."""
    whole = pa.chunked_array([chunk for column in columns for chunk in column.chunks], pa.string()).combine_chunks()
    encoded = whole.dictionary_encode()
    numbers: Items = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False).astype(np.int64)
    ends = np.cumsum([len(column) for column in columns])
    return encoded.dictionary.to_pylist(), np.split(numbers, ends[:-1])
