"""The result of a search: as text, for notebooks, as a data frame and as JSON."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING

from sqid_lib.evaluation import notebook

if TYPE_CHECKING:
    import pandas as pd

_TITLE = 60  # characters of a title in the text table


@dataclass(frozen=True)
class Hit:
    """One product found; texts are None where the store has none."""

    product_id: str
    product_locale: str
    title: str | None
    image_url: str | None
    image_status: str | None
    score: float
    text_score: float
    image_score: float


COLUMNS = tuple(field.name for field in fields(Hit))


@dataclass(frozen=True, repr=False)
class SearchResult:
    """The products found, best first; iterable, with a length, `result[0]` is the best.

    Attributes:
        hits: what was found.
        notes: what the reader should know, such as that no product has an image vector.
    """

    hits: tuple[Hit, ...]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.hits)

    def __iter__(self) -> Iterator[Hit]:
        return iter(self.hits)

    def __getitem__(self, rank: int) -> Hit:
        return self.hits[rank]

    def __str__(self) -> str:
        """Aligned text: a line for each product, then the notes."""
        return "\n".join([*self.table(), *self.notes])

    __repr__ = __str__

    def table(self) -> list[str]:
        """The lines of the text table, a line of titles first."""
        if not self.hits:
            return ["no product found"]
        header = ("", "score", "text", "image", "product_id", "locale", "image_status", "title")
        rows: list[tuple[str, ...]] = [header]
        for rank, hit in enumerate(self.hits, 1):
            scores = (f"{value:.4f}" for value in (hit.score, hit.text_score, hit.image_score))
            texts = map(_printable, (hit.product_id, hit.product_locale, hit.image_status))
            rows.append((str(rank), *scores, *texts, _shortened(_printable(hit.title))))
        widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
        return [
            "  ".join(
                cell.rjust(width) if column < 4 else cell.ljust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]

    def _repr_html_(self) -> str:
        """The same for notebooks, with the images that have an http(s) URL, and the status of the others."""
        head = "".join(f"<th>{name}</th>" for name in ("", "image", *COLUMNS[:3], *COLUMNS[4:]))
        body = "".join(_html_row(rank, hit) for rank, hit in enumerate(self.hits, 1))
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in self.notes)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table><ul>{notes}</ul>"

    def to_pandas(self) -> pd.DataFrame:
        """A row for each product, best first, with the fields of `Hit` as columns."""
        import pandas as pd

        return pd.DataFrame([asdict(hit) for hit in self.hits], columns=list(COLUMNS))

    def to_json(self) -> str:
        """A list of objects with the fields of `Hit`, best first."""
        return json.dumps([asdict(hit) for hit in self.hits], indent=2, ensure_ascii=False, allow_nan=False)


def _html_row(rank: int, hit: Hit) -> str:
    texts = (hit.product_id, hit.product_locale, hit.title, hit.image_status)
    scores = (f"{value:.4f}" for value in (hit.score, hit.text_score, hit.image_score))
    image = notebook.image(hit.image_url, hit.image_status, hit.title)
    cells = (str(rank), image, *map(notebook.escaped, texts), *scores)
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _printable(text: str | None) -> str:
    """On one line, without control characters: texts are untrusted, and a terminal obeys escape sequences."""
    return " ".join("".join(c if c.isprintable() else " " for c in text or "").split())


def _shortened(text: str) -> str:
    return text if len(text) <= _TITLE else text[: _TITLE - 1] + "…"
