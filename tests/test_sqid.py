"""sqid.load and the builder, under both generations of datasets: rows, splits, caching, streaming, failures."""

from __future__ import annotations

import ast
import dataclasses
import errno
import inspect
import multiprocessing
import re
import textwrap
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import tiny_esci
from tiny_esci import MAIN_IDS, WIDTH, write_artifacts, write_csv, write_esci

import sqid
from sqid_lib import schemas
from sqid_lib.errors import (
    ContractError,
    CorruptFileError,
    DiskError,
    DuplicateKeyError,
    EmptyFileError,
    HtmlPageError,
    LabelError,
    LfsPointerError,
    MissingFileError,
    SchemaError,
    SqidError,
    UsageError,
)

pytestmark = [
    pytest.mark.compat,
    # warnings of datasets 3.6 about its own dependencies
    pytest.mark.filterwarnings("default::DeprecationWarning", "default::FutureWarning"),
]


def rows(config: str, split: str = "test", **options: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = sqid.load(config, split, **options).to_list()
    return found


def test_urls(esci: Path, artifacts: Path, cache: str) -> None:
    found = rows("urls", esci=esci, artifacts=artifacts, cache_dir=cache)
    assert [r["product_id"] for r in found] == sorted(MAIN_IDS)
    by_id = {r["product_id"]: r for r in found}
    assert [by_id[i]["image_status"] for i in MAIN_IDS[:5]] == ["missing", "placeholder", "generic", "missing", "ok"]
    assert by_id["0060538260"]["image_url"] is None
    assert by_id[MAIN_IDS[7]]["image_url"] == "https://images.example/a%7Cb,c.jpg"
    texts = {(r["product_locale"], r["product_id"]): r for r in tiny_esci.products()}
    assert all(r[c] == texts["us", r["product_id"]][c] for r in found for c in schemas.TEXT_COLUMNS)


def test_product_features(esci: Path, artifacts: Path, cache: str) -> None:
    dataset = sqid.load("product_features", "test", esci=esci, artifacts=artifacts, cache_dir=cache)
    assert dataset.features == schemas.config_features("product_features", WIDTH)
    found = dataset.to_list()
    assert [r["product_id"] for r in found] == sorted(MAIN_IDS)
    assert {r["product_id"] for r in found if not r["has_image"]} == tiny_esci.no_image()
    source = pq.read_table(artifacts / schemas.PRODUCT_FEATURES).to_pylist()
    stored = {r["product_id"]: r for r in source}
    zeros = [0.0] * WIDTH
    for row in found:
        given = stored.get(row["product_id"], {})
        assert row["clip_text_features"] == given.get("clip_text_features", zeros)
        assert row["clip_image_features"] == (given.get("clip_image_features") or zeros)


def test_query_features_supp_and_judgments(esci: Path, artifacts: Path, cache: str) -> None:
    options: dict[str, Any] = {"esci": esci, "artifacts": artifacts, "cache_dir": cache}
    queries = rows("query_features", **options)
    assert [r["query_id"] for r in queries] == [26, 27, 28, 29, 30]
    given = {
        r["query_id"]: r["clip_text_features"] for r in pq.read_table(artifacts / schemas.QUERY_FEATURES).to_pylist()
    }
    assert all(r["clip_text_features"] == given[r["query_id"]] for r in queries)
    supp = rows("supp", "train", **options)
    assert [(r["product_id"], r["image_status"]) for r in supp] == [
        ("S1", "ok"),
        ("S2", "missing"),
        ("S3", "placeholder"),
    ]
    judgments = rows("judgments", **options)
    assert len(judgments) == 2 * len(MAIN_IDS)
    assert judgments[0]["gain"] == pytest.approx(schemas.GAINS[judgments[0]["esci_label"]])


def test_without_a_split_all_splits_come_in_a_dict(esci: Path, artifacts: Path, cache: str) -> None:
    found = sqid.load(esci=esci, artifacts=artifacts, cache_dir=cache)
    assert isinstance(found, datasets.DatasetDict) and list(found) == ["test"]
    streamed = sqid.load("urls", streaming=True, esci=esci, artifacts=artifacts, cache_dir=cache)
    assert isinstance(streamed, datasets.IterableDatasetDict)
    assert list(streamed["test"]) == found["test"].to_list()


def test_other_selections_have_missing_features_not_errors(esci: Path, artifacts: Path, cache: str) -> None:
    options: dict[str, Any] = {"esci": esci, "artifacts": artifacts, "cache_dir": cache}
    spanish = rows("judgments", locale="es", **options)
    assert [(r["product_id"], r["product_locale"]) for r in spanish] == [("E1", "es"), ("both", "es")]
    features = rows("product_features", locale=["us", "es"], **options)
    both = [r for r in features if r["product_id"] == "both"]
    assert [(r["product_locale"], r["has_image"], r["image_status"]) for r in both] == [
        ("es", False, "missing"),
        ("us", True, "ok"),
    ]
    with pytest.warns(UserWarning, match="of 5 products of split train, locale us, 1 have image URLs"):
        train = rows("product_features", "train", **options)
    assert [r["product_id"] for r in train] == sorted([MAIN_IDS[0], "T1", *tiny_esci.SUPP_IDS])
    large = rows("judgments", version="large", **options)
    assert len(large) == 2 * len(MAIN_IDS) + 2
    assert len(rows("judgments", "train+test[:3]", **options)) == 8 + 3
    with pytest.warns(UserWarning, match="of 2 queries of split train, locale us, 0 have vectors"):
        queries = rows("query_features", "train", **options)
    assert not any(any(r["clip_text_features"]) for r in queries)


@pytest.mark.parametrize("options", [{"locale": "fr"}, {"version": "huge"}, {"split": "dev"}, {"config": "nothing"}])
def test_what_esci_does_not_hold_is_wrong_usage(
    esci: Path, artifacts: Path, cache: str, options: dict[str, Any]
) -> None:
    with pytest.raises(UsageError):
        sqid.load(**{"config": "urls", "esci": esci, "artifacts": artifacts, "cache_dir": cache, **options})


def test_a_changed_file_never_gives_old_rows(esci: Path, artifacts: Path, cache: str) -> None:
    options: dict[str, Any] = {"esci": esci, "artifacts": artifacts, "cache_dir": cache}
    first = rows("urls", **options)
    assert rows("urls", **options) == first
    urls = tiny_esci.image_urls() | {"both": "https://images.example/NEW._AC_SX425_.jpg"[:-4] + ".png"}
    write_csv(artifacts / schemas.PRODUCT_URLS, urls)
    second = {r["product_id"]: r for r in rows("urls", **options)}
    assert second["both"]["image_url"].endswith(".png")
    stream = sqid.load("urls", "test", streaming=True, **options)
    begun = iter(stream)
    assert next(begun)["product_id"] == "0060538260"
    write_csv(artifacts / schemas.PRODUCT_URLS, tiny_esci.image_urls() | {"both": "https://images.example/LAST.png"})
    last = {r["product_id"]: r for r in sqid.load("urls", "test", streaming=True, **options)}
    assert last["both"]["image_url"].endswith("LAST.png") and second["both"]["image_url"].endswith("NEW._AC_SX425_.png")


def test_the_same_options_reuse_the_prepared_rows(esci: Path, artifacts: Path, cache: str) -> None:
    def files() -> dict[Path, int]:
        return {p: p.stat().st_mtime_ns for p in Path(cache).rglob("*.arrow")}

    sqid.load("urls", esci=esci, artifacts=artifacts, cache_dir=cache)
    before = files()
    sqid.load("urls", esci=esci, artifacts=artifacts, cache_dir=cache)
    assert before and files() == before
    sqid.load("urls", esci=esci, artifacts=artifacts, cache_dir=cache, locale=["us", "es"])
    assert len(files()) == 2 * len(before)


@pytest.mark.parametrize("name", ["sqid-test.arrow", "dataset_info.json", "sqid.note"])
def test_damaged_rows_in_the_cache_are_prepared_again(
    esci: Path, artifacts: Path, cache: str, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    rows = sqid.load("urls", "test", esci=esci, artifacts=artifacts, cache_dir=cache)
    path = Path(rows.cache_files[0]["filename"]).with_name(name)
    whole = path.read_bytes()
    damages = [whole[:-9], *(bytes([*whole[:i], whole[i] ^ 4, *whole[i + 1 :]]) for i in range(0, len(whole), 301))]
    for damaged in damages:
        path.write_bytes(damaged)
        caplog.clear()
        again = sqid.load("urls", "test", esci=esci, artifacts=artifacts, cache_dir=cache)
        assert again.to_list() == rows.to_list()
        (message,) = (record.getMessage() for record in caplog.records if record.name.startswith("sqid"))
        assert message.startswith(f"{path}: ") and message.endswith(" again")
        assert path.exists()


def test_rows_of_unknown_products_are_dropped_with_one_warning(esci: Path, artifacts: Path, cache: str) -> None:
    # "U1" is known to ESCI though nobody judged it; "Z1" and "Z2" are not
    write_csv(artifacts / schemas.PRODUCT_URLS, tiny_esci.image_urls() | {"U1": "http://u", "Z1": "http://z", "Z2": ""})
    with pytest.warns(UserWarning, match="2 rows are of no product") as raised:
        found = rows("urls", esci=esci, artifacts=artifacts, cache_dir=cache)
    assert len([w for w in raised if "no product" in str(w.message)]) == 1
    assert {r["product_id"] for r in found} == set(MAIN_IDS)


def test_the_published_files_cause_no_warning(esci: Path, artifacts: Path, cache: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for config in schemas.CONFIGS:
            sqid.load(config, esci=esci, artifacts=artifacts, cache_dir=cache)


def test_query_ids_as_text_and_vectors_of_fixed_width(esci: Path, artifacts: Path, cache: str) -> None:
    before = {
        c: rows(c, esci=esci, artifacts=artifacts, cache_dir=cache) for c in ("query_features", "product_features")
    }
    table = pq.read_table(artifacts / schemas.QUERY_FEATURES)
    pq.write_table(
        table.set_column(0, "query_id", table.column(0).cast(pa.string())), artifacts / schemas.QUERY_FEATURES
    )
    path = artifacts / schemas.PRODUCT_FEATURES
    table = pq.read_table(path)
    fixed = pa.list_(pa.float32(), WIDTH)
    for i in (1, 2):
        lists = pa.array(table.column(i).to_pylist(), fixed)
        table = table.set_column(i, table.column_names[i], lists)
    pq.write_table(table, path)
    after = {c: rows(c, esci=esci, artifacts=artifacts, cache_dir=cache) for c in before}
    assert after == before
    zeros = [[0.0] * WIDTH if v is None else v for v in table.column(2).to_pylist()]
    pq.write_table(table.set_column(2, "clip_image_features", pa.array(zeros, fixed)), path)
    assert rows("product_features", esci=esci, artifacts=artifacts, cache_dir=cache) == before["product_features"]


def test_an_empty_supp_is_a_result(tmp_path: Path, artifacts: Path, cache: str) -> None:
    esci = write_esci(tmp_path / "e", examples=[r for r in tiny_esci.examples() if r["split"] == "test"])
    with pytest.warns(UserWarning, match="supp is empty: .* has no product of locale us outside split test .* 2 judgm"):
        found = sqid.load("supp", esci=esci, artifacts=artifacts, cache_dir=cache)
    assert found["train"].num_rows == 0 and found["train"].column_names == schemas.config_schema("supp").names


def only_warning(raised: pytest.WarningsRecorder) -> str:
    """The one UserWarning, which points at this file."""
    (warning,) = [w for w in raised if issubclass(w.category, UserWarning)]
    assert warning.filename == __file__
    return str(warning.message)


def test_an_empty_split_says_which_splits_there_are(tmp_path: Path, artifacts: Path, cache: str) -> None:
    esci = write_esci(tmp_path / "e", examples=[r for r in tiny_esci.examples() if r["split"] == "train"])
    with pytest.warns(UserWarning) as raised:
        assert rows("judgments", esci=esci, artifacts=artifacts, cache_dir=cache) == []
    message = only_warning(raised)
    assert "judgments is empty" in message and "no judgments of split test, locale us, version small" in message
    assert "there are some of split train" in message


@pytest.mark.parametrize("streaming", [False, True])
def test_ids_that_do_not_match_are_shown_from_both_sides(
    esci: Path, artifacts: Path, cache: str, streaming: bool
) -> None:
    write_csv(artifacts / schemas.PRODUCT_URLS, {f"X-{i}": u for i, u in tiny_esci.image_urls().items()})
    with pytest.warns(UserWarning) as raised:
        found = sqid.load("urls", "test", esci=esci, artifacts=artifacts, cache_dir=cache, streaming=streaming)
        assert {row["image_status"] for row in found} == {"missing"}
    message = only_warning(raised)
    assert "35 rows are of no product or query of ESCI and were left out, of 35 in all" in message
    assert "In that file: 'X-0060538260' (us), 'X-007' (us), 'X-B000000001' (us)" in message
    assert "in ESCI: such as '0060538260' (us), '007' (us), 'B000000001' (us)" in message


def test_vectors_whose_ids_do_not_match_are_shown_from_both_sides(esci: Path, artifacts: Path, cache: str) -> None:
    for name, ids in (
        (schemas.PRODUCT_FEATURES, [f"X{n}" for n in range(35)]),
        (schemas.QUERY_FEATURES, list(range(900, 905))),
    ):
        table = pq.read_table(artifacts / name)
        pq.write_table(table.set_column(0, table.column_names[0], pa.array(ids)), artifacts / name)
    options: dict[str, Any] = {"esci": esci, "artifacts": artifacts, "cache_dir": cache}
    with pytest.warns(UserWarning) as raised:
        assert not any(row["has_image"] for row in rows("product_features", **options))
    assert "35 rows are of no product" in (message := only_warning(raised)) and "'X0' (us), 'X1' (us)" in message
    with pytest.warns(UserWarning) as raised:
        rows("query_features", **options)
    assert "In that file: 900, 901, 902; in ESCI: such as 26, 27, 28" in only_warning(raised)


def test_a_few_missing_vectors_are_zeros_and_counted_in_the_log(
    esci: Path, artifacts: Path, cache: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = artifacts / schemas.QUERY_FEATURES
    pq.write_table(pq.read_table(path).filter(pc.field("query_id") != 28), path)
    found = rows("query_features", esci=esci, artifacts=artifacts, cache_dir=cache)
    assert [row["query_id"] for row in found if not any(row["clip_text_features"])] == [28]
    assert "query_features.parquet: 1 of 5 queries of split test, locale us have no row in it" in caplog.text


def test_padded_ids_and_escaped_urls_match(tmp_path: Path, esci: Path, artifacts: Path, cache: str) -> None:
    options: dict[str, Any] = {"esci": esci, "cache_dir": cache}
    expected = {c: rows(c, artifacts=artifacts, **options) for c in ("urls", "product_features")}
    path = artifacts / schemas.PRODUCT_URLS
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], *(f" {line} " for line in lines[1:])]) + "\n")
    path = artifacts / schemas.PRODUCT_FEATURES
    table = pq.read_table(path)
    pq.write_table(table.set_column(0, "product_id", pa.array([f"{i:<12}" for i in table[0].to_pylist()])), path)
    padded = write_esci(
        tmp_path / "p", products=[r | {"product_id": f"{r['product_id']} "} for r in tiny_esci.products()]
    )
    assert {c: rows(c, artifacts=artifacts, **(options | {"esci": padded})) for c in expected} == expected
    write_csv(artifacts / schemas.PRODUCT_URLS, tiny_esci.image_urls() | {"both": "https://x.example/i?a=1&amp;b=2"})
    found = {r["product_id"]: r["image_url"] for r in rows("urls", artifacts=artifacts, **options)}
    assert found["both"] == "https://x.example/i?a=1&b=2"


