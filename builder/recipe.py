"""Recipes: TOML files that say what to build, checked on load."""

from __future__ import annotations

import dataclasses
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from sqid_lib.errors import MissingFileError, RecipeError, UsageError
from sqid_lib.joined.selection import Selection
from sqid_lib.sources import parse_address


@dataclass(frozen=True)
class Esci:
    """[esci]: `path` is a directory or url with the three official files."""

    path: str


@dataclass(frozen=True)
class Artifacts:
    """[artifacts]: `path` holds existing SQID files; then resolve, fetch and embed are skipped."""

    path: str


@dataclass(frozen=True)
class Pages:
    """[resolve.pages]: product pages as a source of urls; runs only with permission and a contact."""

    permission: bool = False
    contact: str = ""
    url: str = "https://www.amazon.com/dp/{product_id}"
    delay: float = 1.0  # seconds between two requests to one host, at least


@dataclass(frozen=True)
class Resolve:
    """[resolve]: where image urls come from, tried in order."""

    tables: tuple[str, ...] = ()
    pages: Pages = Pages()


@dataclass(frozen=True)
class Fetch:
    """[fetch]: how pictures are downloaded. Times in seconds, sizes in bytes."""

    concurrency: int = 32
    per_host: int = 16
    timeout: float = 60.0  # whole request
    read_timeout: float = 15.0  # between two reads
    max_bytes: int = 20_000_000
    max_pixels: int = 50_000_000
    max_redirects: int = 3
    retries: int = 2
    ports: tuple[int, ...] = (80, 443)
    allow_hosts: tuple[str, ...] = ()  # host:port; only these may be private or loopback addresses
    mirrors: Mapping[str, str] = field(default_factory=dict)  # url prefix → url prefix
    trust_env: bool = False  # use the environment's proxies
    shard_rows: int = 1_000


@dataclass(frozen=True)
class Encoder:
    """[encoder]: the model that makes the vectors; a Hub id or a local directory."""

    model: str = "openai/clip-vit-large-patch14"
    revision: str = "main"
    backend: str = "transformers"  # transformers | replicate
    dtype: str = "float32"  # float32 | bfloat16 | float16
    device: str = "auto"
    text_batch: int = 64
    image_batch: int = 8
    shard_rows: int = 2_000


@dataclass(frozen=True)
class Release:
    """[release]: what WORK/<name>/ holds besides the joined configs. Sizes in bytes."""

    classic_files: bool = True
    max_shard_bytes: int = 500_000_000


@dataclass(frozen=True)
class Expect:
    """[expect]: counts that must be met exactly; absent means not checked."""

    products: int | None = None
    queries: int | None = None
    judgments: int | None = None
    supp: int | None = None


@dataclass(frozen=True)
class Recipe:
    """A whole recipe; paths are absolute or urls once loaded."""

    name: str
    version: str
    esci: Esci
    selection: Selection = field(default_factory=Selection)
    artifacts: Artifacts | None = None
    resolve: Resolve = Resolve()
    fetch: Fetch = field(default_factory=Fetch)
    encoder: Encoder = Encoder()
    release: Release = Release()
    expect: Expect = Expect()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as in the TOML file, for the manifest."""
        return dataclasses.asdict(self)


def load(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe from a TOML file, or a packaged one by its name.

    Args:
        name_or_path: a path, or "sqid" or "demo".
        overrides: "section.key=value" each; the value is TOML, or text where it is no TOML.

    Raises:
        MissingFileError: neither a file nor a packaged recipe.
        RecipeError: not TOML, an unknown key, a wrong type or a bad value; names the key.
        UsageError: an override that is not "section.key=value".
    """
    path, base = _locate(name_or_path)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"not TOML: {error}", where=name_or_path, fix="Mend the line it names.") from error
    for override in overrides:
        _override(values, override)
    if "esci" not in values:
        raise RecipeError("section [esci] is missing", where=name_or_path, fix='Add [esci] with path = "…".')
    try:
        recipe: Recipe = _build(Recipe, values, "", str(name_or_path))
    except UsageError as error:  # a selection outside what ESCI knows
        raise RecipeError(
            error.what, where=f"{name_or_path}: {error.where}", expected=error.expected, got=error.got
        ) from error
    _check(recipe, str(name_or_path))
    recipe = _absolute(recipe, base)
    _check_exists(recipe, str(name_or_path))
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
        "no such recipe", where=name_or_path, expected=f"a TOML file or one of {', '.join(packaged())}"
    )


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not all(key.strip().split(".")):
        raise UsageError("bad override", where=f"--set {override}", expected="section.key=value")
    try:
        change = tomllib.loads(override)  # also keys in quotes, such as a mirror's
    except tomllib.TOMLDecodeError:
        change = {}
        for part in reversed(key.strip().split(".")):
            change = {part: change or text.strip()}
    if "\n" in override.strip():
        raise UsageError("bad override", where=f"--set {override}", expected="one section.key=value")
    _merge(values, change, override)


def _merge(values: dict[str, Any], change: Mapping[str, Any], override: str) -> None:
    for key, value in change.items():
        if isinstance(value, dict) and key in values:
            if not isinstance(values[key], dict):
                raise UsageError("bad override", where=f"--set {override}", expected=f"{key} to be a section")
            _merge(values[key], value, override)
        else:
            values[key] = value


