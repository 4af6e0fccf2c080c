"""embed on one machine: the Ray engine against the local one, in turns: python benchmarks/engines.py --help.

A ratio is Ray's over local's within one round: median (lowest to highest). Rates are measured between the first and the
last report of progress, so that Ray's start and the loading of the model are left out; the start is told beside them.
CPU seconds a row are those of the processes that read, decode and encode, without the start, and depend less on what
else the machine does. The bytes that both make are compared. Weights are random; speed does not depend on them. Needs
CLIP's vocabulary, as benchmarks/embed.py, or --model, or --quick.
"""

from __future__ import annotations

import argparse
import filecmp
import hashlib
import io
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from embed import ARCHITECTURES, write_seeded_clip
from PIL import Image

from builder.embed import embed, encode, stage
from builder.recipe import EncoderSettings, EngineSettings, EsciSettings, Recipe
from sqid_lib import schemas

ENGINES = ("local", "ray")
QUICK = Path(__file__).parent.parent / "builder" / "demo" / "tiny_clip"


def main() -> None:
    """Run the rounds and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", choices=ARCHITECTURES, default="B/32")
    parser.add_argument("--quick", action="store_true", help="the demo's tiny model: overhead without a network")
    parser.add_argument("--model", help="a CLIP directory or Hub id instead of seeded weights")
    parser.add_argument("--rows", type=int, default=256, help="products, each with a title and an image")
    parser.add_argument("--shard-rows", type=int, default=64, help="rows of a task")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--cpus", type=int, default=os.cpu_count() or 1, help="of the one worker, and threads of torch")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(args.cpus)  # as Ray sets it for its worker
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = str(QUICK) if args.quick else args.model
        model = model or str(write_seeded_clip(folder / "clip", args.arch, real=False))
        encoder = EncoderSettings(model=model, shard_rows=args.shard_rows, device="cpu")
        engine = EngineSettings(num_cpus=args.cpus, max_workers=1)
        recipe = Recipe(name="t", version="1", esci=EsciSettings(path="."), encoder=encoder, engine=engine)
        print(f"# {'tiny' if args.quick else args.model or args.arch}, {args.rows} rows, {args.cpus} threads")
        rounds = []
        for number in range(args.rounds):
            order = ENGINES if number % 2 == 0 else ENGINES[::-1]
            rounds.append({name: run(recipe, folder, name, args.rows) for name in order})
            print(f"round {number}, load {os.getloadavg()[0]:.1f}: {rounds[-1]}", file=sys.stderr, flush=True)
        report(rounds)
        check_equal(folder)


@dataclass
class Run:
    """One run of embed.

    Attributes:
        rates: unit → rows a second after the first report.
        starts: unit → seconds until the first report.
        cpu: unit → CPU seconds a row.
    """

    total: float
    rates: dict[str, float] = field(default_factory=dict)
    starts: dict[str, float] = field(default_factory=dict)
    cpu: dict[str, float] = field(default_factory=dict)


def run(recipe: Recipe, folder: Path, engine: str, rows: int) -> Run:
    """embed from an empty WORK/embed."""
    work = write_work(folder / engine, rows)
    seen: dict[str, list[tuple[float, int]]] = {}
    log = folder / "cpu"
    log.unlink(missing_ok=True)
    with measured(seen, log):
        start = time.perf_counter()
        embed(recipe, work, engine=engine)
        done = Run(time.perf_counter() - start)
    for unit, ticks in seen.items():
        (begun, _), (first, _), *later = ticks
        done.starts[unit] = first - begun
        if later:
            done.rates[unit] = sum(count for _, count in later) / (later[-1][0] - first)
    for unit, seconds, count in (line.split() for line in log.read_text().splitlines()):
        done.cpu[unit] = done.cpu.get(unit, 0.0) + float(seconds) / rows * bool(int(count))
    return done


@contextmanager
def measured(seen: dict[str, list[tuple[float, int]]], log: Path) -> Iterator[None]:
    """Note every report of progress, and in the process of the worker the CPU seconds of each task."""
    opener = encode.OpenEncoder
    with (
        patch.object(stage, "progress", lambda *_, unit, **__: Ticks(seen.setdefault(unit, []))),
        patch.object(stage, "OpenEncoder", lambda *given: Timed(opener(*given), log)),
    ):
        yield


class Ticks:
    """Notes when progress was reported."""

    def __init__(self, ticks: list[tuple[float, int]]) -> None:
        self._ticks = ticks

    def __enter__(self) -> Ticks:
        self._ticks.append((time.perf_counter(), 0))
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, count: int = 1, _failed: int = 0, /) -> None:
        self._ticks.append((time.perf_counter(), count))


@dataclass(frozen=True)
class Timed:
    """An opener whose worker writes the CPU seconds of each task to a file."""

    opener: encode.OpenEncoder
    log: Path

    @contextmanager
    def __call__(self, place: str) -> Iterator[Any]:
        with self.opener(place) as work:

            def timed(task: encode.EncodeTask, tick: Any) -> None:
                before = time.process_time()
                work(task, tick)
                with self.log.open("a") as log:
                    log.write(f"{task.kind.removesuffix('s')} {time.process_time() - before} {len(task.items)}\n")

            yield timed


def write_work(work: Path, rows: int) -> Path:
    """What sample and fetch leave: products with a title and an image of 500 × 500 pixels each."""
    shutil.rmtree(work, ignore_errors=True)
    for name in ("sample", "fetch"):
        (work / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    images = [jpeg(rng) for _ in range(rows)]
    digests = [hashlib.sha256(image).hexdigest() for image in images]
    keys = [{"product_id": f"P{row:06d}", "product_locale": "us"} for row in range(rows)]
    products = [key | {"product_title": f"a red shoe of size {row}"} for row, key in enumerate(keys)]
    outcomes = [key | {"image_status": "ok", "sha256": digest} for key, digest in zip(keys, digests, strict=True)]
    stored = [{"sha256": digest, "image": image} for digest, image in zip(digests, images, strict=True)]
    query = {"query_id": 1, "query": "shoe", "source": "other"}
    for name, content, schema in (
        ("sample/products", products, schemas.PRODUCTS_SCHEMA),
        ("sample/supp", [], schemas.PRODUCTS_SCHEMA),
        ("sample/queries", [query], schemas.SAMPLED_QUERIES_SCHEMA),
        ("fetch/outcomes", outcomes, schemas.OUTCOMES_SCHEMA),
        ("fetch/images-00000", stored, schemas.IMAGES_SCHEMA),
    ):
        pq.write_table(pa.Table.from_pylist(content, schema), work / f"{name}.parquet")
    return work


def jpeg(rng: np.random.Generator) -> bytes:
    """Squares of random colours."""
    out = io.BytesIO()
    squares = np.kron(rng.integers(0, 255, (50, 50, 3), np.uint8), np.ones((10, 10, 1), np.uint8))
    Image.fromarray(squares).save(out, "JPEG")
    return out.getvalue()


def report(rounds: list[dict[str, Run]]) -> None:
    """Print the ratios of all rounds."""
    print("\n| | text | image |\n|---|---|---|")
    rows: tuple[tuple[str, Any], ...] = (
        ("throughput, ray / local", lambda r, u: r["ray"].rates[u] / r["local"].rates[u]),
        ("CPU seconds a row, ray / local", lambda r, u: r["ray"].cpu[u] / r["local"].cpu[u]),
        ("rows a second, local", lambda r, u: r["local"].rates[u]),
        ("rows a second, ray", lambda r, u: r["ray"].rates[u]),
        ("CPU ms a row, local", lambda r, u: 1000 * r["local"].cpu[u]),
        ("CPU ms a row, ray", lambda r, u: 1000 * r["ray"].cpu[u]),
        ("start in seconds, local", lambda r, u: r["local"].starts[u]),
        ("start in seconds, ray", lambda r, u: r["ray"].starts[u]),
    )
    for name, of in rows:
        cells = (
            spread([of(found, unit) for found in rounds if unit in found["ray"].rates]) for unit in ("text", "image")
        )
        print(f"| {name} | {' | '.join(cells)} |")


def spread(values: list[float]) -> str:
    """Median (lowest to highest)."""
    if not values:
        return "too few rows"
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def check_equal(folder: Path) -> None:
    """Report whether both engines made the same rows."""
    names = [path.name for path in sorted((folder / "local" / "embed").glob("*.parquet"))]
    _, different, missing = filecmp.cmpfiles(folder / "local/embed", folder / "ray/embed", names, shallow=False)
    print(f"\nfiles of rows: {len(names)}, equal: {not different and not missing}")


if __name__ == "__main__":
    main()
