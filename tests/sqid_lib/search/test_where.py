from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from sqid_lib.errors import UsageError
from sqid_lib.search.where import matching

PRODUCTS = pa.table(
    {
        "product_id": ["A", "B", "C", "D"],
        "product_brand": ["Nike", None, "nike", "Puma"],
        "price": pa.array([1.5, 2.0, None, 3.0], pa.float32()),
        "stock": pa.array([1, 2, 3, None], pa.int64()),
    }
)
HAS_IMAGE = np.array([True, False, True, False])


@pytest.mark.parametrize(
    ("where", "kept"),
    [
        (None, "ABCD"),
        ({}, "ABCD"),
        ({"product_brand": "Nike"}, "A"),
        ({"product_brand": ["Nike", "Puma"]}, "AD"),
        ({"product_brand": None}, "B"),
        ({"product_brand": []}, ""),
        ({"product_brand": ("Nike", None), "has_image": True}, "A"),
        ({"has_image": np.bool_(False)}, "BD"),
        ({"has_image": "FALSE"}, "BD"),
        ({"price": 2}, "B"),
        ({"price": "1.5"}, "A"),
        ({"stock": {1, 3}}, "AC"),
        ({"stock": ["2"]}, "B"),
        ({"product_id": "nothing"}, ""),
    ],
)
def test_values_that_are_kept(where: Any, kept: str) -> None:
    rows = matching(where, PRODUCTS, HAS_IMAGE)
    assert "".join(np.array(list("ABCD"))[rows]) == kept


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"brand": "Nike"}, "unknown column.*product_brand"),
        ({"has_imge": True}, r"Did you mean has_image\?"),
        ({"product_brand": 3}, "not a value of the column"),
        ({"has_image": "yes"}, "not a value of the column"),
        ({"stock": "many"}, "not a value of the column"),
        ({"stock": 1.5}, "not a value of the column"),
        ([("product_brand", "Nike")], "not a filter"),
        ("product_brand=Nike", "not a filter"),
        (lambda product: True, "not a filter"),
    ],
)
def test_what_is_refused(where: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        matching(where, PRODUCTS, HAS_IMAGE)


# -- numbers that a catalogue keeps ---------------------------------------------------------------------------------

NUMBERS = pa.table(
    {
        "price": pa.array([5.0, 50.0, None, 99.5, float("nan")]),
        "stock": pa.array([0, 1, 2, 2**60, None]),
        "brand": pa.array(["a..b", "a", "b", None, "c"]),
    }
)


@pytest.mark.parametrize(
    ("where", "kept"),
    [
        ({"price": (5, 50)}, [0, 1]),
        ({"price": (None, 50)}, [0, 1]),
        ({"price": (50.5, None)}, [3]),
        ({"price": (None, None)}, [0, 1, 3]),
        ({"price": "5..50"}, [0, 1]),
        ({"price": ["..5", "99.5"]}, [0, 3]),
        ({"price": "99 .. "}, [3]),
        ({"stock": [(1, 2), None]}, [1, 2, 4]),
        ({"stock": (3, None)}, [3]),
        ({"stock": [2, 0]}, [0, 2]),
        ({"price": (50, 5)}, []),
        ({"price": []}, []),
        ({"price": (None, 60), "stock": (1, None)}, [1]),
        ({"brand": "a..b"}, [0]),  # a text column has no ranges
        ({"brand": ("a", "b")}, [1, 2]),
    ],
)
def test_ranges_of_numbers(where: dict[str, Any], kept: list[int]) -> None:
    found = matching(where, NUMBERS, np.zeros(5, np.bool_))
    assert np.flatnonzero(found).tolist() == kept


@pytest.mark.parametrize("wrong", [(1,), (1, 2, 3), ("a", 2), (float("nan"), 2), "1..b", [("x", None)]])
def test_what_is_no_range_is_named(wrong: Any) -> None:
    with pytest.raises(UsageError, match=r"where price: not a range; expected \(low, high\), numbers or None"):
        matching({"price": wrong}, NUMBERS, np.zeros(5, np.bool_))
