"""What a shop's table says of a product's images: the first one, as `schemas.CATALOGUE_IMAGES_SCHEMA` has it, and how
many there are."""

from __future__ import annotations

import ast
import json
import os
import re
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from builder.catalogue.cells import texts
from builder.catalogue.image_columns import row_references
from builder.catalogue.tables import Batch
from sqid_lib import schemas
from sqid_lib.errors import MissingFileError, SchemaError
from sqid_lib.tables.columns import is_list

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".gif")  # of local images by product id, best first
_SEVERAL = r"[|,;\[\n]"  # in a cell that may name several images
_SEPARATORS = (re.compile(r"\s*[|\n]\s*"), re.compile(r"\s*[,;]\s*"))
_SCHEME = r"^[A-Za-z][A-Za-z0-9+.-]+:"  # two letters at least: "C:" is a drive
_URL = re.compile(r"(?:https?:)?//", re.IGNORECASE)
_IMAGE_NAME = re.compile(r"\.(?:jpe?g|png|webp|gif|bmp|tiff?|avif)$", re.IGNORECASE)


def image_cells(batch: Batch, column: str) -> tuple[pa.Array, npt.NDArray[np.int32]]:
    """The first image of each row, null where there is none, and how many there are, [rows].

    A cell may hold a list of images, or name several: names or URLs with "|", a comma, a semicolon or a line break
    between.

    Raises:
        SchemaError: the column holds neither texts nor images.
    """
    values = batch.table.column(column)
    if is_list(values.type) and pa.types.is_nested(values.type.value_type):
        raise SchemaError(
            f"column {column!r} holds lists of objects that are no images",
            where=batch.tables.files[batch.file],
            expected="URLs, paths, or images as bytes or as objects with bytes and path, in parquet",
            got=str(values.type)[:80],
            fix="Write one of these in each row, or a list of them.",
        )
    found = texts(batch, column, longest=None)
    if batch.image_counts is not None:
        return _references(found, row_references(batch.file, batch.first, len(found))), batch.image_counts
    counts = pc.is_valid(found).cast(pa.int32()).to_numpy().copy()
    several = np.flatnonzero(
        pc.fill_null(pc.match_substring_regex(found, _SEVERAL), False).to_numpy(zero_copy_only=False)
    )
    if not len(several):
        return _references(found), counts
    first: dict[int, str | None] = {}
    for row in several.tolist():
        images = split_images(found[row].as_py())
        first[row], counts[row] = next(iter(images), None), len(images)
    mask = np.zeros(len(found), np.bool_)
    mask[several] = True
    found = pc.replace_with_mask(found, pa.array(mask), pa.array(list(first.values()), pa.string()))
    return _references(found), counts


def split_images(cell: str) -> list[str]:
    """The images that a cell names, each once: ["a.jpg", "b.jpg"] for "a.jpg|b.jpg", "a.jpg, b.jpg" or a list in JSON.

    A URL may hold commas: a cell is split only where all its parts are URLs, or all end as names of images.
    """
    if cell.startswith("["):
        listed = _literal(cell)
        if isinstance(listed, list):
            return _distinct(item for item in listed if isinstance(item, str))
    for separator in _SEPARATORS:
        parts = [part for part in separator.split(cell) if part]
        if len(parts) > 1 and (all(map(_URL.match, parts)) or not any(map(_URL.match, parts))) and _all_images(parts):
            return _distinct(parts)
    return [cell]


def images_by_id(folder: str) -> dict[str, str]:
    """Product id → file name, of the images directly in a local folder that are named by a product's id.

    Raises:
        MissingFileError: no such folder.
    """
    found: dict[str, str] = {}
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if not entry.name.startswith("."))
    except OSError as error:
        raise MissingFileError("no folder of images that can be read", where=folder, fix="Check the path.") from error
    ranks = {extension: rank for rank, extension in enumerate(EXTENSIONS)}
    best: dict[str, int] = {}
    for name in names:
        stem, extension = os.path.splitext(name)  # noqa: PTH122 - of a name, many of them
        rank = ranks.get(extension.lower())
        if rank is not None and rank < best.get(stem, len(ranks)):
            best[stem], found[stem] = rank, name
    return found


def _all_images(parts: list[str]) -> bool:
    return all(_URL.match(part) or _IMAGE_NAME.search(part) for part in parts)


def _literal(cell: str) -> Any:
    """A list in JSON, or as Python prints it, which is what pandas writes into csv."""
    try:
        return json.loads(cell)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(cell)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def _distinct(items: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(stripped for item in items if (stripped := item.strip())))


def _references(cells: pa.Array, own: pa.Array | None = None) -> pa.Array:
    """URLs and the references `own` of the rows as they are, and anything else as a local path."""
    cells = pc.replace_substring_regex(cells, r"^//", "https://")
    cells = pc.replace_substring_regex(cells, r"(?i)^file:(//)?", "")
    as_they_are = pc.match_substring_regex(cells, _SCHEME)
    as_they_are = pc.and_not(as_they_are, pc.starts_with(cells, schemas.ROW_IMAGE))  # a text is no reference to a row
    if own is not None:
        as_they_are = pc.or_(as_they_are, pc.equal(cells, own))
    return pc.if_else(as_they_are, cells, prefixed(schemas.FILE_IMAGE, cells))


def prefixed(prefix: str, texts: pa.Array) -> pa.Array:
    """Each text behind a prefix; null for null."""
    return pc.replace_substring_regex(texts, r"\A", prefix)
