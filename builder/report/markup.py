"""HTML from untrusted texts: everything that is not markup of our own is cut and escaped here."""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Sequence
from typing import Any

_LONGEST = 160  # characters of a text
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffe\uffff]+")


def plain(text: object, longest: int = _LONGEST) -> str:
    """One line without control characters, cut to some characters."""
    words = _CONTROL.sub(" ", str(text)[: 4 * longest]).strip()
    return words if len(words) <= longest else words[: longest - 1].rstrip() + "…"


def text(value: object, longest: int = _LONGEST) -> str:
    """A text as HTML."""
    return html.escape(plain(value, longest))


def as_json(value: Any) -> str:
    """JSON that can stand in a script element: it holds no "<"."""
    return json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def data_uri(kind: str, data: bytes) -> str:
    """Bytes as a data: URL."""
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def section(name: str, title: str, *parts: str) -> str:
    """A section with a heading; `name` is its anchor."""
    heading = f'<h2 id="{name}-title">{title}</h2>'
    return f'<section id="{name}" aria-labelledby="{name}-title">{heading}{"".join(parts)}</section>'


def empty(reason: str) -> str:
    """What stands in place of a chart or list that has nothing to show."""
    return f'<p class="empty">{text(reason, 400)}</p>'


def note(words: str) -> str:
    """A paragraph of explanation; `words` are markup of our own."""
    return f'<p class="note">{words}</p>'


def table(name: str, caption: str, header: Sequence[str], rows: Sequence[Sequence[object]], left: int = 1) -> str:
    """A table; the first `left` columns are text, the others numbers."""
    kinds = ["" if n < left else ' class="num"' for n in range(len(header))]
    head = "".join(f'<th scope="col"{kind}>{text(cell)}</th>' for kind, cell in zip(kinds, header, strict=True))
    lines = []
    for row in rows:
        first, *others = (text(cell) for cell in row)
        cells = "".join(f"<td{kind}>{cell}</td>" for kind, cell in zip(kinds[1:], others, strict=True))
        lines.append(f'<tr><th scope="row">{first}</th>{cells}</tr>')
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{text(caption)}"><table id="{name}">'
        f"<caption>{text(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def data(*tables: str) -> str:
    """The tables behind a chart."""
    return f"<details><summary>Data</summary>{''.join(tables)}</details>"


def figure(chart: str, caption: str, *more: str) -> str:
    """A chart with its caption and its data; `caption` is markup of our own."""
    return f"<figure>{chart}<figcaption>{caption}</figcaption>{''.join(more)}</figure>"


def count(value: int) -> str:
    """A whole number with separators."""
    return f"{value:,}"


def number(value: float, decimals: int, sign: bool = False) -> str:
    """A number with so many decimals and a real minus sign."""
    return f"{value:{'+' if sign else ''}.{decimals}f}".replace("-", "−")


def percent(share: float) -> str:
    """A share from 0 to 1 in percent; what is not quite all or nothing does not look so."""
    value = 100 * share
    if 0 < value < 0.05:
        return "<0.1 %"
    if 99.95 <= value < 100:
        return ">99.9 %"
    return f"{value:.1f} %"


def things(value: int, one: str, several: str | None = None) -> str:
    """ "1 product", "2 products"."""
    return f"{value:,} {one if value == 1 else several or one + 's'}"
