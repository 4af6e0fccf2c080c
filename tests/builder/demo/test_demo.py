"""The tiny CLIP, its training, and the whole demo: shop to ranking table, then once more with nothing left to do."""

from __future__ import annotations

import contextlib
import io
import shlex
import shutil
import sqlite3
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import datasets
import filelock
import numpy as np
import pyarrow.parquet as pq
import torch
from transformers import AutoModel, AutoProcessor, CLIPModel, CLIPProcessor

from builder import demo, pipeline, recipe, times
from builder.cli import main as sqid
from builder.demo import __main__ as command
from builder.demo import train_tiny_clip as training
from builder.demo.catalogue import KINDS, Goods, Look, goods, held_out, looks
from builder.demo.drawings import draw
from builder.demo.serve import usual_address
from builder.demo.shop import COUNTS
from sqid_lib import EmbeddingStore, evaluation, schemas

SEED = 1  # a shop other than the one people see first


pytestmark = pytest.mark.usefixtures("one_thread")


# -- the model ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip() -> tuple[Any, Any]:
    return CLIPModel.from_pretrained(demo.TINY_CLIP), CLIPProcessor.from_pretrained(demo.TINY_CLIP)


def vectors(output: Any) -> np.ndarray[Any, Any]:
    found = output.pooler_output if hasattr(output, "pooler_output") else output
    return torch.nn.functional.normalize(found, dim=-1).numpy()


def test_the_model_is_small_and_safe_to_load() -> None:
    files = [path for path in demo.TINY_CLIP.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 3_000_000
    assert {path.suffix for path in files} == {".safetensors", ".json", ".txt", ".md"}
    assert "toy" in (demo.TINY_CLIP / "README.md").read_text(encoding="utf-8")


def test_it_loads_as_any_clip_does(clip: tuple[Any, Any]) -> None:
    model = AutoModel.from_pretrained(demo.TINY_CLIP, use_safetensors=True)
    assert type(model) is CLIPModel
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.config.projection_dim == training.WIDTH
    processor = AutoProcessor.from_pretrained(demo.TINY_CLIP)
    inputs = processor(text=["red striped mug"], images=[draw(Look("mug", "red", "striped"), Random(0))])
    assert np.asarray(inputs["pixel_values"]).shape == (1, 3, training.SIDE, training.SIDE)
    words = processor.tokenizer.tokenize("Tallowick Crimson Polka Dot Mug")
    assert words == ["tallowick</w>", "crimson</w>", "polka</w>", "dot</w>", "mug</w>"]
    long = processor.tokenizer(["mug " * 200], truncation=True)["input_ids"][0]
    assert len(long) == training.MAX_TOKENS
    assert long[-1] == model.config.text_config.eos_token_id


def test_any_text_gets_a_vector(clip: tuple[Any, Any]) -> None:
    model, processor = clip
    texts = ["", "ñandú 日本語 🙂", "12.5oz — 50% off!", "mug"]
    tokens = processor.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        found = vectors(model.get_text_features(**tokens))
    assert found.shape == (4, training.WIDTH)
    assert np.isfinite(found).all()


def test_it_knows_the_images_of_looks_it_never_saw(clip: tuple[Any, Any]) -> None:
    model, processor = clip
    held = Random(7).sample([look for look in looks() if held_out(look)], 60)
    rng = Random(8)
    drawings = [draw(look, rng) for look in held]
    texts = [f"{look.colour} {look.pattern} {KINDS[look.kind][0]}" for look in held]
    with torch.no_grad():
        tokens = processor.tokenizer(texts, padding=True, return_tensors="pt")
        text = vectors(model.get_text_features(**tokens))
        pixels = processor.image_processor(drawings, return_tensors="pt")["pixel_values"]
        image = vectors(model.get_image_features(pixel_values=pixels))
    best = (text @ image.T).argmax(axis=0)
    assert (best == np.arange(len(held))).mean() > 0.5  # chance is 1/60; a third of the images do not show everything


# -- the training script --------------------------------------------------------------------------------------------


def test_training_sees_no_look_that_is_held_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    drawn: list[Look] = []
    written: list[Goods] = []

    def only_names(seen: list[Look], *_: object) -> torch.Tensor:
        drawn.extend(seen)
        return torch.zeros(len(seen), 3, training.SIDE, training.SIDE)

    def noted(look: Look, rng: Random) -> Goods:
        written.append(goods(look, rng))
        return written[-1]

    monkeypatch.setattr(training, "draw_all", only_names)
    monkeypatch.setattr(training, "goods", noted)
    training.train(tmp_path, steps=2, drawings=1, batch=4, seed=0)
    assert drawn
    assert not any(held_out(look) for look in drawn)
    assert not any(held_out(item.look) for item in written)
    assert type(AutoModel.from_pretrained(tmp_path, use_safetensors=True)) is CLIPModel
    assert AutoProcessor.from_pretrained(tmp_path).tokenizer.model_max_length == training.MAX_TOKENS


def test_steps_of_training_lower_the_loss(clip: tuple[Any, Any]) -> None:
    torch.manual_seed(0)
    _, processor = clip
    few = [Look("mug", "red", "plain"), Look("kite", "blue", "dotted"), Look("boot", "green", "checked")]
    pixels = training.draw_all(few, 1, Random(0), processor.image_processor)
    tokens = processor.tokenizer(["red mug", "blue kite", "green boots"] * 2, padding=True, return_tensors="pt")
    model = training.new_model(processor.tokenizer.eos_token_id, len(processor.tokenizer))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(20):
        loss = training.contrastive_loss(model, pixels, tokens)
        losses.append(loss.item())
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]


