"""Stage embed encodes each content once for each encoder, and says what it reuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from embed_work import FINAL, STORED, contents, encoders, make_work, read
from encoder_fixtures import encoded, make_image, write_clip

from builder.embed import embed, encode
from builder.embed.encode import EncodeTask
from builder.embed.local import versions
from builder.embed.stage import pending
from builder.recipe import EncoderSettings, EsciSettings, FetchSettings, Recipe
from sqid_lib import schemas

ALL = "6 images, 7 texts to encode; 0 reused"
NOTHING = "0 images, 0 texts to encode; 13 reused"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def other_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("other"), seed=1, width=16)


@pytest.fixture
def recipe(clip: Path) -> Recipe:
    encoder = EncoderSettings(model=str(clip), device="cpu", shard_rows=4, image_batch=2, text_batch=2)
    return Recipe(name="tiny", version="1.0.0", esci=EsciSettings(path="esci"), encoder=encoder)


@pytest.fixture
def tasks(monkeypatch: pytest.MonkeyPatch) -> list[EncodeTask]:
    """The tasks that are encoded."""
    done: list[EncodeTask] = []
    real = encode.encode

    def counting(task: EncodeTask, *rest: Any) -> None:
        done.append(task)
        real(task, *rest)

    monkeypatch.setattr("builder.embed.encode.encode", counting)
    return done


def changed(recipe: Recipe, **settings: Any) -> Recipe:
    return recipe.model_copy(update={"encoder": recipe.encoder.model_copy(update=settings)})


def rows(work: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((work / "embed").glob("*")) if path.is_file()}


def test_back_to_an_encoder_used_before(
    recipe: Recipe, other_clip: Path, tmp_path: Path, tasks: list[EncodeTask], capsys: pytest.CaptureFixture[str]
) -> None:
    work, fresh = make_work(tmp_path / "a"), make_work(tmp_path / "b")
    other = changed(recipe, model=str(other_clip))
    embed(recipe, work)
    first = rows(work)
    embed(other, work)
    embed(other, fresh)
    assert rows(work) == rows(fresh)
    assert len(encoders(work)) == 2
    tasks.clear()
    capsys.readouterr()
    assert pending(recipe, work) == NOTHING
    embed(recipe, work)
    assert not tasks
    assert capsys.readouterr().err == f"embed: {NOTHING}\n"  # and no model was loaded
    assert rows(work) == first


@pytest.mark.parametrize("setting", [{"image_batch": 1}, {"text_batch": 1}, {"shard_rows": 3}, {"device": "cpu,cpu"}])
def test_a_setting_of_speed_encodes_nothing(
    recipe: Recipe,
    tmp_path: Path,
    tasks: list[EncodeTask],
    setting: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    work = make_work(tmp_path)
    embed(recipe, work)
    before = read(work, "products"), read(work, "queries")
    tasks.clear()
    embed(changed(recipe, **setting), work)
    assert not tasks
    assert (read(work, "products"), read(work, "queries")) == before


def test_reused_vectors_of_other_settings_are_announced(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    work = make_work(tmp_path)
    embed(recipe, work)
    retitle(work)
    capsys.readouterr()
    embed(changed(recipe, image_batch=1), work)
    message = "embed: 6 of the reused vectors were made with image_batch 2 instead of 1: they may differ"
    assert message in capsys.readouterr().err
    (work / "embed/products-00000.parquet").unlink()
    embed(recipe, work)
    assert "instead of" not in capsys.readouterr().err


def test_one_title_and_one_image_more_are_all_that_is_encoded(
    recipe: Recipe, tmp_path: Path, tasks: list[EncodeTask], capsys: pytest.CaptureFixture[str]
) -> None:
    work = make_work(tmp_path)
    embed(recipe, work)
    before = read(work, "products")
    retitle(work)
    add_image(work, row=1)
    tasks.clear()
    capsys.readouterr()
    embed(recipe, work)
    assert [(task.kind, len(task.items)) for task in tasks] == [("texts", 1), ("images", 1)]
    assert "embed: 1 image, 1 text to encode; 13 reused" in capsys.readouterr().err
    after = read(work, "products")
    assert after["image_status"].to_pylist() == ["ok", "ok", *FINAL[2:]]
    assert after.slice(2).equals(before.slice(2))
    assert after["clip_text_features"][0] != before["clip_text_features"][0]
    assert after["clip_image_features"][1].is_valid


def test_every_path_to_the_same_contents_gives_the_same_bytes_from_the_same_vectors(
    recipe: Recipe, tmp_path: Path
) -> None:
    work = make_work(tmp_path)
    embed(recipe, work)
    whole = contents(work)
    titles = retitle(work)
    embed(recipe, work)
    pq.write_table(titles, work / "sample/products.parquet")
    embed(recipe, work)
    assert {name: data for name, data in contents(work).items() if name in whole} == whole


def retitle(work: Path) -> pa.Table:
    """Change the first title; returns the products as they were."""
    path = work / "sample/products.parquet"
    before = pq.read_table(path)
    titles = ["a new title", *before["product_title"].to_pylist()[1:]]
    pq.write_table(before.set_column(1, "product_title", pa.array(titles, pa.string())), path)
    return before


def add_image(work: Path, row: int) -> None:
    """An image for a product that had none."""
    made = make_work(work / "other", stored=[*STORED[:row], ("ok", encoded(make_image(9))), *STORED[row + 1 :]])
    for path in (made / "fetch").iterdir():
        path.replace(work / "fetch" / path.name)


def test_only_the_limit_of_pixels_tries_again_what_it_caused(
    recipe: Recipe, tmp_path: Path, tasks: list[EncodeTask]
) -> None:
    work = make_work(tmp_path)
    small = recipe.model_copy(update={"fetch": FetchSettings(max_pixels=100)})
    embed(small, work)
    assert "too_many_pixels" in read(work, "products")["image_status"].to_pylist()
    tasks.clear()
    embed(recipe, work)
    assert {task.kind for task in tasks} == {"images"}
    assert read(work, "products")["image_status"].to_pylist() == FINAL


def test_vectors_of_an_earlier_layout_are_named_and_left(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = make_work(tmp_path)
    (work / "embed/items").mkdir(parents=True)
    old = [work / "embed/items/texts-00000.parquet", work / "embed/products-00000.parquet"]
    for path in old:
        pq.write_table(pa.table({"status": ["ok"]}), path)
    embed(recipe, work)
    assert old[0].exists()
    errors = capsys.readouterr().err
    assert f"embed: {work / 'embed/items'} holds vectors of an earlier version, which are not used" in errors
    assert read(work, "products").num_rows == len(FINAL)


def test_vectors_of_other_versions_are_named_and_left(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    work = make_work(tmp_path)
    monkeypatch.setattr("builder.embed.local.versions", lambda *_: versions() | {"pillow": "1.0"})
    monkeypatch.setattr("builder.embed.record.versions", lambda *_: versions() | {"pillow": "1.0"})
    embed(recipe, work)
    old = encoders(work)[0].name
    monkeypatch.undo()
    capsys.readouterr()
    embed(recipe, work)
    errors = capsys.readouterr().err
    assert f"embed: {ALL}" in errors
    assert f"vectors of other versions of its packages are kept and not used: {old}" in errors
    assert len(encoders(work)) == 2


def test_what_would_be_done(recipe: Recipe, tmp_path: Path) -> None:
    work = make_work(tmp_path)
    before = sorted(work.rglob("*"))
    assert pending(recipe, work) == ALL
    assert sorted(work.rglob("*")) == before
    embed(recipe, work)
    assert pending(recipe, work) is None
    (work / "embed/queries-00000.parquet").unlink()
    assert pending(recipe, work) == NOTHING
    (encoders(work)[0] / "texts-00000.parquet").unlink()
    assert pending(recipe, work) == "0 images, 4 texts to encode; 9 reused"


def test_deleted_vectors_are_made_again(recipe: Recipe, tmp_path: Path) -> None:
    work = make_work(tmp_path)
    embed(recipe, work)
    whole = contents(work)
    for path in encoders(work)[0].iterdir():
        path.unlink()
    embed(recipe, work)
    assert contents(work) == whole


@pytest.mark.parametrize(("revision", "found"), [("main", True), ("c" * 40, True), ("v1", False)])
def test_a_branch_that_moved_is_not_followed(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, revision: str, found: bool
) -> None:
    from builder.embed import record as records

    made: Callable[[], dict[str, Any]] = lambda: {"revision": "c" * 40, "width": 4, "linear": "plain"}  # noqa: E731
    on_hub = changed(recipe, model="someone/clip")
    record = records.request(on_hub, ["cpu"]) | made() | {"versions": versions()}
    records.write(tmp_path / records.key(record) / records.NAME, record)
    assert records.find(tmp_path, changed(on_hub, revision=revision), ["cuda:0"]) == (record if found else None)
    assert records.find(tmp_path, changed(on_hub, dtype="bfloat16"), ["cpu"]) is None
    damaged = tmp_path / records.key(record) / records.NAME
    damaged.write_text(json.dumps(record | {"width": 5}))
    assert records.find(tmp_path, on_hub, ["cpu"]) is None


def test_equal_texts_and_images_are_encoded_once(recipe: Recipe, tmp_path: Path, tasks: list[EncodeTask]) -> None:
    embed(recipe, make_work(tmp_path))
    items = [item for task in tasks for item in task.items]
    assert len(items) == len(set(items)) == 13
    assert schemas.OK in {status for status, _ in STORED}
