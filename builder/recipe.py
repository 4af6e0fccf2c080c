"""Recipes: TOML files that say what to build, checked as a whole when they are loaded."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from sqid_lib import schemas
from sqid_lib.errors import MissingFileError, RecipeError, UsageError, did_you_mean, missing_extra
from sqid_lib.joined.selection import ALL, Selection
from sqid_lib.sources import parse_address

try:
    from pydantic import (
        BaseModel,
        ConfigDict,
        Field,
        GetCoreSchemaHandler,
        GetPydanticSchema,
        NonNegativeFloat,
        NonNegativeInt,
        PositiveFloat,
        PositiveInt,
        ValidationError,
        ValidationInfo,
        field_serializer,
        field_validator,
        model_validator,
    )
    from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
    from pydantic_core import CoreSchema, PydanticCustomError, core_schema
except ImportError as error:
    raise missing_extra("pydantic", "build", "to read recipes") from error

from builder.recipe_values import (
    HOMEPAGE,
    NAME,
    PAGE_URL,
    DistinctItems,
    HostPort,
    Items,
    Line,
    Port,
    TextTemplate,
    Url,
    Word,
    Words,
    recipe_error,
    template_parts,
)
from builder.recipe_values import words as pattern_words


class _Section(BaseModel):
    """A table of the recipe: no unknown keys, no conversion between types, no change afterwards."""

    model_config = ConfigDict(
        strict=True, frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )


class EsciSettings(_Section):
    """[esci]: the official ESCI files."""

    path: str
    """Directory or URL that holds the three official files."""


class ClickSettings(_Section):
    """[catalogue.clicks]: how a click log becomes gains.

    The rate of a query and a product is clicks / (impressions + prior), summed over the rows of the log that name them;
    the gain is this rate divided by the largest of the query: 0 without a click, 1 for the best product of the query.
    """

    prior: NonNegativeFloat = 20.0
    """Impressions without a click that are added to every pair, so that one click in one impression proves little."""
    min_impressions: NonNegativeInt = 1
    """Least impressions of a pair of query and product; pairs with fewer are left out."""


CATALOGUE_COLUMNS = (  # the keys of [catalogue.columns]
    *("product_id", "product_title", "product_description", "product_bullet_point", "product_brand", "product_color"),
    *("image", "query", "label", "impressions", "clicks", "query_id", "split"),
)
_CatalogueColumn = Annotated[str, GetPydanticSchema(lambda *_: core_schema.literal_schema(list(CATALOGUE_COLUMNS)))]


class CatalogueSettings(_Section):
    """[catalogue]: a shop's own tables, in place of [esci]."""

    products: str
    """Table of products: csv, tsv, jsonl (.gz, .bz2, .zst) or parquet; a folder of them; https:// or hf://."""
    locale: Line
    """Locale of the products, such as de; the value of product_locale."""
    images: str | None = None
    """Folder of local images, named in the image column or by product id; images outside it are refused. Without it
    the folder of the products is meant."""
    judgments: str | None = None
    """Table of judgments: query, product_id and a label, a number, or impressions and clicks."""
    queries: str | None = None
    """Table of queries without judgments: query, and query_id if there is one."""
    columns: dict[_CatalogueColumn, Words] = Field(default={})
    """Our column = the tables' column, or a list, ["sku", "item"], where tables name it differently: in each the first
    that it has. Columns left out are recognised by usual names, which the build reports."""
    keep: Items[Word] = ()
    """Further columns of the products to carry into the release, by the tables' names, such as ["price"]."""
    labels: dict[Annotated[str, Field(min_length=1)], NonNegativeFloat] = Field(default={})
    """Every label of the judgments, with its gain; a label that is a number is its own gain."""
    unknown_products: Literal["refuse", "drop"] = "refuse"
    """Judgments of products that the table of products has not: "refuse" them as an error, or "drop" and count them."""
    clicks: ClickSettings = Field(default_factory=ClickSettings)
    """How a click log becomes gains."""


class CardSettings(_Section):
    """[card]: what the Hub card may claim; nothing is claimed that is not stated here.

    In a recipe with [esci] title, licence and language replace those of ESCI, and the rest is added to what is known.
    """

    title: str = ""
    """Title of the card; the name of the recipe where it is empty."""
    description: str = ""
    """What the data is: some sentences in Markdown."""
    licence: Items[Word] = ()
    """Licences, as the Hub names them, such as ["cc-by-4.0"]; another name is published as "other" with that name."""
    language: Items[Word] = ()
    """Languages of the texts (ISO 639-1), such as ["de"]."""
    homepage: str = Field(default="", pattern=HOMEPAGE)
    """Web page of the data."""
    citation: str = ""
    """How to cite it: BibTeX, or any text."""


