"""Compare two releases part by part; a part that one of them lacks is a note."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from builder.diff.difference import Difference, Ndcg, Setting
from builder.diff.rows import Shards, Table, compare_tables, read_table
from builder.diff.vectors import VectorsDiff, compare_vectors
from builder.release import manifest
from builder.release.manifest import Manifest
from sqid_lib import schemas
from sqid_lib.cache import download_cache
from sqid_lib.errors import EvaluationError, MissingFileError, SourceError
from sqid_lib.evaluation import compare as evaluate
from sqid_lib.search import Model
from sqid_lib.sources import Address, parse_address, snapshot
from sqid_lib.store import EmbeddingStore
from sqid_lib.streams.release_files import shards

_PATTERNS = [schemas.MANIFEST, schemas.SHA256SUMS, "data/*/*.parquet"]
# what is compared, and the configs that hold it: the first that both releases have
_ROWS = {
    "products": (schemas.URLS, schemas.FEATURES),
    "supplementary products": (schemas.SUPP,),
    "queries": (schemas.QUERIES,),
    "judgments": (schemas.JUDGMENTS,),
}
_METHODS = ("clip_text", "clip_image", "fusion")
_RESAMPLES = 1_000


@dataclass(frozen=True)
class _Release:
    """A release on this machine; `manifest` is None where it cannot be read."""

    address: Address
    directory: Path
    configs: Mapping[str, Shards]
    manifest: Manifest | None


def diff(
    before: str | os.PathLike[str], after: str | os.PathLike[str], *, cache_dir: str | os.PathLike[str] | None = None
) -> Difference:
    """Compare two releases. Texts are compared by hash, and vectors as mapped files, so that memory stays small.

    Args:
        before, after: addresses as `sqid_lib.sources.parse_address` reads them: a directory, ORG/NAME[@REVISION], an
            hf:// or https:// URL.
        cache_dir: where downloads and converted vectors are kept; see `EmbeddingStore.open`.

    Raises:
        MissingFileError: there is no release at an address, or shards of it are missing.
        DownloadError: the server or the Hub cannot be reached.
        SourceError, ContractError: a file is damaged, or contradicts another.
        DiskError: there is not room for the converted vectors.
    """
    notes: list[str] = []
    one, other = (_open(address, cache_dir, notes) for address in (before, after))
    tables = {name: _both(name, one, other, notes) for name in _ROWS}
    rows = {name: compare_tables(*pair) for name, pair in tables.items() if pair is not None}
    statuses = {name: (pair[0].statuses, pair[1].statuses) for name, pair in tables.items() if pair is not None}
    vectors, ndcg = _compare_stores(one, other, cache_dir, notes)
    return Difference(
        before=_name(one),
        after=_name(other),
        settings=tuple(_settings(one.manifest, other.manifest)),
        rows=rows,
        statuses={
            name: {status: (old[status], new[status]) for status in schemas.IMAGE_STATUS if old[status] or new[status]}
            for name, (old, new) in statuses.items()
            if old or new
        },
        vectors=vectors,
        ndcg=ndcg,
        notes=tuple(notes),
    )


def _open(text: str | os.PathLike[str], cache_dir: str | os.PathLike[str] | None, notes: list[str]) -> _Release:
    address = parse_address(text)
    directory = snapshot(address, _PATTERNS, None if address.local else download_cache(cache_dir))
    names = [path.relative_to(directory).as_posix() for path in directory.glob("data/*/*.parquet")]
    configs = {}
    for config in schemas.CONFIGS:
        if files := shards(names, config, address):
            configs[config] = tuple((split, directory / name) for split, name in files)
    if not configs:
        raise MissingFileError("no release here", where=address, expected="data/<config>/*.parquet")
    try:
        made_from = manifest.read(directory)
    except SourceError as error:
        notes.append(f"the recipe, model and versions are not compared: {error.where}: {error.what}")
        made_from = None
    return _Release(address, directory, configs, made_from)


def _name(release: _Release) -> str:
    stated = release.manifest
    return f"{stated.name} {stated.version} ({release.address})" if stated else str(release.address)


def _both(name: str, one: _Release, other: _Release, notes: list[str]) -> tuple[Table, Table] | None:
    """The tables of the first config that both releases have; a note if only one has any."""
    for config in _ROWS[name]:
        if config in one.configs and config in other.configs:
            return read_table(config, one.configs[config]), read_table(config, other.configs[config])
    lacking = [str(r.address) for r in (one, other) if not any(config in r.configs for config in _ROWS[name])]
    if len(lacking) == 1:
        notes.append(f"{name} are not compared: {lacking[0]} has no {' or '.join(_ROWS[name])}")
    return None


def _settings(one: Manifest | None, other: Manifest | None) -> Iterator[Setting]:
    if one is None or other is None:
        return
    old, new = _flat(one), _flat(other)
    for key in dict.fromkeys([*old, *new]):
        if old.get(key) != new.get(key):
            yield Setting(key, old.get(key), new.get(key))


def _flat(stated: Manifest) -> dict[str, object]:
    """What a release was made from, one entry for each value: "recipe.fetch.retries" and so on."""
    found: dict[str, object] = {}

    def add(key: str, value: object) -> None:
        if isinstance(value, Mapping):
            for name, item in value.items():
                add(f"{key}.{name}", item)
        else:
            found[key] = value

    for key in ("name", "version", "model", "revision", "width"):
        add(key, getattr(stated, key))
    # what a catalogue selects follows from its own section
    left_out = ("name", "version", "selection") if stated.of_catalogue else ("name", "version")
    add("recipe", {k: v for k, v in stated.recipe.items() if k not in left_out})
    add("versions", stated.versions)
    return found


def _compare_stores(
    one: _Release, other: _Release, cache_dir: str | os.PathLike[str] | None, notes: list[str]
) -> tuple[tuple[VectorsDiff, ...], tuple[Ndcg, ...]]:
    try:
        stores = [EmbeddingStore.open(release.directory, cache_dir=cache_dir) for release in (one, other)]
    except MissingFileError as error:
        notes.append(f"vectors and nDCG are not compared: {error}")
        return (), ()
    widths, models = [store.width for store in stores], [store.model for store in stores]
    vectors: tuple[VectorsDiff, ...] = ()
    if widths[0] != widths[1]:
        notes.append(f"vectors are not compared: their width is {widths[0]} and {widths[1]}")
    elif _other_model(*models):
        notes.append(f"vectors are not compared: their model is {models[0]} and {models[1]}")
    else:
        vectors = compare_vectors(*stores)
    values = [_ndcg(store, str(release.address), notes) for store, release in zip(stores, (one, other), strict=True)]
    names = [name for name in _METHODS if any(name in found for found in values)]
    return vectors, tuple(Ndcg(name, *(found.get(name) for found in values)) for name in names)


def _other_model(one: Model | None, other: Model | None) -> bool:
    """Whether two releases name different models; not two revisions of one, whose vectors are worth comparing."""
    if one is None or other is None or one.name == other.name:
        return False
    return one.revision is None or one.revision != other.revision  # a directory may have been renamed


def _ndcg(store: EmbeddingStore, where: str, notes: list[str]) -> dict[str, tuple[float, float, float]]:
    """Method → nDCG on the release's own judgments, and the ends of its 95 % interval."""
    try:
        rows = evaluate(store, _METHODS, metrics="ndcg", resamples=_RESAMPLES).rows
    except EvaluationError as error:
        notes.append(f"{where} has no nDCG: {error}")
        return {}
    return {row["method"]: (row["ndcg"], row["ndcg_low"], row["ndcg_high"]) for row in rows}
