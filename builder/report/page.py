"""The whole page: sections, style, script and a policy that allows nothing else."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from pathlib import Path

from builder.report import coverage, examples, ranking, suspects_section, vectors
from builder.report.markup import count, percent, text
from builder.report.release import Release
from builder.report.work import Work

_HERE = Path(__file__).parent
_SECTIONS = {
    "funnel": "From catalogue to vectors",
    "coverage": "Coverage",
    "vectors": "Vectors",
    "map": "Map of products",
    "products": "Products",
    "suspects": "Suspects",
    "ranking": "Ranking",
    "build": "Build",
}


def render(release: Release, work: Work | None, name: str, key: str, method: str) -> str:
    """The report as HTML, the same for the same release and work directory.

    Args:
        name: of the release, where its manifest states none.
        key: what the report was made of, for `write.report_of_build`.
        method: of the map, `projection.PCA` or `projection.UMAP`.
    """
    stated = release.manifest.get
    comparison, why = ranking.compare(release)
    plot, points = vectors.map_section(release, work, method)
    body = "".join(
        (
            coverage.funnel_section(release),
            coverage.coverage_section(release),
            vectors.vectors_section(release),
            plot,
            examples.products_section(release, work),
            suspects_section.suspects_section(release, work, comparison, why),
            ranking.ranking_section(comparison, why),
            ranking.build_section(release, work),
        )
    )
    title = f"{text(stated('name') or name, 60)} {text(stated('version') or '', 30)}".strip()
    style, script = ((_HERE / file).read_text(encoding="utf-8") for file in ("report.css", "report.js"))
    module = (
        f'<script type="application/json" id="points">{points}</script><script type="module">{script}</script>'
        if points
        else ""
    )
    links = "".join(f'<li><a href="#{anchor}">{words}</a></li>' for anchor, words in _SECTIONS.items())
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_policy(style, script if points else "")}">'
        f'<meta name="made-of" content="{text(key)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>Report: {title}</title><style>{style}</style></head><body>"
        f'<a class="skip" href="#funnel">To the content</a><header><p class="kind">SQID report</p><h1>{title}</h1>'
        f"{_model(release)}{_tiles(release)}</header>"
        f'<nav aria-label="Contents"><ol>{links}</ol></nav><main>{body}</main>{module}</body></html>\n'
    )


def _policy(style: str, script: str) -> str:
    allowed: Mapping[str, str] = {
        "default-src": "'none'",
        "img-src": "data:",
        "style-src": _hash(style),
        "script-src": _hash(script) if script else "'none'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in allowed.items())


def _hash(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def _model(release: Release) -> str:
    model = release.manifest.get("model")
    if not model:
        return ""
    revision = release.manifest.get("revision")
    version = f" at {text(revision, 50)}" if revision else ""
    return f"<p>Vectors of {release.width} numbers by <b>{text(model)}</b>{version}.</p>"


def _tiles(release: Release) -> str:
    products = len(release.products)
    images = int(release.has_image.sum())
    tiles = {
        "products": count(products),
        "with an image vector": percent(images / products) if products else "none",
        "queries": count(len(release.queries)),
        "judgments": count(len(release.judgments)),
        "labels": count(len(release.gains)),
    }
    items = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in tiles.items())
    return f'<dl class="tiles">{items}</dl>'
