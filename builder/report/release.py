"""A release as the report reads it. Unlike a store, it may lack vectors, queries or judgments."""

from __future__ import annotations

import contextlib
import fnmatch
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sqid_lib import schemas
from sqid_lib.errors import CorruptFileError, MissingFileError
from sqid_lib.evaluation.arrays import Bools, Float32s, Ints
from sqid_lib.evaluation.mapped import drop_pages
from sqid_lib.files import File
from sqid_lib.sources import Address, snapshot
from sqid_lib.streams.release_files import shards
from sqid_lib.tables.keys import key_strings
from sqid_lib.tables.reader import read_parquet
from sqid_lib.tables.vector_columns import read_vectors, row_groups, vector_width

_PATTERNS = [schemas.MANIFEST, schemas.SHA256SUMS, "data/*/*.parquet"]
_VECTORS = (schemas.FEATURES, schemas.QUERIES)


@dataclass(frozen=True)
class Release:
    """Products, queries and judgments of a release, row for row with their vectors; what is absent has no rows.

    It has what `sqid_lib.evaluation` reads of a store.

    Attributes:
        manifest: manifest.json; empty where there is none.
        width: D, the length of a vector; 0 where there are none.
        text_features, image_features: float32 [P, D] in an unnamed temporary file; zeros where there is no vector.
        has_text, has_image: bool [P], whether a vector is there.
        query_features: float32 [Q, D].
        products: product_id, product_locale, product_title, product_brand, image_url, image_status.
        queries: query_id, query, source.
        judgments: query_id, product_id, product_locale, esci_label, gain; those of unknown products or queries are
            left out.
        judgment_query_index, judgment_product_index: int64 [J], rows of queries and products.
        supp: products by image_status in config supp.
    """

    manifest: Mapping[str, Any]
    width: int
    text_features: Float32s
    image_features: Float32s
    has_text: Bools
    has_image: Bools
    query_features: Float32s
    products: pa.Table
    queries: pa.Table
    judgments: pa.Table
    judgment_query_index: Ints
    judgment_product_index: Ints
    supp: Mapping[str, int]

    def texts(self, column: str) -> list[str]:
        """A column of products as text, "" for null."""
        return ["" if value is None else str(value) for value in self.products[column].to_pylist()]

    @property
    def statuses(self) -> list[str]:
        """image_status of every product."""
        return self.texts("image_status")

    @property
    def gains(self) -> dict[str, float]:
        """Label → gain, the highest gain first."""
        pairs = self.judgments.select(["esci_label", "gain"]).group_by(["esci_label", "gain"]).aggregate([])
        found = {str(row["esci_label"]): float(str(np.float32(row["gain"]))) for row in pairs.to_pylist()}
        return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def read_release(address: Address, temporary: Path | None = None, downloads: Path | None = None) -> Release:
    """Read a release at an address.

    Args:
        temporary: a directory for the unnamed file that holds the vectors; default that of the system.
        downloads: where a remote release is downloaded to; default the Hub's cache.

    Raises:
        MissingFileError: there is no release.
        DownloadError: the server or the Hub cannot be reached.
        SourceError, ContractError: a file is damaged.
        OSError: no space for the vectors.
    """
    root = snapshot(address, _PATTERNS, downloads)
    files = _files(root, address)
    urls = _read(files, schemas.URLS)
    supp = _read(files, schemas.SUPP, ["product_id", "product_locale", "product_brand", "image_status"])
    width = _width(files)
    vectors = {config: _read_vectors(files, config, width, temporary) for config in _VECTORS}
    text, image, shown = vectors[schemas.FEATURES]
    rows = _read(files, schemas.FEATURES, exclude=(*schemas.VECTOR_COLUMNS, "has_image")) if len(text) else urls
    products = _with_brand(rows, [urls, supp])
    if not len(text):
        text = image = np.zeros((len(products), 0), np.float32)
        shown = np.zeros(len(products), np.bool_)
    queries = _read(files, schemas.QUERIES, exclude=schemas.VECTOR_COLUMNS)
    judgments, query_index, product_index = _join(_read(files, schemas.JUDGMENTS), queries, products)
    return Release(
        manifest=_manifest(root / schemas.MANIFEST),
        width=width,
        text_features=text,
        image_features=image,
        has_text=_present(text),
        has_image=shown & _present(image),
        query_features=vectors[schemas.QUERIES][0],
        products=products,
        queries=queries,
        judgments=judgments,
        judgment_query_index=query_index,
        judgment_product_index=product_index,
        supp=_counts(supp["image_status"]),
    )


