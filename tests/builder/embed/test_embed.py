"""builder.embed: shards that are exactly CLIP, kept when finished, redone when stale."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import pickle
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from embed_work import FINAL, PRODUCTS, STORED, contents, copy_vectors, encoders, flip_a_bit, make_work, read, title
from encoder_fixtures import encoded, make_image, write_clip

from builder.embed import embed, encode
from builder.recipe import EncoderSettings, EsciSettings, FetchSettings, Recipe
from sqid_lib import schemas
from sqid_lib.encoders import load_encoder
from sqid_lib.errors import CorruptFileError, DiskError, EncoderError, IntegrityError, UsageError
from sqid_lib.images import decode


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def recipe(clip: Path) -> Recipe:
    encoder = EncoderSettings(model=str(clip), device="cpu", shard_rows=4, image_batch=2, text_batch=2)
    return Recipe(name="tiny", version="1.0.0", esci=EsciSettings(path="esci"), encoder=encoder)


def test_an_item_that_ends_its_workers_is_given_up(recipe: Recipe, tmp_path: Path) -> None:
    work = make_work(tmp_path)
    embed(recipe, work)
    folder = encoders(work)[0]
    record = json.loads((folder / "encoder.json").read_text())
    images = [row["sha256"] for row in pq.read_table(work / "fetch/images-00001.parquet").to_pylist()]
    digests = b"".join(map(bytes.fromhex, images))
    task = encode.EncodeTask(folder / "images-00009.parquet", "images", images, digests, {})
    with encode.OpenEncoder(recipe, work, record)("cpu") as complete:
        ticks: list[int] = []
        complete(task.only(range(1)), lambda units, failed=0: ticks.append(units))
        assert not task.path.exists() and not ticks
        complete(task.without([0]), lambda units, failed=0: ticks.append(units))
        assert sum(ticks) == len(images)
        made = pq.read_table(task.path)
        assert made["status"].to_pylist()[0] == "error" and "error" not in made["status"].to_pylist()[1:]
        assert not any(made["vector"][0].as_py()) and any(made["vector"][2].as_py())
        task.path.unlink()
        complete(task.without(range(len(images))), lambda units, failed=0: None)
        assert set(pq.read_table(task.path)["status"].to_pylist()) == {"error"}
        text = replace(task, kind="texts", items=["shoe", "bad"], path=folder / "texts-00009.parquet")
        with pytest.raises(EncoderError, match=r"a text ends the workers that encode it.*'bad'"):
            complete(text.without([1]), lambda units, failed=0: None)


@pytest.mark.parametrize(("truncated", "status"), [("keep", "ok"), ("refuse", "truncated")])
def test_a_truncated_image_that_fetch_kept_is_embedded(
    recipe: Recipe, tmp_path: Path, truncated: Any, status: str
) -> None:
    whole = encoded(make_image(2), "JPEG")
    work = make_work(tmp_path, stored=[("ok", whole), ("ok", whole[:-2]), *STORED[2:]])
    embed(recipe.model_copy(update={"fetch": FetchSettings(truncated=truncated)}), work)
    products = read(work, "products")
    assert products["image_status"][1].as_py() == status
    vectors = products["clip_image_features"].to_pylist()
    assert vectors[1] is None if status == "truncated" else np.allclose(vectors[1], vectors[0], rtol=1e-5, atol=1e-6)


def test_a_catalogue_may_have_no_queries(recipe: Recipe, tmp_path: Path) -> None:
    work = make_work(tmp_path)
    pq.write_table(schemas.SAMPLED_QUERIES_SCHEMA.empty_table(), work / "sample/queries.parquet")
    embed(recipe, work)
    assert read(work, "products").num_rows == PRODUCTS
    assert not list((work / "embed").glob("queries-*"))
    before = contents(work)
    embed(recipe, work)
    assert contents(work) == before


def test_rows_are_clip(recipe: Recipe, clip: Path, tmp_path: Path) -> None:
    work = make_work(tmp_path)
    embed(recipe, work)
    vectors = ["encoder.json", *(f"{kind}-0000{n}.parquet" for kind in ("images", "texts") for n in (0, 1))]
    rows = ["products-00000.parquet", "products-00001.parquet", "products-00002.parquet", "queries-00000.parquet"]
    home = encoders(work)[0].relative_to(work / "embed")
    assert [*contents(work)] == ["encoder.json", *rows, *(str(home / name) for name in vectors)]
    products, queries, encoder = read(work, "products"), read(work, "queries"), load_encoder(str(clip))
    assert products["product_id"].to_pylist() == [f"P{row:03d}" for row in range(PRODUCTS)]
    assert products["image_status"].to_pylist() == FINAL
    assert products.schema.field("clip_text_features").type == pa.list_(pa.float32(), 32)
    for row in range(PRODUCTS):
        text = encoder.encode_text([title(row) or ""])[0]
        assert np.allclose(products["clip_text_features"][row].as_py(), text, rtol=1e-5, atol=1e-6)
        vector, data = products["clip_image_features"][row].as_py(), STORED[row][1]
        assert (vector is None) == (FINAL[row] not in ("ok", "generic"))
        if vector is not None and data is not None:
            assert np.allclose(vector, encoder.encode_images([decode(data)])[0], rtol=1e-5, atol=1e-6)
    assert queries["query_id"].to_pylist() == [0, 7, 14, 21]
    assert queries["clip_text_features"][0] == queries["clip_text_features"][3]  # one text, one vector
    record = json.loads((work / "embed/encoder.json").read_text())
    assert (record["width"], record["revision"], record["dtype"]) == (32, encoder.revision, "float32")


def test_same_inputs_same_bytes(recipe: Recipe, tmp_path: Path) -> None:
    first, second = make_work(tmp_path / "a"), make_work(tmp_path / "b")
    embed(recipe, first)
    embed(recipe, second)
    assert contents(first) == contents(second)


def test_only_what_is_not_finished_is_repeated(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = make_work(tmp_path)
    embed(recipe, work)
    whole = contents(work)
    rows, vectors = work / "embed", encoders(work)[0]
    kept = [vectors / "texts-00000.parquet", vectors / "images-00001.parquet", rows / "products-00000.parquet"]
    times = [path.stat().st_mtime_ns for path in kept]
    (vectors / "texts-00001.parquet").unlink()
    (rows / "products-00001.parquet").unlink()
    for path in (vectors / "images-00000.parquet", rows / "products-00002.parquet"):
        flip_a_bit(path)
    (rows / "queries-00000.parquet").write_bytes(b"PAR1")
    capsys.readouterr()
    embed(recipe, work)
    assert contents(work) == whole
    assert [path.stat().st_mtime_ns for path in kept] == times
    damaged = "products-00002.parquet, queries-00000.parquet, images-00000.parquet"
    assert f"embed: damaged or of an earlier version, made again: {damaged} in " in capsys.readouterr().err


def test_finished_work_needs_no_model(clip: Path, recipe: Recipe, tmp_path: Path, monkeypatch: Any) -> None:
    work = make_work(tmp_path)
    embed(recipe, work)
    whole = contents(work)
    monkeypatch.setattr("builder.embed.encode.Local", None)
    embed(recipe, work)
    assert contents(work) == whole


@pytest.mark.parametrize("record", ["", "{", "[]", '{"versions": 1}', None])
def test_a_damaged_record_is_made_again(recipe: Recipe, tmp_path: Path, record: str | None) -> None:
    work = make_work(tmp_path)
    embed(recipe, work)
    whole = contents(work)
    for path in (work / "embed/encoder.json", encoders(work)[0] / "encoder.json"):
        path.write_text(path.read_text().replace("float32", "bfloat16") if record is None else record)
    embed(recipe, work)
    assert contents(work) == whole


def test_no_images_at_all(recipe: Recipe, tmp_path: Path) -> None:
    work = make_work(tmp_path, stored=[("missing", None)] * PRODUCTS)
    embed(recipe, work)
    products = read(work, "products")
    assert products["clip_image_features"].null_count == PRODUCTS
    assert products["image_status"].to_pylist() == ["missing"] * PRODUCTS


def test_supplementary_products_on_request(recipe: Recipe, tmp_path: Path) -> None:
    work = make_work(tmp_path, supp=5)
    embed(recipe, work)
    assert not list((work / "embed").glob("supp-*"))
    embed(recipe.model_copy(update={"selection": replace(recipe.selection, embed_supp=True)}), work)
    assert read(work, "supp")["product_id"].to_pylist() == [f"P{row:03d}" for row in range(PRODUCTS, PRODUCTS + 5)]


def test_killed_and_run_again_gives_the_same_bytes(recipe: Recipe, tmp_path: Path) -> None:
    import torch

    work, undisturbed = make_work(tmp_path / "a"), make_work(tmp_path / "b")
    embed(recipe, undisturbed)
    whole = contents(undisturbed)
    # killed between writing the third file and giving it its name
    code = f"""
