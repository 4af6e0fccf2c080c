"""A TOML file → a recipe that was checked as a whole, with absolute paths."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from builder.recipe.data import CatalogueSettings, EsciSettings
from builder.recipe.json_schema import json_schema
from builder.recipe.recipe import Recipe
from builder.recipe.values import key_text, recipe_error
from sqid_lib.encoders.loading import is_model_path
from sqid_lib.errors import MissingFileError, RecipeError, UsageError, did_you_mean
from sqid_lib.sources import parse_address


def load(name_or_path: str | Path, overrides: Sequence[str] = (), *, check_inputs: bool = True) -> Recipe:
    """A recipe from a TOML file, or a packaged one by its name; its paths are absolute or URLs.

    Args:
        name_or_path: a path, or "sqid" or "demo".
        overrides: "section.key=value" each; the value is TOML, or text where it is not TOML.
        check_inputs: whether local files that it names must exist.

    Raises:
        MissingFileError: neither a file nor a packaged recipe; or inputs of the recipe are missing.
        RecipeError: not TOML, or unknown keys, wrong types and bad values: all of them are named.
        UsageError: an override that is not "section.key=value".
    """
    path, base = _locate(name_or_path)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"not TOML: {error}", where=name_or_path, fix="Correct the line it names.") from error
    for override in overrides:
        _override(values, override)
    _check_whole_numbers(values, str(name_or_path))
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        raise recipe_error(error, json_schema(), str(name_or_path), values) from error
    recipe = _absolute(recipe, base)
    if check_inputs:
        _check_inputs(recipe, str(name_or_path))
    return recipe


def packaged() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(p.name.removesuffix(".toml") for p in _recipes().iterdir() if p.name.endswith(".toml"))


def _recipes() -> Any:
    return resources.files("builder") / "recipes"


def _locate(name_or_path: str | Path) -> tuple[Any, Path]:
    path = Path(name_or_path)
    if path.is_file():
        return path, path.resolve().parent
    if path.name == str(name_or_path) and str(name_or_path) in packaged():
        return _recipes() / f"{name_or_path}.toml", Path.cwd()
    raise MissingFileError(
        "no such recipe",
        where=name_or_path,
        expected=f"a TOML file or one of {', '.join(packaged())}",
        fix=did_you_mean(str(name_or_path), packaged()),
    )


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not all(key.strip().split(".")):
        raise UsageError("bad override", where=f"--set {override}", expected="section.key=value")
    try:
        change = tomllib.loads(override)  # also keys in quotes, such as a mirror's
    except tomllib.TOMLDecodeError:
        change = _value(text.strip())
        for part in reversed(key.strip().split(".")):
            change = {part: change}
    if "\n" in override.strip():
        raise UsageError("bad override", where=f"--set {override}", expected="one section.key=value")
    _merge(values, change, override)


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _merge(values: dict[str, Any], change: Mapping[str, Any], override: str) -> None:
    for key, value in change.items():
        if isinstance(value, dict) and key in values:
            if not isinstance(values[key], dict):
                raise UsageError("bad override", where=f"--set {override}", expected=f"{key} to be a section")
            _merge(values[key], value, override)
        else:
            values[key] = value


def _check_whole_numbers(value: Any, where: str, key: tuple[str | int, ...] = ()) -> None:
    """Raise RecipeError for a whole number of more than 64 bits: TOML has none, tomllib reads them."""
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise RecipeError(
            f"bad value for {key_text(key)!r}",
            where=where,
            expected="a whole number of 64 bits",
            got=str(value)[:120],
            fix="Correct it.",
        )
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, item in items:
        _check_whole_numbers(item, where, (*key, name))


def _absolute(recipe: Recipe, base: Path) -> Recipe:
    def absolute(path: str, *, file: bool = False) -> str:
        return str(parse_address(path, base, file=file))

    model, artifacts, catalogue = recipe.encoder.model, recipe.artifacts, recipe.catalogue
    tables = tuple(absolute(table, file=True) for table in recipe.resolve.tables)
    if _exists(base / Path(model).expanduser(), folder=True) or is_model_path(model):
        model = absolute(model)
    return recipe.model_copy(
        update={
            "esci": recipe.esci and EsciSettings(path=absolute(recipe.esci.path)),
            "catalogue": catalogue and catalogue.model_copy(update=_tables_of(catalogue, absolute)),
            "artifacts": artifacts and artifacts.model_copy(update={"path": absolute(artifacts.path)}),
            "resolve": recipe.resolve.model_copy(update={"tables": tables}),
            "encoder": recipe.encoder.model_copy(update={"model": model}),
        }
    )


def _tables_of(catalogue: CatalogueSettings, absolute: Callable[..., str]) -> dict[str, str]:
    """The addresses in [catalogue] that are set."""
    names = ("products", "judgments", "queries", "images")
    found = {name: getattr(catalogue, name) for name in names}
    return {name: absolute(value, file=True) for name, value in found.items() if value is not None}


def _exists(path: Path, *, folder: bool = False) -> bool:
    try:
        return path.is_dir() if folder else path.exists()
    except OSError:  # its name is too long, or a folder above it must not be read
        return False


def _check_inputs(recipe: Recipe, where: str) -> None:
    inputs = {"esci.path": recipe.esci.path} if recipe.esci else {}
    if recipe.catalogue:
        paths = _tables_of(recipe.catalogue, lambda path, file: path)  # noqa: ARG005
        inputs |= {f"catalogue.{name}": path for name, path in paths.items()}
    if recipe.artifacts:
        inputs["artifacts.path"] = recipe.artifacts.path
    inputs |= {f"resolve.tables[{i}]": table for i, table in enumerate(recipe.resolve.tables)}
    missing = {key: path for key, path in inputs.items() if Path(path).is_absolute() and not _exists(Path(path))}
    if missing:
        raise MissingFileError(
            f"{', '.join(missing)} {'does' if len(missing) == 1 else 'do'} not exist",
            where=where,
            got=", ".join(missing.values()),
            fix="Relative paths are relative to the recipe.",
        )
