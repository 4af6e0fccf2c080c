"""The shop that is harmed: its server, its recipes, what an unharmed build gives, and its work before each stage."""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import tiny_esci
from hostile_server import LoopbackServer, Request, answer, jpeg
from loopback_hub import WRITE_TOKEN, LoopbackHub

from builder.demo import TINY_CLIP
from torture.outcome import Failed, Lost, Silent
from torture.process import Child, Ran, sqid, warm

STAGES = ("sample", "resolve", "fetch", "embed", "release", "validate")
CONCURRENCY = 4  # requests in flight
_IMAGES = {product: jpeg(number) for number, product in enumerate(tiny_esci.MAIN_IDS)}
_RECIPE = """
name = "torture"
version = "1"
[esci]
path = "{root}/esci"
{source}
[fetch]
allow_hosts = ["{host}"]
concurrency = {concurrency}
per_host = {concurrency}
shard_rows = 10
timeout = 30.0
[fetch.mirrors]
"https://images.example/" = "http://{host}/i/"
"https://shop.example/" = "http://{host}/"
[encoder]
model = "{model}"
device = "cpu"
shard_rows = 8
[release]
max_shard_bytes = 20000
"""
_SOURCES = {
    "tables": '[resolve]\ntables = ["{root}/urls.csv"]',
    "pages": '[resolve.pages]\npermission = true\ncontact = "torture@example.org"\ndelay = 0.001\n'
    'url = "https://shop.example/dp/{{product_id}}"',
    "artifacts": '[artifacts]\npath = "{root}/artifacts"',
}


class World:
    """Made once for all tries. A context manager; everything it writes is below `root`.

    Attributes:
        server: images under /i/, product pages under /dp/; its log has every request.
        hub: a Hub on 127.0.0.1.
        seconds: (recipe, stage) → how long it takes unharmed.
    """

    def __init__(self, root: Path | None = None) -> None:
        self._own = root is None
        self.root = root or Path(tempfile.mkdtemp(prefix="sqid-torture-"))
        self.server, self.hub = LoopbackServer(_shop), LoopbackHub(self.root / "hub")
        self.seconds: dict[tuple[str, str], float] = {}
        self._released: dict[str, dict[str, bytes]] = {}
        self._numbers = itertools.count()

    def __enter__(self) -> Self:
        self.server.__enter__()
        self.hub.__enter__()
        warm(self.hub.env() | {"HF_TOKEN": WRITE_TOKEN, "OMP_NUM_THREADS": "1", "TMPDIR": str(self.root)})
        tiny_esci.write_esci(self.root / "esci")
        tiny_esci.write_artifacts(self.root / "artifacts")
        urls = {product: f"https://images.example/{product}.jpg" for product in tiny_esci.MAIN_IDS}
        tiny_esci.write_csv(self.root / "urls.csv", {**urls, tiny_esci.MAIN_IDS[4]: ""})
        for name, source in _SOURCES.items():
            text = _RECIPE.replace("{source}", source).format(
                root=self.root, host=f"127.0.0.1:{self.server.port}", concurrency=CONCURRENCY, model=TINY_CLIP
            )
            (self.root / f"{name}.toml").write_text(text)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.hub.__exit__(kind, error, trace)
        self.server.__exit__(kind, error, trace)
        if self._own:
            shutil.rmtree(self.root, ignore_errors=True)

    def folder(self) -> Path:
        """A new folder for one try; `drop` removes it."""
        folder = self.root / f"try-{next(self._numbers)}"
        folder.mkdir()
        return folder

    def command(self, recipe: str, work: Path, *options: str) -> list[str]:
        """Arguments of `sqid build`."""
        return ["build", str(self.root / f"{recipe}.toml"), "--work", str(work), *options]

    def build(self, recipe: str, work: Path, *options: str) -> Ran:
        """A build that nothing disturbs."""
        return Child((sqid, [self.command(recipe, work, *options)]), _log(work)).wait()

    def start(self, recipe: str, work: Path, *options: str, **harm: object) -> Child:
        """A build that is going to be disturbed; `harm` as for Child."""
        return Child((sqid, [self.command(recipe, work, *options)]), _log(work), **harm)  # type: ignore[arg-type]

    def work(self, recipe: str, stage: str | None, folder: Path) -> Path:
        """A copy of the work as it is before a stage, or after the last one for None."""
        self._prepare(recipe)
        return Path(shutil.copytree(self._prepared(recipe, stage), folder / "work", symlinks=True))

    def released(self, recipe: str) -> dict[str, bytes]:
        """Every file of the unharmed release."""
        self._prepare(recipe)
        return self._released[recipe]

    def release(self) -> Path:
        """An unharmed release; not to be written to."""
        self._prepare("tables")
        return self._prepared("tables", None) / "sqid"

    def check(self, recipe: str, work: Path, harmed: Sequence[Ran] = ()) -> None:
        """After a fault: what it printed was plain, the next build succeeds, and its bytes are the unharmed ones.

        Raises:
            Lost, Silent: it is not so.
        """
        for ran in harmed:
            check_plain(ran)
        again = self.build(recipe, work)
        check_plain(again)
        if again.code:
            raise Lost(f"the next build ends with {again.code}: {again.text[-600:]}")
        self.compare(recipe, work)
        left = [path for path in work.rglob("*") if path.name.endswith((".part", ".new", ".building", ".old"))]
        if left:
            raise Lost(f"left over: {left[0].relative_to(work)}")

    def compare(self, recipe: str, work: Path) -> None:
        """Raise Silent unless the release in `work` has the bytes of the unharmed one."""
        found, right = contents(work / "sqid"), self.released(recipe)
        differ = sorted(name for name in found.keys() | right.keys() if found.get(name) != right.get(name))
        if differ:
            raise Silent(f"exit status 0, and {len(differ)} files differ, first {_difference(differ[0], found, right)}")

    def _prepared(self, recipe: str, stage: str | None) -> Path:
        return self.root / "prepared" / recipe / (stage or "all")

    def _prepare(self, recipe: str) -> None:
        if recipe in self._released:
            return
        work = self.root / "prepared" / recipe / "all"
        stages = STAGES if recipe != "artifacts" else ("sample", "release", "validate")
        for stage in stages:
            if stage == stages[0]:
                self._prepared(recipe, stage).mkdir(parents=True)
            else:
                shutil.copytree(work, self._prepared(recipe, stage))
            ran = self.build(recipe, work, "--only", stage)
            if ran.code:
                raise Failed(f"the unharmed build fails in {stage}: {ran.text}")
            if stage == stages[0]:  # the first child waited for the server of children
                shutil.rmtree(work)
                ran = self.build(recipe, work, "--only", stage)
            self.seconds[recipe, stage] = ran.seconds
        if recipe != "artifacts":  # a reference that met a fault of its own would blame every try
            statuses = json.loads((work / "summary.json").read_text())["statuses"]
            if statuses.keys() - {"ok", "missing"}:
                raise Failed(f"the unharmed build has images of status {statuses}")
        self._released[recipe] = contents(work / "sqid")