import os, signal
from pathlib import Path
from sqid_lib import files as atomic
from builder.embed import embed, encode
from builder.recipe import EncoderSettings, EsciSettings, Recipe
calls = []
sync = atomic.sync
def dying(path):
    calls.append(path)
    if len(calls) == 5:  # a file, then its folder
        os.kill(os.getpid(), signal.SIGKILL)
    sync(path)
atomic.sync = dying
encoder = EncoderSettings(**{vars(recipe.encoder)!r})
embed(Recipe(name="tiny", version="1.0.0", esci=EsciSettings(path="esci"), encoder=encoder), Path({str(work)!r}))
"""
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}  # other threads, other last bits
    process = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=False)
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()
    assert any(name.endswith(".part") for name in contents(work))
    finished = {f"vectors/{encoders(work)[0].name}/{name}" for name in ("encoder.json", "texts-00000.parquet")}
    assert finished < set(contents(work)) < {*whole, *contents(work)}
    embed(recipe, work)
    assert contents(work) == whole


@pytest.mark.parametrize("kept", ["texts-*", pytest.param("none", marks=pytest.mark.slow)])
def test_several_devices_give_the_same_rows(recipe: Recipe, tmp_path: Path, kept: str) -> None:
    one, two = make_work(tmp_path / "a"), make_work(tmp_path / "b")
    embed(recipe, one)
    copy_vectors(one, two, kept)
    embed(recipe.model_copy(update={"encoder": recipe.encoder.model_copy(update={"device": "cpu,cpu"})}), two)
    for part in ("products", "queries"):
        ours, theirs = read(one, part), read(two, part)
        assert ours.drop_columns(vectors_of(ours)).equals(theirs.drop_columns(vectors_of(ours)))
        for column in vectors_of(ours):
            for a, b in zip(ours[column].to_pylist(), theirs[column].to_pylist(), strict=True):
                assert (a is None) == (b is None)
                assert a is None or np.allclose(a, b, rtol=1e-5, atol=1e-6)


def vectors_of(table: pa.Table) -> list[str]:
    return [name for name in table.column_names if name in schemas.VECTOR_COLUMNS]


def test_a_vector_that_is_not_finite_is_a_status(recipe: Recipe, tmp_path: Path) -> None:
    poison(model := write_clip(tmp_path / "model"), "visual_projection.weight")
    work = make_work(tmp_path / "work")
    embed(recipe.model_copy(update={"encoder": recipe.encoder.model_copy(update={"model": str(model)})}), work)
    products = read(work, "products")
    expected = ["non_finite" if status in ("ok", "generic") else status for status in FINAL]
    assert products["image_status"].to_pylist() == expected
    assert products["clip_image_features"].null_count == PRODUCTS
    assert products["clip_text_features"].null_count == 0


def test_a_text_vector_that_is_not_finite_stops_the_run(recipe: Recipe, tmp_path: Path) -> None:
    poison(model := write_clip(tmp_path / "model"), "text_projection.weight")
    work = make_work(tmp_path / "work")
    with pytest.raises(EncoderError, match=r"vector of a text is not finite.*float32"):
        embed(recipe.model_copy(update={"encoder": recipe.encoder.model_copy(update={"model": str(model)})}), work)
    assert not list((work / "embed").glob("products-*"))


def poison(model: Path, name: str) -> None:
    from safetensors.numpy import load_file, save_file

    weights = load_file(model / "model.safetensors")
    weights[name][0, 0] = np.nan
    save_file(weights, model / "model.safetensors", {"format": "pt"})


def test_an_image_too_long_to_enlarge(recipe: Recipe, tmp_path: Path) -> None:
    work = make_work(tmp_path, stored=[("ok", encoded(make_image(1, (1, 600)))), *STORED[1:]])
    embed(recipe, work)
    assert read(work, "products")["image_status"].to_pylist() == ["too_many_pixels", *FINAL[1:]]


@pytest.mark.parametrize(("code", "words"), [(errno.ENOSPC, "no space left.*kept"), (errno.EIO, "cannot be written")])
def test_the_disk_fails(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, words: str) -> None:
    work = make_work(tmp_path)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(DiskError, match=words):
        embed(recipe, work)
    assert [*contents(work)] == [f"vectors/{encoders(work)[0].name}/encoder.json"]


def test_the_model_is_opened_once_in_this_process_and_by_each_other_one(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    real = encode.open_backend

    def counting(recipe: Recipe, work: Path, record: dict[str, Any], place: str, store: None) -> encode.Backend:
        opened.append(place)
        return real(recipe, work, record, place, store)

    monkeypatch.setattr("builder.embed.stage.open_backend", counting)
    monkeypatch.setattr("builder.embed.encode.open_backend", counting)
    embed(recipe, make_work(tmp_path))
    assert opened == ["cpu"]
    worker = encode.OpenEncoder(
        recipe, tmp_path, {}, real(recipe, tmp_path, {"revision": "", "linear": "plain"}, "cpu")
    )
    assert worker.backend is not None
    assert pickle.loads(pickle.dumps(worker)) == encode.OpenEncoder(recipe, tmp_path, {})


def test_progress_counts_batches(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    units: list[int] = []

    class Bar:
        def update(self, n: int = 1, /) -> None:
            units.append(n)

    monkeypatch.setattr("builder.embed.stage.progress", lambda *_, **__: contextlib.nullcontext(Bar()))
    embed(recipe, make_work(tmp_path))
    files = [pq.read_metadata(path).num_rows for path in sorted(encoders(tmp_path)[0].glob("*.parquet"))]
    assert sum(units) == sum(files)
    assert len(units) > len(files)


def test_progress_is_logged(recipe: Recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="builder.embed"):
        embed(recipe, make_work(tmp_path))
    assert "images-00001.parquet" in caplog.text


def test_an_image_that_fetch_did_not_store(recipe: Recipe, tmp_path: Path) -> None:
    work = make_work(tmp_path)
    (work / "fetch/images-00001.parquet").unlink()
    with pytest.raises(IntegrityError, match=r"not stored.*fetch stage again"):
        embed(recipe, work)


def test_damaged_images_file(recipe: Recipe, tmp_path: Path) -> None:
    work = make_work(tmp_path)
    path = work / "fetch/images-00001.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CorruptFileError, match=r"images-00001\.parquet"):
        embed(recipe, work)


def test_an_image_with_a_flipped_bit(recipe: Recipe, tmp_path: Path) -> None:
    work = make_work(tmp_path)
    path = work / "fetch/images-00001.parquet"
    table = pq.read_table(path)
    images = table["image"].to_pylist()
    images[0] = images[0][:50] + bytes([images[0][50] ^ 1]) + images[0][51:]
    pq.write_table(table.set_column(1, "image", pa.array(images, pa.binary())), path)
    with pytest.raises(CorruptFileError, match=r"images-00001\.parquet: an image is not that of its sha256.*fetch"):
        embed(recipe, work)


def test_outcomes_of_other_products(recipe: Recipe, tmp_path: Path) -> None:
    work = make_work(tmp_path)
    outcomes = pq.read_table(work / "fetch/outcomes.parquet")
    pq.write_table(outcomes.take(list(range(1, PRODUCTS))), work / "fetch/outcomes.parquet")
    with pytest.raises(IntegrityError, match="not those of"):
        embed(recipe, work)


def test_unknown_engine(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown engine"):
        embed(recipe, tmp_path, engine="steam")
