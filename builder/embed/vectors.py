"""The vectors of one encoder by the content they were made of: WORK/embed/vectors/<encoder>/{texts,images}-*.parquet.

A file holds digests (sha256 of a text or of an image's bytes), statuses and vectors, and in its metadata the settings
it was made with. Of all files only the halves of digests are in memory, 16 bytes a vector; the vectors are read file by
file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from builder.embed import shards
from builder.embed.inputs import IMAGES, TEXTS
from builder.embed.items import Numbers, Words, words
from sqid_lib import schemas
from sqid_lib.encoders.batching import Floats
from sqid_lib.errors import CorruptFileError
from sqid_lib.files import numbered_name, parse_numbered_name
from sqid_lib.tables.vector_columns import fixed_lists

_KEPT = 4  # files whose vectors are in memory at once: rows in order need two of each kind
_SETTINGS = "sqid.settings"
_CAUSES = {"too_many_pixels": "max_pixels", "truncated": "truncated"}  # status → the setting that caused it


def write(path: Path, digests: pa.Array, statuses: list[str], matrix: Floats, settings: Mapping[str, Any]) -> None:
    """Write one file.

    Args:
        statuses: "ok", or why there is no vector.
        matrix: float32 [n, D]; rows whose status is not "ok" are written as zeros.
        settings: JSON values.

    Raises: as `shards.write`.
    """
    failed = np.array(statuses, object) != schemas.OK
    columns = {
        "digest": digests,
        "status": pa.array(statuses, pa.string()),
        "vector": fixed_lists(np.where(failed[:, None], np.float32(0), matrix)),
    }
    shards.write(path, pa.table(columns), {_SETTINGS: json.dumps(settings, sort_keys=True)})


def holds(path: Path, digests: pa.Array) -> bool:
    """Whether the file exists and has exactly these digests."""
    try:
        return bool(shards.read(path, ["digest"])["digest"].combine_chunks().equals(digests))
    except (FileNotFoundError, CorruptFileError):
        return False


@dataclass(frozen=True)
class Found:
    """Where the vectors of some items are: file and row within it, −1 where there is none."""

    file: Numbers
    row: Numbers

    @property
    def missing(self) -> NDArray[np.bool_]:
        """Which items have no vector yet."""
        return self.file < 0

    def of(self, numbers: Numbers) -> Found:
        """The same for some of the items by their numbers; −1 for none."""
        none = numbers < 0
        return Found(
            *(np.where(none, -1, column[numbers]) if len(column) else numbers for column in (self.file, self.row))
        )


@dataclass
class _Index:
    """The files of one kind: their paths, the settings of each, and of every usable row the digest, file and row."""

    paths: list[Path] = field(default_factory=list)
    settings: list[dict[str, Any]] = field(default_factory=list)
    words: list[Words] = field(default_factory=list)
    starts: list[int] = field(default_factory=lambda: [0])  # row of the first usable digest of each file, and the end
    rows: list[Numbers] = field(default_factory=list)


class Vectors:
    """The finished vectors in one folder.

    Args:
        folder: may not exist yet.
        limits: the settings of today; an image that other settings kept from being decoded counts as not encoded.

    Attributes:
        damaged: files that do not match their checksum; nothing of them is used.
    """

    def __init__(self, folder: Path, limits: Mapping[str, Any]) -> None:
        self.folder, self._limits = folder, limits
        self.damaged: list[Path] = []
        self._seen: set[Path] = set()
        self._indices = {TEXTS: _Index(), IMAGES: _Index()}
        self._load = lru_cache(maxsize=_KEPT)(self._read)
        self.refresh()

    def refresh(self) -> None:
        """Take in the files that were written since.

        Raises:
            OSError: a file cannot be read.
        """
        for path in sorted(self.folder.glob("*.parquet")):
            name = parse_numbered_name(path)
            index = self._indices.get(name[0]) if name else None
            if index is None or path in self._seen:
                continue
            self._seen.add(path)
            try:
                table = shards.read(path, ["digest", "status"])
            except CorruptFileError:
                self.damaged.append(path)
                continue
            settings = json.loads(shards.metadata(table, _SETTINGS))
            statuses = table["status"].to_numpy()
            usable = np.full(table.num_rows, True)
            for status, setting in _CAUSES.items():
                if settings.get(setting) != self._limits[setting]:
                    usable &= statuses != status
            index.paths.append(path)
            index.settings.append(settings)
            index.words.append(words(table["digest"].combine_chunks().filter(pa.array(usable))))
            index.rows.append(np.flatnonzero(usable).astype(np.int32))
            index.starts.append(index.starts[-1] + int(usable.sum()))

    def remove_damaged(self) -> list[str]:
        """Delete the damaged files, which are made again; returns their names."""
        names = [path.name for path in self.damaged]
        for path in self.damaged:
            path.unlink(missing_ok=True)
        self._seen.difference_update(self.damaged)
        self.damaged.clear()
        return names

    def find(self, kind: str, digests: pa.Array) -> Found:
        """Where the vector of each digest is."""
        index = self._indices[kind]
        if not index.paths:
            nowhere = np.full(len(digests), -1, np.int32)
            return Found(nowhere, nowhere)
        at = _positions(words(digests), np.concatenate(index.words, axis=1))
        file = np.searchsorted(index.starts, at, side="right").astype(np.int32) - np.int32(1)
        rows = np.concatenate([*index.rows, np.array([-1], np.int32)])  # the row of place −1, whose file is −1
        return Found(file, rows[at])

    def settings(self, kind: str, found: Found) -> Iterator[tuple[dict[str, Any], int]]:
        """The settings of each file that `found` names, and how many vectors it names there."""
        files, counts = np.unique(found.file[~found.missing], return_counts=True)
        for number, count in zip(files.tolist(), counts.tolist(), strict=True):
            yield self._indices[kind].settings[number], count

    def free_names(self, kind: str) -> Iterator[Path]:
        """Paths of files that do not exist yet, lowest number first: the same ones after an interruption."""
        taken = {path.name for path in self._indices[kind].paths}
        number = 0
        while True:
            if (name := numbered_name(kind, number)) not in taken:
                yield self.folder / name
            number += 1

    def take(self, kind: str, found: Found, width: int) -> tuple[np.ndarray, Floats]:
        """Status ("ok" where nothing was found) and vector (zeros where there is none) of each item: [n], [n, width].

        Raises:
            CorruptFileError: a file was damaged since it was taken in.
        """
        statuses = np.full(len(found.file), schemas.OK, object)
        vectors = np.zeros((len(found.file), width), np.float32)
        for number in np.unique(found.file[~found.missing]).tolist():
            rows = np.flatnonzero(found.file == number)
            status, matrix = self._load(kind, number)
            statuses[rows], vectors[rows] = status[found.row[rows]], matrix[found.row[rows]]
        return statuses, vectors

    def _read(self, kind: str, number: int) -> tuple[np.ndarray, Floats]:
        table = shards.read(self._indices[kind].paths[number], ["status", "vector"])
        flat = table["vector"].combine_chunks().values
        return np.array(table["status"].to_pylist(), object), np.asarray(flat, np.float32).reshape(table.num_rows, -1)


def _positions(wanted: Words, known: Words) -> Numbers:
    """The first place of each among those that are known, −1 where there is none."""
    order = np.argsort(known[0], kind="stable").astype(np.int32)
    by_word = np.argsort(wanted[0]).astype(np.int32)  # in order they are found several times faster
    places = np.empty(len(by_word), np.int32)
    places[by_word] = np.append(order, np.int32(-1))[np.searchsorted(known[0][order], wanted[0][by_word])]
    for ours, theirs in zip(wanted, known, strict=True):
        places[np.append(theirs, np.uint64(0))[places] != ours] = -1
    return np.asarray(places, np.int32)
