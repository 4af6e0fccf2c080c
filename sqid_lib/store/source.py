"""What a store can be made of: a release here or on the Hub, or the classic files, alone or with ESCI."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from sqid_lib import schemas
from sqid_lib.errors import CorruptFileError, MissingFileError, UsageError
from sqid_lib.files import parse_shard_name
from sqid_lib.joined.selection import Selection
from sqid_lib.tables.vector_columns import open_parquet, row_groups, vector_width

CONFIGS = (schemas.FEATURES, schemas.QUERIES, schemas.JUDGMENTS)
_REPO = re.compile(r"(hf://datasets/)?(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?$")


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
        return vector_width([(str(path), str(path)) for _, path in self.parts[schemas.FEATURES]])

    def rows(self, config: str) -> int:
        return sum(open_parquet(path).metadata.num_rows for _, path in self.parts[config])

    def tables(self, config: str) -> Iterator[tuple[str, pa.Table, str]]:
        columns = schemas.config_schema(config).names
        for split, path in self.parts[config]:
            for table, where in row_groups([path], columns):
                yield split, table, where


@dataclass(frozen=True)
class Joined:
    """The classic files joined with ESCI, as `sqid.load` does it."""

    artifacts: Path
    esci: Path
    selection: Selection
    files: Mapping[Path, str | None]

    @property
    def settings(self) -> str:
        return repr(self.selection)

    def width(self) -> int:
        path = str(self.artifacts / schemas.PRODUCT_FEATURES)
        return vector_width([(path, path)])

    def rows(self, config: str) -> int:
        # about as many: ESCI decides, and the published files follow it
        name = schemas.PRODUCT_FEATURES if config == schemas.FEATURES else schemas.QUERY_FEATURES
        return int(open_parquet(self.artifacts / name).metadata.num_rows)

    def tables(self, config: str) -> Iterator[tuple[str, pa.Table, str]]:
        from sqid_lib.joined import rows as joined

        found = joined.find_files(config, str(self.esci), str(self.artifacts), None)
        paths = joined.local_paths(found, None, None, streaming=False)
        for split, cut in joined.splits(config, self.selection).items():
            plan = joined.Plan(config, cut, paths, schemas.CLASSIC_LOCALE, None)
            for table in joined.tables(plan, range(joined.SHARDS)):
                yield split, table, f"{self.artifacts} joined with {self.esci}"


def find(
    dir_or_repo: str | os.PathLike[str],
    revision: str | None = None,
    hub_cache: Path | None = None,
    esci: str | os.PathLike[str] | None = None,
    selection: Selection | None = None,
) -> Source:
    """The source at a directory or in a Hub repo, which is downloaded at one commit.

    Raises:
        MissingFileError: there is no such place, or a part or shard is missing.
        DownloadError: the Hub cannot be reached.
        UsageError: `revision` with a directory, `esci` with a release.
    """
    directory = Path(dir_or_repo)
    if not directory.exists():
        directory = _download(str(dir_or_repo), revision, hub_cache)
    elif revision is not None:
        raise UsageError("revision is for Hub repos", where=directory, got=revision)
    if _shards(directory, schemas.FEATURES):
        if esci is not None or selection is not None:
            raise UsageError("a release is joined already", where=directory, fix="Leave esci and selection out.")
        return _release(directory)
    for folder in (directory, directory / "data"):
        if (folder / schemas.PRODUCT_FEATURES).is_file() and (folder / schemas.QUERY_FEATURES).is_file():
            return _classic(directory, folder, esci, selection)
    expected = f"data/{schemas.FEATURES}/*.parquet, or {schemas.PRODUCT_FEATURES} and {schemas.QUERY_FEATURES}"
    raise MissingFileError("neither a release nor the classic files", where=directory, expected=expected)


def _release(directory: Path) -> Parquet:
    parts = {config: _shards(directory, config) for config in CONFIGS}
    for config, found in parts.items():
        if not found:
            raise MissingFileError("the release lacks a part", where=directory, expected=f"data/{config}/*.parquet")
    sums = _stated_sums(directory)
    return Parquet(parts, {path: sums.get(path) for found in parts.values() for _, path in found})


def _classic(
    directory: Path, folder: Path, esci: str | os.PathLike[str] | None, selection: Selection | None
) -> Parquet | Joined:
    names = [folder / schemas.PRODUCT_FEATURES, folder / schemas.QUERY_FEATURES]
    sums = _stated_sums(directory)
    if esci is None:
        parts = {
            schemas.FEATURES: (("test", names[0]),),
            schemas.QUERIES: (("test", names[1]),),
            schemas.JUDGMENTS: (),
        }
        return Parquet(parts, {path: sums.get(path) for path in names})
    from sqid_lib.joined import rows as joined

    found = [joined.find_files(config, str(esci), str(folder), None) for config in CONFIGS]
    paths = [Path(file.url) for tables in found for files in tables.values() for file in files]
    return Joined(folder, Path(esci), selection or Selection(), {path: sums.get(path) for path in paths})


def _shards(directory: Path, config: str) -> tuple[tuple[str, Path], ...]:
    """(split, path) of a config's files in order; a gap in their numbers is an error."""
    found = []
    missing: dict[str, set[int]] = {}
    for path in sorted((directory / "data" / config).glob("*.parquet")):
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
    pairs = (line.split(maxsplit=1) for line in path.read_text().splitlines() if line.strip())
    try:
        return {directory / name.strip().removeprefix("*"): digest for digest, name in pairs}
    except ValueError as error:
        raise CorruptFileError("not a list of checksums", where=path, expected="sha256  path") from error


def _download(repo: str, revision: str | None, cache: Path | None) -> Path:
    """The release's parquet files from the Hub, all at one commit."""
    match = _REPO.match(repo)
    if not match:
        raise MissingFileError("no such directory", where=repo, expected="a directory or a Hub repo ORG/name")
    from huggingface_hub import snapshot_download

    from sqid_lib.sources import retrying

    patterns = [schemas.SHA256SUMS, *(f"data/{config}/*.parquet" for config in CONFIGS)]
    for name in (schemas.PRODUCT_FEATURES, schemas.QUERY_FEATURES):
        patterns += [name, f"data/{name}"]
    wanted = revision or match["revision"]
    return Path(
        retrying(
            lambda: snapshot_download(
                match["repo"], repo_type="dataset", revision=wanted, cache_dir=cache, allow_patterns=patterns
            ),
            f"{match['repo']}@{wanted or 'main'}",
        )
    )
