"""A tiny catalogue of a shop: WORK as its earlier stages leave it, and the release made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from builder.embed.rows import shard_schema
from builder.recipe import Recipe
from builder.release import release
from sqid_lib import schemas

WIDTH = 8
REVISION = "0123456789abcdef"
TITLES = (
    "Größe 42: roter Wanderschuh",
    "Straßenlampe „Mond“",
    "赤いランニングシューズ",
    "東京の地図",
    "Käsemesser",
    None,
)
PRICES = (89.9, 120.0, None, 12.5, 7.0, 55.0)
CATEGORIES = ("Schuhe", "Lampen", "Schuhe", None, "Küche", "Küche")
STOCK = (3, 0, 12, 1, None, 7)
QUERIES = ("roter wanderschuh", "赤い靴", "lampe")
# the image of each product as WORK names it, and its final status
IMAGES = (
    ("file:fotos/schuh.jpg", "ok"),
    ("https://bilder.example/lampe.jpg", "ok"),
    ("row:0:2", "ok"),
    (None, "missing"),
    ("file:fotos/messer.jpg", "not_found"),
    ("https://bilder.example/kaputt.jpg", "corrupt"),
)
OWN_LABELS = {"gut": 1.0, "mittel": 0.4, "schlecht": 0.0}
KEPT = [("price", pa.float64()), ("category", pa.string()), ("stock", pa.int64())]
NAMES, NUMBERS, CLICKS, NONE = "names", "numbers", "clicks", "none"  # kinds of judgments
_LABELS: Mapping[str, Sequence[tuple[str, float]]] = {
    NAMES: [("gut", 1.0), ("mittel", 0.4), ("schlecht", 0.0)],
    NUMBERS: [("3", 3.0), ("1.5", 1.5), ("0", 0.0)],
    CLICKS: [("30/120", 1.0), ("3/120", 1 / 7), ("0/4", 0.0)],
    NONE: [],
}


def catalogue_recipe(judgments: str = NAMES, **changes: Any) -> Recipe:
    """The recipe of the catalogue; `changes` are sections as in TOML, or keys of them with another kind."""
    labels = OWN_LABELS if judgments == NAMES else {}
    catalogue = {
        "products": "/home/someone/secret/waren.csv",
        "images": "/home/someone/secret/fotos",
        "locale": "de",
        "keep": [name for name, _ in KEPT],
        "labels": labels,
    }
    values: dict[str, Any] = {
        "name": "laden",
        "version": "1.0.0",
        "catalogue": catalogue,
        "encoder": {"model": "made-up/tiny-clip"},
    }
    return Recipe.model_validate(values | changes)


def write_work(
    work: Path, judgments: str = NAMES, *, queries: Sequence[str] = QUERIES, prices: Sequence[float | None] = PRICES
) -> Path:
    """WORK/{sample,resolve,embed} of the catalogue.

    Args:
        judgments: kind of labels; the last of the queries has no judgment.
        queries: texts of the queries; none make a catalogue without queries and judgments.
    """
    for folder in ("sample", "resolve", "embed"):
        (work / folder).mkdir(parents=True)
    ids = [f"P-{number}" for number in range(len(TITLES))]
    keys = [{"product_id": product, "product_locale": "de"} for product in ids]
    products = [
        {**key, "product_title": title, "product_brand": "Müller & Söhne", "price": price}
        | {"category": category, "stock": stock}
        for key, title, price, category, stock in zip(keys, TITLES, prices, CATEGORIES, STOCK, strict=True)
    ]
    schema = pa.schema([*schemas.SAMPLED_PRODUCTS_SCHEMA, *KEPT])
    _write(work / "sample/products.parquet", products, schema)
    _write(work / "sample/supp.parquet", [], schemas.SAMPLED_PRODUCTS_SCHEMA)
    asked = [{"query_id": 2**62 + number, "query": text, "source": None} for number, text in enumerate(queries)]
    _write(work / "sample/queries.parquet", asked, schemas.SAMPLED_QUERIES_SCHEMA)
    judged = [
        {**query, **keys[product], "esci_label": label, "gain": gain, "split": "test", "example_id": 10 * at + product}
        for at, query in enumerate(asked[:-1])
        for product, (label, gain) in enumerate(_of_query(judgments, at))
    ]
    _write(work / "sample/judgments.parquet", judged, schemas.SAMPLED_JUDGMENTS_SCHEMA)
    first = ["ok" if status in ("ok", "not_found", "corrupt") else status for _, status in IMAGES]
    resolved = [
        {**key, "part": schemas.MAIN, "image_url": url, "image_status": status}
        for key, (url, _), status in zip(keys, IMAGES, first, strict=True)
    ]
    _write(work / "resolve/urls.parquet", resolved, schemas.RESOLVED_SCHEMA)
    rng = np.random.default_rng(0)
    embedded = [
        {
            **key,
            "image_status": status,
            "clip_text_features": rng.normal(size=WIDTH).tolist(),
            "clip_image_features": rng.normal(size=WIDTH).tolist() if status == "ok" else None,
        }
        for key, (_, status) in zip(keys, IMAGES, strict=True)
    ]
    _write(work / "embed/products-00000.parquet", embedded, shard_schema("products", WIDTH))
    vectors = [{**query, "clip_text_features": rng.normal(size=WIDTH).tolist()} for query in asked]
    if vectors:
        _write(work / "embed/queries-00000.parquet", vectors, shard_schema("queries", WIDTH))
    (work / "embed/encoder.json").write_text(f'{{"revision": "{REVISION}"}}')
    return work


def write_release(root: Path, judgments: str = NAMES, *, recipe: Recipe | None = None, **options: Any) -> Path:
    """The release of the catalogue, not yet validated; `options` are those of `write_work`."""
    work = write_work(root / "work", judgments, **options)
    release(recipe or catalogue_recipe(judgments), work, lambda _: None)
    return work / schemas.RELEASE_DIR


def _of_query(judgments: str, at: int) -> Sequence[tuple[str, float]]:
    """Labels and gains of the first products; of clicks the same label has another gain for another query."""
    labels = _LABELS[judgments]
    return [("3/120", 1.0), *labels[2:]] if judgments == CLICKS and at else labels


def _write(path: Path, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)
