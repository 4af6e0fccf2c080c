from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import json
import os
import pickle
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hostile_server import JPEG, STATIC, LoopbackServer, Request, answer, hostile, jpeg

from builder.fetch import fetch
from builder.fetch.ledger import Ledger, Outcome
from builder.fetch.local_images import LocalImages
from builder.fetch.partition import Partition, open_downloader
from builder.fetch.shards import damaged_images
from builder.recipe import EsciSettings, FetchSettings, Recipe
from sqid_lib import schemas
from sqid_lib.errors import DiskError, FetchError, MissingFileError, StageError, UsageError
from sqid_lib.joined.image_status import image_status
from sqid_lib.joined.selection import Selection

HOST = "https://images.example"
LARGE = STATIC["/large"].partition(b"\r\n\r\n")[2]


async def shop(request: Request, writer: asyncio.StreamWriter) -> None:
    """/N.jpg is an image of its own; every seventh is not there."""
    number = int(request.path.strip("/").removesuffix(".jpg"))
    writer.write(STATIC["/404"] if number % 7 == 6 else answer(jpeg(number)))


@pytest.fixture
def server() -> Iterator[LoopbackServer]:
    with LoopbackServer(shop) as running:
        yield running


@pytest.fixture
def strange() -> Iterator[LoopbackServer]:
    with LoopbackServer(hostile) as running:
        yield running


def recipe(server: LoopbackServer, **changes: Any) -> Recipe:
    limits = FetchSettings(
        mirrors={f"{HOST}/": f"{server.origin}/"},
        allow_hosts=(f"127.0.0.1:{server.port}",),
        timeout=5.0,
        read_timeout=2.0,
        max_bytes=1_000_000,
        shard_rows=10,
        **changes,
    )
    return Recipe(name="t", version="1", esci=EsciSettings(path="."), fetch=limits)


def resolved(work: Path, urls: Sequence[str | None], supp: Sequence[str | None] = ()) -> Path:
    parts = [(schemas.MAIN, url) for url in urls] + [(schemas.SUPPLEMENTARY, url) for url in supp]
    statuses = image_status(pa.array([url for _, url in parts], pa.string())).to_pylist()
    rows = [
        {"part": part, "product_locale": "us", "product_id": f"B{i:04}", "image_url": url, "image_status": status}
        for i, ((part, url), status) in enumerate(zip(parts, statuses, strict=True))
    ]
    (work / "resolve").mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schemas.RESOLVED_SCHEMA), work / "resolve" / "urls.parquet")
    return work


def numbered(*numbers: int) -> list[str | None]:
    return [f"{HOST}/{n}.jpg" for n in numbers]


def outcomes(work: Path) -> list[dict[str, Any]]:
    table = pq.read_table(work / "fetch" / "outcomes.parquet")
    assert table.schema.equals(schemas.OUTCOMES_SCHEMA)
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def shards(work: Path) -> list[Path]:
    return sorted((work / "fetch").glob("images-*.parquet"))


def images(work: Path) -> dict[str, bytes]:
    """All stored images; none twice, none under a wrong name."""
    rows = [row for path in shards(work) for row in pq.read_table(path).to_pylist()]
    stored = {row["sha256"]: row["image"] for row in rows}
    assert len(stored) == len(rows)
    assert all(hashlib.sha256(data).hexdigest() == sha256 for sha256, data in stored.items())
    return stored


def contents(work: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in [*shards(work), work / "fetch" / "outcomes.parquet"]}


def test_every_product_has_an_outcome_and_every_image_is_kept_once(server: LoopbackServer, tmp_path: Path) -> None:
    urls = [*numbered(3, 1, 6, 3), None, f"{HOST}/01RmK%2BJ4pJL.gif"]
    fetch(recipe(server), resolved(tmp_path, urls, supp=numbered(5)))
    rows = outcomes(tmp_path)
    assert [r["product_id"] for r in rows] == [f"B{i:04}" for i in range(6)]
    assert [r["image_url"] for r in rows] == urls
    assert [r["image_status"] for r in rows] == ["ok", "ok", "not_found", "ok", "missing", "placeholder"]
    assert [r["http_status"] for r in rows] == [200, 200, 404, 200, None, None]
    first = rows[0]
    data = jpeg(3)
    assert first["sha256"] == rows[3]["sha256"] == hashlib.sha256(data).hexdigest()
    assert (first["bytes"], first["width"], first["height"], first["detail"]) == (len(data), 40, 30, None)
    assert rows[2]["detail"] == "HTTP 404"
    assert list(images(tmp_path).values()) == [jpeg(3), jpeg(1)]
    assert pq.read_schema(shards(tmp_path)[0]).equals(schemas.IMAGES_SCHEMA)
    assert server.hits() == {"/3.jpg": 1, "/1.jpg": 1, "/6.jpg": 1}


