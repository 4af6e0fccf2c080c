"""The one source of truth: files, columns, types, keys, labels, gains, status values, published counts.

A column is declared once, here. What is read from ESCI, joined, written to a release, described on its card, validated
and kept by a store follows from the declaration.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

if TYPE_CHECKING:
    import datasets

# -- ESCI, under its official names -------------------------------------------------------------------------------

ESCI_EXAMPLES = "shopping_queries_dataset_examples.parquet"
ESCI_PRODUCTS = "shopping_queries_dataset_products.parquet"
ESCI_SOURCES = "shopping_queries_dataset_sources.csv"

EXAMPLES_SCHEMA = pa.schema(
    [
        ("example_id", pa.int64()),
        ("query", pa.string()),
        ("query_id", pa.int64()),
        ("product_id", pa.string()),
        ("product_locale", pa.string()),
        ("esci_label", pa.string()),
        ("small_version", pa.int64()),
        ("large_version", pa.int64()),
        ("split", pa.string()),
    ]
)
PRODUCTS_SCHEMA = pa.schema(
    [
        ("product_id", pa.string()),
        ("product_title", pa.string()),
        ("product_description", pa.string()),
        ("product_bullet_point", pa.string()),
        ("product_brand", pa.string()),
        ("product_color", pa.string()),
        ("product_locale", pa.string()),
    ]
)
SOURCES_SCHEMA = pa.schema([("query_id", pa.int64()), ("source", pa.string())])

PRODUCT_KEY = ("product_id", "product_locale")  # the same id occurs under several locales
TEXT_COLUMNS = tuple(name for name in PRODUCTS_SCHEMA.names if name not in PRODUCT_KEY)
MAX_TEXT_BYTES = 1 << 20  # of one text of a product, in UTF-8
ESCI_LOCALES = {"us": "en", "es": "es", "jp": "ja"}  # ESCI's locales and their languages (ISO 639-1)
ESCI_QUERY_SOURCES = ("behavioral", "negations", "nlqec", "other", "parse_pattern")  # values of `source`
SPLITS = ("train", "test")
VERSIONS = ("small", "large")

# -- labels and gains (Shopping Queries Dataset, arXiv 2206.06588, section 5: E 1.0, S 0.1, C 0.01, I 0.0) --------
# the defaults: a recipe may state labels and gains of its own

LABELS = {"E": "Exact", "S": "Substitute", "C": "Complement", "I": "Irrelevant"}
GAINS = {"E": 1.0, "S": 0.1, "C": 0.01, "I": 0.0}
_CLICKS = re.compile(r"[0-9]+/[0-9]+")  # label of a pair from a click log: clicks/impressions
GAINS_ESCI_REPO_SWAPPED = {"E": 1.0, "S": 0.01, "C": 0.1, "I": 0.0}  # the ESCI repo's script, its issue 9


def is_clicks(label: str) -> bool:
    """Whether a label states clicks and impressions of a pair: such a label has no gain of its own."""
    return _CLICKS.fullmatch(label) is not None


# -- the four SQID files, as published ----------------------------------------------------------------------------

PRODUCT_URLS = "product_image_urls.csv"
PRODUCT_FEATURES = "product_features.parquet"
QUERY_FEATURES = "query_features.parquet"
SUPP_URLS = "supp_product_image_urls.csv"
CLASSIC_FILES = (PRODUCT_URLS, PRODUCT_FEATURES, QUERY_FEATURES, SUPP_URLS)
CLASSIC_LOCALE = "us"  # the locale of classic files without a product_locale column
PUBLISHED_WIDTH = 768  # projection width of openai/clip-vit-large-patch14

URLS_FILE_SCHEMA = pa.schema([("product_id", pa.string()), ("image_url", pa.string())])


def classic_features_schema(part: str) -> pa.Schema:
    """Columns of the published feature files; `part` is "product" or "query"; list<float> vectors, null if absent."""
    vector = pa.list_(pa.float32())
    if part == "product":
        return pa.schema([("product_id", pa.string()), ("clip_text_features", vector), ("clip_image_features", vector)])
    return pa.schema([("query_id", pa.int64()), ("clip_text_features", vector)])


# -- image_status -------------------------------------------------------------------------------------------------

OK = "ok"
MISSING = "missing"  # no URL is known
PLACEHOLDER = "placeholder"  # the URL shows a "no image available" image: not fetched, not embedded
GENERIC = "generic"  # the default digital-video image: embedded, as published
IMAGE_STATUS = {
    OK: "the product's own image",
    MISSING: "no image URL is known",
    PLACEHOLDER: "the URL shows a 'no image available' image",
    GENERIC: "the default digital-video image, shared by many products",
    "bad_url": "the URL is not http or https, or cannot be parsed",
    "refused": "the address is private or otherwise not allowed",
    "blocked": "the server forbids it (robots.txt, 401, 403)",
    "not_found": "the server answered 404 or 410",
    "http_error": "any other status than 200",
    "redirects": "more redirects than allowed, or a redirect without a usable target",
    "timeout": "the server was too slow",
    "connection": "no connection, or it broke",
    "too_large": "more bytes than allowed",
    "empty": "no bytes",
    "not_image": "the bytes are no JPEG, PNG, GIF or WEBP",
    "truncated": "the image ends early",
    "corrupt": "damaged image",
    "too_many_pixels": "more pixels than allowed",
    "non_finite": "the encoder gave NaN or infinity",
    "not_encoded": "the encoder takes texts only",
    "error": "anything else; see the build report",
}
BAD_URL = "bad_url"
EMBEDDED_STATUSES = (OK, GENERIC)  # what fetch downloads and embed turns into vectors
# the failures of a stage, which may end otherwise when it tries again
RETRIABLE = {
    "resolve": (MISSING, "blocked", "error"),  # of product pages
    "fetch": tuple(
        s for s in IMAGE_STATUS if s not in (OK, MISSING, PLACEHOLDER, GENERIC, "non_finite", "not_encoded")
    ),
}

GENERIC_IMAGE_URL = (
    "https://m.media-amazon.com/images/G/01/digital/video/web/Default_Background_Art_LTR._SX1080_FMjpg_.jpg"
)
# ids of Amazon's "no image available" images, compared after percent-decoding
PLACEHOLDER_IMAGE_IDS = frozenset(
    (
        *("01RmK+J4pJL", "01AodW1Gh-L", "01QFb8SNuTL", "01PkLIhTX3L", "21xiVkxN-SL", "01GmVhVRioL"),
        *("01RPy1SfeqL", "01-y6Ov3R+L", "01e-XWjq3EL", "11RGjrCdvsL", "01MKUOLsA5L", "31CTP6oiIBL"),
    )
)
PLACEHOLDER_URL_PARTS = ("/no-img-sm", "/no-image-avail")

# -- the joined configs -------------------------------------------------------------------------------------------

EXAMPLES, PRODUCTS, SOURCES = "examples", "products", "sources"  # the ESCI files, as origins of columns
VECTOR = pa.list_(pa.float32())  # in a declaration: a fixed list of as many floats as the encoder is wide


@dataclass(frozen=True)
class Column:
    """One column of a config.

    Attributes:
        meaning: one line, for the card.
        origin: the ESCI file it is read from, under the same name; "" where SQID makes it.
        nullable: whether null is a value; elsewhere validation reports it.
        own: the meaning in a release of a shop's own catalogue; "" where it is the same.
    """

    name: str
    type: pa.DataType
    meaning: str
    origin: str = ""
    nullable: bool = False
    own: str = ""


@dataclass(frozen=True)
class Config:
    """One config of the dataset.

    Attributes:
        summary: one line, for the card.
        key: columns that identify a row within a split; rows are sorted by them.
        unique: further columns without duplicates.
        own: the summary in a release of a shop's own catalogue; "" where it is the same.
    """

    summary: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    unique: tuple[str, ...] = ()
    own: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns, in order."""
        return tuple(column.name for column in self.columns)

    def of_origin(self, origin: str) -> tuple[str, ...]:
        """Columns read from one ESCI file, without the product key where the file is `products`."""
        return tuple(c.name for c in self.columns if c.origin == origin)


