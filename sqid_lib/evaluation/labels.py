"""Labels and their gains: ESCI's table where all labels are ESCI's, otherwise the release's own gain column."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sqid_lib import schemas
from sqid_lib.errors import EvaluationError, UsageError
from sqid_lib.evaluation.arrays import Bools, Floats, Ints

RELEASE = "release"  # gains from the release's own gain column
ESCI_GAINS = {"esci": schemas.GAINS, "esci-repo-swapped": schemas.GAINS_ESCI_REPO_SWAPPED}
GAINS = (*ESCI_GAINS, RELEASE)
ESCI_RELEVANT = ("E", "ES", "ESC")
_DECIMALS = 6  # of a gain, at most, for qrels
_LARGEST = 10**8  # whole gain in qrels: trec_eval needs 8 bytes for each gain up to it
_LISTED = 12  # labels in a note


@dataclass(frozen=True)
class Labels:
    """The labels of the judgments.

    Attributes:
        gains: where the gains are from, one of `GAINS`.
        gain: gain of each label; of judgments that are numbers, too many to name, gain → itself.
        relevant: labels that count as relevant for the binary measures; of numbers one text such as "gain >= 0.5".
        numbers: whether the judgments are numbers: clicks, or more than 12 different labels that are numbers.
    """

    gains: str
    gain: Mapping[str, float]
    relevant: tuple[str, ...]
    numbers: bool = False

    @property
    def relevant_value(self) -> str | list[str]:
        """`relevant` as rows state it: "E", "ES" or "ESC", or the release's own labels."""
        return list(self.relevant) if self.gains == RELEASE else "".join(self.relevant)

    @property
    def qrels_unit(self) -> int:
        """What gains are multiplied by in qrels: 100, or the least larger power of ten that makes them whole numbers.

        Numbers are rounded to 6 decimals, or fewer where they are large.

        Raises:
            EvaluationError: a gain has more than 6 decimals, or is too large.
        """
        if self.numbers:
            most = max(self.gain.values())
            return next((10**n for n in range(min(self._decimals, _DECIMALS), 0, -1) if most * 10**n <= _LARGEST), 1)
        unit = int(10 ** min(self._decimals, _DECIMALS))
        for name, gain in self.gain.items():
            if _decimals(gain) > _DECIMALS or gain * unit > _LARGEST:
                raise EvaluationError(
                    "trec_eval reads whole gains only, and this one cannot be scaled to one",
                    where=f"label {name!r}",
                    expected=f"at most {_DECIMALS} decimals and {_LARGEST // unit:,}",
                    got=gain,
                )
        return unit

    @property
    def notes(self) -> list[str]:
        """Lines to print below the results; none for ESCI's gains."""
        if self.gains in ESCI_GAINS:
            wrong = "S counts 0.01, C 0.1, the wrong way round, as in the ESCI repository's script"
            return [f"gains {self.gains}: {wrong}"] if self.gains != "esci" else []
        if self.numbers:
            ends = f"from {min(self.gain.values()):.10g} to {max(self.gain.values()):.10g}"
            notes = [f"gains of the release: numbers {ends}"]
            if self._decimals > 2:
                notes.append(f"qrels: gains times {self.qrels_unit:,}, rounded, for trec_eval reads whole numbers only")
            return notes
        numbers = {name: f"{gain:.10g}" for name, gain in self.gain.items()}
        listed = [name if name == number else f"{name} {number}" for name, number in numbers.items()]
        notes = [f"gains of the release: {', '.join(listed[:_LISTED])}" + (", …" if len(listed) > _LISTED else "")]
        if 2 < self._decimals <= _DECIMALS:
            notes.append(f"qrels: gains times {10**self._decimals:,}, for trec_eval reads whole numbers only")
        return notes

    @property
    def _decimals(self) -> int:
        return max(2, *map(_decimals, self.gain.values()))


def _decimals(gain: float) -> int:
    return -int(Decimal(repr(gain)).normalize().as_tuple().exponent)


def read_labels(
    judgments: pa.Table, gains: str | None = None, relevant: str | Sequence[str] | None = None
) -> tuple[Labels, Floats, Bools]:
    """Gain and relevance of every judgment.

    Args:
        judgments: column esci_label; column gain is read only for the release's own gains.
        gains: one of `GAINS`; None means "esci" where all labels are ESCI's, otherwise "release".
        relevant: with ESCI's gains "E", "ES" or "ESC", None means "E". With the release's own gains one label or
            several, None means those with the highest gain. Of judgments that are numbers the least gain, as a text
            such as "0.5"; None means half of the highest.

    Returns:
        The labels, and for each judgment its gain, float64 [J], and whether it is relevant, bool [J].

    Raises:
        UsageError: unknown `gains` or `relevant`, or ESCI's gains for other labels.
        EvaluationError: a judgment without a label, or own gains that are not one number >= 0 for each label.
    """
    column = judgments["esci_label"].cast(pa.string())
    names: list[str] = pc.unique(column.drop_null()).to_pylist()
    if column.null_count:
        row = int(np.flatnonzero(column.is_null().to_numpy())[0])
        raise EvaluationError("a label is missing", where=f"judgment {row}", expected="a label")
    code = pc.index_in(column, value_set=pa.array(names, pa.string())).to_numpy().astype(np.int64)
    gains = _choose_gains(names, gains)
    if gains == RELEASE and _are_numbers(names):
        return _numbers(judgments, relevant)
    gain = _own_gains(judgments, names, code) if gains == RELEASE else ESCI_GAINS[gains]
    labels = Labels(gains, gain, _relevant(gains, gain, relevant))
    gain_of = np.array([gain[name] for name in names], np.float64)
    return labels, gain_of[code], np.isin(names, labels.relevant)[code]


