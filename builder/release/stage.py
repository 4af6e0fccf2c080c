"""Stage release: the joined configs, the four classic files, card, manifest and checksums, in WORK/sqid."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from builder.release import card, manifest
from builder.release.files import write_classic_features, write_shards, write_urls
from sqid_lib import schemas, sources
from sqid_lib.errors import MissingFileError, ReleaseError
from sqid_lib.files import File
from sqid_lib.joined import joins, selection
from sqid_lib.joined.vector_lookup import VectorLookup
from sqid_lib.tables.keys import key_strings
from sqid_lib.tables.reader import read_parquet
from sqid_lib.tables.vector_columns import present

if TYPE_CHECKING:
    from builder.recipe import Recipe

_BATCH_ROWS = 4_096


@dataclass(frozen=True)
class Artifacts:
    """The SQID side of a release, made by the stages before or read from existing files.

    Attributes:
        urls, supp_urls: tables of `joins.IMAGE_URLS_SCHEMA`.
        products, queries: vectors.
        revision: resolved commit of the model, if known.
    """

    urls: pa.Table
    supp_urls: pa.Table
    products: VectorLookup
    queries: VectorLookup
    revision: str | None


def release(recipe: Recipe, work: Path) -> None:
    """Write WORK/sqid from WORK/sample and from the vectors and urls of the stages before, or from [artifacts].

    It is written beside and takes the place of an earlier release when it is complete.

    Raises:
        MissingFileError: a stage before has not run.
        ReleaseError: WORK/sqid holds files no build wrote.
        SourceError, ContractError: an input is not what it should be.
    """
    final, building = work / schemas.RELEASE_DIR, work / f".{schemas.RELEASE_DIR}.building"
    _check_ours(final)
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    artifacts = existing_artifacts(recipe, work) if recipe.artifacts else built_artifacts(recipe, work)
    try:
        _Writer(recipe, work / "sample", building, artifacts).write()
    finally:
        artifacts.products.close()
        artifacts.queries.close()
    card.write_card(building, recipe, revision=artifacts.revision)
    manifest.write(building, recipe, revision=artifacts.revision)
    _swap(building, final)


def artifact_files(recipe: Recipe) -> dict[str, tuple[sources.File, ...]]:
    """The SQID files [artifacts] names, by table; errors as `sources.find`."""
    assert recipe.artifacts
    tables = ("product_urls", "product_status", "product_features", "query_features", "supp_urls", "supp_status")
    return {table: sources.find(recipe.artifacts.path, table) for table in tables}


def existing_artifacts(recipe: Recipe, work: Path) -> Artifacts:
    """Artifacts of an [artifacts] recipe, downloaded where they are remote."""
    files = {table: [sources.download(file) for file in found] for table, found in artifact_files(recipe).items()}

    def read_urls(part: str) -> pa.Table:
        urls, statuses = files[f"{part}_urls"], files[f"{part}_status"]
        return joins.read_image_urls(urls, statuses=statuses if statuses != urls else ())

    scratch = work / ".scratch"
    return Artifacts(
        urls=read_urls("product"),
        supp_urls=read_urls("supp"),
        products=joins.open_product_vectors(files["product_features"], scratch),
        queries=joins.open_query_vectors(files["query_features"], scratch),
        revision=None,
    )


def built_artifacts(recipe: Recipe, work: Path) -> Artifacts:
    """Artifacts that resolve, fetch and embed left in WORK."""
    where = str(work / "resolve" / "urls.parquet")
    resolved = read_parquet(where, schemas.RESOLVED_SCHEMA)
    parts = [("products", schemas.MAIN)] + ([("supp", schemas.SUPPLEMENTARY)] if recipe.selection.embed_supp else [])
    urls = {}
    for part in (schemas.MAIN, schemas.SUPPLEMENTARY):
        rows = resolved.filter(pc.equal(resolved.column("part"), part))
        urls[part] = rows.select(joins.IMAGE_URLS_SCHEMA.names).cast(joins.IMAGE_URLS_SCHEMA).combine_chunks()
    embedded = {name: sorted((work / "embed").glob(f"{name}-*.parquet")) for name in ("products", "supp", "queries")}
    for name, part in parts:
        urls[part] = _with_final_status(urls[part], embedded[name])
    record = work / "embed" / "encoder.json"
    if not (embedded["products"] and embedded["queries"] and record.exists()):
        raise MissingFileError("stage embed has not run", where=work / "embed", fix="Run it first: --only embed.")
    product_files = [File(str(path)) for name, _ in parts for path in embedded[name]]
    return Artifacts(
        urls=urls[schemas.MAIN],
        supp_urls=urls[schemas.SUPPLEMENTARY],
        products=joins.open_product_vectors(product_files, work / ".scratch"),
        queries=joins.open_query_vectors([File(str(path)) for path in embedded["queries"]], work / ".scratch"),
        revision=json.loads(record.read_text())["revision"],
    )


def _with_final_status(urls: pa.Table, paths: Iterable[Path]) -> pa.Table:
    """The status embed ended with: how fetching or decoding failed, if it did."""
    schema = pa.schema([(n, pa.string()) for n in (*schemas.PRODUCT_KEY, "image_status")])
    final = pa.concat_tables([schema.empty_table(), *(read_parquet(str(path), schema) for path in paths)])
    rows = pc.index_in(key_strings(urls), value_set=key_strings(final))
    status = pc.coalesce(final.column("image_status").take(rows), urls.column("image_status"))
    return urls.set_column(urls.column_names.index("image_status"), "image_status", status)


class _Writer:
    """Writes the data files of one release; its attributes are what every config needs."""

    def __init__(self, recipe: Recipe, sample: Path, out: Path, artifacts: Artifacts) -> None:
        self.recipe, self.sample, self.out, self.artifacts = recipe, sample, out, artifacts
        self.judgments = read_parquet(str(sample / "judgments.parquet"), schemas.SAMPLED_JUDGMENTS_SCHEMA)
        self.queries = read_parquet(str(sample / "queries.parquet"), schemas.SAMPLED_QUERIES_SCHEMA)

    def write(self) -> None:
        for split in self.recipe.selection.splits:
            judged = self.judgments.filter(pc.equal(self.judgments.column("split"), split)).drop_columns(["split"])
            self._config(schemas.JUDGMENTS, split, [judged], judged.num_rows)
            ids = pc.unique(judged.column("query_id"))
            queries = self.queries.filter(pc.is_in(self.queries.column("query_id"), value_set=ids))
            self._config(schemas.QUERIES, split, self._query_features(queries), queries.num_rows)
            self._products(split, "products", _keys(judged))
        supp = _read_keys(self.sample / "supp.parquet")
        texts = self._texts("supp", supp, schemas.text_columns(schemas.SUPP))
        self._config(schemas.SUPP, schemas.SUPP_SPLIT, joins.urls(texts, self.artifacts.supp_urls), supp.num_rows)
        if self.recipe.selection.embed_supp and not self.recipe.artifacts:
            features = self._product_features("supp", supp, self.artifacts.supp_urls)
            self._config(schemas.FEATURES, schemas.SUPP_VECTORS_SPLIT, features, supp.num_rows)
        if self.recipe.release.classic_files:
            self._classic(supp)

    def _products(self, split: str, name: str, keys: pa.Table) -> None:
        texts = self._texts(name, keys, schemas.text_columns(schemas.URLS))
        self._config(schemas.URLS, split, joins.urls(texts, self.artifacts.urls), keys.num_rows)
        features = self._product_features(name, keys, self.artifacts.urls)
        self._config(schemas.FEATURES, split, features, keys.num_rows)

    def _config(self, config: str, split: str, tables: Iterable[pa.Table], rows: int) -> None:
        schema = schemas.config_schema(config, self.artifacts.products.width)
        size = self.recipe.release.max_shard_bytes
        write_shards(self.out, config, split, tables, schema, rows=rows, max_shard_bytes=size)

    def _texts(self, name: str, keys: pa.Table, columns: tuple[str, ...]) -> Iterator[pa.Table]:
        if not keys.num_rows:
            return iter(())
        return selection.product_texts(File(str(self.sample / f"{name}.parquet")), keys, columns)

    def _product_features(self, name: str, keys: pa.Table, urls: pa.Table) -> Iterator[pa.Table]:
        vectors = self.artifacts.products.in_order(joins.find_rows(self.artifacts.products, keys))
        return joins.product_features(self._texts(name, keys, schemas.text_columns(schemas.FEATURES)), urls, vectors)

    def _query_features(self, queries: pa.Table) -> Iterator[pa.Table]:
        vectors = self.artifacts.queries
        return joins.query_features(queries, vectors.in_order(joins.find_rows(vectors, queries)))

    def _classic(self, supp: pa.Table) -> None:
        """The four published files; product_locale is added where they would otherwise be ambiguous."""
        located = self.recipe.selection.locales != (schemas.CLASSIC_LOCALE,)
        main = _read_keys(self.sample / "products.parquet")
        for name, keys, urls in (
            (schemas.PRODUCT_URLS, main, self.artifacts.urls),
            (schemas.SUPP_URLS, supp, self.artifacts.supp_urls),
        ):
            rows = pc.index_in(key_strings(keys), value_set=key_strings(urls))
            table = keys.append_column("image_url", urls.column("image_url").take(rows))
            write_urls(self.out / name, [table], located=located)
        write_classic_features(
            self.out / schemas.PRODUCT_FEATURES, "product", self._classic_products(main, supp), located=located
        )
        queries = self._nullable(self.artifacts.queries, self.queries.select(["query_id"]))
        write_classic_features(self.out / schemas.QUERY_FEATURES, "query", queries)

    def _classic_products(self, main: pa.Table, supp: pa.Table) -> Iterator[pa.Table]:
        yield from self._nullable(self.artifacts.products, main)
        if self.recipe.selection.embed_supp and not self.recipe.artifacts:
            yield from self._nullable(self.artifacts.products, supp)

    def _nullable(self, vectors: VectorLookup, keys: pa.Table) -> Iterator[pa.Table]:
        """`keys` with their vectors, null where there is none."""
        ordered = vectors.in_order(joins.find_rows(vectors, keys))
        for begin in range(0, keys.num_rows, _BATCH_ROWS):
            part = keys.slice(begin, _BATCH_ROWS)
            taken = ordered.take(begin, begin + part.num_rows)
            for name, matrix in zip(vectors.columns, taken, strict=True):
                part = part.append_column(name, _lists_or_null(matrix))
            yield part


def _lists_or_null(matrix: np.ndarray) -> pa.ListArray:
    there = present(matrix)
    offsets = np.concatenate([[0], np.cumsum(there * matrix.shape[1])]).astype(np.int32)
    values = pa.array(matrix[there].reshape(-1), pa.float32())
    return pa.ListArray.from_arrays(pa.array(offsets), values, mask=pa.array(~there))


def _keys(table: pa.Table) -> pa.Table:
    names = list(schemas.PRODUCT_KEY)
    return table.group_by(names).aggregate([]).sort_by([(n, "ascending") for n in names]).combine_chunks()


def _read_keys(path: Path) -> pa.Table:
    return pq.read_table(path, columns=list(schemas.PRODUCT_KEY)).combine_chunks()


def _check_ours(final: Path) -> None:
    """Raise unless everything in an earlier release was listed by the build that wrote it."""
    if not final.exists():
        return
    try:
        written = {*manifest.read(final).files, schemas.MANIFEST, schemas.SHA256SUMS}
    except MissingFileError:
        written = set()
    foreign = [name for name in manifest.listing(final) if name not in written]
    if foreign:
        raise ReleaseError(
            "the directory holds files no build wrote", where=final, got=", ".join(foreign[:3]), fix="Move them away."
        )


def _swap(building: Path, final: Path) -> None:
    old = final.with_name(f".{final.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    building.rename(final)
    shutil.rmtree(old, ignore_errors=True)
