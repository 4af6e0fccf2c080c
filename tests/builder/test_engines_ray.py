"""builder.engines with Ray: a cluster of three machines with one CPU each, which are processes here."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("ray")

from embed_work import FINAL, STORED, contents, copy_vectors, make_work, read
from encoder_fixtures import write_clip
from fetch_fixtures import resolved
from hostile_server import STATIC, LoopbackServer, Request, answer, jpeg
from tiny_release import write_release

from builder import engines
from builder.check_work import check_work
from builder.cli import main
from builder.database import query_copy
from builder.embed import embed
from builder.engines import Engine, Job, Tick, Work
from builder.engines.mapping import map_on
from builder.fetch import fetch
from builder.fetch.stage import pending as fetch_pending
from builder.http.mirrors import authority
from builder.recipe import EncoderSettings, EngineSettings, EsciSettings, FetchSettings, Recipe
from builder.summary import summarize
from sqid_lib import EmbeddingStore, schemas
from sqid_lib.errors import EncoderError, MissingExtraError, StageError
from sqid_lib.files import part_folders

MACHINES = 3
# of Ray's own settings, whenever they are made
pytestmark = pytest.mark.filterwarnings("ignore:`.*` is deprecated:DeprecationWarning:ray.data.context")


def test_a_cluster_that_does_not_answer_is_reported() -> None:
    with (
        pytest.raises(StageError, match=r"127\.0\.0\.1:9: the Ray cluster failed"),
        engines.find("ray")(EngineSettings(address="127.0.0.1:9")),
    ):
        pass


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"'ray'.*sqid\[ray\]"), engines.find("ray")(EngineSettings()):
        pass


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", engines.import_path())
        running = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        for _ in range(MACHINES):
            running.add_node(wait=False, num_cpus=1)
        running.wait_for_nodes()
        try:
            yield running
        finally:
            running.shutdown()


@pytest.fixture
def settings(cluster: Any) -> EngineSettings:
    return EngineSettings(address=cluster.address)


@pytest.fixture
def engine(cluster: Any) -> Iterator[Engine]:
    with engines.find("ray")(EngineSettings(address=cluster.address)) as engine:
        assert engine.machines == MACHINES
        yield engine


@contextmanager
def open_writer(folder: Path, place: str) -> Iterator[Work[str]]:
    """Does a task by writing a file; notes each try. A few tasks misbehave."""

    def write(task: str, tick: Tick) -> None:
        with (folder / "tries").open("a") as tries:
            tries.write(f"{task}\n")
        if task == "fails":
            raise EncoderError("it failed", where=task, got=place, fix="Try again.")
        if task == "breaks":
            raise RuntimeError("unexpected")
        if task == "kills" or (task == "kills once" and not (folder / "killed").exists()):
            (folder / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        sys.stdout.write("noise on standard output")
        time.sleep(0.05)
        (folder / task).write_text(place)
        tick(1)
        tick(2, 1)

    yield write


def run(folder: Path, engine: Engine, tasks: list[str]) -> tuple[int, int]:
    ticks: list[tuple[int, int]] = []
    engine.run(Job(partial(open_writer, folder), tasks), lambda units, failed=0: ticks.append((units, failed)))
    return sum(units for units, _ in ticks), sum(failed for _, failed in ticks)


def tries(folder: Path) -> Counter[str]:
    return Counter((folder / "tries").read_text().splitlines())


TASKS = [f"task-{n}" for n in range(6)]


def test_tasks_are_done_once_and_a_killed_worker_costs_its_task_a_try(
    tmp_path: Path, settings: EngineSettings, capfd: pytest.CaptureFixture[str]
) -> None:
    tasks = ["kills once", *TASKS]
    with engines.find("ray")(settings) as engine:
        assert run(tmp_path, engine, tasks) == (3 * len(tasks), len(tasks))
    assert tries(tmp_path) == {**dict.fromkeys(TASKS, 1), "kills once": 2}
    assert {(tmp_path / task).read_text() for task in tasks} == {"cpu"}
    assert capfd.readouterr() == ("", "ray: a worker ended; kills once is begun again\n")


def test_without_tasks_no_worker_starts(tmp_path: Path, engine: Engine) -> None:
    assert run(tmp_path, engine, []) == (0, 0)


@pytest.mark.parametrize(
    ("task", "error", "message", "times"),
    [
        ("fails", EncoderError, r"^fails: it failed; got cpu\. Try again\.$", 1),
        pytest.param("breaks", StageError, "^a worker failed: RuntimeError: unexpected$", 1, marks=pytest.mark.slow),
        pytest.param(
            *("kills", StageError, "^kills: 3 workers ended while they did this task.*kept", 3), marks=pytest.mark.slow
        ),
    ],
)
def test_an_error_ends_the_run_and_names_the_task(
    tmp_path: Path, engine: Engine, task: str, error: type[Exception], message: str, times: int
) -> None:
    with pytest.raises(error, match=message):
        run(tmp_path, engine, [task])
    assert tries(tmp_path) == {task: times}


def test_retrieval_finds_what_one_machine_finds(tmp_path: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    release = write_release(tmp_path / "release", queries=20, products=300, per_query=12)
    words = ["evaluate", str(release), "--cache-dir", str(tmp_path / "cache"), "--retrieve", "--backend", "numpy"]
    words += ["--methods", "fusion", "--export"]
    monkeypatch.setattr("sqid_lib.evaluation.retrieval._SHARD", 160)  # of 300 products: for two workers
    assert main([*words, str(tmp_path / "here")]) == 0
    assert main([*words, str(tmp_path / "there"), "--engine", "ray", "--ray-address", cluster.address]) == 0
    here, there = (tmp_path / folder / "fusion.run" for folder in ("here", "there"))
    assert here.read_bytes() == there.read_bytes()
    assert not list((tmp_path / "cache").glob(".results-*"))


def test_search_finds_what_one_machine_finds(tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sqid_lib.evaluation.retrieval._SHARD", 160)  # of 300 products: for two workers
    store = EmbeddingStore.open(write_release(tmp_path / "release", products=300), cache_dir=tmp_path / "cache")
    query = np.random.default_rng(1).normal(size=store.width).astype(np.float32)
    found = store.search(
        query, top=9, map_shards=lambda search, shards: map_on(engine, tmp_path, "search", search, shards)
    )
    assert found == store.search(query, top=9)


@pytest.mark.slow
def test_a_killed_machine_costs_its_task_a_try(tmp_path: Path, engine: Engine, cluster: Any) -> None:
    tasks = [f"{n}" for n in range(60)]
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(run, tmp_path, engine, tasks)
        while not (tmp_path / "tries").exists() and not running.done():
            time.sleep(0.01)
        replace_a_machine(cluster)
        assert running.result()[0] >= 3 * len(tasks)
    assert all((tmp_path / task).exists() for task in tasks)
    assert len(tasks) <= sum(tries(tmp_path).values()) <= len(tasks) + MACHINES


def replace_a_machine(cluster: Any) -> None:
    cluster.remove_node(list(cluster.worker_nodes)[-1], allow_graceful=False)
    cluster.add_node(num_cpus=1)


# -- embed ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("decode", "kept"),
    [("worker", "texts-*"), *(pytest.param(decode, "none", marks=pytest.mark.slow) for decode in ("worker", "tasks"))],
)
def test_embed_writes_the_bytes_of_one_machine(
    tmp_path: Path, settings: EngineSettings, decode: str, kept: str
) -> None:
    import torch

    encoder = EncoderSettings(model=str(write_clip(tmp_path / "clip")), shard_rows=4, image_batch=2, text_batch=2)
    recipe = Recipe(name="t", version="1", esci=EsciSettings(path="."), encoder=encoder)
    recipe = recipe.model_copy(update={"engine": settings.model_copy(update={"max_workers": 1, "decode": decode})})
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as a worker with one CPU
    try:
        here, there = (make_work(tmp_path / name) for name in ("here", "there"))
        embed(recipe, here)
        copy_vectors(here, there, kept)
        embed(recipe, there, engine="ray")
    finally:
        torch.set_num_threads(before)
    assert contents(there) == contents(here)


def number_in_its_process(number: int) -> tuple[int, int]:
    if number == 50:
        raise EncoderError("it failed", where=str(number))
    return number, os.getpid()


@pytest.mark.slow
def test_tasks_that_decode_run_elsewhere_and_keep_the_order(settings: EngineSettings) -> None:
    with engines.find("ray")(settings) as engine:
        assert engine.map_ahead is None
    with engines.find("ray")(settings.model_copy(update={"decode": "tasks"})) as engine:
        assert engine.map_ahead is not None
        numbers, processes = zip(*engine.map_ahead(number_in_its_process, range(40)), strict=True)
        assert numbers == tuple(range(40)) and os.getpid() not in processes
        with pytest.raises(EncoderError, match=r"^50: it failed"):
            list(engine.map_ahead(number_in_its_process, range(40, 60)))


@contextmanager
def workers_after(hook: Callable[[], None], settings: EngineSettings) -> Iterator[None]:
    """A connection to the cluster, whose workers call `hook` when they start."""
    import ray

    environment = {"worker_process_setup_hook": hook}
    ray.init(settings.address, runtime_env=environment, logging_level="ERROR", log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()


def die_of_a_gif() -> None:
    """In a worker: a decoder that a crafted image ends."""
    from builder.embed import local
    from sqid_lib.images import decode_for_model as decode

    def dying(data: bytes, *limits: Any, **options: Any) -> Any:
        if data.startswith(b"GIF"):
            os._exit(1)
        return decode(data, *limits, **options)

    vars(local)["decode_for_model"] = dying


@pytest.mark.slow
@pytest.mark.parametrize("decode", ["worker", "tasks"])
def test_an_image_that_ends_its_workers_gets_a_status(
    tmp_path: Path, settings: EngineSettings, capfd: pytest.CaptureFixture[str], decode: str
) -> None:
    encoder = EncoderSettings(model=str(write_clip(tmp_path / "clip")), shard_rows=4, image_batch=2)
    alone = settings.model_copy(update={"max_workers": 1, "decode": decode})
    recipe = Recipe(name="t", version="1", esci=EsciSettings(path="."), encoder=encoder, engine=alone)
    here, there = (make_work(tmp_path / name) for name in ("here", "there"))
    embed(recipe, here)
    with workers_after(die_of_a_gif, settings):
        embed(recipe, there, engine="ray")
    gif = next(row for row, (_, data) in enumerate(STORED) if data and data.startswith(b"GIF"))
    statuses = list(FINAL)
    statuses[gif] = "error"
    assert read(there, "products")["image_status"].to_pylist() == statuses
    vectors = [read(work, "products")["clip_image_features"].to_pylist() for work in (here, there)]
    assert vectors[1].pop(gif) is None and vectors[0].pop(gif) is not None
    for one, other in zip(*vectors, strict=True):
        assert (one is None) == (other is None) and (one is None or np.allclose(one, other, atol=1e-5))
    sha256 = hashlib.sha256(STORED[gif][1] or b"").hexdigest()
    said = capfd.readouterr().err
    assert re.search(rf"^ray: images-\d+\.parquet: {sha256} ended 3 workers and is given up$", said, re.MULTILINE)
    summary = summarize(recipe, there, "sqid build")
    assert summary and "images without a vector: error 1 (P009), truncated 1 (P005)" in summary.lines()
    embed(recipe, there, engine="ray")  # nothing is begun again
    assert capfd.readouterr().err == ""


# -- fetch ------------------------------------------------------------------------------------------------------------

HOSTS, IMAGES = 5, 20
PER_HOST, AT_ONCE, PAUSE = 2, 6, 3


class Shop:
    """Hosts that count the requests that they, and all together, answer at once; every seventh image is missing.

    Attributes:
        tired: the host that answers its first request with 429 and a Retry-After of `PAUSE` seconds.
        log: of every answer, when it was sent, the host, the path and the HTTP status.
    """

    def __init__(self, tired: int | None = None) -> None:
        self.busy: Counter[Any] = Counter()
        self.most: Counter[Any] = Counter()
        self.tired, self.log = tired, list[tuple[float, int, str, int]]()
        self.servers = [LoopbackServer(partial(self._answer, host)) for host in range(HOSTS)]

    async def _answer(self, host: int, request: Request, writer: asyncio.StreamWriter) -> None:
        for key in (host, "all"):  # one thread a server: the sum may be a little off, never too high for long
            self.busy[key] += 1
            self.most[key] = max(self.most[key], self.busy[key])
        first = host == self.tired and all(host != other for _, other, *_ in self.log)
        if first:
            self.log.append((time.monotonic(), host, request.path, 429))
        await asyncio.sleep(0.02)
        number = int(request.path.strip("/").removesuffix(".jpg"))
        for key in (host, "all"):
            self.busy[key] -= 1
        missing = number % 7 == 6
        if first:
            writer.write(answer(b"", 429, Retry_After=PAUSE))
            return
        self.log.append((time.monotonic(), host, request.path, 404 if missing else 200))
        writer.write(STATIC["/404"] if missing else answer(jpeg(HOSTS * number + host)))

    def recipe(self, settings: EngineSettings) -> Recipe:
        limits = FetchSettings(
            mirrors={f"https://{host}.example/": f"{server.origin}/" for host, server in enumerate(self.servers)},
            allow_hosts=tuple(f"127.0.0.1:{server.port}" for server in self.servers),
            concurrency=AT_ONCE,
            per_host=PER_HOST,
            shard_rows=10,
        )
        return Recipe(name="t", version="1", esci=EsciSettings(path="."), fetch=limits, engine=settings)

    def hits(self) -> Counter[tuple[int, str]]:
        return Counter((host, request.path) for host, server in enumerate(self.servers) for request in server.requests)


URLS = [f"https://{host}.example/{number}.jpg" for number in range(IMAGES) for host in range(HOSTS)]


@contextmanager
def open_shop(tired: int | None = None) -> Iterator[Shop]:
    shop = Shop(tired)
    with contextlib.ExitStack() as stack:
        for server in shop.servers:
            stack.enter_context(server)
        yield shop


@pytest.fixture
def shop() -> Iterator[Shop]:
    with open_shop() as shop:
        yield shop


def images(work: Path) -> dict[str, bytes]:
    tables = [pq.read_table(path) for path in (work / "fetch").rglob("images-*.parquet")]
    rows = pa.concat_tables(tables).to_pylist()
    assert all(hashlib.sha256(row["image"]).hexdigest() == row["sha256"] for row in rows)
    return {row["sha256"]: row["image"] for row in rows}


def test_fetch_asks_each_host_from_one_machine(tmp_path: Path, settings: EngineSettings, shop: Shop) -> None:
    here, there = (resolved(tmp_path / name, *URLS) for name in ("here", "there"))
    assert fetch(shop.recipe(settings), there, engine="ray") == len(URLS)
    assert shop.hits() == {(host, f"/{number}.jpg"): 1 for host in range(HOSTS) for number in range(IMAGES)}
    assert max(shop.most[host] for host in range(HOSTS)) <= PER_HOST
    assert 2 < shop.most["all"] <= AT_ONCE
    folders = sorted(path.parent.name for path in (there / "fetch").glob("part-*/images-00000.parquet"))
    assert folders == [f"part-{number:05d}" for number in range(MACHINES)]
    assert fetch(shop.recipe(settings), there) == 0  # what several machines did is done for one
    assert sum(shop.hits().values()) == len(URLS)
    fetch(shop.recipe(settings), here)
    outcomes = [(work / "fetch" / "outcomes.parquet").read_bytes() for work in (here, there)]
    assert outcomes[0] == outcomes[1]
    assert images(here) == images(there)
    assert not fetch_pending(shop.recipe(settings), there)
    (there / ".lock").touch()
    parts = sorted((there / "fetch").glob("part-*/*"))
    assert check_work(there).sound["fetch"] == 1 + len(parts)  # and the ledger of one machine
    parts[0].write_bytes(b"damaged")
    assert [*check_work(there).damaged] == [str(parts[0].relative_to(there))]


def askers(work: Path) -> dict[str, set[str]]:
    """Host → the partitions that have outcomes of it."""
    found: dict[str, set[str]] = {}
    for folder in part_folders(work / "fetch"):
        for (url,) in query_copy(folder / "ledger.sqlite", "SELECT url FROM outcomes"):
            found.setdefault(authority(url), set()).add(folder.name)
    return found


@pytest.mark.slow
def test_a_host_in_back_off_is_asked_by_one_machine_and_not_before_its_time(
    tmp_path: Path, settings: EngineSettings
) -> None:
    work = resolved(tmp_path, *URLS)
    with open_shop(tired=3) as shop:
        assert fetch(shop.recipe(settings), work, engine="ray") == len(URLS)
    assert [len(folders) for folders in askers(work).values()] == [1] * HOSTS
    assert len(set[str]().union(*askers(work).values())) == MACHINES
    (refused, *rest) = [(at, status) for at, host, _, status in shop.log if host == 3]
    assert refused[1] == 429 and len(rest) == IMAGES
    early = [at for at, _ in rest if at < refused[0] + PAUSE]
    assert len(early) < PER_HOST  # requests that were on their way
    assert max(shop.most[host] for host in range(HOSTS)) <= PER_HOST and shop.most["all"] <= AT_ONCE


@pytest.mark.slow
def test_a_machine_killed_in_fetch_repeats_the_requests_in_flight(
    tmp_path: Path, settings: EngineSettings, shop: Shop, cluster: Any
) -> None:
    work = resolved(tmp_path, *URLS)
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(fetch, shop.recipe(settings), work, engine="ray")
        while sum(shop.hits().values()) < 20 and not running.done():
            time.sleep(0.01)
        replace_a_machine(cluster)
        assert running.result() == len(URLS)
    assert set(shop.hits()) == {(host, f"/{number}.jpg") for host in range(HOSTS) for number in range(IMAGES)}
    assert sum(shop.hits().values()) <= len(URLS) + AT_ONCE
    assert pq.read_table(work / "fetch/outcomes.parquet")["image_status"].to_pylist() == [
        "not_found" if int(url.rsplit("/", 1)[1].removesuffix(".jpg")) % 7 == 6 else schemas.OK for url in URLS
    ]


def die_of_a_url() -> None:
    """In a worker: an HTTP client that an answer ends."""
    from builder.http.client import Client

    get = Client.get

    async def dying(client: Client, url: str, *rest: Any, **options: Any) -> Any:
        answer = await get(client, url, *rest, **options)
        if url.endswith("/12.jpg"):
            os._exit(1)
        return answer

    setattr(Client, get.__name__, dying)


@pytest.mark.slow
def test_a_url_that_ends_its_workers_gets_a_status(tmp_path: Path, settings: EngineSettings, shop: Shop) -> None:
    bad = "https://2.example/12.jpg"
    urls = [url for url in URLS if url == bad or not url.endswith("/12.jpg")]
    work = resolved(tmp_path / "work", *urls)
    with workers_after(die_of_a_url, settings):
        assert fetch(shop.recipe(settings), work, engine="ray") == len(urls)
    rows = pq.read_table(work / "fetch/outcomes.parquet").to_pylist()
    ended = [(row["image_url"], row["detail"]) for row in rows if row["image_status"] == "error"]
    assert ended == [(bad, "it ended the workers that fetched it")]
    missing = [url for url in urls if int(url.rsplit("/", 1)[1].removesuffix(".jpg")) % 7 == 6 and url != bad]
    assert [row["image_url"] for row in rows if row["image_status"] == "not_found"] == missing
    assert sum(row["image_status"] == schemas.OK for row in rows) == len(urls) - len(missing) - 1
    assert max(shop.most[host] for host in range(HOSTS)) <= PER_HOST
    summary = summarize(shop.recipe(settings), work, "sqid build")
    assert summary and f"URLs that ended the workers that fetched them: 1 ({bad})" in summary.lines()
    assert fetch(shop.recipe(settings), work) == 0  # it is not asked again by itself
    assert fetch(shop.recipe(settings), work, ["error"]) == 1
    assert pq.read_table(work / "fetch/outcomes.parquet")["image_status"][urls.index(bad)].as_py() == schemas.OK


# -- a cluster of our own -------------------------------------------------------------------------------------------


def descendants(process: int) -> set[int]:
    children = Path(f"/proc/{process}/task/{process}/children")
    try:
        direct = {int(word) for word in children.read_text().split()}
    except (OSError, ValueError):
        return set()
    return direct.union(*(descendants(child) for child in direct))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="processes are listed in /proc")
def test_ctrl_c_leaves_no_process_behind(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "builder", "build", "demo", "--work", str(tmp_path), "--engine", "ray"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment["PYTHONPATH"] = engines.import_path()
    started: set[int] = set()
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, process_group=0) as build:
        assert build.stderr is not None
        for line in build.stderr:
            if line.startswith("fetch:") and "0 of" not in line.partition(",")[0]:  # a worker is at work
                break
        started = descendants(build.pid)
        os.killpg(build.pid, signal.SIGINT)
        build.stderr.read()
    assert build.returncode == 130 and len(started) > 3
    deadline = time.monotonic() + 30
    while (
        left := {process for process in started if Path(f"/proc/{process}").exists()}
    ) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not left