class SelectionSettings(_Section):
    """[selection]: which part of ESCI is used. The defaults are the published selection."""

    version: Literal["small", "large"] = "small"
    """ESCI version: "small" (Task 1) or "large"."""
    splits: DistinctItems[Literal["train", "test"]] = ("test",)
    """ESCI splits whose judgments make the main part."""
    locales: DistinctItems[Word] = (schemas.CLASSIC_LOCALE,)
    """Product locales; any that the examples file has."""
    products: Literal["judged", "all"] = "judged"
    """Products of the main part: "judged", those that its judgments name; "all", every product of the locales in the
    products file, each with its image and its vectors, and no supplementary products."""
    supp_min_judgments: PositiveInt = 2
    """Judgments, in any split, that a product outside the main part needs to be a supplementary product; for products
    without any judgment set products = "all"."""
    embed_supp: bool = False
    """Whether the images of supplementary products are downloaded too, and the products get vectors, as split "supp" of
    product_features; the published ones have none."""
    labels: dict[Annotated[str, Field(min_length=1)], NonNegativeFloat] = Field(
        default=dict(schemas.GAINS), min_length=1
    )
    """Every label that may occur, with its gain."""

    def selection(self) -> Selection:
        """The same as sqid_lib has it."""
        return Selection(**{**dict(self), "labels": tuple(self.labels.items())})


class ArtifactsSettings(_Section):
    """[artifacts]: existing SQID files. With them, resolve, fetch and embed are skipped."""

    path: str
    """Directory or URL that holds the SQID files."""
    partial: bool = False
    """Whether products and queries without a text vector are kept, with zeros for it; otherwise they are an error."""


class PagesSettings(_Section):
    """[resolve.pages]: product pages as a source of image URLs; they need permission and a contact."""

    model_config = ConfigDict(
        json_schema_extra={
            "if": {"properties": {"permission": {"const": True}}, "required": ["permission"]},
            "then": {"required": ["contact"]},
        }
    )

    permission: bool = False
    """Whether the owner of the pages permits visiting them."""
    contact: str = Field(default="", validate_default=True)
    """E-mail address or web page of yours, which is sent with every request."""
    url: str = Field(default="https://www.amazon.com/dp/{product_id}", pattern=PAGE_URL)
    """URL of a product's page; {product_id} and {product_locale} are replaced. The default is for ESCI's products."""
    delay: PositiveFloat = 1.0
    """Least time between two requests to one host, in seconds."""

    @field_validator("url")
    @classmethod
    def _url(cls, url: str) -> str:
        try:
            url.format(product_id="", product_locale="")
        except (LookupError, ValueError, AttributeError, TypeError):
            raise ValueError("a URL with {product_id} in it, and nothing else in braces but {product_locale}") from None
        return url

    @field_validator("contact")
    @classmethod
    def _contact(cls, contact: str, info: ValidationInfo) -> str:
        reachable = "@" in contact or contact.startswith(("http://", "https://"))
        if info.data.get("permission") and not (reachable and contact.isprintable()):
            raise ValueError("an e-mail address or a web page of yours, because product pages are permitted")
        return contact


class ResolveSettings(_Section):
    """[resolve]: where image URLs come from."""

    tables: Items[str] = ()
    """Paths or URLs of tables of image URLs, tried in order."""
    pages: PagesSettings = Field(default_factory=PagesSettings)
    """Product pages, tried last."""


class FetchSettings(_Section):
    """[fetch]: how images are downloaded."""

    concurrency: PositiveInt = 32
    """Most requests at once."""
    per_host: PositiveInt = 16
    """Most requests at once to one host."""
    timeout: PositiveFloat = 60.0
    """Longest time of a whole request, in seconds."""
    read_timeout: PositiveFloat = 15.0
    """Longest time without a byte, in seconds."""
    max_bytes: PositiveInt = 20_000_000
    """Largest body, in bytes."""
    max_pixels: PositiveInt = 50_000_000
    """Largest image, in pixels (width times height)."""
    truncated: Literal["refuse", "keep"] = "refuse"
    """JPEGs that end early: "refuse", or "keep" those whose missing end changes pixels by at most 0.5 of 255 levels."""
    max_redirects: NonNegativeInt = 3
    """Most redirects of one request."""
    retries: NonNegativeInt = 2
    """Most further attempts after a failure that may pass."""
    ports: Items[Port] = (80, 443)
    """Ports that may be connected to."""
    allow_hosts: Items[HostPort] = ()
    """Hosts, each as host:port, that may be private or loopback addresses; no other host may."""
    mirrors: dict[Url, Url] = Field(default={}, json_schema_extra={"additionalProperties": False})
    """URL prefix = URL prefix that is requested in its place."""
    trust_env: bool = False
    """Whether the proxies that the environment names are used."""
    shard_rows: PositiveInt = 1_000
    """Images in one file of WORK/fetch."""


