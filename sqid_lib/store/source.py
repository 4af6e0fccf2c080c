"""What a store can be made of: a release here or elsewhere, or the classic files, alone or with ESCI."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from sqid_lib import schemas
from sqid_lib.errors import MissingFileError, UsageError
from sqid_lib.files import File
from sqid_lib.joined import rows as joined
from sqid_lib.joined.selection import Selection
from sqid_lib.search import Model, read_model
from sqid_lib.sources import Address, parse_address, snapshot
from sqid_lib.streams.release_files import (
    CONFIGS,
    check_listed,
    configs_without_rows,
    is_catalogue,
    parts,
    shards,
    stated_digests,
)
from sqid_lib.tables.reader import open_parquet, reporting
from sqid_lib.tables.vector_columns import read_pages, vector_width

_CLASSIC = {schemas.FEATURES: schemas.PRODUCT_FEATURES, schemas.QUERIES: schemas.QUERY_FEATURES}
# what is downloaded: of a release its parts alone, although the classic files may lie beside them
_RELEASE_PATTERNS = [schemas.MANIFEST, schemas.SHA256SUMS, *(f"data/{config}/*.parquet" for config in CONFIGS)]
_CLASSIC_PATTERNS = [schemas.SHA256SUMS, *(f"{folder}{n}" for n in _CLASSIC.values() for folder in ("", "data/"))]
_PAGES_BYTES = 1 << 31  # of vectors of a row group, read at once


class Source(Protocol):
    """The rows of a store, config by config."""

    @property
    def files(self) -> Mapping[Path, str | None]:
        """Every file it reads, with the sha256 that its release states for it."""

    @property
    def settings(self) -> str:
        """What beside the files' contents decides the rows."""

    @property
    def model(self) -> Model | None:
        """The encoder that the manifest names, if there is a manifest."""

    def width(self) -> int: ...

    @property
    def of_catalogue(self) -> bool:
        """Whether the manifest is that of a shop's own catalogue."""

    def lacks(self, config: str) -> bool:
        """Whether there are no files of a config, as a catalogue may have no queries and no judgments."""

    def kept(self) -> tuple[pa.Field, ...]:
        """Columns of the products beside the declared ones, as a catalogue has them."""

    def rows(self, config: str) -> int:
        """How many at most, or about, for the progress bar and the disk."""

    def tables(self, config: str) -> Iterator[Rows]:
        """The rows, split after split."""


@dataclass(frozen=True)
class Rows:
    """Some rows of a config, of one split.

    Attributes:
        table: all columns, or all but those of vectors.
        where: the name of the table in messages.
        vectors: the columns of vectors that are not in `table`, each as a function that reads it, in any thread.
    """

    split: str
    table: pa.Table
    where: str
    vectors: Mapping[str, Callable[[], pa.Array | pa.ChunkedArray]] = field(default_factory=dict)

    def with_vectors(self, column: str) -> pa.Table:
        """The table with a column of vectors, if there is such a column."""
        read = self.vectors.get(column)
        return self.table.append_column(column, read()) if read else self.table


@dataclass(frozen=True)
class Parquet:
    """Files of a release, or the two classic feature files."""

    parts: Mapping[str, tuple[tuple[str, Path], ...]]  # config → (split, file)
    files: Mapping[Path, str | None]
    settings: str = ""
    model: Model | None = None
    of_catalogue: bool = False

    def width(self) -> int:
        return vector_width([File(str(path)) for _, path in self.parts[schemas.FEATURES]])

    def lacks(self, config: str) -> bool:
        return not self.parts[config]

    def kept(self) -> tuple[pa.Field, ...]:
        with open_parquet(self.parts[schemas.FEATURES][0][1]) as parquet:
            return schemas.kept_columns(schemas.FEATURES, parquet.schema_arrow)

    def rows(self, config: str) -> int:
        return sum(_rows(path) for _, path in self.parts[config])

    def tables(self, config: str) -> Iterator[Rows]:
        columns = schemas.config_schema(config, kept=self.kept()).names
        for split, path in self.parts[config]:
            with open_parquet(path) as parquet:
                there = [name for name in columns if name in parquet.schema_arrow.names]
                vectors = [name for name in there if name in schemas.VECTOR_COLUMNS]
                for group in range(parquet.num_row_groups):
                    where = f"{path}, row group {group}"
                    with reporting(where):
                        table = parquet.read_row_group(group, columns=[name for name in there if name not in vectors])
                    reading = {name: partial(_read_column, path, parquet.metadata, group, name) for name in vectors}
                    yield Rows(split, table, where, reading)