def test_supplementary_products_are_fetched_when_they_are_embedded(server: LoopbackServer, tmp_path: Path) -> None:
    with_supp = recipe(server).model_copy(update={"selection": Selection(embed_supp=True)})
    fetch(with_supp, resolved(tmp_path, numbered(1), supp=numbered(2)))
    assert [r["image_status"] for r in outcomes(tmp_path)] == ["ok", "ok"]


def test_generic_images_are_fetched_and_stay_generic(strange: LoopbackServer, tmp_path: Path) -> None:
    mirrors = {schemas.GENERIC_IMAGE_URL: f"{strange.origin}/ok"}
    generic = recipe(strange).fetch.model_copy(update={"mirrors": mirrors})
    fetch(recipe(strange).model_copy(update={"fetch": generic}), resolved(tmp_path, [schemas.GENERIC_IMAGE_URL]))
    assert [r["image_status"] for r in outcomes(tmp_path)] == ["generic"]
    assert [r["image_url"] for r in outcomes(tmp_path)] == [schemas.GENERIC_IMAGE_URL]
    assert list(images(tmp_path).values()) == [JPEG]


def test_equal_images_under_different_urls_are_kept_once(strange: LoopbackServer, tmp_path: Path) -> None:
    fetch(recipe(strange), resolved(tmp_path, [f"{HOST}{path}" for path in ("/ok", "/redirect-2", "/ok-gzip")]))
    assert list(images(tmp_path).values()) == [JPEG]
    assert {r["sha256"] for r in outcomes(tmp_path)} == set(images(tmp_path))


STATUSES = {
    "/ok-said-to-be-html": "ok",
    "/html": "not_image",
    "/svg": "not_image",
    "/truncated-image": "truncated",
    "/pixel-bomb": "too_many_pixels",
    "/gzip-bomb": "too_large",
    "/endless-body": "too_large",
    "/empty": "empty",
    "/403": "blocked",
    "/410": "not_found",
    "/418": "http_error",
    "/redirect-loop": "redirects",
    "/redirect-file": "bad_url",
    "/to/127.0.0.1:80": "refused",
    "/to/localhost:443": "refused",
    "/cut": "connection",
    "/silence": "timeout",
}


def test_each_kind_of_failure_is_a_status_of_its_row(strange: LoopbackServer, tmp_path: Path) -> None:
    urls = [*(f"{HOST}{path}" for path in STATUSES), "ftp://h.example/x", "http://10.0.0.1/", "http://h.example:22/"]
    fetch(recipe(strange, retries=0), resolved(tmp_path, urls))
    rows = outcomes(tmp_path)
    expected = [*STATUSES.values(), "bad_url", "refused", "refused"]
    assert {r["image_url"]: r["image_status"] for r in rows} == dict(zip(urls, expected, strict=True))
    for row in rows:
        assert row["image_status"] in schemas.IMAGE_STATUS
        assert (row["detail"] is None) == (row["image_status"] == "ok")
        assert (row["sha256"] is None) == (row["image_status"] != "ok")
    assert list(images(tmp_path).values()) == [JPEG]


def test_only_failures_that_may_pass_are_tried_again_and_as_often_as_the_recipe_says(
    strange: LoopbackServer, tmp_path: Path
) -> None:
    paths = ["/500", "/cut", "/404", "/403", "/418", "/html", "/redirect-loop"]
    fetch(recipe(strange, retries=1), resolved(tmp_path, [f"{HOST}{path}" for path in paths]))
    hits = strange.hits()
    assert (hits["/500"], hits["/cut"]) == (2, 2)
    assert [hits[path] for path in paths[2:6]] == [1, 1, 1, 1]


