"""sqid.load and the builder, under both generations of datasets: rows, splits, caching, streaming, failures."""

from __future__ import annotations

import multiprocessing
import warnings
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_esci
from tiny_esci import MAIN_IDS, WIDTH, write_artifacts, write_csv, write_esci

import sqid
from sqid_lib import schemas
from sqid_lib.errors import (
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
    # datasets 3.6 lags behind its dependencies in ways that are not ours
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


def test_other_cuts_have_missing_features_not_errors(esci: Path, artifacts: Path, cache: str) -> None:
    options: dict[str, Any] = {"esci": esci, "artifacts": artifacts, "cache_dir": cache}
    spanish = rows("judgments", locale="es", **options)
    assert [(r["product_id"], r["product_locale"]) for r in spanish] == [("E1", "es"), ("both", "es")]
    features = rows("product_features", locale=["us", "es"], **options)
    both = [r for r in features if r["product_id"] == "both"]
    assert [(r["product_locale"], r["has_image"], r["image_status"]) for r in both] == [
        ("es", False, "missing"),
        ("us", True, "ok"),
    ]
    train = rows("product_features", "train", **options)
    assert [r["product_id"] for r in train] == sorted([MAIN_IDS[0], "T1", *tiny_esci.SUPP_IDS])
    large = rows("judgments", version="large", **options)
    assert len(large) == 2 * len(MAIN_IDS) + 2
    assert len(rows("judgments", "train+test[:3]", **options)) == 8 + 3
    assert not any(any(r["clip_text_features"]) for r in rows("query_features", "train", **options))


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


def test_strangers_are_dropped_with_one_warning(esci: Path, artifacts: Path, cache: str) -> None:
    # "U1" is known to ESCI though nobody judged it; "Z1" and "Z2" are not
    write_csv(artifacts / schemas.PRODUCT_URLS, tiny_esci.image_urls() | {"U1": "http://u", "Z1": "http://z", "Z2": ""})
    with pytest.warns(UserWarning, match="2 rows are of no product") as told:
        found = rows("urls", esci=esci, artifacts=artifacts, cache_dir=cache)
    assert len([w for w in told if "no product" in str(w.message)]) == 1
    assert {r["product_id"] for r in found} == set(MAIN_IDS)


def test_nothing_is_warned_of_the_published_files(esci: Path, artifacts: Path, cache: str) -> None:
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


def test_an_empty_supp_is_an_answer(tmp_path: Path, artifacts: Path, cache: str) -> None:
    esci = write_esci(tmp_path / "e", examples=[r for r in tiny_esci.examples() if r["split"] == "test"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        found = sqid.load("supp", esci=esci, artifacts=artifacts, cache_dir=cache)
    assert found["train"].num_rows == 0 and found["train"].column_names == schemas.config_schema("supp").names


BREAKS: dict[str, tuple[str, bytes | None, type[SqidError]]] = {
    "pointer": (schemas.PRODUCT_FEATURES, b"version https://git-lfs.github.com/spec/v1\n", LfsPointerError),
    "page": (schemas.PRODUCT_URLS, b"<!doctype html><title>404</title>", HtmlPageError),
    "empty": (schemas.QUERY_FEATURES, b"", EmptyFileError),
    "gone": (schemas.ESCI_EXAMPLES, None, MissingFileError),
    "stump": (schemas.ESCI_PRODUCTS, b"PAR1 and then nothing", CorruptFileError),
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_source_is_told_as_itself(esci: Path, artifacts: Path, cache: str, name: str, streaming: bool) -> None:
    file, data, error = BREAKS[name]
    path = next(p for p in (esci / file, artifacts / file) if p.exists())
    if data is None:
        path.unlink()
    else:
        path.write_bytes(data)
    config = "query_features" if file == schemas.QUERY_FEATURES else "product_features"
    with pytest.raises(error, match=r".") as told:
        list(sqid.load(config, "test", esci=esci, artifacts=artifacts, cache_dir=cache, streaming=streaming))
    assert str(path.parent) in str(told.value)


def test_a_broken_contract_is_told_as_itself(tmp_path: Path, artifacts: Path, cache: str) -> None:
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
def test_a_missing_column_of_the_examples_is_told(
    esci: Path, artifacts: Path, cache: str, column: str, num_proc: int | None
) -> None:
    path = esci / schemas.ESCI_EXAMPLES
    pq.write_table(pq.read_table(path).drop_columns([column]), path)
    with pytest.raises(SchemaError, match=f"'{column}' is missing"):
        sqid.load("judgments", esci=esci, artifacts=artifacts, cache_dir=cache, num_proc=num_proc)


def test_a_column_twice_is_told(esci: Path, artifacts: Path, cache: str) -> None:
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


def test_a_cache_that_cannot_be_written_is_told(esci: Path, artifacts: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DiskError, match="cache_dir"):
        sqid.load("urls", esci=esci, artifacts=artifacts, cache_dir=str(tmp_path / "file"))


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
