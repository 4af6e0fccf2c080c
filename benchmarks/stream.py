"""Rows per second into training batches: python benchmarks/stream.py --data DIR [--rounds 5] [--json FILE] [--quick]

Makes a release of the size of the published data (164,900 products, 8,956 queries, 181,701 judgments, 768 wide) under
DIR, once, and reads it in every way that is installed here: this package, a bare numpy gather, datasets and, of the pip
packages litdata, pylance, webdataset and mosaicml-streaming, those that can be imported. Rounds are interleaved; a
figure is the median, and slow ways are stopped after --slow-rows. Only this package, numpy and datasets' map-style way
join queries to products (3 vectors a row); the others read rows that already hold a product's 2 vectors. DIR takes
8 GB: remove it after. --quick: an eighth of the rows, 15 rounds of numpy and this package alone, under a minute.

Beside the rows per second stand the CPU microseconds that this process and its threads took for a row: they say more
where other work loads the machine.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from goals import state
from torch.utils.data import DataLoader, Dataset

from sqid_lib import EmbeddingStore, schemas, stream_pairs
from sqid_lib.files import shard_name

BATCH, WIDTH, GROUP = 1024, 768, 2048
Way = Callable[[], Iterator[int]]  # yields the rows of each batch


# -- data -------------------------------------------------------------------------------------------------------------


def make_release(directory: Path, part: int = 1) -> Path:
    """A `part`-th of the published counts, random vectors, pages as in a release; every product and query is judged."""
    if (directory / schemas.MANIFEST).exists():
        return directory
    rng, counts = np.random.default_rng(0), schemas.PUBLISHED_COUNTS
    products, queries, judged = (counts[name] // part for name in ("products", "queries", "judgments"))
    ids = [f"B{n:09d}" for n in range(products)]

    def vectors(rows: int) -> pa.Array:
        flat = pa.array(rng.standard_normal(rows * WIDTH, dtype=np.float32))
        return pa.FixedSizeListArray.from_arrays(flat, WIDTH)

    def feature_groups() -> Iterator[dict[str, Any]]:
        for start in range(0, products, GROUP):
            some = ids[start : start + GROUP]
            rows = len(some)
            yield {
                "product_id": some,
                "product_locale": ["us"] * rows,
                "product_title": [f"title of {i}" for i in some],
                "image_url": [None] * rows,
                "image_status": ["ok"] * rows,
                "has_image": rng.random(rows) < 0.95,
                "clip_text_features": vectors(rows),
                "clip_image_features": vectors(rows),
            }

    q = np.concatenate([np.arange(queries), rng.integers(0, queries, judged - queries)])
    p = rng.permutation(np.concatenate([np.arange(products), rng.integers(0, products, judged - products)]))
    order = np.lexsort((p, q))
    labels = rng.choice(list("ESCI"), judged, p=[0.44, 0.35, 0.04, 0.17]).tolist()
    query_ids = np.arange(queries)
    texts = [f"query {n}" for n in range(queries)]
    asked = {
        "query_id": query_ids,
        "query": texts,
        "source": ["other"] * queries,
        "clip_text_features": vectors(queries),
    }
    judgments = {
        "example_id": np.arange(judged),
        "query_id": q[order],
        "query": [texts[n] for n in q[order]],
        "product_id": [ids[n] for n in p[order]],
        "product_locale": ["us"] * judged,
        "esci_label": labels,
        "gain": [schemas.GAINS[label] for label in labels],
    }
    for config, groups in (
        (schemas.FEATURES, feature_groups()),
        (schemas.QUERIES, iter([asked])),
        (schemas.JUDGMENTS, iter([judgments])),
    ):
        path, schema = directory / shard_name(config, "test", 0, 1), schemas.config_schema(config, WIDTH)
        path.parent.mkdir(parents=True, exist_ok=True)
        split = [f"{name}.list.element" for name in schemas.VECTOR_COLUMNS if name in schema.names]
        options: dict[str, Any] = {"use_byte_stream_split": split, "use_content_defined_chunking": True}
        with pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=False, **options) as writer:
            for group in groups:
                writer.write_table(pa.table(group, schema=schema), row_group_size=GROUP)
    (directory / schemas.MANIFEST).write_text("{}")
    return directory


# -- ways in which the rows are joined -----------------------------------------------------------------------------


def bare(store: EmbeddingStore) -> Way:
    def rows() -> Iterator[int]:
        order = np.random.default_rng(0).permutation(len(store.gain))
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            query, product = store.judgment_query_index[chosen], store.judgment_product_index[chosen]
            yield len([store.query_features[query], store.text_features[product], store.image_features[product]][0])

    return rows


def loaded(dataset: Any, **options: Any) -> Way:
    """Batches of a stream as DataLoader gives them; workers live on from round to round."""
    loader: DataLoader[Any] = DataLoader(dataset, batch_size=None, **options)

    def rows() -> Iterator[int]:
        for batch in loader:
            yield len(batch.gain)

    return rows


def plain(stream: Any) -> Way:
    def rows() -> Iterator[int]:
        for batch in stream:
            yield len(batch.gain)

    return rows


class MapStyle(Dataset[Any]):
    """The same join with datasets: judgments by number, products and queries by row."""

    def __init__(self, release: Path, store: EmbeddingStore, cache: Path) -> None:
        import datasets

        datasets.disable_progress_bars()
        load = {"split": "test", "cache_dir": str(cache)}
        columns = ["clip_text_features", "clip_image_features", "has_image"]
        parts = {config: str(release / "data" / config / "*.parquet") for config in (schemas.FEATURES, schemas.QUERIES)}
        opened = {c: datasets.load_dataset("parquet", data_files={"test": files}, **load) for c, files in parts.items()}
        self.products = opened[schemas.FEATURES].select_columns(columns).with_format("torch")
        self.queries = opened[schemas.QUERIES].select_columns(columns[:1]).with_format("torch")
        self.store = store

    def __len__(self) -> int:
        return len(self.store.gain)

    def __getitems__(self, numbers: list[int]) -> dict[str, Any]:
        products = self.products[self.store.judgment_product_index[numbers]]
        return {**products, "query": self.queries[self.store.judgment_query_index[numbers]]["clip_text_features"]}


def map_style(release: Path, store: EmbeddingStore, cache: Path) -> Way:
    loader = DataLoader(MapStyle(release, store, cache), batch_size=BATCH, shuffle=True, collate_fn=lambda batch: batch)

    def rows() -> Iterator[int]:
        for batch in loader:
            yield len(batch["query"])

    return rows


def datasets_streaming(release: Path) -> Way:
    import datasets

    files = str(release / "data" / schemas.FEATURES / "*.parquet")
    columns = ["clip_text_features", "clip_image_features"]

    def rows() -> Iterator[int]:
        stream = datasets.load_dataset("parquet", data_files={"test": files}, split="test", streaming=True)
        for batch in DataLoader(stream.select_columns(columns).with_format("torch"), batch_size=BATCH):
            yield len(batch["clip_text_features"])

    return rows


# -- other libraries, on rows of two vectors ---------------------------------------------------------------------------


def lance(store: EmbeddingStore, data: Path) -> Way:
    import lance  # type: ignore[import-not-found,unused-ignore]

    path = str(data / "products.lance")
    if not Path(path).exists():
        lance.write_dataset(pa.table({name: fixed(getattr(store, name)) for name in VECTORS}), path)
    dataset = lance.dataset(path)

    def rows() -> Iterator[int]:
        order = np.random.default_rng(0).permutation(len(store.products))
        for start in range(0, len(order), BATCH):
            table = dataset.take(order[start : start + BATCH].tolist())
            tensors = [torch.from_numpy(flat(table[name])) for name in VECTORS]
            yield len(tensors[0])

    return rows


def webdataset(store: EmbeddingStore, data: Path) -> Way:
    import webdataset as wds  # type: ignore[import-not-found,unused-ignore]

    folder = data / "webdataset"
    if not folder.exists():
        folder.mkdir()
        with wds.ShardWriter(str(folder / "%05d.tar"), maxcount=20_000, verbose=0) as sink:
            for row in range(len(store.products)):
                sink.write({"__key__": str(row), **{f"{name}.npy": getattr(store, name)[row] for name in VECTORS}})
    shards = sorted(map(str, folder.glob("*.tar")))

    def rows() -> Iterator[int]:
        dataset = wds.WebDataset(shards, shardshuffle=len(shards)).shuffle(2048).decode()
        loader = DataLoader(dataset.to_tuple(*(f"{name}.npy" for name in VECTORS)).batched(BATCH), batch_size=None)
        for batch in loader:
            yield len(batch[0])

    return rows


def litdata(store: EmbeddingStore, data: Path) -> Way:
    import litdata as ld  # type: ignore[import-not-found,unused-ignore]

    folder = data / "litdata"
    if not (folder / "index.json").exists():
        ld.optimize(fn=LitdataRow(store), inputs=list(range(len(store.products))), output_dir=str(folder),
                    chunk_bytes="64MB", num_workers=2)  # fmt: skip

    def rows() -> Iterator[int]:
        loader = ld.StreamingDataLoader(ld.StreamingDataset(str(folder), shuffle=True), batch_size=BATCH)
        for batch in loader:
            yield len(batch["text_features"])

    return rows


class LitdataRow:
    def __init__(self, store: EmbeddingStore) -> None:
        self.store = store

    def __call__(self, row: int) -> dict[str, Any]:
        return {name: getattr(self.store, name)[row].copy() for name in VECTORS}


def mosaic(store: EmbeddingStore, data: Path) -> Way:
    import streaming  # type: ignore[import-not-found,unused-ignore]

    folder = data / "mosaic"
    if not (folder / "index.json").exists():
        columns = dict.fromkeys(VECTORS, f"ndarray:float32:{WIDTH}")
        with streaming.MDSWriter(out=str(folder), columns=columns) as sink:
            for row in range(len(store.products)):
                sink.write({name: getattr(store, name)[row] for name in VECTORS})

    def rows() -> Iterator[int]:
        streaming.base.util.clean_stale_shared_memory()
        dataset = streaming.StreamingDataset(local=str(folder), shuffle=True, batch_size=BATCH)
        for batch in DataLoader(dataset, batch_size=BATCH):
            yield len(batch["text_features"])

    return rows


VECTORS = ("text_features", "image_features")


def fixed(matrix: Any) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), matrix.shape[1])


def flat(column: pa.ChunkedArray) -> Any:
    return column.combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(-1, WIDTH)


LOADER, WORKERS = "store.pairs, DataLoader", "store.pairs, DataLoader, 2 workers"
STREAMING = "datasets streaming=True, DataLoader"  # its threads outlive a stream that is left early

# -- measuring -------------------------------------------------------------------------------------------------------


def rate(way: Way, most: int) -> tuple[float, float]:
    """Thousand rows per second, from the first request for a batch on, and CPU microseconds a row."""
    began, cpu, rows = time.perf_counter(), time.process_time(), 0
    for batch_rows in way():
        rows += batch_rows
        if rows >= most:
            break
    return rows / (time.perf_counter() - began) / 1e3, (time.process_time() - cpu) / rows * 1e6


def streaming_rate(release: Path, most: int) -> tuple[float, float]:
    """`rate` of `datasets_streaming` in a process of its own, which is killed: left early, its reader may never end."""
    command = [sys.executable, __file__, "--data", str(release), "--streaming", "--slow-rows", str(most)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            found = json.loads(child.stdout.readline())
        finally:
            child.kill()
    return found[0], found[1]


def ways(release: Path, store: EmbeddingStore, data: Path, only: list[str] | None) -> dict[str, tuple[Way, bool]]:
    """Name → how, and whether it is slow; in the order of the table."""
    shuffled = store.pairs(batch_size=BATCH, shuffle=True)
    makers: dict[str, tuple[Callable[[], Way], bool, str]] = {
        "numpy gather, bare": (lambda: bare(store), False, "numpy"),
        "store.pairs": (lambda: plain(shuffled), False, "torch"),
        LOADER: (lambda: loaded(shuffled), False, "torch"),
        WORKERS: (
            lambda: loaded(store.pairs(batch_size=BATCH, shuffle=True), num_workers=2, persistent_workers=True),
            False,
            "torch",
        ),
        "stream_pairs": (lambda: plain(stream_pairs(release, batch_size=BATCH, shuffle=True)), False, "torch"),
        "datasets with_format(torch), DataLoader": (lambda: map_style(release, store, data / "hf"), True, "datasets"),
        STREAMING: (lambda: datasets_streaming(release), True, "datasets"),
        "lance take": (lambda: lance(store, data), True, "lance"),
        "litdata": (lambda: litdata(store, data), True, "litdata"),
        "webdataset": (lambda: webdataset(store, data), True, "webdataset"),
        "mosaicml-streaming": (lambda: mosaic(store, data), True, "streaming"),
    }
    chosen = {}
    for name, (make, slow, package) in makers.items():
        if only and not any(part in name for part in only):
            continue
        if importlib.util.find_spec(package) is None:
            print(f"{name}: {package} is not installed", file=sys.stderr)
            continue
        chosen[name] = (make(), slow)
    return chosen


def memory(path: Path) -> tuple[int, int]:
    """Read a whole epoch of a store; the resident and the proportional size of this process after it, in MB."""
    store, barrier = EmbeddingStore(path), globals()["BARRIER"]
    for _ in store.pairs(batch_size=BATCH, shuffle=True, format="numpy"):
        pass
    barrier.wait()  # all have read everything, and keep it until all have looked
    rollup = Path("/proc/self/smaps_rollup").read_text().splitlines()
    sizes = {line.split(":")[0]: int(line.split()[1]) // 1024 for line in rollup if line.endswith("kB")}
    barrier.wait()
    return sizes["Rss"], sizes["Pss"]


def share(barrier: Any) -> None:
    globals()["BARRIER"] = barrier


def four_processes(path: Path) -> str:
    context = multiprocessing.get_context("spawn")
    with context.Pool(4, share, (context.Barrier(4),)) as pool:
        sizes = pool.map(memory, [path] * 4, chunksize=1)
    rss, pss = (sum(column) for column in zip(*sizes, strict=True))
    matrices = sum((path / f"{name}.bin").stat().st_size for name in (*VECTORS, "query_features")) >> 20
    return f"four processes on one store of {matrices:,} MB: {rss:,} MB counted one by one, {pss:,} MB in all"


def first_batch(release: Path) -> str:
    code = (
        "import sys, time\nfrom sqid_lib import stream_pairs\nimport torch\nbegan = time.perf_counter()\n"
        "batches = iter(stream_pairs(sys.argv[1], shuffle=True))\nnext(batches)\nfirst = time.perf_counter() - began\n"
        "for _ in batches: pass\nlines = open('/proc/self/status').read().splitlines()\n"
        "peak = next(int(line.split()[1]) // 1024 for line in lines if line.startswith('VmHWM'))\n"
        "print(f'stream_pairs: first batch after {first:.2f} s, at most {peak} MB resident, torch included')"
    )
    return subprocess.run(
        [sys.executable, "-c", code, release], capture_output=True, text=True, check=True
    ).stdout.strip()


def state_goals(rates: dict[str, list[float]]) -> None:
    """Rates of `stream_pairs`, and of workers against none in the same round."""
    if "stream_pairs" in rates:
        state("stream", rates["stream_pairs"])
    if {LOADER, WORKERS} <= rates.keys():
        state("workers", [two / none for two, none in zip(rates[WORKERS], rates[LOADER], strict=True)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a directory on a local disk")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--slow-rows", type=int, default=20_480)
    parser.add_argument("--only", nargs="+", help="parts of names")
    parser.add_argument("--json", type=Path, help="write all rounds there")
    parser.add_argument("--quick", action="store_true", help="an eighth of the rows, without other libraries")
    parser.add_argument("--streaming", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--make", action="store_true", help="make the data and stop")
    options = parser.parse_args()
    warnings.simplefilter("ignore")

    if options.streaming:
        print(json.dumps(rate(datasets_streaming(options.data), options.slow_rows)), flush=True)
        return
    if options.quick:
        options.only, options.rounds = options.only or ["numpy", "store.pairs", "stream_pairs"], 15
    release = make_release(options.data / ("quick" if options.quick else "release"), 8 if options.quick else 1)
    began = time.perf_counter()
    store = EmbeddingStore.open(release, cache_dir=options.data / "cache")
    print(f"opened after {time.perf_counter() - began:.2f} s (converted, if it was not there)")
    chosen = ways(release, store, options.data, options.only)
    if options.make:
        return
    rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in chosen}
    for name, (way, slow) in chosen.items():  # caches, workers and buffers are warm in every round
        if name != STREAMING:
            rate(way, BATCH if slow else sys.maxsize)
    for _ in range(options.rounds):
        for name, (way, slow) in chosen.items():
            most = options.slow_rows if slow else sys.maxsize
            rounds[name].append(streaming_rate(release, most) if name == STREAMING else rate(way, most))
    if options.json:
        options.json.write_text(json.dumps(rounds, indent=1))
    for name, found in rounds.items():
        rates = [rows for rows, _ in found]
        spread = f"({min(rates):.1f} to {max(rates):.1f})"
        share = statistics.median(a / b[0] for a, b in zip(rates, next(iter(rounds.values())), strict=True))
        cpu = statistics.median(cpu for _, cpu in found)
        print(
            f"{name:42} {statistics.median(rates):8.1f} thousand rows/s {spread:18} {share:6.3f} of the first, "
            f"{cpu:6.1f} CPU µs a row"
        )
    state_goals({name: [rows for rows, _ in found] for name, found in rounds.items()})
    if not options.only:
        opened = []
        for _ in range(5):
            began = time.perf_counter()
            EmbeddingStore.open(release, cache_dir=options.data / "cache")
            opened.append(time.perf_counter() - began)
        print(f"a converted store opens in {statistics.median(opened):.3f} s")
        print(four_processes(store.path))
        print(first_batch(release))


if __name__ == "__main__":
    main()