URLS, FEATURES, QUERIES, SUPP, JUDGMENTS = "urls", "product_features", "query_features", "supp", "judgments"
DEFAULT_CONFIG = URLS
SUPP_SPLIT = "train"  # the supplementary products are published as split train
SUPP_VECTORS_SPLIT = "supp"  # split of product_features when supplementary products are embedded too

_PRODUCT_ID = Column(
    "product_id", pa.string(), "Amazon ASIN; unique within a locale", EXAMPLES, own="id of the product in the shop"
)
_PRODUCT_LOCALE = Column(
    "product_locale", pa.string(), "locale of the product, such as us", EXAMPLES, own="locale of the catalogue"
)
_TITLE = Column("product_title", pa.string(), "title, from ESCI", PRODUCTS, nullable=True, own="title")
_DESCRIPTION = Column(
    "product_description", pa.string(), "description, from ESCI", PRODUCTS, nullable=True, own="description"
)
_BULLETS = Column(
    "product_bullet_point", pa.string(), "bullet points, from ESCI", PRODUCTS, nullable=True, own="bullet points"
)
_BRAND = Column("product_brand", pa.string(), "brand, from ESCI", PRODUCTS, nullable=True, own="brand")
_COLOR = Column("product_color", pa.string(), "color, from ESCI", PRODUCTS, nullable=True, own="color")
_IMAGE_URL = Column(
    "image_url",
    pa.string(),
    "URL of the main image; null where none is known",
    nullable=True,
    own="URL of the image; null where none is known, and for images that were files of the shop",
)
_IMAGE_STATUS = Column("image_status", pa.string(), "what is known of the image")
_HAS_IMAGE = Column("has_image", pa.bool_(), "whether clip_image_features is a real vector (false: zeros)")
_TEXT_VECTOR = Column(
    "clip_text_features",
    VECTOR,
    "CLIP text embedding, projected, not normalised",
    own="text embedding by the encoder, not normalised",
)
_IMAGE_VECTOR = Column(
    "clip_image_features",
    VECTOR,
    "CLIP image embedding, projected, not normalised; zeros where there is no image",
    own="image embedding by the encoder, not normalised; zeros where there is no image",
)
_QUERY_ID = Column("query_id", pa.int64(), "query, as numbered by ESCI", EXAMPLES, own="number of the query")
_QUERY = Column("query", pa.string(), "query text, from ESCI", EXAMPLES, own="query text")
_SOURCE = Column(
    "source", pa.string(), "how ESCI sampled the query", SOURCES, nullable=True, own="where the query is from, if known"
)
_EXAMPLE_ID = Column("example_id", pa.int64(), "judgment, as numbered by ESCI", EXAMPLES, own="number of the judgment")
_LABEL = Column(
    "esci_label", pa.string(), "E exact, S substitute, C complement, I irrelevant", EXAMPLES, own="label, as given"
)
_GAIN = Column("gain", pa.float32(), "E 1.0, S 0.1, C 0.01, I 0.0", own="number of the label")

