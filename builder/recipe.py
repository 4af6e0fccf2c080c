"""Recipes: TOML files that say what to build, checked on load."""

from __future__ import annotations

import dataclasses
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from sqid_lib.errors import MissingFileError, RecipeError, UsageError
from sqid_lib.selection import Selection


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
    selection: Selection = Selection()
    artifacts: Artifacts | None = None
    resolve: Resolve = Resolve()
    fetch: Fetch = field(default_factory=Fetch)
    encoder: Encoder = Encoder()
    release: Release = Release()
    expect: Expect = Expect()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as in the TOML file, for the manifest."""
        return dataclasses.asdict(self)
