"""Run an encoder on a release with mteb: python examples/mteb_task.py WORK/sqid OUT --model MODEL --images WORK

OUT gets the dataset: corpus, queries and qrels as parquet, in the layout that mteb's own retrieval datasets have, so it
can be uploaded to the Hub and run by others. What mteb then does is printed next to `sqid_lib.evaluation`'s figures for
the vectors of the release, which are those of the same model if MODEL is the release's encoder. Needs mteb 2.

--category: what a document is: t2t its title, t2i its image, t2it both (the mean of the two unit vectors, as
fusion:0.5). The last two need --images and leave out products without an image. --reranking ranks the judged products
of each query alone.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mteb
import numpy as np
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models.model_meta import ModelMeta

from sqid_lib import EmbeddingStore, ProductImages, evaluation, load_encoder

CATEGORIES = {"t2t": "clip_text", "t2i": "clip_image", "t2it": "fusion:0.5"}  # and the same of `sqid evaluate`
MODALITIES = {"t": "text", "i": "image"}


def make_task(folder: Path, name: str, category: str, languages: Sequence[str], reranking: bool) -> AbsTaskRetrieval:
    """A task of mteb on a folder of `evaluation.write_mteb`, or on the repo it was uploaded to."""
    kind = ("Any2Any" if "i" in category else "") + ("Reranking" if reranking else "Retrieval")
    metadata = TaskMetadata(
        name=name,
        description="Products for shopping queries.",
        dataset={"path": str(folder), "revision": "main"},
        type=kind,
        category=category,
        modalities=sorted({MODALITIES[letter] for letter in category if letter in MODALITIES}, reverse=True),
        eval_langs=list(languages),
        main_score="ndcg_at_10",
        domains=["E-commerce"],
    )
    return type(name, (AbsTaskRetrieval,), {"metadata": metadata})()


class Encoder:
    """An encoder of sqid_lib as mteb's EncoderProtocol."""

    def __init__(self, model_name: str, revision: str | None = None, *, device: str | None = "auto", **_: Any) -> None:
        self.encoder = load_encoder(model_name, revision=revision or "main", device=device or "auto")
        named: dict[str, Any] = {"name": f"sqid/{Path(model_name).name}", "revision": self.encoder.revision or "local"}
        named["modalities"] = ["text", "image"]
        self.mteb_model_meta = ModelMeta.create_empty(named)

    def encode(self, inputs: Any, **_: Any) -> np.ndarray[Any, Any]:
        """float32 [N, D]: the mean of the unit vectors of text and image, or the one there is."""
        return np.concatenate([np.mean(self._units(batch), axis=0) for batch in inputs])

    def _units(self, batch: dict[str, list[Any]]) -> list[np.ndarray[Any, Any]]:
        found = []
        if "text" in batch:
            found.append(self.encoder.encode_text(batch["text"]))
        if "image" in batch:
            found.append(self.encoder.encode_images(batch["image"], progress=False))
        return [vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in found]

    def similarity(self, queries: Any, documents: Any) -> np.ndarray[Any, Any]:
        """[Q, N] dot products."""
        scores: np.ndarray[Any, Any] = np.asarray(queries) @ np.asarray(documents).T
        return scores

    def similarity_pairwise(self, queries: Any, documents: Any) -> np.ndarray[Any, Any]:
        """[N] dot products of rows."""
        scores: np.ndarray[Any, Any] = (np.asarray(queries) * np.asarray(documents)).sum(axis=1)
        return scores


def main(arguments: Sequence[str] | None = None) -> tuple[float, float]:
    """Write the dataset, run mteb, and measure the release's vectors; returns both nDCG@10."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("release", help="a release directory or ORG/name on the Hub")
    add("out", type=Path, help="a new directory for the dataset")
    add("--model", required=True, help="Hub id or directory of an encoder of sqid_lib")
    add("--images", type=Path, help="the work directory of the build, or a folder of images named by product id")
    add("--category", choices=CATEGORIES, default="t2t")
    add("--reranking", action="store_true")
    add("--languages", nargs="+", default=["eng-Latn"])
    add("--cache-dir", help="directory of the converted vectors")
    options = parser.parse_args(arguments)
    if (options.images is None) != (options.category == "t2t"):
        parser.error("t2i and t2it need --images, t2t takes none")

    store = EmbeddingStore.open(options.release, cache_dir=options.cache_dir)
    images = ProductImages.open(options.images) if options.images else None
    print(evaluation.write_mteb(options.out, store, images=images, reranking=options.reranking), flush=True)
    name = "Sqid" + hashlib.sha256(str(options.out.resolve()).encode()).hexdigest()[:8]
    task = make_task(options.out, name, options.category, options.languages, options.reranking)
    result = mteb.evaluate(Encoder(options.model), task, cache=None, show_progress_bar=False)
    theirs = float(result.task_results[0].scores["test"][0]["ndcg_at_10"])
    method, missing = CATEGORIES[options.category], "drop" if images else "zero"
    measure: Any = evaluation.compare if options.reranking else evaluation.retrieve
    compared = measure(store, [method], missing=missing, metrics="ndcg@10", resamples=100)
    ours = float(compared.rows[0]["ndcg_at_10"])
    print(f"nDCG@10: mteb {theirs:.5f}; sqid, {method} of the release, {ours:.5f}")
    return theirs, ours


if __name__ == "__main__":
    main()