# -- the whole of it ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The work directory of one run, and what it printed."""
    work = tmp_path_factory.mktemp("demo")
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert command.main(["--work", str(work), "--seed", str(SEED)]) == 0
    return work, out.getvalue()


def test_it_prints_counts_the_table_and_where_everything_is(ran: tuple[Path, str]) -> None:
    work, printed = ran
    lines = [line.split() for line in printed.splitlines()]
    counts = {line[0]: int(line[1].replace(",", "")) for line in lines if len(line) > 2 and line[2] == "rows"}
    assert counts == {
        schemas.URLS: COUNTS["products"],
        schemas.FEATURES: COUNTS["products"],
        schemas.QUERIES: COUNTS["queries"],
        schemas.JUDGMENTS: COUNTS["judgments"],
        schemas.SUPP: COUNTS["supp"],
    }
    assert {"random", "clip_text", "clip_image", "fusion"} <= {line[0] for line in lines if line}
    for place in (work / schemas.RELEASE_DIR, work / "shop", demo.TINY_CLIP):
        assert str(place) in printed
        assert place.is_dir()


def test_images_fail_and_are_replaced_in_every_known_way(ran: tuple[Path, str]) -> None:
    release = ran[0] / schemas.RELEASE_DIR
    table = datasets.load_dataset(str(release), schemas.FEATURES, split="test", cache_dir=str(ran[0] / "cache"))
    statuses = set(table["image_status"])
    assert {"ok", "missing", "placeholder", "generic", "not_found", "not_image", "truncated"} == statuses
    with_image = np.asarray(table["has_image"])
    assert 0.8 < with_image.mean() < 0.95
    norms = np.linalg.norm(np.asarray(table.with_format("numpy")["clip_image_features"]), axis=1)
    assert ((norms > 0) == with_image).all()


def test_it_ranks_queries_it_was_not_trained_on(ran: tuple[Path, str]) -> None:
    store = EmbeddingStore.open(ran[0] / schemas.RELEASE_DIR, cache_dir=ran[0] / "cache" / "store", progress=False)
    table = evaluation.compare(store, methods=["random", "clip_text", "clip_image", "fusion"], resamples=200)
    ndcg = {row["method"]: row["ndcg"] for row in table.rows}
    assert ndcg["clip_text"] > ndcg["random"] + 0.15
    assert ndcg["clip_image"] > ndcg["random"] + 0.15
    assert ndcg["fusion"] > max(ndcg["clip_text"], ndcg["clip_image"])