PRODUCT_TEXT = "{product_title}"


class EncoderSettings(_Section):
    """[encoder]: the model that makes the vectors."""

    model: str = "openai/clip-vit-large-patch14"
    """Hub id or local directory of the model."""
    revision: str = "main"
    """Branch, tag or commit of the model on the Hub."""
    backend: Literal["transformers", "open_clip", "sentence-transformers", "replicate"] = "transformers"
    """What runs the model: "transformers", "open_clip" or "sentence-transformers" on this machine, or the service
    "replicate". Models of sentence-transformers that take texts alone give no image vectors."""
    text: TextTemplate = PRODUCT_TEXT
    """The text of a product, from its columns, such as "{product_title} {product_brand}"; kept columns of a catalogue
    too. A product without a value has nothing in its place; queries are encoded as they are."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the weights while encoding; the vectors are float32. Another one makes all vectors again."""
    device: str = "auto"
    """Devices as torch names them, with commas between; "auto": every GPU, or the CPU. Vectors are kept."""
    text_batch: PositiveInt = 64
    """Texts in one batch, if each has 8 tokens; longer ones are fewer. Changes the last bits of new vectors only."""
    image_batch: PositiveInt = 8
    """Images in one batch. Changes the last bits of new vectors only."""
    shard_rows: PositiveInt = 2_000
    """Vectors in one file of WORK/embed: what an interrupted run loses at most, on each device."""

    @property
    def text_parts(self) -> list[tuple[str, str | None]]:
        """`text` as pairs of a text and the column behind it, if one is."""
        return template_parts(self.text)


class EngineSettings(_Section):
    """[engine]: the Ray cluster of `--engine ray`. It changes nothing of a release."""

    address: str = ""
    """Address of the cluster, such as "auto" or HOST:6379; "": the environment's RAY_ADDRESS, or one on this machine
    that ends with the stage."""
    num_cpus: PositiveFloat = 1.0
    """CPUs of one worker; with a whole number also the threads that its model uses."""
    num_gpus: NonNegativeFloat = 0.0
    """GPUs of one worker that encodes; 0.5 puts two workers on each GPU."""
    min_workers: PositiveInt = 1
    """Workers that are waited for: on a cluster that grows by itself, how far it grows at once."""
    max_workers: PositiveInt | None = None
    """Most workers; by default as many as the cluster has room for."""
    decode: Literal["worker", "tasks"] = "worker"
    """Who decodes images: the threads of the "worker" that encodes them, or "tasks" on any free CPU of the cluster, for
    machines with a GPU and few cores. Each worker then leaves one CPU free."""

    @field_validator("max_workers")
    @classmethod
    def _most(cls, most: int | None, info: ValidationInfo) -> int | None:
        if most is not None and most < info.data.get("min_workers", 1):
            raise ValueError("at least engine.min_workers")
        return most


class ReleaseSettings(_Section):
    """[release]: what the release holds."""

    classic_files: bool = True
    """Whether the four files that were published first are written besides the joined configs."""
    max_shard_bytes: PositiveInt = 500_000_000
    """Largest parquet file before compression, in bytes."""


class ExpectSettings(_Section):
    """[expect]: counts that must be met, exactly unless a key says otherwise; those left out are not checked."""

    products: NonNegativeInt | None = None
    """Products of the main part."""
    queries: NonNegativeInt | None = None
    """Queries of the main part."""
    judgments: NonNegativeInt | None = None
    """Judgments of the main part."""
    supp: NonNegativeInt | None = None
    """Supplementary products."""
    min_images: NonNegativeInt | None = None
    """Least number of products with an image; with fewer the build ends before embed and release."""


