"""HTML for notebooks: tables, images of products, and the queries on which two rankings differ most.

Every text is escaped, for it may come from anyone. Images come from their http(s) URL; nothing is loaded here.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

import numpy as np

from sqid_lib import schemas
from sqid_lib.evaluation import runs
from sqid_lib.evaluation.arrays import Floats
from sqid_lib.evaluation.judged import JudgedLists, Store

QUERIES, PRODUCTS = 3, 6  # shown at most
_LONGEST = 200  # characters of a text
_SIDE = 84  # pixels of an image
_CELL = f"display:inline-block;width:{_SIDE + 12}px;margin:2px;vertical-align:top;text-align:center;font-size:11px"
_NO_IMAGE = f"display:inline-block;width:{_SIDE}px;height:{_SIDE}px;border:1px solid #8888;box-sizing:border-box"
_LINE = "white-space:nowrap;overflow-x:auto;margin:2px 0 8px"


def escaped(text: object) -> str:
    """At most 200 characters of a text, for an element or an attribute."""
    shown = "" if text is None else str(text)
    return html.escape(shown if len(shown) <= _LONGEST else shown[: _LONGEST - 1] + "…", quote=True)


def image(url: str | None, status: str | None, title: str | None = None) -> str:
    """An image by its http(s) URL; a box with its status where there is none, and where the browser cannot load it."""
    shown = escaped(status or "no image")
    if not url or not url.lower().startswith(("http://", "https://")):
        if status in schemas.EMBEDDED_STATUSES:  # a local image, of which a release publishes no URL
            shown = f"{shown}, no image URL"
        return f'<span style="{_NO_IMAGE}" title="{escaped(title)}">{shown}</span>'
    style = f"width:{_SIDE}px;height:{_SIDE}px;object-fit:contain;background:#fff;color:#555"
    options = f'alt="{shown}" title="{escaped(title)}" loading="lazy" referrerpolicy="no-referrer" style="{style}"'
    return f'<img src="{html.escape(url, quote=True)}" {options}>'


def table(title: str, header: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """A table of texts."""
    head, *body = (
        "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row)
        for tag, row in (("th", header), *(("td", row) for row in cells))
    )
    caption = f"<caption>{html.escape(title)}</caption>" if title else ""
    rows = "".join(f"<tr>{row}</tr>" for row in body)
    return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def examples(
    store: Store, lists: JudgedLists, rankings: Mapping[str, runs.Ranking], ndcg: Mapping[str, Floats], baseline: str
) -> str:
    """The first products, with images and labels, of two rankings for the queries whose nDCG differs most between them.

    The two are the baseline, if it ranks, and the best of the others. Of one ranking alone, the queries with the lowest
    nDCG are shown. Nothing is shown for a store without image URLs.

    Args:
        rankings: method → its ranking. ndcg: method → float64 [Q].
    """
    if not rankings or "image_url" not in store.products.column_names:
        return ""
    first = baseline if baseline in rankings else next(iter(rankings))
    others = [name for name in rankings if name != first]
    shown = [first, *sorted(others, key=lambda name: -float(ndcg[name].mean()))[:1]]
    if len(shown) == 2:
        order = np.argsort(-np.abs(ndcg[shown[1]] - ndcg[shown[0]]), kind="stable")
        title = f"Where {shown[0]} and {shown[1]} differ most"
    else:
        order, title = np.argsort(ndcg[first], kind="stable"), f"Where {first} has the lowest nDCG"
    parts = [f"<h4>{escaped(title)}</h4>"]
    texts = store.queries["query"]
    for number in order[:QUERIES].tolist():
        query = int(lists.query_index[number])
        parts.append(f"<div><b>{escaped(texts[query].as_py())}</b></div>")
        for name in shown:
            cells = "".join(_products(store, lists, rankings[name], query))
            parts.append(f'<div>{escaped(name)}: nDCG {ndcg[name][number]:.4f}</div><div style="{_LINE}">{cells}</div>')
    return "".join(parts)


def _products(store: Store, lists: JudgedLists, found: runs.Ranking, query: int) -> list[str]:
    """The first products of a ranking for the query in this row of the store."""
    start, stop = np.searchsorted(found.query, [query, query + 1])
    part = slice(int(start), min(int(stop), int(start) + PRODUCTS))
    best = runs.Ranking(found.query[part], found.product[part], found.score[part])
    index, judgment = runs.find_judged(store, lists, best)
    names = store.judgments["esci_label"].take(lists.row[judgment]).to_pylist()
    label = dict(zip(index.tolist(), names, strict=True))
    columns = [name for name in ("product_title", "image_url", "image_status") if name in store.products.column_names]
    rows = store.products.select(columns).take(best.product).to_pylist()
    return [
        f'<span style="{_CELL}">{image(row["image_url"], row.get("image_status"), row.get("product_title"))}'
        f"<br>{escaped(label.get(rank, 'not judged'))}</span>"
        for rank, row in enumerate(rows)
    ]
