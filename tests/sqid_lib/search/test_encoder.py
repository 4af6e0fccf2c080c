"""The encoder that a release names: read, loaded, checked; what happens where that cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import warm_python
from encoder_fixtures import write_clip
from file_server import FileServer
from loopback_hub import LoopbackHub
from search_fixtures import QueryVectors
from tiny_release import write_release

from sqid_lib import EmbeddingStore, evaluation, load_encoder, schemas
from sqid_lib.encoders.loading import content_revision
from sqid_lib.errors import EncoderError
from sqid_lib.search import Model, read_model


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("model") / "clip", width=8)


def make_release(root: Path, clip: Path, **stated: Any) -> Path:
    """A tiny release whose query vectors are those of `clip`; `stated` goes into its manifest."""
    release = write_release(root / "release", queries=6, shards=1)
    (path,) = (release / "data" / schemas.QUERIES).iterdir()
    rows = pq.read_table(path)
    vectors = load_encoder(str(clip)).encode_text(rows["query"].to_pylist())
    at = rows.schema.get_field_index("clip_text_features")
    pq.write_table(
        rows.set_column(at, rows.schema.field(at), pa.array(vectors.tolist(), rows.schema.field(at).type)), path
    )
    (release / schemas.SHA256SUMS).unlink()
    (release / schemas.MANIFEST).write_text(json.dumps({"files": {}, **stated}))
    return release


def test_the_encoder_that_the_release_names_is_used(
    tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = make_release(tmp_path, clip, model="clip", revision=content_revision(clip))
    store = EmbeddingStore.open(release, cache_dir=tmp_path / "cache")
    assert store.model == Model("clip", content_revision(clip))
    with pytest.raises(EncoderError, match=r"clip@local-.*was a local directory.*--encoder DIR"):
        store.search("red shoes")
    found = store.search("red shoes", encoder=clip)
    monkeypatch.chdir(clip.parent)
    assert store.search("red shoes") == found
    assert found.notes == ()


def test_a_copy_of_the_model_is_recognised_by_its_vectors(tmp_path: Path, clip: Path) -> None:
    release = make_release(tmp_path, clip, model="openai/clip", revision="0" * 40)
    store = EmbeddingStore.open(release, cache_dir=tmp_path / "cache")
    assert len(store.search("red shoes", encoder=str(clip))) == 10
    other = write_clip(tmp_path / "other", seed=1, width=8)
    with pytest.raises(EncoderError, match=r"did not make the vectors.*openai/clip@000.*other@local-"):
        store.search("red shoes", encoder=other)
    wider = write_clip(tmp_path / "wider", width=16)
    with pytest.raises(EncoderError, match=r"another width.*width 8.*width 16"):
        store.search("red shoes", encoder=wider)


def test_a_search_finds_what_evaluate_retrieves(tmp_path: Path, clip: Path) -> None:
    """The judged queries as texts, encoded again, against the stored vectors of the same texts."""
    store = EmbeddingStore.open(make_release(tmp_path, clip), cache_dir=tmp_path / "cache")
    encoder = load_encoder(str(clip))
    ids = store.products["product_id"].to_pylist()
    run = evaluation.retrieve(store, ["clip_text"], top=100).rankings["clip_text"]
    for row, text in enumerate(store.queries["query"].to_pylist()):
        found = store.search(text, weight=1, top=60, encoder=encoder)
        assert [hit.product_id for hit in found] == [ids[product] for product in run.product[run.query == row]]


def test_each_encoder_is_loaded_and_checked_once(tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = EmbeddingStore.open(make_release(tmp_path, clip), cache_dir=tmp_path / "cache")
    own = QueryVectors(store)
    store.search("first", encoder=own)
    store.search("second", encoder=own)
    assert own.encoded == [store.queries["query"][0].as_py(), "first", "second"]
    store.search("first", encoder=clip)
    monkeypatch.setattr("sqid_lib.encoders.load_encoder", None)
    assert len(store.search("second", encoder=clip)) == 10


def test_without_query_texts_the_check_is_a_note(tmp_path: Path, clip: Path) -> None:
    store = EmbeddingStore.open(make_release(tmp_path, clip), cache_dir=tmp_path / "cache")
    own = QueryVectors(store)
    store.queries = pa.table({"query": pa.nulls(6, pa.string())})
    assert "not known whether this encoder" in store.search("a", encoder=own).notes[0]
    assert "not known whether this encoder" in store.search("b", encoder=own).notes[0]


def test_a_release_that_names_no_encoder(tmp_path: Path, clip: Path) -> None:
    store = EmbeddingStore.open(make_release(tmp_path, clip), cache_dir=tmp_path / "cache")
    assert store.model is None
    with pytest.raises(EncoderError, match=r"does not name its encoder.*--encoder DIR"):
        store.search("red shoes")
    assert len(store.search(np.ones(8, np.float32))) == 10


@pytest.mark.parametrize("model", ["/nowhere/model", "ORG/NAME/MORE"])
def test_a_model_that_is_not_there(tmp_path: Path, clip: Path, model: str) -> None:
    release = make_release(tmp_path, clip, model=model, revision="main")
    store = EmbeddingStore.open(release, cache_dir=tmp_path / "cache")
    for encoder in (None, model):
        with pytest.raises(EncoderError, match=f"{model}.*cannot be loaded: no such model.*--encoder DIR"):
            store.search("red shoes", encoder=encoder)


@pytest.mark.parametrize(
    ("text", "model"),
    [
        ('{"model": "a/b", "revision": "abc"}', Model("a/b", "abc")),
        ('{"model": "a/b", "revision": null}', Model("a/b")),
        ('{"model": "a/b"}', Model("a/b")),
        ('{"model": ""}', None),
        ('{"model": 3}', None),
        ('["model"]', None),
        ("{", None),
        ("[" * 100_000, None),
    ],
)
def test_the_model_of_a_manifest(tmp_path: Path, text: str, model: Model | None) -> None:
    path = tmp_path / schemas.MANIFEST
    assert read_model(path) is None
    path.write_text(text)
    assert read_model(path) == model


def test_a_release_elsewhere_names_its_encoder_too(tmp_path: Path) -> None:
    """Of a web server, whose manifest lists the other files, and of the Hub."""
    release = write_release(tmp_path / "release")
    stated = json.loads((release / schemas.MANIFEST).read_text()) | {"model": "ORG/clip", "revision": "a" * 40}
    (release / schemas.MANIFEST).write_text(json.dumps(stated))
    with FileServer(release) as server, LoopbackHub(tmp_path / "hub") as hub:
        hub.add_repo("ORG/sqid", release)
        for address in (server.url, "ORG/sqid"):
            code = "import sys; from sqid_lib import EmbeddingStore; print(EmbeddingStore.open(sys.argv[1]).model)"
            environment = {**hub.env(), "SQID_CACHE": str(tmp_path / "cache")}
            done = warm_python.run(code, address, env=environment)
            assert done.stdout == f"ORG/clip@{'a' * 40}\n", done.stderr
