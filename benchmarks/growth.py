"""Time and memory of each stage as a catalogue grows: `python benchmarks/growth.py [--products N ...] [--png FILE]`.

Made-up products and judgments with an encoder that costs nothing and gives vectors of 64 floats (at 768 a million
products would fill 10 GB), no images. Each stage runs in a fresh process: clock, CPU seconds and peak resident memory.
"load" is `sqid.load` of product_features from the release.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from goals import state

WIDTH = 64
STAGES = ("sample", "resolve", "fetch", "embed", "release", "validate", "load")
DRAWN = ("sample", "embed", "release", "validate", "load")
BLOCK = 50_000


class NoEncoder:
    """A backend of embed that costs nothing: a text's vector follows from its number in the task."""

    record = {"revision": "0" * 40, "width": WIDTH, "linear": "plain", "versions": {}}  # noqa: RUF012 - a constant

    def texts(self, texts: Sequence[str]) -> Any:
        from sqid_lib.encoders.batching import VectorBatches

        rows = [list(range(start, min(start + 256, len(texts)))) for start in range(0, len(texts), 256)]
        return VectorBatches(rows, (self.vectors(batch) for batch in rows))

    def images(self, names: Sequence[str]) -> Any:
        return self.texts(names), {}  # none is refused

    @staticmethod
    def vectors(rows: list[int]) -> Any:
        return np.add.outer(np.arange(1, len(rows) + 1), np.arange(WIDTH)).astype(np.float32) / WIDTH


def make(folder: Path, products: int) -> None:
    """Products of about 1 KB of text, and a judgment for each."""
    rng = np.random.default_rng(0)
    words = np.array([f"w{number:05d}" for number in range(20_000)])
    pool = [" ".join(words[rng.integers(0, len(words), 60)]) for _ in range(2_000)]
    text = pa.string()
    columns = ["product_id", "product_title", "product_description", "product_bullet_point", "product_brand"]
    schema = pa.schema([(name, text) for name in columns])
    judged = pa.schema([("query", text), ("product_id", text), ("label", text)])
    with (
        pq.ParquetWriter(folder / "products.parquet", schema) as writer,
        pq.ParquetWriter(folder / "judgments.parquet", judged) as judgments,
    ):
        for start in range(0, products, BLOCK):
            numbers = range(start, min(start + BLOCK, products))
            ids = [f"B{number:09d}" for number in numbers]
            drawn = rng.integers(0, len(pool), (len(ids), 3))
            some = [f"{pool[i][:70]} {number}" for i, number in zip(drawn[:, 0], numbers, strict=True)]
            texts = [[pool[i] for i in drawn[:, column]] for column in (1, 2)]
            brands = [f"brand {i % 500}" for i in drawn[:, 0]]
            writer.write_table(pa.table([ids, some, *texts, brands], schema=schema))
            queries = [f"query {number // 20}" for number in numbers]
            labels = ["exact" if number % 2 else "other" for number in numbers]
            judgments.write_table(pa.table([queries, ids, labels], schema=judged))


def made_recipe(folder: Path, images: str | None = None, encoder: type[NoEncoder] = NoEncoder) -> Any:
    """A recipe of what `make` made; from now on `encoder` is what encodes in this process."""
    from builder.embed import encode
    from builder.embed import stage as embed_stage
    from builder.recipe import CatalogueSettings, EncoderSettings, Recipe, ReleaseSettings

    for module in (encode, embed_stage):
        vars(module)["open_backend"] = lambda *_: encoder()
    return Recipe(
        name="growth",
        version="1",
        catalogue=CatalogueSettings(
            products=str(folder / "products.parquet"),
            judgments=str(folder / "judgments.parquet"),
            images=images,
            locale="us",
            labels={"exact": 1.0, "other": 0.0},
        ),
        encoder=EncoderSettings(model="made/up", device="cpu"),
        release=ReleaseSettings(classic_files=False),
    )


def run_stage(stage: str, folder: Path) -> None:
    """One stage in this process, and what it took as a line of JSON; imports are counted."""
    start, cpu = time.perf_counter(), time.process_time()
    if stage == "load":
        import sqid

        rows = sqid.load("product_features", artifacts=str(folder / "work" / "sqid"), cache_dir=str(folder / "cache"))
        assert len(rows), rows
    else:
        from builder import pipeline

        recipe = made_recipe(folder)
        pipeline.build(recipe, folder / "work", only=stage)
    clock, cpu = time.perf_counter() - start, time.process_time() - cpu
    print(json.dumps({"clock": clock, "cpu": cpu, "megabytes": peak() / 1e6}))


def peak() -> int:
    """Greatest resident memory of this process in bytes; `ru_maxrss` may be that of the process that started it."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def measure(products: int, scratch: Path | None) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(dir=scratch) as name:
        folder = Path(name)
        make(folder, products)
        for stage in STAGES:
            command = [sys.executable, __file__, "--stage", stage, "--folder", name]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(done.stderr)
            found[stage] = json.loads(done.stdout.splitlines()[-1])
            if stage in DRAWN:
                shown = found[stage]
                line = f"| {products:,} | {stage} | {shown['clock']:.1f} s | {shown['cpu']:.1f} s |"
                print(f"{line} {shown['megabytes']:,.0f} MB |", flush=True)
    return found


def draw(found: dict[int, dict[str, dict[str, float]]], path: Path) -> None:
    """CPU seconds and peak memory by products."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot, ticker

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), constrained_layout=True)
    for axis, value, title in zip(axes, ("cpu", "megabytes"), ("CPU seconds", "peak memory, MB"), strict=True):
        for stage in DRAWN:
            axis.plot(list(found), [stages[stage][value] for stages in found.values()], marker="o", label=stage)
        axis.set(xlabel="products", title=title, xlim=0, ylim=0)
        axis.xaxis.set_major_locator(ticker.MaxNLocator(5))
        axis.xaxis.set_major_formatter("{x:,.0f}")
        axis.grid(visible=True, alpha=0.3)
    axes[0].legend()
    figure.savefig(path, dpi=110, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--products",
        type=int,
        nargs="+",
        default=[10_000, 100_000, 1_000_000],
        help="at least two sizes",
    )
    parser.add_argument("--png", type=Path, help="draw there")
    parser.add_argument("--scratch", type=Path, help="directory for work; ten million products need 30 GB")
    parser.add_argument("--quick", action="store_true", help="20,000, 80,000 and 160,000 products")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.stage:
        return run_stage(args.stage, args.folder)
    sizes = [20_000, 80_000, 160_000] if args.quick else sorted(args.products)
    print(f"load {os.getloadavg()[0]:.1f}\n")
    print("| products | stage | clock | CPU | peak memory |\n|---:|---|---:|---:|---:|")
    found = {size: measure(size, args.scratch) for size in sizes}
    report(found)
    if args.png:
        draw(found, args.png)
    return None


def report(found: dict[int, dict[str, dict[str, float]]]) -> None:
    """State how straight the lines are, and the greatest peak."""
    *smaller, last = found
    if smaller:
        step = smaller[-1]
        growth = {stage: found[last][stage]["cpu"] / last * step / found[step][stage]["cpu"] for stage in DRAWN}
        worst = max(growth, key=lambda name: growth[name])
        state("growth", [growth[worst]], f"{worst}, CPU seconds, {step:,} and {last:,} products")
    peaks = {stage: found[last][stage]["megabytes"] / 1000 for stage in DRAWN}
    most = max(peaks, key=lambda name: peaks[name])
    state("memory", [peaks[most]], f"{most} of {last:,} products of {WIDTH} floats")


if __name__ == "__main__":
    main()
