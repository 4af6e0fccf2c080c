"""sqid diff: every kind of difference with its right count, and what cannot be compared."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import warm_python
from file_server import FileServer
from loopback_hub import LoopbackHub
from release_fixtures import RECIPE, recipe_with, seal, write_release

from builder.cli import main
from builder.diff import Difference, diff
from builder.diff.rows import Cell, Changed, Keys
from builder.recipe import EncoderSettings
from builder.release.stage import describe
from sqid_lib import EmbeddingStore, evaluation, schemas
from sqid_lib.errors import CorruptFileError, MissingFileError

Edit = Callable[[pa.Table], pa.Table]


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_release(tmp_path_factory.mktemp("diff") / "old", products=60, queries=6)


@pytest.fixture
def other(release: Path, tmp_path: Path) -> Path:
    return shutil.copytree(release, tmp_path / "new")


def edit(release: Path, config: str, change: Edit, recipe: Any = RECIPE) -> None:
    (path,) = (release / "data" / config).iterdir()
    pq.write_table(change(pq.read_table(path)), path, row_group_size=7)
    seal(release, recipe)


def put(table: pa.Table, column: str, row: int, value: Any) -> pa.Table:
    values, field = table[column].to_pylist(), table.schema.field(column)
    values[row] = value
    return table.set_column(table.schema.get_field_index(column), field, pa.array(values, field.type))


def rows_of(release: Path, config: str) -> pa.Table:
    (path,) = (release / "data" / config).iterdir()
    return pq.read_table(path)


def compare(one: Path, two: Path, tmp_path: Path) -> Difference:
    return diff(one, two, cache_dir=tmp_path / "cache")


def test_equal_releases_have_no_differences(release: Path, other: Path, tmp_path: Path) -> None:
    found = compare(release, other, tmp_path)
    assert found.same and found.notes == ()
    assert str(found).splitlines()[2:] == ["no differences"]
    assert [part.changed for part in found.vectors] == [0, 0, 0]
    assert json.loads(found.to_json())["same"] is True


def test_rows_added_removed_and_changed(release: Path, other: Path, tmp_path: Path) -> None:
    old = rows_of(release, schemas.URLS)
    ids, titles, urls = (old[name].to_pylist() for name in ("product_id", "product_title", "image_url"))
    known = next(row for row in range(3, 60) if urls[row])

    def change(table: pa.Table) -> pa.Table:
        table = put(table, "product_title", 3, "another title\n\x1b[31m")
        table = put(put(table, "image_url", known, None), "image_url", 59, "https://i.example/new.jpg")
        for row in range(10, 15):
            table = put(table, "image_status", row, "timeout")
        extra = put(put(table.slice(0, 1), "product_id", 0, "Z9"), "product_locale", 0, "us")
        return pa.concat_tables([table.slice(2), extra])

    edit(other, schemas.URLS, change)
    rows = compare(release, other, tmp_path).rows["products"]
    assert (rows.before, rows.after) == (60, 59)
    assert rows.added == Keys(1, ("Z9 (us)",))
    assert rows.removed == Keys(2, (f"{ids[0]} (us)", f"{ids[1]} (us)"))
    assert rows.changed["product_title"] == Changed(1, (Cell(f"{ids[3]} (us)", titles[3], "another title\n\x1b[31m"),))
    new = "https://i.example/new.jpg"
    cells = (Cell(f"{ids[known]} (us)", urls[known], None), Cell(f"{ids[59]} (us)", urls[59], new))
    assert rows.changed["image_url"] == Changed(2, cells)
    statuses = old["image_status"].to_pylist()
    assert rows.changed["image_status"].count == 5
    assert rows.changed["image_status"].examples == tuple(
        Cell(f"{ids[row]} (us)", statuses[row], "timeout") for row in (10, 11, 12)
    )
    assert set(rows.changed) == {"product_title", "image_url", "image_status"}


def test_judgments_and_statuses(release: Path, other: Path, tmp_path: Path) -> None:
    count = rows_of(release, schemas.JUDGMENTS).num_rows

    def relabel(table: pa.Table) -> pa.Table:
        label = "I" if table["esci_label"][5].as_py() != "I" else "E"
        return put(put(table, "esci_label", 5, label), "gain", 5, schemas.GAINS[label]).slice(0, count - 1)

    edit(other, schemas.JUDGMENTS, relabel)
    edit(other, schemas.URLS, lambda table: put(table, "image_status", 0, "too_large"))
    found = compare(release, other, tmp_path)
    judgments = found.rows["judgments"]
    assert (judgments.removed.count, judgments.added.count) == (1, 0)
    assert {name: part.count for name, part in judgments.changed.items()} == {"esci_label": 1, "gain": 1}
    assert judgments.changed["gain"].examples[0].key.startswith("100 B0")
    assert found.statuses["products"]["too_large"] == (0, 1)
    assert sum(new - old for old, new in found.statuses["products"].values()) == 0
    text = str(found)
    assert "| too_large | 0 | 1 |" in text and f"## Judgments: {count} → {count - 1}" in text
    assert "## Queries" not in text


def test_vectors_that_moved(release: Path, other: Path, tmp_path: Path) -> None:
    old = rows_of(release, schemas.FEATURES)
    ids, shown = old["product_id"].to_pylist(), np.flatnonzero(old["has_image"].to_numpy(zero_copy_only=False))
    vectors = np.array(old["clip_text_features"].to_pylist(), np.float32)
    turned = vectors[8].copy()
    turned[:2] = turned[1], -turned[0]
    cosine = float(turned @ vectors[8] / (vectors[8] @ vectors[8]))

    def change(table: pa.Table) -> pa.Table:
        table = put(table, "clip_text_features", 4, (-vectors[4]).tolist())
        table = put(table, "clip_text_features", 8, turned.tolist())
        table = put(table, "clip_text_features", 20, (2 * vectors[20]).tolist())
        table = put(table, "clip_image_features", int(shown[0]), [0.0] * 8)
        return put(table, "has_image", int(shown[0]), False)

    edit(other, schemas.FEATURES, change)
    text, image, query = compare(release, other, tmp_path).vectors
    assert (text.name, text.compared, text.changed) == ("product text", 60, 3)
    assert text.minimum == pytest.approx(-1)
    assert text.median == pytest.approx(cosine)
    assert [key for key, _ in text.worst] == [f"{ids[row]} (us)" for row in (4, 8, 20)]
    assert [value for _, value in text.worst] == pytest.approx([-1, cosine, 1])
    assert (image.compared, image.changed, image.gained, image.lost) == (len(shown) - 1, 0, 0, 1)
    assert (query.compared, query.changed, query.median, query.same) == (6, 0, None, True)


def test_ndcg_is_that_of_evaluate(release: Path, other: Path, tmp_path: Path) -> None:
    edit(other, schemas.FEATURES, lambda table: put(table, "clip_text_features", 0, [1.0] * 8))
    found = compare(release, other, tmp_path)
    assert [row.method for row in found.ndcg] == ["clip_text", "clip_image", "fusion"]
    for at, place in (("before", release), ("after", other)):
        store = EmbeddingStore.open(place, cache_dir=tmp_path / "cache")
        table = evaluation.compare(store, ["clip_text", "clip_image", "fusion"], resamples=200).rows
        for row, ours in zip(table, found.ndcg, strict=True):
            value, low, high = getattr(ours, at)
            assert value == row["ndcg"] and low <= value <= high


def test_what_they_were_made_from(release: Path, other: Path, tmp_path: Path) -> None:
    seal(other, recipe_with(version="1.1.0", fetch=RECIPE.fetch.model_copy(update={"concurrency": 5})))
    found = compare(release, other, tmp_path)
    changed = {setting.key: (setting.before, setting.after) for setting in found.settings}
    assert changed == {
        "version": ("1.0.0", "1.1.0"),
        "recipe.fetch.concurrency": (RECIPE.fetch.concurrency, 5),
    }
    assert not found.same and '- version: "1.0.0" → "1.1.0"' in str(found)


def test_other_models_and_widths_are_not_compared(release: Path, other: Path, tmp_path: Path) -> None:
    def encoder(model: str) -> EncoderSettings:
        return RECIPE.encoder.model_copy(update={"model": model})

    seal(other, recipe_with(encoder=encoder("ORG/other")))
    found = compare(release, other, tmp_path)
    assert found.vectors == () and "their model is" in found.notes[0] and "ORG/other" in found.notes[0]
    assert len(found.ndcg) == 3
    for one, two in (
        (RECIPE, RECIPE),
        (recipe_with(encoder=encoder("/here/clip")), recipe_with(encoder=encoder("a/b"))),
    ):
        same = shutil.copytree(release, tmp_path / f"{one.encoder.model.replace('/', '-')}")
        describe(same, one, revision="local-1")
        describe(other, two, revision="local-2" if one == two else "local-1")
        assert len(compare(same, other, tmp_path).vectors) == 3
    wider = write_release(tmp_path / "wider", products=60, queries=6, width=16)
    found = compare(release, wider, tmp_path)
    assert found.vectors == () and found.notes == ("vectors are not compared: their width is 8 and 16",)
    assert "## Not compared" in str(found)


def test_a_config_that_one_lacks_is_a_note(release: Path, other: Path, tmp_path: Path) -> None:
    shutil.rmtree(other / "data" / schemas.JUDGMENTS)
    shutil.rmtree(other / "data" / schemas.SUPP)
    found = compare(release, other, tmp_path)
    assert set(found.rows) == {"products", "queries"}
    assert [note.partition(":")[0] for note in found.notes] == [
        "supplementary products are not compared",
        "judgments are not compared",
        "vectors and nDCG are not compared",
    ]
    shutil.rmtree(other / "data" / schemas.URLS)
    (other / schemas.MANIFEST).unlink()
    found = compare(other, release, tmp_path)
    assert found.rows["products"].config == schemas.FEATURES and found.rows["products"].same
    assert "recipe, model and versions are not compared" in found.notes[0]
    assert str(found).startswith(f"# {other} → tiny 1.0.0")


def test_new_and_lost_columns(release: Path, other: Path, tmp_path: Path) -> None:
    edit(
        other,
        schemas.URLS,
        lambda table: table.drop_columns(["product_color"]).append_column("price", pa.array([1.0] * 60)),
    )
    found = compare(release, other, tmp_path)
    rows = found.rows["products"]
    assert (rows.new_columns, rows.lost_columns, rows.changed) == (("price",), ("product_color",), {})
    assert "- new columns: price" in str(found) and "- lost columns: product_color" in str(found)


def test_a_product_of_two_splits_is_one_product(release: Path, other: Path, tmp_path: Path) -> None:
    (path,) = (other / "data" / schemas.URLS).iterdir()
    shutil.copy(path, path.with_name("train-00000-of-00001.parquet"))
    (judged,) = (other / "data" / schemas.JUDGMENTS).iterdir()
    judged.rename(judged.with_name("train-00000-of-00001.parquet"))
    found = compare(release, other, tmp_path)
    assert found.rows["products"].same and found.rows["products"].after == 60
    split = found.rows["judgments"].changed["split"]
    assert split.count == rows_of(release, schemas.JUDGMENTS).num_rows
    assert (split.examples[0].before, split.examples[0].after) == ("test", "train")


def test_a_damaged_file_is_an_error(release: Path, other: Path, tmp_path: Path) -> None:
    (path,) = (other / "data" / schemas.JUDGMENTS).iterdir()
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(CorruptFileError, match=path.name):
        compare(release, other, tmp_path)
    for nowhere in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(MissingFileError):
            compare(release, nowhere, tmp_path)


SQID = "import sys; from builder.cli import main; sys.exit(main(sys.argv[1:]))"


def test_releases_elsewhere(release: Path, other: Path, tmp_path: Path) -> None:
    """Two revisions of a Hub dataset, and a web server, each against a directory."""
    with LoopbackHub(tmp_path / "hub") as hub, FileServer(release) as server:
        hub.add_repo("ORG/sqid", release, tag="v1")
        edit(other, schemas.URLS, lambda table: put(table, "product_title", 0, "new"), recipe_with(version="2"))
        hub.add_repo("ORG/sqid", other)
        for one, two, same in (
            ("ORG/sqid@v1", "ORG/sqid", False),
            ("hf://datasets/ORG/sqid@v1", release, True),
            (server.url, release, True),
            (other, server.url, False),
        ):
            environment = {**hub.env(), "SQID_CACHE": str(tmp_path / "cache")}
            done = warm_python.run(SQID, "diff", str(one), str(two), "--json", env=environment)
            assert done.returncode == 0, done.stderr
            found = json.loads(done.stdout)
            assert (found["same"], found["notes"]) == (same, []), found
            assert [setting["key"] for setting in found["settings"]] == ([] if same else ["version"])
            assert set(found["rows"]["products"]["changed"]) == (set() if same else {"product_title"})


# -- the command ----------------------------------------------------------------------------------------------------


def test_the_command_prints_and_exits_0(
    release: Path, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--cache-dir", str(tmp_path / "cache")]
    assert main(["diff", str(release), str(other), *common]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "no differences"
    edit(other, schemas.URLS, lambda table: put(table, "product_title", 0, "\x1b[2J" + "very " * 40))
    assert main(["diff", str(release), str(other), *common]) == 0
    out, err = capsys.readouterr()
    assert err == "" and "- product_title: 1 changed" in out and "\x1b" not in out
    assert max(map(len, out.splitlines()[1:])) < 220
    assert main(["diff", str(release), str(other), "--json", *common]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["same"] is False
    assert found["rows"]["products"]["changed"]["product_title"]["count"] == 1
    assert found["rows"]["products"]["changed"]["product_title"]["examples"][0]["after"].startswith("\x1b[2Jvery")


def test_an_address_without_a_release(release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", str(release), str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1) and "no release here" in err
