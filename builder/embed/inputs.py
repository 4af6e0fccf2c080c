"""What embed works on: the rows of sample and fetch, and the distinct texts and images among them."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from builder.embed.items import Collected, Items, Numbers
from builder.recipe import Recipe
from sqid_lib import schemas
from sqid_lib.errors import CountError, IntegrityError
from sqid_lib.stored_images import DIGEST
from sqid_lib.tables.reader import check_columns, conform, open_parquet, read_parquet, reporting

PRODUCTS, SUPP, QUERIES = "products", "supp", "queries"  # parts: rows
TEXTS, IMAGES = "texts", "images"  # kinds of what is encoded for them
_AGAIN = "Run the sample, resolve and fetch stages again."
_ROWS = 65_536  # of products at once


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
class Inputs:
    """All rows (products, queries, then supp if wanted), and kind → what is encoded for them."""

    parts: tuple[Part, ...]
    items: dict[str, Items]


def read_inputs(recipe: Recipe, work: Path, *, image_name: str = "sha256", scratch: Path | None = None) -> Inputs:
    """Read WORK/sample and WORK/fetch/outcomes.parquet; texts and names of images are put aside in temporary files.

    Args:
        image_name: column of the outcomes that names an image: "sha256" or "image_url".
        scratch: folder of the temporary files; by default that of the system.

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
    texts, images = (
        Collected(_sha256, scratch),
        Collected(_parse_sha256 if image_name == "sha256" else _sha256, scratch),
    )
    ids, start = {}, 0
    for name in names:
        path = work / "sample" / f"{name}.parquet"
        if name == QUERIES:
            queries = read_parquet(str(path), schemas.SAMPLED_QUERIES_SCHEMA)
            texts.add(name, pc.fill_null(queries["query"], ""))
            images.add(name, pa.chunked_array([], pa.string()))
            ids[name] = queries.select(["query_id"])
            continue
        rows = 0
        for products in _read_products(path, [name for _, name in recipe.encoder.text_parts if name is not None]):
            found = outcomes.slice(start + rows, products.num_rows)
            if any(not found[key].equals(products[key]) for key in schemas.PRODUCT_KEY):
                what = "the products of sample are not those of fetch/outcomes.parquet"
                raise IntegrityError(what, where=path, fix=_AGAIN)
            texts.add(name, pc.fill_null(product_texts(products, recipe.encoder.text_parts), ""))
            images.add(name, _images(found, image_name))
            rows += products.num_rows
        ids[name] = outcomes.slice(start, rows).select([*schemas.PRODUCT_KEY, "image_status"])
        start += rows
    if recipe.selection.embed_supp and start != outcomes.num_rows:
        raise CountError(
            "fetch and sample differ", where=work, expected=f"{start} outcomes", got=outcomes.num_rows, fix=_AGAIN
        )
    of_texts, text_numbers = texts.distinct()
    of_images, image_numbers = images.distinct()
    parts = tuple(Part(name, ids[name], text_numbers[name], image_numbers[name]) for name in names)
    del outcomes
    pa.default_memory_pool().release_unused()  # what reading took
    return Inputs(parts, {TEXTS: of_texts, IMAGES: of_images})


def _read_products(path: Path, columns: Sequence[str]) -> Iterator[pa.Table]:
    """The keys of the products, and some of their columns, batch by batch."""
    fields = {field.name: field for field in schemas.SAMPLED_PRODUCTS_SCHEMA}
    names = list(dict.fromkeys([*schemas.PRODUCT_KEY, *columns]))
    with open_parquet(str(path)) as file, reporting(str(path)):
        kept = {field.name: field for field in file.schema_arrow}  # of a catalogue, whose types are its own
        schema = pa.schema([fields.get(name) or kept.get(name) or _text(name) for name in names])
        check_columns(file.schema_arrow, schema, str(path))
        for batch in file.iter_batches(_ROWS, columns=names):
            yield conform(pa.Table.from_batches([batch]), schema, str(path))


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


def _images(outcomes: pa.Table, image_name: str) -> pa.ChunkedArray:
    """The name of each row's image (null: none)."""
    embedded = pc.is_in(outcomes["image_status"], pa.array(schemas.EMBEDDED_STATUSES))
    image = pc.if_else(embedded, outcomes[image_name], None)
    unnamed = pc.and_(embedded, pc.is_null(image))
    if pc.any(unnamed).as_py():
        first = outcomes["product_id"].filter(unnamed)[0]
        raise IntegrityError(
            f"the image is ok, and its {image_name} is null", where="fetch/outcomes.parquet", got=first, fix=_AGAIN
        )
    return image


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
