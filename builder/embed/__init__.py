"""embed: query text, product title and product picture → vectors, a batched `Dataset.map` per shard."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from builder.atomic import replacing
from builder.embed import shards
from builder.embed.pictures import Pictures
from builder.recipe import Recipe
from sqid_lib import schemas
from sqid_lib.errors import CountError, EncoderError, IntegrityError, UsageError, missing_extra
from sqid_lib.tables import read_parquet

if TYPE_CHECKING:
    from PIL import Image
    from tqdm import tqdm

    from sqid_lib.encoders import Encoder

log = logging.getLogger(__name__)

_FOLDER = "embed"
_RECORD = "encoder.json"
_VERSIONED = ("torch", "transformers", "tokenizers", "numpy", "pillow", "pyarrow")


@dataclass(frozen=True)
class Shard:
    """One output file.

    Attributes:
        path: of the file.
        part: "products", "supp" or "queries".
        inputs: the id columns and `text`; products also `image_status` and `picture` (sha256, null: no vector).
        stamp: of the inputs and of all that makes vectors of them.
    """

    path: Path
    part: str
    inputs: pa.Table
    stamp: str


def embed(recipe: Recipe, work: Path, engine: str = "local") -> None:
    """Make WORK/embed/{products,queries,supp}-*.parquet and encoder.json from what sample and fetch left in WORK.

    Shards already there are kept if they are readable and were made of the same inputs by the same encoder.
    Vectors are projected and not normalised, as published.

    Args:
        recipe: [encoder] chooses the model; `selection.embed_supp` adds the supplementary products.
        work: the build's work directory.
        engine: "local".

    Raises:
        UsageError: another engine.
        EncoderError: the model cannot be loaded or used, or gives a non-finite text vector.
        SourceError, ContractError: what sample and fetch left is damaged or does not fit together.
        DiskError: no space left.
        MissingExtraError: the extra "build" is not installed.
    """
    if engine != "local":
        raise UsageError("unknown engine", where="--engine", expected="local", got=engine)
    folder = work / _FOLDER
    tables = _inputs(recipe, work)
    pictures = Pictures(work / "fetch")
    pictures.check({digest for t in tables.values() if "picture" in t.column_names for digest in _digests(t)})

    encoder = _load(recipe)
    record = _describe(recipe, encoder)
    identity = {**record, "max_pixels": recipe.fetch.max_pixels}
    plan = list(_plan(folder, tables, recipe.encoder.shard_rows, identity))
    shards.remove_others(folder, [shard.path for shard in plan])
    pending = [s for s in plan if not shards.is_finished(s.path, s.stamp, s.inputs.num_rows)]
    _write_record(folder / _RECORD, record)
    log.info("embed: %d of %d shards to do", len(pending), len(plan))
    with _progress(plan, pending) as bar:
        for shard in pending:
            table = _encode(shard, encoder, pictures, recipe)
            shards.write(shard.path, table, shard.stamp)
            bar.update(shard.inputs.num_rows)
            log.info("embed: wrote %s", shard.path.name)


def _inputs(recipe: Recipe, work: Path) -> dict[str, pa.Table]:
    """Part → id columns and text; of products also image_status and picture. Rows in the order of sample."""
    outcomes = read_parquet(str(work / "fetch" / "outcomes.parquet"), schemas.OUTCOMES_SCHEMA)
    tables: dict[str, pa.Table] = {}
    start = 0
    for part in (shards.PRODUCTS, shards.SUPP) if recipe.selection.embed_supp else (shards.PRODUCTS,):
        path = work / "sample" / f"{part}.parquet"
        wanted = [*schemas.PRODUCT_KEY, "product_title"]
        products = read_parquet(str(path), pa.schema([schemas.PRODUCTS_SCHEMA.field(name) for name in wanted]))
        tables[part] = _with_outcomes(products, outcomes.slice(start, products.num_rows), path)
        start += products.num_rows
    if recipe.selection.embed_supp and start != outcomes.num_rows:
        raise CountError(
            "fetch and sample differ", where=work, expected=f"{start} outcomes", got=outcomes.num_rows, fix=_AGAIN
        )
    queries = read_parquet(str(work / "sample" / "queries.parquet"), schemas.SAMPLED_QUERIES_SCHEMA)
    tables[shards.QUERIES] = pa.table({"query_id": queries["query_id"], "text": pc.fill_null(queries["query"], "")})
    return tables


_AGAIN = "Run the sample, resolve and fetch stages again."


def _with_outcomes(products: pa.Table, outcomes: pa.Table, path: Path) -> pa.Table:
    if any(not outcomes[key].equals(products[key]) for key in schemas.PRODUCT_KEY):
        raise IntegrityError("the products of sample are not those of fetch/outcomes.parquet", where=path, fix=_AGAIN)
    embedded = pc.is_in(outcomes["image_status"], pa.array(schemas.EMBEDDED_STATUSES))
    picture = pc.if_else(embedded, outcomes["sha256"], None)
    unstored = pc.and_(embedded, pc.is_null(picture))
    if pc.any(unstored).as_py():
        first = outcomes["product_id"].filter(unstored)[0]
        raise IntegrityError(
            "a picture is ok and was not stored", where="fetch/outcomes.parquet", got=first, fix=_AGAIN
        )
    return pa.table(
        {
            **{key: products[key] for key in schemas.PRODUCT_KEY},
            "text": pc.fill_null(products["product_title"], ""),
            "image_status": outcomes["image_status"],
            "picture": picture,
        }
    )


def _plan(folder: Path, tables: dict[str, pa.Table], rows: int, identity: dict[str, Any]) -> Iterator[Shard]:
    for part, table in tables.items():
        for number, start in enumerate(range(0, table.num_rows, rows)):
            inputs = table.slice(start, rows).combine_chunks()
            path = folder / f"{part}-{number:05d}.parquet"
            yield Shard(path, part, inputs, shards.stamp({**identity, "part": part}, inputs))


def _load(recipe: Recipe) -> Encoder:
    if recipe.encoder.backend != "transformers":
        raise UsageError(
            "unknown backend", where="encoder.backend", expected="transformers", got=recipe.encoder.backend
        )
    from sqid_lib.encoders import load_encoder

    settings = recipe.encoder
    return load_encoder(settings.model, revision=settings.revision, device=settings.device, dtype=settings.dtype)


def _describe(recipe: Recipe, encoder: Encoder) -> dict[str, Any]:
    return {
        **asdict(recipe.encoder),
        "requested_revision": recipe.encoder.revision,
        "revision": encoder.revision,
        "width": encoder.width,
        "device": encoder.device,
        "linear": encoder.linear,
        "versions": {package: metadata.version(package) for package in _VERSIONED},
    }


def _write_record(path: Path, record: dict[str, Any]) -> None:
    with replacing(path) as part:
        part.write_text(json.dumps(record, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _encode(shard: Shard, encoder: Encoder, pictures: Pictures, recipe: Recipe) -> pa.Table:
    """The rows of one shard."""
    schema = shards.shard_schema(shard.part, encoder.width)
    texts, place = _distinct(shard.inputs["text"])
    vectors = _map(
        lambda rows: encoder.encode_text([texts[row] for row in rows], batch_size=recipe.encoder.text_batch),
        len(texts),
        encoder.width,
        shard.stamp,
    )
    if not np.isfinite(vectors).all():
        bad = texts[int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])]
        raise EncoderError("a text vector is not finite", where=encoder.model_id, got=repr(bad[:80]), fix=_FINITE)
    columns = {name: shard.inputs[name] for name in schema.names if name in shard.inputs.column_names}
    columns["clip_text_features"] = _lists(vectors[place])
    if shard.part != shards.QUERIES:
        status, lists = _picture_column(shard, encoder, pictures, recipe)
        columns |= {"image_status": status, "clip_image_features": lists}
    return pa.table([columns[name] for name in schema.names], schema=schema)


_FINITE = 'Set encoder.dtype = "float32", or check the weights.'


def _picture_column(
    shard: Shard, encoder: Encoder, pictures: Pictures, recipe: Recipe
) -> tuple[pa.Array, pa.FixedSizeListArray]:
    """Final image_status, and vectors that are null where there is none."""
    from sqid_lib.pictures import PictureError, decode

    ordered = pictures.order(set(_digests(shard.inputs)))
    failed: dict[str, str] = {}

    def open_picture(item: tuple[str, bytes]) -> Image.Image | None:
        try:
            return decode(item[1], recipe.fetch.max_pixels)
        except PictureError as error:
            failed[item[0]] = error.status
            return None

    def encode(rows: list[int]) -> np.ndarray:
        digests = [ordered[row] for row in rows]
        stored = zip(digests, pictures.read(digests), strict=True)
        return encoder.encode_images(stored, decode=open_picture, batch_size=recipe.encoder.image_batch)

    vectors = _map(encode, len(ordered), encoder.width, shard.stamp)
    for row in np.flatnonzero(~np.isfinite(vectors).all(axis=1)):
        failed.setdefault(ordered[row], "non_finite")
    place = {digest: row for row, digest in enumerate(ordered)}
    rows = [-1 if d is None or d in failed else place[d] for d in shard.inputs["picture"].to_pylist()]
    status = [
        failed.get(digest, old)
        for digest, old in zip(
            shard.inputs["picture"].to_pylist(), shard.inputs["image_status"].to_pylist(), strict=True
        )
    ]
    full = np.zeros((len(rows), encoder.width), np.float32)
    has = np.array(rows, np.int64) >= 0
    full[has] = vectors[[row for row in rows if row >= 0]]
    return pa.array(status, pa.string()), _lists(full, ~has)


def _map(encode: Any, count: int, width: int, fingerprint: str) -> np.ndarray:
    """`encode` over rows 0 … count − 1 through a batched `Dataset.map`; float32 [count, width]."""
    import datasets

    fixed_list = getattr(datasets, "List", None) or datasets.Sequence  # datasets 3.x has no List
    features = datasets.Features({"vector": fixed_list(datasets.Value("float32"), length=width)})
    if not count:
        return np.empty((0, width), np.float32)
    with _quiet_datasets():
        mapped = datasets.Dataset.from_dict(
            {"row": list(range(count))}
        ).map(
            lambda batch: pa.table({"vector": _lists(encode(batch["row"]))}),
            batched=True,
            batch_size=count,  # the encoder makes its own batches, by length
            features=features,
            remove_columns=["row"],
            new_fingerprint=fingerprint[:32],  # hashing a function that holds the model takes seconds
        )
    column = mapped.data.column("vector").combine_chunks()
    return np.asarray(column.flatten(), np.float32).reshape(count, width)


def _lists(matrix: np.ndarray, null: np.ndarray | None = None) -> pa.FixedSizeListArray:
    flat = pa.array(np.ascontiguousarray(matrix, np.float32).reshape(-1))
    mask = None if null is None else pa.array(null)
    return pa.FixedSizeListArray.from_arrays(flat, matrix.shape[1], mask=mask)


def _distinct(column: pa.ChunkedArray) -> tuple[list[str], np.ndarray]:
    """Distinct values in order of appearance, and the row of each value among them."""
    encoded = column.combine_chunks().dictionary_encode()
    return encoded.dictionary.to_pylist(), encoded.indices.to_numpy(zero_copy_only=False)


def _digests(table: pa.Table) -> list[str]:
    return [digest for digest in table["picture"].to_pylist() if digest is not None]


@contextmanager
def _quiet_datasets() -> Iterator[None]:
    """No bar of `datasets` within ours."""
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    hidden = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not hidden:
            enable_progress_bars()


def _progress(plan: list[Shard], pending: list[Shard]) -> tqdm[Any]:
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise missing_extra("tqdm", "build", "to show progress") from error
    todo, total = (sum(shard.inputs.num_rows for shard in some) for some in (pending, plan))
    return tqdm(total=total, initial=total - todo, desc="embed", unit="row", file=sys.stderr, disable=None)
