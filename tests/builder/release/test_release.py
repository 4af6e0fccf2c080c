"""Stage release and the pipeline: the content of WORK/sqid, when it is built again, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny_esci
from builds import FROM_ARTIFACTS, write_recipe
from tiny_esci import MAIN_IDS, WIDTH, write_artifacts, write_csv, write_esci

import sqid
from builder import pipeline, recipe
from builder.release import manifest
from builder.validate import validate
from sqid_lib import EmbeddingStore, evaluation, schemas
from sqid_lib.errors import MissingFileError, ReleaseError, SqidError, StageError, UsageError
from sqid_lib.files import shard_name

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
    assert said == ["sample", "release", "validate", "sample: done before", "release: done before", "validate"]
    write_csv(artifacts / schemas.PRODUCT_URLS, tiny_esci.image_urls() | {"both": "https://images.example/other.jpg"})
    release = build(tmp_path)
    assert "other.jpg" in (release / schemas.PRODUCT_URLS).read_text()
    said.clear()
    build(tmp_path, FROM_ARTIFACTS + "[selection]\nsupp_min_judgments = 1\n", say=said.append)
    assert said == ["sample", "release", "validate"]


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


def test_stages_that_do_not_apply_are_refused(tmp_path: Path, esci: Path, artifacts: Path) -> None:
    with pytest.raises(UsageError, match="unknown stage"):
        build(tmp_path, only="polish")
    with pytest.raises(UsageError, match="unknown engine"):
        build(tmp_path, engine="steam")
    with pytest.raises(UsageError, match="artifacts"):
        build(tmp_path, only="fetch")
    with pytest.raises(MissingFileError, match="sample has not run"):
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
