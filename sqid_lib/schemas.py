"""The one source of truth: files, columns, dtypes, labels, gains, status values, published counts."""

from __future__ import annotations

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
TEXT_COLUMNS = ("product_title", "product_description", "product_bullet_point", "product_brand", "product_color")
PRODUCTS_SCHEMA = pa.schema(
    [("product_id", pa.string()), *((c, pa.string()) for c in TEXT_COLUMNS), ("product_locale", pa.string())]
)
SOURCES_SCHEMA = pa.schema([("query_id", pa.int64()), ("source", pa.string())])

PRODUCT_KEY = ("product_locale", "product_id")  # the same id occurs under several locales
LOCALES = ("us", "es", "jp")
SPLITS = ("train", "test")
VERSIONS = ("small", "large")

# -- labels and gains (Shopping Queries Dataset, arXiv 2206.06588, section 5: E 1.0, S 0.1, C 0.01, I 0.0) --------

LABELS = {"E": "Exact", "S": "Substitute", "C": "Complement", "I": "Irrelevant"}
GAINS = {"E": 1.0, "S": 0.1, "C": 0.01, "I": 0.0}
GAINS_ESCI_REPO_SWAPPED = {"E": 1.0, "S": 0.01, "C": 0.1, "I": 0.0}  # the ESCI repo's script, its issue 9

# -- the four SQID files, as published ----------------------------------------------------------------------------

PRODUCT_URLS = "product_image_urls.csv"
PRODUCT_FEATURES = "product_features.parquet"
QUERY_FEATURES = "query_features.parquet"
SUPP_URLS = "supp_product_image_urls.csv"
CLASSIC_FILES = (PRODUCT_URLS, PRODUCT_FEATURES, QUERY_FEATURES, SUPP_URLS)
CLASSIC_LOCALE = "us"  # classic files without a product_locale column speak of this locale
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
MISSING = "missing"  # no url is known
PLACEHOLDER = "placeholder"  # the url shows a "no image available" picture: not fetched, not embedded
GENERIC = "generic"  # the default digital-video picture: embedded, as published
IMAGE_STATUS = {
    OK: "the product's own picture",
    MISSING: "no image url is known",
    PLACEHOLDER: "the url shows a 'no image available' picture",
    GENERIC: "the default digital-video picture, shared by many products",
    "bad_url": "the url is not http or https, or cannot be parsed",
    "refused": "the address is private or otherwise not allowed",
    "blocked": "the server forbids it (robots.txt, 401, 403)",
    "not_found": "the server says 404 or 410",
    "http_error": "any other status than 200",
    "redirects": "more redirects than allowed, or a redirect that leads nowhere",
    "timeout": "the server was too slow",
    "connection": "no connection, or it broke",
    "too_large": "more bytes than allowed",
    "empty": "no bytes",
    "not_image": "the bytes are no JPEG, PNG, GIF or WEBP",
    "corrupt": "truncated or damaged picture",
    "too_many_pixels": "more pixels than allowed",
    "non_finite": "the encoder gave NaN or infinity",
    "error": "anything else; see the build report",
}
EMBEDDED_STATUSES = (OK, GENERIC)  # what fetch downloads and embed turns into vectors

GENERIC_IMAGE_URL = (
    "https://m.media-amazon.com/images/G/01/digital/video/web/Default_Background_Art_LTR._SX1080_FMjpg_.jpg"
)
# ids of Amazon's "no image available" pictures, compared after percent-decoding
PLACEHOLDER_IMAGE_IDS = frozenset(
    (
        *("01RmK+J4pJL", "01AodW1Gh-L", "01QFb8SNuTL", "01PkLIhTX3L", "21xiVkxN-SL", "01GmVhVRioL"),
        *("01RPy1SfeqL", "01-y6Ov3R+L", "01e-XWjq3EL", "11RGjrCdvsL", "01MKUOLsA5L", "31CTP6oiIBL"),
    )
)
PLACEHOLDER_URL_PARTS = ("/no-img-sm", "/no-image-avail")

# -- the joined configs -------------------------------------------------------------------------------------------

URLS, FEATURES, QUERIES, SUPP, JUDGMENTS = "urls", "product_features", "query_features", "supp", "judgments"
CONFIGS = (URLS, FEATURES, QUERIES, SUPP, JUDGMENTS)
DEFAULT_CONFIG = URLS
SUPP_SPLIT = "train"  # the supplementary products are published as split train
VECTOR_COLUMNS = ("clip_text_features", "clip_image_features")

CONFIG_SUMMARY = {
    URLS: "every judged product with its image url, image status and ESCI text",
    FEATURES: "every judged product with its CLIP text and image embeddings",
    QUERIES: "every query with its source and CLIP text embedding",
    SUPP: "supplementary products: image urls and ESCI text, no embeddings",
    JUDGMENTS: "every judgment: query, product, label and gain",
}
SORT_KEYS = {
    URLS: ("product_id", "product_locale"),
    FEATURES: ("product_id", "product_locale"),
    QUERIES: ("query_id",),
    SUPP: ("product_id", "product_locale"),
    JUDGMENTS: ("query_id", "product_id", "product_locale"),
}

