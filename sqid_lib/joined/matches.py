"""Warnings about artifacts that do not fit ESCI: rows of no product, products without a row, an empty result."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FrameType

import pyarrow as pa
import pyarrow.compute as pc

from sqid_lib.errors import without_secrets
from sqid_lib.files import File

# packages whose frames stand between the user's line and a warning
_INTERNAL = frozenset(
    (
        *("sqid", "sqid_lib", "builder", "datasets", "datasets_modules", "multiprocess", "torch"),
        *("concurrent", "contextlib", "functools", "threading"),
    )
)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Match:
    """How the rows of one kind of artifact fit the selected products or queries.

    Attributes:
        what: "image URLs" or "vectors".
        files: where the rows are from; none if the artifacts have no such file.
        rows: number of rows in the files.
        outside: the keys of those that are not selected.
        keys: the selected keys.
    """

    what: str
    files: Sequence[File]
    rows: int
    outside: pa.Table
    keys: pa.Table

    @property
    def found(self) -> int:
        """How many of the selected keys have a row."""
        return self.rows - int(self.outside.num_rows)


def warn_of_mismatches(matches: Sequence[Match], known: Callable[[pa.Table], pa.Array], selected: str) -> None:
    """Warn of rows that ESCI does not know, and, in one warning, of artifacts that cover under half of the selection.

    Fewer keys without a vector are counted in the log: their vectors are zeros, which nothing in a row says.

    Args:
        known: for keys outside the selection, which of them ESCI has: bool [n].
        selected: the selection in words, such as "products of split train".
    """
    poor = []
    for match in matches:
        unknown = match.outside
        if unknown.num_rows:
            unknown = unknown.filter(pc.invert(known(unknown)))
        if unknown.num_rows:
            warn(_of_unknown(match, unknown))
        if 2 * match.found < match.keys.num_rows and 2 * unknown.num_rows <= match.rows:
            poor.append(match)
        elif match.what == "vectors" and match.found < match.keys.num_rows <= 2 * match.found:
            missing = match.keys.num_rows - match.found
            log = "%s: %d of %d %s have no row in it, so their vectors are zeros"
            _log.warning(log, match.files[0], missing, match.keys.num_rows, selected)
    if poor:
        shares = " and ".join(f"{match.found:,} have {match.what}{_in(match.files)}" for match in poor)
        warn(
            f"of {poor[0].keys.num_rows:,} {selected}, {shares}: the others come back as missing. "
            "Published artifacts cover split test of locale us, version small."
        )


def _of_unknown(match: Match, unknown: pa.Table) -> str:
    message = f"{match.files[0]}: {unknown.num_rows:,} rows are of no product or query of ESCI and were left out"
    if 2 * unknown.num_rows <= match.rows:
        return f"{message}, such as {examples(unknown)}"
    return f"{message}, of {match.rows:,} in all. {both_sides(unknown, match.keys)}"


def both_sides(theirs: pa.Table, ours: pa.Table) -> str:
    """Three keys of a file and three of ESCI, for a warning that they do not match."""
    return (
        f"In that file: {examples(theirs)}; in ESCI: {f'such as {examples(ours)}' if ours.num_rows else 'none'}. "
        "Are these ids of the same products, written in the same way?"
    )


def examples(keys: pa.Table) -> str:
    """Three keys, in quotes, so that spaces are seen."""
    return ", ".join(
        f"{row['query_id']}" if "query_id" in row else repr(row["product_id"]) + _locale(row)
        for row in keys.slice(0, 3).to_pylist()
    )


def _locale(row: dict[str, str]) -> str:
    return f" ({row['product_locale']})" if row.get("product_locale") else ""


def _in(files: Sequence[File]) -> str:
    return f" in {files[0]}" if files else " (there is no such file in the artifacts)"


def warn(message: str) -> None:
    """A UserWarning at the line of the user's program that called this package, without passwords of URLs."""
    level = 1
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _INTERNAL:
        frame = frame.f_back
        level += 1
    warnings.warn(without_secrets(message), UserWarning, stacklevel=level)
