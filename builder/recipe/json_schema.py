"""The JSON schema of recipes."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from builder.recipe.recipe import Recipe


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
