"""A small valid release, generated from a seed and written by the writers of the builder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from builder.recipe import EncoderSettings, EsciSettings, Recipe
from builder.release.files import write_classic_features, write_shards, write_urls
from builder.release.stage import describe
from sqid_lib import schemas

RECIPE = Recipe(
    name="tiny",
    version="1.0.0",
    esci=EsciSettings(path="/made/up/shop"),
    encoder=EncoderSettings(model="made-up/tiny-clip"),
)
_STATUSES = (schemas.OK, schemas.OK, schemas.OK, schemas.MISSING, "not_found", schemas.GENERIC, schemas.PLACEHOLDER)


def recipe_with(**changes: Any) -> Recipe:
    """RECIPE with other sections."""
    return RECIPE.model_copy(update=changes)


def write_release(
    root: Path,
    *,
    products: int = 40,
    queries: int = 6,
    per_query: int = 8,
    supp: int = 5,
    width: int = 8,
    seed: int = 0,
    max_shard_bytes: int = 500_000_000,
    classic: bool = True,
    recipe: Recipe = RECIPE,
) -> Path:
    """Write a release of one locale to `root` and return it; `seed` decides every value.

    Labels, gains and the locale are those of the recipe; the classic files are for locale us.
    """
    rng = np.random.default_rng(seed)
    (locale,) = recipe.selection.locales
    main, extra = _products("B0", products, locale, rng), _products("B1", supp, locale, rng)
    vectors = {name: rng.normal(size=(products, width)).astype(np.float32) for name in schemas.VECTOR_COLUMNS}
    status = np.array(main["image_status"])
    has_image = np.isin(status, schemas.EMBEDDED_STATUSES)
    vectors["clip_image_features"][~has_image] = 0
    main |= {"has_image": has_image.tolist(), **{name: _lists(array) for name, array in vectors.items()}}
    query_columns = {
        "query_id": list(range(100, 100 + queries)),
        "query": [f"query {i}" for i in range(queries)],
        "source": [("other", "negations")[i % 2] for i in range(queries)],
        "clip_text_features": _lists(rng.normal(size=(queries, width)).astype(np.float32)),
    }
    judgments = _judgments(queries, products, per_query, recipe, rng)
    for config, split, values in (
        (schemas.URLS, "test", main),
        (schemas.FEATURES, "test", main),
        (schemas.QUERIES, "test", query_columns),
        (schemas.SUPP, schemas.SUPP_SPLIT, extra),
        (schemas.JUDGMENTS, "test", judgments),
    ):
        schema = schemas.config_schema(config, width)
        rows = len(values[schemas.DECLARED[config].key[0]])
        table = pa.table({f.name: values.get(f.name, _made_up(f, rows)) for f in schema}, schema=schema)
        write_shards(root, config, split, [table], schema, rows=table.num_rows, max_shard_bytes=max_shard_bytes)
    if classic:
        _write_classic(root, main, extra, query_columns)
    seal(root, recipe.model_copy(update={"release": recipe.release.model_copy(update={"classic_files": classic})}))
    return root


def seal(root: Path, recipe: Recipe = RECIPE) -> None:
    """Write the card, the manifest and the checksums for the data files now in `root`."""
    describe(root, recipe, revision=None)


def _made_up(field: pa.Field, rows: int) -> list[Any]:
    """Values of a declared column that this module does not know; the first is null."""
    value = str if pa.types.is_string(field.type) else (lambda i: bool(i % 2)) if field.type == pa.bool_() else int
    return [None, *(value(i) for i in range(1, rows))]


def _products(prefix: str, count: int, locale: str, rng: np.random.Generator) -> dict[str, Any]:
    ids = [f"{prefix}{i:08d}" for i in range(count)]
    status = [_STATUSES[i % len(_STATUSES)] for i in range(count)]
    word = rng.choice(["lamp", "boots", "kettle"], size=count)
    return {
        "product_id": ids,
        "product_locale": [locale] * count,
        "image_url": [
            None if s == schemas.MISSING else f"https://images.example/{i}.jpg"
            for i, s in zip(ids, status, strict=True)
        ],
        "image_status": status,
        "product_title": [f'{w}, "{i}"' for i, w in zip(ids, word, strict=True)],
        "product_description": [None if i % 3 else f"a {w}\nof two lines" for i, w in enumerate(word)],
        "product_bullet_point": [None] * count,
        "product_brand": [f"brand {i % 5}" for i in range(count)],
        "product_color": ["rot, größer"] * count,
    }


def _judgments(queries: int, products: int, per_query: int, recipe: Recipe, rng: np.random.Generator) -> dict[str, Any]:
    rows: list[tuple[int, int]] = []
    for query in range(queries):
        chosen = rng.choice(products, size=min(per_query, products), replace=False)
        rows += [(query, int(product)) for product in sorted(chosen)]
    unjudged = sorted(set(range(products)) - {product for _, product in rows})
    rows = sorted(rows + [(product % queries, product) for product in unjudged])
    gains = recipe.selection.gains
    labels = [str(label) for label in rng.choice(list(gains), size=len(rows))]
    return {
        "example_id": list(range(len(rows))),
        "query_id": [100 + query for query, _ in rows],
        "query": [f"query {query}" for query, _ in rows],
        "product_id": [f"B0{product:08d}" for _, product in rows],
        "product_locale": [recipe.selection.locales[0]] * len(rows),
        "esci_label": labels,
        "gain": [gains[label] for label in labels],
    }


def _lists(array: np.ndarray[Any, Any]) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(array.ravel()), array.shape[1])


def _write_classic(root: Path, main: dict[str, Any], extra: dict[str, Any], queries: dict[str, Any]) -> None:
    for name, columns in ((schemas.PRODUCT_URLS, main), (schemas.SUPP_URLS, extra)):
        write_urls(root / name, [pa.table({key: columns[key] for key in schemas.URLS_FILE_SCHEMA.names})])
    image = pa.array(
        [
            v if there else None
            for v, there in zip(main["clip_image_features"].to_pylist(), main["has_image"], strict=True)
        ],
        pa.list_(pa.float32()),
    )
    product = {**{k: main[k] for k in ("product_id", "clip_text_features")}, "clip_image_features": image}
    write_classic_features(root / schemas.PRODUCT_FEATURES, "product", [pa.table(product)])
    query = {key: queries[key] for key in ("query_id", "clip_text_features")}
    write_classic_features(root / schemas.QUERY_FEATURES, "query", [pa.table(query)])
