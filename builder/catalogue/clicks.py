"""Click logs: from the impressions and clicks of a query and a product to a gain."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from builder.catalogue.rows import Numbers, Rows
from sqid_lib.errors import ContractError, SchemaError

if TYPE_CHECKING:
    from builder.recipe import ClickSettings

Ints = npt.NDArray[np.int64]
_COUNT = re.compile(r"[0-9]{1,15}(?=(?:\.0+)?$)")


@dataclass(frozen=True)
class Clicks:
    """Sums of a click log over the rows of each pair of query and product; int64 [pairs] each."""

    impressions: Ints
    clicks: Ints

    def only(self, kept: npt.NDArray[np.bool_]) -> Clicks:
        """The pairs of a mask [pairs]."""
        return Clicks(self.impressions[kept], self.clicks[kept])

    def labels(self) -> list[str]:
        """The label of each pair, such as "3/120": clicks of impressions."""
        return [f"{clicks}/{shown}" for clicks, shown in zip(self.clicks, self.impressions, strict=True)]


def add_up(rows: Rows, pairs: Numbers, first: Numbers) -> Clicks:
    """The impressions and clicks of each pair: a row states a pair, or one event of it.

    Args:
        pairs: the pair of each row, from 0, [rows].
        first: the first row of each pair, [pairs].

    Raises:
        SchemaError: a count is not a whole number of 0 or more.
        ContractError: a pair has more clicks than impressions.
    """
    sums = {}
    for name in ("impressions", "clicks"):
        sums[name] = np.zeros(len(first), np.int64)
        np.add.at(sums[name], pairs, _counts(rows, name))
    impressions, clicks = sums["impressions"], sums["clicks"]
    wrong = np.flatnonzero(clicks > impressions)
    if len(wrong):
        pair = wrong[np.argmin(first[wrong])]
        several = int((pairs == pair).sum())
        added = f" and {several - 1} further row{'s' if several > 2 else ''} of the same query and product"
        raise ContractError(
            "more clicks than impressions",
            where=rows.place(int(first[pair])) + (added if several > 1 else ""),
            expected="a product that is clicked to have been shown",
            got=f"{clicks[pair]} clicks, {impressions[pair]} impressions",
            fix="Correct the log; a row may be one event, with impressions 1 and clicks 0 or 1.",
        )
    return Clicks(impressions, clicks)


def _counts(rows: Rows, name: str) -> Ints:
    column = rows.column(name).dictionary_encode()
    values: list[str | None] = column.dictionary.to_pylist()
    numbers = np.zeros(len(values) + 1, np.int64)
    codes = column.indices.fill_null(len(values)).to_numpy(zero_copy_only=False)
    bad = np.ones(len(values) + 1, np.bool_)
    for code, value in enumerate(values):
        if match := _COUNT.match(value or ""):
            numbers[code], bad[code] = int(match[0]), False
    wrong = np.flatnonzero(bad[codes])
    if len(wrong):
        row = int(wrong[0])
        value = rows.values(name)[row]
        got = "an empty cell" if value is None else repr(value)
        expected = "a whole number, 0 or more"
        raise SchemaError(f"bad value for {name}", where=rows.place(row), expected=expected, got=got, fix="Correct it.")
    return np.asarray(numbers[codes], np.int64)


def click_gains(log: Clicks, queries: Numbers | Ints, settings: ClickSettings) -> npt.NDArray[np.float32]:
    """The gain of each pair, float32 [pairs] in [0, 1], by the rule of `ClickSettings`.

    Args:
        queries: the query of each pair, from 0, [pairs].
    """
    shown = log.impressions + settings.prior
    rates = np.divide(log.clicks, shown, out=np.zeros(len(shown)), where=shown > 0)
    best = np.zeros(int(queries.max(initial=-1)) + 1)
    np.maximum.at(best, queries, rates)
    most = best[queries]
    gains = np.divide(rates, most, out=np.zeros(len(rates)), where=most > 0)
    return np.asarray(gains, np.float32)
