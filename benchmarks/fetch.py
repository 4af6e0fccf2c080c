"""How fast and how small the fetch stage is, against bare downloading and bare decoding of the same images.

    python benchmarks/fetch.py [--images 5000] [--rounds 3] [--quick]

Serves JPEGs of about 70 KB from loopback (nginx where it is installed, else aiohttp in a process of its own) and prints
images per second, CPU seconds by process and peak memory, each measurement in a fresh process, rounds interleaved. Bare
decoding is Pillow's in a process for each core, which are started before the clock; the stage's decoder processes are
started after it. The server has the same cores. Then the same for images of 224 × 224 pixels in a folder.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

from goals import state

CONNECTIONS = 32
BARE, DECODING, WHOLE = "bare aiohttp loop", "bare Pillow decoding", "whole stage, with shards"
KINDS = (BARE, DECODING, "download, decode and store", WHOLE)
LOCAL = (DECODING, "whole stage, images of a folder")
ENDLESS = "endless bodies"


def make_images(folder: Path, count: int, side: int = 640) -> None:
    """JPEGs, of about 70 KB at 640 × 640: 40 drawn ones, each file made different by a comment."""
    from PIL import Image, ImageFilter

    for number in range(count):
        if number < 40:
            noise = Image.merge("RGB", [Image.effect_noise((side, side), 90 + number % 7) for _ in range(3)])
            noise.filter(ImageFilter.GaussianBlur(1.3)).save(folder / f"{number}.jpg", quality=79)
        else:
            data = (folder / f"{number % 40}.jpg").read_bytes()
            comment = f"{number:08}".encode()
            (folder / f"{number}.jpg").write_bytes(data[:2] + b"\xff\xfe\x00\x0a" + comment + data[2:])


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[tuple[str, int, int]]:
    """Name of the server, the loopback port it answers on, and its process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    nginx = shutil.which("nginx")
    if nginx:
        conf = folder / "nginx.conf"
        temporary = " ".join(
            f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        conf.write_text(
            f"master_process off; daemon off; pid {folder}/nginx.pid; error_log stderr crit;\n"
            f"events {{ worker_connections 512; }}\n"
            f"http {{ access_log off; sendfile on; keepalive_requests 100000; {temporary}\n"
            f"server {{ listen 127.0.0.1:{port} backlog=512; root {folder}; }} }}\n"
        )
        folder.chmod(0o755)
        command = [nginx, "-c", str(conf), "-p", str(folder), "-g", f"user {os.environ.get('USER', 'root')};"]
    else:
        command = [sys.executable, __file__, "--serve", str(folder), str(port)]
    server = subprocess.Popen(command)
    try:
        for _ in range(100):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.1)
        yield ("nginx" if nginx else "aiohttp", port, server.pid)
    finally:
        server.terminate()
        server.wait()


def serve_plainly(folder: str, port: int) -> None:
    """Static files with aiohttp."""
    from aiohttp import web

    app = web.Application()
    app.router.add_static("/", folder)
    web.run_app(app, host="127.0.0.1", port=port, print=None, access_log=None)


async def bare(urls: list[str]) -> None:
    """The minimum of a downloader: read every body and drop it."""
    import aiohttp

    left = iter(urls)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=CONNECTIONS)) as session:

        async def work() -> None:
            for url in left:
                async with session.get(url) as response:
                    await response.read()

        await asyncio.gather(*(work() for _ in range(CONNECTIONS)))


def decode(path: str) -> float:
    """CPU seconds of it."""
    from PIL import Image

    start = time.process_time()
    with Image.open(path) as image:
        image.load()
    return time.process_time() - start


def decode_all(folder: Path, count: int) -> dict[str, float]:
    """Images per second of Pillow alone, in a process for each core."""
    paths = [str(folder / f"{number}.jpg") for number in range(count)]
    with multiprocessing.get_context("spawn").Pool(len(os.sched_getaffinity(0))) as pool:
        pool.map(decode, paths[:40], chunksize=1)  # all have imported Pillow
        start = time.perf_counter()
        used = sum(pool.map(decode, paths, chunksize=32))
        return {"rate": count / (time.perf_counter() - start), "own": 0, "main": 0, "children": 1000 * used / count}


