"""`sqid search`: results on stdout, the rest on stderr, exit statuses."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from encoder_fixtures import encoded, make_image, write_clip
from tiny_release import write_release

from builder import engines
from builder.cli import main
from builder.demo import TINY_CLIP
from sqid_lib import load_encoder, schemas
from sqid_lib.encoders.loading import content_revision

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release whose query vectors are those of a tiny CLIP, the CLIP, and a photo."""
    root = tmp_path_factory.mktemp("search")
    clip = write_clip(root / "clip", width=8)
    (path,) = (write_release(root / "release", shards=1) / "data" / schemas.QUERIES).iterdir()
    rows = pq.read_table(path)
    vectors = load_encoder(str(clip)).encode_text(rows["query"].to_pylist())
    field = rows.schema.field("clip_text_features")
    at = rows.schema.get_field_index(field.name)
    pq.write_table(rows.set_column(at, field, pa.array(vectors.tolist(), field.type)), path)
    (root / "release" / schemas.SHA256SUMS).unlink()
    (root / "photo.png").write_bytes(encoded(make_image(1)))
    (root / "page.jpg").write_text("<html>")
    return root


@pytest.fixture
def search(place: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str) -> tuple[int, str, str]:
        common = ["--cache-dir", str(place / "cache"), "--encoder", str(place / "clip")]
        status = main(["search", str(place / "release"), *arguments, *common])
        return status, *capsys.readouterr()

    return run


