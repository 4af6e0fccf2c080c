"""Stage embed with images and vectors on an object store: fsspec's in memory."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from embed_work import contents, make_work
from encoder_fixtures import write_clip

from builder.embed import embed, encode
from builder.embed.encode import EncodeTask
from builder.embed.vector_store import VectorStore
from builder.fetch.partition_store import FetchStore
from builder.recipe import EncoderSettings, EsciSettings, Recipe
from sqid_lib.errors import CorruptFileError, DiskError
from sqid_lib.object_store import ObjectStore, _filesystem

NOTHING = "0 images, 0 texts to encode; 13 reused"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    clip = write_clip(tmp_path_factory.mktemp("clip"))
    encoder = EncoderSettings(model=str(clip), device="cpu", shard_rows=4, image_batch=2, text_batch=2)
    return Recipe(name="tiny", version="1.0.0", esci=EsciSettings(path="esci"), encoder=encoder)


pytestmark = pytest.mark.usefixtures("one_thread")


def driver(work: Path, store: ObjectStore) -> Path:
    """The disk of a driver: what sample and fetch left there, with the images on the store alone."""
    make_work(work)
    images = FetchStore(store, work, scratch=False)
    images.announce([work / "fetch"])
    with images.opened(work / "fetch", "urls"):
        pass
    for path in (work / "fetch").glob("images-*"):
        path.unlink()
    return work


@pytest.fixture(scope="module")
def built(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """A driver that has embedded, and all objects then."""
    store = ObjectStore(f"memory://{uuid.uuid4().hex}")
    work = driver(tmp_path_factory.mktemp("built") / "work", store)
    embed(recipe, work, store=store)
    filesystem, root = _filesystem(store.url)[0].handler.fs, store.url.removeprefix("memory:/")
    return work, {name.removeprefix(f"{root}/"): filesystem.cat(name) for name in filesystem.find(root)}


@pytest.fixture
def store(built: tuple[Path, dict[str, bytes]]) -> ObjectStore:
    """A store with these objects."""
    store = ObjectStore(f"memory://{uuid.uuid4().hex}")
    for name, data in built[1].items():
        store.write(name, data)
    return store


@pytest.fixture
def tasks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tasks that are encoded."""
    done: list[str] = []
    real = encode.encode

    def counting(task: EncodeTask, *rest: Any) -> None:
        done.append(str(task))
        real(task, *rest)

    monkeypatch.setattr("builder.embed.encode.encode", counting)
    return done


def stored_name(store_of: dict[str, bytes], file: str) -> str:
    (name,) = (name for name in store_of if name.startswith("embed/vectors/") and name.endswith(f"/{file}"))
    return name


def test_vectors_are_those_of_a_disk(recipe: Recipe, built: tuple[Path, dict[str, bytes]], tmp_path: Path) -> None:
    embed(recipe, make_work(tmp_path / "disk"))
    assert contents(built[0]) == contents(tmp_path / "disk")


def test_a_driver_with_an_empty_disk_reuses_them(
    recipe: Recipe,
    store: ObjectStore,
    built: tuple[Path, dict[str, bytes]],
    tmp_path: Path,
    tasks: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    second = driver(tmp_path / "second", store)
    embed(recipe, second, store=store)
    assert capsys.readouterr().err == f"embed: {NOTHING}\n"  # and no model was loaded
    assert not tasks
    assert contents(second) == contents(built[0])


def test_what_was_not_stored_before_a_kill_is_made_again_and_nothing_else(
    recipe: Recipe, store: ObjectStore, built: tuple[Path, dict[str, bytes]], tmp_path: Path, tasks: list[str]
) -> None:
    name = stored_name(built[1], "images-00001.parquet")
    whole = store.read(name)
    store.remove(name)
    second = driver(tmp_path / "second", store)
    embed(recipe, second, store=store)
    assert tasks == ["images-00001.parquet"]
    assert store.read(name) == whole
    store.remove(name)
    for path in (second / "embed").glob("*.parquet"):
        path.unlink()
    embed(recipe, second, store=store)  # its own disk has the file: it goes to the store
    assert len(tasks) == 1
    assert store.read(name) == whole


def test_damaged_objects_alone_are_made_again(
    recipe: Recipe, store: ObjectStore, built: tuple[Path, dict[str, bytes]], tmp_path: Path, tasks: list[str]
) -> None:
    files = ["images-00000.parquet", "texts-00000.parquet"]
    cut, flipped = (stored_name(built[1], file) for file in files)
    store.write(cut, built[1][cut][:-10])
    store.write(flipped, built[1][flipped].replace(built[1][flipped][40:60], bytes(20)))
    second = driver(tmp_path / "second", store)
    embed(recipe, second, store=store)
    assert sorted(tasks) == files
    assert [store.read(name) for name in (cut, flipped)] == [built[1][name] for name in (cut, flipped)]
    assert contents(second) == contents(built[0])


def test_a_store_that_fails_ends_the_stage(
    recipe: Recipe, store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: object) -> None:
        raise DiskError("the object store failed: gone")

    second = driver(tmp_path / "second", store)
    monkeypatch.setattr(ObjectStore, "get", lost)
    with pytest.raises(DiskError, match="gone"):
        embed(recipe, second, store=store)


def test_a_worker_elsewhere_stores_its_file_and_does_not_make_it_twice(store: ObjectStore, tmp_path: Path) -> None:
    elsewhere = VectorStore(store, tmp_path, scratch=True)
    wanted = tmp_path / "embed/vectors/key/texts-00000.parquet"
    with elsewhere.placed(wanted) as path:
        assert path != wanted
        path.write_bytes(b"vectors")
    assert store.read("embed/vectors/key/texts-00000.parquet") == b"vectors"
    with elsewhere.placed(wanted) as path:
        assert path.read_bytes() == b"vectors"
    assert not wanted.exists()


def test_a_damaged_list_of_encoders_is_named(recipe: Recipe, store: ObjectStore, tmp_path: Path) -> None:
    work = driver(tmp_path / "work", store)
    store.write("embed/vectors/encoders.json", b"[1")
    with pytest.raises(CorruptFileError, match=r"encoders\.json: is damaged"):
        embed(recipe, work, store=store)
