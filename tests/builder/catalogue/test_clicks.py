"""Click logs: the rule, sums of events, and bad rows."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder.catalogue.clicks import Clicks, click_gains
from builder.catalogue.judgments import queries_and_judgments
from builder.catalogue.rows import Rows
from builder.recipe import CatalogueSettings, ClickSettings
from sqid_lib.errors import ContractError, SchemaError, SqidError

KEYS = pa.table({"product_id": ["a", "b", "c"], "product_locale": ["us"] * 3})


def judged(
    settings: dict[str, Any] | None = None, **columns: list[str | None]
) -> dict[tuple[str, str], tuple[str, float]]:
    table = pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})
    log = Rows("log.csv", table, lambda row: f"log.csv, line {row + 2}")
    catalogue = CatalogueSettings(products="p.csv", locale="us", clicks=ClickSettings(**(settings or {})))
    _, found = queries_and_judgments(log, None, KEYS, catalogue)
    return {(row["query"], row["product_id"]): (row["esci_label"], row["gain"]) for row in found.to_pylist()}


def test_the_rule() -> None:
    found = judged(
        query=["q", "q", "q", "r"],
        product_id=["a", "b", "c", "a"],
        impressions=["100", "1", "80", "50"],
        clicks=["30", "1", "0", "0"],
    )
    assert found[("q", "a")] == ("30/100", 1.0)
    label, gain = found[("q", "b")]  # one click in one impression proves little
    assert label == "1/1" and gain == pytest.approx((1 / 21) / (30 / 120))
    assert found[("q", "c")] == ("0/80", 0.0)
    assert found[("r", "a")] == ("0/50", 0.0)  # nothing was clicked: no product is the best


def test_the_settings() -> None:
    columns: dict[str, list[str | None]] = {
        "query": ["q", "q"],
        "product_id": ["a", "b"],
        "impressions": ["10", "2"],
        "clicks": ["5", "2"],
    }
    assert judged({"prior": 0.0}, **columns) == {("q", "a"): ("5/10", 0.5), ("q", "b"): ("2/2", 1.0)}
    assert judged({"prior": 0.0, "min_impressions": 3}, **columns) == {("q", "a"): ("5/10", 1.0)}
    with pytest.raises(ContractError, match=r"log.csv: no judgment is left.*lower clicks.min_impressions"):
        judged({"min_impressions": 11}, **columns)


def test_events_of_a_pair_are_added_up(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    found = judged(
        {"prior": 0.0},
        query=["q", "q", " q", "q", "q"],
        product_id=["a", "a", "a", "b", "c"],
        impressions=["1", "1", "0", "4.0", "0"],
        clicks=["0", "0", "1", "1", "0"],
    )
    assert found == {("q", "a"): ("1/2", 1.0), ("q", "b"): ("1/4", 0.5)}
    assert "log.csv: pairs left out, since they have fewer than 1 impressions: 1" in caplog.text
    everything = {"prior": 0.0, "min_impressions": 0}
    assert judged(everything, query=["q"], product_id=["c"], impressions=["0"], clicks=["0"]) == {
        ("q", "c"): ("0/0", 0.0)
    }


def test_labels_come_before_clicks() -> None:
    found = judged(query=["q"], product_id=["a"], label=["3"], impressions=["-"], clicks=["-"])
    assert found == {("q", "a"): ("3", 3.0)}


@pytest.mark.parametrize(
    ("columns", "error", "said"),
    [
        (
            {"clicks": ["1", "3"]},
            ContractError,
            "log.csv, line 3: more clicks than impressions; expected a product that is clicked to have been "
            "shown, got 3 clicks, 2 impressions",
        ),
        (
            {"clicks": ["2", "2"], "product_id": ["a", "a"], "impressions": ["2", "1"]},
            ContractError,
            "log.csv, line 2 and 1 further row of the same query and product: more clicks than impressions",
        ),
        (
            {"clicks": ["1", "-1"]},
            SchemaError,
            "log.csv, line 3: bad value for clicks; expected a whole number, 0 or more, got '-1'",
        ),
        (
            {"impressions": ["1", "1.5"]},
            SchemaError,
            "log.csv, line 3: bad value for impressions; expected a whole number, 0 or more, got '1.5'",
        ),
        ({"impressions": ["1", "1,000"]}, SchemaError, "got '1,000'"),
        (
            {"impressions": ["1", None]},
            SchemaError,
            "log.csv, line 3: bad value for impressions; expected a whole number, 0 or more, got an empty cell",
        ),
    ],
)
def test_a_bad_row_is_named(columns: dict[str, list[str | None]], error: type[SqidError], said: str) -> None:
    whole: dict[str, list[str | None]] = {
        "query": ["q", "q"],
        "product_id": ["a", "b"],
        "impressions": ["2", "2"],
        "clicks": ["1", "1"],
    }
    with pytest.raises(error) as caught:
        judged(None, **(whole | columns))
    assert said in str(caught.value)


counts = st.integers(0, 10**6)
logs = st.lists(st.tuples(st.integers(0, 3), counts, counts), min_size=1, max_size=20)


@given(logs, st.floats(0, 1000), st.data())
def test_gains_are_from_0_to_1_and_grow_with_clicks(log: list[tuple[int, int, int]], prior: float, data: Any) -> None:
    queries = np.array([query for query, _, _ in log], np.int64)
    impressions = np.array([max(one, two) for _, one, two in log], np.int64)
    clicks = np.array([min(one, two) for _, one, two in log], np.int64)
    settings = ClickSettings(prior=prior)
    gains = click_gains(Clicks(impressions, clicks), queries, settings)
    assert gains.dtype == np.float32 and ((gains >= 0) & (gains <= 1)).all()
    assert np.array_equal(gains == 0, clicks == 0)
    for query in set(queries):
        assert gains[queries == query].max() == float(clicks[queries == query].any())
    pair = data.draw(st.integers(0, len(log) - 1))
    more = clicks.copy()
    more[pair] = data.draw(st.integers(int(clicks[pair]), int(impressions[pair])))
    assert click_gains(Clicks(impressions, more), queries, settings)[pair] >= gains[pair]
