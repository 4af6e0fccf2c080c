"""A tiny seeded release in the layout of a build's output, written straight with pyarrow."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sqid_lib import schemas
from sqid_lib.files import shard_name

Array = np.ndarray[tuple[int, ...], np.dtype[np.float32]]


def write_release(
    directory: Path,
    *,
    products: int = 60,
    queries: int = 12,
    per_query: int = 7,
    width: int = 8,
    seed: int = 0,
    shards: int = 2,
    row_group: int = 9,
    locales: tuple[str, ...] = ("us",),
    classic: bool = False,
) -> Path:
    """Write data/<config>/*.parquet, manifest.json and SHA256SUMS (and the four classic files); return `directory`.

    Labels follow a hidden taste, so that training beats zero-shot: half of the dimensions say what a query is
    about, the other half are noise that cosine similarity cannot tell from signal. About 1 product in 8 has no image.
    """
    rng = np.random.default_rng(seed)
    numbers = np.sort(rng.choice(10**6, size=products, replace=False))
    ids = [f"B{numbers[n // len(locales)]:09d}" for n in range(products)]  # an id occurs under every locale
    locale = [sorted(locales)[n % len(locales)] for n in range(products)]
    has_image = rng.random(products) > 0.125
    topic = rng.normal(size=(products, width // 2))
    text = _vectors(rng, topic, 1.0)
    image = np.where(has_image[:, None], _vectors(rng, topic, 0.6), 0).astype(np.float32)
    query_topic = rng.normal(size=(queries, width // 2))
    query = _vectors(rng, query_topic, 0.3)
    query_ids = np.sort(rng.choice(10**5, size=queries, replace=False))

    status = np.where(has_image, schemas.OK, np.where(rng.random(products) > 0.5, schemas.MISSING, "not_found"))
    url = [
        None if s == schemas.MISSING else f"https://images.example/{i}.jpg" for i, s in zip(ids, status, strict=True)
    ]
    columns = {
        "product_id": ids,
        "product_locale": locale,
        "image_url": url,
        "image_status": status,
        "product_title": [f"title of {i}" for i in ids],
        "product_description": [None if n % 3 == 0 else f"description of {i}" for n, i in enumerate(ids)],
        "product_bullet_point": [None] * products,
        "product_brand": [f"brand {n % 5}" for n in range(products)],
        "product_color": [None] * products,
        "has_image": has_image,
        "clip_text_features": _lists(text),
        "clip_image_features": _lists(image),
    }
    texts = [f"query number {n}" for n in range(queries)]
    query_columns = {
        "query_id": query_ids,
        "query": texts,
        "source": [("other", "negations", "parse_pattern")[n % 3] for n in range(queries)],
        "clip_text_features": _lists(query),
    }
    chosen = [np.sort(rng.choice(products, size=min(per_query, products), replace=False)) for _ in range(queries)]
    judgments = _judgments(query_ids, texts, ids, locale, chosen, query_topic @ topic.T)
    supp = {name: columns[name][:3] for name in schemas.config_schema(schemas.SUPP, width).names}
    for config, split, values in (
        (schemas.URLS, "test", columns),
        (schemas.FEATURES, "test", columns),
        (schemas.QUERIES, "test", query_columns),
        (schemas.JUDGMENTS, "test", judgments),
        (schemas.SUPP, schemas.SUPP_SPLIT, supp),
    ):
        schema = schemas.config_schema(config, width)
        table = pa.table({name: values[name] for name in schema.names}, schema=schema)
        _write_shards(directory, config, split, table, shards, row_group)
    if classic:
        _write_classic(directory, ids, url, text, image, has_image, query_ids, query)
    _write_sums(directory)
    return directory


def _vectors(rng: np.random.Generator, topic: np.ndarray[tuple[int, ...], np.dtype[np.float64]], noise: float) -> Array:
    """[N, 2K]: K dimensions of topic with noise, K of strong noise alone."""
    signal = topic + noise * rng.normal(size=topic.shape)
    return np.concatenate([signal, 2.0 * rng.normal(size=topic.shape)], axis=1).astype(np.float32)


def _lists(vectors: Array) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(vectors.reshape(-1), vectors.shape[1])


def _judgments(
    query_ids: np.ndarray[tuple[int, ...], np.dtype[np.int64]],
    texts: list[str],
    ids: list[str],
    locale: list[str],
    chosen: list[np.ndarray[tuple[int, ...], np.dtype[np.int64]]],
    affinity: np.ndarray[tuple[int, ...], np.dtype[np.float64]],
) -> dict[str, list[object]]:
    rows: dict[str, list[object]] = {name: [] for name in schemas.config_schema(schemas.JUDGMENTS).names}
    cuts = np.quantile(affinity, [0.2, 0.3, 0.6])
    for q, products in enumerate(chosen):
        for p in products:
            label = "ICSE"[int(np.searchsorted(cuts, affinity[q, p]))]
            values = (len(rows["gain"]), int(query_ids[q]), texts[q], ids[p], locale[p], label, schemas.GAINS[label])
            for name, value in zip(rows, values, strict=True):
                rows[name].append(value)
    return rows


def _write_shards(directory: Path, config: str, split: str, table: pa.Table, shards: int, row_group: int) -> None:
    cuts = np.linspace(0, table.num_rows, shards + 1).astype(int)
    for shard in range(shards):
        path = directory / shard_name(config, split, shard, shards)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = table.slice(cuts[shard], cuts[shard + 1] - cuts[shard])
        pq.write_table(part, path, row_group_size=row_group, compression="zstd")


def _write_classic(
    directory: Path,
    ids: list[str],
    url: list[str | None],
    text: Array,
    image: Array,
    has_image: np.ndarray[tuple[int, ...], np.dtype[np.bool_]],
    query_ids: np.ndarray[tuple[int, ...], np.dtype[np.int64]],
    query: Array,
) -> None:
    lines = [f"{i},{u or ''}\n" for i, u in zip(ids, url, strict=True)]
    (directory / schemas.PRODUCT_URLS).write_text("product_id,image_url\n" + "".join(lines))
    (directory / schemas.SUPP_URLS).write_text("product_id,image_url\n" + "".join(lines[:3]))
    images = [vector.tolist() if there else None for vector, there in zip(image, has_image, strict=True)]
    for name, part, values in (
        (schemas.PRODUCT_FEATURES, "product", [ids, list(text), images]),
        (schemas.QUERY_FEATURES, "query", [query_ids, list(query)]),
    ):
        schema = schemas.classic_features_schema(part)
        arrays = [pa.array(column, field.type) for column, field in zip(values, schema, strict=True)]
        pq.write_table(pa.Table.from_arrays(arrays, schema=schema), directory / name)


def _write_sums(directory: Path) -> None:
    files = sorted(p for p in directory.rglob("*") if p.suffix in (".parquet", ".csv"))
    sums = {p.relative_to(directory).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
    manifest = {"files": {name: {"sha256": digest} for name, digest in sums.items()}}
    (directory / schemas.MANIFEST).write_text(json.dumps(manifest, indent=1))
    (directory / schemas.SHA256SUMS).write_text("".join(f"{digest}  {name}\n" for name, digest in sums.items()))