def _choose_gains(names: Sequence[str], gains: str | None) -> str:
    other = next((name for name in names if name not in schemas.GAINS), None)
    if gains is None:
        return "esci" if other is None else RELEASE
    if gains not in GAINS:
        raise UsageError("unknown gains", expected=" or ".join(GAINS), got=gains)
    if gains != RELEASE and other is not None:
        raise UsageError(
            f"gains {gains!r} are for ESCI's labels only",
            expected=" or ".join(schemas.GAINS),
            got=f"label {other!r}",
            fix=f"Leave gains out, or use {RELEASE!r}: the gain column of the release.",
        )
    return gains


def _are_numbers(names: Sequence[str]) -> bool:
    """Whether labels state no gains that could be listed: clicks, whose gain depends on the query, or many numbers."""
    if any(map(schemas.is_clicks, names)):
        return True
    return len(names) > _LISTED and all(map(_is_number, names))


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _numbers(judgments: pa.Table, relevant: str | Sequence[str] | None) -> tuple[Labels, Floats, Bools]:
    """As `read_labels`, of judgments that each have a gain of their own."""
    values, code = np.unique(_checked_gains(judgments), return_inverse=True)
    values = np.array([float(str(value)) for value in values], np.float64)  # as in `_own_gains`
    if relevant is None:
        least = values[-1] / 2
    else:
        wanted = (relevant,) if isinstance(relevant, str) else tuple(relevant)
        if len(wanted) != 1 or not _is_number(wanted[0]):
            got = " or ".join(wanted) or "none"
            raise UsageError("unknown relevant", expected="the least gain, such as 0.5: judgments are numbers", got=got)
        least = float(wanted[0])
    gain = values[code]
    is_relevant = (gain >= least) & (gain > 0)
    labels = Labels(RELEASE, {f"{v:.10g}": float(v) for v in values[::-1]}, (f"gain >= {least:.10g}",), numbers=True)
    return labels, gain, is_relevant


def _checked_gains(judgments: pa.Table) -> Any:
    """Column gain; EvaluationError unless it holds numbers of 0 or more."""
    values = judgments["gain"].to_numpy()
    bad = np.flatnonzero(~(np.isfinite(values) & (values >= 0)))
    if len(bad):
        raise EvaluationError("bad gain", where=f"judgment {bad[0]}", expected="a number >= 0", got=values[bad[0]])
    return values


def _relevant(gains: str, gain: Mapping[str, float], relevant: str | Sequence[str] | None) -> tuple[str, ...]:
    if gains != RELEASE:
        chosen = "E" if relevant is None else "".join(relevant)
        if chosen not in ESCI_RELEVANT:
            raise UsageError("unknown relevant", expected=" or ".join(ESCI_RELEVANT), got=chosen)
        return tuple(chosen)
    if relevant is None:
        highest = max(gain.values(), default=0.0)
        return tuple(name for name, value in gain.items() if value == highest > 0)
    wanted = (relevant,) if isinstance(relevant, str) else tuple(relevant)
    if not wanted or not set(wanted) <= set(gain):
        raise UsageError("unknown relevant", expected=" or ".join(gain), got=" or ".join(wanted) or "none")
    return wanted


def _own_gains(judgments: pa.Table, names: Sequence[str], code: Ints) -> dict[str, float]:
    """Label → gain from column gain, best first."""
    values = _checked_gains(judgments)
    _, first = np.unique(code, return_index=True)
    gain = values[first]
    other = np.flatnonzero(values != gain[code])
    if len(other):
        label = names[code[other[0]]]
        raise EvaluationError(
            "a label has two gains",
            where=f"label {label!r}",
            expected="one",
            got=f"{gain[code[other[0]]]} and {values[other[0]]}",
        )
    # the shortest decimal: float32 0.1 means 0.1, not 0.10000000149
    found = {name: float(str(value)) for name, value in zip(names, gain, strict=True)}
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def title_suffix(gains: str) -> str:
    """What is added to the title nDCG for gains that are known to be wrong."""
    return " (S and C swapped)" if gains == "esci-repo-swapped" else ""