def _files(root: Path, address: Address) -> dict[str, list[Path]]:
    names = [path.relative_to(root).as_posix() for path in root.glob("data/*/*.parquet") if path.is_file()]
    found = {}
    for config in schemas.CONFIGS:
        listed = shards(fnmatch.filter(names, f"data/{config}/*"), config, address)
        found[config] = [root / name for _, name in listed]
    if not found[schemas.URLS]:
        raise MissingFileError(
            "not a release, and no work directory of a build that has one",
            where=address,
            expected=f"data/{schemas.URLS}/*.parquet, or {schemas.RELEASE_DIR}/ with it",
            fix="Build a release first: sqid build RECIPE --work WORK.",
        )
    return found


def _read(
    files: Mapping[str, Sequence[Path]], config: str, names: Sequence[str] = (), exclude: Sequence[str] = ()
) -> pa.Table:
    """The declared columns of a config without texts that the report does not show; no rows where it is absent."""
    unused = ("product_description", "product_bullet_point", "product_color", *exclude)
    wanted = [field for field in schemas.config_schema(config, 1) if field.name not in unused]
    schema = pa.schema([field for field in wanted if not names or field.name in names])
    tables = [read_parquet(str(path), schema) for path in files[config]]
    return pa.concat_tables([schema.empty_table(), *tables]).combine_chunks()


def _width(files: Mapping[str, Sequence[Path]]) -> int:
    there = [File(str(path)) for config in _VECTORS for path in files[config]]
    try:
        return vector_width(there) if there else 0
    except CorruptFileError:  # no row of them has a vector
        return 0


def _read_vectors(
    files: Mapping[str, Sequence[Path]], config: str, width: int, temporary: Path | None
) -> tuple[Float32s, Float32s, Bools]:
    """Text and image vectors and has_image; image vectors of queries are none."""
    columns = [name for name in schemas.VECTOR_COLUMNS if name in schemas.DECLARED[config].names]
    shown = [np.zeros(0, np.bool_)]
    with contextlib.ExitStack() as stack:  # the mappings keep unnamed files until they are not used any more
        parts = {name: stack.enter_context(tempfile.TemporaryFile(dir=temporary)) for name in columns}
        for table, where in row_groups(files[config] if width else [], [*columns, "has_image"]):
            valid = np.ones(len(table), np.bool_)
            for name, part in parts.items():
                vectors, valid = read_vectors(table, name, width, where)
                part.write(np.ascontiguousarray(vectors).data)  # on a full disk a mapping would end the process
            stated = "has_image" in table.column_names
            shown.append(pc.fill_null(table["has_image"], False).to_numpy() if stated else valid)
        has_image = np.concatenate(shown)
        first, *others = (_map(part, (len(has_image), width)) for part in parts.values())
    return first, others[0] if others else first[:0], has_image


def _map(file: IO[bytes], shape: tuple[int, int]) -> Float32s:
    """A matrix that need not stay in memory."""
    file.flush()
    if not shape[0] * shape[1]:
        return np.zeros(shape, np.float32)
    return np.asarray(np.memmap(file, np.float32, "r", shape=shape))


def _present(matrix: Float32s) -> Bools:
    """Which vectors are not all zeros, block by block."""
    if not matrix.shape[1]:
        return np.zeros(len(matrix), np.bool_)
    parts = [matrix[start : start + 8_192].any(axis=1) for start in range(0, len(matrix), 8_192)]
    drop_pages(matrix)
    return np.concatenate(parts) if parts else np.zeros(0, np.bool_)


def _with_brand(products: pa.Table, tables: Sequence[pa.Table]) -> pa.Table:
    """The products with column product_brand; null where none of `tables` has the product."""
    if "product_brand" in products.column_names or not len(products):
        return products
    known = pa.concat_arrays([key_strings(table) for table in tables])
    brands = pa.concat_arrays([table["product_brand"].combine_chunks() for table in tables])
    at = pc.index_in(key_strings(products), value_set=known)
    return products.append_column("product_brand", brands.take(at))


def _join(judgments: pa.Table, queries: pa.Table, products: pa.Table) -> tuple[pa.Table, Ints, Ints]:
    """The judgments whose query and product are there, and their rows."""
    query = pc.index_in(judgments["query_id"].combine_chunks(), value_set=queries["query_id"].combine_chunks())
    product = pc.index_in(key_strings(judgments), value_set=key_strings(products))
    known = pc.and_(pc.is_valid(query), pc.is_valid(product))
    rows = [index.filter(known).cast(pa.int64()).to_numpy(zero_copy_only=False) for index in (query, product)]
    return judgments.filter(known), rows[0], rows[1]


def _counts(column: pa.ChunkedArray) -> dict[str, int]:
    return {str(count["values"]): int(count["counts"]) for count in column.value_counts().to_pylist()}


def _manifest(path: Path) -> dict[str, Any]:
    """manifest.json as it is; empty where it cannot be read, which `sqid validate` reports."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
