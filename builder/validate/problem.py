"""One problem of a release, and a tally that makes one line of many rows with the same problem."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Problem:
    """`code` names the kind (stable, for scripts), `where` the file or config, `message` what is wrong, how often."""

    code: str
    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.message} [{self.code}]"


@dataclass
class Tally:
    """Rows with a problem, counted by code, file and message, with the first row as an example."""

    _rows: dict[tuple[str, str, str], tuple[int, str]] = field(default_factory=dict)

    def add(self, code: str, where: str, message: str, count: int, example: str) -> None:
        """Count rows with a problem; `example` names the first of them."""
        if count:
            before, first = self._rows.get((code, where, message), (0, example))
            self._rows[code, where, message] = (before + count, first)

    def problems(self) -> Iterator[Problem]:
        """One problem for each code, file and message."""
        for (code, where, message), (count, example) in self._rows.items():
            rows = "1 row" if count == 1 else f"{count:,} rows, first"
            yield Problem(code, where, f"{message}: {rows} {example}")
