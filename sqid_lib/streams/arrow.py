"""Arrow arrays from numpy and text, made of buffers: pyarrow's own conversions import pandas, which takes 45 MB."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa


def int_array(numbers: npt.NDArray[np.int64]) -> pa.Array:
    """int64, without a copy."""
    return pa.Array.from_buffers(
        pa.int64(), len(numbers), [None, pa.py_buffer(np.ascontiguousarray(numbers, np.int64))]
    )


def select_rows(column: Any, rows: npt.NDArray[np.int64]) -> pa.Array:
    """Some rows of an array, a chunked array or a table."""
    return column.take(int_array(rows))


def repeated(text: str, count: int) -> pa.Array:
    """The text `count` times."""
    data = text.encode()
    ends = np.array([0, len(data)], np.int32)
    scalar = pa.StringArray.from_buffers(1, pa.py_buffer(ends), pa.py_buffer(data))[0]
    return pa.repeat(scalar, count)
