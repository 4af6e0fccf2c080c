"""What a try can show: it survives, or something is lost, doubled or silently wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torture.world import World


class Failed(Exception):
    """A try that did not survive; `column` is that of the printed table."""

    column = "lost"


class Lost(Failed):
    """Work was lost, the build cannot go on, or it ended in any other way than an error in one line."""


class Doubled(Failed):
    """A request, a commit or a row came twice."""

    column = "doubled"


class Silent(Failed):
    """Exit status 0 with other bytes than those of the unharmed run."""

    column = "silent"


@dataclass(frozen=True)
class Fault:
    """One line of the table.

    Attributes:
        name: as `--only` takes it.
        run: makes one try; raises Failed if it is not survived.
        short: tries in the short form, none for 0.
        full: the most tries in the full form; no limit for 0.
    """

    name: str
    run: Callable[[World, Random], None]
    short: int = 1
    full: int = 0


@dataclass
class Tally:
    """The tries of one fault."""

    fault: Fault
    tries: int = 0
    seconds: float = 0.0
    failures: dict[int, Failed] = field(default_factory=dict)  # number of the try → what it showed

    def count(self, column: str) -> int:
        """How many tries belong into a column."""
        return sum(failed.column == column for failed in self.failures.values())


def table(tallies: list[Tally]) -> str:
    """The table of all faults that were tried."""
    columns = ("lost", "doubled", "silent")
    lines = [f"{'fault':44} {'tries':>6} {'survived':>9} " + " ".join(f"{name:>8}" for name in columns)]
    for tally in (*(tally for tally in tallies if tally.tries), _total(tallies)):
        counts = " ".join(f"{tally.count(name):8}" for name in columns)
        lines.append(f"{tally.fault.name:44} {tally.tries:6} {tally.tries - len(tally.failures):9} {counts}")
    return "\n".join(lines)


def _total(tallies: list[Tally]) -> Tally:
    total = Tally(Fault("all", lambda _world, _rng: None), sum(tally.tries for tally in tallies))
    every = [failed for tally in tallies for failed in tally.failures.values()]
    total.failures = dict(enumerate(every))
    return total
