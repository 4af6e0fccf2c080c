"""A tiny made-up ESCI and its four SQID files, with everything a selection must drop or keep."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sqid_lib import schemas

WIDTH = 6
# ids that look like numbers or nulls must stay text; "both" exists under us and es
MAIN_IDS = ["0060538260", "007", "B000000001", "NA", "both", "nan", *(f"B{i:09d}" for i in range(10, 40))]
SUPP_IDS = ["S1", "S2", "S3"]
TRAIN_ONLY_ID = "T1"  # one judgment: too few for supp
ES_IDS = ["E1", "both"]
LARGE_ID = "L1"


def examples() -> list[dict[str, Any]]:
    """Judgments: 5 us test queries, 2 us train queries, 1 es test query, 1 large-only query."""
    rows: list[dict[str, Any]] = []

    def judge(query_id: int, product_id: str, locale: str, split: str, small: int = 1) -> None:
        rows.append(
            {
                "example_id": len(rows),
                "query": f"query {query_id}",
                "query_id": query_id,
                "product_id": product_id,
                "product_locale": locale,
                "esci_label": "ESCI"[len(rows) % 4],
                "small_version": small,
                "large_version": 1,
                "split": split,
            }
        )

    for i, product_id in enumerate(MAIN_IDS):
        judge(30 - i % 5, product_id, "us", "test")
        judge(30 - (i + 1) % 5, product_id, "us", "test")
    for product_id in SUPP_IDS:
        judge(41, product_id, "us", "train")
        judge(42, product_id, "us", "train")
    judge(41, TRAIN_ONLY_ID, "us", "train")
    judge(42, MAIN_IDS[0], "us", "train")
    for product_id in ES_IDS:
        judge(51, product_id, "es", "test")
    judge(61, LARGE_ID, "us", "test", small=0)
    judge(61, MAIN_IDS[1], "us", "test", small=0)
    random.Random(0).shuffle(rows)
    return rows


def products() -> list[dict[str, Any]]:
    """A row for every judged product and one that nobody judged, in no order."""
    keys = [("us", i) for i in (*MAIN_IDS, *SUPP_IDS, TRAIN_ONLY_ID, LARGE_ID, "U1")] + [("es", i) for i in ES_IDS]
    random.Random(1).shuffle(keys)
    return [
        {
            "product_id": product_id,
            "product_title": f"título {product_id} {locale}" if locale == "es" else f"title {product_id}",
            "product_description": None if n % 3 else f"description\nof {product_id}",
            "product_bullet_point": "" if n % 2 else 'one, "two"',
            "product_brand": f"brand {n % 4}",
            "product_color": None,
            "product_locale": locale,
        }
        for n, (locale, product_id) in enumerate(keys)
    ]


def write_esci(root: Path, *, row_group: int = 7, **replaced: Any) -> Path:
    """Write the three official files into `root`; `examples=` or `products=` replace the rows."""
    root.mkdir(parents=True, exist_ok=True)
    for name, rows, schema in (
        (schemas.ESCI_EXAMPLES, replaced.get("examples", examples()), schemas.EXAMPLES_SCHEMA),
        (schemas.ESCI_PRODUCTS, replaced.get("products", products()), schemas.PRODUCTS_SCHEMA),
    ):
        pq.write_table(pa.Table.from_pylist(rows, schema), root / name, row_group_size=row_group)
    ids = sorted({row["query_id"] for row in examples()})
    lines = [f"{query_id},{'other' if query_id % 2 else 'negations'}" for query_id in ids if query_id != 28]
    (root / schemas.ESCI_SOURCES).write_text("query_id,source\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return root


def vectors(keys: list[Any], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((len(keys), WIDTH), dtype=np.float32)


def image_urls() -> dict[str, str]:
    """Main product → url, "" for none; MAIN_IDS[3] has no row at all."""
    placeholder = "https://m.media-amazon.com/images/I/01RmK%2BJ4pJL._AC_.gif"
    urls = {i: f"https://images.example/{i}._AC_SX425_.jpg" for i in MAIN_IDS}
    urls |= {MAIN_IDS[0]: "", MAIN_IDS[1]: placeholder, MAIN_IDS[2]: schemas.GENERIC_IMAGE_URL}
    urls[MAIN_IDS[7]] = "https://images.example/a%7Cb,c.jpg"
    del urls[MAIN_IDS[3]]
    return urls


def no_image() -> set[str]:
    """Main products without an image vector."""
    return {i for i in MAIN_IDS[:4] if i != MAIN_IDS[2]}


def write_artifacts(root: Path, *, row_group: int = 5, shuffled: bool = True) -> Path:
    """Write the four SQID files as published: variable lists, null where there is no image."""
    root.mkdir(parents=True, exist_ok=True)
    write_csv(root / schemas.PRODUCT_URLS, image_urls())
    write_csv(
        root / schemas.SUPP_URLS,
        {"S1": "https://images.example/s1.jpg", "S2": "", "S3": "https://x.example/no-img-sm.gif"},
    )
    ids = [i for i in MAIN_IDS if i != MAIN_IDS[3]]
    if shuffled:
        random.Random(2).shuffle(ids)
    images = [None if i in no_image() else v.tolist() for i, v in zip(ids, vectors(ids, 1), strict=True)]
    table = pa.table([ids, vectors(ids, 0).tolist(), images], schema=schemas.classic_features_schema("product"))
    pq.write_table(table, root / schemas.PRODUCT_FEATURES, row_group_size=row_group)
    query_ids = [30, 26, 27, 28, 29]
    table = pa.table([query_ids, vectors(query_ids, 3).tolist()], schema=schemas.classic_features_schema("query"))
    pq.write_table(table, root / schemas.QUERY_FEATURES)
    return root


def write_csv(path: Path, urls: dict[str, str]) -> None:
    rows = [f'{i},"{u}"' if "," in u else f"{i},{u}" for i, u in urls.items()]
    path.write_text("product_id,image_url\n" + "\n".join(rows) + "\n", encoding="utf-8")
