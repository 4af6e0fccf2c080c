"""What is kept of the rows of one split: checksums and hashes that show that configs agree, in few bytes a row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from sqid_lib import schemas
from sqid_lib.tables.keys import Increasing, text_hashes

Hashes = npt.NDArray[np.uint64]
Names = tuple[str, ...]
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


class SplitRows:
    """The rows of one split of a config, given batch by batch; a column that is absent is left out.

    Attributes:
        checksums: column → of its values in order, for the columns of `aligned`.
        hashes: columns → a number for each distinct row of them, sorted, for the columns of `referring`; after `end`.
    """

    def __init__(self, config: str, kept: schemas.Kept) -> None:
        self._key = schemas.DECLARED[config].key
        self._referring = referring(config, kept)
        self.checksums = {name: Checksum() for name in aligned(config, kept)}
        self.hashes: dict[Names, Hashes] = {}
        self._order, self._whole_key = Increasing(), True
        self._parts: dict[Names, list[Hashes]] = {names: [] for names in self._referring}

    def add(self, rows: pa.Table) -> None:
        """Take in the next rows."""
        there = set(rows.column_names)
        for name, checksum in self.checksums.items():
            if name in there:
                checksum.add(rows[name])
        for names in self._referring:
            if set(names) <= there:
                self._parts[names].append(row_hashes(rows.select(names)))
        self._whole_key = self._whole_key and set(self._key) <= there
        if self._whole_key:
            self._order.add(rows.select(self._key))

    @property
    def increasing(self) -> bool:
        """Whether each row has a greater key than the row before, which proves that no key is there twice."""
        return self._order.so_far and self._whole_key

    def end(self) -> None:
        """No rows follow."""
        for names in list(self._parts):
            parts = self._parts.pop(names)
            hashes = np.concatenate([np.zeros(0, np.uint64), *parts])
            parts.clear()
            hashes.sort()  # np.unique has a hash table, which takes far more memory
            self.hashes[names] = hashes[np.diff(hashes, prepend=~hashes[:1]) != 0]


class Checksum:
    """Of the values of a column; how they come in batches does not matter."""

    def __init__(self) -> None:
        self._lengths, self._values = xxhash.xxh3_128(), xxhash.xxh3_128()

    def add(self, column: pa.ChunkedArray) -> None:
        """Take in the next values."""
        for chunk in column.chunks:
            if pa.types.is_string(chunk.type):
                self._lengths.update(_bytes(pc.fill_null(pc.binary_length(chunk), -1)))
                texts = chunk.drop_null()
                _, offsets, data = texts.buffers()
                if len(texts) and data is not None:
                    edges = np.frombuffer(offsets, np.int32)[[texts.offset, texts.offset + len(texts)]]
                    self._values.update(memoryview(data)[edges[0] : edges[1]])
            else:
                self._lengths.update(_bytes(chunk.is_valid()))
                self._values.update(_bytes(chunk.drop_null()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Checksum) and self._both() == other._both()

    __hash__ = None  # type: ignore[assignment]

    def _both(self) -> tuple[bytes, bytes]:
        return self._lengths.digest(), self._values.digest()


def _bytes(values: pa.Array) -> memoryview:
    return np.ascontiguousarray(values.to_numpy(zero_copy_only=False)).view(np.uint8).data


def aligned(config: str, kept: schemas.Kept) -> Names:
    """Columns that another config has for the same keys, so that both have equal values in the same order."""
    key = schemas.DECLARED[config].key
    others = [
        other
        for other, declared in schemas.DECLARED.items()
        if declared.key == key and other != config and {config, other} != {schemas.URLS, schemas.SUPP}
    ]  # urls and supp have no product in common
    shared = [name for other in others for name in schemas.shared_columns(config, other, kept)]
    return tuple(dict.fromkeys([*key, *shared])) if others else ()


def referring(config: str, kept: schemas.Kept) -> tuple[Names, ...]:
    """Columns by which rows of a config refer to rows of another, or are referred to: a key and what is shared."""
    key = schemas.DECLARED[config].key
    found: set[Names] = {key} if key == schemas.PRODUCT_KEY else set()
    for other in schemas.DECLARED:
        for one, two in ((config, other), (other, config)):
            if refers(one, two):
                found.add(shared_key(one, two, kept))
    return tuple(sorted(found))


def refers(config: str, other: str) -> bool:
    """Whether rows of a config have the key of another, which is not their own."""
    key, declared = schemas.DECLARED[other].key, schemas.DECLARED[config]
    return set(key) <= set(declared.names) and key != declared.key


def shared_key(config: str, other: str, kept: schemas.Kept) -> Names:
    """The key of `other` and the columns that `config` shares with it."""
    return (*schemas.DECLARED[other].key, *schemas.shared_columns(config, other, kept))


def row_hashes(rows: pa.Table) -> Hashes:
    """A number for each row, the same for equal ones; finds errors, not attacks."""
    found = np.zeros(rows.num_rows, np.uint64)
    for name, column in zip(rows.column_names, rows.columns, strict=True):
        found = found * _FACTOR + np.concatenate([np.zeros(0, np.uint64), *_hashes(name, column.chunks)])
    return found


def _hashes(name: str, chunks: Sequence[pa.Array]) -> Iterator[Hashes]:
    for chunk in chunks:
        if not pa.types.is_string(chunk.type):
            wide = pa.float64() if pa.types.is_floating(chunk.type) else pa.int64()
            yield pc.fill_null(chunk.cast(wide), 0).to_numpy(zero_copy_only=False).view(np.uint64)
        elif name == "product_id":  # of the others most values occur again and again
            yield text_hashes(chunk)
        else:
            coded = chunk.dictionary_encode()
            known = np.append(text_hashes(coded.dictionary), np.uint64(0))
            yield known[pc.fill_null(coded.indices, len(known) - 1).to_numpy(zero_copy_only=False)]
