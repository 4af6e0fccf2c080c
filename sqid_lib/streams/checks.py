"""What a store and a stream of a release check alike, so that one refuses what the other refuses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sqid_lib import schemas
from sqid_lib.errors import ContractError, DuplicateKeyError, IntegrityError, LabelError, SchemaError
from sqid_lib.streams.batches import Rows
from sqid_lib.tables.columns import dense
from sqid_lib.tables.vector_columns import read_vectors

_SHOWN = 8  # labels in a message


def check_keys(keys: pa.Array, where: str) -> pa.Array:
    """The keys again; ContractError if one is null."""
    if keys.null_count:
        row = pc.index(keys.is_null(), True).as_py()
        raise ContractError("a row has no key", where=where, expected="an id in every row", got=f"null in row {row}")
    return keys


def new_rows(parts: Sequence[tuple[str, pa.Array]]) -> npt.NDArray[np.bool_]:
    """Which of the keys, given split by split, no earlier split has: a product may be judged in several splits."""
    splits = list(dict.fromkeys(split for split, _ in parts))
    masks, before = [], pa.nulls(0, parts[0][1].type)
    for split in splits:
        keys = pa.concat_arrays([part for name, part in parts if name == split])
        masks.append(~dense(pc.is_in(keys, value_set=before)) if len(before) else np.ones(len(keys), np.bool_))
        before = pa.concat_arrays([before, keys])
    return np.concatenate(masks)


def find_rows(wanted: pa.Array, known: pa.Array, name: str) -> Rows:
    """The row in `known` of each of `wanted`.

    Raises:
        DuplicateKeyError: a key is twice in `known`.
        IntegrityError: a wanted key is not there.
    """
    increasing = len(known) < 2 or pc.all(pc.less(known[:-1], known[1:])).as_py()  # as in a release: quickly unique
    if not increasing and len(pc.unique(known)) < len(known):
        counts = pc.value_counts(known)
        twice = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
        raise DuplicateKeyError("a key occurs twice", where=name, got=_shown(twice[0]), fix="Remove the duplicates.")
    index = pc.index_in(wanted, value_set=known)
    if index.null_count:
        lost = pc.filter(wanted, pc.is_null(index))
        raise IntegrityError(
            "judged, and not in the release", where=name, got=f"{len(lost)} rows, first {_shown(lost[0])}"
        )
    return dense(index).astype(np.int64)


def _shown(key: Any) -> str:
    return str(key.as_py()).replace("\x1f", "/")  # the separator of `key_strings`


def checked_gains(judgments: pa.Table, where: str) -> npt.NDArray[np.float32]:
    """The gains of all judgments of a release: a finite number, the same for every row of a label, if it is not clicks.

    Raises:
        LabelError: a judgment has no label.
        SchemaError: gains are not numbers.
        ContractError: a gain is null, not finite or negative; a label has two gains, or all of ESCI's labels have one.
    """
    label, gain = judgments["esci_label"], judgments["gain"]
    if label.null_count:
        raise LabelError("a judgment has no label", where=where, expected="a label in every row", got="null")
    if not (pa.types.is_floating(gain.type) or pa.types.is_integer(gain.type)):
        raise SchemaError("column 'gain' has the wrong type", where=where, expected="float", got=gain.type)
    number = "a number of 0 or more in every row"
    if gain.null_count:
        raise ContractError("a judgment has no gain", where=where, expected=number, got="null")
    gains: npt.NDArray[np.float32] = dense(gain.cast(pa.float32()))
    if not (np.isfinite(gains).all() and (gains >= 0).all()):
        wrong = gains[~(np.isfinite(gains) & (gains >= 0))][0]
        raise ContractError("a gain is not a number that can be", where=where, expected=number, got=wrong)
    _check_labels(label, gains, where)
    return gains


def _check_labels(label: pa.ChunkedArray, gains: npt.NDArray[np.float32], where: str) -> None:
    encoded = label.combine_chunks().dictionary_encode()  # not group_by, whose import takes time and memory
    codes, names = dense(encoded.indices), encoded.dictionary.to_pylist()
    least = np.full(len(names), np.inf, np.float32)
    most = np.full(len(names), -np.inf, np.float32)
    np.minimum.at(least, codes, gains)
    np.maximum.at(most, codes, gains)
    clicks = [schemas.is_clicks(name) for name in names]  # the gain of clicks depends on the query too
    if ((least < most) & ~np.array(clicks, np.bool_)).any():
        raise ContractError(
            "a label has several gains", where=where, expected="one gain a label", got=_ends(names, least, most)
        )
    if len(names) > 1 and schemas.GAINS.keys() >= set(names) and least.min() == most.max():  # own labels may
        raise ContractError(
            "all labels have the same gain", where=where, expected="gains that rank", got=_ends(names, least, most)
        )


def _ends(names: Sequence[str], least: npt.NDArray[np.float32], most: npt.NDArray[np.float32]) -> str:
    """The first labels with their gains, those with several gains before the others."""
    rows = sorted(zip(names, least, most, strict=True), key=lambda row: (row[1] == row[2], row[0]))
    shown = [f"{name} {low:g}" + (f" or {high:g}" if high > low else "") for name, low, high in rows[:_SHOWN]]
    return ", ".join(shown) + (", …" if len(rows) > _SHOWN else "")


def checked_has_image(table: pa.Table, where: str) -> npt.NDArray[np.bool_]:
    """Column has_image.

    Raises:
        SchemaError: it is not of booleans.
        ContractError: it holds a null.
    """
    column = table["has_image"]
    if not pa.types.is_boolean(column.type):
        raise SchemaError("column 'has_image' has the wrong type", where=where, expected="bool", got=column.type)
    if column.null_count:
        row = pc.index(column.is_null(), True).as_py()
        raise ContractError(
            "column 'has_image' holds a null", where=where, expected="true or false", got=f"null in row {row}"
        )
    return dense(column)


def checked_vectors(
    table: pa.Table, column: str, width: int, dtype: np.dtype[Any], where: str
) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """As `read_vectors`, in `dtype`.

    Raises:
        SchemaError: no such column, or its lists are not `width` numbers long.
        ContractError: a list holds a null, or a value that is not finite in `dtype`.
    """
    vectors, valid = read_vectors(table, column, width, where)
    if vectors.dtype == dtype:  # finite, as just read
        return vectors, valid
    with np.errstate(over="ignore"):  # reported below
        cast = np.ascontiguousarray(vectors, dtype=dtype)
    limit = np.finfo(dtype).max
    within = not vectors.size or (vectors.min() >= -limit and vectors.max() <= limit)  # false for NaN, and quick
    if not within and not np.isfinite(cast).all():
        row = np.isfinite(cast).all(axis=1).argmin()
        raise ContractError(f"a value is not finite in {dtype}", where=f"{where}: {column}", got=f"row {row}")
    return cast, valid


def checked_texts(table: pa.Table, column: str, width: int, dtype: np.dtype[Any], where: str) -> npt.NDArray[Any]:
    """`checked_vectors` of texts: ContractError where a row has none."""
    vectors, valid = checked_vectors(table, column, width, dtype, where)
    if not valid.all():
        raise ContractError("a row has no vector", where=f"{where}: {column}", got=f"row {valid.argmin()}")
    return vectors


def checked_images(
    table: pa.Table, column: str, width: int, dtype: np.dtype[Any], where: str
) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """`checked_vectors` of images, and whether each row has an image.

    Raises:
        ContractError: also where has_image is true and there is no vector.
    """
    vectors, valid = checked_vectors(table, column, width, dtype, where)
    if "has_image" not in table.column_names:  # the classic files: null says that there is no image
        return vectors, valid
    shown = checked_has_image(table, where)
    if (shown & ~valid).any():
        row = (shown & ~valid).argmax()
        raise ContractError("has_image is true and there is no vector", where=f"{where}: {column}", got=f"row {row}")
    return vectors, shown
