"""Time the server of `sqid explore`: until it is ready, and each view: `python benchmarks/explore.py RELEASE`.

A release of the official size is made by `python benchmarks/release.py RELEASE`. It is converted to a store before the
clock starts. Each view is asked for other queries and products every time; "same query" has another weight each time.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from sqid_lib.store import EmbeddingStore

VIEWS = {
    "page": "",
    "queries, one word": "api/queries?text=1&top=60",
    "queries, all": "api/queries",
    "query": "api/query/{query}?weight={weight}",
    "whole catalogue": "api/query/{query}/catalogue?weight={weight}",
    "whole catalogue, same query": "api/query/{first}/catalogue?weight={weight}",
    "neighbours by text": "api/product/{product}/neighbours?by=text",
    "neighbours by image": "api/product/{product}/neighbours?by=image",
    "compare clip_text, clip_image": "api/query/{query}/compare?first=clip_text&second=clip_image",
    "compare fusion, rrf": "api/query/{query}/compare?first=fusion&second=rrf",
}


def places(release: str, cache: str | None, times: int) -> Iterator[dict[str, object]]:
    """What is asked for each time; products have an image."""
    store = EmbeddingStore.open(release, cache_dir=cache)
    queries = store.queries["query_id"].to_pylist()
    shown = store.products["product_id"].filter(store.has_image)
    for n in range(times):
        product = shown[n * 977 % len(shown)].as_py()
        yield {"query": queries[n * 37 % len(queries)], "first": queries[0], "product": product, "weight": n / times}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("release")
    parser.add_argument("--cache-dir", help="directory of the converted vectors")
    parser.add_argument("--times", type=int, default=15, help="how often each view is asked for (default 15)")
    args = parser.parse_args()
    asked = list(places(args.release, args.cache_dir, args.times))
    command = [sys.executable, "-m", "builder", "explore", args.release]
    command += ["--cache-dir", args.cache_dir] if args.cache_dir else []
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        print(f"ready after {time.perf_counter() - start:.2f} s, load {os.getloadavg()[0]:.1f}\n")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        print("| view | first | median of the others | most | bytes |\n|---|---:|---:|---:|---:|")
        for name, path in VIEWS.items():
            clocks, size = [], 0
            for place in asked:
                start = time.perf_counter()
                size = len(opener.open(url + path.format(**place)).read())
                clocks.append(1e3 * (time.perf_counter() - start))
            first, *others = clocks
            print(f"| {name} | {first:.0f} ms | {statistics.median(others):.0f} ms | {max(others):.0f} ms | {size:,} |")
        release = json.load(opener.open(url + "api/release"))
        start = time.perf_counter()
        server.send_signal(signal.SIGINT)
        status = server.wait()
        print(f"\nended after {time.perf_counter() - start:.2f} s with status {status}, load {os.getloadavg()[0]:.1f}")
    counts = f"{release['products']:,} products, {release['queries']:,} queries in {Path(args.release).resolve().name}"
    print(counts)


if __name__ == "__main__":
    main()
