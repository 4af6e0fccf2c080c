"""The values of one batch of rows: nulls, ids, texts, URLs, vectors, statuses, labels and gains."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from builder.validate.vectors import Mask, mask, matrix, unusable
from sqid_lib import schemas
from sqid_lib.joined.image_status import is_http
from sqid_lib.tables.vector_columns import present

Report = Callable[[str, str, Any], None]  # code, message, mask of the rows that have the problem
_WITH_URL = (*schemas.EMBEDDED_STATUSES, schemas.PLACEHOLDER)
_NEVER_BLANK = (*schemas.PRODUCT_KEY, "query")
_TEXT = "clip_text_features"


def check_nulls(rows: pa.Table, config: str, report: Report) -> None:
    """Null only where the column is declared nullable."""
    for column in schemas.DECLARED[config].columns:
        if not column.nullable and column.name in rows.column_names and rows[column.name].null_count:
            report("null", f"{column.name} is null", mask(pc.is_null(rows[column.name])))


def check_texts(rows: pa.Table, sources: Collection[str] | None, report: Report) -> None:
    """Ids and queries are not blank, URLs are http(s), example_id is not negative, source is known.

    Args:
        sources: the values that `source` may have; None for any.
    """
    for column in _NEVER_BLANK:
        if column in rows.column_names:
            report("blank", f"{column} is blank", mask(pc.equal(pc.utf8_trim_whitespace(rows[column]), "")))
    if "example_id" in rows.column_names:
        report("negative-id", "example_id is negative", mask(pc.less(rows["example_id"], 0)))
    if "image_url" in rows.column_names:
        other = pc.invert(is_http(rows["image_url"]))
        if "image_status" in rows.column_names:  # such a URL is kept as it was found, under this status
            other = pc.and_(other, pc.not_equal(rows["image_status"], schemas.BAD_URL))
        report("url", f"image_url is not http or https, and image_status is not {schemas.BAD_URL}", mask(other))
    if sources is not None and "source" in rows.column_names:
        known = _among(rows["source"], sources) | mask(pc.is_null(rows["source"]))
        report("source", f"source is not one of {', '.join(sources)}", ~known)


def check_vectors(
    rows: pa.Table, config: str, partial: bool, report: Report
) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    """Numbers of vectors are finite and not null, and their norms can be used; only images may be zeros.

    Args:
        partial: whether text vectors may be zeros.

    Returns:
        The vectors of each column, [N, D] float32.
    """
    vectors = {}
    for column in schemas.DECLARED[config].columns:
        if column.type == schemas.VECTOR and column.name in rows.column_names:
            vectors[column.name], null = matrix(rows[column.name])
            infinite, overflow, underflow, zero = (found & ~null for found in unusable(vectors[column.name]))
            report("null", f"{column.name} holds a null number", null)
            report("non-finite", f"{column.name} is not finite", infinite)
            report("norm", f"the norm of {column.name} is too large for float32", overflow)
            report("norm", f"{column.name} is not zero, and its norm is 0 in float32", underflow)
            if column.name == _TEXT and not partial:
                report("zero-vector", f"{_TEXT} is all zeros", zero)
    return vectors


def check_images(
    rows: pa.Table, image_vectors: Mapping[str, Any], made_here: bool, report: Report, *, of_catalogue: bool = False
) -> None:
    """has_image, image_status, image_url and the image vector agree.

    Args:
        image_vectors: the vectors of the rows by column, as far as they have any.
        made_here: whether a build made the vectors; those of existing files may lack some images.
        of_catalogue: whether an image may be there without a URL, as those do that were files of the shop.
    """
    has_image = mask(rows["has_image"]) if "has_image" in rows.column_names else None
    if has_image is not None and "clip_image_features" in image_vectors:
        real = present(image_vectors["clip_image_features"])
        report("has-image", "has_image is true and the image vector is zero", has_image & ~real)
        report("has-image", "has_image is false and the image vector is not zero", ~has_image & real)
    if "image_status" not in rows.column_names:
        return
    status = rows["image_status"]
    report("image-status", "unknown image_status", ~_among(status, schemas.IMAGE_STATUS))
    if has_image is not None and made_here:
        without = _among(status, (schemas.OK,)) & ~has_image
        report("status-image", "image_status is ok and has_image is false", without)
        failed = ~_among(status, _WITH_URL) & has_image
        report("status-image", "image_status names a failure and has_image is true", failed)
    if "image_url" in rows.column_names:
        url = mask(pc.is_valid(rows["image_url"]))
        if not of_catalogue:
            report("status-url", "image_status needs a URL and there is none", _among(status, _WITH_URL) & ~url)
        missing = _among(status, (schemas.MISSING,)) & url
        report("status-url", "image_status is missing and there is a URL", missing)


def check_labels(rows: pa.Table, gains: Mapping[str, float], report: Report) -> None:
    """Labels are those of the table `gains`, and each row has the gain of its label."""
    if "esci_label" not in rows.column_names:
        return
    label, known = rows["esci_label"], _among(rows["esci_label"], gains)
    report("label", f"esci_label is not one of {', '.join(gains)}"[:200], ~known)
    if "gain" in rows.column_names:
        values = pa.array(list(gains.values()), pa.float32())
        index = pc.index_in(label, value_set=pa.array(list(gains), pa.string()))
        right = mask(pc.equal(values.take(index.combine_chunks()), rows["gain"].combine_chunks()))
        stated = ", ".join(f"{name} {gain}" for name, gain in gains.items())
        report("gain", f"gain is not that of the label ({stated})"[:200], known & ~right)


def check_own_labels(rows: pa.Table, gains: Mapping[str, float], report: Report) -> None:
    """Labels of a catalogue: those of the table `gains`, numbers, which are their own gains, or clicks/impressions."""
    if not {"esci_label", "gain"} <= set(rows.column_names):
        return
    encoded = rows["esci_label"].combine_chunks().dictionary_encode()
    labels = [label or "" for label in encoded.dictionary.to_pylist()]
    of_label = [gains.get(label, _number(label)) for label in labels]
    clicks = np.array([schemas.is_clicks(label) and label not in gains for label in labels], bool)
    known = np.array([gain is not None for gain in of_label], bool) | clicks
    code = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False)
    there = code >= 0
    stated = f"one of {', '.join(gains)}, a number or clicks/impressions" if gains else "a number or clicks/impressions"
    report("label", f"esci_label is not {stated}"[:200], there & ~np.append(known, True)[code])
    right = np.array([np.nan if gain is None else gain for gain in [*of_label, None]], np.float64).astype(np.float32)
    gain = rows["gain"].combine_chunks().to_numpy(zero_copy_only=False).astype(np.float32)
    report("gain", "gain is not a finite number of 0 or more", ~(np.isfinite(gain) & (gain >= 0)))
    fixed = np.append(known & ~clicks, False)[code]
    report("gain", "gain is not that of the label", fixed & (gain != right[code]))
    report("gain", "gain of clicks is above 1", np.append(clicks, False)[code] & (gain > 1))


def _number(label: str) -> float | None:
    """The number that a label is, if it is one of 0 or more."""
    try:
        number = float(label)
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 and "_" not in label else None


def _among(column: pa.ChunkedArray, values: Any) -> Mask:
    return mask(pc.is_in(column, value_set=pa.array(list(values), pa.string())))