_PRODUCT_ROW = (
    *(_PRODUCT_ID, _PRODUCT_LOCALE, _IMAGE_URL, _IMAGE_STATUS),
    *(_TITLE, _DESCRIPTION, _BULLETS, _BRAND, _COLOR),
)
DECLARED: Mapping[str, Config] = {
    URLS: Config(
        "every product of the selection with its image URL, image status and ESCI text",
        _PRODUCT_ROW,
        PRODUCT_KEY,
        own="every product with its image URL, image status and texts",
    ),
    FEATURES: Config(
        "every product of the selection with its CLIP text and image embeddings",
        (
            *(_PRODUCT_ID, _PRODUCT_LOCALE, _TITLE, _IMAGE_URL, _IMAGE_STATUS),
            *(_HAS_IMAGE, _TEXT_VECTOR, _IMAGE_VECTOR),
        ),
        PRODUCT_KEY,
        own="every product with its text and image embeddings",
    ),
    QUERIES: Config(
        "every query with its source and CLIP text embedding",
        (_QUERY_ID, _QUERY, _SOURCE, _TEXT_VECTOR),
        ("query_id",),
        own="every query with its text embedding",
    ),
    SUPP: Config("supplementary products: image URLs and ESCI text, no embeddings", _PRODUCT_ROW, PRODUCT_KEY),
    JUDGMENTS: Config(
        "every judgment: query, product, label and gain",
        (_EXAMPLE_ID, _QUERY_ID, _QUERY, _PRODUCT_ID, _PRODUCT_LOCALE, _LABEL, _GAIN),
        ("query_id", *PRODUCT_KEY),
        unique=("example_id",),
    ),
}
CONFIGS = tuple(DECLARED)
VECTOR_COLUMNS = tuple(column.name for column in DECLARED[FEATURES].columns if column.type == VECTOR)


