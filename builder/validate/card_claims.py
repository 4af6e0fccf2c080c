"""What the card states, against the data and the manifest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from builder.release import card, card_tables, manifest
from builder.release.card_labels import own_labels
from builder.release.card_yaml import read_metadata
from builder.release.manifest import Manifest
from builder.release.stated import licence_entries
from builder.release.statistics import Statistics
from builder.validate.manifest_claims import count_problem, counts
from builder.validate.problem import Problem
from builder.validate.rows import Scan
from sqid_lib import schemas
from sqid_lib.errors import SourceError

# what the card may state: what a build writes, and what people add on the Hub that changes no loading
_KEYS = frozenset(
    (
        *("pretty_name", "license", "license_name", "license_link", "language", "multilinguality", "tags", "thumbnail"),
        *("annotations_creators", "language_creators", "source_datasets", "task_categories", "task_ids", "viewer"),
        *(
            "size_categories",
            "paperswithcode_id",
            "configs",
            "dataset_info",
            "extra_gated_prompt",
            "extra_gated_fields",
        ),
    )
)
_CONFIG_KEYS = frozenset(("config_name", "data_files", "default"))
_FILE_KEYS = frozenset(("split", "path"))
_INFO_KEYS = frozenset(("config_name", "features", "splits", "download_size", "dataset_size"))
_SPLIT_KEYS = frozenset(("name", "num_bytes", "num_examples"))
_REQUIRED = ("pretty_name", "task_categories", "size_categories", "configs", "dataset_info")


def check_card(release: Path, stated: Manifest | None, scans: Mapping[str, Scan]) -> Iterator[Problem]:
    """The YAML block (configs, features, splits, sizes) and the generated tables of README.md."""
    try:
        metadata = read_metadata(release)
    except SourceError as error:
        if (release / schemas.CARD).exists():
            yield Problem("card", schemas.CARD, error.what)
        return
    claims = _claims(stated)
    for key in (*_REQUIRED, *claims):
        if not metadata.get(key):
            yield Problem("card", schemas.CARD, f"{key} is missing from its YAML block")
    yield from _unknown_keys(metadata)
    yield from _configs(metadata.get("configs"), scans)
    if not all(scan.complete for scan in scans.values()):
        return
    statistics = _statistics(scans)
    if len(statistics.counts) < len(schemas.COUNTED):
        return
    yield from _infos(metadata.get("dataset_info"), statistics)
    if stated:
        yield from _contradictions(metadata, stated, statistics)
    if stated and stated.versions.get("sqid") != manifest.versions().get("sqid"):
        return  # another version of sqid wrote the card and may word its tables in another way
    text = (release / schemas.CARD).read_text(encoding="utf-8")
    gains = stated.gains if stated else schemas.GAINS
    labels = own_labels(statistics) if stated and stated.of_catalogue else gains
    for name, table in card_tables.data_tables(statistics, labels).items():
        if table not in text:
            yield Problem("card-table", schemas.CARD, f"its table of {name} does not agree with the data")
    if stated and f"| encoder | `{stated.model}`" not in text:
        yield Problem("contradiction", schemas.CARD, f"its encoder is not that of {schemas.MANIFEST}, {stated.model}")


def _unknown_keys(metadata: Mapping[str, Any]) -> Iterator[Problem]:
    """Keys that a build does not write: `data_dir`, say, makes datasets read from another place."""

    def entries(value: Any) -> list[dict[Any, Any]]:
        return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []

    configs, infos = entries(metadata.get("configs")), entries(metadata.get("dataset_info"))
    for where, found, known in (
        ("the YAML block", [metadata], _KEYS),
        ("configs", configs, _CONFIG_KEYS),
        ("configs.data_files", [file for config in configs for file in entries(config.get("data_files"))], _FILE_KEYS),
        ("dataset_info", infos, _INFO_KEYS),
        ("dataset_info.splits", [split for info in infos for split in entries(info.get("splits"))], _SPLIT_KEYS),
    ):
        unknown = sorted({str(key) for entry in found for key in entry} - known)
        if unknown:
            yield Problem("card-key", schemas.CARD, f"{where} has keys that no build writes: {', '.join(unknown)}")


def _contradictions(metadata: Mapping[str, Any], stated: Manifest, statistics: Statistics) -> Iterator[Problem]:
    """Licence, languages and size follow from the recipe and the data."""
    right: dict[str, Any] = {"size_categories": [card.size_category(statistics)]}
    for key, value in (right | _claims(stated)).items():
        if value and metadata.get(key) and metadata[key] != value:
            message = f"{key} is {metadata[key]}, and the recipe and the data make it {value}"
            yield Problem("contradiction", schemas.CARD, message)


def _claims(stated: Manifest | None) -> dict[str, Any]:
    """Licence and languages that the recipe states; of ESCI's data they are known where it states none."""
    if stated is None:
        return {"license": list(card.LICENCES)}
    licences, languages = stated.card.get("licence") or [], stated.card.get("language") or []
    if not stated.of_catalogue:
        licences, languages = licences or card.LICENCES, languages or card.known_languages(stated.locales)
    return {**licence_entries(licences), **({"language": list(languages)} if languages else {})}