def test_a_server_that_recovers_is_waited_for(tmp_path: Path) -> None:
    async def flaky(request: Request, writer: asyncio.StreamWriter) -> None:
        first = flaking.hits()[request.path] == 1
        code = {"/a": 503, "/b": 429, "/c": 408}[request.path]
        writer.write(answer(b"", code, Retry_After="0") if first else answer(JPEG))

    with LoopbackServer(flaky) as flaking:
        fetch(recipe(flaking), resolved(tmp_path, [f"{HOST}/a", f"{HOST}/b", f"{HOST}/c"]))
        assert flaking.hits() == {"/a": 2, "/b": 2, "/c": 2}
    assert [r["image_status"] for r in outcomes(tmp_path)] == ["ok"] * 3


def test_a_host_with_a_retry_after_of_a_day_is_asked_no_more(tmp_path: Path) -> None:
    async def busy(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(b"", 503, Retry_After=86_400))

    with LoopbackServer(busy) as server:
        urls = [f"{HOST}/{n}" for n in range(30)]
        with pytest.raises(FetchError, match=r"30 of its 30 URLs failed .*HTTP 503; .*left alone for 86400 s"):
            fetch(recipe(server, per_host=1), resolved(tmp_path, urls))
        assert len(server.requests) == 1
    rows = outcomes(tmp_path)
    assert {r["image_status"] for r in rows} == {"http_error"}
    assert all("left alone for 86400 s" in r["detail"] for r in rows if r["http_status"] is None)


def test_no_more_connections_at_once_than_the_recipe_says(tmp_path: Path) -> None:
    now = most = 0

    async def slow(request: Request, writer: asyncio.StreamWriter) -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.02)
        now -= 1
        writer.write(answer(JPEG))

    with LoopbackServer(slow) as server:
        fetch(recipe(server, concurrency=8, per_host=3), resolved(tmp_path, numbered(*range(40))))
    assert most == 3


def test_a_finished_stage_makes_no_request_and_changes_nothing(server: LoopbackServer, tmp_path: Path) -> None:
    resolved(tmp_path, numbered(*range(25)))
    fetch(recipe(server), tmp_path)
    before, requests = contents(tmp_path), len(server.requests)
    stamps = [path.stat().st_mtime_ns for path in shards(tmp_path)]
    fetch(recipe(server), tmp_path)
    assert (contents(tmp_path), len(server.requests)) == (before, requests)
    assert [path.stat().st_mtime_ns for path in shards(tmp_path)] == stamps


def test_nothing_but_the_results_and_the_ledger_is_left(server: LoopbackServer, tmp_path: Path) -> None:
    fetch(recipe(server), resolved(tmp_path, numbered(*range(25))))
    names = [path.name for path in sorted((tmp_path / "fetch").iterdir())]
    assert names == [*(f"images-{n:05}.parquet" for n in range(3)), "ledger.sqlite", "outcomes.parquet"]


