"""What a store can be made of: a release here or elsewhere, or the classic files, alone or with ESCI."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from sqid_lib import schemas
from sqid_lib.errors import CorruptFileError, MissingFileError, UsageError
from sqid_lib.files import File, parse_shard_name
from sqid_lib.joined import rows as joined
from sqid_lib.joined.selection import Selection
from sqid_lib.sources import Address, parse_address, snapshot
from sqid_lib.tables.reader import open_parquet
from sqid_lib.tables.vector_columns import row_groups, vector_width

CONFIGS = (schemas.FEATURES, schemas.QUERIES, schemas.JUDGMENTS)
_CLASSIC = {schemas.FEATURES: schemas.PRODUCT_FEATURES, schemas.QUERIES: schemas.QUERY_FEATURES}
_PATTERNS = [  # of a release or of the classic files: what is downloaded
    schemas.SHA256SUMS,
    *(f"data/{config}/*.parquet" for config in CONFIGS),
    *(f"{folder}{name}" for name in _CLASSIC.values() for folder in ("", "data/")),
]


class Source(Protocol):
    """The rows of a store, config by config."""

    @property
    def files(self) -> Mapping[Path, str | None]:
        """Every file it reads, with the sha256 that its release states for it."""

    @property
    def settings(self) -> str:
        """What beside the files' contents decides the rows."""

    def width(self) -> int: ...

    def rows(self, config: str) -> int:
        """How many at most, or about, for the progress bar and the disk."""

    def tables(self, config: str) -> Iterator[tuple[str, pa.Table, str]]:
        """(split, table, where it is from), split after split."""


@dataclass(frozen=True)
class Parquet:
    """Files of a release, or the two classic feature files."""

    parts: Mapping[str, tuple[tuple[str, Path], ...]]  # config → (split, file)
    files: Mapping[Path, str | None]
    settings: str = ""

    def width(self) -> int:
        return vector_width([File(str(path)) for _, path in self.parts[schemas.FEATURES]])

    def rows(self, config: str) -> int:
        return sum(_rows(path) for _, path in self.parts[config])

    def tables(self, config: str) -> Iterator[tuple[str, pa.Table, str]]:
        columns = schemas.config_schema(config).names
        for split, path in self.parts[config]:
            for table, where in row_groups([path], columns):
                yield split, table, where


@dataclass(frozen=True)
class Joined:
    """The classic files joined with ESCI, as `sqid.load` does it."""

    artifacts: Address
    esci: Address
    selection: Selection
    tables_of: Mapping[str, tuple[tuple[str, tuple[File, ...]], ...]]  # config → (table, its files)
    files: Mapping[Path, str | None]

    @property
    def settings(self) -> str:
        return repr(self.selection)

    def width(self) -> int:
        return vector_width(dict(self.tables_of[schemas.FEATURES])["product_features"])

    def rows(self, config: str) -> int:
        # about as many: ESCI decides, and the published files follow it
        features = dict(self.tables_of[config])[Path(_CLASSIC[config]).stem]
        return sum(_rows(Path(file.path)) for file in features)

    def tables(self, config: str) -> Iterator[tuple[str, pa.Table, str]]:
        for split, chosen in joined.splits(config, self.selection).items():
            plan = joined.Plan(config, chosen, self.tables_of[config], schemas.CLASSIC_LOCALE, None)
            for table in joined.tables(plan, range(joined.SHARDS)):
                yield split, table, f"{self.artifacts} joined with {self.esci}"


def _rows(path: Path) -> int:
    with open_parquet(path) as parquet:
        return int(parquet.metadata.num_rows)


def find(
    address: Address, hub_cache: Path | None = None, esci: Address | None = None, selection: Selection | None = None
) -> Source:
    """The source at an address; what is not here is downloaded at one version.

    Raises:
        MissingFileError: there is no such directory or dataset, or a part or shard is missing.
        DownloadError: the server or the Hub cannot be reached.
        UsageError: `esci` or `selection` with a release.
    """
    directory = snapshot(address, _PATTERNS, hub_cache)
    if _shards(directory, schemas.FEATURES):
        if esci is not None or selection is not None:
            raise UsageError("a release is joined already", where=address, fix="Leave esci and selection out.")
        return _release(directory)
    for folder in (directory, directory / "data"):
        if all((folder / name).is_file() for name in _CLASSIC.values()):
            return _classic(directory, folder, esci, selection)
    expected = f"data/{schemas.FEATURES}/*.parquet, or {' and '.join(_CLASSIC.values())}"
    raise MissingFileError("neither a release nor the classic files", where=address, expected=expected)


def _release(directory: Path) -> Parquet:
    parts = {config: _shards(directory, config) for config in CONFIGS}
    for config, found in parts.items():
        if not found:
            raise MissingFileError("the release lacks a part", where=directory, expected=f"data/{config}/*.parquet")
    sums = _stated_sums(directory)
    return Parquet(parts, {path: sums.get(path) for found in parts.values() for _, path in found})


def _classic(directory: Path, folder: Path, esci: Address | None, selection: Selection | None) -> Parquet | Joined:
    sums = _stated_sums(directory)
    if esci is None:
        paths = {config: folder / name for config, name in _CLASSIC.items()}
        parts = {config: (("test", path),) for config, path in paths.items()} | {schemas.JUDGMENTS: ()}
        return Parquet(parts, {path: sums.get(path) for path in paths.values()})
    artifacts = parse_address(folder)
    tables_of = {config: joined.download(joined.find_files(config, esci, artifacts), None) for config in CONFIGS}
    read = [Path(file.path) for tables in tables_of.values() for _, files in tables for file in files]
    return Joined(artifacts, esci, selection or Selection(), tables_of, {path: sums.get(path) for path in read})


def _shards(directory: Path, config: str) -> tuple[tuple[str, Path], ...]:
    """(split, path) of a config's files in order; a gap in their numbers is an error."""
    found = []
    missing: dict[str, set[int]] = {}
    for path in sorted((directory / "data" / config).glob("[!.]*.parquet")):
        if name := parse_shard_name(path):
            split = name.split
            missing.setdefault(split, set(range(name.shards))).discard(name.shard)
        else:
            split = path.stem
        found.append((split, path))
    gaps = {split: sorted(shards) for split, shards in missing.items() if shards}
    if gaps:
        fix = "Download or build the release again."
        raise MissingFileError("shards are missing", where=directory / "data" / config, got=f"no {gaps}", fix=fix)
    return tuple(found)


def _stated_sums(directory: Path) -> dict[Path, str]:
    path = directory / schemas.SHA256SUMS
    if not path.is_file():
        return {}
    try:
        pairs = [line.split(maxsplit=1) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        return {directory / name.strip().removeprefix("*"): digest for digest, name in pairs}
    except ValueError as error:
        raise CorruptFileError("not a list of checksums", where=path, expected="sha256  path") from error
