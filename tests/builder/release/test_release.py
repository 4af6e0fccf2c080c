"""Stage release and the pipeline: the content of WORK/sqid, when it is built again, what is refused."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import tiny_esci
from builds import FROM_ARTIFACTS, write_recipe
from tiny_esci import MAIN_IDS, WIDTH, write_artifacts, write_csv, write_esci

import sqid
from builder import pipeline, recipe
from builder.release import manifest
from builder.validate import Problem, validate
from sqid_lib import EmbeddingStore, evaluation, schemas
from sqid_lib.errors import (
    DiskError,
    IntegrityError,
    MissingFileError,
    ReleaseError,
    SqidError,
    StageError,
    UsageError,
)
from sqid_lib.files import shard_name
from sqid_lib.joined.selection import Selection

pytestmark = [
    pytest.mark.compat,
    pytest.mark.filterwarnings("default::DeprecationWarning", "default::FutureWarning"),  # of datasets 3.6
]


def build(root: Path, text: str = FROM_ARTIFACTS, **options: Any) -> Path:
    return pipeline.build(recipe.load(write_recipe(root, text)), root / "work", **options)


def contents(release: Path) -> dict[str, bytes]:
    return {str(p.relative_to(release)): p.read_bytes() for p in sorted(release.rglob("*")) if p.is_file()}


def test_every_file_of_the_design_is_there_and_valid(tmp_path: Path, esci: Path, artifacts: Path) -> None:
    release = build(tmp_path)
    assert release == tmp_path / "work" / "sqid"
    assert sorted(contents(release)) == sorted(
        [
            *schemas.CLASSIC_FILES,
            *(shard_name(c, "train" if c == "supp" else "test", 0, 1) for c in schemas.CONFIGS),
            schemas.CARD,
            schemas.MANIFEST,
            schemas.SHA256SUMS,
        ]
    )
    assert validate(release) == []
    for config in schemas.CONFIGS:
        split = "train" if config == "supp" else "test"
        schema = pq.read_schema(release / shard_name(config, split, 0, 1))
        assert schema.equals(schemas.config_schema(config, WIDTH)) and not schema.metadata


def test_every_product_of_the_locale(tmp_path: Path, esci: Path, artifacts: Path) -> None:
    judged = build(tmp_path)
    judgments = pq.read_table(judged / shard_name("judgments", "test", 0, 1))
    others = [*tiny_esci.SUPP_IDS, "T1", "L1", "U1"]
    features = pq.read_table(artifacts / schemas.PRODUCT_FEATURES)
    more = [{**row, "product_id": i} for i, row in zip(others, features.to_pylist(), strict=False)]
    table = pa.concat_tables([features, pa.Table.from_pylist(more, features.schema)])
    pq.write_table(table, artifacts / schemas.PRODUCT_FEATURES)
    release = build(tmp_path, f'{FROM_ARTIFACTS}[selection]\nproducts = "all"\nembed_supp = true\n')
    assert validate(release) == []
    for config in ("urls", "product_features"):
        ids = pq.read_table(release / shard_name(config, "test", 0, 1))["product_id"].to_pylist()
        assert ids == sorted([*MAIN_IDS, *others])
    assert pq.read_table(release / shard_name("judgments", "test", 0, 1)).equals(judgments)
    assert json.loads((release / schemas.MANIFEST).read_text())["counts"] == {
        "products": 42,
        "queries": 5,
        "judgments": 72,
        "supp": 0,
    }
    assert "every product of ESCI with that locale" in (release / schemas.CARD).read_text()
    store = EmbeddingStore.open(release, cache_dir=tmp_path / "cache")
    assert store.products["product_id"].to_pylist() == sorted([*MAIN_IDS, *others])
    assert len(store.pairs(batch_size=100)) == 1
    loaded = sqid.load("urls", "test", esci=esci, artifacts=release, cache_dir=str(tmp_path / "cache"))
    assert loaded["product_id"] == sorted(MAIN_IDS)
    chosen = Selection(products="all")
    joined = EmbeddingStore.open(artifacts, esci=esci, selection=chosen, cache_dir=tmp_path / "cache")
    assert joined.products["product_id"].equals(store.products["product_id"])


def test_products_without_a_judgment_are_a_problem_elsewhere(tmp_path: Path, esci: Path, artifacts: Path) -> None:
    release = build(tmp_path)
    path = release / schemas.MANIFEST
    stated = json.loads(path.read_text())
    assert stated["recipe"]["selection"]["products"] == "judged"
    path = release / shard_name("judgments", "test", 0, 1)
    table = pq.read_table(path)
    pq.write_table(table.filter(pc.not_equal(table["product_id"], MAIN_IDS[2])), path)
    messages = [problem.message for problem in validate(release) if problem.code == "integrity"]
    assert [m for m in messages if m.startswith("1 products are not in judgments")]


def test_the_classic_files_are_the_published_ones(tmp_path: Path, esci: Path, artifacts: Path) -> None:
    release = build(tmp_path)
    for name in (schemas.PRODUCT_FEATURES, schemas.QUERY_FEATURES):
        old, new = pq.read_table(artifacts / name), pq.read_table(release / name)
        assert new.schema.remove_metadata() == old.schema.remove_metadata()
        key = old.column_names[0]
        stored = {row[key]: row for row in new.to_pylist()}
        assert all(stored[row[key]] == row for row in old.to_pylist())
        assert [row[key] for row in new.to_pylist()] == sorted(stored)
    lines = (release / schemas.PRODUCT_URLS).read_text().splitlines()
    assert lines[0] == "product_id,image_url" and len(lines) == 1 + len(MAIN_IDS)
    assert "NA," in lines  # no SQID row: kept, with an empty cell


@pytest.mark.parametrize("config", schemas.CONFIGS)
@pytest.mark.parametrize("streaming", [False, True])
def test_the_release_and_the_loader_give_equal_rows(
    tmp_path: Path, esci: Path, artifacts: Path, cache: str, config: str, streaming: bool
) -> None:
    release = build(tmp_path)
    split = "train" if config == "supp" else "test"
    released = datasets.load_dataset(str(release), config, split=split, streaming=streaming, cache_dir=cache)
    for source in (release, artifacts):
        joined = sqid.load(config, split, esci=esci, artifacts=source, streaming=streaming, cache_dir=cache)
        assert joined.features == released.features
        assert list(joined) == list(released)


def test_several_locales_and_splits(tmp_path: Path, esci: Path, artifacts: Path, cache: str) -> None:
    release = build(tmp_path, FROM_ARTIFACTS + '[selection]\nlocales = ["us", "es"]\nsplits = ["train", "test"]\n')
    options: dict[str, Any] = {
        "esci": esci,
        "locale": ["us", "es"],
        "esci_split": ["train", "test"],
        "cache_dir": cache,
    }
    for config in ("urls", "product_features", "query_features", "judgments"):
        released = datasets.load_dataset(str(release), config, cache_dir=cache)
        joined = sqid.load(config, artifacts=release, **options)
        assert set(released) == set(joined) == {"train", "test"}
        for split in released:
            assert released[split].to_list() == joined[split].to_list()
    assert (release / schemas.PRODUCT_URLS).read_text().startswith("product_id,product_locale,image_url\n")


def test_own_labels_and_another_locale(tmp_path: Path, artifacts: Path, cache: str) -> None:
    labels = dict(zip(schemas.LABELS, ("perfect", "good", "fair", "bad"), strict=True))
    rows = [{**row, "esci_label": labels[row["esci_label"]]} for row in tiny_esci.examples()]
    german = [{**row, "product_locale": "de"} for row in rows if row["product_locale"] == "us"]
    products = [{**row, "product_locale": "de"} for row in tiny_esci.products() if row["product_locale"] == "us"]
    write_esci(tmp_path / "esci", examples=german, products=products)
    table = "[selection.labels]\nperfect = 3\ngood = 1.5\nfair = 0.5\nbad = 0\n"
    release = build(tmp_path, FROM_ARTIFACTS + f'[selection]\nlocales = ["de"]\n{table}')  # the build validates it
    judged = datasets.load_dataset(str(release), "judgments", split="test", cache_dir=cache).to_list()
    gains = {"perfect": 3.0, "good": 1.5, "fair": 0.5, "bad": 0.0}
    assert len(judged) == 72 and all(row["gain"] == gains[row["esci_label"]] for row in judged)
    card = (release / schemas.CARD).read_text()
    assert "| `gain` | float32 | perfect 3.0, good 1.5, fair 0.5, bad 0.0 |" in card
    assert "language:" not in card and "multilinguality:" not in card
    assert (release / schemas.PRODUCT_URLS).read_text().startswith("product_id,product_locale,image_url\n")


def test_what_has_no_rows_is_left_out_and_the_rest_can_be_used(
    tmp_path: Path, esci: Path, artifacts: Path, cache: str
) -> None:
    release = build(tmp_path, FROM_ARTIFACTS + '[selection]\nsplits = ["train", "test"]\n')
    main = [config for config in schemas.CONFIGS if config != schemas.SUPP]
    assert not (release / "data" / schemas.SUPP).exists()
    assert manifest.read(release).counts["supp"] == 0
    assert validate(release) == []
    assert datasets.get_dataset_config_names(str(release)) == main
    for config in main:
        assert set(datasets.load_dataset(str(release), config, cache_dir=cache)) == {"train", "test"}
    with pytest.raises(ValueError, match="'supp' not found"):
        datasets.load_dataset(str(release), schemas.SUPP, cache_dir=cache)
    assert "This selection has none, so there is no config `supp`." in (release / schemas.CARD).read_text()
    store = EmbeddingStore.open(release, cache_dir=cache)
    assert len(evaluation.compare(store, ["random"]).rows) == 1
    with pytest.warns(UserWarning, match="supp is empty"):
        assert not len(
            sqid.load("supp", "train", esci=esci, artifacts=release, cache_dir=cache, esci_split=["train", "test"])
        )


def test_a_split_without_rows_is_left_out(tmp_path: Path, artifacts: Path, cache: str) -> None:
    rows = [row for row in tiny_esci.examples() if row["split"] == "test"]
    write_esci(tmp_path / "esci", examples=rows)
    release = build(tmp_path, FROM_ARTIFACTS + '[selection]\nsplits = ["train", "test"]\n')
    assert not list(release.glob("data/*/train-*"))
    assert set(datasets.load_dataset(str(release), "judgments", cache_dir=cache)) == {"test"}


def test_without_classic_files_the_release_is_its_own_source(
    tmp_path: Path, esci: Path, artifacts: Path, cache: str
) -> None:
    whole = build(tmp_path)
    expected = {c: contents(whole)[shard_name(c, "test", 0, 1)] for c in ("urls", "product_features")}
    (tmp_path / "second").mkdir()
    (tmp_path / "second" / "esci").symlink_to(esci)
    (tmp_path / "second" / "artifacts").symlink_to(whole)
    again = build(tmp_path / "second", FROM_ARTIFACTS + "[release]\nclassic_files = false\n")
    assert not (again / schemas.PRODUCT_FEATURES).exists()
    assert {c: contents(again)[shard_name(c, "test", 0, 1)] for c in expected} == expected
    rows = sqid.load("product_features", "test", esci=esci, artifacts=again, cache_dir=cache)
    assert np.count_nonzero(rows["has_image"]) == len(MAIN_IDS) - len(tiny_esci.no_image())


def test_the_same_recipe_and_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    releases = []
    for name in ("one", "two"):
        write_esci(tmp_path / name / "esci")
        write_artifacts(tmp_path / name / "artifacts")
        releases.append(contents(build(tmp_path / name)))
    assert releases[0] == releases[1]


def test_finished_work_is_kept_and_changed_inputs_are_seen(tmp_path: Path, esci: Path, artifacts: Path) -> None:
    said: list[str] = []
    build(tmp_path, say=said.append)
    build(tmp_path, say=said.append)
    stages = [line for line in said if not line.startswith("image")]
    assert [line.split()[0].rstrip(":") for line in stages if line.endswith("…")] == [
        *("sample", "release", "validate"),
        "validate",
    ]
    assert [line.split(":")[0] for line in stages if line.endswith(", done before")] == ["sample", "release"]
    write_csv(artifacts / schemas.PRODUCT_URLS, tiny_esci.image_urls() | {"both": "https://images.example/other.jpg"})
    release = build(tmp_path)
    assert "other.jpg" in (release / schemas.PRODUCT_URLS).read_text()
    said.clear()
    build(tmp_path, FROM_ARTIFACTS + "[selection]\nsupp_min_judgments = 1\n", say=said.append)
    assert [line for line in said if line.endswith(("…", "done before"))] == ["sample …", "release …", "validate …"]


def test_a_foreign_file_in_the_release_is_not_deleted(tmp_path: Path, esci: Path, artifacts: Path) -> None:
    release = build(tmp_path)
    (release / "notes.txt").write_text("mine")
    write_csv(artifacts / schemas.PRODUCT_URLS, {"both": "https://images.example/other.jpg"})
    with pytest.raises(ReleaseError, match=r"notes\.txt"):
        build(tmp_path)
    assert (release / "notes.txt").read_text() == "mine"


def test_a_failing_release_leaves_the_earlier_one(tmp_path: Path, esci: Path, artifacts: Path) -> None:
    before = contents(build(tmp_path))
    (artifacts / schemas.QUERY_FEATURES).write_bytes(b"PAR1 truncated")
    with pytest.raises(SqidError, match="truncated"):
        build(tmp_path)
    assert contents(tmp_path / "work" / "sqid") == before


def test_a_release_that_is_not_valid_leaves_the_earlier_one(
    tmp_path: Path, esci: Path, artifacts: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(build(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr("builder.validate.validate", lambda release: [Problem("schema", "data/urls", "found")])
        with pytest.raises(ReleaseError, match=r"\.sqid\.building: the release has 1 problem"):
            build(tmp_path, FROM_ARTIFACTS + "[release]\nclassic_files = false\n")
    assert "data/urls" in capsys.readouterr().err
    assert contents(tmp_path / "work" / "sqid") == before
    assert (tmp_path / "work" / ".sqid.building" / schemas.MANIFEST).exists()  # to look at
    said: list[str] = []
    release = build(tmp_path, FROM_ARTIFACTS + "[release]\nclassic_files = false\n", say=said.append)
    assert [line for line in said if line.endswith((" …", ", done before"))] == [
        "sample: 36 products, 5 queries, 72 judgments, 3 supplementary products, done before",
        "release …",
        "validate …",
    ]
    assert not (release / schemas.PRODUCT_URLS).exists() and not (tmp_path / "work" / ".sqid.building").exists()


def test_the_same_bytes_are_validated_once_and_on_request_always(
    tmp_path: Path, esci: Path, artifacts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[str] = []

    def count(release: Path) -> list[Problem]:
        checked.append(release.name)
        return validate(release)

    monkeypatch.setattr("builder.validate.validate", count)
    build(tmp_path)
    assert checked == [".sqid.building"]
    build(tmp_path, only="validate")
    build(tmp_path)
    assert checked == [".sqid.building", "sqid", "sqid"]
    build(tmp_path, FROM_ARTIFACTS + "[release]\nclassic_files = false\n", only="release")
    assert checked[3:] == [".sqid.building"]


def test_a_build_that_was_killed_while_it_swapped_puts_the_earlier_release_back(
    tmp_path: Path, esci: Path, artifacts: Path
) -> None:
    before = contents(build(tmp_path))
    (tmp_path / "work" / "sqid").rename(tmp_path / "work" / ".sqid.old")
    (artifacts / schemas.QUERY_FEATURES).write_bytes(b"PAR1 truncated")
    with pytest.raises(SqidError, match="truncated"):
        build(tmp_path)
    assert contents(tmp_path / "work" / "sqid") == before
    assert not (tmp_path / "work" / ".sqid.old").exists()


@pytest.mark.parametrize(
    ("writes", "named"),
    [
        ("builder.release.files.pq.ParquetWriter.write_table", r"\.sqid\.building/data/judgments"),
        ("builder.release.files._cell", r"\.sqid\.building/product_image_urls\.csv"),
        ("builder.release.manifest.write_text", r"work/\.sqid\.building"),
        ("builder.release.stage.write_configs", r"work/\.sqid\.building"),
    ],
)
@pytest.mark.parametrize(
    ("code", "said"),
    [
        (errno.ENOSPC, "no space left.*finished work is kept"),
        (errno.EMFILE, r"cannot be written: Too many open files\. Raise the limit of open files \(ulimit -n 4096\)"),
        (errno.EACCES, "Permission denied.*permissions"),
    ],
)
def test_a_failing_disk_is_named_and_gets_its_space_back(
    tmp_path: Path,
    esci: Path,
    artifacts: Path,
    monkeypatch: pytest.MonkeyPatch,
    writes: str,
    named: str,
    code: int,
    said: str,
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    pipeline.build(recipe.load(write_recipe(tmp_path, FROM_ARTIFACTS)), tmp_path / "work", only="sample")
    monkeypatch.setattr(writes, refuse)
    with pytest.raises(DiskError, match=f"{named}.*: {said}"):
        build(tmp_path)
    assert [p.name for p in (tmp_path / "work").iterdir() if "sqid" in p.name] == []


ROWS_OF_ZEROS = {"product_features": [0, 3, 9], "query_features": [1]}


@pytest.mark.parametrize("how", ["no row", "null", "zeros", "NaN"])
def test_missing_text_vectors_are_refused_or_counted(
    tmp_path: Path, esci: Path, artifacts: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    for name, rows in ROWS_OF_ZEROS.items():
        table = pq.read_table(artifacts / f"{name}.parquet")
        if how == "no row":
            table = table.take([i for i in range(len(table)) if i not in rows])
        else:
            values = table["clip_text_features"].to_pylist()
            bad = {"null": None, "zeros": [0.0] * WIDTH, "NaN": [float("nan")] * WIDTH}[how]
            column = pa.array([bad if i in rows else v for i, v in enumerate(values)], pa.list_(pa.float32()))
            table = table.set_column(1, "clip_text_features", column)
        pq.write_table(table, artifacts / f"{name}.parquet")
    said = (
        r"none for 4 of 36 products, such as '\w+' \(us\), '\w+' \(us\), '\w+' \(us\) and "
        r"none for 1 of 5 queries, such as 26\. Complete the files, .* artifacts\.partial = true"
    )
    with pytest.raises(IntegrityError, match=said):
        build(tmp_path, '[artifacts]\npath = "artifacts"\n')
    assert not (tmp_path / "work" / "sqid").exists()
    release = build(tmp_path, FROM_ARTIFACTS)
    assert "no text vector for 4 of 36 products" in caplog.text and "1 of 5 queries, such as 26: they" in caplog.text
    features = pq.read_table(release / shard_name("product_features", "test", 0, 1))
    assert sum(not any(v) for v in features["clip_text_features"].to_pylist()) == 4
    assert json.loads((release / schemas.MANIFEST).read_text())["recipe"]["artifacts"]["partial"] is True


def test_complete_artifacts_need_no_permission(tmp_path: Path, esci: Path, artifacts: Path) -> None:
    table = pq.read_table(artifacts / schemas.PRODUCT_FEATURES)
    absent = pa.table([["NA"], [[1.0] * WIDTH], [None]], schema=table.schema)
    pq.write_table(pa.concat_tables([table, absent]), artifacts / schemas.PRODUCT_FEATURES)
    assert validate(build(tmp_path, '[artifacts]\npath = "artifacts"\n')) == []


def test_stages_that_do_not_apply_are_refused(tmp_path: Path, esci: Path, artifacts: Path) -> None:
    with pytest.raises(UsageError, match="unknown stage"):
        build(tmp_path, only="polish")
    with pytest.raises(UsageError, match="unknown engine"):
        build(tmp_path, engine="steam")
    with pytest.raises(UsageError, match="artifacts"):
        build(tmp_path, only="fetch")
    with pytest.raises(MissingFileError, match="sample has not finished"):
        build(tmp_path, only="release")


def test_two_builds_in_one_directory_do_not_mix(tmp_path: Path, esci: Path, artifacts: Path) -> None:
    import filelock

    (tmp_path / "work").mkdir()
    with filelock.FileLock(tmp_path / "work" / ".lock"), pytest.raises(StageError, match="another build"):
        build(tmp_path)


def test_the_manifest_names_no_place_of_this_machine(tmp_path: Path, esci: Path, artifacts: Path) -> None:
    release = build(tmp_path)
    text = (release / schemas.MANIFEST).read_text() + (release / schemas.CARD).read_text()
    assert str(tmp_path) not in text
    assert json.loads((release / schemas.MANIFEST).read_text())["counts"] == {
        "products": 36,
        "queries": 5,
        "judgments": 72,
        "supp": 3,
    }