def test_again_on_another_port_there_is_nothing_to_do(ran: tuple[Path, str]) -> None:
    work = ran[0]
    files = [path for path in work.rglob("*") if path.suffix in {".parquet", ".csv", ".json", ".md"}]
    of_the_run = (work / "summary.json", work / times.FILE)  # the port, and how long stages took
    files = [path for path in files if work / "cache" not in path.parents and path not in of_the_run]
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}
    with demo.prepare(work, SEED) as overrides, demo.prepare(work, SEED) as others:
        assert overrides != others  # another port
        release = pipeline.build(recipe.load(demo.RECIPE, others), work)
    assert release == work / schemas.RELEASE_DIR
    assert [str(path) for path in files if path.read_bytes() != before[path][1]] == []
    places = (work / "shop", work / schemas.RELEASE_DIR)
    kept = [path for path in files if path.name.startswith("images-") or set(places) & set(path.parents)]
    assert len(kept) > 10
    assert [str(path) for path in kept if path.stat().st_mtime_ns != before[path][0]] == []


def test_a_dry_run_counts_what_is_finished_and_changes_nothing(ran: tuple[Path, str], tmp_path: Path) -> None:
    work = Path(shutil.copytree(ran[0], tmp_path / "work"))
    with demo.prepare(work, SEED) as served:  # [esci] and [resolve] now name the copy
        pipeline.build(recipe.load(demo.RECIPE, served), work)
    loaded = recipe.load(demo.RECIPE, demo.overrides(work))

    def plan(**options: Any) -> dict[str, str]:
        before = {path: path.stat().st_mtime_ns for path in work.rglob("*")}
        words = pipeline.plan(loaded, work, **options)
        assert {path: path.stat().st_mtime_ns for path in work.rglob("*")} == before
        return words

    resolved = "would look for the image URLs of 552 products in 2 tables"
    finished = {
        "sample": "done before",
        "resolve": resolved,
        "fetch": "done before",
        "embed": "done before",
        "release": "would run again if resolve changes its inputs",
        "validate": "would check the release",
    }
    assert plan() == finished
    rows = pq.read_table(work / "fetch" / "outcomes.parquet", columns=["image_url", "image_status"]).to_pylist()
    urls = {row["image_url"]: row for row in rows if row["image_status"] not in ("missing", "placeholder")}
    gone = sum(row["image_status"] == "not_found" for row in urls.values())
    again = f"{len(urls) - gone} of {len(urls)} URLs done, {gone} to fetch, of which {gone} failed before"
    assert plan(retry=["not_found"])["fetch"] == again
    with contextlib.closing(sqlite3.connect(work / "fetch" / "ledger.sqlite")) as ledger, ledger:
        ledger.execute("DELETE FROM outcomes WHERE url IN (SELECT url FROM outcomes WHERE status = 'ok' LIMIT 10)")
    encoded = sum(pq.read_metadata(path).num_rows for path in (work / "embed" / "vectors").rglob("*.parquet"))
    (work / "embed" / "products-00000.parquet").unlink()
    (work / "sqid" / schemas.SHA256SUMS).unlink()
    assert plan() == finished | {
        "fetch": f"{len(urls) - 10} of {len(urls)} URLs done, 10 to fetch",
        "embed": f"0 images, 0 texts to encode; {encoded} reused",
        "release": f"would write {work / 'sqid'}",
        "validate": "would check the release",
    }