def test_only_new_urls_are_fetched_when_urls_change(server: LoopbackServer, tmp_path: Path) -> None:
    fetch(recipe(server), resolved(tmp_path / "a", numbered(*range(20))))
    done = len(server.requests)
    changed = numbered(30, *range(15, 20), 31, *range(10))
    fetch(recipe(server), resolved(tmp_path / "a", changed))
    assert sorted(r.path for r in server.requests[done:]) == ["/30.jpg", "/31.jpg"]
    fetch(recipe(server), resolved(tmp_path / "b", changed))
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_shards_are_the_same_whatever_the_order_of_arrival(tmp_path: Path) -> None:
    async def shuffled(request: Request, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(random.random() / 20)
        await shop(request, writer)

    with LoopbackServer(shuffled) as server:
        for name, connections in (("a", 1), ("b", 16)):
            limits = recipe(server, concurrency=connections)
            fetch(limits, resolved(tmp_path / name, numbered(*range(35), 3, 4)))
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    numbers = [n for n in range(35) if n % 7 != 6]
    assert list(images(tmp_path / "a").values()) == [jpeg(n) for n in numbers]


def test_retry_tries_these_failures_again_and_no_others(strange: LoopbackServer, tmp_path: Path) -> None:
    resolved(tmp_path, [f"{HOST}{path}" for path in ("/ok", "/404", "/410", "/403", "/html")])
    fetch(recipe(strange), tmp_path)
    done = len(strange.requests)
    fetch(recipe(strange), tmp_path, retry=["not_found", "blocked"])
    assert sorted(r.path for r in strange.requests[done:]) == ["/403", "/404", "/410"]


def test_a_retry_that_succeeds_equals_a_run_without_the_failure(server: LoopbackServer, tmp_path: Path) -> None:
    broken = {"/0.jpg", "/12.jpg", "/13.jpg"}

    async def mended(request: Request, writer: asyncio.StreamWriter) -> None:
        if request.path in broken:
            writer.write(answer(b"", 404))
        else:
            await shop(request, writer)

    urls = numbered(*range(28))
    with LoopbackServer(mended) as other:
        fetch(recipe(other), resolved(tmp_path / "a", urls))
        assert len(images(tmp_path / "a")) == 22
        broken.clear()
        fetch(recipe(other), tmp_path / "a", retry=["not_found"])
    fetch(recipe(server), resolved(tmp_path / "b", urls))
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


@pytest.mark.parametrize("status", ["ok", "missing", "placeholder", "unavailable", "non_finite", "404", ""])
def test_retrying_what_is_not_a_failure_is_wrong_usage(server: LoopbackServer, tmp_path: Path, status: str) -> None:
    with pytest.raises(UsageError, match="--retry"):
        fetch(recipe(server), resolved(tmp_path, numbered(1)), retry=[status])
    assert not (tmp_path / "fetch").exists()


def test_an_unknown_engine_is_wrong_usage(server: LoopbackServer, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"unknown engine.*expected local or ray.*got 'steam'"):
        fetch(recipe(server), resolved(tmp_path, numbered(1)), engine="steam")
    assert not (tmp_path / "fetch").exists()


def test_a_partition_is_completed_from_pickled_values(server: LoopbackServer, tmp_path: Path) -> None:
    values = (
        partial(open_downloader, recipe(server).fetch, LocalImages()),
        Partition(tmp_path, [f"{HOST}/1.jpg", f"{HOST}/6.jpg"]),
    )
    opener, partition = pickle.loads(pickle.dumps(values))
    done: list[int] = []
    for _ in range(2):  # the second time there is nothing left to do
        with opener("cpu") as complete:
            complete(partition, lambda units, failed=0: done.append(units))
    assert done == [1, 1]
    assert server.hits() == {"/1.jpg": 1, "/6.jpg": 1}
    assert pq.read_table(tmp_path / "images-00000.parquet")["image"].to_pylist() == [jpeg(1)]


def test_every_status_of_a_failed_download_can_be_retried() -> None:
    assert set(STATUSES.values()) - {"ok"} <= set(schemas.RETRIABLE["fetch"]) <= set(schemas.IMAGE_STATUS)


def test_a_missing_resolve_stage_is_reported(server: LoopbackServer, tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"urls\.parquet"):
        fetch(recipe(server), tmp_path)


def test_a_network_that_is_down_ends_the_run_and_keeps_what_is_done(tmp_path: Path) -> None:
    hosts = [f"127.1.{n // 250}.{n % 250 + 1}:9" for n in range(300)]  # nothing listens there
    limits = FetchSettings(allow_hosts=tuple(hosts), retries=0, timeout=5.0)
    built = Recipe(name="t", version="1", esci=EsciSettings(path="."), fetch=limits)
    with pytest.raises(FetchError, match=r"200 URLs of several hosts failed in a row.*is tried again"):
        fetch(built, resolved(tmp_path, [f"http://{host}/" for host in hosts]))
    assert not (tmp_path / "fetch" / "outcomes.parquet").exists()


def test_no_product_makes_an_empty_table_and_no_shard(server: LoopbackServer, tmp_path: Path) -> None:
    fetch(recipe(server), resolved(tmp_path, []))
    assert (outcomes(tmp_path), shards(tmp_path), server.requests) == ([], [], [])


def test_deleted_shards_are_fetched_again(server: LoopbackServer, tmp_path: Path) -> None:
    fetch(recipe(server), resolved(tmp_path, numbered(*range(30))))
    before, done = contents(tmp_path), len(server.requests)
    shards(tmp_path)[1].unlink()
    fetch(recipe(server), tmp_path)
    assert contents(tmp_path) == before
    assert len(server.requests) - done == 10


def test_bytes_that_changed_on_disk_are_fetched_again(server: LoopbackServer, tmp_path: Path) -> None:
    fetch(recipe(server), resolved(tmp_path / "a", numbered(*range(30))))
    shard = shards(tmp_path / "a")[0]
    data = shard.read_bytes()
    at = data.index(jpeg(2))
    shard.write_bytes(data[:at] + bytes(20) + data[at + 20 :])
    urls = numbered(40, *range(30))  # so that the shard has to be written again
    fetch(recipe(server), resolved(tmp_path / "a", urls))
    fetch(recipe(server), resolved(tmp_path / "b", urls))
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_full_disk_is_reported_and_the_rest_is_fetched_when_there_is_room(
    strange: LoopbackServer, tmp_path: Path
) -> None:
    resolved(tmp_path, [f"{HOST}/ok", f"{HOST}/large"])
    size = len(LARGE) + 1  # enough for one image
    tight = recipe(strange, concurrency=1)
    tight = tight.model_copy(update={"fetch": tight.fetch.model_copy(update={"max_bytes": size})})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))  # the nearest thing to a full disk
    try:
        with pytest.raises(DiskError, match=r"spool\.bin.*Make room and run the build again"):
            fetch(tight, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    fetch(recipe(strange), tmp_path)
    assert [r["image_status"] for r in outcomes(tmp_path)] == ["ok", "ok"]
    assert strange.hits() == {"/ok": 1, "/large": 2}


def test_a_damaged_image_is_fetched_again_and_no_other(
    server: LoopbackServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fetch(recipe(server), resolved(tmp_path, numbered(*range(30))))
    before, shard = contents(tmp_path), shards(tmp_path)[0]
    for number in (0, 2, 9):
        done, data = len(server.requests), shard.read_bytes()
        at = data.index(jpeg(number)) + 100
        shard.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        assert damaged_images(tmp_path / "fetch") == {shard: "has 1 damaged image"}
        fetch(recipe(server), tmp_path)
        assert contents(tmp_path) == before
        assert [request.path for request in server.requests[done:]] == [f"/{number}.jpg"]
    assert f"{shard} holds damaged images" in caplog.text
    assert damaged_images(tmp_path / "fetch") == {}


def test_a_flip_anywhere_in_a_shard_is_repaired_or_harmless(server: LoopbackServer, tmp_path: Path) -> None:
    fetch(recipe(server), resolved(tmp_path, numbered(*range(10))))
    before, stored, shard = (
        (tmp_path / "fetch" / "outcomes.parquet").read_bytes(),
        images(tmp_path),
        shards(tmp_path)[0],
    )
    data = shard.read_bytes()
    edges = [*range(0, 40, 13), *range(len(data) - 900, len(data), 73)]  # pages' headers and the footer
    for at in [*edges, *range(41, len(data) - 900, len(data) // 7)]:
        shard.write_bytes(data[:at] + bytes([data[at] ^ 8]) + data[at + 1 :])
        fetch(recipe(server), tmp_path)
        assert images(tmp_path) == stored, at
        assert (tmp_path / "fetch" / "outcomes.parquet").read_bytes() == before


def test_too_many_open_files_cost_no_image(
    server: LoopbackServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch(recipe(server), resolved(tmp_path, numbered(*range(10))))
    before, done, opened = contents(tmp_path), len(server.requests), pq.ParquetFile

    def fails(path: Any, **options: Any) -> pq.ParquetFile:
        if "images-" in str(path):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return opened(path, **options)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="Too many open files"):
        patch.setattr("pyarrow.parquet.ParquetFile", fails)
        fetch(recipe(server), tmp_path)
    fetch(recipe(server), tmp_path)
    assert (contents(tmp_path), len(server.requests)) == (before, done)


@pytest.mark.parametrize("harm", ["not a database", "one URL", "one status"])
def test_a_damaged_ledger_is_made_again(server: LoopbackServer, tmp_path: Path, harm: str) -> None:
    fetch(recipe(server), resolved(tmp_path, numbered(*range(30))))
    before, done, path = contents(tmp_path), len(server.requests), tmp_path / "fetch" / "ledger.sqlite"
    if harm == "not a database":
        path.write_bytes(b"no database" * 100)
    else:
        data = path.read_bytes()
        at = data.index(f"{HOST}/7.jpg".encode()) + (10 if harm == "one URL" else len(f"{HOST}/7.jpg"))
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    fetch(recipe(server), tmp_path)
    assert contents(tmp_path) == before
    asked = [request.path for request in server.requests[done:]]
    assert asked == ["/7.jpg"] if harm != "not a database" else len(asked) == 30


def test_a_full_disk_at_the_start_does_not_advise_to_delete_the_ledger(server: LoopbackServer, tmp_path: Path) -> None:
    resolved(tmp_path, numbered(1))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(DiskError, match=r"ledger\.sqlite.*finished work is kept") as raised:
            fetch(recipe(server), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "delete" not in str(raised.value)
    fetch(recipe(server), tmp_path)
    assert [row["image_status"] for row in outcomes(tmp_path)] == ["ok"]


def test_two_builds_in_one_directory_are_refused(
    server: LoopbackServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builder.database.LOCK_SECONDS", 0.1)
    fetch(recipe(server), resolved(tmp_path, numbered(1)))
    with contextlib.closing(sqlite3.connect(tmp_path / "fetch" / "ledger.sqlite")) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StageError, match="another build is using this file"):
            fetch(recipe(server), tmp_path)


# -- kill -9 ------------------------------------------------------------------------------------------------------

RUN = """
import json, sys
from pathlib import Path
from builder.fetch import fetch
from builder.fetch.shards import damaged_images
from builder.recipe import EsciSettings, FetchSettings, Recipe
limits = FetchSettings(**json.loads(sys.argv[2]))
fetch(Recipe(name="t", version="1", esci=EsciSettings(path="."), fetch=limits), Path(sys.argv[1]))
"""


def start(work: Path, built: Recipe) -> subprocess.Popen[bytes]:
    settings = json.dumps(built.fetch.model_dump())
    return subprocess.Popen([sys.executable, "-c", RUN, str(work), settings], stderr=subprocess.DEVNULL)


def kill_after(process: subprocess.Popen[bytes], requests: int, server: LoopbackServer) -> None:
    while len(server.requests) < requests and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.mark.parametrize("kills", [2, pytest.param(5, marks=pytest.mark.slow)])
def test_killed_downloads_lose_and_double_nothing(tmp_path: Path, kills: int) -> None:
    async def slow(request: Request, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.01)
        await shop(request, writer)

    connections, count = 6, 100 * kills
    with LoopbackServer(slow) as server:
        built = recipe(server, concurrency=connections)
        resolved(tmp_path / "killed", numbered(*range(count)))
        for kill in range(kills):
            kill_after(start(tmp_path / "killed", built), 60 * (kill + 1), server)
        fetch(built, tmp_path / "killed")
        assert len(server.hits()) == count
        assert len(server.requests) - count <= kills * connections  # only what was in flight
        fetch(built, resolved(tmp_path / "calm", numbered(*range(count))))
    assert contents(tmp_path / "killed") == contents(tmp_path / "calm")
    assert len(images(tmp_path / "killed")) == sum(n % 7 != 6 for n in range(count))


DEATHS = """
import os, signal
from builder.fetch.ledger import Ledger

real, calls = Ledger.record, [0]
def record(self, results):
    calls[0] += 1
    if calls[0] == 6 and WHEN == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    real(self, results)
    if calls[0] == 6 and WHEN == "after":
        os.kill(os.getpid(), signal.SIGKILL)
Ledger.record = record
"""


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_kill_beside_a_commit_repeats_only_what_was_in_flight(
    server: LoopbackServer, tmp_path: Path, when: str
) -> None:
    built, work = recipe(server, concurrency=6), resolved(tmp_path / "killed", numbered(*range(60)))
    settings = built.fetch.model_dump_json()
    command = [sys.executable, "-c", f"WHEN = {when!r}\n{DEATHS}\n{RUN}", str(work), settings]
    killed = subprocess.run(command, stderr=subprocess.DEVNULL, check=False)
    assert killed.returncode == -signal.SIGKILL
    fetch(built, work)
    assert len(server.hits()) == 60
    assert len(server.requests) - 60 <= 6
    fetch(built, resolved(tmp_path / "calm", numbered(*range(60))))
    assert contents(work) == contents(tmp_path / "calm")


def test_a_new_build_waits_for_the_decoders_of_a_killed_one(tmp_path: Path) -> None:
    """They hold the lock of the spool, as its writers do: the new build would use the same offsets again."""
    ended = threading.Event()
    with Ledger(tmp_path) as killed:
        left_behind = os.dup(killed.spool)  # as in a decoder process
        os.pwrite(left_behind, b"recorded, and not", 0)
        killed.record([(Outcome(f"{HOST}/1.jpg", "ok", 200, len(b"recorded"), "0" * 64), 0)])

    def end() -> None:
        time.sleep(0.2)
        ended.set()
        os.close(left_behind)

    thread = threading.Thread(target=end)
    thread.start()
    with Ledger(tmp_path) as ledger:
        assert ended.is_set()
        assert os.pread(ledger.spool, 100, 0) == b"recorded"
    thread.join()


def test_bytes_of_the_spool_that_no_record_names_are_ignored(server: LoopbackServer, tmp_path: Path) -> None:
    with Ledger(tmp_path / "a" / "fetch") as ledger:
        offset = ledger.reserve(len(JPEG))
        os.pwrite(ledger.spool, JPEG + b"of a killed run", offset)
        sha256 = hashlib.sha256(JPEG).hexdigest()
        ledger.record([(Outcome(f"{HOST}/7.jpg", "ok", 200, len(JPEG), sha256, 40, 30), offset)])
    for name in ("a", "b"):
        fetch(recipe(server), resolved(tmp_path / name, numbered(7, 8)))
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert server.hits() == {"/7.jpg": 1, "/8.jpg": 2}


KILLER = """
import builder.fetch.ledger as ledger, builder.fetch.shards as shards, builder.fetch.stage as stage
import os, signal
from pathlib import Path

def dying(owner, name, when, nth=1):
    real, calls = getattr(owner, name), [0]
    def wrapped(*args, **kwargs):
        calls[0] += 1
        if when == "before" and calls[0] == nth:
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*args, **kwargs)
        if when == "after" and calls[0] == nth:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    setattr(owner, name, wrapped)

points = {
    "while writing a shard": (shards._Group, "write", "after", 2),
    "before the swap": (ledger.Ledger, "begin_swap", "before"),
    "as the swap begins": (ledger.Ledger, "begin_swap", "after"),
    "between two renames": (shards.Path, "replace", "after", 4),
    "after the renames": (ledger.Ledger, "end_swap", "before"),
    "after the swap": (ledger.Ledger, "end_swap", "after"),
    "before the outcomes": (stage, "_write_outcomes", "before"),
}
dying(*points[POINT])
"""


@pytest.fixture(scope="module")
def changed_urls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LoopbackServer, Path, Path]]:
    """A finished stage whose URLs changed since, and an undisturbed run over the new URLs."""
    folder = tmp_path_factory.mktemp("changed")
    urls = numbered(50, *range(5, 25), 51, *range(3))
    with LoopbackServer(shop) as running:
        fetch(recipe(running), resolved(folder / "before", numbered(*range(25))))
        resolved(folder / "before", urls)
        fetch(recipe(running), resolved(folder / "calm", urls))
        yield running, folder / "before", folder / "calm"


@pytest.mark.parametrize(
    "point",
    [
        "while writing a shard",
        pytest.param("before the swap", marks=pytest.mark.slow),
        pytest.param("as the swap begins", marks=pytest.mark.slow),
        "between two renames",
        "after the renames",
        pytest.param("after the swap", marks=pytest.mark.slow),
        pytest.param("before the outcomes", marks=pytest.mark.slow),
    ],
)
def test_a_kill_at_any_step_of_writing_shards_costs_no_request(
    changed_urls: tuple[LoopbackServer, Path, Path], tmp_path: Path, point: str
) -> None:
    server, before, calm = changed_urls
    work = Path(shutil.copytree(before, tmp_path / "work"))
    settings = json.dumps(recipe(server).fetch.model_dump())
    command = [sys.executable, "-c", f"POINT = {point!r}\n{KILLER}\n{RUN}", str(work), settings]
    killed = subprocess.run(command, stderr=subprocess.DEVNULL, check=False)
    assert killed.returncode == -signal.SIGKILL
    done = len(server.requests)
    fetch(recipe(server), work)
    assert len(server.requests) == done
    assert contents(work) == contents(calm)
    names = [sorted(path.name for path in (folder / "fetch").iterdir()) for folder in (work, calm)]
    assert names[0] == names[1]
