"""Ranking evaluation: checks on real ESCI labels, and time and memory at the published size.

    python benchmarks/evaluate.py labels ESCI_DIRECTORY
    python benchmarks/evaluate.py official [--queries 8956] [--products 164900] [--backend torch]

`labels` needs the official examples and products files. It compares the closed form of a random order with seeded
draws, every metric with trec_eval on exported files, and ESCI's gains with those of the ESCI repository, which swaps S
and C. `official` times the table and the full-catalogue search on random vectors.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ir_measures
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sqid_lib import evaluation, schemas
from sqid_lib.evaluation.judged import judged_lists
from sqid_lib.evaluation.metrics import parse_metrics, per_query

Array = np.ndarray[Any, Any]


@dataclass
class Arrays:
    """A store of arrays, with what evaluation reads of an EmbeddingStore."""

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


def real_labels(directory: Path) -> Arrays:
    """The judgments of an ESCI directory; its vectors are zeros."""
    examples = pq.read_table(directory / schemas.ESCI_EXAMPLES).cast(schemas.EXAMPLES_SCHEMA)
    products = pq.read_table(directory / schemas.ESCI_PRODUCTS).cast(schemas.PRODUCTS_SCHEMA).sort_by("product_id")
    queries = examples.select(["query_id", "query"]).group_by(["query_id", "query"]).aggregate([]).sort_by("query_id")
    queries = queries.append_column("source", pa.array(["unknown"] * len(queries)))
    key = [pc.binary_join_element_wise(t["product_locale"], t["product_id"], "/") for t in (examples, products)]
    zeros = np.zeros((len(products), 1), np.float32)
    return Arrays(
        width=1,
        text_features=zeros,
        image_features=zeros,
        has_image=np.ones(len(products), bool),
        query_features=np.zeros((len(queries), 1), np.float32),
        products=products,
        queries=queries,
        judgments=examples,
        judgment_query_index=pc.index_in(examples["query_id"], value_set=queries["query_id"]).to_numpy().astype(int),
        judgment_product_index=pc.index_in(key[0], value_set=key[1]).to_numpy().astype(int),
    )


def word_overlap(store: Arrays) -> list[float]:
    """Share of the query's words that are in the title: a ranking that needs no model."""
    titles = [set((t or "").lower().split()) for t in store.products["product_title"].to_pylist()]
    words = [set(q.lower().split()) for q in store.queries["query"].to_pylist()]
    pairs = zip(store.judgment_query_index, store.judgment_product_index, strict=True)
    return [len(words[q] & titles[p]) / max(len(words[q]), 1) for q, p in pairs]


def labels(directory: Path, draws: int) -> None:
    store = real_labels(directory)
    scores = {"word overlap": word_overlap(store)}
    result = evaluation.compare(store, ["random", "random_draw"], scores=scores, resamples=10_000)
    print(result, end="\n\n")
    lists = judged_lists(store)
    means = np.array([
        per_query(lists, np.random.default_rng(seed).random(len(lists.row)), result.metrics).mean(axis=0)
        for seed in range(draws)
    ])  # fmt: skip
    for m, metric in enumerate(result.metrics):
        error = means[:, m].std(ddof=1) / np.sqrt(draws)
        off = means[:, m].mean() - result.rows[0][metric.key]
        print(
            f"random {metric.title}: closed form {result.rows[0][metric.key]:.5f}, mean of {draws} draws "
            f"{means[:, m].mean():.5f} ± {error:.5f} ({off / error:+.1f} standard errors); one draw spreads "
            f"{means[:, m].std(ddof=1):.5f}"
        )
    print(f"\nlargest difference from trec_eval on exported files, any metric, any query: {outside(result):.1e}")
    swapped = evaluation.compare(store, ["random"], scores=scores, gains="esci-repo-swapped", resamples=10_000)
    for name in ("random", "word overlap"):
        right, wrong = (next(r for r in c.rows if r["method"] == name) for c in (result, swapped))
        shift = swapped.per_query[name][:, 0] - result.per_query[name][:, 0]
        print(
            f"S and C swapped, {name}: nDCG {right['ndcg']:.4f} → {wrong['ndcg']:.4f} ({shift.mean():+.4f}); "
            f"queries shift by {shift.min():+.3f} to {shift.max():+.3f}"
        )


