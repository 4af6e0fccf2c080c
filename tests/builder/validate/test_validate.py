"""validate finds nothing in a good release, and names each of many corruptions; no file crashes it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from release_fixtures import RECIPE, recipe_with, seal, write_release

from builder.recipe import ArtifactsSettings, EncoderSettings, EsciSettings, ExpectSettings, ReleaseSettings
from builder.release import manifest
from builder.release.files import may_hold, write_classic_features, write_shards, write_urls
from builder.release.statistics import Statistics, gather_statistics
from builder.validate import validate
from sqid_lib import schemas
from sqid_lib.files import sha256, shard_name
from sqid_lib.joined.selection import Selection

WIDTH = 8
NO_CLASSIC = recipe_with(release=ReleaseSettings(classic_files=False))


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_release(tmp_path_factory.mktemp("good") / "tiny", width=WIDTH)


@pytest.fixture
def release(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "tiny"))


def codes(release: Path) -> set[str]:
    return {problem.code for problem in validate(release)}


def test_a_good_release_has_no_problems(good: Path) -> None:
    assert validate(good) == []


def test_several_shards_and_no_classic_files_are_good(tmp_path: Path) -> None:
    release = write_release(
        tmp_path / "r", products=7_000, queries=40, width=64, max_shard_bytes=900_000, classic=False
    )
    assert len(list((release / "data" / schemas.FEATURES).iterdir())) > 1
    assert validate(release) == []


def test_what_downloads_and_clones_add_is_no_problem(release: Path) -> None:
    (release / ".gitattributes").write_text("*.parquet filter=lfs\n")
    (release / ".cache" / "huggingface").mkdir(parents=True)
    (release / ".cache" / "huggingface" / "x.metadata").write_text("x")
    assert validate(release) == []


def test_a_config_without_rows_is_left_out_everywhere(release: Path) -> None:
    shutil.rmtree(release / "data" / schemas.SUPP)
    (release / schemas.SUPP_URLS).write_text("product_id,image_url\n")
    assert "missing-file" in codes(release)  # the card and the manifest still have it
    seal(release)
    assert validate(release) == []


def test_a_config_that_the_manifest_counts_must_be_there(release: Path) -> None:
    shutil.rmtree(release / "data" / schemas.SUPP)
    seal(release)
    edit_manifest(release, lambda m: m["counts"].update(supp=5))
    found = [(problem.code, problem.where) for problem in validate(release)]
    assert ("missing-file", "data/supp") in found and ("count", schemas.MANIFEST) in found


def test_a_config_without_rows_on_the_card_cannot_be_loaded(release: Path, tmp_path: Path) -> None:
    schema = pq.read_schema(shard(release, schemas.SUPP))
    write_shards(release, schemas.SUPP, schemas.SUPP_SPLIT, [], schema, rows=0)
    card(release, "num_examples: 5", "num_examples: 0")  # as cards of earlier versions were
    with pytest.raises(ValueError, match="corresponds to no data"):
        datasets.load_dataset(str(release), schemas.SUPP, cache_dir=str(tmp_path))
    assert "empty-config" in codes(release)


@pytest.mark.parametrize("config", [schemas.QUERIES, schemas.FEATURES, schemas.URLS])
def test_only_what_nothing_refers_to_may_be_left_out(release: Path, config: str) -> None:
    shutil.rmtree(release / "data" / config)
    if config == schemas.URLS:
        assert "missing-file" in codes(release)
        return
    seal(release)
    assert "integrity" in codes(release)


def test_what_datasets_cannot_load_is_named(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = datasets.load_dataset_builder

    def failing(path: str, config: str, **options: Any) -> Any:
        if config == schemas.QUERIES:
            raise ValueError("some reason\nmore")
        return load(path, config, **options)

    monkeypatch.setattr(datasets, "load_dataset_builder", failing)
    (problem,) = validate(release)
    assert (problem.code, problem.where) == ("load", "data/query_features")
    assert "ValueError: some reason" in problem.message and "more" not in problem.message


def test_every_config_is_loaded(release: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    load, seen = datasets.load_dataset_builder, []

    def counting(path: str, config: str, **options: Any) -> Any:
        seen.append(config)
        assert Path(options["cache_dir"]).is_dir() and tmp_path not in Path(options["cache_dir"]).parents
        return load(path, config, **options)

    monkeypatch.setattr(datasets, "load_dataset_builder", counting)
    assert validate(release) == []
    assert seen == list(schemas.CONFIGS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda builder: builder.config.data_files.update(test=builder.config.data_files["test"][:-1]), "its files"),
        (lambda builder: builder.config.data_files.pop("test"), "its splits"),
        (lambda builder: builder.info.features.pop("query"), "its features"),
    ],
)
def test_what_datasets_would_load_is_held_against_the_data(
    release: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], Any], message: str
) -> None:
    load = datasets.load_dataset_builder

    def changed(path: str, config: str, **options: Any) -> Any:
        builder = load(path, config, **options)
        if config == schemas.JUDGMENTS:
            change(builder)
        return builder

    monkeypatch.setattr(datasets, "load_dataset_builder", changed)
    (problem,) = validate(release)
    assert (problem.code, problem.where) == ("load", "data/judgments") and message in problem.message


def test_no_such_directory(tmp_path: Path) -> None:
    assert [problem.code for problem in validate(tmp_path / "none")] == ["no-release"]


def test_an_empty_directory_lists_everything_that_is_missing(tmp_path: Path) -> None:
    problems = validate(tmp_path)
    assert {problem.code for problem in problems} == {"missing-file"}
    wheres = {problem.where for problem in problems}
    assert {schemas.CARD, schemas.MANIFEST, schemas.SHA256SUMS} < wheres
    assert {f"data/{config}" for config in schemas.CONFIGS} < wheres


# -- corruptions of the data: card, manifest and checksums are written again, so that only the data is wrong -------

Edit = Callable[[pa.Table], pa.Table]


def shard(release: Path, config: str) -> Path:
    split = schemas.SUPP_SPLIT if config == schemas.SUPP else "test"
    return release / shard_name(config, split, 0, 1)


def edit(release: Path, config: str, change: Edit, reseal: bool = True) -> None:
    path = shard(release, config)
    pq.write_table(change(pq.read_table(path)), path)
    if reseal:
        seal(release)


def setting(column: str, row: int, value: Any) -> Edit:
    """Put a value into one cell."""

    def change(table: pa.Table) -> pa.Table:
        values = table[column].to_pylist()
        values[row] = value
        index = table.column_names.index(column)
        return table.set_column(index, table.schema.field(index), pa.array(values, table.schema.field(index).type))

    return change


def vector(value: float) -> list[float]:
    return [value] * WIDTH


def dropping(column: str) -> Edit:
    return lambda table: table.drop_columns([column])


def retyping(column: str, dtype: pa.DataType) -> Edit:
    def change(table: pa.Table) -> pa.Table:
        index = table.column_names.index(column)
        return table.set_column(index, column, table[column].cast(dtype))

    return change


def doubling_first(table: pa.Table) -> pa.Table:
    return pa.concat_tables([table.slice(0, 1), table])


def swapping_first_two(table: pa.Table) -> pa.Table:
    return table.take(pa.array([1, 0, *range(2, table.num_rows)]))


def all_equal(column: str) -> Edit:
    """The first vector in place of every other that is not zero."""

    def change(table: pa.Table) -> pa.Table:
        values = table[column].to_pylist()
        index = table.column_names.index(column)
        changed = [values[0] if any(value) else value for value in values]
        return table.set_column(index, table.schema.field(index), pa.array(changed, table.schema.field(index).type))

    return change


def with_huggingface_metadata(table: pa.Table) -> pa.Table:
    return table.replace_schema_metadata({"huggingface": '{"info": {"features": {}}}'})


# rows of the fixture: 0 ok, 3 missing, 4 not_found, 5 generic, 6 placeholder
DATA: dict[str, tuple[str, Edit, str]] = {
    "a column is missing": (schemas.URLS, dropping("product_brand"), "schema"),
    "a column too many": (schemas.URLS, lambda t: t.append_column("price", pa.nulls(t.num_rows)), "schema"),
    "a column of another type": (schemas.JUDGMENTS, retyping("gain", pa.float64()), "schema"),
    "columns in another order": (schemas.QUERIES, lambda t: t.select(t.column_names[::-1]), "schema"),
    "lists of variable length": (schemas.QUERIES, retyping("clip_text_features", pa.list_(pa.float32())), "schema"),
    "metadata of datasets": (schemas.URLS, with_huggingface_metadata, "schema"),
    "a null id": (schemas.URLS, setting("product_id", 1, None), "null"),
    "a null vector": (schemas.FEATURES, setting("clip_image_features", 3, None), "null"),
    "a null number in a vector": (schemas.QUERIES, setting("clip_text_features", 2, [None, *vector(1)[1:]]), "null"),
    "NaN": (schemas.FEATURES, setting("clip_text_features", 5, vector(np.nan)), "non-finite"),
    "infinity": (schemas.QUERIES, setting("clip_text_features", 5, vector(np.inf)), "non-finite"),
    "a product twice": (schemas.URLS, doubling_first, "duplicate-key"),
    "a query twice": (schemas.QUERIES, doubling_first, "duplicate-key"),
    "a judgment twice": (schemas.JUDGMENTS, doubling_first, "duplicate-key"),
    "an example_id twice": (schemas.JUDGMENTS, setting("example_id", 1, 0), "duplicate-key"),
    "products out of order": (schemas.URLS, swapping_first_two, "order"),
    "judgments out of order": (schemas.JUDGMENTS, swapping_first_two, "order"),
    "a judged product that is not there": (schemas.JUDGMENTS, setting("product_id", 0, "A000000000"), "integrity"),
    "a product of another locale": (schemas.JUDGMENTS, setting("product_locale", 0, "jp"), "integrity"),
    "a query that is not there": (schemas.JUDGMENTS, setting("query_id", 0, 7), "integrity"),
    "a product without features": (schemas.FEATURES, lambda t: t.slice(1), "integrity"),
    "a product that is not judged": (
        schemas.JUDGMENTS,
        lambda t: t.filter(pc.not_equal(t["product_id"], "B000000003")),
        "integrity",
    ),
    "a supplementary product that is judged": (schemas.SUPP, setting("product_id", 0, "B000000000"), "integrity"),
    "has_image with a zero vector": (schemas.FEATURES, setting("clip_image_features", 0, vector(0)), "has-image"),
    "a vector without has_image": (schemas.FEATURES, setting("clip_image_features", 3, vector(1)), "has-image"),
    "ok without an image": (schemas.FEATURES, setting("has_image", 0, False), "status-image"),
    "a failed download with an image": (schemas.FEATURES, setting("has_image", 4, True), "status-image"),
    "an unknown status": (schemas.URLS, setting("image_status", 4, "gone"), "image-status"),
    "missing, and a URL": (schemas.URLS, setting("image_url", 3, "https://images.example/3.jpg"), "status-url"),
    "ok, and no URL": (schemas.URLS, setting("image_url", 0, None), "status-url"),
    "a label of its own": (schemas.JUDGMENTS, setting("esci_label", 0, "X"), "label"),
    "a gain of its own": (schemas.JUDGMENTS, setting("gain", 0, 0.5), "gain"),
    "another title": (schemas.FEATURES, setting("product_title", 0, "something else"), "inconsistent"),
    "another status": (schemas.FEATURES, setting("image_status", 5, schemas.OK), "inconsistent"),
    "a null title": (schemas.FEATURES, setting("product_title", 0, None), "inconsistent"),
    "another query text": (schemas.JUDGMENTS, setting("query", 0, "something else"), "inconsistent"),
    "a blank id": (schemas.URLS, setting("product_id", 1, " "), "blank"),
    "an empty query": (schemas.QUERIES, setting("query", 1, ""), "blank"),
    "a negative example_id": (schemas.JUDGMENTS, setting("example_id", 0, -1), "negative-id"),
    "a script for a URL": (schemas.URLS, setting("image_url", 0, "javascript:alert(1)"), "url"),
    "a URL without a host": (schemas.SUPP, setting("image_url", 0, "https:///a.jpg"), "url"),
    "a relative URL": (schemas.FEATURES, setting("image_url", 0, "a.jpg"), "url"),
    "a text vector of zeros": (schemas.FEATURES, setting("clip_text_features", 1, vector(0)), "zero-vector"),
    "a query vector of zeros": (schemas.QUERIES, setting("clip_text_features", 1, vector(0)), "zero-vector"),
    "numbers whose squares overflow": (schemas.QUERIES, setting("clip_text_features", 1, vector(3e38)), "norm"),
    "an image of such numbers": (schemas.FEATURES, setting("clip_image_features", 0, vector(-3e38)), "norm"),
    "numbers whose squares vanish": (schemas.QUERIES, setting("clip_text_features", 1, vector(1e-30)), "norm"),
    "text vectors that are all equal": (schemas.FEATURES, all_equal("clip_text_features"), "equal-vectors"),
    "image vectors that are all equal": (schemas.FEATURES, all_equal("clip_image_features"), "equal-vectors"),
    "a locale that is not selected": (schemas.SUPP, setting("product_locale", 0, "jp"), "contradiction"),
    "a vector unlike the classic one": (schemas.QUERIES, setting("clip_text_features", 0, vector(0.25)), "classic"),
    "a URL unlike the classic one": (
        schemas.SUPP,
        setting("image_url", 0, "https://images.example/else.jpg"),
        "classic",
    ),
}


@pytest.mark.parametrize("name", DATA)
def test_a_corruption_of_the_data_is_named(release: Path, name: str) -> None:
    config, change, code = DATA[name]
    edit(release, config, change)
    found = validate(release)
    assert code in {problem.code for problem in found}, found
    assert not {"checksum", "unlisted-file", "unreadable"} & {problem.code for problem in found}
    assert any(config in problem.where or config in problem.message for problem in found if problem.code == code)


def test_a_bad_url_is_kept_under_its_status(release: Path) -> None:
    for config in (schemas.URLS, schemas.FEATURES):
        edit(release, config, setting("image_url", 4, "javascript:alert(1)"), reseal=False)
        edit(release, config, setting("image_status", 4, schemas.BAD_URL), reseal=False)
    rewrite(
        release / schemas.PRODUCT_URLS,
        lambda text: text.replace("https://images.example/B000000004.jpg", "javascript:alert(1)"),
    )
    seal(release)
    assert validate(release) == []


def test_few_equal_vectors_and_equal_vectors_of_equal_texts_are_no_problem(tmp_path: Path) -> None:
    few = write_release(tmp_path / "few", products=9, classic=False)
    for column in schemas.VECTOR_COLUMNS:
        edit(few, schemas.FEATURES, all_equal(column), reseal=False)
    seal(few, NO_CLASSIC)
    assert validate(few) == []
    many = write_release(tmp_path / "many", classic=False)
    edit(many, schemas.FEATURES, all_equal("clip_text_features"), reseal=False)
    for config in (schemas.URLS, schemas.FEATURES):
        edit(many, config, lambda table: setting_all(table, "product_title", "same"), reseal=False)
    seal(many, NO_CLASSIC)
    assert validate(many) == []


@pytest.mark.parametrize(
    ("name", "path", "bad"),
    [
        ("tiny", "/own/shop", False),
        ("sqid", "/own/shop", True),
        ("tiny", "https://media.githubusercontent.com/media/amazon-science/esci-data/main", True),
    ],
)
def test_sources_are_known_where_the_data_claims_to_be_escis(tmp_path: Path, name: str, path: str, bad: bool) -> None:
    recipe = recipe_with(name=name, esci=EsciSettings(path=path), release=ReleaseSettings(classic_files=False))
    release = write_release(tmp_path / "r", classic=False)
    edit(release, schemas.QUERIES, setting("source", 2, None), reseal=False)
    seal(release, recipe)
    assert validate(release) == []
    edit(release, schemas.QUERIES, setting("source", 1, "newsletter"), reseal=False)
    seal(release, recipe)
    assert codes(release) == ({"source"} if bad else set())


def partial_setter(value: bool) -> Callable[[dict[str, Any]], object]:
    return lambda values: values["recipe"]["artifacts"].update(partial=value)


def test_text_vectors_are_zeros_only_where_the_recipe_takes_partial_files(tmp_path: Path) -> None:
    existing = recipe_with(artifacts=ArtifactsSettings(path="/x"), release=ReleaseSettings(classic_files=False))
    release = write_release(tmp_path / "r", classic=False)
    edit(release, schemas.QUERIES, setting("clip_text_features", 0, vector(0)), reseal=False)
    edit(release, schemas.FEATURES, setting("clip_text_features", 0, vector(0)), reseal=False)
    for recipe, partial, expected in (
        (NO_CLASSIC, None, {"zero-vector"}),
        (existing, True, set()),
        (existing, False, {"zero-vector"}),
    ):
        seal(release, recipe)
        if partial is not None:
            edit_manifest(release, partial_setter(partial))
        assert codes(release) == expected


def test_nothing_that_is_printed_holds_a_secret_or_a_control_character(release: Path) -> None:
    secrets = ("geheim", "hf_" + "A" * 30)
    title = f"https://me:geheim@x.example/?X-Amz-Signature=geheim {secrets[1]}\x1b[31m\n"
    edit(release, schemas.JUDGMENTS, setting("product_id", 0, title), reseal=False)
    edit(release, schemas.JUDGMENTS, setting("example_id", 0, -1), reseal=False)
    seal(release)
    (release / f"notes\x1b[31m\n{secrets[1]}.txt").write_text("x")
    card(release, "pretty_name: tiny", f'pretty_name: tiny\n"data_dir {secrets[1]}": 1')
    found = validate(release)
    assert {"negative-id", "forbidden-file", "card-key", "integrity"} <= {problem.code for problem in found}
    for problem in found:
        assert not any(secret in repr(problem) for secret in secrets)
        assert str(problem).isprintable() and len(str(problem)) < 1_200


# -- corruptions of files, and of what card and manifest state ---------------------------------------------------------


def rewrite(path: Path, change: Callable[[str], str]) -> None:
    before = path.read_text(encoding="utf-8")
    after = change(before)
    assert after != before
    path.write_text(after, encoding="utf-8")


def resum(release: Path, statistics: Statistics | None = None) -> None:
    """Write a manifest and checksums that agree with the card and the other files as they are now."""
    manifest.write(release, RECIPE, statistics or gather_statistics(release), revision=None)


def card(release: Path, old: str, new: str) -> None:
    rewrite(release / schemas.CARD, lambda text: text.replace(old, new, 1))
    resum(release)


def edit_manifest(release: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = release / schemas.MANIFEST
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    sums = manifest.read_sums(release) | {schemas.MANIFEST: sha256(path)}
    (release / schemas.SHA256SUMS).write_text("".join(f"{d}  {n}\n" for n, d in sorted(sums.items())))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def add_python(release: Path) -> None:
    (release / "tiny.py").write_text("pass\n")
    resum(release)


def rename_shard(release: Path, new: str) -> None:
    path, statistics = shard(release, schemas.URLS), gather_statistics(release)
    path.rename(path.with_name(new))
    resum(release, statistics)


FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a python file": (add_python, "python-file"),
    "a flipped byte": (lambda r: flip_byte(shard(r, schemas.URLS)), "checksum"),
    "a changed csv": (lambda r: rewrite(r / schemas.PRODUCT_URLS, lambda t: t.replace(".jpg", ".png", 1)), "checksum"),
    "a truncated parquet": (lambda r: truncate(shard(r, schemas.FEATURES)), "unreadable"),
    "an empty parquet": (lambda r: shard(r, schemas.QUERIES).write_bytes(b""), "unreadable"),
    "a web page for a parquet": (lambda r: shard(r, schemas.SUPP).write_text("<html>"), "unreadable"),
    "a shard removed": (lambda r: shard(r, schemas.JUDGMENTS).unlink(), "missing-file"),
    "a listed file removed": (lambda r: (r / schemas.QUERY_FEATURES).unlink(), "missing-file"),
    "a file that is not listed": (lambda r: (r / "notes.txt").write_text("x"), "unlisted-file"),
    "a leftover of an interrupted write": (
        lambda r: (r / "data" / "urls" / ".test-00000.part").write_text(""),
        "unlisted-file",
    ),
    "a shard number too high": (lambda r: rename_shard(r, "test-00001-of-00001.parquet"), "shard-numbering"),
    "a shard of two": (lambda r: rename_shard(r, "test-00000-of-00002.parquet"), "shard-numbering"),
    "a shard of another name": (lambda r: rename_shard(r, "data.parquet"), "shard-name"),
    "a config that is not declared": (lambda r: shutil.copytree(r / "data/urls", r / "data/more"), "unknown-config"),
    "no checksums": (lambda r: (r / schemas.SHA256SUMS).unlink(), "missing-file"),
    "checksums of another shape": (lambda r: (r / schemas.SHA256SUMS).write_text("hello\n"), "sums"),
    "checksums that leave the release": (lambda r: (r / schemas.SHA256SUMS).write_text(f"{'0' * 64}  ../x\n"), "sums"),
    "a manifest that is no JSON": (lambda r: (r / schemas.MANIFEST).write_text("{"), "manifest"),
    "a manifest without a key": (lambda r: edit_manifest(r, lambda m: m.pop("counts")), "manifest"),
    "a count of the manifest": (lambda r: edit_manifest(r, lambda m: m["counts"].update(products=41)), "count"),
    "a width of the manifest": (lambda r: edit_manifest(r, lambda m: m.update(width=768)), "width"),
    "an expected count": (lambda r: seal(r, recipe_with(expect=ExpectSettings(products=164_900))), "count"),
    "no card": (lambda r: (r / schemas.CARD).unlink(), "missing-file"),
    "a card without YAML": (lambda r: (r / schemas.CARD).write_text("# hello\n"), "card"),
    "a card with broken YAML": (lambda r: card(r, "configs:", "configs: ["), "card"),
    "a card without a licence": (lambda r: card(r, "license:", "licence:"), "card"),
    "another default config": (lambda r: card(r, "  default: true\n", ""), "card-configs"),
    "a config renamed": (lambda r: card(r, "config_name: supp", "config_name: more"), "card-configs"),
    "a pattern that matches nothing": (lambda r: card(r, "data/supp/train-*", "data/supp/test-*"), "card-configs"),
    "rows of the card": (lambda r: card(r, "num_examples: 40", "num_examples: 41"), "count"),
    "a width of the card": (lambda r: card(r, "length: 8", "length: 768"), "card-features"),
    "a dtype of the card": (lambda r: card(r, "dtype: bool", "dtype: int64"), "card-features"),
    "another folder for a config": (
        lambda r: card(r, "- config_name: urls\n", "- config_name: urls\n  data_dir: ../../..\n"),
        "card-key",
    ),
    "an unknown key of the card": (lambda r: card(r, "pretty_name:", "builder_name: text\npretty_name:"), "card-key"),
    "an unknown key of files": (lambda r: card(r, "  - split: test\n", "  - split: test\n    x: 1\n"), "card-key"),
    "an unknown key of dataset_info": (
        lambda r: card(r, "dataset_info:\n- ", "dataset_info:\n- builder: x\n  "),
        "card-key",
    ),
    "an unknown key of a split": (lambda r: card(r, "num_examples: 40", "num_examples: 40\n    x: 1"), "card-key"),
    "a pattern that leaves the release": (lambda r: card(r, "data/urls/test-*", "../urls/test-*"), "card-configs"),
    "a pattern that matches more": (lambda r: card(r, "data/urls/test-*", "data/*/test-*"), "card-configs"),
    "files of another host": (
        lambda r: card(r, "data/urls/test-*", "https://x.example/data/urls/test-*"),
        "card-configs",
    ),
    "another licence": (lambda r: card(r, "- apache-2.0\n", "- cc0-1.0\n"), "contradiction"),
    "another language": (lambda r: card(r, "language:\n- en", "language:\n- ja"), "contradiction"),
    "another size category": (lambda r: card(r, "- n<1K", "- 1K<n<10K"), "contradiction"),
    "another encoder on the card": (lambda r: card(r, "| encoder | `made-up/", "| encoder | `real/"), "contradiction"),
    "another name in the manifest": (lambda r: edit_manifest(r, lambda m: m.update(name="sqid")), "contradiction"),
    "another version in the recipe": (
        lambda r: edit_manifest(r, lambda m: m["recipe"].update(version="2.0.0")),
        "contradiction",
    ),
    "another model in the recipe": (
        lambda r: edit_manifest(r, lambda m: m["recipe"]["encoder"].update(model="x/y")),
        "contradiction",
    ),
    "a model of another width": (
        lambda r: seal(r, recipe_with(encoder=EncoderSettings(model="openai/clip-vit-large-patch14"))),
        "contradiction",
    ),
    "other splits in the recipe": (
        lambda r: edit_manifest(r, lambda m: m["recipe"]["selection"].update(splits=["train"])),
        "contradiction",
    ),
    "no classic files in the recipe": (lambda r: seal(r, NO_CLASSIC), "contradiction"),
    "a csv with carriage returns": (
        lambda r: (r / schemas.PRODUCT_URLS).write_bytes(
            (r / schemas.PRODUCT_URLS).read_bytes().replace(b"\n", b"\r\n")
        ),
        "classic",
    ),
    "a line break in a cell of a csv": (
        lambda r: rewrite(r / schemas.PRODUCT_URLS, lambda t: t.replace("B000000000", '"B000\n000000"', 1)),
        "classic",
    ),
    "a size of the card": (lambda r: card(r, "download_size: ", "download_size: 9"), "card-size"),
    "a table of the card": (lambda r: card(r, "| products | 40 |", "| products | 164,900 |"), "card-table"),
    "a classic csv with other columns": (
        lambda r: rewrite(r / schemas.PRODUCT_URLS, lambda t: t.replace("image_url", "url", 1)),
        "classic",
    ),
    "a classic csv with three cells": (
        lambda r: rewrite(r / schemas.PRODUCT_URLS, lambda t: t + "B1,https://x.example,3\n"),
        "classic",
    ),
    "a classic parquet truncated": (lambda r: truncate(r / schemas.PRODUCT_FEATURES), "classic"),
    "classic columns of another type": (
        lambda r: pq.write_table(pa.table({"query_id": ["1"]}), r / schemas.QUERY_FEATURES),
        "classic",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_a_corruption_of_the_files_is_named(release: Path, name: str) -> None:
    corrupt, code = FILES[name]
    corrupt(release)
    assert code in codes(release), validate(release)


LABELS = {"good": 2.0, "fair": 1.0, "bad": 0.0}
OWN_LABELS = recipe_with(selection=Selection(labels=tuple(LABELS.items())))


@pytest.fixture(scope="module")
def own_labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_release(tmp_path_factory.mktemp("own") / "tiny", recipe=OWN_LABELS)


def test_own_labels_are_valid_where_the_recipe_states_them(own_labels: Path, tmp_path: Path) -> None:
    assert validate(own_labels) == []
    release = Path(shutil.copytree(own_labels, tmp_path / "tiny"))
    rows = pq.read_metadata(shard(release, schemas.JUDGMENTS)).num_rows
    edit_manifest(release, lambda m: m["recipe"]["selection"].pop("labels"))  # now ESCI's hold
    found = [problem for problem in validate(release) if problem.code == "label"]
    assert len(found) == 1
    assert f"one of E, S, C, I: {rows} rows" in found[0].message


def test_a_label_outside_the_table_and_a_label_with_two_gains(own_labels: Path, tmp_path: Path) -> None:
    release = Path(shutil.copytree(own_labels, tmp_path / "tiny"))
    table = pq.read_table(shard(release, schemas.JUDGMENTS))
    good = table["esci_label"].to_pylist().index("good")
    pq.write_table(setting("gain", good, 1.0)(table), shard(release, schemas.JUDGMENTS))
    seal(release, OWN_LABELS)
    (problem,) = validate(release)
    assert problem.code == "gain" and "good 2.0, fair 1.0, bad 0.0" in problem.message and "1 row" in problem.message
    pq.write_table(setting("esci_label", good, "E")(table), shard(release, schemas.JUDGMENTS))
    seal(release, OWN_LABELS)
    (problem,) = validate(release)
    assert problem.code == "label" and "good, fair, bad" in problem.message


def test_a_language_is_required_only_where_it_is_known(tmp_path: Path) -> None:
    german = recipe_with(selection=Selection(locales=("de",)))
    assert validate(write_release(tmp_path / "de", recipe=german, classic=False)) == []
    release = write_release(tmp_path / "us", classic=False)
    path = release / schemas.CARD
    rewrite(path, lambda text: text.replace("language:\n- en\n", "", 1))
    manifest.write(release, NO_CLASSIC, gather_statistics(release), revision=None)
    assert [str(problem) for problem in validate(release)] == [
        f"{schemas.CARD}: language is missing from its YAML block [card]"
    ]


def test_tables_of_another_version_may_be_worded_otherwise(release: Path) -> None:
    card(release, "| products | 40 |", "| things | 40 |")
    assert codes(release) == {"card-table"}
    edit_manifest(release, lambda m: m["versions"].update(sqid="0.0.1"))
    assert codes(release) == set()


def test_all_problems_are_listed_not_only_the_first(release: Path) -> None:
    edit(release, schemas.JUDGMENTS, setting("esci_label", 0, "X"), reseal=False)
    edit(release, schemas.FEATURES, setting("clip_text_features", 5, vector(np.nan)), reseal=False)
    add_python(release)
    (release / "notes.txt").write_text("x")
    (release / schemas.CARD).unlink()
    wanted = {"label", "non-finite", "python-file", "unlisted-file", "missing-file", "classic"}
    assert wanted <= codes(release)


def test_many_bad_rows_are_one_line_with_a_count_and_an_example(release: Path) -> None:
    rows = pq.read_metadata(shard(release, schemas.JUDGMENTS)).num_rows
    edit(release, schemas.JUDGMENTS, lambda t: t.set_column(6, "gain", pa.array([0.7] * t.num_rows, pa.float32())))
    gains = [problem for problem in validate(release) if problem.code == "gain"]
    assert len(gains) == 1
    assert f"{rows} rows" in gains[0].message
    assert "product_id B0" in gains[0].message


def test_a_file_far_larger_than_esci_is_not_read(release: Path) -> None:
    path = shard(release, schemas.SUPP)
    chunk = pa.table({"product_id": pa.nulls(3_000_000, pa.string())})
    with pq.ParquetWriter(path, chunk.schema) as writer:
        for _ in range(17):  # a run of nulls: a few kilobytes on disk
            writer.write_table(chunk)
    assert path.stat().st_size < 100_000
    assert any(problem.code == "unreadable" and "far larger" in problem.message for problem in validate(release))


@pytest.mark.parametrize("name", ["README.md", "manifest.json", "data/urls/test-00001-of-00002.parquet", "more"])
def test_pipes_devices_and_links_are_not_read(release: Path, name: str) -> None:
    path, inside = release / name, release / schemas.CARD
    links = ("/dev/zero", "nowhere", "/etc/hostname", release.parent, inside)
    makers: list[tuple[Callable[[Path], object], str]] = [(os.mkfifo, "not-a-file")]
    makers += [(lambda p, to=to: p.symlink_to(to), "link") for to in links]  # type: ignore[misc]
    for make, code in makers:
        path.unlink(missing_ok=True)
        make(path)
        assert [(problem.code, problem.where) for problem in validate(release)] == [(code, name)]


@pytest.mark.parametrize("folder", ["data", "data/urls", "more"])
def test_a_link_to_a_folder_is_not_followed(release: Path, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    outside = release.parent / "outside"
    if (release / folder).exists():
        (release / folder).rename(outside)
    else:
        outside.mkdir()
    (release / folder).symlink_to(outside)
    assert [(problem.code, problem.where) for problem in validate(release)] == [("link", folder)]


def test_the_release_itself_may_be_reached_by_a_link(release: Path) -> None:
    link = release.parent / "link"
    link.symlink_to(release)
    assert validate(link) == []


FORBIDDEN = {
    "model.pkl": "forbidden-file",
    "setup.sh": "forbidden-file",
    "evil.PY": "python-file",
    "code/evil.py": "python-file",
    "dataset_infos.json": "forbidden-file",
    ".huggingface.yaml": "forbidden-file",
    "data/urls/extra.pkl": "shard-name",
    "data/urls/deep/test-00000-of-00001.parquet": "shard-name",
    ".cache/x.pkl": "forbidden-file",
    ".gitattributes": "forbidden-file",
    ".git/hooks/post-checkout": "forbidden-file",
}


@pytest.mark.parametrize("name", FORBIDDEN)
def test_files_of_other_names_are_refused_also_where_they_are_listed(release: Path, name: str) -> None:
    path = release / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    digest = sha256(path)
    edit_manifest(release, lambda m: m["files"].update({name: {"bytes": 1, "sha256": digest, "rows": None}}))
    with (release / schemas.SHA256SUMS).open("a") as sums:
        sums.write(f"{digest}  {name}\n")
    assert (FORBIDDEN[name], name) in {(problem.code, problem.where) for problem in validate(release)}


def test_what_a_build_writes_may_be_held(good: Path) -> None:
    names = [path.relative_to(good).as_posix() for path in good.rglob("*") if path.is_file()]
    assert all(may_hold(name) for name in names)
    assert not any(may_hold(f"more/{name}") or may_hold(name.swapcase()) for name in names)


def test_a_directory_where_a_file_should_be(release: Path) -> None:
    for name in (schemas.CARD, schemas.MANIFEST, schemas.SHA256SUMS, schemas.PRODUCT_URLS):
        (release / name).unlink()
        (release / name).mkdir()
    assert {"missing-file"} <= codes(release)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_bytes_crash_it(release: Path, data: st.DataObject) -> None:
    paths = sorted(path for path in release.rglob("*") if path.is_file())
    path = data.draw(st.sampled_from(paths))
    whole = path.read_bytes()
    try:
        at = data.draw(st.integers(0, len(whole)))
        path.write_bytes(whole[:at] + data.draw(st.binary(max_size=20)) + whole[at + data.draw(st.integers(0, 20)) :])
        same = {whole, whole.rstrip(b"\n") if path.name == schemas.SHA256SUMS else whole}  # without its last line break
        assert bool(validate(release)) == (path.read_bytes() not in same)
    finally:
        path.write_bytes(whole)


# -- several splits and locales ---------------------------------------------------------------------------------------

TWO_SPLITS = recipe_with(
    selection=Selection(splits=("train", "test"), embed_supp=True), release=ReleaseSettings(classic_files=False)
)


def add_train_split(release: Path) -> None:
    """The same products judged for other queries in a split of its own; supplementary products with vectors."""

    def write(config: str, split: str, table: pa.Table) -> None:
        write_shards(release, config, split, [table], table.schema, rows=table.num_rows)

    def numbered(table: pa.Table, *columns: str) -> pa.Table:
        for name in columns:
            table = table.set_column(table.column_names.index(name), table.field(name), pc.add(table[name], 1_000))
        return table

    tables = {config: pq.read_table(shard(release, config)) for config in schemas.CONFIGS}
    write(schemas.JUDGMENTS, "train", numbered(tables[schemas.JUDGMENTS], "query_id", "example_id"))
    write(schemas.QUERIES, "train", numbered(tables[schemas.QUERIES], "query_id"))
    write(schemas.URLS, "train", tables[schemas.URLS])
    write(schemas.FEATURES, "train", tables[schemas.FEATURES])
    features = tables[schemas.FEATURES].slice(0, 5)
    for name in ("product_id", "product_title", "image_url", "image_status"):
        column = features.column_names.index(name)
        features = features.set_column(column, features.field(name), tables[schemas.SUPP][name])
    write(schemas.FEATURES, schemas.SUPP_VECTORS_SPLIT, features)
    seal(release, TWO_SPLITS)


def test_a_product_may_be_judged_in_two_splits(tmp_path: Path) -> None:
    release = write_release(tmp_path / "r", classic=False)
    add_train_split(release)
    assert validate(release) == []
    assert manifest.read(release).counts["products"] == 40
    assert manifest.read(release).counts["queries"] == 12


def test_each_split_needs_its_own_products(tmp_path: Path) -> None:
    release = write_release(tmp_path / "r", classic=False)
    add_train_split(release)
    path = release / shard_name(schemas.URLS, "train", 0, 1)
    pq.write_table(pq.read_table(path).slice(1), path)
    seal(release, TWO_SPLITS)
    found = [problem for problem in validate(release) if problem.code == "integrity"]
    assert found
    assert all("B000000000" in problem.message for problem in found)


def test_supplementary_products_with_vectors_are_those_of_supp(tmp_path: Path) -> None:
    release = write_release(tmp_path / "r", classic=False)
    add_train_split(release)
    path = release / shard_name(schemas.FEATURES, schemas.SUPP_VECTORS_SPLIT, 0, 1)
    pq.write_table(setting("product_title", 1, "something else")(pq.read_table(path)).slice(1), path)
    seal(release, TWO_SPLITS)
    assert [(p.code, p.where, p.message) for p in validate(release)] == [
        ("integrity", "data/supp", "1 products are not in product_features, first B100000000 us"),
        ("inconsistent", "data/product_features", "product_title differs from supp in 1 rows, first B100000001 us"),
    ]


def test_locales_in_the_classic_files(release: Path) -> None:
    """The same id in two locales: the published files get a product_locale column."""
    for config in (schemas.URLS, schemas.FEATURES, schemas.JUDGMENTS):
        table = pq.read_table(shard(release, config))
        both = pa.concat_tables([table, setting_all(table, "product_locale", "jp")])
        if config == schemas.JUDGMENTS:
            both = both.set_column(0, "example_id", pa.array(range(both.num_rows)))
        both = both.sort_by([(name, "ascending") for name in schemas.DECLARED[config].key])
        write_shards(release, config, "test", [both], table.schema, rows=both.num_rows)
    urls = pq.read_table(shard(release, schemas.URLS))
    features = pq.read_table(shard(release, schemas.FEATURES))
    image = [
        v if there else None
        for v, there in zip(features["clip_image_features"].to_pylist(), features["has_image"].to_pylist(), strict=True)
    ]
    names = ["product_id", "product_locale", "clip_text_features"]
    products = features.select(names).append_column("clip_image_features", pa.array(image, pa.list_(pa.float32())))
    write_urls(release / schemas.PRODUCT_URLS, [urls], located=True)
    write_classic_features(release / schemas.PRODUCT_FEATURES, "product", [products], located=True)
    both = recipe_with(selection=Selection(locales=("us", "jp")))
    seal(release, both)
    assert validate(release) == []
    write_classic_features(release / schemas.PRODUCT_FEATURES, "product", [products.slice(1)], located=True)
    seal(release, both)
    assert codes(release) == {"classic"}


def setting_all(table: pa.Table, column: str, value: str) -> pa.Table:
    index = table.column_names.index(column)
    return table.set_column(index, column, pa.array([value] * table.num_rows))
