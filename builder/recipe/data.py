"""The tables of a recipe that say what the data is and where it lies."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, GetPydanticSchema, NonNegativeFloat, NonNegativeInt, PositiveInt
from pydantic_core import core_schema

from builder.recipe.values import HOMEPAGE, DistinctItems, Gain, Items, Line, Section, Word, Words
from sqid_lib import schemas
from sqid_lib.joined.selection import Selection


class EsciSettings(Section):
    """[esci]: the official ESCI files."""

    path: Word
    """Directory or URL that holds the three official files."""


class ClickSettings(Section):
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


class CatalogueSettings(Section):
    """[catalogue]: a shop's own tables, in place of [esci]."""

    products: Word
    """Table of products: csv, tsv, jsonl (.gz, .bz2, .zst) or parquet; a folder of them; https:// or hf://."""
    locale: Line
    """Locale of the products, such as de; the value of product_locale."""
    images: Word | None = None
    """Folder of local images, named in the image column or by product id; images outside it are refused. Without it
    the folder of the products is meant."""
    judgments: Word | None = None
    """Table of judgments: query, product_id and a label, a number, or impressions and clicks."""
    queries: Word | None = None
    """Table of queries without judgments: query, and query_id if there is one."""
    columns: dict[_CatalogueColumn, Words] = Field(default={})
    """Our column = the tables' column, or a list, ["sku", "item"], where tables name it differently: in each the first
    that it has. Columns left out are recognised by usual names, which the build reports."""
    keep: Items[Word] = ()
    """Further columns of the products to carry into the release, by the tables' names, such as ["price"]."""
    labels: dict[Annotated[str, Field(min_length=1)], Gain] = Field(default={})
    """Every label of the judgments, with its gain; a label that is a number is its own gain."""
    unknown_products: Literal["refuse", "drop"] = "refuse"
    """Judgments of products that the table of products has not: "refuse" them as an error, or "drop" and count them."""
    clicks: ClickSettings = Field(default_factory=ClickSettings)
    """How a click log becomes gains."""


class CardSettings(Section):
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


class SelectionSettings(Section):
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
    labels: dict[Annotated[str, Field(min_length=1)], Gain] = Field(default=dict(schemas.GAINS), min_length=1)
    """Every label that may occur, with its gain."""

    def selection(self) -> Selection:
        """The same as sqid_lib has it."""
        return Selection(**{**dict(self), "labels": tuple(self.labels.items())})


class ArtifactsSettings(Section):
    """[artifacts]: existing SQID files. With them, resolve, fetch and embed are skipped."""

    path: Word
    """Directory or URL that holds the SQID files."""
    partial: bool = False
    """Whether products and queries without a text vector are kept, with zeros for it; otherwise they are an error."""
