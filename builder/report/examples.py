"""The section that shows products: a sample with images, and failures with their reasons."""

from __future__ import annotations

import numpy as np

from builder.report.markup import count, empty, note, section, table, text, things
from builder.report.release import Release
from builder.report.work import Work
from sqid_lib import schemas

SIDE = 160  # pixels of an image on a card
_SAMPLE = 24
_FAILURES = 5  # of each status


def products_section(release: Release, work: Work | None) -> str:
    """A sample of products with images, and of failures with reasons."""
    shown = ("<h3>With an image</h3>", _sample(release, work), "<h3>Failures</h3>", _failures(release, work))
    return section("products", "Products", *shown)


def _sample(release: Release, work: Work | None) -> str:
    if work is None:
        return empty("A release holds no images. For images run sqid report on the work directory of its build.")
    rows = [row for row, sha256 in enumerate(work.sha256s) if sha256]
    if not rows:
        return empty(
            "No image is stored in this work directory: the vectors were not made here, or nothing was fetched."
        )
    chosen = [rows[n] for n in np.unique(np.linspace(0, len(rows) - 1, _SAMPLE).astype(int))]
    thumbnails, why = work.thumbnails(chosen, SIDE)
    if not thumbnails:
        return empty(f"No thumbnails: {why or 'none of the sampled images can be decoded here'}.")
    cards = "".join(card(release, row, thumbnails) for row in chosen if row in thumbnails)
    words = f"{things(len(thumbnails), 'product')}, evenly spaced among {count(len(rows))} with an image."
    return f'<ul class="cards" id="sample">{cards}</ul>{note(words)}'


def card(release: Release, row: int, thumbnails: dict[int, str], more: str = "") -> str:
    """A product as an item of a list, with its image if it is there. `more` is markup of our own."""
    title, brand, product, locale = (
        value_of(release, column, row) for column in ("product_title", "product_brand", *schemas.PRODUCT_KEY)
    )
    # the title stands beside the image: a second reading of it would only repeat
    image = f'<img src="{thumbnails[row]}" alt="">' if row in thumbnails else ""
    facts = " · ".join(text(fact, 40) for fact in (product, locale, brand) if fact)
    name = f'<bdi class="title">{text(title or "(no title)", 90)}</bdi>'
    return f'<li>{image}{name}<span class="id">{facts}</span>{more}</li>'


def value_of(release: Release, column: str, row: int) -> str:
    """A value of a product as text, "" for null."""
    value = release.products[column][row].as_py()
    return "" if value is None else str(value)


def _failures(release: Release, work: Work | None) -> str:
    failed: dict[str, list[int]] = {}
    for row, status in enumerate(release.statuses):
        if status not in (*schemas.EMBEDDED_STATUSES, schemas.MISSING):
            failed.setdefault(status, []).append(row)
    if not failed:
        return empty("No image failed: every product has its image, or none is known.")
    lines = []
    for status, rows in sorted(failed.items(), key=lambda item: (-len(item[1]), item[0])):
        for row in rows[:_FAILURES]:
            reason = (work.detail[row] if work else None) or schemas.IMAGE_STATUS.get(status, "")
            title, url = (value_of(release, column, row) for column in ("product_title", "image_url"))
            reference = url or (work.references[row] if work else None) or ""
            lines.append((f"{status} ({len(rows):,})", title, reference, reason))
    header = ("status (products)", "title", "image URL or local image", "reason")
    return table("failures", f"Up to {_FAILURES} products of each status without a usable image", header, lines, 4)
