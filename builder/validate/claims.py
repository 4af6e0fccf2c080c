"""What the manifest and the card say of the data, against the data."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from builder.release import card, card_tables, manifest
from builder.release.statistics import Facts, distinct
from builder.validate.problem import Problem
from builder.validate.rows import Scan
from sqid_lib import schemas
from sqid_lib.errors import SourceError

_REQUIRED = ("pretty_name", "license", "language", "task_categories", "size_categories", "configs", "dataset_info")


def check_manifest(release: Path, scans: Mapping[str, Scan]) -> Iterator[Problem]:
    """Counts, rows and width of manifest.json, and the counts its recipe expects."""
    try:
        stated = manifest.read(release)
    except SourceError:
        return  # told with the files
    expected = stated.recipe.get("expect")
    for name, rows in _counts(scans).items():
        if stated.counts.get(name) != rows:
            yield _count(schemas.MANIFEST, f"counts.{name}", stated.counts.get(name), rows)
        wanted = expected.get(name) if isinstance(expected, dict) else None
        if wanted is not None and wanted != rows:
            yield _count(schemas.MANIFEST, f"recipe.expect.{name}", wanted, rows)
    for path, file in stated.files.items():
        if path.endswith(".parquet") and (release / path).is_file():
            rows_there = _rows(release / path)
            if rows_there is not None and rows_there != file.rows:
                yield _count(schemas.MANIFEST, path, file.rows, rows_there)
    for config, scan in scans.items():
        for field in scan.columns or ():
            if pa.types.is_fixed_size_list(field.type) and field.type.list_size != stated.width:
                message = f"{field.name} has {field.type.list_size} floats, {schemas.MANIFEST} says {stated.width}"
                yield Problem("width", f"data/{config}", message)


def check_card(release: Path, scans: Mapping[str, Scan]) -> Iterator[Problem]:
    """The YAML block (configs, features, splits, sizes) and the generated tables of README.md."""
    try:
        stated = card.read_metadata(release)
    except SourceError as error:
        if (release / schemas.CARD).exists():
            yield Problem("card", schemas.CARD, error.what)
        return
    for key in _REQUIRED:
        if not stated.get(key):
            yield Problem("card", schemas.CARD, f"{key} is missing from its YAML block")
    yield from _configs(stated.get("configs"), scans)
    if any(not scan.complete for scan in scans.values()):
        return
    counts = _counts(scans)
    if len(counts) < len(schemas.COUNTED):
        return
    facts = Facts(
        {config: scan.splits for config, scan in scans.items() if scan.splits},
        {config: scan.columns for config, scan in scans.items() if scan.columns is not None},
        {config: dict(scan.statuses) for config, scan in scans.items() if scan.statuses},
        {label: scans[schemas.JUDGMENTS].labels[label] for label in schemas.LABELS},
        counts,
    )
    yield from _infos(stated.get("dataset_info"), facts)
    text = (release / schemas.CARD).read_text(encoding="utf-8")
    for name, table in card_tables.data_tables(facts).items():
        if table not in text and _same_builder(release):
            yield Problem("card-table", schemas.CARD, f"its table of {name} is not what the data says")


def _same_builder(release: Path) -> bool:
    """Whether this version of sqid wrote the card: another may word its tables otherwise."""
    try:
        return manifest.read(release).versions.get("sqid") == manifest.versions().get("sqid")
    except SourceError:
        return True


def _counts(scans: Mapping[str, Scan]) -> dict[str, int]:
    """Different products, queries, judgments, supp; those of a config that was not read whole are left out."""
    found = {}
    for name, config in schemas.COUNTED.items():
        scan, key = scans[config], schemas.DECLARED[config].key
        if scan.complete and set(key) <= set(scan.kept.column_names):
            found[name] = distinct(scan.kept.select(key))
    return found


def _configs(stated: Any, scans: Mapping[str, Scan]) -> Iterator[Problem]:
    if not isinstance(stated, list) or not all(isinstance(entry, dict) for entry in stated):
        yield Problem("card-configs", schemas.CARD, "configs is no list of configs")
        return
    names = [str(entry.get("config_name")) for entry in stated]
    if sorted(names) != sorted(schemas.CONFIGS):
        yield Problem("card-configs", schemas.CARD, f"configs are {', '.join(names)}, not {', '.join(schemas.CONFIGS)}")
    defaults = [str(entry.get("config_name")) for entry in stated if entry.get("default")]
    if defaults != [schemas.DEFAULT_CONFIG]:
        said = ", ".join(defaults) or "nothing"
        yield Problem("card-configs", schemas.CARD, f"the default config is {said}, not {schemas.DEFAULT_CONFIG}")
    for entry in stated:
        scan = scans.get(str(entry.get("config_name")))
        files = entry.get("data_files")
        if scan is None or not scan.complete:
            continue
        listed = files if isinstance(files, list) else []
        patterns = {str(f.get("split")): str(f.get("path")) for f in listed if isinstance(f, dict)}
        where = f"configs.{scan.config}"
        if sorted(patterns) != sorted(scan.splits):
            message = f"{where} has splits {sorted(patterns)}, the data {sorted(scan.splits)}"
            yield Problem("card-configs", schemas.CARD, message)
        every = [file for split in scan.splits.values() for file in split.files]
        for name, split in scan.splits.items():
            if name in patterns and fnmatch.filter(every, patterns[name]) != list(split.files):
                message = f"{where}: {patterns[name]!r} does not match the files of split {name}"
                yield Problem("card-configs", schemas.CARD, message)


def _infos(stated: Any, facts: Facts) -> Iterator[Problem]:
    listed = stated if isinstance(stated, list) else []
    infos = {str(entry.get("config_name")): entry for entry in listed if isinstance(entry, dict)}
    for right in card.dataset_info(facts):
        config = right["config_name"]
        entry = infos.get(config)
        if entry is None:
            yield Problem("card-info", schemas.CARD, f"dataset_info lacks {config}")
            continue
        if entry.get("features") != right["features"]:
            yield Problem("card-features", schemas.CARD, f"dataset_info.{config}: features are not those of the data")
        splits = entry.get("splits")
        said = {
            str(split.get("name")): split
            for split in (splits if isinstance(splits, list) else [])
            if isinstance(split, dict)
        }
        for split in right["splits"]:
            where, there = f"dataset_info.{config}.{split['name']}", said.get(split["name"], {})
            if there.get("num_examples") != split["num_examples"]:
                yield _count(schemas.CARD, where, there.get("num_examples"), split["num_examples"])
            if not _near(there.get("num_bytes"), split["num_bytes"]):
                message = f"{where}: num_bytes is {there.get('num_bytes')}, the data has {split['num_bytes']}"
                yield Problem("card-size", schemas.CARD, message)
        if entry.get("download_size") != right["download_size"]:
            message = f"download_size is {entry.get('download_size')}, the files have {right['download_size']}"
            yield Problem("card-size", schemas.CARD, f"dataset_info.{config}: {message}")


def _near(said: Any, right: int) -> bool:
    """Sizes in memory differ a little between versions of Arrow."""
    return type(said) is int and abs(said - right) <= max(64, right // 100)


def _count(where: str, what: str, said: Any, rows: int) -> Problem:
    return Problem("count", where, f"{what} is {said}, the data has {rows:,}")


def _rows(path: Path) -> int | None:
    try:
        return int(pq.read_metadata(path).num_rows)
    except (pa.ArrowException, OSError):
        return None  # told with the rows or the classic files
