"""A made-up release with planted faults, the work directory it could come from, and a reader of report pages."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from release_fixtures import recipe_with, seal

from builder.recipe import Recipe
from sqid_lib import schemas
from sqid_lib.files import shard_name
from sqid_lib.joined.selection import Selection

Array = np.ndarray[Any, Any]
WIDTH, PRODUCTS, QUERIES, JUDGED = 16, 60, 8, 12
SAME = (10, 11)  # products with one image
SWAPPED = (20, 21)  # products with each other's image
NEAR = (30, 31)  # products whose images are nearly the same
INVERTED = 5  # the query whose labels are the wrong way round
GAINS = {"perfect": 3.0, "fair": 1.0, "bad": 0.0}  # labels of the shop's own
HOSTILE = {1: "<script>alert(1)</script>", 2: "long " * 200_000, 3: '</script><!-- & "quoted" \x00 \u2028', 4: None}
HOSTILE_BRAND = '"><img src=//evil.example onerror=alert(1)>'


@dataclass
class Shop:
    """The columns of a release, which tests compute from, and may change before they write it."""

    products: dict[str, list[Any]]
    text: Array
    image: Array
    queries: dict[str, list[Any]]
    query: Array
    judgments: dict[str, list[Any]]
    supp: dict[str, list[Any]] = field(default_factory=dict)


def shop() -> Shop:
    """60 products, 8 queries with 12 judgments each; statuses, brands and sources in turn, and the planted faults."""
    rng = np.random.default_rng(5)
    topic = rng.normal(size=(PRODUCTS, WIDTH))
    text, image = (topic + 0.3 * rng.normal(size=topic.shape) for _ in range(2))
    image[SAME[1]] = image[SAME[0]]
    image[list(SWAPPED)] = image[list(SWAPPED[::-1])]
    image[NEAR[1]] = image[NEAR[0]] + 0.02 * rng.normal(size=WIDTH)
    status = [schemas.OK] * PRODUCTS
    for row, name in enumerate([schemas.MISSING] * 3 + [schemas.PLACEHOLDER] * 2 + ["not_found"] * 4 + ["corrupt"], 45):
        status[row] = name
    status[55], status[56] = schemas.GENERIC, "non_finite"
    image[[row for row, name in enumerate(status) if name not in schemas.EMBEDDED_STATUSES]] = 0
    title = [HOSTILE.get(row, f"product number {row}") for row in range(PRODUCTS)]
    ids = [f"P{row:03d}" for row in range(PRODUCTS)]
    products: dict[str, list[Any]] = {
        "product_id": ids,
        "product_locale": ["us"] * PRODUCTS,
        "product_title": title,
        "product_brand": [
            None if row % 7 == 0 else HOSTILE_BRAND if row == 1 else f"brand {row % 3}" for row in range(PRODUCTS)
        ],
        "image_url": [
            None if s == schemas.MISSING else f"https://shop.example/{i}.jpg?token=x"
            for i, s in zip(ids, status, strict=True)
        ],
        "image_status": status,
    }
    query = topic[:QUERIES] + 0.1 * rng.normal(size=(QUERIES, WIDTH))
    queries: dict[str, list[Any]] = {
        "query_id": list(range(100, 100 + QUERIES)),
        "query": [f"query {n}" for n in range(QUERIES)],
        "source": [("other", "negations", None)[n % 3] for n in range(QUERIES)],
    }
    return Shop(
        products, text.astype("f4"), image.astype("f4"), queries, query.astype("f4"), _judgments(topic, query, rng)
    )


def _judgments(topic: Array, query: Array, rng: np.random.Generator) -> dict[str, list[Any]]:
    rows: dict[str, list[Any]] = {name: [] for name in ("query_id", "product_id", "esci_label")}
    for n in range(QUERIES):
        chosen = np.sort(rng.choice(PRODUCTS, JUDGED, replace=False))
        order = np.argsort(-(topic[chosen] @ query[n]) / np.linalg.norm(topic[chosen], axis=1))
        labels = ["perfect"] * 4 + ["fair"] * 4 + ["bad"] * 4
        label = dict(zip(chosen[order], labels[::-1] if n == INVERTED else labels, strict=True))
        rows["query_id"] += [100 + n] * JUDGED
        rows["product_id"] += [f"P{row:03d}" for row in chosen]
        rows["esci_label"] += [label[row] for row in chosen]
    count = len(rows["query_id"])
    rows |= {"product_locale": ["us"] * count, "example_id": list(range(count))}
    return rows | {
        "query": [f"query {q - 100}" for q in rows["query_id"]],
        "gain": [GAINS[x] for x in rows["esci_label"]],
    }


def write_shop(root: Path, made: Shop, configs: tuple[str, ...] = schemas.CONFIGS) -> Path:
    """Write the configs of a release to `root`; with all of them also its card, manifest and checksums."""
    features: dict[str, list[Any]] = made.products | {
        "has_image": [bool(vector.any()) for vector in made.image],
        "clip_text_features": list(made.text),
        "clip_image_features": list(made.image),
    }
    supp = {name: values[:3] for name, values in made.products.items()} | {"product_id": ["S1", "S2", "S3"]}
    rows: dict[str, tuple[str, dict[str, list[Any]]]] = {
        schemas.URLS: ("test", made.products),
        schemas.FEATURES: ("test", features),
        schemas.QUERIES: ("test", made.queries | {"clip_text_features": list(made.query)}),
        schemas.SUPP: (schemas.SUPP_SPLIT, supp),
        schemas.JUDGMENTS: ("test", made.judgments),
    }
    for config in configs:
        split, columns = rows[config]
        schema = schemas.config_schema(config, made.text.shape[1])
        count = len(columns[schemas.DECLARED[config].key[0]])
        table = pa.table({f.name: columns.get(f.name, [None] * count) for f in schema}, schema=schema)
        path = root / shard_name(config, split, 0, 1)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path)
    if set(configs) == set(schemas.CONFIGS):
        seal(root, recipe())
    return root


def recipe() -> Recipe:
    """That of the shop, with its own labels."""
    return recipe_with(selection=Selection(labels=tuple(GAINS.items())))


def write_work(work: Path, made: Shop, *, side: int = 24) -> Path:
    """A work directory with the release of a shop, the images of its products and the times of its stages."""
    write_shop(work / schemas.RELEASE_DIR, made)
    images = [
        _image(SAME[0] if row == SAME[1] else row, side)
        if status in (*schemas.EMBEDDED_STATUSES, "non_finite")
        else None
        for row, status in enumerate(made.products["image_status"])
    ]
    sha256s = [image and hashlib.sha256(image).hexdigest() for image in images]
    count = len(images)
    outcomes = {name: made.products[name] for name in ("product_locale", "product_id", "image_url", "image_status")} | {
        "http_status": [404 if status == "not_found" else None for status in made.products["image_status"]],
        "sha256": sha256s,
        "detail": ["HTTP 404" if status == "not_found" else None for status in made.products["image_status"]],
    }
    schema = schemas.OUTCOMES_SCHEMA
    (work / "fetch").mkdir()
    table = pa.table({f.name: outcomes.get(f.name, [None] * count) for f in schema}, schema=schema)
    pq.write_table(table, work / "fetch" / "outcomes.parquet")
    stored = {sha256: image for sha256, image in zip(sha256s, images, strict=True) if sha256}
    table = pa.table([list(stored), list(stored.values())], schema=schemas.IMAGES_SCHEMA)
    pq.write_table(table, work / "fetch" / "images-00000.parquet", row_group_size=7)
    (work / "times.json").write_text(json.dumps({"sample": 1.5, "fetch": 200.0}))
    return work


def _image(row: int, side: int) -> bytes:
    pixels = np.random.default_rng(row).integers(0, 256, (side, side, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


class Page(HTMLParser):
    """The parts of a report that tests look at.

    Attributes:
        tables: id → rows of cells, the header first.
        texts: id of a section → all its text.
        references: every value of src, href and what else may be loaded.
        scripts: (type, content); styles: contents.
        headings: levels in order.
    """

    _LOADING = ("src", "href", "srcset", "action", "data", "poster", "background", "xlink:href", "style")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.texts: dict[str, str] = {}
        self.references: list[str] = []
        self.scripts: list[tuple[str, str]] = []
        self.styles: list[str] = []
        self.headings: list[int] = []
        self.metas: dict[str, str] = {}
        self.ids: list[str] = []
        self.tags: set[str] = set()
        self.handlers: list[str] = []
        self._section, self._table, self._open = "", "", ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.tags.add(tag)
        self.references += [values[name] for name in self._LOADING if name in values]
        self.handlers += [name for name in values if name.startswith("on")]
        self.ids += [values["id"]] if "id" in values else []
        if tag == "meta":
            self.metas[values.get("http-equiv") or values.get("name", "")] = values.get("content", "")
        elif tag == "section":
            self._section = values["id"]
            self.texts[self._section] = ""
        elif tag == "table":
            self._table = values["id"]
            self.tables[self._table] = []
        elif tag == "tr":
            self.tables[self._table].append([])
        elif tag in ("td", "th"):
            self.tables[self._table][-1].append("")
        elif tag in ("h1", "h2", "h3", "h4"):
            self.headings.append(int(tag[1]))
        elif tag == "script":
            self.scripts.append((values.get("type", ""), ""))
        elif tag == "style":
            self.styles.append("")
        self._open = tag if tag in ("td", "th", "script", "style") else self._open

    def handle_endtag(self, tag: str) -> None:
        if tag == self._open:
            self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open == "script":
            kind, content = self.scripts[-1]
            self.scripts[-1] = (kind, content + data)
        elif self._open == "style":
            self.styles[-1] += data
        else:
            if self._open:
                self.tables[self._table][-1][-1] += data
            if self._section:
                self.texts[self._section] += data + " "
