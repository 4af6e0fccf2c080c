"""Peak memory of every stage at the official size: `python benchmarks/memory.py [--products N] [--only STAGE ...]`.

A made-up shop of 164,900 products of about 1 KB of text, an image each in a folder and a judgment each, with an encoder
that costs nothing and gives vectors of 768 floats. Each stage runs in a fresh process, whose resident memory is read
every 5 ms, imports included: all of it, its own (anonymous) and that of mapped files, which the system may take back at
any time. Then the greatest of the processes that it started. Needs 8 GB on a local disk, and about 20 minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import growth
import numpy as np
from fetch import make_images
from goals import state

from sqid_lib import schemas

WIDTH = schemas.PUBLISHED_WIDTH
IMAGES = 2_000  # different ones; the others are further names of them
SIDE = 224
MEASURED = {"VmRSS": "all", "RssAnon": "own", "RssFile": "mapped", "RssShmem": "shared"}


class RandomEncoder(growth.NoEncoder):
    """Vectors that differ: equal ones are treated apart by retrieval and report."""

    record = {**growth.NoEncoder.record, "width": WIDTH}  # noqa: RUF012 - a constant
    rng = np.random.default_rng(0)

    @classmethod
    def vectors(cls, rows: list[int]) -> Any:
        return cls.rng.standard_normal((len(rows), WIDTH), np.float32)


def built(stage: str) -> Callable[[Path], object]:
    """A stage of a build, of a recipe as `growth` has it, with images."""

    def run(folder: Path) -> None:
        from builder import pipeline

        recipe = growth.made_recipe(folder, str(folder / "images"), RandomEncoder)
        pipeline.build(recipe, folder / "work", only=stage)

    return run


def command(*arguments: str) -> Callable[[Path], object]:
    """A command of `sqid`; {release} and {cache} stand for directories."""

    def run(folder: Path) -> None:
        from builder.cli.main import main

        places = {"release": folder / "work" / schemas.RELEASE_DIR, "cache": folder / "cache", "folder": folder}
        found = main([argument.format(**places) for argument in arguments])
        assert not found, found

    return run


def load(folder: Path) -> None:
    import sqid

    release, cache = str(folder / "work" / schemas.RELEASE_DIR), str(folder / "loaded")
    assert len(sqid.load(schemas.FEATURES, artifacts=release, cache_dir=cache))


def opened(folder: Path) -> Any:
    from sqid_lib import EmbeddingStore

    release = folder / "work" / schemas.RELEASE_DIR
    return EmbeddingStore.open(release, cache_dir=folder / "cache", progress=False)


def searching(*weights: float) -> Callable[[Path], object]:
    def run(folder: Path) -> None:
        store = opened(folder)
        for weight in weights:
            store.search(np.ones(store.width, np.float32), weight=weight)

    return run


def pairs(folder: Path) -> None:
    for _ in opened(folder).pairs(shuffle=True):
        pass


def stream(folder: Path) -> None:
    from sqid_lib import stream_pairs

    for _ in stream_pairs(folder / "work" / schemas.RELEASE_DIR, shuffle=True):
        pass


STAGES: dict[str, Callable[[Path], object]] = {
    **{f"stage {name}": built(name) for name in ("sample", "resolve", "fetch", "embed", "release", "validate")},
    "sqid validate": command("validate", "{release}"),
    "sqid.load of product_features, from the release": load,
    "conversion to a store": opened,
    "search": searching(0.5),
    "search by text vectors alone": searching(0.5, 1.0),
    "search by another weight than 0.5": searching(0.5, 0.3),
    "sqid evaluate": command("evaluate", "{release}", "--cache-dir", "{cache}"),
    "sqid evaluate --retrieve": command("evaluate", "{release}", "--cache-dir", "{cache}", "--retrieve"),
    "store.pairs, an epoch": pairs,
    "stream_pairs, an epoch": stream,
    "sqid report": command("report", "{release}", "--out", "{folder}/report.html", "--map", "pca"),
}


def watch(name: str, folder: Path) -> dict[str, float]:
    """What a stage took: seconds, and its greatest memory by kind in MB."""
    began, most = time.perf_counter(), dict.fromkeys(MEASURED.values(), 0.0)
    log = folder / "log"
    with log.open("w") as sink:
        child = subprocess.Popen(
            [sys.executable, __file__, "--stage", name, "--scratch", str(folder)], stdout=sink, stderr=sink
        )
    while child.poll() is None:
        try:
            lines = Path(f"/proc/{child.pid}/status").read_text().splitlines()
        except OSError:
            break
        for line in lines:
            key, _, value = line.partition(":")
            if key in MEASURED:
                most[MEASURED[key]] = max(most[MEASURED[key]], int(value.split()[0]) * 1024 / 1e6)
        time.sleep(0.005)
    if child.wait():
        raise SystemExit(log.read_text())
    last = json.loads(log.read_text().splitlines()[-1])
    return {**most, **last, "all": max(most["all"], last["all"]), "seconds": time.perf_counter() - began}


def run_stage(name: str, folder: Path) -> None:
    """One stage in this process, and its peak as a line of JSON."""
    import resource

    STAGES[name](folder)
    peaks = {who: resource.getrusage(who).ru_maxrss * 1024 / 1e6 for who in (0, resource.RUSAGE_CHILDREN)}
    print("\n" + json.dumps({"all": peaks[0], "children": peaks[resource.RUSAGE_CHILDREN]}))


def make(folder: Path, products: int) -> None:
    """The tables, and a folder of images with a name for each product."""
    images = folder / "images"
    if images.exists():
        return
    images.mkdir(parents=True)
    growth.make(folder, products)
    make_images(images, min(IMAGES, products), SIDE)
    for number in range(products):
        os.link(images / f"{number % IMAGES}.jpg", images / f"B{number:09d}.jpg")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--products", type=int, default=schemas.PUBLISHED_COUNTS["products"])
    parser.add_argument("--scratch", type=Path, help="a directory for work, which stays")
    parser.add_argument("--only", nargs="+", default=[], help="parts of names of stages")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.stage:
        return run_stage(args.stage, args.scratch)
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.scratch or Path(scratch)
        make(folder, args.products)
        print(f"load {os.getloadavg()[0]:.1f}\n\n| stage | peak, MB | own | mapped | started processes | seconds |")
        print("|---|---:|---:|---:|---:|---:|")
        peaks = {}
        for name in STAGES:
            if args.only and not any(part in name for part in args.only):
                continue
            found = watch(name, folder)
            peaks[name] = found["all"] / 1000
            shown = (found[key] for key in ("all", "own", "mapped", "children"))
            print(
                f"| {name} | {' | '.join(f'{number:,.0f}' for number in shown)} | {found['seconds']:.0f} |", flush=True
            )
    most = max(peaks, key=lambda name: peaks[name])
    state("memory", [peaks[most]], f"{most}, {args.products:,} products of {WIDTH} floats")
    return None


if __name__ == "__main__":
    main()
