"""Search in a made-up store of the official size: time of the first search and of later ones, and memory.

    python benchmarks/search.py [PRODUCTS [WIDTH]]

The query is a vector: the time of encoding a text or an image comes on top.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sqid_lib import schemas
from sqid_lib.search import Model, Searcher

_BLOCK = 8_192


@dataclass
class MappedStore:
    width: int
    text_features: np.ndarray[Any, Any]
    image_features: np.ndarray[Any, Any]
    has_image: np.ndarray[Any, Any]
    query_features: np.ndarray[Any, Any]
    products: pa.Table
    queries: pa.Table
    judgments: pa.Table
    judgment_query_index: np.ndarray[Any, Any]
    judgment_product_index: np.ndarray[Any, Any]
    model: Model | None = None


def make_store(folder: Path, products: int, width: int) -> MappedStore:
    """Random vectors in files, as a store maps them; one product in ten has no image."""
    rng = np.random.default_rng(0)
    has_image = rng.random(products) > 0.1
    for name in ("text", "image"):
        with (folder / name).open("wb") as file:
            for start in range(0, products, _BLOCK):
                block = rng.normal(size=(min(_BLOCK, products - start), width)).astype(np.float32)
                if name == "image":
                    block[~has_image[start : start + _BLOCK]] = 0
                file.write(block.data)
    text, image = (np.asarray(np.memmap(folder / n, np.float32, "r")).reshape(-1, width) for n in ("text", "image"))
    ids = [f"B{number:09d}" for number in range(products)]
    none = np.empty(0, np.int64)
    columns = {"product_id": ids, "product_locale": ["us"] * products, "product_title": [f"title of {i}" for i in ids]}
    empty = pa.table({"query": pa.array([], pa.string())})
    query = np.zeros((0, width), np.float32)
    return MappedStore(width, text, image, has_image, query, pa.table(columns), empty, empty, none, none)


def main() -> None:
    products = int(sys.argv[1]) if len(sys.argv) > 1 else schemas.PUBLISHED_COUNTS["products"]
    width = int(sys.argv[2]) if len(sys.argv) > 2 else schemas.PUBLISHED_WIDTH
    rng = np.random.default_rng(1)
    with tempfile.TemporaryDirectory() as folder:
        store = make_store(Path(folder), products, width)
        start = time.perf_counter()
        searcher = Searcher(store)
        searcher.search(np.ones(width, np.float32), None, 10, None, 0.5, None)
        seconds = time.perf_counter() - start
        print(f"load (norms, order by id, half the sum of both sides) and a search: {1e3 * seconds:.0f} ms")
        for weight in (0.5, 1.0, 0.0, 0.3):
            times = []
            for _ in range(20):
                query = rng.normal(size=width).astype(np.float32)
                start = time.perf_counter()
                searcher.search(query, None, 10, None, weight, None)
                times.append(1e3 * (time.perf_counter() - start))
            later = sorted(times[1:])
            print(
                f"weight {weight}: first {times[0]:.0f} ms, later median {statistics.median(later):.0f} ms, "
                f"least {later[0]:.0f} ms, most {later[-1]:.0f} ms"
            )
    status = Path("/proc/self/status").read_text().splitlines()
    print(", ".join(" ".join(line.split()) for line in status if line.startswith(("RssAnon", "RssFile"))))


if __name__ == "__main__":
    main()