def outside(result: evaluation.Comparison) -> float:
    """The largest difference between our per-query values and ir-measures' on the exported files."""
    names = {"precision": "P(rel=100)", "mrr": "RR(rel=100)", "recall": "R(rel=100)", "ndcg": "nDCG"}
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        result.export(folder)
        qrels = list(ir_measures.read_trec_qrels(str(Path(folder) / "qrels.trec")))
        for method in result.rankings:
            run = list(ir_measures.read_trec_run(str(Path(folder) / f"{method.replace(' ', '_')}.run")))
            for m, metric in enumerate(result.metrics):
                name = names[metric.key.split("_")[0]] + (f"@{metric.cutoff}" if metric.cutoff else "")
                found = ir_measures.iter_calc([ir_measures.parse_measure(name)], qrels, run)
                values = {int(f.query_id): f.value for f in found}
                theirs = np.array([values[int(query_id)] for query_id in result.query_ids])
                worst = max(worst, float(np.abs(theirs - result.per_query[method][:, m]).max()))
    return worst


# -- the published size -----------------------------------------------------------------------------------------------


def random_store(folder: Path, products: int, queries: int, width: int = schemas.PUBLISHED_WIDTH) -> Arrays:
    """Random vectors in memory-mapped files; list lengths and labels distributed as in the published data."""
    rng = np.random.default_rng(0)

    def vectors(name: str, rows: int) -> Array:
        matrix = np.lib.format.open_memmap(folder / name, mode="w+", dtype=np.float32, shape=(rows, width))
        for start in range(0, rows, 8_192):
            part = matrix[start : start + 8_192]
            part[:] = rng.standard_normal(part.shape, np.float32)
        matrix.flush()
        return np.asarray(np.load(folder / name, mmap_mode="r"))

    judgments = round(schemas.PUBLISHED_COUNTS["judgments"] * queries / schemas.PUBLISHED_COUNTS["queries"])
    query = np.sort(np.concatenate([np.arange(queries), rng.integers(queries, size=judgments - queries)]))
    product = np.concatenate([rng.permutation(products) for _ in range(-(-judgments // products))])[:judgments]
    _, first = np.unique(query * products + product, return_index=True)
    query, product = query[first], product[first]
    names = list(schemas.GAINS)
    label = rng.choice(names, size=len(query), p=[0.4387, 0.3498, 0.0446, 0.1669])
    ids = pa.array([f"B{n:09d}" for n in range(products)])
    return Arrays(
        width=width,
        text_features=vectors("text.npy", products),
        image_features=vectors("image.npy", products),
        has_image=rng.random(products) > 0.05,
        query_features=vectors("query.npy", queries),
        products=pa.table({"product_id": ids, "product_locale": ["us"] * products, "product_title": ids}),
        queries=pa.table({"query_id": np.arange(queries), "query": ["q"] * queries, "source": ["other"] * queries}),
        judgments=pa.table({"esci_label": label}),
        judgment_query_index=query,
        judgment_product_index=product,
    )


def timed(title: str, work: Callable[[], object]) -> None:
    start, cpu = time.perf_counter(), time.process_time()
    work()
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{title}: {wall:.1f} s, {cpu:.1f} s of CPU; peak resident so far {peak:.2f} GiB, mapped pages included")


def official(products: int, queries: int, backend: str, methods: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        store = random_store(Path(folder), products, queries)
        print(f"{products:,} products, {queries:,} queries, {store.judgments.num_rows:,} judgments, D = {store.width}")
        print(f"(drawn in {time.perf_counter() - start:.1f} s)")
        timed("table of random, clip_text, clip_image, fusion, rrf", lambda: evaluation.compare(store))
        lists, metrics = judged_lists(store), parse_metrics("ndcg")
        scores = np.random.default_rng(0).random(len(lists.row))
        timed("of which one nDCG of one ranking", lambda: per_query(lists, scores, metrics))
        timed("the same table by trec_eval", lambda: evaluation.compare(store, metrics_engine="ir-measures"))
        for method in methods:
            timed(
                f"retrieve {method}, top 100, {backend}",
                lambda method=method: evaluation.retrieve(store, [method], backend=backend),  # type: ignore[misc]
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    real = commands.add_parser("labels")
    real.add_argument("directory", type=Path)
    real.add_argument("--draws", type=int, default=2_000)
    size = commands.add_parser("official")
    size.add_argument("--products", type=int, default=schemas.PUBLISHED_COUNTS["products"])
    size.add_argument("--queries", type=int, default=schemas.PUBLISHED_COUNTS["queries"])
    size.add_argument("--backend", default="torch")
    size.add_argument("--methods", nargs="+", default=["clip_text"])
    args = parser.parse_args()
    if args.command == "labels":
        labels(args.directory, args.draws)
    else:
        official(args.products, args.queries, args.backend, args.methods)


if __name__ == "__main__":
    main()