# a shop's own catalogue may have further columns, kept in these configs after the declared ones
CARRYING = (URLS, FEATURES)
Kept = Sequence[pa.Field]
_WHOLE = (pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64())


def type_name(dtype: pa.DataType) -> str:
    """The name of an Arrow type as `datasets` and numpy spell it."""
    return {"float": "float32", "double": "float64"}.get(str(dtype), str(dtype))


# types of their values, by name
KEPT_TYPES = {type_name(dtype): dtype for dtype in (pa.string(), pa.bool_(), pa.float32(), pa.float64(), *_WHOLE)}


def config_schema(config: str, width: int = PUBLISHED_WIDTH, kept: Kept = ()) -> pa.Schema:
    """Arrow schema of a joined config; vectors are fixed-size lists of `width` float32.

    Args:
        kept: further columns of a catalogue; they follow in the configs of CARRYING, and are left out elsewhere.
    """
    vector = pa.list_(pa.float32(), width)
    declared = [pa.field(c.name, vector if c.type == VECTOR else c.type) for c in DECLARED[config].columns]
    return pa.schema([*declared, *(kept if config in CARRYING else ())])


def config_features(config: str, width: int = PUBLISHED_WIDTH, kept: Kept = ()) -> datasets.Features:
    """The same columns as `datasets.Features`, for whichever generation of datasets is installed."""
    import datasets

    def feature(dtype: pa.DataType) -> object:
        if not pa.types.is_fixed_size_list(dtype):
            return datasets.Value(type_name(dtype))
        fixed_list = getattr(datasets, "List", None) or datasets.Sequence  # datasets 3.x has no List
        return fixed_list(datasets.Value("float32"), length=dtype.list_size)

    return datasets.Features({field.name: feature(field.type) for field in config_schema(config, width, kept)})


def kept_columns(config: str, schema: pa.Schema) -> tuple[pa.Field, ...]:
    """The columns of a file that a catalogue keeps beside the declared ones: those of CARRYING with plain values."""
    if config not in CARRYING:
        return ()
    names = DECLARED[config].names
    return tuple(
        pa.field(f.name, f.type)
        for f in schema
        if f.name not in names and type_name(f.type) in KEPT_TYPES and schema.names.count(f.name) == 1
    )


def text_columns(config: str) -> tuple[str, ...]:
    """Columns of a config that are read from ESCI's products file, besides the key."""
    return DECLARED[config].of_origin(PRODUCTS)


