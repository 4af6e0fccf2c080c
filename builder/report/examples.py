"""The sections that show products: samples, failures with their reasons, and suspects."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from builder.report import suspects
from builder.report.markup import count, empty, note, number, percent, section, table, text, things
from builder.report.release import Release
from builder.report.suspects import Contradicted
from builder.report.work import Work
from sqid_lib import schemas
from sqid_lib.evaluation import Comparison

_SAMPLE = 24
_FAILURES = 5  # of each status
_GROUPS = 8
_IN_GROUP = 6
_SIDE = 160


def products_section(release: Release, work: Work | None) -> str:
    """A sample of products with images, and of failures with reasons."""
    return section(
        "products",
        "Products",
        "<h3>With an image</h3>",
        _sample(release, work),
        "<h3>Failures</h3>",
        _failures(release, work),
    )


def _sample(release: Release, work: Work | None) -> str:
    if work is None:
        return empty("A release holds no images. For images run sqid report on the work directory of its build.")
    rows = [row for row, sha256 in enumerate(work.sha256s) if sha256]
    if not rows:
        return empty(
            "No image is stored in this work directory: its vectors were not made here, or nothing was fetched."
        )
    chosen = [rows[n] for n in np.unique(np.linspace(0, len(rows) - 1, _SAMPLE).astype(int))]
    pictures, why = work.thumbnails(chosen, _SIDE)
    if not pictures:
        return empty(f"No thumbnails: {why or 'none of the sampled images can be decoded here'}.")
    cards = "".join(_card(release, row, pictures) for row in chosen if row in pictures)
    return f'<ul class="cards" id="sample">{cards}</ul>' + note(
        f"{things(len(pictures), 'product')}, evenly spaced among {count(len(rows))} with an image."
    )


def _card(release: Release, row: int, pictures: dict[int, str], more: str = "") -> str:
    """A product with its image, if it is there. `more` is markup of our own."""
    title = _value(release, "product_title", row) or "(no title)"
    picture = pictures.get(row)
    # the title stands beside it: a second reading of it would only repeat
    image = f'<img src="{picture}" alt="">' if picture else '<span class="blank" aria-hidden="true"></span>'
    brand = _value(release, "product_brand", row)
    product = f"{_value(release, 'product_id', row)} · {_value(release, 'product_locale', row)}"
    lines = f'<bdi class="title">{text(title, 90)}</bdi><span class="id">{text(product, 60)}{" · " + text(brand, 30) if brand else ""}</span>'
    return f"<li>{image}{lines}{more}</li>"


def _value(release: Release, column: str, row: int) -> str:
    value = release.products[column][row].as_py()
    return "" if value is None else str(value)


def _failures(release: Release, work: Work | None) -> str:
    statuses = release.statuses
    known = (*schemas.EMBEDDED_STATUSES, schemas.MISSING)
    failed = {
        name: rows
        for name in sorted(set(statuses) - set(known))
        if (rows := [n for n, s in enumerate(statuses) if s == name])
    }
    if not failed:
        return empty("No image failed: every product has its image, or has no image URL.")
    lines = []
    for name, rows in sorted(failed.items(), key=lambda item: (-len(item[1]), item[0])):
        for row in rows[:_FAILURES]:
            reason = (work.detail[row] if work else None) or schemas.IMAGE_STATUS.get(name, "")
            title, url = (_value(release, column, row) for column in ("product_title", "image_url"))
            lines.append((f"{name} ({len(rows):,})", title, url, reason))
    header = ("status (products)", "title", "image URL", "reason")
    return table("failures", f"Up to {_FAILURES} products of each status without a usable image", header, lines, 4)


# -- suspects -------------------------------------------------------------------------------------------------------


def suspects_section(release: Release, work: Work | None, comparison: Comparison | None, why: str) -> str:
    """Equal images, images far from their title, and queries whose labels and vectors disagree."""
    words = (
        "Rows that are more often wrong than others. None of them is wrong for sure: look before you change anything."
    )
    if not release.width:
        return section("suspects", "Suspects", empty("The release has no vectors to judge by."))
    return section(
        "suspects",
        "Suspects",
        note(words),
        _equal(release, work),
        _far(release, work),
        _against(release, comparison, why),
    )


def _pictures(work: Work | None, rows: Sequence[int]) -> dict[int, str]:
    return work.thumbnails(rows, _SIDE)[0] if work else {}


def _equal(release: Release, work: Work | None) -> str:
    title = "<h3>One image, several products</h3>"
    if not release.has_image.any():
        return title + empty("No product has an image vector.")
    same = suspects.duplicates(release, work.sha256s if work else None)
    near = suspects.near_duplicates(release, same)
    pictures = _pictures(
        work,
        [
            *(r for g in same[:_GROUPS] for r in g.rows[:_IN_GROUP]),
            *(r for p in near.pairs for r in (p.first, p.second)),
        ],
    )
    todo = (
        "<b>What to do:</b> open the image URLs. If the image is a placeholder, its URL should not count as the product's own "
        "image; if one URL is wrong, correct its row in the table of [resolve]; variants of one product, whose titles have a "
        "cosine near 1, may share an image."
    )
    groups = "".join(
        f'<li><p><b>{things(len(g.rows), "product")}</b> with the same {"file" if g.same_file else "vector"}; cosine of their titles <b>{number(g.titles, 3)}</b></p><ul class="cards small">'
        + "".join(_card(release, row, pictures) for row in g.rows[:_IN_GROUP])
        + "</ul></li>"
        for g in same[:_GROUPS]
    )
    exact = (
        f'<ol class="groups" id="duplicates">{groups}</ol>' if groups else empty("No two products have the same image.")
    )
    affected = sum(len(group.rows) for group in same)
    exactly = f"{things(len(same), 'image')} shared by {things(affected, 'product')}, over all products" + (
        f"; shown are the {_GROUPS} with the most products, and of equal ones those whose titles differ most"
        if len(same) > _GROUPS
        else ""
    )
    pairs = "".join(
        f'<li><p>cosine <b>{p.cosine:.4f}</b></p><ul class="cards small">{_card(release, p.first, pictures)}{_card(release, p.second, pictures)}</ul></li>'
        for p in near.pairs
    )
    nearly = (
        f"{things(near.found, 'pair')} of different images with a cosine of at least {suspects.NEAR}; compared pair by pair: "
        f"{count(near.compared)} of {things(near.distinct, 'distinct image vector')}"
        + (", evenly spaced." if near.compared < near.distinct else ", all of them.")
    )
    shown = f'<ol class="groups" id="near-duplicates">{pairs}</ol>' if pairs else empty("No pair is that near.")
    return f"{title}{note(todo)}<h4>The same image</h4>{note(exactly + '.')}{exact}<h4>Nearly the same image</h4>{note(nearly)}{shown}"


def _far(release: Release, work: Work | None) -> str:
    title = "<h3>Images far from their title</h3>"
    if not (release.has_image & release.has_text).any():
        return title + empty("No product has both a text and an image vector.")
    found = suspects.far_images(release)
    if not found:
        return title + empty("All products have the same cosine of text and image.")
    pictures = _pictures(work, [case.row for case in found])
    cards = "".join(
        _card(
            release,
            c.row,
            pictures,
            f'<span class="number">cosine {number(c.cosine, 3)}, {c.deviations:.1f} σ below the mean</span>',
        )
        for c in found
    )
    todo = (
        "<b>What to do:</b> compare image and title. A wrong image comes from a wrong row in the table of [resolve]; a title "
        "without words for what is seen, such as a model number, is no mistake."
    )
    return f'{title}{note(todo)}<ul class="cards small" id="far">{cards}</ul>'


def _against(release: Release, comparison: Comparison | None, why: str) -> str:
    title = "<h3>Queries whose labels and vectors disagree</h3>"
    if comparison is None:
        return title + empty(why)
    method = "fusion" if "fusion" in comparison.scores else next(iter(comparison.scores))
    found = suspects.contradicted(comparison.lists, comparison.scores[method])
    if not found:
        return title + empty("No query with enough judgments of different gains is ranked against its labels.")
    rows = [_contradiction(release, case) for case in found]
    header = (
        "query",
        "best label, lowest score",
        "worst label, highest score",
        "judged",
        "pairs",
        "in the wrong order",
        "z",
    )
    todo = (
        "<b>What to do:</b> read the judgments of the query. If labels are exchanged or belong to another query, correct the "
        "judgments; if they are right, the encoder does not understand the query: negations and brands are often such."
    )
    caption = (
        f"z is Kendall's statistic of labels and the scores of {method}: −2 and less is rarely chance in a single query"
    )
    return f"{title}{note(todo)}{table('contradicted', caption, header, rows, 3)}"


def _contradiction(release: Release, case: Contradicted) -> tuple[str, ...]:
    query = f"{release.queries['query'][case.query].as_py()} ({release.queries['query_id'][case.query].as_py()})"

    def judged(row: int) -> str:
        label = release.judgments["esci_label"][row].as_py()
        product = int(release.judgment_product_index[row])
        return f"{label}: {_value(release, 'product_title', product)[:80]}"

    return (
        query,
        judged(case.best),
        judged(case.worst),
        count(case.judged),
        count(case.pairs),
        percent(case.wrong),
        number(case.z, 2),
    )
