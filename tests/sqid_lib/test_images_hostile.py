"""The crafted images of Pillow's own tests, taken from the package index when the test runs."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import PIL
import pytest

from builder.fetch.decoders import Checked, Decoders
from builder.fetch.ledger import Ledger
from sqid_lib import schemas

pytestmark = pytest.mark.slow

DECODE_ALL = """
import json, sys, time
from pathlib import Path
from sqid_lib.images import MAX_PIXELS, ImageError, decode
for path in sorted(p for p in Path(sys.argv[1]).rglob("*") if p.is_file()):
    start = time.process_time()
    try:
        status = "ok" if decode(path.read_bytes()).mode == "RGB" else "not RGB"
    except ImageError as error:
        status = error.status
    print(json.dumps([path.name, status, time.process_time() - start]), flush=True)
kib = Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]  # rusage counts what the parent held
print(json.dumps(["peak MiB", int(kib) / 1024, 0]))
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pillow")
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", "pillow", "-d", str(folder)]
    done = subprocess.run([*pip, f"pillow=={PIL.__version__}"], check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"the package index gives no Pillow sources: {done.stderr.strip().splitlines()[-1:]}")
    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        members = [m for m in archive if "/Tests/images/" in m.name and m.isfile()]
        archive.extractall(folder, members, filter="data")
    return next(folder.glob("*/Tests/images"))


def files(images: Path) -> list[Path]:
    return sorted(path for path in images.rglob("*") if path.is_file())


def test_no_image_crashes_or_stalls_the_decoder(images: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", DECODE_ALL, str(images)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    *rows, (_, peak, _) = (json.loads(line) for line in done.stdout.splitlines())
    assert len(rows) == len(files(images)) > 1000
    statuses = Counter(status for _, status, _ in rows)
    assert set(statuses) <= {"ok", "empty", "not_image", "corrupt", "too_many_pixels"}
    assert statuses["ok"] > 300
    assert statuses["not_image"] > 300
    slowest = max(rows, key=lambda row: row[2])
    assert slowest[2] < 1.0, slowest
    assert peak < 500


def test_decoder_processes_say_the_same_and_stay_alive_and_small(images: Path, tmp_path: Path) -> None:
    async def run() -> tuple[list[Checked], list[int]]:
        with Ledger(tmp_path) as ledger:
            async with Decoders(ledger, max_pixels=50_000_000, processes=2) as decoders:
                checked = await asyncio.gather(*(decoders.check(path.read_bytes()) for path in files(images)))
                status = [Path(f"/proc/{process.pid}/status").read_text() for process in decoders.running]
                return checked, [int(text.split("VmHWM:")[1].split()[0]) for text in status]

    checked, peaks = asyncio.run(run())
    assert not [c.detail for c in checked if "decoder ended" in (c.detail or "")]
    assert {c.status for c in checked} <= set(schemas.IMAGE_STATUS)
    assert len(peaks) == 2
    assert max(peaks) < 400_000  # KiB
