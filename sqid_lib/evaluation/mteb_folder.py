"""A release as a retrieval or reranking dataset in the layout that mteb 2 reads: parquet configs and a README.

Products and queries are named as in `runs`, gains are whole numbers as in `exports`: mteb too measures with trec_eval.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sqid_lib.errors import EvaluationError, UsageError
from sqid_lib.evaluation.arrays import Bools, Ints
from sqid_lib.evaluation.judged import JudgedLists, Store, judged_lists
from sqid_lib.evaluation.metrics import whole_gains
from sqid_lib.evaluation.runs import document_ids
from sqid_lib.files import replacing, shard_name, write_text
from sqid_lib.product_images import ProductImages

SPLIT = "test"
_SHARD_ROWS = 10_000  # products of one file, some hundred MB of images
_GROUP_ROWS = 100  # products whose images are in memory at once; a row group, as the Hub wants for images
_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_CORPUS = pa.schema([("id", pa.string()), ("text", pa.string())])
_QUERIES = pa.schema([("id", pa.string()), ("text", pa.string())])
_QRELS = pa.schema([("query-id", pa.string()), ("corpus-id", pa.string()), ("score", pa.int32())])
_TOP_RANKED = pa.schema([("query-id", pa.string()), ("corpus-ids", pa.list_(pa.string()))])


@dataclass(frozen=True)
class MtebFolder:
    """What `write_mteb` wrote.

    Attributes:
        path: the folder, for `TaskMetadata(dataset={"path": …})` of mteb, or to upload as a dataset of the Hub.
        products, queries, judgments: how many are in it.
        without_image: how many products were left out, with their judgments, because they have no image; 0 if no
            images were asked for.
    """

    path: Path
    products: int
    queries: int
    judgments: int
    without_image: int

    def __str__(self) -> str:
        left_out = f"; {self.without_image:,} without an image are left out" if self.without_image else ""
        counts = f"{self.products:,} products, {self.queries:,} queries, {self.judgments:,} judgments"
        return f"{self.path}: {counts}{left_out}"


def write_mteb(
    directory: str | os.PathLike[str],
    store: Store,
    *,
    images: ProductImages | None = None,
    queries: Iterable[int] | None = None,
    gains: str | None = None,
    reranking: bool = False,
) -> MtebFolder:
    """Write configs corpus (id, text, and image if asked for), queries (id, text) and qrels, all of split "test".

    The text of a product is its title. What mteb measures on the folder is what `retrieve` measures, and `compare` with
    reranking: nDCG@10 is the same but for ties, which trec_eval orders by descending id. mteb's recall, MAP and MRR
    count every product with a gain of a hundredth or more, as `relevant="ESC"` does.

    Args:
        directory: where; it must not exist, or be empty.
        store: an EmbeddingStore.
        images: the images of the products, as they are stored. Products without one are left out, as `missing="drop"`
            does, for mteb's models cannot encode them.
        queries: ids of the queries to write; None means all with judgments.
        gains: as in `compare`.
        reranking: write config top_ranked too, the judged products of each query: mteb then ranks those alone.

    Raises:
        UsageError: the directory has files, or an option is wrong.
        EvaluationError: no judgments are left, a product has an empty id, or gains cannot be written as whole numbers.
        CorruptFileError, MissingFileError: an image cannot be read any more.
    """
    directory = Path(directory)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UsageError("the directory has files", where=directory, expected="a new or an empty directory")
    lists = judged_lists(store, gains, "zero", None, queries)
    numbers = np.zeros(store.products.num_rows, np.int64) if images is None else images.find(store.products)
    judged = numbers[lists.product] >= 0
    names = document_ids(store)
    if "" in names:
        raise EvaluationError("a product has an empty id", where=directory, expected="an id to write in every row")
    if not judged.any():
        raise EvaluationError("no judged product has an image", where=images.where if images else directory)
    rows = np.flatnonzero(numbers >= 0)
    count = _write_judgments(directory, store, lists, judged, names, reranking)
    _write_corpus(directory, store, rows, names, images, numbers)
    write_text(directory / "README.md", _readme(images is not None, reranking))
    return MtebFolder(directory, len(rows), count, int(judged.sum()), len(numbers) - len(rows))


def _write_judgments(
    directory: Path, store: Store, lists: JudgedLists, kept: Bools, names: list[str], reranking: bool
) -> int:
    """Write queries, qrels and top_ranked of the judgments kept, bool [J]; returns the number of queries."""
    queries, starts = np.unique(lists.query[kept], return_index=True)
    table = store.queries.select(["query_id", "query"]).take(lists.query_index[queries])
    ids = [str(query_id) for query_id in table["query_id"].to_pylist()]
    texts = [text or "" for text in table["query"].to_pylist()]
    products = [names[row] for row in lists.product[kept].tolist()]
    lengths = np.diff(starts, append=len(products))
    gains = whole_gains(lists)[kept]
    _write(directory, "queries", pa.table([pa.array(ids), pa.array(texts)], schema=_QUERIES))
    columns = [np.repeat(np.array(ids, object), lengths), products, gains.astype(np.int32)]
    _write(directory, "qrels", pa.table([pa.array(column) for column in columns], schema=_QRELS))
    if reranking:
        offsets = pa.array(np.append(starts, len(products)), pa.int32())
        top = pa.ListArray.from_arrays(offsets, pa.array(products))
        _write(directory, "top_ranked", pa.table([pa.array(ids), top], schema=_TOP_RANKED))
    return len(ids)


def _write(directory: Path, config: str, table: pa.Table) -> None:
    path = directory / shard_name(config, SPLIT, 0, 1)
    with replacing(path) as part:
        pq.write_table(table, part, compression="zstd")


def _write_corpus(
    directory: Path, store: Store, rows: Ints, names: list[str], images: ProductImages | None, numbers: Ints
) -> None:
    """Write the products `rows` in shards; images are read a row group at a time."""
    schema = _CORPUS if images is None else _CORPUS.append(pa.field("image", _IMAGE))
    shards = max(1, -(-len(rows) // _SHARD_ROWS))
    for shard in range(shards):
        path = directory / shard_name("corpus", SPLIT, shard, shards)
        with replacing(path) as part, pq.ParquetWriter(part, schema, compression="zstd") as writer:
            for group in _groups(rows[shard * _SHARD_ROWS : (shard + 1) * _SHARD_ROWS]):
                titles = store.products["product_title"].take(group).to_pylist()
                columns = [[names[row] for row in group.tolist()], [title or "" for title in titles]]
                if images is not None:
                    found = (images.read_bytes(number) for number in numbers[group].tolist())
                    columns.append([{"bytes": data, "path": None} for data in found])
                arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
                writer.write_table(pa.table(arrays, schema=schema))


def _groups(rows: Ints) -> Iterator[Ints]:
    for start in range(0, len(rows), _GROUP_ROWS):
        yield rows[start : start + _GROUP_ROWS]


def _readme(has_images: bool, reranking: bool) -> str:
    """The card: mteb reads the configs from it, `datasets` the type of the images."""
    text = "  - name: {}\n    dtype: {}\n"
    corpus = [("id", "string"), ("text", "string"), *([("image", "image")] if has_images else [])]
    configs = {
        "corpus": "".join(text.format(*column) for column in corpus),
        "queries": "".join(text.format(name, "string") for name in ("id", "text")),
        "qrels": "".join(
            text.format(*column) for column in (("query-id", "string"), ("corpus-id", "string"), ("score", "int32"))
        ),
    }
    if reranking:
        configs["top_ranked"] = text.format("query-id", "string") + "  - name: corpus-ids\n    sequence: string\n"
    lines = ["---", "tags:", "- mteb", "configs:"]
    for name in configs:
        lines += [f"- config_name: {name}", "  data_files:", f"  - split: {SPLIT}", f"    path: data/{name}/*.parquet"]
    lines.append("dataset_info:")
    for name, features in configs.items():
        lines += [f"- config_name: {name}", "  features:", features.rstrip("\n")]
    kind = "reranking" if reranking else "retrieval"
    return "\n".join([*lines, "---", "", f"A {kind} dataset for mteb, written by sqid.", ""])
