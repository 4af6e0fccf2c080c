"""What the manifest and the card state, against the data."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from builder.release import card, card_tables, manifest
from builder.release.card_yaml import read_metadata
from builder.release.manifest import Manifest
from builder.release.statistics import Statistics, distinct
from builder.validate.problem import Problem
from builder.validate.rows import Scan
from sqid_lib import schemas
from sqid_lib.errors import SourceError

_REQUIRED = ("pretty_name", "license", "task_categories", "size_categories", "configs", "dataset_info")


def check_manifest(release: Path, stated: Manifest | None, scans: Mapping[str, Scan]) -> Iterator[Problem]:
    """Counts, rows and width of manifest.json, and the counts its recipe expects."""
    if stated is None:
        return  # reported with the files
    expected = stated.recipe.get("expect")
    for name, rows in _counts(scans).items():
        if stated.counts.get(name) != rows:
            yield _count(schemas.MANIFEST, f"counts.{name}", stated.counts.get(name), rows)
        wanted = expected.get(name) if isinstance(expected, dict) else None
        if wanted is not None and wanted != rows:
            yield _count(schemas.MANIFEST, f"recipe.expect.{name}", wanted, rows)
    for path, file in stated.files.items():
        if path.endswith(".parquet") and (release / path).is_file():
            found = _rows(release / path)
            if found is not None and found != file.rows:
                yield _count(schemas.MANIFEST, path, file.rows, found)
    for config, scan in scans.items():
        for field in scan.columns or ():
            if pa.types.is_fixed_size_list(field.type) and field.type.list_size != stated.width:
                message = f"{field.name} has {field.type.list_size} floats, {schemas.MANIFEST} states {stated.width}"
                yield Problem("width", f"data/{config}", message)


def check_card(release: Path, stated: Manifest | None, scans: Mapping[str, Scan]) -> Iterator[Problem]:
    """The YAML block (configs, features, splits, sizes) and the generated tables of README.md."""
    try:
        metadata = read_metadata(release)
    except SourceError as error:
        if (release / schemas.CARD).exists():
            yield Problem("card", schemas.CARD, error.what)
        return
    has_language = bool(card.known_languages(stated.locales)) if stated else False
    for key in (*_REQUIRED, *(["language"] if has_language else [])):
        if not metadata.get(key):
            yield Problem("card", schemas.CARD, f"{key} is missing from its YAML block")
    yield from _configs(metadata.get("configs"), scans)
    if not all(scan.complete for scan in scans.values()):
        return
    statistics = _statistics(scans)
    if len(statistics.counts) < len(schemas.COUNTED):
        return
    yield from _infos(metadata.get("dataset_info"), statistics)
    if stated and stated.versions.get("sqid") != manifest.versions().get("sqid"):
        return  # another version of sqid wrote the card and may word its tables in another way
    text = (release / schemas.CARD).read_text(encoding="utf-8")
    for name, table in card_tables.data_tables(statistics, stated.gains if stated else schemas.GAINS).items():
        if table not in text:
            yield Problem("card-table", schemas.CARD, f"its table of {name} does not agree with the data")


def _statistics(scans: Mapping[str, Scan]) -> Statistics:
    """What `gather_statistics` reads, from the scans."""
    return Statistics(
        {config: scan.filled for config, scan in scans.items() if scan.filled},
        {config: scan.columns for config, scan in scans.items() if scan.filled and scan.columns is not None},
        {config: dict(scan.statuses) for config, scan in scans.items() if scan.statuses},
        dict(scans[schemas.JUDGMENTS].labels),
        _counts(scans),
    )


def _counts(scans: Mapping[str, Scan]) -> dict[str, int]:
    """Distinct products, queries, judgments, supp; those of a config that was not read whole are left out."""
    found = {}
    for name, config in schemas.COUNTED.items():
        scan, key = scans[config], schemas.DECLARED[config].key
        if scan.complete and set(key) <= set(scan.kept.column_names):
            found[name] = distinct(scan.kept.select(key))
    return found


def _configs(stated: Any, scans: Mapping[str, Scan]) -> Iterator[Problem]:
    """Names, default, splits and file patterns of `configs`."""
    if not isinstance(stated, list) or not all(isinstance(entry, dict) for entry in stated):
        yield Problem("card-configs", schemas.CARD, "configs is not a list of configs")
        return
    names = [str(entry.get("config_name")) for entry in stated]
    empty = [name for name in names if name in scans and not scans[name].present]
    for name in empty:
        yield Problem("empty-config", schemas.CARD, f"config {name} has no rows: datasets cannot load it")
    present = [config for config, scan in scans.items() if scan.present]
    if sorted(set(names) - set(empty)) != sorted(present) or len(set(names)) < len(names):
        yield Problem("card-configs", schemas.CARD, f"configs are {', '.join(names)}, not {', '.join(present)}")
    defaults = [str(entry.get("config_name")) for entry in stated if entry.get("default")]
    if defaults != [schemas.DEFAULT_CONFIG]:
        got = ", ".join(defaults) or "not set"
        yield Problem("card-configs", schemas.CARD, f"the default config is {got}, not {schemas.DEFAULT_CONFIG}")
    for entry in stated:
        scan = scans.get(str(entry.get("config_name")))
        if scan is not None and scan.complete and scan.filled:
            yield from _patterns(entry.get("data_files"), scan)


def _patterns(stated: Any, scan: Scan) -> Iterator[Problem]:
    """The `data_files` of one config match exactly the files of each split."""
    listed = stated if isinstance(stated, list) else []
    patterns = {str(f.get("split")): str(f.get("path")) for f in listed if isinstance(f, dict)}
    where = f"configs.{scan.config}"
    if sorted(patterns) != sorted(scan.filled):
        message = f"{where} has splits {sorted(patterns)}, the data has rows of {sorted(scan.filled)}"
        yield Problem("card-configs", schemas.CARD, message)
    every = [file for split in scan.splits.values() for file in split.files]
    for name, split in scan.filled.items():
        if name in patterns and fnmatch.filter(every, patterns[name]) != list(split.files):
            message = f"{where}: {patterns[name]!r} does not match the files of split {name}"
            yield Problem("card-configs", schemas.CARD, message)


def _infos(stated: Any, statistics: Statistics) -> Iterator[Problem]:
    """Features, rows and sizes of `dataset_info`."""
    listed = stated if isinstance(stated, list) else []
    infos = {str(entry.get("config_name")): entry for entry in listed if isinstance(entry, dict)}
    for name in sorted(set(infos) - set(statistics.splits)):
        yield Problem("card-info", schemas.CARD, f"dataset_info has {name}, of which the data has no rows")
    for right in card.dataset_info(statistics):
        config = right["config_name"]
        entry = infos.get(config)
        if entry is None:
            yield Problem("card-info", schemas.CARD, f"dataset_info lacks {config}")
            continue
        if entry.get("features") != right["features"]:
            yield Problem("card-features", schemas.CARD, f"dataset_info.{config}: features are not those of the data")
        found = entry.get("splits")
        splits = {str(s.get("name")): s for s in (found if isinstance(found, list) else []) if isinstance(s, dict)}
        for split in right["splits"]:
            where, got = f"dataset_info.{config}.{split['name']}", splits.get(split["name"], {})
            if got.get("num_examples") != split["num_examples"]:
                yield _count(schemas.CARD, where, got.get("num_examples"), split["num_examples"])
            if not _near(got.get("num_bytes"), split["num_bytes"]):
                message = f"{where}: num_bytes is {got.get('num_bytes')}, the data has {split['num_bytes']}"
                yield Problem("card-size", schemas.CARD, message)
        if entry.get("download_size") != right["download_size"]:
            message = f"download_size is {entry.get('download_size')}, the files have {right['download_size']}"
            yield Problem("card-size", schemas.CARD, f"dataset_info.{config}: {message}")


def _near(got: Any, right: int) -> bool:
    """Sizes in memory differ a little between versions of Arrow."""
    return type(got) is int and abs(got - right) <= max(64, right // 100)


def _count(where: str, what: str, got: Any, rows: int) -> Problem:
    return Problem("count", where, f"{what} is {got}, the data has {rows:,}")


def _rows(path: Path) -> int | None:
    try:
        return int(pq.read_metadata(path).num_rows)
    except (pa.ArrowException, OSError):
        return None  # reported with the rows or the classic files