def test_search_on_an_engine_is_search(search: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine here is the local one under another name, and each of its shards has 13 products."""
    monkeypatch.setattr("sqid_lib.evaluation.retrieval._SHARD", 13)
    monkeypatch.setattr("builder.cli.engine.find_engine", lambda _name: engines.find("local"))
    words = ["red shoes", "--weight", "0.3", "--json"]
    _, here, _ = search(*words)
    status, there, err = search(*words, "--engine", "ray")
    assert (status, there) == (0, here)
    assert "search: 5 of 5 shards" in err
    assert search(*words, "--ray-address", "auto")[0] == 2


def test_text_image_and_both(search: Run, place: Path) -> None:
    photo, found = str(place / "photo.png"), []
    for query in (["red shoes"], ["--image", photo], ["red shoes", "--image", photo]):
        status, out, err = search(*query, "--json", "--top", "60")
        assert (status, err) == (0, "")
        found.append({row["product_id"]: row for row in json.loads(out)})
        assert len(found[-1]) == 60
    for product_id, row in found[2].items():
        for score in ("score", "text_score", "image_score"):
            assert row[score] == pytest.approx(
                (found[0][product_id][score] + found[1][product_id][score]) / 2, abs=1e-6
            )


def test_the_table_and_json_show_the_same_products(search: Run) -> None:
    status, out, err = search("red shoes", "--top", "3", "--weight", "1")
    assert (status, err) == (0, "")
    rows = json.loads(search("red shoes", "--top", "3", "--weight", "1", "--json")[1])
    assert [line.split()[4] for line in out.splitlines()[1:]] == [row["product_id"] for row in rows]
    assert list(rows[0]) == [
        *("product_id", "product_locale", "title", "image_url", "image_status"),
        *("score", "text_score", "image_score"),
    ]
    assert all(row["score"] == row["text_score"] for row in rows)


def test_options_may_come_before_the_text(place: Path, search: Run, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--cache-dir", str(place / "cache"), "--encoder", str(place / "clip")]
    assert main(["search", str(place / "release"), *common, "red shoes"]) == 0
    assert capsys.readouterr().out == search("red shoes")[1]
    assert main(["search", *common, str(place / "release"), "red shoes"]) == 0


def test_where(search: Run) -> None:
    status, out, _ = search("red", "--json", "--where", "has_image=false", "--top", "1000")
    rows = json.loads(out)
    assert status == 0 and {row["image_status"] for row in rows} == {"missing", "not_found"}
    both = ["--where", "image_status=missing", "--where", "image_status=not_found"]
    assert json.loads(search("red", "--json", *both, "--top", "1000")[1]) == rows
    one = rows[2]
    (only,) = json.loads(search("red", "--json", "--where", f"product_title={one['title']}")[1])
    assert only == one
    status, out, err = search("red", "--where", "product_locale=jp")
    assert (status, out) == (0, "no product found\n") and err.count("\n") == 1
    assert search("red", "--where", "product_locale=jp", "--json")[1] == "[]\n"


def test_the_encoder_of_the_demo_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    release = write_release(tmp_path / "release", width=64)
    stated = json.loads((release / schemas.MANIFEST).read_text())
    stated |= {"model": TINY_CLIP.name, "revision": content_revision(TINY_CLIP)}
    (release / schemas.MANIFEST).write_text(json.dumps(stated))
    command = ["search", str(release), "red mug", "--cache-dir", str(tmp_path / "cache"), "--top", "3"]
    assert main(command) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4
    (release / schemas.MANIFEST).write_text(json.dumps(stated | {"revision": "local-0"}))
    assert main(command) == 1
    assert "--encoder DIR" in capsys.readouterr().err


def test_a_directory_that_a_build_here_used_is_found_beside_its_release(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work, clip = tmp_path / "work", place / "clip"
    shutil.copytree(place / "release", work / "sqid")
    stated = json.loads((work / "sqid" / schemas.MANIFEST).read_text())
    stated |= {"model": "clip", "revision": content_revision(clip)}
    (work / "sqid" / schemas.MANIFEST).write_text(json.dumps(stated))
    command = ["search", str(work / "sqid"), "red shoes", "--cache-dir", str(tmp_path / "cache"), "--top", "3"]
    assert main(command) == 1
    assert "--encoder DIR" in capsys.readouterr().err
    record = work / "embed" / "encoder.json"
    record.parent.mkdir()
    for content, status in ((json.dumps({"model": str(clip)}), 0), ("{", 1), (json.dumps({"model": str(place)}), 1)):
        record.write_text(content)
        assert main(command) == status
        assert len(capsys.readouterr().out.splitlines()) == (4 if status == 0 else 0)


@pytest.mark.parametrize("text", ["靴 👟", "red\udcff", "'; DROP TABLE products; --", "naïve\u0000café", "a" * 10_000])
def test_odd_texts(search: Run, text: str) -> None:
    status, out, err = search(text, "--json")
    assert (status, err, len(json.loads(out))) == (0, "", 10)


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ([], 2, "nothing to search for"),
        ([""], 2, "the query is empty"),
        (["red", "--top", "0"], 2, "top"),
        (["red", "--weight", "2"], 2, "from 0 to 1"),
        (["red", "--where", "brand"], 2, "COLUMN=VALUE"),
        (["red", "--where", "image_statu=ok"], 2, "Did you mean image_status?"),
        (["--image", "nowhere.png"], 1, "no such image file"),
        (["--image", "PLACE/page.jpg"], 1, "not an image that can be used"),
        (["red", "--encoder", "/nowhere"], 1, "no such model directory"),
    ],
)
def test_failures_are_one_line(search: Run, place: Path, arguments: list[str], status: int, message: str) -> None:
    arguments = [argument.replace("PLACE", str(place)) for argument in arguments]
    if "--encoder" in arguments:
        got = main(["search", str(place / "release"), "--cache-dir", str(place / "cache"), *arguments]), "", message
    else:
        got = search(*arguments)
    assert got[:2] == (status, "") and message in got[2]
    assert got[2].count("\n") <= 1


def test_a_release_without_image_vectors_says_so(search: Run, place: Path, tmp_path: Path) -> None:
    release = shutil.copytree(place / "release", tmp_path / "release")
    (path,) = (release / "data" / schemas.FEATURES).iterdir()
    rows = pq.read_table(path)
    for name, value in (("has_image", False), ("clip_image_features", [0.0] * 8), ("image_status", "missing")):
        field = rows.schema.field(name)
        column = pa.array([value] * len(rows), field.type)
        rows = rows.set_column(rows.schema.get_field_index(name), field, column)
    pq.write_table(rows, path)
    command = [sys.executable, "-m", "builder", "search", str(release), "red", "--encoder", str(place / "clip")]
    environment = {**os.environ, "SQID_CACHE": str(tmp_path / "cache")}
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True, env=environment)
    assert "no product has an image vector" in done.stderr
    assert {row["image_score"] for row in json.loads(done.stdout)} == {0.0}
    assert np.isfinite([row["score"] for row in json.loads(done.stdout)]).all()
