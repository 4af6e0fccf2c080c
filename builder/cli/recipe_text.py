"""A recipe as TOML with all its keys, and the reference of every key, in Markdown."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from sqid_lib.errors import without_secrets

if TYPE_CHECKING:
    from builder.recipe import Recipe

_MASKED = "  # a secret is masked here: put it back before you use this file"
_UNIT = re.compile(r", in (seconds|bytes|pixels|rows|percent)\b")  # how a description states the unit
_INTRODUCTION = """# Every key of a recipe

A recipe is a TOML file. `sqid build RECIPE` checks all of it before the first stage and lists every problem it finds.
`sqid build RECIPE --print-recipe` prints all keys with the values that are used. `--set KEY=VALUE` overrides a key for
one run. `sqid recipe --schema` prints the same keys as a JSON schema, for editors.

This file is made by `sqid recipe --reference` from the code that checks recipes.
"""


def as_toml(recipe: Recipe) -> str:
    """All keys of a recipe as they are used, as TOML that loads to the same recipe.

    Secrets in URLs are masked, and their lines say so. A key without a value is a comment.
    """
    return "\n".join(_table((), recipe.to_dict())).lstrip("\n") + "\n"


def _table(path: tuple[str, ...], values: Mapping[str, Any]) -> Iterator[str]:
    if path:
        yield ""
        yield f"[{'.'.join(map(toml_key, path))}]"
    for name, value in values.items():
        if value is None:
            yield f"# {name} is not set"
        elif not isinstance(value, Mapping):
            yield _line(name, value)
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _table((*path, name), value)


def _line(name: str, value: object) -> str:
    line = f"{toml_key(name)} = {toml_value(value)}"
    masked = f"{toml_key(name, masked=True)} = {toml_value(value, masked=True)}"
    return line if line == masked else masked + _MASKED


def toml_key(name: str, *, masked: bool = False) -> str:
    """A key as TOML has it, in quotes where it needs them; with `masked` without secrets."""
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else toml_value(name, masked=masked)


def toml_value(value: object, *, masked: bool = False) -> str:
    """A text, number, boolean or list as TOML has it; with `masked` without secrets."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(toml_value(item, masked=masked) for item in value)}]"
    if isinstance(value, str):
        text = json.dumps(without_secrets(value) if masked else value, ensure_ascii=False)
        return text.replace("\x7f", "\\u007f")  # a control character, which JSON leaves as it is and TOML refuses
    return json.dumps(value) if isinstance(value, bool) else repr(value)


def reference(schema: Mapping[str, Any]) -> str:
    """The reference of every key in Markdown: type, default, unit and meaning.

    Args:
        schema: the JSON schema of recipes.
    """
    return "\n".join([_INTRODUCTION, *_section((), schema, schema, required=True)]) + "\n"


def _section(
    path: tuple[str, ...], node: Mapping[str, Any], schema: Mapping[str, Any], required: bool
) -> Iterator[str]:
    """The table of one section, then its subsections."""
    title = f"`[{'.'.join(path)}]`" if path else "At the top"
    needed = " Required." if required and path else ""
    yield f"## {title}\n\n{_sentence(node['description'])}{needed}\n"
    sections, rows = [], []
    for name, value in node["properties"].items():
        if "$ref" in value:
            sections.append((name, schema["$defs"][value["$ref"].rpartition("/")[2]]))
        else:
            rows.append(_row(name, value, name in node.get("required", ())))
    if rows:
        yield "| key | type | default | unit | meaning |\n| --- | --- | --- | --- | --- |"
        yield "\n".join(rows) + "\n"
    for name, section in sections:
        yield from _section((*path, name), section, schema, name in node.get("required", ()))


def _row(name: str, value: Mapping[str, Any], required: bool) -> str:
    default = "required" if required else f"`{_inline(value['default'])}`" if "default" in value else "not set"
    unit = _UNIT.search(value["description"])
    cells = (f"`{name}`", _type(value), default, unit[1] if unit else "", " ".join(value["description"].split()))
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _sentence(description: str) -> str:
    """A section's description without its name in front."""
    text = re.sub(r"^\[[\w.]+\]: ", "", description)
    return text[0].upper() + text[1:]


def _inline(value: Any) -> str:
    if isinstance(value, Mapping):
        items = ", ".join(f"{toml_key(name)} = {_inline(item)}" for name, item in value.items())
        return f"{{ {items} }}" if items else "{}"
    return toml_value(value)


def _type(value: Mapping[str, Any]) -> str:
    """The type of a key in words, with its bounds."""
    from builder.recipe import describe_pattern

    if "enum" in value or "const" in value:
        return " or ".join(f"`{toml_value(choice)}`" for choice in value.get("enum", [value.get("const")]))
    if "anyOf" in value:
        return " or ".join(map(_type, value["anyOf"]))
    kind = value["type"]
    if kind == "array":
        return f"list of {_type(value['items'])}" + (", at least one" if value.get("minItems") else "")
    if kind == "object":
        items = value.get("additionalProperties") or next(iter(value["patternProperties"].values()))
        return f"table of name = {_type(items)}"
    if kind == "string":
        return describe_pattern(value["pattern"]) if "pattern" in value else "text"
    bounds = {"exclusiveMinimum": ">", "minimum": "≥", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [f"{sign} {value[key]}" for key, sign in bounds.items() if key in value]
    return " ".join([{"integer": "whole number", "number": "number"}.get(kind, "true or false"), *limits])
