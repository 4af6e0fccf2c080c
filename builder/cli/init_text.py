"""The recipe that `sqid init` writes: every key of a catalogue with its meaning, and what the tables look like."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from builder.catalogue import columns
from builder.catalogue.judgments import REFUSE
from builder.catalogue.preview import MOST_LABELS, JudgmentsPreview, Preview
from builder.cli.recipe_text import toml_key, toml_value

if TYPE_CHECKING:
    from pydantic import BaseModel

_WIDTH = 110
_CELL = 70  # characters of a cell that is shown


@dataclass(frozen=True)
class Draft:
    """What a recipe is written from.

    Attributes:
        command: the one that builds it.
        products, judgments, images: addresses as the recipe has them; None for what there is not.
        model: the encoder as the recipe has it.
        notes: key of [catalogue] → what was decided for the user, a sentence.
    """

    command: str
    name: str
    products: str
    judgments: str | None
    images: str | None
    locale: str
    model: str
    notes: dict[str, str]
    seen: Preview
    judged: JudgmentsPreview | None


def recipe_text(draft: Draft) -> str:
    """The recipe as TOML; its comments are the descriptions of the keys, as `sqid recipe --reference` prints them."""
    from builder.recipe import CardSettings, EncoderSettings, Recipe

    lines = [
        "# A recipe of `sqid init`. Read it, correct it, and run:",
        f"#   {draft.command}",
        '# What follows "#" is a comment. Every other key: sqid recipe --reference',
        "",
        *_key_lines(Recipe, "name", draft.name),
        *_key_lines(Recipe, "version", "1.0.0"),
        *_catalogue(draft),
        *_columns(draft),
        *_labels(draft),
        *_section(CardSettings, "card"),
    ]
    for key, field in CardSettings.model_fields.items():
        lines += _key_lines(CardSettings, key, field.default)
    lines += [*_section(EncoderSettings, "encoder"), *_key_lines(EncoderSettings, "model", draft.model)]
    return "\n".join(lines) + "\n"


def sample_lines(seen: Preview) -> Iterator[str]:
    """The rows of a preview, a line for each column: "product_title  Red shoe"."""
    width = max((len(name) for row in seen.samples for name in row), default=0)
    for number, row in enumerate(seen.samples, 1):
        for name, value in row.items():
            yield f"{number if name == next(iter(row)) else ' '}  {name:{width}}  {_cell(value)}"


def _cell(value: str | None) -> str:
    if value is None:
        return "(blank)"
    text = " ".join("".join(letter if letter.isprintable() else " " for letter in value).split())
    return text if len(text) <= _CELL else f"{text[: _CELL - 1]}…"


def _catalogue(draft: Draft) -> Iterator[str]:
    from builder.recipe import CatalogueSettings

    yield from _section(CatalogueSettings, "catalogue")
    kind = draft.judged.kind if draft.judged else None
    unknown = draft.judged.unknown_products if draft.judged else REFUSE
    values: dict[str, object] = {
        "products": draft.products,
        "locale": draft.locale,
        "images": draft.images,
        "judgments": draft.judgments if kind != "queries" else None,
        "queries": draft.judgments if kind == "queries" else None,
        "keep": [],
    }
    if kind in ("labels", "clicks"):
        values["unknown_products"] = unknown
    examples = {"images": "photos/", "judgments": "judgments.csv", "queries": "queries.csv"}
    for key, value in values.items():
        note = draft.notes.get(key)
        if key == "keep" and draft.seen.unused:
            note = f"Columns that are not used: {', '.join(map(toml_value, draft.seen.unused))}."
        yield from _key_lines(CatalogueSettings, key, value, examples.get(key), note)


def _columns(draft: Draft) -> Iterator[str]:
    from builder.recipe import CATALOGUE_COLUMNS, CatalogueSettings

    yield from ("", *_comment(_meaning(CatalogueSettings, "columns")), "[catalogue.columns]")
    chosen = dict(draft.seen.columns)
    if draft.judged:
        chosen |= {ours: theirs for ours, theirs in draft.judged.columns.items() if ours not in chosen}
    unclear = draft.seen.unclear | (draft.judged.unclear if draft.judged else {})
    for ours in CATALOGUE_COLUMNS:
        if ours in chosen:
            others = [name for name in unclear.get(ours, ()) if name != chosen[ours]]
            yield _pair(ours, chosen[ours]) + (f"  # or {' or '.join(map(toml_value, others))}?" if others else "")
        elif ours in columns.PRODUCTS:
            yield f'# {ours} = "…"'
    both = draft.judged and draft.judged.columns.get("product_id")
    if both and both != chosen.get("product_id"):
        yield from _comment(
            f"In {draft.judgments} product_id is {toml_value(both)}, which a build recognises by itself."
        )
    for seen, what in ((draft.seen, "products"), (draft.judged, "judgments or queries")):
        if seen and seen.samples:
            yield from ("#", f"# The first rows of the {what}, as a build reads them:")
            yield from (f"#   {line}" for line in sample_lines(seen))


def _labels(draft: Draft) -> Iterator[str]:
    from builder.recipe import CatalogueSettings, ClickSettings

    judged = draft.judged
    if judged is None or judged.kind == "queries":
        return
    if judged.kind == "clicks":
        yield from _section(ClickSettings, "catalogue.clicks")
        for key, field in ClickSettings.model_fields.items():
            yield from _key_lines(ClickSettings, key, field.default)
        return
    yield from ("", *_comment(_meaning(CatalogueSettings, "labels")), "[catalogue.labels]")
    numbers = [label for label in judged.counts if label not in judged.labels]
    if numbers:
        shown = ", ".join(f"{label} ({judged.counts[label]:,} rows)" for label in numbers[:MOST_LABELS])
        more = " …" if len(numbers) > MOST_LABELS else ""
        yield from _comment(f"Labels that are numbers, and so need no line here: {shown}{more}")
    for label, gain in list(judged.labels.items())[:MOST_LABELS]:
        rows = f"{judged.counts[label]:,} row{'s' if judged.counts[label] > 1 else ''}"
        if gain is not None:
            yield f"{toml_key(label)} = {gain}  # {rows}"
        else:
            yield f'# {toml_key(label)} = …  # {rows}: write its gain in place of "…", and remove the first "#"'


def _section(model: type[BaseModel], path: str) -> Iterator[str]:
    """The header of a section, with its description."""
    text = re.sub(r"^\[[\w.]+\]: ", "", textwrap.dedent(model.__doc__ or "").strip())
    yield from ("", *_comment(text[0].upper() + text[1:]), f"[{path}]")


def _key_lines(
    model: type[BaseModel], key: str, value: object, example: str | None = None, note: str | None = None
) -> Iterator[str]:
    """A key with its meaning; a comment with an example where it has no value."""
    yield from _comment(_meaning(model, key))
    if note:
        yield from _comment(note)
    yield _pair(key, value) if value is not None else f"# {_pair(key, example)}"


def _meaning(model: type[BaseModel], key: str) -> str:
    return model.model_fields[key].description or ""


def _pair(key: str, value: object) -> str:
    return f"{toml_key(key)} = {toml_value(value)}"


def _comment(text: str) -> Sequence[str]:
    """Text as comments: each paragraph wrapped, without characters that TOML refuses in a comment."""
    readable = "".join(letter if letter.isprintable() or letter == "\n" else " " for letter in text)
    return [f"# {line}" for part in readable.split("\n\n") for line in textwrap.wrap(" ".join(part.split()), _WIDTH)]