def _read_column(path: Path, metadata: pq.FileMetaData, group: int, column: str) -> pa.Array | pa.ChunkedArray:
    lists = read_pages(path, metadata, group, column, _PAGES_BYTES)
    if lists is not None:
        return lists
    with open_parquet(path) as parquet, reporting(f"{path}, row group {group}"):
        return parquet.read_row_group(group, columns=[column]).column(0)


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

    @property
    def model(self) -> None:
        return None

    @property
    def of_catalogue(self) -> bool:
        return False

    def width(self) -> int:
        return vector_width(dict(self.tables_of[schemas.FEATURES])["product_features"])

    def lacks(self, config: str) -> bool:  # noqa: ARG002
        return False

    def kept(self) -> tuple[pa.Field, ...]:
        return ()

    def rows(self, config: str) -> int:
        # about as many: ESCI decides, and the published files follow it
        features = dict(self.tables_of[config])[Path(_CLASSIC[config]).stem]
        return sum(_rows(Path(file.path)) for file in features)

    def tables(self, config: str) -> Iterator[Rows]:
        for split, chosen in joined.splits(config, self.selection).items():
            plan = joined.Plan(config, chosen, self.tables_of[config], schemas.CLASSIC_LOCALE, None)
            for table in joined.tables(plan, range(joined.SHARDS)):
                yield Rows(split, table, f"{self.artifacts} joined with {self.esci}")


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
    directory = snapshot(address, _RELEASE_PATTERNS, hub_cache)
    names = [p.relative_to(directory).as_posix() for p in directory.glob("data/*/*.parquet") if p.is_file()]
    if shards(names, schemas.FEATURES, address):
        if esci is not None or selection is not None:
            raise UsageError("a release is joined already", where=address, fix="Leave esci and selection out.")
        return _release(directory, names)
    directory = snapshot(address, _CLASSIC_PATTERNS, hub_cache)
    for folder in (directory, directory / "data"):
        if all((folder / name).is_file() for name in _CLASSIC.values()):
            return _classic(directory, folder, esci, selection)
    expected = f"data/{schemas.FEATURES}/*.parquet, or {' and '.join(_CLASSIC.values())}"
    raise MissingFileError("neither a release nor the classic files", where=address, expected=expected)


def _release(directory: Path, names: list[str]) -> Parquet:
    manifest = directory / schemas.MANIFEST
    found = {
        config: tuple((split, directory / name) for split, name in files)
        for config, files in parts(names, directory, configs_without_rows(manifest)).items()
    }
    sums = stated_digests(directory)
    check_listed(sums, names, directory)
    digests = {path: sums.get(path) for files in found.values() for _, path in files}
    return Parquet(found, digests, model=read_model(manifest), of_catalogue=is_catalogue(manifest))


def _classic(directory: Path, folder: Path, esci: Address | None, selection: Selection | None) -> Parquet | Joined:
    sums = stated_digests(directory)
    if esci is None:
        paths = {config: folder / name for config, name in _CLASSIC.items()}
        found = {config: (("test", path),) for config, path in paths.items()} | {schemas.JUDGMENTS: ()}
        return Parquet(found, {path: sums.get(path) for path in paths.values()})
    artifacts = parse_address(folder)
    tables_of = {config: joined.download(joined.find_files(config, esci, artifacts), None) for config in CONFIGS}
    read = [Path(file.path) for tables in tables_of.values() for _, files in tables for file in files]
    return Joined(artifacts, esci, selection or Selection(), tables_of, {path: sums.get(path) for path in read})
