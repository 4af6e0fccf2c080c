"""Stage fetch with its images on an object store: fsspec's in memory, which any "machine" of this process sees."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from fetch_fixtures import resolved
from hostile_server import STATIC, LoopbackServer, Request, answer, jpeg

from builder.engines import Work
from builder.fetch import fetch, outcome_log, partition
from builder.fetch.local_images import local_images
from builder.fetch.partition import Partition, open_downloader
from builder.fetch.partition_store import FetchStore
from builder.recipe import EsciSettings, FetchSettings, Recipe
from sqid_lib.errors import CorruptFileError, DiskError, StageError
from sqid_lib.object_store import ObjectStore, _filesystem
from sqid_lib.stored_images import StoredImages

HOST = "https://images.example"
URLS = [f"{HOST}/{number}.jpg" for number in range(12)]  # 6 is not there


async def shop(request: Request, writer: asyncio.StreamWriter) -> None:
    """/N.jpg is an image of its own; every seventh is not there."""
    number = int(request.path.strip("/").removesuffix(".jpg"))
    writer.write(STATIC["/404"] if number % 7 == 6 else answer(jpeg(number)))


@pytest.fixture(scope="module")
def running() -> Iterator[LoopbackServer]:
    with LoopbackServer(shop) as running:
        yield running


@pytest.fixture
def server(running: LoopbackServer) -> LoopbackServer:
    running.requests.clear()
    return running


@pytest.fixture(scope="module")
def recipe(running: LoopbackServer) -> Recipe:
    server = running
    limits = FetchSettings(
        mirrors={f"{HOST}/": f"{server.origin}/"}, allow_hosts=(f"127.0.0.1:{server.port}",), shard_rows=4
    )
    return Recipe(name="t", version="1", esci=EsciSettings(path="."), fetch=limits)


@pytest.fixture
def store() -> ObjectStore:
    return ObjectStore(f"memory://{uuid.uuid4().hex}")


@pytest.fixture(scope="module")
def whole(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The objects after all URLs were fetched."""
    store = ObjectStore(f"memory://{uuid.uuid4().hex}")
    assert fetch(recipe, resolved(tmp_path_factory.mktemp("fetched"), *URLS), store=store) == 12
    return objects(store)


@pytest.fixture
def fetched(store: ObjectStore, whole: dict[str, bytes]) -> ObjectStore:
    for name, data in whole.items():
        store.write(name, data)
    return store