def rewrite(artifacts: Path, missing: Any, dtype: pa.DataType) -> None:
    """Write the product vectors again, `missing` in place of null."""
    path = artifacts / schemas.PRODUCT_FEATURES
    table = pq.read_table(path)
    images = pa.array([missing if v is None else v for v in table.column(2).to_pylist()], dtype)
    pq.write_table(table.set_column(2, "clip_image_features", images), path, row_group_size=5)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("missing", [[float("nan")] * WIDTH, [], [None] * WIDTH])
def test_nan_throughout_means_no_image(esci: Path, artifacts: Path, cache: str, missing: Any, streaming: bool) -> None:
    options: dict[str, Any] = {"esci": esci, "artifacts": artifacts, "cache_dir": cache}
    before = rows("product_features", **options)
    rewrite(artifacts, missing, pa.list_(pa.float64()))
    assert list(sqid.load("product_features", "test", streaming=streaming, **options)) == before
    assert {r["product_id"] for r in before if not r["has_image"]} == tiny_esci.no_image()


@pytest.mark.parametrize("bad", [[float("nan"), 1.0, 1.0, 1.0, 1.0, 1.0], [float("inf")] * WIDTH])
@pytest.mark.parametrize("scattered", [False, True])
def test_nan_beside_numbers_names_the_row(
    tmp_path: Path, esci: Path, cache: str, bad: list[float], scattered: bool
) -> None:
    artifacts = write_artifacts(tmp_path / "a", shuffled=scattered)
    table = pq.read_table(artifacts / schemas.PRODUCT_FEATURES)
    images = table.column(2).to_pylist()
    images[13] = bad
    column = pa.array(images, pa.list_(pa.float32()))
    pq.write_table(
        table.set_column(2, "clip_image_features", column), artifacts / schemas.PRODUCT_FEATURES, row_group_size=5
    )
    with pytest.raises(ContractError, match=r"product_features\.parquet: clip_image_features.*the first is row 13"):
        rows("product_features", esci=esci, artifacts=artifacts, cache_dir=cache)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("first", [[1.0], [1.0] * 9])
