"""A recipe as a whole, and what its tables must be to each other."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Self

from pydantic import Field, GetCoreSchemaHandler, GetPydanticSchema, field_serializer, model_validator
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from builder.recipe.data import ArtifactsSettings, CardSettings, CatalogueSettings, EsciSettings, SelectionSettings
from builder.recipe.stages import (
    EncoderSettings,
    EngineSettings,
    ExpectSettings,
    FetchSettings,
    ReleaseSettings,
    ResolveSettings,
)
from builder.recipe.values import NAME, Line, Section
from sqid_lib import schemas
from sqid_lib.joined.selection import ALL, Selection


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


class Recipe(Section):
    """What `sqid build` builds, and how. Relative paths are relative to the recipe."""

    name: str = Field(pattern=NAME)
    """Name of the dataset; "sqid" is the published one."""
    version: Line
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