@pytest.fixture(scope="module")
def disk(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same on a disk."""
    work = resolved(tmp_path_factory.mktemp("disk"), *URLS)
    fetch(recipe, work)
    return work


def objects(store: ObjectStore) -> dict[str, bytes]:
    """What the store holds, by listing it, which the code must not."""
    filesystem = _filesystem(store.url)[0].handler.fs
    root = store.url.removeprefix("memory:/")
    return {name.removeprefix(f"{root}/"): filesystem.cat(name) for name in filesystem.find(root)}


def requested(server: LoopbackServer) -> set[str]:
    """The paths asked for since the last call; none twice."""
    hits = server.hits()
    assert set(hits.values()) <= {1}
    server.requests.clear()
    return set(hits)


def made(work: Path) -> bytes:
    return (work / "fetch/outcomes.parquet").read_bytes()


ALL = {f"/{number}.jpg" for number in range(12)}
SHARDS = [f"fetch/images-0000{number}.parquet" for number in range(3)]


def test_the_objects_are_the_files_of_a_disk(whole: dict[str, bytes], disk: Path) -> None:
    others = {"fetch/files.json", "fetch/folders.json", "fetch/index.parquet", "fetch/ledger.sqlite"}
    assert whole.keys() == {*SHARDS, *others}
    assert [whole[name] for name in SHARDS] == [(disk / name).read_bytes() for name in SHARDS]


def test_a_driver_with_an_empty_disk_goes_on(
    recipe: Recipe,
    server: LoopbackServer,
    fetched: ObjectStore,
    whole: dict[str, bytes],
    disk: Path,
    tmp_path: Path,
) -> None:
    work = resolved(tmp_path, *URLS)
    assert fetch(recipe, work, store=fetched) == 0
    assert not requested(server)
    assert made(work) == made(disk)
    assert not list((work / "fetch").glob("images-*"))  # nothing needs them there
    assert fetch(recipe, work, ["not_found"], store=fetched) == 1
    assert requested(server) == {"/6.jpg"}
    assert objects(fetched)[SHARDS[1]] == whole[SHARDS[1]]


def test_images_are_read_from_the_objects(fetched: ObjectStore, disk: Path) -> None:
    store = fetched
    names = pq.read_table(disk / "fetch/outcomes.parquet")["sha256"].drop_null().to_pylist()
    images = StoredImages.of_store(store)
    images.check(names)
    expected = [jpeg(number) for number in range(12) if number != 6]
    assert list(images.read(names)) == expected
    assert [images.read_at(at) for at in images.positions(names[-2:]).tolist()] == expected[-2:]
    data = objects(store)[SHARDS[0]]
    store.write(SHARDS[0], data.replace(jpeg(1)[-30:], bytes(30)))
    with pytest.raises(CorruptFileError, match=r"images-00000\.parquet: an image is not .*Remove this object"):
        list(StoredImages.of_store(store).read(names))


def test_what_was_logged_before_a_kill_is_not_requested_again(
    recipe: Recipe,
    server: LoopbackServer,
    store: ObjectStore,
    disk: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def killed(*_: object) -> bool:
        raise StageError("killed")

    first, second = resolved(tmp_path / "first", *URLS), resolved(tmp_path / "second", *URLS)
    with monkeypatch.context() as patch:
        patch.setattr(partition, "_assemble", killed)
        patch.setattr(outcome_log, "_LOG_SECONDS", 0.0)
        with pytest.raises(StageError, match="killed"):
            fetch(recipe, first, store=store)
    logs = [name for name in objects(store) if "log-" in name]
    assert logs
    assert json.loads(objects(store)["fetch/files.json"])["logs"] == len(logs)
    requested(server)
    fetch(recipe, second, store=store)
    assert not requested(server)
    assert made(second) == made(disk)
    stored = objects(store)
    assert [stored[name] for name in SHARDS] == [(disk / name).read_bytes() for name in SHARDS]
    assert not [name for name in stored if "log-" in name]


def test_the_images_of_lost_objects_alone_are_requested_again(
    recipe: Recipe,
    server: LoopbackServer,
    fetched: ObjectStore,
    whole: dict[str, bytes],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fetched.remove(SHARDS[1])
    fetched.write(SHARDS[2], whole[SHARDS[2]][:-100])
    fetch(recipe, resolved(tmp_path, *URLS), store=fetched)
    assert "objects in memory://" in capsys.readouterr().err
    assert requested(server) == {f"/{number}.jpg" for number in (4, 5, 7, 8, 9, 10, 11)}
    assert {name: objects(fetched)[name] for name in SHARDS} == {name: whole[name] for name in SHARDS}


def test_a_partition_without_images_is_no_damage(
    recipe: Recipe, server: LoopbackServer, store: ObjectStore, tmp_path: Path
) -> None:
    fetch(recipe, resolved(tmp_path, f"{HOST}/6.jpg"), store=store)
    StoredImages.of_store(store).check([])
    fetch(recipe, resolved(tmp_path, f"{HOST}/6.jpg"), store=store)
    assert requested(server) == {"/6.jpg"}


@contextmanager
def worker_elsewhere(recipe: Recipe, store: ObjectStore, driver: Path) -> Iterator[tuple[Work[Partition], Partition]]:
    """A worker on another machine, and the partition of all URLs."""
    elsewhere = FetchStore(store, driver, scratch=True)
    elsewhere.announce([driver / "fetch"])
    with open_downloader(recipe.fetch, local_images(recipe, driver), "cpu", store=elsewhere) as work:
        yield work, Partition(driver / "fetch", URLS)


def test_a_worker_elsewhere_leaves_nothing_on_the_disk_of_the_driver(
    recipe: Recipe, server: LoopbackServer, store: ObjectStore, tmp_path: Path
) -> None:
    driver = resolved(tmp_path, *URLS)
    for _ in range(2):  # done again, it finds everything done
        with worker_elsewhere(recipe, store, driver) as (work, task):
            work(task, lambda *_: None)
    assert requested(server) == ALL
    assert not (driver / "fetch").exists()
    assert fetch(recipe, driver, store=store) == 0


def test_a_trial_keeps_outcomes_and_no_shards_and_what_was_given_up_has_a_status(
    recipe: Recipe, server: LoopbackServer, store: ObjectStore, tmp_path: Path
) -> None:
    driver = resolved(tmp_path, *URLS)
    with worker_elsewhere(recipe, store, driver) as (work, task):
        work(task.only(range(3)), lambda *_: None)
        assert len(requested(server)) == 3
        assert json.loads(objects(store)["fetch/files.json"])["files"] == {}
        work(task.without([4]), lambda *_: None)
    assert len(requested(server)) == len(ALL) - 4
    fetch(recipe, driver, store=store)
    outcomes = pq.read_table(driver / "fetch/outcomes.parquet").to_pylist()
    assert [row["image_url"] for row in outcomes if "ended the workers" in (row["detail"] or "")] == [URLS[4]]
    assert not requested(server)


def test_a_store_lost_in_the_middle_ends_the_stage_and_it_goes_on(
    recipe: Recipe, server: LoopbackServer, store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(_: ObjectStore, name: str, *__: object) -> None:
        raise DiskError("the object store failed: gone", where=name)

    with monkeypatch.context() as patch:
        patch.setattr(ObjectStore, "put", lost)
        with pytest.raises(DiskError, match="the object store failed: gone"):
            fetch(recipe, resolved(tmp_path / "first", *URLS), store=store)
    requested(server)
    fetch(recipe, resolved(tmp_path / "second", *URLS), store=store)
    assert not requested(server)  # the log has all of it


def test_a_damaged_record_of_a_partition_is_named(recipe: Recipe, fetched: ObjectStore, tmp_path: Path) -> None:
    fetched.write("fetch/files.json", b"{}")
    with pytest.raises(CorruptFileError, match=r"fetch/files\.json: is damaged"):
        fetch(recipe, resolved(tmp_path, *URLS), store=fetched)
