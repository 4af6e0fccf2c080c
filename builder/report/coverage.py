"""The sections that count: the funnel from catalogue to vectors, and coverage."""

from __future__ import annotations

from builder.report import charts, numbers
from builder.report.charts import Bar
from builder.report.markup import count, data, empty, figure, note, percent, section, table, text, things
from builder.report.release import Release
from sqid_lib import schemas


def funnel_section(release: Release) -> str:
    """From the products of the catalogue to image vectors, with the losses of each step."""
    steps = numbers.funnel(release)
    if not steps[0].count:
        return section("funnel", "From catalogue to vectors", empty("The release has no products."))
    first, items = steps[0].count, []
    for step in steps:
        lost = "".join(
            f"<li>−{count(n)} <b>{text(reason)}</b> {text(_meaning(reason))}</li>" for reason, n in step.lost.items()
        )
        bar = charts.bars(
            [Bar(step.name, first, step.count, f"{count(step.count)} · {percent(step.count / first)}")], step.name
        )
        items.append(f"<li>{bar}{f'<ul class=lost>{lost}</ul>' if lost else ''}</li>")
    rows = [
        (
            step.name,
            count(step.count),
            percent(step.count / first),
            ", ".join(f"{r} {n:,}" for r, n in step.lost.items()),
        )
        for step in steps
    ]
    caption = (
        f"{things(first, 'product')} of the selection; each step keeps what passed all earlier ones. {_beside(release)}"
    )
    shown = figure(
        f'<ol class="funnel">{"".join(items)}</ol>',
        caption,
        data(
            table(
                "funnel-data", "Products after each step", ("step", "products", "of all", "lost here, by reason"), rows
            )
        ),
    )
    return section("funnel", "From catalogue to vectors", shown)


def _beside(release: Release) -> str:
    """What is true beside the funnel: text vectors and supplementary products."""
    texts = int(release.has_text.sum())
    words = f"{count(texts)} of them have a text vector ({percent(texts / len(release.products))})."
    if release.supp:
        total = sum(release.supp.values())
        shown = ", ".join(
            f"{text(name)} {n:,}" for name, n in sorted(release.supp.items(), key=lambda i: (-i[1], i[0]))
        )
        words += f" Besides, {things(total, 'supplementary product')}: {shown}."
    return words


def _meaning(reason: str) -> str:
    if reason == numbers.NO_VECTOR:
        return "an image is known, and the vectors do not have it"
    return schemas.IMAGE_STATUS.get(reason, "")


def coverage_section(release: Release) -> str:
    """Coverage by image status, brand and query source."""
    parts = [_statuses(release), _brands(release), _sources(release)]
    return section("coverage", "Coverage", note("The dark part of a bar is what has an image vector."), *parts)


def _statuses(release: Release) -> str:
    found = numbers.by_status(release)
    title = "<h3>By image status</h3>"
    if not found:
        return title + empty("The release has no products.")
    total = sum(found.values())
    embedded = {name: n if name in schemas.EMBEDDED_STATUSES else 0 for name, n in found.items()}
    bars = [Bar(name, n, embedded[name], f"{n:,} · {percent(n / total)}") for name, n in found.items()]
    rows = [(name, schemas.IMAGE_STATUS.get(name, ""), count(n), percent(n / total)) for name, n in found.items()]
    shown = table("status-data", "Products by image status", ("status", "meaning", "products", "of all"), rows, 2)
    return title + figure(charts.bars(bars, "products by image status"), "Products by image status.", data(shown))


def _brands(release: Release) -> str:
    title = "<h3>By brand</h3>"
    if not len(release.products):
        return title + empty("The release has no products.")
    shares = numbers.by_brand(release)
    if not any(release.texts("product_brand")):
        return title + empty("No product states a brand.")
    rows = [(s.name, count(s.total), count(s.covered), percent(s.share)) for s in shares]
    shown = table("brand-data", "Products by brand", ("brand", "products", "with an image vector", "share"), rows)
    bars = [charts.share_bar(s.name, s.covered, s.total) for s in shares]
    named = [bar for share, bar in zip(shares, bars, strict=True) if not share.name.startswith(numbers.OTHER)]
    caption = "Products with an image vector, of all products of the brand; the largest brands."
    if len(named) < len(bars):
        caption += " All other brands together are in the table."
    return title + figure(charts.bars(named, "products by brand, and those with an image vector"), caption, data(shown))


def _sources(release: Release) -> str:
    title = "<h3>By query source</h3>"
    if not len(release.queries):
        return title + empty("The release has no queries.")
    if not len(release.judgments):
        return title + empty("The release has no judgments, so no products belong to its queries.")
    found = numbers.by_source(release)
    rows = [
        (
            s.name,
            count(s.queries),
            count(s.judged.total),
            count(s.judged.covered),
            percent(s.judged.share),
            count(s.complete),
        )
        for s in found
    ]
    header = ("source", "queries", "judgments", "with an image vector", "share", "queries with all images")
    bars = [charts.share_bar(s.name, s.judged.covered, s.judged.total) for s in found]
    caption = "Judgments whose product has an image vector, of all judgments of the source's queries."
    shown = table("source-data", "Queries and judgments by query source", header, rows)
    return title + figure(charts.bars(bars, "judgments by query source, and those with an image"), caption, data(shown))
