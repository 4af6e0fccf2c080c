"""The generated sentences of the card of a shop's own catalogue: what the recipe states and the data shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from builder.release import stated
from builder.release.card_labels import CLICKS, Labels
from builder.release.statistics import Statistics
from sqid_lib import schemas

if TYPE_CHECKING:
    from builder.recipe import Recipe


def values(recipe: Recipe, statistics: Statistics, labels: Labels) -> dict[str, str]:
    """What the names of catalogue_card.md stand for, besides those that every card has."""
    card = recipe.card
    return {
        "description": stated.markdown(card.description),
        "homepage": stated.one_line(card.homepage),
        "citation": stated.citation(card.citation),
        "locale": stated.one_line(", ".join(recipe.selection.locales)),
        "parts": _parts(statistics),
        "kept_sentence": _kept(statistics),
        "labels_sentence": _labels(labels),
        "images_sentence": _images(recipe),
        "embedded_texts": ("query text and " if schemas.QUERIES in statistics.splits else "") + product_text(recipe),
        "licence_sentence": _licence(card.licence),
    }


def product_text(recipe: Recipe) -> str:
    """What the text vector of a product is made of."""
    template = recipe.encoder.text
    title = template == "{product_title}" or recipe.artifacts is not None
    return "product title" if title else f"product text (`{stated.markdown(stated.one_line(template))}`)"


def _parts(statistics: Statistics) -> str:
    parts = ["texts and images of each product as embeddings"]
    if schemas.QUERIES in statistics.splits:
        parts.append("queries")
    if schemas.JUDGMENTS in statistics.splits:
        parts.append("judgments of products for queries")
    return _listed(parts, "and")


def _kept(statistics: Statistics) -> str:
    kept = schemas.kept_columns(schemas.DEFAULT_CONFIG, statistics.columns[schemas.DEFAULT_CONFIG])
    names = [f"`{stated.one_line(field.name)}`" for field in kept]
    return f"Of its own columns it carries {_listed(names, 'and')}." if names else ""


def _labels(labels: Labels) -> str:
    if labels.gains:
        names = [f"`{stated.one_line(name)}`" for name in labels.gains]
        gains = stated.markdown(labels.shown)
        return f"Each has one of the labels {_listed(names, 'or')}. `gain` is the number of the label: {gains}."
    if labels.kind == CLICKS:
        return (
            "They are made from a click log: `esci_label` states clicks/impressions of the query and the product, and "
            f"`gain` is computed from them, {labels.shown}."
        )
    return f"They are numbers: `gain` is the number of the judgment, {labels.shown}."


def _images(recipe: Recipe) -> str:
    local = recipe.catalogue is not None and recipe.catalogue.images is not None
    if local:
        return "Images were read from files of the shop, or downloaded, and decoded once. Those from files have no URL."
    return "Images were downloaded or read once, and decoded. Those that were no URL in the catalogue have none here."


def _licence(licences: Sequence[str]) -> str:
    names = [f"`{stated.one_line(name)}`" for name in licences]
    return f"Licence of the data: {_listed(names, 'and')}." if names else "No licence is stated."


def _listed(words: Sequence[str], word: str) -> str:
    return f" {word} ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def stated_parts(values: Mapping[str, str]) -> set[str]:
    """The optional parts of the template for which something is stated."""
    return {name for name in ("description", "homepage", "citation") if values.get(name)}