def shared_columns(config: str, other: str, kept: Kept = ()) -> tuple[str, ...]:
    """Columns whose value in `config` must be that of the row of `other` with the same key.

    None unless `config` has the key of `other`. Vectors are left out: only one config states them for a key.
    """
    key = DECLARED[other].key
    names = config_schema(config, kept=kept).names
    if config == other or not set(key) <= set(names):
        return ()
    vectors = {c.name for c in DECLARED[other].columns if c.type == VECTOR}
    there = set(config_schema(other, kept=kept).names) - vectors - set(key)
    return tuple(name for name in names if name in there)


def fingerprint() -> str:
    """Hash of all declared columns: what was made under other declarations is stale."""
    declared = [(config, c.name, str(c.type), c.origin) for config, d in DECLARED.items() for c in d.columns]
    return hashlib.sha256(repr(declared).encode()).hexdigest()[:16]


# -- published counts: small_version 1, split test, locale us (arXiv 2405.15190 and the published files) -----------

PUBLISHED_COUNTS = {"products": 164_900, "queries": 8_956, "judgments": 181_701, "supp": 27_139}
COUNTED = {"products": URLS, "queries": QUERIES, "judgments": JUDGMENTS, "supp": SUPP}  # whose distinct keys they are

# -- a release ----------------------------------------------------------------------------------------------------

RELEASE_DIR = "sqid"  # within a build's work directory
CARD = "README.md"
MANIFEST = "manifest.json"
SHA256SUMS = "SHA256SUMS"
LOCAL_REVISION = "local-"  # begins the revision of a model in a directory, a hash of its files

# -- a build's work directory: WORK/<stage>/… ---------------------------------------------------------------------

MAIN = "main"
SUPPLEMENTARY = "supp"
# sample: WORK/sample/{products,supp,queries,judgments}.parquet
SAMPLED_PRODUCTS_SCHEMA = PRODUCTS_SCHEMA  # sorted by PRODUCT_KEY
SAMPLED_QUERIES_SCHEMA = pa.schema([(c.name, c.type) for c in DECLARED[QUERIES].columns if c.origin])
SAMPLED_JUDGMENTS_SCHEMA = config_schema(JUDGMENTS).append(pa.field("split", pa.string()))
# of a catalogue also WORK/sample/images.parquet, a row per product in the order of products: what it says of the image
FILE_IMAGE = "file:"  # begins a reference to a local image: then its path
ROW_IMAGE = "row:"  # begins "row:FILE:ROW": bytes in a row (from 0) of a file (from 0) of the products
CATALOGUE_IMAGES_SCHEMA = pa.schema(
    [
        ("product_id", pa.string()),
        ("product_locale", pa.string()),
        ("image", pa.string()),  # a URL, or a reference to a local image; null where there is none
    ]
)
# resolve: WORK/resolve/urls.parquet, a row per product, main then supp, each in the order of sample
RESOLVED_SCHEMA = pa.schema(
    [
        ("part", pa.string()),  # main | supp
        ("product_locale", pa.string()),
        ("product_id", pa.string()),
        ("image_url", pa.string()),
        ("image_status", pa.string()),
        ("source", pa.string()),  # the table or page that gave the URL; null where none did
    ]
)
# fetch: WORK/fetch/outcomes.parquet, a row per product of resolve that wants an image or has none, same order
OUTCOMES_SCHEMA = pa.schema(
    [
        ("product_locale", pa.string()),
        ("product_id", pa.string()),
        ("image_url", pa.string()),
        ("image_status", pa.string()),  # final: that of resolve, or how the download or the decoding failed
        ("http_status", pa.int32()),  # null where no answer came
        ("bytes", pa.int64()),
        ("sha256", pa.string()),  # of the bytes; null unless they were stored
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("detail", pa.string()),  # one line for people; null where all is well
    ]
)
# fetch: WORK/fetch/images-00000.parquet …, a row per distinct image
IMAGES_SCHEMA = pa.schema([("sha256", pa.string()), ("image", pa.binary())])