def check_plain(ran: Ran) -> None:
    """Raise Lost for a child that hung, crashed or printed a traceback."""
    if ran.code == -15:
        raise Lost(f"hung for {ran.seconds:.0f} s: {ran.text[-3000:]}")
    if ran.rude:
        raise Lost(f"ended with {ran.code}: {ran.text[-900:]}")


def contents(folder: Path) -> dict[str, bytes]:
    """Path within a folder → bytes of every file."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _difference(name: str, found: dict[str, bytes], right: dict[str, bytes]) -> str:
    """A file's name, and its first line that is not as it should be."""
    pairs = itertools.zip_longest(
        *(files.get(name, b"").splitlines(keepends=True) for files in (found, right)), fillvalue=b""
    )
    line, expected = next(pair for pair in pairs if pair[0] != pair[1])
    return f"{name}: {line[:120]!r} in place of {expected[:120]!r}"


def _log(work: Path) -> Path:
    work.parent.mkdir(parents=True, exist_ok=True)
    return work.parent / f"{work.name}.{len(list(work.parent.glob('*.log')))}.log"


async def _shop(request: Request, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(0.01)  # so that kills meet requests in flight
    _, kind, name = request.path.split("/", 2) if request.path.count("/") > 1 else ("", "", "")
    product = name.removesuffix(".jpg")
    if request.path == "/robots.txt":
        writer.write(answer(b"User-agent: *\nAllow: /\n"))
    elif product not in _IMAGES and not product.startswith("X"):
        writer.write(answer(b"", 404))
    elif kind == "i":
        image = _IMAGES.get(product) or jpeg(int(product[1:]))  # one of the many products of `scale`
        writer.write(answer(image, Content_Type="image/jpeg"))
    else:
        page = f'<html><img id="landingImage" src="https://images.example/{product}.jpg"></html>'
        writer.write(answer(page.encode(), Content_Type="text/html"))
