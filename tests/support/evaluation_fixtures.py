"""A store in memory for evaluation tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ir_measures
import numpy as np
import pyarrow as pa

from sqid_lib import schemas

Array = np.ndarray[Any, Any]


@dataclass
class MemoryStore:
    width: int
    text_features: Array
    image_features: Array
    has_image: Array
    query_features: Array
    products: pa.Table
    queries: pa.Table
    judgments: pa.Table
    judgment_query_index: Array
    judgment_product_index: Array


def memory_store(
    judged: list[list[tuple[int, str]]],
    products: int,
    *,
    seed: int = 0,
    width: int = 6,
    without_image: tuple[int, ...] = (),
    shuffle: bool = False,
    locales: tuple[str, ...] = ("us",),
    gains: Mapping[str, float] = schemas.GAINS,
) -> MemoryStore:
    """`judged`: per query, (product, label) pairs. Query ids are 10, 20, …; product ids P000, P001, ….

    With several locales product n is number n // len(locales) of locale n % len(locales). `gains`: of each label.
    """
    rng = np.random.default_rng(seed)
    text, image = rng.normal(size=(2, products, width)).astype(np.float32)
    has_image = ~np.isin(np.arange(products), without_image)
    image[~has_image] = 0
    rows = [(q, p, label) for q, pairs in enumerate(judged) for p, label in pairs]
    if shuffle:
        rng.shuffle(rows)
    query_ids = [10 * (q + 1) for q in range(len(judged))]
    ids = [f"P{n // len(locales):03d}" for n in range(products)]
    locale = [locales[n % len(locales)] for n in range(products)]
    return MemoryStore(
        width=width,
        text_features=text,
        image_features=image,
        has_image=has_image,
        query_features=rng.normal(size=(len(judged), width)).astype(np.float32),
        products=pa.table(
            {"product_id": ids, "product_locale": locale, "product_title": [f"title {n}" for n in range(products)]}
        ),
        queries=pa.table(
            {
                "query_id": query_ids,
                "query": [f"query {q}" for q in query_ids],
                "source": [("other", "negations")[q % 2] for q in range(len(judged))],
            }
        ),
        judgments=pa.table(
            {
                "query_id": [query_ids[q] for q, _, _ in rows],
                "product_id": [ids[p] for _, p, _ in rows],
                "product_locale": [locale[p] for _, p, _ in rows],
                "esci_label": [label for _, _, label in rows],
                "gain": pa.array([gains[label] for _, _, label in rows], pa.float32()),
            }
        ),
        judgment_query_index=np.array([q for q, _, _ in rows], np.int64),
        judgment_product_index=np.array([p for _, p, _ in rows], np.int64),
    )


def random_store(
    seed: int, *, queries: int = 12, products: int = 40, labels: Sequence[str] = "ESCI", **options: Any
) -> MemoryStore:
    """Lists of 1 to 15 products with labels drawn as in ESCI; other `labels` take the places of E, S, C, I."""
    rng = np.random.default_rng(seed)
    judged = []
    for _ in range(queries):
        chosen = rng.choice(products, size=int(rng.integers(1, 16)), replace=False)
        drawn = rng.choice(4, size=len(chosen), p=[0.44, 0.35, 0.04, 0.17])
        judged.append([(int(p), labels[n % len(labels)]) for p, n in zip(chosen, drawn, strict=True)])
    return memory_store(judged, products, seed=seed, **options)


def trec_values(qrels: Path, run: Path, measures: Sequence[str]) -> dict[int, list[float]]:
    """Every measure of a run file by ir-measures, by query_id."""
    parsed = [ir_measures.parse_measure(name) for name in measures]
    values: dict[int, list[float]] = {}
    for found in ir_measures.iter_calc(
        parsed, list(ir_measures.read_trec_qrels(str(qrels))), list(ir_measures.read_trec_run(str(run)))
    ):
        values.setdefault(int(found.query_id), [np.nan] * len(parsed))[parsed.index(found.measure)] = found.value
    return values
