"""The embedding store: what it holds, and what it does with damaged, unfinished and contradicting files."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import tiny_esci
import warm_python
from file_server import FileServer
from loopback_hub import LoopbackHub
from tiny_release import write_release

from sqid_lib import schemas
from sqid_lib.cache import default_cache
from sqid_lib.errors import (
    ContractError,
    CorruptFileError,
    DiskError,
    DuplicateKeyError,
    IntegrityError,
    LabelError,
    MissingFileError,
    SchemaError,
    StoreError,
    UsageError,
)
from sqid_lib.files import shard_name
from sqid_lib.joined.selection import Selection
from sqid_lib.store import EmbeddingStore, convert
from sqid_lib.store.checksums import STORE


@pytest.fixture
def release(tmp_path: Path) -> Path:
    return write_release(tmp_path / "release", locales=("us", "es"))


def open_store(directory: Path, tmp_path: Path, **options: object) -> EmbeddingStore:
    return EmbeddingStore.open(directory, cache_dir=tmp_path / "cache", progress=False, **options)  # type: ignore[arg-type]


def read(release: Path, config: str) -> pa.Table:
    return pa.concat_tables(pq.read_table(path) for path in sorted((release / "data" / config).glob("*.parquet")))


def rewrite(release: Path, config: str, table: pa.Table, split: str = "test") -> None:
    """Put other rows into a release, in one shard, without checksums."""
    (release / schemas.SHA256SUMS).unlink(missing_ok=True)
    for path in (release / "data" / config).glob(f"{split}-*"):
        path.unlink()
    pq.write_table(table, release / shard_name(config, split, 0, 1))


def conversions(tmp_path: Path) -> list[Path]:
    return sorted(path.parent for path in (tmp_path / "cache").glob("*/" + STORE))


# -- what it holds ------------------------------------------------------------------------------------------------


def test_holds_what_the_release_holds(release: Path, tmp_path: Path) -> None:
    store, features = open_store(release, tmp_path), read(release, schemas.FEATURES)
    for name, column in (("text_features", "clip_text_features"), ("image_features", "clip_image_features")):
        assert np.array_equal(getattr(store, name), np.stack(features[column].to_numpy()))
    assert np.array_equal(store.has_image, features["has_image"].to_numpy())
    assert np.array_equal(
        store.query_features, np.stack(read(release, schemas.QUERIES)["clip_text_features"].to_numpy())
    )
    assert store.products == features.select(store.products.column_names)
    assert {"product_id", "product_locale", "product_title", "image_status"} <= set(store.products.column_names)
    assert store.queries == read(release, schemas.QUERIES).select(["query_id", "query", "source"])
    judgments = read(release, schemas.JUDGMENTS)
    assert store.judgments.drop_columns(["split"]) == judgments.drop_columns(["query"])
    assert store.judgments["split"].unique().to_pylist() == ["test"]
    assert np.array_equal(store.gain, judgments["gain"].to_numpy())
    assert store.width == 8


def test_judgments_point_at_their_rows(release: Path, tmp_path: Path) -> None:
    store = open_store(release, tmp_path)
    assert store.judgment_query_index.dtype == store.judgment_product_index.dtype == np.int64
    assert store.queries["query_id"].take(store.judgment_query_index) == store.judgments["query_id"]
    for name in ("product_id", "product_locale"):
        assert store.products[name].take(store.judgment_product_index) == store.judgments[name]


def test_looks_up_by_id_and_locale(release: Path, tmp_path: Path) -> None:
    store = open_store(release, tmp_path)
    for row, product in enumerate(store.products.to_pylist()):
        assert store.product_index(product["product_id"], product["product_locale"]) == row
    for row, query_id in enumerate(store.queries["query_id"].to_pylist()):
        assert store.query_index(query_id) == row
    with pytest.raises(KeyError):
        store.product_index(store.products["product_id"][0].as_py(), "jp")
    with pytest.raises(KeyError):
        store.query_index(-1)


def test_rows_are_views_of_mapped_files(release: Path, tmp_path: Path) -> None:
    store = open_store(release, tmp_path)
    row = store.text_features[3]
    assert np.shares_memory(row, store.text_features)
    assert not row.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        store.text_features[0, 0] = 1.0


def test_float16_halves_and_rounds(release: Path, tmp_path: Path) -> None:
    full, half = open_store(release, tmp_path), open_store(release, tmp_path, dtype="float16")
    assert np.array_equal(half.text_features, full.text_features.astype(np.float16))
    assert len(conversions(tmp_path)) == 2
    with pytest.raises(UsageError, match="float32 or float16"):
        open_store(release, tmp_path, dtype="int8")


def test_float16_says_when_a_value_does_not_fit(release: Path, tmp_path: Path) -> None:
    table = read(release, schemas.QUERIES)
    vectors = np.stack(table["clip_text_features"].to_numpy())
    vectors[0, 0] = 1e6
    column = pa.FixedSizeListArray.from_arrays(vectors.reshape(-1), vectors.shape[1])
    rewrite(release, schemas.QUERIES, table.set_column(3, "clip_text_features", column))
    open_store(release, tmp_path)
    with pytest.raises(ContractError, match="not finite in float16"):
        open_store(release, tmp_path, dtype="float16")


def test_pickles_as_a_path(release: Path, tmp_path: Path) -> None:
    store = open_store(release, tmp_path)
    data = pickle.dumps(store)
    assert len(data) < 1000
    assert np.array_equal(pickle.loads(data).text_features, store.text_features)


def test_merges_splits_that_share_products(release: Path, tmp_path: Path) -> None:
    one = open_store(release, tmp_path)
    shared = read(release, schemas.FEATURES).slice(0, 5)
    rewrite(release, schemas.FEATURES, shared, "train")
    new_query = read(release, schemas.QUERIES).slice(0, 1).set_column(0, "query_id", pa.array([10**6]))
    rewrite(release, schemas.QUERIES, new_query, "train")
    judged = read(release, schemas.JUDGMENTS).slice(0, 2)
    for name, column in (("query_id", [10**6] * 2), ("product_id", shared["product_id"].to_pylist()[:2])):
        judged = judged.set_column(judged.column_names.index(name), name, pa.array(column))
    judged = judged.set_column(4, "product_locale", shared["product_locale"].slice(0, 2))
    rewrite(release, schemas.JUDGMENTS, judged, "train")
    both = open_store(release, tmp_path)
    assert len(both.products) == len(one.products)
    assert len(both.queries) == len(one.queries) + 1
    assert len(both.text_features) == len(one.text_features)
    assert both.judgments["split"].value_counts().to_pylist()[0] == {"values": "test", "counts": len(one.judgments)}
    assert sum(len(b.gain) for b in both.pairs(split="train", format="numpy")) == 2


# -- once, whole, shared ---------------------------------------------------------------------------------------------


def test_a_copy_of_the_release_shares_the_conversion(release: Path, tmp_path: Path) -> None:
    first = open_store(release, tmp_path)
    assert open_store(release, tmp_path).path == first.path
    copy = shutil.copytree(release, tmp_path / "copy")
    assert open_store(copy, tmp_path).path == first.path


def test_other_content_is_another_conversion(release: Path, tmp_path: Path) -> None:
    first = open_store(release, tmp_path)
    table = read(release, schemas.JUDGMENTS)
    rewrite(release, schemas.JUDGMENTS, table.slice(1))
    second = open_store(release, tmp_path)
    assert second.path != first.path
    assert len(second.judgments) == len(first.judgments) - 1
    assert len(first.judgments) == len(table)  # the older store stays as it was


@pytest.mark.parametrize("damage", ["truncated", "no store.json", "bad store.json", "missing matrix"])
def test_a_damaged_conversion_is_made_again(release: Path, tmp_path: Path, damage: str) -> None:
    path = open_store(release, tmp_path).path
    matrix, stated = path / "text_features.bin", path / STORE
    expected = matrix.read_bytes()
    if damage == "truncated":
        matrix.write_bytes(expected[:-4])
    elif damage == "missing matrix":
        matrix.unlink()
    elif damage == "no store.json":
        stated.unlink()
    else:
        stated.write_text("[]")
    with pytest.raises(StoreError, match="not a whole converted store"):
        EmbeddingStore(path)
    assert open_store(release, tmp_path).path == path
    assert matrix.read_bytes() == expected


def test_what_a_killed_conversion_left_is_cleared(release: Path, tmp_path: Path) -> None:
    path = open_store(release, tmp_path).path
    shutil.rmtree(path)
    left = path.with_name(f".{path.name}-killed")
    left.mkdir()
    (left / "text_features.bin").write_bytes(b"half")
    open_store(release, tmp_path)
    assert not left.exists()


def test_a_failed_conversion_leaves_nothing(release: Path, tmp_path: Path) -> None:
    judgments = read(release, schemas.JUDGMENTS)
    labels = pa.array([None] * len(judgments), pa.string())
    rewrite(release, schemas.JUDGMENTS, judgments.set_column(5, "esci_label", labels))
    with pytest.raises(LabelError, match="a judgment has no label"):
        open_store(release, tmp_path)
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir() and path.name != "digests"]


def test_processes_that_open_at_once_convert_once(release: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    with context.Pool(3) as pool:
        paths = pool.starmap(_open_path, [(release, tmp_path)] * 3)
    assert len(set(paths)) == 1
    assert [str(path) for path in conversions(tmp_path)] == paths[:1]


def _open_path(release: Path, tmp_path: Path) -> str:
    return str(open_store(release, tmp_path).path)


def test_threads_that_open_at_once_agree(release: Path, tmp_path: Path) -> None:
    stores: list[EmbeddingStore] = []
    threads = [threading.Thread(target=lambda: stores.append(open_store(release, tmp_path))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(stores) == 4
    assert len({store.path for store in stores}) == 1


def test_processes_share_the_pages_of_one_store(tmp_path: Path) -> None:
    """Private memory of a second process that read everything is far below the size of the matrices."""
    release = write_release(tmp_path / "big", products=6000, queries=50, width=512)
    store = open_store(release, tmp_path)
    size = store.text_features.nbytes + store.image_features.nbytes
    code = (
        "import sys, pathlib\nfrom sqid_lib.store import EmbeddingStore\n"
        "def private():\n"
        "    lines = pathlib.Path('/proc/self/smaps_rollup').read_text().splitlines()\n"
        "    return sum(int(l.split()[1]) for l in lines if l.startswith('Private')) * 1024\n"
        "store = EmbeddingStore(pathlib.Path(sys.argv[1]))\nbefore = private()\n"
        "total = float(store.text_features.sum() + store.image_features.sum())\nprint(private() - before)"
    )
    float(store.text_features.sum() + store.image_features.sum())  # this process has the pages too
    run = subprocess.run([sys.executable, "-c", code, store.path], capture_output=True, text=True, check=True)
    assert size > 20e6
    assert int(run.stdout) < size / 4


# -- refused ---------------------------------------------------------------------------------------------------------


def test_a_file_that_differs_from_the_checksums(release: Path, tmp_path: Path) -> None:
    path = release / shard_name(schemas.QUERIES, "test", 0, 2)
    data = bytearray(path.read_bytes())
    data[20] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptFileError, match="not the one in SHA256SUMS"):
        open_store(release, tmp_path)


@pytest.mark.parametrize("config", [schemas.FEATURES, schemas.QUERIES, schemas.JUDGMENTS])
def test_a_truncated_file(release: Path, tmp_path: Path, config: str) -> None:
    (release / schemas.SHA256SUMS).unlink()
    path = release / shard_name(config, "test", 1, 2)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CorruptFileError, match=path.name):
        open_store(release, tmp_path)


def test_damage_inside_a_row_group(release: Path, tmp_path: Path) -> None:
    (release / schemas.SHA256SUMS).unlink()
    path = release / shard_name(schemas.FEATURES, "test", 0, 2)
    data = bytearray(path.read_bytes())
    data[4:400] = bytes(396)
    path.write_bytes(data)
    with pytest.raises(CorruptFileError, match=r"row group 0.*damaged"):
        open_store(release, tmp_path)


def test_a_missing_shard(release: Path, tmp_path: Path) -> None:
    (release / shard_name(schemas.FEATURES, "test", 1, 2)).unlink()
    with pytest.raises(MissingFileError, match=r"shards are missing.*test.*1"):
        open_store(release, tmp_path)


def test_a_missing_part(release: Path, tmp_path: Path) -> None:
    shutil.rmtree(release / "data" / schemas.QUERIES)
    with pytest.raises(MissingFileError, match="query_features"):
        open_store(release, tmp_path)


def test_no_such_directory(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="directory or a dataset on the Hub"):
        open_store(tmp_path / "nowhere", tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingFileError, match="neither a release nor the classic files"):
        open_store(tmp_path / "empty", tmp_path)


def test_revision_is_not_for_directories(release: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="revision"):
        open_store(release, tmp_path, revision="main")


def test_a_judgment_of_an_unknown_product(release: Path, tmp_path: Path) -> None:
    features = read(release, schemas.FEATURES)
    judged = read(release, schemas.JUDGMENTS)["product_id"].unique()
    kept = features.filter(pc.not_equal(features["product_id"], judged[0]))
    rewrite(release, schemas.FEATURES, kept)
    with pytest.raises(IntegrityError, match="judged, and not in the release"):
        open_store(release, tmp_path)


def test_a_product_twice(release: Path, tmp_path: Path) -> None:
    features = read(release, schemas.FEATURES)
    rewrite(release, schemas.FEATURES, pa.concat_tables([features, features.slice(3, 1)]))
    with pytest.raises(DuplicateKeyError, match="occurs twice"):
        open_store(release, tmp_path)


@pytest.mark.parametrize(
    ("vectors", "error", "message"),
    [
        (pa.array([[1.0] * 7] * 12, pa.list_(pa.float32())), SchemaError, "differ in width; expected 8, got .7."),
        (pa.array([None] + [[1.0] * 8] * 11, pa.list_(pa.float32())), ContractError, "no vector"),
        (pa.array([[1.0] * 7 + [None]] * 12, pa.list_(pa.float32())), ContractError, "holds a null"),
        (pa.array([[float("nan")] * 8] * 12, pa.list_(pa.float32())), ContractError, "no vector"),
        (pa.array([[float("nan")] + [1.0] * 7] * 12, pa.list_(pa.float32())), ContractError, "not finite"),
        (pa.array(["x"] * 12), SchemaError, "not a column of lists"),
    ],
)
def test_vectors_that_cannot_be(
    release: Path, tmp_path: Path, vectors: pa.Array, error: type[Exception], message: str
) -> None:
    table = read(release, schemas.QUERIES)
    rewrite(release, schemas.QUERIES, table.set_column(3, "clip_text_features", vectors))
    with pytest.raises(error, match=message):
        open_store(release, tmp_path)


def test_a_missing_column(release: Path, tmp_path: Path) -> None:
    rewrite(release, schemas.JUDGMENTS, read(release, schemas.JUDGMENTS).drop_columns(["gain"]))
    with pytest.raises(SchemaError, match="expected gain"):
        open_store(release, tmp_path)


def test_missing_space_is_reported_before_anything_is_written(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convert, "DISK_MARGIN", shutil.disk_usage(tmp_path).total)
    with pytest.raises(DiskError, match="not enough space"):
        open_store(release, tmp_path)
    assert not conversions(tmp_path)


# -- the classic files ------------------------------------------------------------------------------------------------


def test_classic_files_alone_make_vectors_without_judgments(tmp_path: Path) -> None:
    release = write_release(tmp_path / "release", classic=True)
    whole = open_store(release, tmp_path)
    shutil.rmtree(release / "data")
    store = open_store(release, tmp_path)
    for name in ("text_features", "image_features", "query_features", "has_image"):
        assert np.array_equal(getattr(store, name), getattr(whole, name))
    assert store.product_index(whole.products["product_id"][7].as_py()) == 7
    assert store.products["product_title"].null_count == len(store.products)
    with pytest.raises(StoreError, match=r"no judgments.*esci="):
        store.pairs()


def test_classic_files_with_esci(tmp_path: Path) -> None:
    esci, artifacts = tiny_esci.write_esci(tmp_path / "esci"), tiny_esci.write_artifacts(tmp_path / "artifacts")
    store = open_store(artifacts, tmp_path, esci=esci)
    judged = [row for row in tiny_esci.examples() if (row["split"], row["product_locale"]) == ("test", "us")]
    judged = [row for row in judged if row["small_version"]]
    assert len(store.judgments) == len(judged)
    assert set(store.products["product_id"].to_pylist()) == {row["product_id"] for row in judged}
    assert store.products["product_title"].null_count < len(store.products)
    assert len(list(store.lists(format="numpy", batch_size=2))) == 3
    other = open_store(artifacts, tmp_path, esci=esci, selection=Selection(version="large"))
    assert other.path != store.path
    assert len(other.judgments) == len(store.judgments) + 2


def test_esci_is_not_for_releases(release: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="joined already"):
        open_store(release, tmp_path, esci=tmp_path)


# -- the Hub ----------------------------------------------------------------------------------------------------------

_OPEN = """
import sys
from sqid_lib import EmbeddingStore
store = EmbeddingStore.open("ORG/sqid", revision=sys.argv[2] or None, cache_dir=sys.argv[1], progress=False)
print(store.path.name, len(store.judgments))
"""


def test_opens_a_hub_repo_at_one_commit(release: Path, tmp_path: Path) -> None:
    local = open_store(release, tmp_path)
    with LoopbackHub(tmp_path / "hub") as hub:
        commit = hub.add_repo("ORG/sqid", release, tag="v1")
        for revision in ("", "v1", commit):
            run = _run(hub, tmp_path, revision)
            assert run.stdout.split() == [local.path.name, str(len(local.judgments))], run.stderr
        fetched = [request.path for request in hub.requests if request.endpoint == "resolve"]
        assert not [path for path in fetched if "/supp/" in path or "/urls/" in path]
        rewrite(release, schemas.JUDGMENTS, read(release, schemas.JUDGMENTS).slice(2))
        hub.add_repo("ORG/sqid", release)
        assert _run(hub, tmp_path, "v1").stdout.split()[0] == local.path.name
        assert _run(hub, tmp_path, "").stdout.split()[1] == str(len(local.judgments) - 2)
    gone = _run(hub, tmp_path, commit)  # a commit that is here needs no Hub
    assert gone.stdout.split()[0] == local.path.name, gone.stderr


def test_of_a_release_the_classic_files_are_not_downloaded(tmp_path: Path) -> None:
    release = write_release(tmp_path / "release", classic=True)
    with LoopbackHub(tmp_path / "hub") as hub:
        hub.add_repo("ORG/sqid", release)
        assert _run(hub, tmp_path, "").stdout.split()[1] == "84"
        fetched = {request.path.rpartition("/main/")[2] or request.path for request in hub.requests}
        assert any("query_features/test-" in path for path in fetched)
        assert not [path for path in fetched if path.endswith((schemas.PRODUCT_FEATURES, schemas.QUERY_FEATURES))]


def test_classic_files_elsewhere(tmp_path: Path) -> None:
    release = write_release(tmp_path / "release", classic=True)
    shutil.rmtree(release / "data")
    manifest = json.loads((release / schemas.MANIFEST).read_text())
    files = {name: stated for name, stated in manifest["files"].items() if not name.startswith("data/")}
    (release / schemas.MANIFEST).write_text(json.dumps({"files": files}))
    code = _OPEN.replace('"ORG/sqid"', "sys.argv[3]")
    with LoopbackHub(tmp_path / "hub") as hub, FileServer(release) as server:
        hub.add_repo("ORG/sqid", release)
        for address in ("ORG/sqid", server.url):
            done = warm_python.run(code, str(tmp_path / "cache"), "", address, env=hub.env())
            assert done.stdout.split()[1:] == ["0"], done.stderr


def test_a_release_elsewhere_that_lacks_a_file_is_not_taken_for_the_classic_files(tmp_path: Path) -> None:
    release = write_release(tmp_path / "release", classic=True)
    with FileServer(release) as server:
        server.status[f"/data/{schemas.JUDGMENTS}/test-00001-of-00002.parquet"] = 404
        with pytest.raises(MissingFileError, match=r"test-00001-of-00002\.parquet"):
            EmbeddingStore.open(server.url, cache_dir=tmp_path / "cache", progress=False)


def test_says_that_a_repo_or_revision_is_not_there(release: Path, tmp_path: Path) -> None:
    with LoopbackHub(tmp_path / "hub") as hub:
        assert (
            "hf://datasets/ORG/sqid: no such directory (ORG/sqid), and no such dataset or revision"
            in _run(hub, tmp_path, "").stderr
        )
        hub.add_repo("ORG/sqid", release)
        assert "ORG/sqid@v9" in _run(hub, tmp_path, "v9").stderr


def _run(hub: LoopbackHub, tmp_path: Path, revision: str) -> subprocess.CompletedProcess[str]:
    return warm_python.run(_OPEN, str(tmp_path / "cache"), revision, env=hub.env())


# -- the cache's place -----------------------------------------------------------------------------------------------


def test_default_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("SQID_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert default_cache() == Path.home() / ".cache" / "sqid"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache() == tmp_path / "xdg" / "sqid"
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    assert default_cache() == tmp_path / "hf" / "sqid"
    monkeypatch.setenv("SQID_CACHE", str(tmp_path / "own"))
    assert default_cache() == tmp_path / "own"


def test_import_needs_no_torch(release: Path, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\nfrom sqid_lib import EmbeddingStore\n"
        "store = EmbeddingStore.open(sys.argv[1], cache_dir=sys.argv[2], progress=False)\n"
        "print(sum(len(b.gain) for b in store.pairs(format='numpy')))"
    )
    arguments = [sys.executable, "-c", code, str(release), str(tmp_path / "cache")]
    run = subprocess.run(arguments, capture_output=True, text=True, env=dict(os.environ), check=False)
    assert run.stdout.strip() == str(len(read(release, schemas.JUDGMENTS))), run.stderr
