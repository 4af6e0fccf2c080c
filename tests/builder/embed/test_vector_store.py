"""Stage embed with images and vectors on an object store: fsspec's in memory."""

from __future__ import annotations

import uuid
from collections.abc import Callable
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
from sqid_lib.object_store import ObjectStore

NOTHING = "0 images, 0 texts to encode; 13 reused"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    clip = write_clip(tmp_path_factory.mktemp("clip"))
    encoder = EncoderSettings(model=str(clip), device="cpu", shard_rows=4, image_batch=2, text_batch=2)
    return Recipe(name="tiny", version="1.0.0", esci=EsciSettings(path="esci"), encoder=encoder)


@pytest.fixture
def store() -> ObjectStore:
    return ObjectStore(f"memory://{uuid.uuid4().hex}")


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


@pytest.fixture
def driver(tmp_path: Path, store: ObjectStore) -> Callable[[str], Path]:
    """Makes the disk of a driver: what sample and fetch left there, with the images on the store alone."""

    def make(name: str) -> Path:
        work = make_work(tmp_path / name)
        images = FetchStore(store, work, scratch=False)
        images.announce([work / "fetch"])
        with images.opened(work / "fetch", name):
            pass
        for path in (work / "fetch").glob("images-*"):
            path.unlink()
        return work

    return make


VECTORS = ["images-00000", "images-00001", "texts-00000", "texts-00001"]


def test_vectors_are_those_of_a_disk_and_a_driver_with_an_empty_disk_reuses_them(
    recipe: Recipe,
    store: ObjectStore,
    driver: Callable[[str], Path],
    tmp_path: Path,
    tasks: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    disk, first = make_work(tmp_path / "disk"), driver("first")
    embed(recipe, disk)
    embed(recipe, first, store=store)
    assert contents(first) == contents(disk)
    assert sorted(tasks) == sorted(f"{name}.parquet" for name in VECTORS * 2)
    tasks.clear()
    (tmp_path / "second/fetch").mkdir(parents=True)
    second = tmp_path / "second"
    (first / "sample").rename(second / "sample")
    (first / "fetch/outcomes.parquet").rename(second / "fetch/outcomes.parquet")
    capsys.readouterr()
    embed(recipe, second, store=store)
    assert capsys.readouterr().err == f"embed: {NOTHING}\n"  # and no model was loaded
    assert not tasks
    assert contents(second) == contents(disk)


def test_after_a_kill_only_the_file_in_progress_is_made_again(
    recipe: Recipe, store: ObjectStore, driver: Callable[[str], Path], tasks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ObjectStore.put

    def killed(self: ObjectStore, path: Path, name: str) -> None:
        if name.endswith("images-00001.parquet"):
            raise DiskError("killed")
        real(self, path, name)

    first = driver("first")
    with monkeypatch.context() as patch:
        patch.setattr(ObjectStore, "put", killed)
        with pytest.raises(DiskError, match="killed"):
            embed(recipe, first, store=store)
    assert len(tasks) == 4
    tasks.clear()
    embed(recipe, driver("second"), store=store)
    assert tasks == ["images-00001.parquet"]
    tasks.clear()
    embed(recipe, first, store=store)  # its own disk has the file: it goes to the store
    assert not tasks


@pytest.mark.parametrize("cut", [-10, 0])
def test_a_damaged_object_alone_is_made_again(
    recipe: Recipe, store: ObjectStore, driver: Callable[[str], Path], tasks: list[str], cut: int
) -> None:
    first = driver("first")
    embed(recipe, first, store=store)
    (file,) = (first / "embed/vectors").glob("*/texts-00000.parquet")
    name, whole = file.relative_to(first).as_posix(), file.read_bytes()
    tasks.clear()
    store.write(name, whole[:cut] if cut else whole.replace(whole[40:60], bytes(20)))
    second = driver("second")
    embed(recipe, second, store=store)
    assert tasks == ["texts-00000.parquet"]
    assert store.read(name) == whole
    assert contents(second) == contents(first)


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


def test_a_damaged_list_of_encoders_is_named(recipe: Recipe, store: ObjectStore, driver: Callable[[str], Path]) -> None:
    work = driver("first")
    store.write("embed/vectors/encoders.json", b"[1")
    with pytest.raises(CorruptFileError, match=r"encoders\.json: is damaged"):
        embed(recipe, work, store=store)