def _statistics(scans: Mapping[str, Scan]) -> Statistics:
    """What `gather_statistics` reads, from the scans."""
    return Statistics(
        {config: scan.filled for config, scan in scans.items() if scan.filled},
        {config: scan.columns for config, scan in scans.items() if scan.filled and scan.columns is not None},
        {config: dict(scan.statuses) for config, scan in scans.items() if scan.statuses},
        dict(scans[schemas.JUDGMENTS].labels),
        counts(scans),
        scans[schemas.JUDGMENTS].ends,
    )


def _configs(stated: Any, scans: Mapping[str, Scan]) -> Iterator[Problem]:
    """Names, default, splits and file patterns of `configs`."""
    if not isinstance(stated, list) or not all(isinstance(entry, dict) for entry in stated):
        yield Problem("card-configs", schemas.CARD, "configs is not a list of configs")
        return
    names = [str(entry.get("config_name")) for entry in stated]
    empty = [name for name in names if name in scans and not scans[name].present]
    for name in empty:
        message = f"config {name} has no rows, and load_dataset fails for it: build the release again without it"
        yield Problem("empty-config", schemas.CARD, message)
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
    """The `data_files` of one config are exactly those of its splits."""
    listed = stated if isinstance(stated, list) else []
    patterns = {str(f.get("split")): str(f.get("path")) for f in listed if isinstance(f, dict)}
    where = f"configs.{scan.config}"
    if sorted(patterns) != sorted(scan.filled):
        message = f"{where} has splits {sorted(patterns)}, the data has rows of {sorted(scan.filled)}"
        yield Problem("card-configs", schemas.CARD, message)
    for name in scan.filled:
        right = card.shard_pattern(scan.config, name)
        if name in patterns and patterns[name] != right:
            message = f"{where}: the files of split {name} are {patterns[name]!r}, not {right!r}"
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
                yield count_problem(schemas.CARD, where, got.get("num_examples"), split["num_examples"])
            if not _near(got.get("num_bytes"), split["num_bytes"]):
                message = f"{where}: num_bytes is {got.get('num_bytes')}, the data has {split['num_bytes']}"
                yield Problem("card-size", schemas.CARD, message)
        if entry.get("download_size") != right["download_size"]:
            message = f"download_size is {entry.get('download_size')}, the files have {right['download_size']}"
            yield Problem("card-size", schemas.CARD, f"dataset_info.{config}: {message}")


def _near(got: Any, right: int) -> bool:
    """Sizes in memory differ a little between versions of Arrow."""
    return type(got) is int and abs(got - right) <= max(64, right // 100)