def _selection_schema(_: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
    """[selection] is checked as SelectionSettings and kept as a Selection."""
    settings = handler(SelectionSettings)
    return core_schema.no_info_wrap_validator_function(
        lambda value, check: value if isinstance(value, Selection) else check(value).selection(), settings
    )


def _default_selection(settings: dict[str, Any]) -> Selection:
    """All products of a catalogue, whose labels are its own; otherwise the published selection."""
    catalogue = settings.get("catalogue")
    if catalogue is None:
        return Selection()
    return Selection(locales=(catalogue.locale,), products=ALL, labels=tuple(catalogue.labels.items()))


class Recipe(_Section):
    """What `sqid build` builds, and how. Relative paths are relative to the recipe."""

    name: str = Field(pattern=NAME)
    """Name of the dataset; "sqid" is the published one."""
    version: str
    """Version of the dataset, such as 1.0.0."""
    esci: EsciSettings | None = None
    catalogue: CatalogueSettings | None = None
    card: CardSettings = Field(default_factory=CardSettings)
    selection: Annotated[Selection, GetPydanticSchema(_selection_schema)] = Field(default_factory=_default_selection)
    artifacts: ArtifactsSettings | None = None
    resolve: ResolveSettings = Field(default_factory=ResolveSettings)
    fetch: FetchSettings = Field(default_factory=FetchSettings)
    encoder: EncoderSettings = Field(default_factory=EncoderSettings)
    engine: EngineSettings = Field(default_factory=EngineSettings)
    release: ReleaseSettings = Field(default_factory=ReleaseSettings)
    expect: ExpectSettings = Field(default_factory=ExpectSettings)

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.esci is None) == (self.catalogue is None):
            raise PydanticCustomError("one_source", "exactly one of [esci] and [catalogue]")
        for name in ("selection", "artifacts"):
            if self.catalogue is not None and name in self.model_fields_set and getattr(self, name) is not None:
                raise PydanticCustomError("not_with_catalogue", "{name}", {"name": name})
        pages = self.resolve.pages
        if self.catalogue is not None and pages.permission and "url" not in pages.model_fields_set:
            raise PydanticCustomError("no_page_url", "url")
        return self

    @model_validator(mode="after")
    def _text_columns(self) -> Self:
        known = [*schemas.SAMPLED_PRODUCTS_SCHEMA.names, *(self.catalogue.keep if self.catalogue else ())]
        hint = "Name further columns of the tables in catalogue.keep." if self.catalogue else ""
        for _, name in self.encoder.text_parts:
            if name is not None and name not in known:
                raise PydanticCustomError("unknown_column", "{name}", {"name": name, "known": known, "hint": hint})
        return self

    @property
    def source(self) -> str:
        """Address of the products it is made of."""
        if self.catalogue is not None:
            return self.catalogue.products
        assert self.esci is not None
        return self.esci.path

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as in the TOML file, for the manifest; of a catalogue without pages no [resolve.pages]."""
        values = self.model_dump()
        if self.catalogue is not None and not self.resolve.pages.permission:
            del values["resolve"]["pages"]  # its default URL is that of ESCI's products
        return values

    @field_serializer("selection")
    def _selection_table(self, selection: Selection) -> dict[str, Any]:
        return {**dataclasses.asdict(selection), "labels": selection.gains}


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
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        raise recipe_error(error, json_schema(), str(name_or_path), values) from error
    recipe = _absolute(recipe, base)
    if check_inputs:
        _check_inputs(recipe, str(name_or_path))
    return recipe


def describe_pattern(pattern: str) -> str:
    """What a pattern of the JSON schema asks for, in words; the pattern itself where it is not known."""
    return pattern_words(pattern)


def packaged() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(p.name.removesuffix(".toml") for p in _recipes().iterdir() if p.name.endswith(".toml"))


def json_schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of a recipe, from which editors complete and check."""
    schema = Recipe.model_json_schema(schema_generator=_TomlSchema)
    return {"$schema": _TomlSchema.schema_dialect, **schema, "title": "SQID recipe"}


class _TomlSchema(GenerateJsonSchema):
    """TOML has no null, a key is left out instead; and a title that repeats the key says nothing."""

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        return {key: value for key, value in super().default_schema(schema).items() if value is not None}

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002
        return False


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


def _absolute(recipe: Recipe, base: Path) -> Recipe:
    def absolute(path: str, *, file: bool = False) -> str:
        return str(parse_address(path, base, file=file))

    model, artifacts, catalogue = recipe.encoder.model, recipe.artifacts, recipe.catalogue
    tables = tuple(absolute(table, file=True) for table in recipe.resolve.tables)
    if _exists(base / Path(model).expanduser(), folder=True):
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
