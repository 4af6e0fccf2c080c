"""One problem of a release, and a tally that makes one line of many rows with the same problem."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from sqid_lib.errors import without_secrets

_MAX_TEXT = 500  # characters of a message; names and values come from untrusted files


@dataclass(frozen=True)
class Problem:
    """`code` names the kind (stable, for scripts), `where` the file or config, `message` what is wrong, how often.

    Both texts are one line that a terminal can show, without passwords and signatures of URLs and without tokens.
    """

    code: str
    where: str
    message: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "where", _shown(self.where))
        object.__setattr__(self, "message", _shown(self.message))

    def __str__(self) -> str:
        return f"{self.where}: {self.message} [{self.code}]"


def _shown(text: str) -> str:
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in without_secrets(text))
    return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}…"


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