def test_a_first_vector_of_another_length_is_one_line(
    esci: Path, artifacts: Path, cache: str, first: list[float], streaming: bool
) -> None:
    table = pq.read_table(artifacts / schemas.PRODUCT_FEATURES)
    texts = pa.array([first, *table.column(1).to_pylist()[1:]], pa.list_(pa.float32()))
    pq.write_table(table.set_column(1, "clip_text_features", texts), artifacts / schemas.PRODUCT_FEATURES)
    with pytest.raises(SchemaError) as raised:
        list(
            sqid.load("product_features", "test", streaming=streaming, esci=esci, artifacts=artifacts, cache_dir=cache)
        )
    assert f"expected {WIDTH}, got [{len(first)}], first in row 0" in str(raised.value)
    assert "clip_text_features: vectors differ in width" in str(raised.value) and "\n" not in str(raised.value)


def test_arrays_of_duckdb_are_read(esci: Path, artifacts: Path, cache: str) -> None:
    duckdb = pytest.importorskip("duckdb")
    options: dict[str, Any] = {"esci": esci, "artifacts": artifacts, "cache_dir": cache}
    before = rows("product_features", **options)
    path = artifacts / schemas.PRODUCT_FEATURES
    given = artifacts / "given.parquet"
    path.rename(given)
    columns = ", ".join(f"{name}::FLOAT[{WIDTH}] AS {name}" for name in schemas.VECTOR_COLUMNS)
    duckdb.sql(f"COPY (SELECT product_id, {columns} FROM '{given}') TO '{path}' (FORMAT parquet)")
    assert rows("product_features", **options) == before