def _build(cls: type[Any], values: Mapping[str, Any], key: str, where: str) -> Any:
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        name = f"{key}.{unknown[0]}" if key else unknown[0]
        close = f" Perhaps {_closest(unknown[0], hints)!r}?" if _closest(unknown[0], hints) else ""
        raise RecipeError(
            f"unknown key {name!r}",
            where=where,
            expected=f"one of {', '.join(hints)}",
            fix=f"Correct or remove it.{close}",
        )
    for field_ in dataclasses.fields(cls):
        required = field_.default is dataclasses.MISSING and field_.default_factory is dataclasses.MISSING
        if required and field_.name not in values:
            raise RecipeError(f"key {f'{key}.{field_.name}'.lstrip('.')!r} is missing", where=where, fix="Add it.")
    return cls(**{k: _value(hints[k], v, f"{key}.{k}".lstrip("."), where) for k, v in values.items()})


def _closest(name: str, names: Mapping[str, Any]) -> str | None:
    import difflib

    return next(iter(difflib.get_close_matches(name, list(names), n=1)), None)


def _value(hint: Any, value: Any, key: str, where: str) -> Any:
    def wrong(expected: str) -> RecipeError:
        return RecipeError(
            f"wrong type for {key!r}", where=where, expected=expected, got=f"{value!r}", fix="Correct it."
        )

    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return _value(next(a for a in args if a is not type(None)), value, key, where)
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise wrong("a section")
        return _build(typing.cast(type[Any], hint), value, key, where)
    if origin is tuple and typing.get_origin(args[0]) is tuple:  # a table, kept as pairs
        if not isinstance(value, dict):
            raise wrong("a section of label = gain")
        return tuple((name, _value(float, gain, f"{key}.{name}", where)) for name, gain in value.items())
    if origin is tuple:
        if not isinstance(value, list):
            raise wrong("a list, such as " + ('["us"]' if args[0] is str else "[443]"))
        return tuple(_value(args[0], v, f"{key}[{i}]", where) for i, v in enumerate(value))
    if hint not in (str, int, float, bool):
        if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
            raise wrong('a section of "text" = "text"')
        return dict(value)
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise wrong({str: "text in quotes", int: "a whole number", float: "a number", bool: "true or false"}[hint])
    return value


def _check(recipe: Recipe, where: str) -> None:
    """Values that types alone do not rule out."""
    positive = {
        f"{section}.{f.name}": getattr(getattr(recipe, section), f.name)
        for section in ("fetch", "encoder", "release", "expect")
        for f in dataclasses.fields(getattr(recipe, section))
        if type(getattr(getattr(recipe, section), f.name)) in (int, float)
    }
    zero_allowed = (
        "fetch.max_redirects",
        "fetch.retries",
        "expect.products",
        "expect.queries",
        "expect.judgments",
        "expect.supp",
    )
    for key, value in positive.items():
        least = 0 if key in zero_allowed else 1e-9
        if not least <= value < float("inf"):  # nan is neither
            raise RecipeError(f"bad value for {key!r}", where=where, expected="> 0" if least else ">= 0", got=value)
    if not recipe.name or not all(c.isalnum() or c in "-_." for c in recipe.name) or recipe.name.startswith("."):
        raise RecipeError("bad 'name'", where=where, expected="letters, digits, '-', '_' or '.'", got=repr(recipe.name))
    choices = {
        "encoder.backend": (recipe.encoder.backend, ("transformers", "replicate")),
        "encoder.dtype": (recipe.encoder.dtype, ("float32", "bfloat16", "float16")),
    }
    for key, (choice, known) in choices.items():
        if choice not in known:
            raise RecipeError(f"bad value for {key!r}", where=where, expected=" or ".join(known), got=repr(choice))
    for key, problem, expected, got in _problems(recipe):
        raise RecipeError(problem or f"bad value for {key!r}", where=where, expected=expected, got=got)


def _problems(recipe: Recipe) -> Iterator[tuple[str, str | None, str, str]]:
    """What is wrong with addresses: (key, in words, expected, got)."""
    for port in recipe.fetch.ports:
        if not 0 < port < 65_536:
            yield "fetch.ports", None, "1 to 65535", str(port)
    for host in recipe.fetch.allow_hosts:
        name, _, digits = host.rpartition(":")
        if not (name and digits.isascii() and digits.isdigit() and 0 < int(digits) < 65_536):
            yield "fetch.allow_hosts", None, "host:port", repr(host)
    for mirrored in (text for pair in recipe.fetch.mirrors.items() for text in pair):
        if not mirrored.startswith(("http://", "https://")):
            yield "fetch.mirrors", None, "urls that begin with http:// or https://", repr(mirrored)
    pages = recipe.resolve.pages
    if pages.permission and not pages.contact.strip():
        problem = "product pages need a contact"
        yield "resolve.pages.contact", problem, "resolve.pages.contact: an address for questions", repr(pages.contact)


def _absolute(recipe: Recipe, base: Path) -> Recipe:
    def absolute(path: str) -> str:
        return str(parse_address(path, base))

    model = recipe.encoder.model
    if "://" not in model and (base / Path(model).expanduser()).is_dir():
        model = absolute(model)
    return dataclasses.replace(
        recipe,
        esci=Esci(absolute(recipe.esci.path)),
        artifacts=recipe.artifacts and Artifacts(absolute(recipe.artifacts.path)),
        resolve=dataclasses.replace(
            recipe.resolve, tables=tuple(str(parse_address(t, base, file=True)) for t in recipe.resolve.tables)
        ),
        encoder=dataclasses.replace(recipe.encoder, model=model),
    )


def _check_exists(recipe: Recipe, where: str) -> None:
    inputs = {"esci.path": recipe.esci.path}
    if recipe.artifacts:
        inputs["artifacts.path"] = recipe.artifacts.path
    inputs |= {f"resolve.tables[{i}]": table for i, table in enumerate(recipe.resolve.tables)}
    for key, path in inputs.items():
        if "://" not in path and not Path(path).exists():
            raise MissingFileError(
                f"{key} does not exist", where=where, got=path, fix="Relative paths are relative to the recipe."
            )
