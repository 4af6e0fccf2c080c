"""The values of one batch of rows: nulls, vectors, statuses, labels and gains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from builder.validate.vectors import Mask, mask, matrix
from sqid_lib import schemas

Report = Callable[[str, str, Any], None]  # code, message, mask of the rows that have the problem
_WITH_URL = (*schemas.EMBEDDED_STATUSES, schemas.PLACEHOLDER)


def check_nulls(rows: pa.Table, config: str, report: Report) -> None:
    """Null only where the column is declared nullable."""
    for column in schemas.DECLARED[config].columns:
        if not column.nullable and column.name in rows.column_names:
            report("null", f"{column.name} is null", mask(pc.is_null(rows[column.name])))


def check_vectors(rows: pa.Table, config: str, report: Report) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    """Numbers of vectors are finite and not null; returns the vectors of each column, [N, D] float32."""
    vectors = {}
    for column in schemas.DECLARED[config].columns:
        if column.type == schemas.VECTOR and column.name in rows.column_names:
            vectors[column.name], null = matrix(rows[column.name])
            finite = np.isfinite(vectors[column.name]).all(axis=1)
            report("null", f"{column.name} holds a null number", null)
            report("non-finite", f"{column.name} is not finite", ~finite & ~null)
    return vectors


def check_images(rows: pa.Table, image_vectors: Mapping[str, Any], made_here: bool, report: Report) -> None:
    """has_image, image_status, image_url and the image vector agree.

    Args:
        image_vectors: the vectors of the rows by column, as far as they have any.
        made_here: whether a build made the vectors; those of existing files may lack some images.
    """
    has_image = mask(rows["has_image"]) if "has_image" in rows.column_names else None
    if has_image is not None and "clip_image_features" in image_vectors:
        real = (image_vectors["clip_image_features"] != 0).any(axis=1)
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


def _among(column: pa.ChunkedArray, values: Any) -> Mask:
    return mask(pc.is_in(column, value_set=pa.array(list(values), pa.string())))