def test_artifacts_without_urls_have_missing_images(esci: Path, artifacts: Path, cache: str) -> None:
    options: dict[str, Any] = {"esci": esci, "artifacts": artifacts, "cache_dir": cache}
    before = rows("product_features", **options)
    (artifacts / schemas.PRODUCT_URLS).unlink()
    (artifacts / schemas.SUPP_URLS).unlink()
    for config, split, count in (("urls", "test", len(MAIN_IDS)), ("supp", "train", 3)):
        with pytest.warns(UserWarning) as raised:
            found = rows(config, split, **options)
        assert len(found) == count and {(r["image_url"], r["image_status"]) for r in found} == {(None, "missing")}
        assert "0 have image URLs (there is no such file in the artifacts)" in only_warning(raised)
    with pytest.warns(UserWarning, match="no such file"):
        found = rows("product_features", **options)
    assert [r["clip_image_features"] for r in found] == [r["clip_image_features"] for r in before]
    (artifacts / schemas.PRODUCT_FEATURES).unlink()
    with pytest.raises(MissingFileError, match="product features file is missing"):
        rows("product_features", **options)
    (artifacts / schemas.QUERY_FEATURES).unlink()
    with pytest.raises(MissingFileError, match="product urls file is missing"):  # nothing of SQID is there
        rows("urls", **options)


