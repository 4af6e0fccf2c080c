"""The section that shows suspects, each with a number and what to do."""

from __future__ import annotations

from collections.abc import Sequence

from builder.report import suspects
from builder.report.examples import SIDE, card, value_of
from builder.report.markup import count, empty, note, number, percent, section, table, things
from builder.report.release import Release
from builder.report.suspects import Contradicted, Duplicates, NearDuplicates
from builder.report.work import Work
from sqid_lib.evaluation import Comparison

_GROUPS = 8
_IN_GROUP = 6
_DOUBT = "Rows that are more often wrong than others. None of them is wrong for sure: look before you change anything."
_EQUAL = (
    "<b>What to do:</b> open the image URLs. If the image is a placeholder, its URL should not count as the product's "
    "own image; if one URL is wrong, correct its row in the table of images or of products; variants of one product, "
    "whose titles have a cosine near 1, may share an image."
)
_FAR = (
    "<b>What to do:</b> compare image and title. A wrong image comes from a wrong row in the table of images or of "
    "products; a title without words for what is seen, such as a model number, is no mistake."
)
_AGAINST = (
    "<b>What to do:</b> read the judgments of the query. If labels are exchanged or belong to another query, correct "
    "the judgments; if they are right, the encoder does not understand the query: negations and brands are often such. "
    "Where z is far above 0, as it should be, there is nothing to do."
)


def suspects_section(release: Release, work: Work | None, comparison: Comparison | None, why: str) -> str:
    """Equal images, images far from their title, and queries whose labels and vectors disagree."""
    if not release.width:
        return section("suspects", "Suspects", empty("The release has no vectors to judge by."))
    shown = (
        *("<h3>One image, several products</h3>", _equal(release, work)),
        *("<h3>Images far from their title</h3>", _far(release, work)),
        *("<h3>Queries whose labels and vectors disagree</h3>", _against(release, comparison, why)),
    )
    return section("suspects", "Suspects", note(_DOUBT), *shown)


def _thumbnails(work: Work | None, rows: Sequence[int]) -> dict[int, str]:
    return work.thumbnails(rows, SIDE)[0] if work else {}


def _equal(release: Release, work: Work | None) -> str:
    if not release.has_image.any():
        return empty("No product has an image vector.")
    same = suspects.duplicates(release, work.sha256s if work else None)
    near = suspects.near_duplicates(release, same)
    grouped = [row for group in same[:_GROUPS] for row in group.rows[:_IN_GROUP]]
    thumbnails = _thumbnails(work, [*grouped, *(row for pair in near.pairs for row in (pair.first, pair.second))])
    return note(_EQUAL) + _same(release, same, thumbnails) + _near(release, near, thumbnails)


def _same(release: Release, same: Sequence[Duplicates], thumbnails: dict[int, str]) -> str:
    affected = sum(len(group.rows) for group in same)
    words = f"{things(len(same), 'image')} shared by {things(affected, 'product')}, over all products"
    if len(same) > _GROUPS:
        words += f"; shown are the {_GROUPS} with the most products, and of equal ones those whose titles differ most"
    groups = []
    for group in same[:_GROUPS]:
        what = "file" if group.same_file else "vector"
        head = f"<b>{things(len(group.rows), 'product')}</b> with the same {what}"
        groups.append(
            _group(
                f"{head}; lowest cosine of their titles <b>{number(group.titles, 3)}</b>",
                [card(release, row, thumbnails) for row in group.rows[:_IN_GROUP]],
            )
        )
    shown = _list("duplicates", groups) if groups else empty("No two products have the same image.")
    return f"<h4>The same image</h4>{note(words + '.')}{shown}"


def _near(release: Release, near: NearDuplicates, thumbnails: dict[int, str]) -> str:
    words = (
        f"{things(near.found, 'pair')} of different images with a cosine of at least {suspects.NEAR}; compared pair by "
        f"pair: {count(near.compared)} of {things(near.distinct, 'distinct image vector')}, "
        + ("evenly spaced." if near.compared < near.distinct else "all of them.")
    )
    pairs = [
        _group(
            f"cosine of the images <b>{number(pair.cosine, 4)}</b>",
            [card(release, row, thumbnails) for row in (pair.first, pair.second)],
        )
        for pair in near.pairs
    ]
    shown = _list("near-duplicates", pairs) if pairs else empty("No pair is that near.")
    return f"<h4>Nearly the same image</h4>{note(words)}{shown}"


def _group(head: str, cards: Sequence[str]) -> str:
    return f'<li><p>{head}</p><ul class="cards small">{"".join(cards)}</ul></li>'


def _list(name: str, groups: Sequence[str]) -> str:
    return f'<ol class="groups" id="{name}">{"".join(groups)}</ol>'


def _far(release: Release, work: Work | None) -> str:
    if not (release.has_image & release.has_text).any():
        return empty("No product has both a text and an image vector.")
    found = suspects.far_images(release)
    if not found:
        return empty("No image is farther from its title than the others.")
    thumbnails = _thumbnails(work, [case.row for case in found])
    cards = []
    for case in found:
        value = f"cosine {number(case.cosine, 3)}, {case.deviations:.1f} σ below the mean"
        cards.append(card(release, case.row, thumbnails, f'<span class="number">{value}</span>'))
    return f'{note(_FAR)}<ul class="cards small" id="far">{"".join(cards)}</ul>'


def _against(release: Release, comparison: Comparison | None, why: str) -> str:
    if comparison is None:
        return empty(why)
    method = "fusion" if "fusion" in comparison.scores else next(iter(comparison.scores))
    found = suspects.contradicted(comparison.lists, comparison.scores[method])
    if not found:
        return empty("No query with enough judgments of different gains has a pair of products in the wrong order.")
    header = (
        *("query", "best label, lowest score", "worst label, highest score"),
        *("judged", "pairs", "in the wrong order", "z"),
    )
    caption = f"z is Kendall's statistic of labels and scores of {method}: below −2 it is rarely chance in one query"
    rows = [_contradiction(release, case) for case in found]
    return note(_AGAINST) + table("contradicted", caption, header, rows, 3)


def _contradiction(release: Release, case: Contradicted) -> tuple[str, ...]:
    query = f"{release.queries['query'][case.query].as_py()} ({release.queries['query_id'][case.query].as_py()})"
    judged = [
        f"{release.judgments['esci_label'][row].as_py()}: "
        + value_of(release, "product_title", int(release.judgment_product_index[row]))
        for row in (case.best, case.worst)
    ]
    return (query, *judged, count(case.judged), count(case.pairs), percent(case.wrong), number(case.z, 2))