def test_a_check_finds_damage_in_every_stage_and_changes_nothing(
    ran: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = Path(shutil.copytree(ran[0], tmp_path / "work"))
    command = ["build", "demo", "--work", str(work), "--check"]

    def check() -> tuple[int, list[str]]:
        before = {path: path.stat().st_mtime_ns for path in work.rglob("*")}
        status = sqid(command)
        assert {path: path.stat().st_mtime_ns for path in work.rglob("*")} == before
        return status, capsys.readouterr().out.splitlines()

    status, lines = check()
    assert status == 0 and len(lines) == 1 and "files are as they were written: sample 4, resolve 1, fetch" in lines[0]
    names = ["sample/products.parquet", "resolve/urls.parquet", "fetch/outcomes.parquet", "fetch/images-00000.parquet"]
    names += ["fetch/ledger.sqlite", "embed/products-00000.parquet", "sqid/README.md", "sqid/SHA256SUMS"]
    names.append(str(next((work / "embed" / "vectors").rglob("texts-*.parquet")).relative_to(work)))
    for name in names:
        data = (work / name).read_bytes()
        at = data.index(b"https://") + 3 if name.endswith(".sqlite") else len(data) // 2
        (work / name).write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    status, lines = check()
    assert status == 1
    assert sorted(line.split()[0] for line in lines) == sorted(names)
    with demo.prepare(work, SEED) as served:
        said: list[str] = []
        pipeline.build(recipe.load(demo.RECIPE, served), work, say=said.append)
    assert "sample/products.parquet is damaged: made again" in said
    assert check()[0] == 0
    assert {p.name: p.read_bytes() for p in (work / "sqid").glob("data/*/*")} == {
        p.name: p.read_bytes() for p in (ran[0] / "sqid").glob("data/*/*")
    }


def test_a_check_of_a_directory_without_a_build(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sqid(["build", "demo", "--work", str(tmp_path / "none"), "--check"]) == 1
    assert "no build has run here" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_a_dry_run_before_the_first_run_makes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work = tmp_path / "work"
    assert sqid(["build", "demo", "--work", str(work), "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    shop = work.resolve() / "shop"
    assert lines[:4] == [
        f"shop: would be drawn in {work / 'shop'}",
        f"sample: would read ESCI from {shop / 'esci'}",
        "resolve: would look for image URLs in 2 tables",
        f"fetch: would download the images, at most 16 at once, from http://{usual_address(shop / 'images')}/ where "
        "that is a mirror",
    ]
    assert lines[4:] == [
        f"embed: would encode texts and images with {demo.TINY_CLIP} (device auto)",
        f"release: would write {work / 'sqid'}",
        "validate: would check the release",
    ]
    assert not work.exists()


def test_it_ends_with_commands_that_can_be_pasted(
    ran: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = ran[1].split("Continue with:\n")[1].splitlines()
    assert [shlex.split(line)[-2:] for line in places[1:]] == [["validate", str(ran[0] / "sqid")]]
    scripts = tmp_path / "an env" / "bin"
    scripts.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(scripts / "python"))
    monkeypatch.setenv("PATH", "/nowhere")
    release = Path("my work") / "sqid"
    assert "  'an env/bin/python' -m builder validate 'my work/sqid'" in command._places(Path("my work"), release)
    (scripts / "sqid").touch(mode=0o755)
    assert "  'an env/bin/sqid' validate 'my work/sqid'" in command._places(Path("my work"), release)
    monkeypatch.setenv("PATH", str(scripts))
    assert "  sqid validate 'my work/sqid'" in command._places(Path("my work"), release)


def test_a_failure_is_one_line_and_status_one(ran: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    with filelock.FileLock(ran[0] / ".lock"):  # as if another build were running
        assert command.main(["--work", str(ran[0]), "--seed", str(SEED)]) == 1
    captured = capsys.readouterr()
    assert "another build is running here" in captured.err.splitlines()[-1]
    assert "Traceback" not in captured.err
    assert captured.out == ""


def test_wrong_usage_is_status_two() -> None:
    with pytest.raises(SystemExit) as left, contextlib.redirect_stderr(io.StringIO()):
        command.main([])
    assert left.value.code == 2