def fetch_folder(folder: Path, count: int) -> dict[str, float]:
    """Images per second of the whole stage for a catalogue whose images are in a folder."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from builder import pipeline
    from builder.recipe import CatalogueSettings, Recipe

    with tempfile.TemporaryDirectory() as name:
        ids = [f"P{number:06}" for number in range(count)]
        names = [f"{number}.jpg" for number in range(count)]
        pq.write_table(pa.table({"product_id": ids, "product_title": ids, "image": names}), f"{name}/products.parquet")
        catalogue = CatalogueSettings(products=f"{name}/products.parquet", locale="us", images=str(folder))
        recipe, work = Recipe(name="bench", version="1", catalogue=catalogue), Path(name, "work")
        for stage in ("sample", "resolve"):
            pipeline.build(recipe, work, only=stage)
        with measuring(count) as found:
            pipeline.build(recipe, work, only="fetch")
    return found


@contextlib.contextmanager
def measuring(count: int) -> Iterator[dict[str, float]]:
    """Images per second, CPU milliseconds an image of this process and of its children, peak MiB of this process."""
    found: dict[str, float] = {}
    start, before = time.perf_counter(), os.times()
    yield found
    found["rate"] = count / (time.perf_counter() - start)
    main, system, children, of_children, _ = (b - a for a, b in zip(before, os.times(), strict=True))
    found["main"], found["children"] = 1000 * (main + system) / count, 1000 * (children + of_children) / count
    found["own"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def cpu_seconds(process: int) -> float:
    """What a process of Linux has used so far; 0 elsewhere."""
    stat = Path(f"/proc/{process}/stat")
    if not process or not stat.exists():
        return 0.0
    fields = stat.read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(kind: str, port: int, count: int, folder: Path) -> dict[str, float]:
    """As `measuring`; each decoder process needs another 27 MiB."""
    if kind == DECODING:
        return decode_all(folder, count)
    if kind == LOCAL[1]:
        return fetch_folder(folder, count)
    import pyarrow as pa
    import pyarrow.parquet as pq

    from builder.fetch import fetch
    from builder.fetch.download import download
    from builder.fetch.ledger import Ledger
    from builder.progress import progress
    from builder.recipe import EsciSettings, FetchSettings, Recipe
    from sqid_lib import schemas

    urls = [f"http://127.0.0.1:{port}/{number}.jpg" for number in range(count)]
    limits = FetchSettings(concurrency=CONNECTIONS, per_host=CONNECTIONS, allow_hosts=(f"127.0.0.1:{port}",))
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        (work / "resolve").mkdir()
        keys = [
            {"part": "main", "product_locale": "us", "product_id": f"P{i:06}", "image_status": "ok"}
            for i in range(count)
        ]
        rows = [{**key, "image_url": url} for key, url in zip(keys, urls, strict=True)]
        pq.write_table(pa.Table.from_pylist(rows, schemas.RESOLVED_SCHEMA), work / "resolve" / "urls.parquet")
        with measuring(count) as found:
            if kind == BARE:
                asyncio.run(bare(urls))
            elif kind == WHOLE:
                fetch(Recipe(name="bench", version="1", esci=EsciSettings(path="."), fetch=limits), work)
            else:
                with Ledger(work / "fetch") as ledger, progress("fetch", count) as bar:
                    asyncio.run(download(urls, limits, ledger, bar.update))
                    assert kind == ENDLESS or ledger.spooled == count
    return found


async def _endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    with contextlib.suppress(ConnectionError):
        while True:
            writer.write(bytes(1 << 18))
            await writer.drain()


@contextlib.asynccontextmanager
async def endless_server() -> AsyncIterator[int]:
    """A port that never stops answering."""
    server = await asyncio.start_server(_endless, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def endless() -> None:
    """Peak memory of a process that fetches from a server that never stops."""
    async with endless_server() as port:
        command = [sys.executable, __file__, "--measure", ENDLESS, str(port), "200", "."]
        process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        out, _ = await process.communicate()
    result = json.loads(out)
    print(f"endless bodies, 200 URLs: peak {result['own']:.0f} MiB")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--quick", action="store_true", help="600 images, three rounds")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve_plainly(args.serve[0], int(args.serve[1]))
    elif args.measure:
        kind, port, count = args.measure[0], int(args.measure[1]), int(args.measure[2])
        print(json.dumps(measure(kind, port, count, Path(args.measure[3]))))
    elif args.quick:
        compare(600, 3)
    else:
        compare(args.images, args.rounds)
        asyncio.run(endless())


def compare(count: int, rounds: int) -> None:
    """The tables of all kinds."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_images(folder, count)
        size = sum(path.stat().st_size for path in folder.glob("*.jpg")) / count / 1000
        with serving(folder) as (server, port, process):
            print(f"{count} JPEGs of {size:.0f} KB, {server}, {CONNECTIONS} connections, {os.cpu_count()} CPUs")
            shares = run_all(KINDS, rounds, port, count, folder, process)
    state("fetch", shares[WHOLE])
    with tempfile.TemporaryDirectory() as name:
        count *= 4
        make_images(Path(name), count, 224)
        print(f"{count} JPEGs of 224 × 224 pixels in a folder")
        state("local images", run_all(LOCAL, rounds, 0, count, Path(name))[LOCAL[1]])


def run_all(
    kinds: Sequence[str], rounds: int, port: int, count: int, folder: Path, server: int = 0
) -> dict[str, list[float]]:
    """Print the rates of each kind; returns the share of bare decoding in the same round.

    Args:
        server: its process.
    """
    results: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
    for _ in range(rounds):
        for kind in kinds:
            command = [sys.executable, __file__, "--measure", kind, str(port), str(count), str(folder)]
            before = cpu_seconds(server)
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            used = 1000 * (cpu_seconds(server) - before) / count
            results[kind].append(json.loads(done.stdout.splitlines()[-1]) | {"server": used})
    found = {}
    for kind, runs in results.items():
        rates = " ".join(f"{r['rate']:.0f}" for r in runs)
        shares = [r["rate"] / bare["rate"] for r, bare in zip(runs, results[DECODING], strict=True)]
        share = f"×{statistics.median(shares):.2f} ({min(shares):.2f} to {max(shares):.2f}) of bare decoding"
        print(f"{kind:32} {share}, rates {rates}, RSS {max(r['own'] for r in runs):.0f} MiB")
        print(f"{'':32} {by_cpu(runs, results[DECODING])}")
        found[kind] = shares
    return found


def by_cpu(runs: Sequence[dict[str, float]], bare: Sequence[dict[str, float]]) -> str:
    """The CPU milliseconds an image, and bare decoding's share of them, the server's left out."""
    median = {name: statistics.median(run[name] for run in runs) for name in ("main", "children", "server")}
    parts = ", ".join(f"{name} {value:.3f}" for name, value in median.items())
    shares = [b["children"] / (run["main"] + run["children"]) for run, b in zip(runs, bare, strict=True)]
    return f"CPU ms an image: {parts}; ×{statistics.median(shares):.2f} of bare decoding without the server"


if __name__ == "__main__":
    main()
