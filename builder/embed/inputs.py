"""What embed works on: the rows of sample and fetch, and the distinct texts and images among them."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from builder.recipe import Recipe
from sqid_lib import schemas
from sqid_lib.errors import CountError, IntegrityError
from sqid_lib.stored_images import DIGEST, as_digests
from sqid_lib.tables.reader import open_parquet, read_parquet

PRODUCTS, SUPP, QUERIES = "products", "supp", "queries"  # parts: rows
TEXTS, IMAGES = "texts", "images"  # kinds of what is encoded for them
_AGAIN = "Run the sample, resolve and fetch stages again."
_HASHED_AT_ONCE = 16_384
Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Part:
    """The rows of one part, in the order of sample.

    Attributes:
        name: "products", "supp" or "queries".
        ids: the columns of the output that are not vectors; products with the image_status of fetch.
        text: row → number of its text among the distinct ones.
        image: row → number of its image, −1 where there is none; empty for queries.
    """

    name: str
    ids: pa.Table
    text: Numbers
    image: Numbers


@dataclass(frozen=True)
class Items:
    """Distinct texts or images, in order of first appearance.

    Attributes:
        values: the texts; of images the sha256 of their bytes as hexadecimal digits, or URLs for a backend that
            downloads them itself.
        digests: sha256 of each text as it is given to the encoder, of each image's bytes, or of its URL: `DIGEST`.
    """

    values: pa.LargeStringArray
    digests: pa.FixedSizeBinaryArray


@dataclass(frozen=True)
class Inputs:
    """All rows (products, queries, then supp if wanted), and kind → what is encoded for them."""

    parts: tuple[Part, ...]
    items: dict[str, Items]


def read_inputs(recipe: Recipe, work: Path, *, image_name: str = "sha256") -> Inputs:
    """Read WORK/sample and WORK/fetch/outcomes.parquet.

    Args:
        image_name: column of the outcomes that names an image: "sha256" or "image_url".

    Raises:
        SourceError: a file is missing or damaged.
        IntegrityError: sample and fetch have different products, or an image with a good status has no name.
        CountError: fetch has more or fewer outcomes than sample has products.
    """
    wanted = pa.schema(
        [schemas.OUTCOMES_SCHEMA.field(name) for name in (*schemas.PRODUCT_KEY, "image_status", image_name)]
    )
    outcomes = read_parquet(str(work / "fetch" / "outcomes.parquet"), wanted)
    names = [PRODUCTS, QUERIES, *([SUPP] if recipe.selection.embed_supp else [])]
    columns, start = [], 0
    for name in names:
        path = work / "sample" / f"{name}.parquet"
        if name == QUERIES:
            queries = read_parquet(str(path), schemas.SAMPLED_QUERIES_SCHEMA)
            columns.append((queries.select(["query_id"]), queries["query"], None))
            continue
        products = _read_products(path, [name for _, name in recipe.encoder.text_parts if name is not None])
        ids, image = _with_outcomes(products, outcomes.slice(start, products.num_rows), image_name, path)
        columns.append((ids, product_texts(products, recipe.encoder.text_parts), image))
        start += products.num_rows
    if recipe.selection.embed_supp and start != outcomes.num_rows:
        raise CountError(
            "fetch and sample differ", where=work, expected=f"{start} outcomes", got=outcomes.num_rows, fix=_AGAIN
        )
    texts, text_numbers = _distinct([pc.fill_null(text, "") for _, text, _ in columns], _sha256)
    none = pa.chunked_array([], pa.string())
    images, image_numbers = _distinct(
        [none if image is None else image for _, _, image in columns],
        _parse_sha256 if image_name == "sha256" else _sha256,
    )
    parts = (
        Part(name, ids, text, image)
        for name, (ids, _, _), text, image in zip(names, columns, text_numbers, image_numbers, strict=True)
    )
    inputs = Inputs(tuple(parts), {TEXTS: texts, IMAGES: images})
    del outcomes, products, queries, columns
    pa.default_memory_pool().release_unused()  # what reading took, several times what is kept
    return inputs


def _read_products(path: Path, columns: Sequence[str]) -> pa.Table:
    """The keys of the products, and some of their columns."""
    with open_parquet(str(path)) as file:
        kept = {field.name: field for field in file.schema_arrow}  # of a catalogue, whose types are its own
    fields = {field.name: field for field in schemas.SAMPLED_PRODUCTS_SCHEMA}
    names = dict.fromkeys([*schemas.PRODUCT_KEY, *columns])
    return read_parquet(str(path), pa.schema([fields.get(name) or kept.get(name) or _text(name) for name in names]))


def _text(name: str) -> pa.Field:
    return pa.field(name, pa.string())


def product_texts(products: pa.Table, parts: Sequence[tuple[str, str | None]]) -> pa.ChunkedArray:
    """The text of each product, "" for one without any of the values.

    A text that is one column alone is that column as it is; otherwise white space at its ends is removed, which the
    absence of a value leaves there.

    Args:
        parts: of the template, as `EncoderSettings.text_parts`.
    """
    values = {name: pc.fill_null(products[name].cast(pa.large_string()), "") for _, name in parts if name is not None}
    if len(parts) == 1 and not parts[0][0]:
        return next(iter(values.values()))
    joined: list[Any] = []
    for text, name in parts:
        joined += [pa.scalar(text, pa.large_string()), *([values[name]] if name is not None else [])]
    whole = pc.utf8_trim_whitespace(pc.binary_join_element_wise(*joined, pa.scalar("", pa.large_string())))
    blank = [pc.equal(pc.utf8_trim_whitespace(column), "") for column in values.values()]
    return pc.if_else(functools.reduce(pc.and_, blank), pa.scalar("", pa.large_string()), whole)


def _with_outcomes(
    products: pa.Table, outcomes: pa.Table, image_name: str, path: Path
) -> tuple[pa.Table, pa.ChunkedArray]:
    """Id columns with image_status, and the name of each row's image (null: none)."""
    if any(not outcomes[key].equals(products[key]) for key in schemas.PRODUCT_KEY):
        raise IntegrityError("the products of sample are not those of fetch/outcomes.parquet", where=path, fix=_AGAIN)
    embedded = pc.is_in(outcomes["image_status"], pa.array(schemas.EMBEDDED_STATUSES))
    image = pc.if_else(embedded, outcomes[image_name], None)
    unnamed = pc.and_(embedded, pc.is_null(image))
    if pc.any(unnamed).as_py():
        first = outcomes["product_id"].filter(unnamed)[0]
        raise IntegrityError(
            f"the image is ok, and its {image_name} is null", where="fetch/outcomes.parquet", got=first, fix=_AGAIN
        )
    ids = products.select(list(schemas.PRODUCT_KEY)).append_column("image_status", outcomes["image_status"])
    return ids, image


def _distinct(columns: Sequence[pa.ChunkedArray], digest: Callable[[str], bytes]) -> tuple[Items, list[Numbers]]:
    """Distinct values of all columns in order of appearance; per column, the number of each row's value (−1: null)."""
    chunks = [chunk.cast(pa.large_string()) for column in columns for chunk in column.chunks]
    encoded = pa.chunked_array(chunks, pa.large_string()).combine_chunks().dictionary_encode()
    values = encoded.dictionary
    digests = bytearray()
    for start in range(0, len(values), _HASHED_AT_ONCE):
        for value in values.slice(start, _HASHED_AT_ONCE).to_pylist():
            digests += digest(value)
    numbers: Numbers = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False).astype(np.int64)
    ends = np.cumsum([len(column) for column in columns])
    return Items(values, as_digests(digests)), np.split(numbers, ends[:-1])


def _sha256(value: str) -> bytes:
    return hashlib.sha256(value.encode()).digest()


def _parse_sha256(value: str) -> bytes:
    try:
        digest = bytes.fromhex(value)
    except ValueError:
        digest = b""
    if len(digest) != DIGEST.byte_width:
        raise IntegrityError("not a sha256", where="fetch/outcomes.parquet", got=value[:80], fix=_AGAIN)
    return digest
