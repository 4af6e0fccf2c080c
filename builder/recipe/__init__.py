"""Recipes: TOML files that say what to build, checked as a whole when they are loaded."""

from sqid_lib.errors import missing_extra

try:
    import pydantic  # noqa: F401
except ImportError as error:
    raise missing_extra("pydantic", "build", "to read recipes") from error

from builder.recipe.data import (
    CATALOGUE_COLUMNS,
    ArtifactsSettings,
    CardSettings,
    CatalogueSettings,
    ClickSettings,
    EsciSettings,
    SelectionSettings,
)
from builder.recipe.json_schema import json_schema
from builder.recipe.load import load, packaged
from builder.recipe.recipe import Recipe
from builder.recipe.stages import (
    PRODUCT_TEXT,
    EncoderSettings,
    EngineSettings,
    ExpectSettings,
    FetchSettings,
    PagesSettings,
    ReleaseSettings,
    ResolveSettings,
)
from builder.recipe.values import describe_pattern

__all__ = [
    "CATALOGUE_COLUMNS",
    "PRODUCT_TEXT",
    "ArtifactsSettings",
    "CardSettings",
    "CatalogueSettings",
    "ClickSettings",
    "EncoderSettings",
    "EngineSettings",
    "EsciSettings",
    "ExpectSettings",
    "FetchSettings",
    "PagesSettings",
    "Recipe",
    "ReleaseSettings",
    "ResolveSettings",
    "SelectionSettings",
    "describe_pattern",
    "json_schema",
    "load",
    "packaged",
]