COLUMN_MEANING = {
    "product_id": "Amazon ASIN; unique within a locale",
    "product_locale": "us, es or jp",
    "product_title": "title, from ESCI",
    "product_description": "description, from ESCI",
    "product_bullet_point": "bullet points, from ESCI",
    "product_brand": "brand, from ESCI",
    "product_color": "color, from ESCI",
    "image_url": "url of the main picture; null where none is known",
    "image_status": "what is known of the picture",
    "has_image": "whether clip_image_features is a real vector (false: zeros)",
    "clip_text_features": "CLIP text embedding, projected, not normalised",
    "clip_image_features": "CLIP image embedding, projected, not normalised; zeros where there is no image",
    "query_id": "query, as numbered by ESCI",
    "query": "query text, from ESCI",
    "source": "how ESCI sampled the query",
    "example_id": "judgment, as numbered by ESCI",
    "esci_label": "E exact, S substitute, C complement, I irrelevant",
    "gain": "E 1.0, S 0.1, C 0.01, I 0.0",
}


def config_schema(config: str, width: int = PUBLISHED_WIDTH) -> pa.Schema:
    """Arrow schema of a joined config; vectors are fixed-size lists of `width` float32."""
    string, vector = pa.string(), pa.list_(pa.float32(), width)
    columns: dict[str, list[tuple[str, pa.DataType]]] = {
        URLS: [
            *((c, string) for c in ("product_id", "product_locale", "image_url", "image_status")),
            *((c, string) for c in TEXT_COLUMNS),
        ],
        FEATURES: [
            *((c, string) for c in ("product_id", "product_locale", "product_title", "image_url", "image_status")),
            ("has_image", pa.bool_()),
            ("clip_text_features", vector),
            ("clip_image_features", vector),
        ],
        QUERIES: [("query_id", pa.int64()), ("query", string), ("source", string), ("clip_text_features", vector)],
        JUDGMENTS: [
            ("example_id", pa.int64()),
            ("query_id", pa.int64()),
            *((c, string) for c in ("query", "product_id", "product_locale", "esci_label")),
            ("gain", pa.float32()),
        ],
    }
    columns[SUPP] = columns[URLS]
    return pa.schema(columns[config])


def config_features(config: str, width: int = PUBLISHED_WIDTH) -> datasets.Features:
    """The same columns as `datasets.Features`, for whichever generation of datasets is installed."""
    import datasets

    def feature(dtype: pa.DataType) -> object:
        if not pa.types.is_fixed_size_list(dtype):
            return datasets.Value({"float": "float32"}.get(str(dtype), str(dtype)))
        fixed_list = getattr(datasets, "List", None) or datasets.Sequence  # datasets 3.x has no List
        return fixed_list(datasets.Value("float32"), length=dtype.list_size)

    return datasets.Features({field.name: feature(field.type) for field in config_schema(config, width)})


# -- published counts: small_version 1, split test, locale us (arXiv 2405.15190 and the published files) -----------

PUBLISHED_COUNTS = {"products": 164_900, "queries": 8_956, "judgments": 181_701, "supp": 27_139}

# -- a release ----------------------------------------------------------------------------------------------------

RELEASE_DIR = "sqid"  # within a build's work directory
CARD = "README.md"
MANIFEST = "manifest.json"
SHA256SUMS = "SHA256SUMS"


def shard_name(config: str, split: str, shard: int, shards: int) -> str:
    """Path of one parquet file of a release, relative to the release."""
    return f"data/{config}/{split}-{shard:05d}-of-{shards:05d}.parquet"


# -- a build's work directory: WORK/<stage>/… ---------------------------------------------------------------------

MAIN = "main"
SUPPLEMENTARY = "supp"
# sample: WORK/sample/{products,supp,queries,judgments}.parquet
SAMPLED_PRODUCTS_SCHEMA = PRODUCTS_SCHEMA  # sorted by (product_id, product_locale)
SAMPLED_QUERIES_SCHEMA = pa.schema([("query_id", pa.int64()), ("query", pa.string()), ("source", pa.string())])
SAMPLED_JUDGMENTS_SCHEMA = config_schema(JUDGMENTS).append(pa.field("split", pa.string()))
# resolve: WORK/resolve/urls.parquet, a row per product, main then supp, each in the order of sample
RESOLVED_SCHEMA = pa.schema(
    [
        ("part", pa.string()),  # main | supp
        ("product_locale", pa.string()),
        ("product_id", pa.string()),
        ("image_url", pa.string()),
        ("image_status", pa.string()),
        ("source", pa.string()),  # the table or page that gave the url; null where none did
    ]
)
# fetch: WORK/fetch/outcomes.parquet, a row per product of resolve that wants a picture or has none, same order
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
# fetch: WORK/fetch/images-00000.parquet …, a row per distinct picture
IMAGES_SCHEMA = pa.schema([("sha256", pa.string()), ("image", pa.binary())])