BREAKS: dict[str, tuple[str, bytes | None, type[SqidError]]] = {
    "pointer": (schemas.PRODUCT_FEATURES, b"version https://git-lfs.github.com/spec/v1\n", LfsPointerError),
    "page": (schemas.PRODUCT_URLS, b"<!doctype html><title>404</title>", HtmlPageError),
    "empty": (schemas.QUERY_FEATURES, b"", EmptyFileError),
    "gone": (schemas.ESCI_EXAMPLES, None, MissingFileError),
    "truncated": (schemas.ESCI_PRODUCTS, b"PAR1 and then nothing", CorruptFileError),
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_source_raises_its_own_error(
    esci: Path, artifacts: Path, cache: str, name: str, streaming: bool
) -> None:
    file, data, error = BREAKS[name]
    path = next(p for p in (esci / file, artifacts / file) if p.exists())
    if data is None:
        path.unlink()
    else:
        path.write_bytes(data)
    config = "query_features" if file == schemas.QUERY_FEATURES else "product_features"
    with pytest.raises(error, match=r".") as raised:
        list(sqid.load(config, "test", esci=esci, artifacts=artifacts, cache_dir=cache, streaming=streaming))
    assert str(path.parent) in str(raised.value)


def test_a_broken_contract_raises_its_own_error(tmp_path: Path, artifacts: Path, cache: str) -> None:
    judged = tiny_esci.examples()
    judged[0]["esci_label"] = "X"
    cases: list[tuple[str, dict[str, Any], type[SqidError]]] = [
        ("label", {"examples": judged}, LabelError),
        ("double", {"products": tiny_esci.products() * 2}, DuplicateKeyError),
    ]
    for name, replaced, error in cases:
        esci = write_esci(tmp_path / name, **replaced)
        with pytest.raises(error):
            sqid.load("urls", esci=esci, artifacts=artifacts, cache_dir=cache)
    esci = write_esci(tmp_path / "whole")
    table = pq.read_table(artifacts / schemas.PRODUCT_FEATURES)
    pq.write_table(pa.concat_tables([table, table]), artifacts / schemas.PRODUCT_FEATURES)
    with pytest.raises(DuplicateKeyError):
        sqid.load("product_features", esci=esci, artifacts=artifacts, cache_dir=cache)
    pq.write_table(table.drop_columns(["clip_image_features"]), artifacts / schemas.PRODUCT_FEATURES)
    with pytest.raises(SchemaError, match="clip_image_features"):
        sqid.load("product_features", esci=esci, artifacts=artifacts, cache_dir=cache)


@pytest.mark.parametrize("column", ["split", "esci_label", "product_locale", "query_id"])
@pytest.mark.parametrize("num_proc", [None, 2])
def test_a_missing_column_of_the_examples_is_reported(
    esci: Path, artifacts: Path, cache: str, column: str, num_proc: int | None
) -> None:
    path = esci / schemas.ESCI_EXAMPLES
    pq.write_table(pq.read_table(path).drop_columns([column]), path)
    with pytest.raises(SchemaError, match=f"'{column}' is missing"):
        sqid.load("judgments", esci=esci, artifacts=artifacts, cache_dir=cache, num_proc=num_proc)


def test_a_column_twice_is_reported(esci: Path, artifacts: Path, cache: str) -> None:
    (artifacts / schemas.PRODUCT_URLS).write_text("product_id,image_url,image_url\nboth,a,b\n")
    with pytest.raises(SchemaError, match="there twice"):
        sqid.load("urls", esci=esci, artifacts=artifacts, cache_dir=cache)


def test_doubled_judgments_do_not_make_a_product_supplementary(tmp_path: Path, artifacts: Path, cache: str) -> None:
    esci = write_esci(tmp_path / "e", examples=tiny_esci.examples() * 2)
    for config in ("supp", "judgments"):
        with pytest.raises(DuplicateKeyError):
            sqid.load(config, esci=esci, artifacts=artifacts, cache_dir=cache)


@pytest.mark.parametrize(
    ("config", "split", "streaming"),
    [("supp", "test", False), ("urls", "dev", False), ("urls", "test[:50%]", True), ("supp", "test", True)],
)
def test_a_split_that_is_not_there_is_wrong_usage(
    esci: Path, artifacts: Path, cache: str, config: str, split: str, streaming: bool
) -> None:
    with pytest.raises(UsageError):
        sqid.load(config, split, esci=esci, artifacts=artifacts, cache_dir=cache, streaming=streaming)


def test_a_cache_that_cannot_be_written_is_reported(esci: Path, artifacts: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DiskError, match="cache_dir"):
        sqid.load("urls", esci=esci, artifacts=artifacts, cache_dir=str(tmp_path / "file"))


def test_a_read_only_home_names_the_settings_that_move_the_cache(
    esci: Path, artifacts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Any, *_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "home" / ".cache")
    monkeypatch.setattr("os.makedirs", refuse)
    with pytest.raises(DiskError) as raised:
        sqid.load("urls", esci=esci, artifacts=artifacts)
    message = str(raised.value)
    assert "Read-only file system" in message and str(tmp_path / "home" / ".cache") in message
    assert all(name in message for name in ("cache_dir", "HF_HOME", "HF_DATASETS_CACHE")) and "\n" not in message


@pytest.mark.parametrize("name", ["a?b", "a#b", "a::b", "a*[b]", "a%20b", "memory::x", "a b"])
def test_local_paths_are_never_urls(tmp_path: Path, name: str) -> None:
    root = tmp_path / name
    esci, artifacts = write_esci(root / "esci"), write_artifacts(root / "artifacts")
    for directory in (esci, artifacts):
        (directory / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
        for path in list(directory.iterdir()):
            (directory / f"._{path.name}").write_bytes(b"\0\5\x16\7")
    options: dict[str, Any] = {"esci": str(esci), "artifacts": str(artifacts), "cache_dir": str(root / "cache")}
    found = rows("product_features", **options)
    assert len(found) == len(MAIN_IDS)
    assert list(sqid.load("product_features", "test", streaming=True, **options)) == found


@pytest.mark.parametrize("split", ["test[:10%]+test[:20%]", "test+test", "test[3:5]+train+test[4:]"])
def test_slices_that_overlap_are_wrong_usage(esci: Path, artifacts: Path, cache: str, split: str) -> None:
    with pytest.raises(UsageError, match=r"slices overlap: rows \d+ to \d+ of test would come twice"):
        sqid.load("judgments", split, esci=esci, artifacts=artifacts, cache_dir=cache)
    assert len(rows("judgments", "test[:3]+test[3:5]", esci=esci, artifacts=artifacts, cache_dir=cache)) == 5
    with pytest.raises(UsageError, match="not a split"):
        sqid.load("judgments", "test[x]", esci=esci, artifacts=artifacts, cache_dir=cache)


def test_a_directory_that_is_not_there_comes_before_a_repository(esci: Path, tmp_path: Path, cache: str) -> None:
    with pytest.raises(MissingFileError, match="nowhere: no such directory"):
        sqid.load("urls", esci=esci, artifacts=tmp_path / "nowhere", cache_dir=cache)


def test_the_version_is_that_of_the_distribution() -> None:
    installed = [found.version for found in metadata.distributions(name="sqid")]
    assert sqid.__version__ == (installed[0] if installed else "unknown")


def test_the_types_for_editors_are_those_of_the_module() -> None:
    """sqid-stubs states the parameters and defaults of sqid.py; each overload of load may fix split and streaming."""
    stub = ast.parse((Path(sqid.__file__).parent / "sqid-stubs" / "__init__.pyi").read_text())
    loads = [node for node in stub.body if isinstance(node, ast.FunctionDef) and node.name == "load"]
    assert len(loads) == 7
    real = inspect.signature(sqid.load).parameters
    for load in loads:
        arguments = [*load.args.args, *load.args.kwonlyargs]
        defaults = [
            *[None] * (len(load.args.args) - len(load.args.defaults)),
            *load.args.defaults,
            *load.args.kw_defaults,
        ]
        assert {a.arg for a in arguments} == set(real) - {"options"} and load.args.kwarg
        for argument, default in zip(arguments, defaults, strict=True):
            if default is not None:
                assert ast.literal_eval(default) == real[argument.arg].default
    (config,) = [node for node in stub.body if isinstance(node, ast.ClassDef) and node.name == "SqidConfig"]
    fields = {n.target.id: ast.literal_eval(n.value) for n in config.body if isinstance(n, ast.AnnAssign)}  # type: ignore[union-attr,arg-type]
    declared = {f.name: f.default for f in dataclasses.fields(sqid.SqidConfig)}
    assert fields == {name: declared[name] for name in sqid.SqidConfig.__annotations__}


def test_type_checkers_know_what_load_returns(tmp_path: Path) -> None:
    api = pytest.importorskip("mypy.api")
    snippet = """
        import sqid
        reveal_type(sqid.load("urls"))
        reveal_type(sqid.load("urls", "test"))
        reveal_type(sqid.load("urls", streaming=True))
        reveal_type(sqid.load(split="test", streaming=True))
        reveal_type(sqid.__version__)
        sqid.load("urls", locale=3)
    """
    (tmp_path / "snippet.py").write_text(textwrap.dedent(snippet))
    (tmp_path / "sqid.pyi").write_text((Path(sqid.__file__).parent / "sqid-stubs" / "__init__.pyi").read_text())
    names = ("Dataset", "DatasetDict", "IterableDataset", "IterableDatasetDict", "ArrowBasedBuilder", "BuilderConfig")
    classes = "".join(f"class {name}: ...\n" for name in (*names, "Selection"))
    for module in ("datasets/__init__", "sqid_lib/__init__", "sqid_lib/joined/__init__", "sqid_lib/joined/selection"):
        (tmp_path / f"{module}.pyi").parent.mkdir(exist_ok=True)
        (tmp_path / f"{module}.pyi").write_text(classes)
    for module in ("arrow_dataset", "builder", "dataset_dict", "iterable_dataset"):  # in place of datasets itself
        (tmp_path / "datasets" / f"{module}.pyi").write_text(classes)
    arguments = ["--strict", "--no-site-packages", "--cache-dir", str(tmp_path / "c"), str(tmp_path / "snippet.py")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MYPYPATH", str(tmp_path))
        patch.chdir(tmp_path)
        printed, errors, _ = api.run(arguments)
    assert not errors
    revealed = re.findall(r'Revealed type is "([^"]+)"', printed)
    kinds = ["dataset_dict.DatasetDict", "arrow_dataset.Dataset"]
    kinds += ["dataset_dict.IterableDatasetDict", "iterable_dataset.IterableDataset"]
    assert revealed == [*(f"datasets.{kind}" for kind in kinds), "str"]
    assert printed.count(" error: ") == 1 and 'No overload variant of "load"' in printed


def stream(esci: Path, artifacts: Path, cache: str, config: str = "product_features") -> Any:
    return sqid.load(config, "test", streaming=True, esci=esci, artifacts=artifacts, cache_dir=cache)


@pytest.mark.parametrize("scattered", [False, True])
@pytest.mark.parametrize("config", ["urls", "product_features", "judgments"])
def test_nodes_divide_the_rows_exactly_once(
    tmp_path: Path, esci: Path, cache: str, config: str, scattered: bool
) -> None:
    from datasets.distributed import split_dataset_by_node

    artifacts = write_artifacts(tmp_path / "a", shuffled=scattered)
    whole = rows(config, esci=esci, artifacts=artifacts, cache_dir=cache)
    for world in (2, 3, 4):
        parts = [
            list(split_dataset_by_node(stream(esci, artifacts, cache, config), rank, world)) for rank in range(world)
        ]
        everything = [row for part in parts for row in part]
        assert sorted(map(str, everything)) == sorted(map(str, whole))


def test_dataloader_workers_divide_the_rows_exactly_once(esci: Path, artifacts: Path, cache: str) -> None:
    torch_data = pytest.importorskip("torch.utils.data")
    dataset = stream(esci, artifacts, cache)
    loader = torch_data.DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context="fork")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = [row["product_id"] for row in loader]
    assert sorted(found) == sorted(MAIN_IDS)


@pytest.mark.parametrize("taken", [0, 1, 7, 35, 36])
def test_a_stream_resumes_exactly(esci: Path, artifacts: Path, cache: str, taken: int) -> None:
    whole = list(stream(esci, artifacts, cache))
    first = stream(esci, artifacts, cache)
    head = []
    state = first.state_dict()
    for row, _ in zip(first, range(taken), strict=False):
        head.append(row)
        state = first.state_dict()
    head = head[:taken]
    again = stream(esci, artifacts, cache)
    again.load_state_dict(state)
    assert head + list(again) == whole


def test_the_numpy_and_torch_formats_take_every_row(esci: Path, artifacts: Path, cache: str) -> None:
    dataset = sqid.load("product_features", "test", esci=esci, artifacts=artifacts, cache_dir=cache)
    assert dataset.with_format("numpy")[:]["clip_image_features"].shape == (len(MAIN_IDS), WIDTH)
    torch = pytest.importorskip("torch")
    batch = dataset.with_format("torch")[:]
    assert batch["clip_image_features"].dtype == torch.float32
    assert tuple(batch["clip_image_features"].shape) == (len(MAIN_IDS), WIDTH)


def _load_once(esci: str, artifacts: str, cache: str) -> int:
    return len(rows("product_features", esci=esci, artifacts=artifacts, cache_dir=cache))


def test_two_processes_loading_at_once_do_not_harm_each_other(esci: Path, artifacts: Path, cache: str) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        counts = pool.starmap(_load_once, [(str(esci), str(artifacts), cache)] * 2)
    assert counts == [len(MAIN_IDS)] * 2


def test_preparing_in_two_processes_gives_the_same_rows(
    esci: Path, artifacts: Path, cache: str, tmp_path: Path
) -> None:
    one = rows("urls", esci=esci, artifacts=artifacts, cache_dir=cache)
    two = rows("urls", esci=esci, artifacts=artifacts, cache_dir=str(tmp_path / "other"), num_proc=2)
    assert one == two


def test_the_builder_itself(esci: Path, artifacts: Path, cache: str) -> None:
    builder = sqid.Sqid(config_name="urls", esci=esci, artifacts=artifacts, cache_dir=cache, version="large")
    builder.download_and_prepare()
    assert "L1" in builder.as_dataset(split="test")["product_id"]
    assert sqid.Sqid.DEFAULT_CONFIG_NAME == "urls" and set(sqid.Sqid.builder_configs) == set(schemas.CONFIGS)


@pytest.mark.skipif(int(datasets.__version__.split(".")[0]) >= 4, reason="datasets 4 and later refuse loading scripts")
@pytest.mark.parametrize("streaming", [False, True])
def test_the_script(esci: Path, artifacts: Path, cache: str, streaming: bool) -> None:
    script = str(Path(sqid.__file__).resolve())
    options = {"esci": str(esci), "artifacts": str(artifacts), "cache_dir": cache, "trust_remote_code": True}
    found = datasets.load_dataset(script, "product_features", split="test", streaming=streaming, **options)
    expected = rows("product_features", esci=esci, artifacts=artifacts, cache_dir=cache)
    assert list(found) == expected
    large = datasets.load_dataset(script, "judgments", split="train", esci_split="train", version="large", **options)
    assert len(large) == 8
    assert len(expected) == len(MAIN_IDS)


@pytest.mark.parametrize("labels", [["E"], {"E": "1", "S": 0.1, "C": 0.01, "I": 0.0}])
def test_labels_that_have_no_gains(labels: Any, esci: Path, artifacts: Path) -> None:
    with pytest.raises(UsageError, match="bad labels"):
        sqid.load("judgments", esci=esci, artifacts=artifacts, labels=labels)


def test_an_unknown_option_is_named_and_no_password_is_shown(esci: Path) -> None:
    secret = "https://someone:passw0rd@host.invalid/esci"
    with pytest.raises(UsageError, match=r"unknown option.*got 'locales'\. Did you mean locale\?"):
        sqid.load("urls", esci=secret, locales="us")
    assert "passw0rd" not in repr(sqid.Sqid(config_name="urls", esci=str(esci), artifacts=secret).config)
