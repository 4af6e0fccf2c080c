"""The tables of a recipe that say how the stages work."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    field_validator,
)

from builder.recipe.values import PAGE_URL, HostPort, Items, Port, Section, TextTemplate, Url, Word, template_parts


class PagesSettings(Section):
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


class ResolveSettings(Section):
    """[resolve]: where image URLs come from."""

    tables: Items[Word] = ()
    """Paths or URLs of tables of image URLs, tried in order."""
    pages: PagesSettings = Field(default_factory=PagesSettings)
    """Product pages, tried last."""


class FetchSettings(Section):
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
    max_pixels: Annotated[int, Field(gt=0, le=178_956_970)] = 50_000_000  # Pillow refuses more
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


class EncoderSettings(Section):
    """[encoder]: the model that makes the vectors."""

    model: Word = "openai/clip-vit-large-patch14"
    """Hub id or local directory of the model."""
    revision: Word = "main"
    """Branch, tag or commit of the model on the Hub."""
    backend: Literal["transformers", "open_clip", "sentence-transformers", "replicate"] = "transformers"
    """What runs the model: "transformers", "open_clip" or "sentence-transformers" on this machine, or the service
    "replicate". Models of sentence-transformers that take texts alone give no image vectors."""
    text: TextTemplate = PRODUCT_TEXT
    """The text of a product, from its columns, such as "{product_title} {product_brand}"; kept columns of a catalogue
    too. A product without a value has nothing in its place; queries are encoded as they are."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the weights while encoding; the vectors are float32. Another one makes all vectors again."""
    device: Word = "auto"
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


class EngineSettings(Section):
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


class ReleaseSettings(Section):
    """[release]: what the release holds."""

    classic_files: bool = True
    """Whether the four files that were published first are written besides the joined configs."""
    max_shard_bytes: PositiveInt = 500_000_000
    """Largest parquet file before compression, in bytes."""


class ExpectSettings(Section):
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
