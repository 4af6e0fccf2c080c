"""Columns of the products that a recipe carries into the release as they are: [catalogue] keep."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from builder.catalogue.cells import texts
from builder.catalogue.tables import Batch
from sqid_lib import schemas
from sqid_lib.errors import RecipeError, SchemaError, did_you_mean, first_line
from sqid_lib.tables.columns import is_text, one_piece, plain

IMAGE_COUNT = "image_count"  # that a catalogue's products have where some have several images
IMAGE = "image"  # that products have while they are read
_RESERVED = frozenset(c.name for config in schemas.DECLARED.values() for c in config.columns) | {
    *(IMAGE_COUNT, IMAGE, "split")
}
_INTEGER = r"^[+-]?(?:0|[1-9]\d{0,17})$"  # no zeros at its start, which a code has
_NUMBER = r"^[+-]?(?:0|[1-9]\d*)(?:\.\d*)?(?:[eE][+-]?\d+)?$"
_COMMA = r"^[+-]?(?:0|[1-9]\d*|[1-9]\d{0,2}(?:\.\d{3})+)(?:,\d{1,2})?$"  # 1.234,5: three digits would be thousands
_LEAVE_OUT = "Leave it out of [catalogue] keep, or write it as text."

_log = logging.getLogger(__name__)


def check_kept(keep: Sequence[str], names: Sequence[str]) -> None:
    """Raise RecipeError unless the kept columns are in the tables, each once, under names that we do not declare."""
    for name in keep:
        problem, expected, fix = "", "", None
        if name not in names:
            problem, expected, fix = "the tables have no such column", ", ".join(names), did_you_mean(name, names)
        elif name in _RESERVED:
            problem, expected = "a column of ours has this name", "another name"
            fix = "Leave it out, or rename it in the tables."
        elif keep.count(name) > 1:
            problem, expected = "the name is there twice", "each name once"
        if problem:
            raise RecipeError(problem, where="catalogue.keep", expected=expected, got=repr(name), fix=fix)


def kept_cells(batch: Batch, column: str) -> pa.Array:
    """Cells with their type: int64, double, bool or string; other types become text.

    Raises:
        SchemaError: lists, objects or bytes, or a number beyond int64.
    """
    values = plain(batch.table.column(column))
    where = batch.tables.files[batch.file]
    dtype = values.type
    if is_text(dtype):
        return texts(batch, column)
    if pa.types.is_nested(dtype):
        raise SchemaError(
            "a kept column holds lists or objects", where=f"{where}: {column}", got=str(dtype)[:80], fix=_LEAVE_OUT
        )
    try:
        if pa.types.is_boolean(dtype) or pa.types.is_null(dtype):
            kept = values
        elif pa.types.is_integer(dtype):
            kept = values.cast(pa.int64())
        elif pa.types.is_floating(dtype) or pa.types.is_decimal(dtype):
            kept = values.cast(pa.float64())
        else:
            kept = values.cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise SchemaError(f"cannot be kept: {first_line(error)}", where=f"{where}: {column}", fix=_LEAVE_OUT) from error
    return one_piece(kept)


@dataclass(frozen=True)
class Conversion:
    """How the parts of a column get one type: `comma` says that texts are numbers with a decimal comma."""

    dtype: pa.DataType
    comma: bool = False

    def __call__(self, column: pa.ChunkedArray) -> pa.ChunkedArray:
        """A part in that type."""
        if self.comma:
            column = pc.replace_substring(pc.replace_substring(column.cast(pa.string()), ".", ""), ",", ".")
        return column.cast(self.dtype)


class _Reading(NamedTuple):
    """What texts are read as where all of them match a pattern."""

    pattern: str
    conversion: Conversion
    words: str


_READINGS: tuple[_Reading, ...] = (
    _Reading(_INTEGER, Conversion(pa.int64()), "integers, since every cell is one"),
    _Reading(_NUMBER, Conversion(pa.float64()), "numbers, since every cell is one"),
    _Reading(_COMMA, Conversion(pa.float64(), comma=True), "numbers, since every cell is one, with a decimal comma"),
)


class OneType:
    """The type that the parts of a kept column have together: text where they differ in more than kinds of numbers.

    Args:
        numbers: whether texts that are all numbers are read as numbers: those of csv, which has no types.
    """

    def __init__(self, name: str, *, numbers: bool) -> None:
        self._name, self._types, self._empty, self._comma = name, set[pa.DataType](), True, False
        self._readings = _READINGS if numbers else ()

    def add(self, part: pa.Array) -> None:
        """Take in the next part, as `kept_cells` gives it."""
        self._types.add(part.type)
        self._empty = self._empty and part.null_count == len(part)
        if self._readings:
            texts = part.cast(pa.string())
            self._comma = self._comma or pc.any(pc.match_substring(texts, ","), min_count=0).as_py()
            self._readings = tuple(
                reading
                for reading in self._readings
                if pc.all(pc.match_substring_regex(texts, reading.pattern), min_count=0).as_py()
            )

    def conversion(self) -> Conversion:
        """How each part gets the type of the whole."""
        types = self._types - {pa.null()}
        if len(types) == 1:
            target = next(iter(types))
        else:
            target = pa.float64() if types == {pa.int64(), pa.float64()} else pa.string()
        readings = [reading for reading in self._readings if self._comma or not reading.conversion.comma]
        if target != pa.string() or self._empty or not readings:
            return Conversion(target)
        _log.info("column %s: kept as %s", self._name, readings[0].words)
        return readings[0].conversion
