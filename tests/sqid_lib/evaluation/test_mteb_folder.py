"""The folder for mteb: layout and content read back, what it refuses, and mteb itself where it is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from evaluation_fixtures import memory_store, random_store

from sqid_lib import evaluation
from sqid_lib.errors import EvaluationError, UsageError
from sqid_lib.product_images import ProductImages

JUDGED = [[(0, "E"), (1, "S"), (3, "I")], [(2, "C")], [(1, "E"), (2, "I")]]


def folder_of_images(folder: Path, names: list[str]) -> ProductImages:
    from PIL import Image

    folder.mkdir()
    for n, name in enumerate(names):
        Image.new("RGB", (4, 4), (n, 0, 0)).save(folder / f"{name}.png")
    return ProductImages.open(folder)


def read(folder: Path, config: str, cache: Path) -> datasets.Dataset:
    return datasets.load_dataset(str(folder), config, split="test", cache_dir=str(cache))


def test_configs_load_with_datasets(tmp_path: Path) -> None:
    store: Any = memory_store(JUDGED, 4)
    written = evaluation.write_mteb(tmp_path / "out", store, reranking=True)
    assert str(written) == f"{tmp_path / 'out'}: 4 products, 3 queries, 6 judgments"
    names = datasets.get_dataset_config_names(str(tmp_path / "out"))
    assert sorted(names) == ["corpus", "qrels", "queries", "top_ranked"]
    corpus, queries, qrels, top = (
        read(tmp_path / "out", name, tmp_path / "cache") for name in ("corpus", "queries", "qrels", "top_ranked")
    )
    assert corpus.to_list() == [{"id": f"P00{n}", "text": f"title {n}"} for n in range(4)]
    assert queries.to_list() == [{"id": str(n), "text": f"query {n}"} for n in (10, 20, 30)]
    found = {(row["query-id"], row["corpus-id"]): row["score"] for row in qrels}
    assert found == {
        ("10", "P000"): 100,
        ("10", "P001"): 10,
        ("10", "P003"): 0,
        ("20", "P002"): 1,
        ("30", "P001"): 100,
        ("30", "P002"): 0,
    }
    assert qrels.features["score"].dtype == "int32"
    assert [row["corpus-ids"] for row in top] == [["P000", "P001", "P003"], ["P002"], ["P001", "P002"]]


def test_images_are_the_stored_bytes_and_products_without_one_are_left_out(tmp_path: Path) -> None:
    store: Any = memory_store(JUDGED, 4, without_image=(2,))
    images = folder_of_images(tmp_path / "images", ["P000", "P001", "P003"])
    written = evaluation.write_mteb(tmp_path / "out", store, images=images)
    assert (written.products, written.queries, written.judgments, written.without_image) == (3, 2, 4, 1)
    corpus = read(tmp_path / "out", "corpus", tmp_path / "cache")
    assert corpus["id"][:] == ["P000", "P001", "P003"]
    assert [image.getpixel((0, 0)) for image in corpus["image"]] == [(0, 0, 0), (1, 0, 0), (2, 0, 0)]
    stored = corpus.cast_column("image", datasets.Image(decode=False))["image"]
    assert stored[1]["bytes"] == (tmp_path / "images" / "P001.png").read_bytes()
    assert read(tmp_path / "out", "queries", tmp_path / "cache")["id"][:] == ["10", "30"]
    with pytest.raises(EvaluationError, match="no judged product has an image"):
        evaluation.write_mteb(tmp_path / "none", store, images=images, queries=[20])


def test_shards_hold_every_product_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sqid_lib.evaluation.mteb_folder._SHARD_ROWS", 7)
    monkeypatch.setattr("sqid_lib.evaluation.mteb_folder._GROUP_ROWS", 3)
    store = random_store(0, products=20, locales=("es", "us"))
    evaluation.write_mteb(tmp_path / "out", store, queries=store.queries["query_id"].to_pylist()[:2])
    files = sorted(path.name for path in (tmp_path / "out" / "data" / "corpus").iterdir())
    assert files == [f"test-0000{n}-of-00003.parquet" for n in range(3)]
    corpus = read(tmp_path / "out", "corpus", tmp_path / "cache")
    assert len(set(corpus["id"])) == 20 and {"es:P000", "us:P000"} <= {*corpus["id"]}
    assert len(read(tmp_path / "out", "queries", tmp_path / "cache")) == 2


def test_a_directory_with_files_is_refused(tmp_path: Path) -> None:
    store: Any = memory_store(JUDGED, 4)
    (tmp_path / "note").touch()
    with pytest.raises(UsageError, match="the directory has files"):
        evaluation.write_mteb(tmp_path, store)
    (tmp_path / "note").unlink()
    evaluation.write_mteb(tmp_path, store)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # mteb's own
@pytest.mark.parametrize("reranking", [False, True])
def test_mteb_measures_what_we_measure(tmp_path: Path, reranking: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mteb")
    import mteb
    import mteb_task
    from mteb.models.model_meta import ModelMeta

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    store = random_store(5, queries=20, products=120)
    evaluation.write_mteb(tmp_path / "out", store, reranking=reranking)

    class Stored(mteb_task.Encoder):
        """The store's own vectors, by text."""

        def __init__(self) -> None:
            self.mteb_model_meta = ModelMeta.create_empty({"name": "sqid/stored", "revision": "local"})
            queries = zip(store.queries["query"].to_pylist(), store.query_features, strict=True)
            titles = zip(store.products["product_title"].to_pylist(), store.text_features, strict=True)
            self.vectors = {text: vector / np.linalg.norm(vector) for text, vector in [*queries, *titles]}

        def encode(self, inputs: Any, **_: Any) -> Any:
            return np.stack([self.vectors[text] for batch in inputs for text in batch["text"]])

    task = mteb_task.make_task(tmp_path / "out", "SqidTest", "t2t", ["eng-Latn"], reranking)
    result = mteb.evaluate(Stored(), task, cache=None, show_progress_bar=False)
    found = result.task_results[0].scores["test"][0]
    measure: Any = evaluation.compare if reranking else evaluation.retrieve
    row = measure(store, ["clip_text"], metrics="ndcg@10 recall@10", relevant="ESC", resamples=100).rows[0]
    assert found["ndcg_at_10"] == pytest.approx(row["ndcg_at_10"], abs=2e-5)  # mteb rounds to five digits
    assert found["recall_at_10"] == pytest.approx(row["recall_at_10"], abs=2e-5)
