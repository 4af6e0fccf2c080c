"""The types of a recipe's values, and how a value that does not fit is reported."""

from __future__ import annotations

import difflib
import json
import re
import string
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from sqid_lib.errors import RecipeError, did_you_mean

T = TypeVar("T")
NAME, WORD, URL, PAGE_URL, HOST_PORT = r"^[\w-][\w.-]*$", r"\S", "^https?://", r"\{product_id\}", r"^[^\s/@]+:[0-9]+$"
LINE, HOMEPAGE = r"^[^\x00-\x1f\x7f]*[^\s\x00-\x1f\x7f][^\x00-\x1f\x7f]*$", "^(https?://.*)?$"
_PATTERNS = {
    NAME: "letters, digits, '-', '_' or '.'",
    WORD: "text that is not blank",
    LINE: "text on one line that is not blank",
    HOMEPAGE: "a URL that begins with http:// or https://, or no text",
    URL: "a URL that begins with http:// or https://",
    PAGE_URL: "a URL with {product_id} in it",
    HOST_PORT: "host:port",
}
_TYPES = {
    "string_type": "text in quotes",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "tuple_type": 'a list, such as ["us"] or [443]',
    "dict_type": "a section",
    "model_type": "a section",
}


class Section(BaseModel):
    """A table of the recipe: no unknown keys, no conversion between types, no change afterwards."""

    model_config = ConfigDict(
        strict=True, frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )


def _distinct(values: tuple[T, ...]) -> tuple[T, ...]:
    if not values or len(set(values)) < len(values):
        raise ValueError("at least one value, and none twice")
    return values


def _valid_port(value: str) -> str:
    if not 0 < int(value.rpartition(":")[2]) < 65_536:
        raise ValueError("host:port with a port from 1 to 65535")
    return value


def template_parts(template: str) -> list[tuple[str, str | None]]:
    """A template such as "{product_title} {product_brand}" as pairs of a text and the column behind it, if one is.

    Raises:
        ValueError: braces that are not those of a name, or no name at all.
    """
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError:
        parts = []
    names = [name for _, name, _, _ in parts if name is not None]
    if not names or "" in names or any(form or change for _, _, form, change in parts):
        raise ValueError('text with names of columns in braces, such as "{product_title} {product_brand}"')
    return [(text, name) for text, name, _, _ in parts]


def _valid_template(template: str) -> str:
    template_parts(template)
    return template


Items = Annotated[tuple[T, ...], Field(strict=False)]  # not strict: TOML has lists
DistinctItems = Annotated[
    tuple[T, ...],
    Field(strict=False, json_schema_extra={"minItems": 1, "uniqueItems": True}),
    AfterValidator(_distinct),
]
Port = Annotated[int, Field(ge=1, le=65_535)]
HostPort = Annotated[str, Field(pattern=HOST_PORT), AfterValidator(_valid_port)]
Url = Annotated[str, Field(pattern=URL)]
Line = Annotated[str, Field(pattern=LINE)]
Word = Annotated[str, Field(pattern=WORD)]
Words = Word | DistinctItems[Word]
Gain = Annotated[float, Field(ge=0, le=3.4e38)]  # it is stored as float32
TextTemplate = Annotated[str, AfterValidator(_valid_template)]


def describe_pattern(pattern: str) -> str:
    """What a pattern of this module asks for, in words; the pattern itself where it is not known."""
    return _PATTERNS.get(pattern, pattern)


def recipe_error(
    error: ValidationError, schema: Mapping[str, Any], where: str, values: Mapping[str, Any]
) -> RecipeError:
    """One error that names every problem.

    Args:
        schema: the JSON schema of recipes, for the keys there are.
        where: the recipe. values: what it holds.
    """
    found = error.errors(include_url=False)
    own = [details for details in found if details["type"] != "default_factory_not_called"]  # because of another
    problems = [_problem(details, schema) for details in own]
    if not any(details["type"] == "one_source" for details in own) and ("esci" in values) == ("catalogue" in values):
        problems.append(_no_source())  # pydantic looks at the whole only where every part is right
    if len(problems) == 1:
        problems[0].where = where
        return problems[0]
    listed = " ".join(f"({number}) {problem}" for number, problem in enumerate(problems, 1))
    return RecipeError(f"{len(problems)} problems: {listed}", where=where)


def _no_source() -> RecipeError:
    return RecipeError(
        "exactly one of the sections [esci] and [catalogue] is needed",
        fix='Add [esci] with path = "…", or [catalogue] with products = "…" and locale = "…".',
    )


def _problem(details: ErrorDetails, schema: Mapping[str, Any]) -> RecipeError:
    kind, loc, context = details["type"], details["loc"], details.get("ctx", {})
    key, got = key_text(loc), repr(details["input"])[:120]
    if kind == "one_source":
        return _no_source()
    if kind == "not_with_catalogue":
        return RecipeError(f"[{context['name']}] does not go with [catalogue]", fix="Remove it.")
    if kind == "no_page_url":
        return RecipeError(
            "[resolve.pages] has no URL of the catalogue's own pages", fix='Add url = "https://…/{product_id}" to it.'
        )
    if kind == "unknown_column":
        name, known = context["name"], context["known"]
        return RecipeError(
            "'encoder.text' names a column that the products have not",
            expected=", ".join(known),
            got=repr(name)[:120],
            fix=did_you_mean(name, known) or context["hint"] or None,
        )
    if kind == "missing":
        return RecipeError(f"key {key!r} is missing", fix="Add it.")
    if kind == "extra_forbidden":
        known = _known_keys(loc, schema)
        close = difflib.get_close_matches(str(loc[-1]), known, n=1)
        fix = "Correct or remove it." + "".join(f" Perhaps {name!r}?" for name in close)
        return RecipeError(f"unknown key {key!r}", expected=f"one of {', '.join(known)}", fix=fix)
    if kind in _TYPES:
        return RecipeError(f"wrong type for {key!r}", expected=_TYPES[kind], got=got, fix="Correct it.")
    words = _PATTERNS.get(context.get("pattern", "")) or context.get("error")
    expected = words or details["msg"].partition("should ")[2].removeprefix("be ")
    return RecipeError(f"bad value for {key!r}", expected=expected, got=got, fix="Correct it.")


def key_text(loc: Sequence[str | int]) -> str:
    """The key as TOML has it, such as fetch.ports[1]."""
    parts = [part for part in loc if part != "[key]"]  # pydantic's mark of a bad key in a table
    names = [f"[{p}]" if isinstance(p, int) else p if re.fullmatch(r"[\w-]+", p) else json.dumps(p) for p in parts]
    return ".".join(names).replace(".[", "[")


def _known_keys(loc: Sequence[str | int], schema: Mapping[str, Any]) -> list[str]:
    """The keys of the section that `loc` ends in."""
    node = schema
    for name in loc[:-1]:
        node = schema["$defs"][node["properties"][name]["$ref"].rpartition("/")[2]]
    return list(node["properties"])
