"""The one source of truth agrees with itself, with datasets and with the facts it states."""

from __future__ import annotations

import datasets
import pyarrow as pa
import pytest

from sqid_lib import schemas

pytestmark = pytest.mark.compat


@pytest.mark.parametrize("config", schemas.CONFIGS)
def test_features_and_arrow_schema_agree(config: str) -> None:
    features = schemas.config_features(config, 6)
    assert isinstance(features, datasets.Features)
    assert features.arrow_schema.remove_metadata().equals(schemas.config_schema(config, 6))
    assert datasets.Features.from_arrow_schema(schemas.config_schema(config, 6)) == features


def test_every_column_is_explained_and_every_key_exists() -> None:
    for declared in schemas.DECLARED.values():
        assert declared.summary and all(column.meaning for column in declared.columns)
        assert {*declared.key, *declared.unique} <= set(declared.names)
        assert not any(column.nullable for column in declared.columns if column.name in declared.key)


def test_columns_read_from_esci_are_there_under_that_name() -> None:
    files = {
        "examples": schemas.EXAMPLES_SCHEMA,
        "products": schemas.PRODUCTS_SCHEMA,
        "sources": schemas.SOURCES_SCHEMA,
    }
    for declared in schemas.DECLARED.values():
        for column in declared.columns:
            if column.origin:
                assert files[column.origin].field(column.name).type == column.type
    assert set(schemas.text_columns("product_features")) <= set(schemas.text_columns("urls"))
    assert schemas.text_columns("urls") == schemas.TEXT_COLUMNS


def test_what_configs_share_follows_from_their_columns() -> None:
    assert {"product_title", "image_url", "image_status"} <= set(schemas.shared_columns("product_features", "urls"))
    assert schemas.shared_columns("judgments", "query_features") == ("query",)
    assert schemas.shared_columns("query_features", "judgments") == ()  # a query has no product
    assert schemas.shared_columns("urls", "urls") == ()


def test_columns_are_those_of_the_design() -> None:
    assert schemas.config_schema("urls").names == [
        *("product_id", "product_locale", "image_url", "image_status", "product_title"),
        *("product_description", "product_bullet_point", "product_brand", "product_color"),
    ]
    assert schemas.config_schema("product_features").names == [
        *("product_id", "product_locale", "product_title", "image_url", "image_status", "has_image"),
        *("clip_text_features", "clip_image_features"),
    ]
    assert schemas.config_schema("query_features").names == ["query_id", "query", "source", "clip_text_features"]
    assert schemas.config_schema("supp") == schemas.config_schema("urls")
    vector = schemas.config_schema("query_features").field("clip_text_features").type
    assert pa.types.is_fixed_size_list(vector) and vector.list_size == 768


def test_gains_and_labels() -> None:
    assert schemas.GAINS == {"E": 1.0, "S": 0.1, "C": 0.01, "I": 0.0}
    swapped = schemas.GAINS_ESCI_REPO_SWAPPED
    assert (swapped["S"], swapped["C"]) == (schemas.GAINS["C"], schemas.GAINS["S"])
    assert list(schemas.LABELS) == list(schemas.GAINS)


def test_statuses_that_are_embedded_are_known() -> None:
    assert set(schemas.EMBEDDED_STATUSES) <= set(schemas.IMAGE_STATUS)
    assert len(schemas.PLACEHOLDER_IMAGE_IDS) == 12
