"""Vectors of a local parquet file, page by page, at about twice the speed of pyarrow.

A list of floats has two levels for every float, which pyarrow decodes one by one. In a column whose lists are all of
one length and without a null, as in a release, the levels of a page are known beforehand: here they are compared as
they are stored, and the floats behind them are put in their place. Any other column is `UnusualPages`, which pyarrow
reads.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

_PLAIN, _RLE, _BYTE_STREAM_SPLIT = 0, 3, 9  # encodings
_CODECS = ("ZSTD", "UNCOMPRESSED")  # of others pa.decompress does not say that a page is too short
_HEADER = 1 << 12  # bytes; a header with statistics of floats has about 100
# numbers of fields in a page header, and in the header of a data page (version 1) within it
_KIND, _SIZE, _STORED, _CRC, _DATA_PAGE = 1, 2, 3, 4, 5
_VALUES, _ENCODING, _DEFINITION, _REPETITION = 1, 2, 3, 4
_PLACES = np.array([1, 1 << 8, 1 << 16, 1 << 24], np.uint32)  # what a byte of a float counts, lowest first
_INTEGERS, _BINARY, _STRUCT = (4, 5, 6), 8, 12  # types of fields in Thrift's compact protocol


class UnusualPages(Exception):
    """The column is not one of full vectors in pages of the kind that is read here."""


def fill_vectors(
    path: Path, metadata: pq.FileMetaData, group: int, column: str, rows: npt.NDArray[np.int64], out: npt.NDArray[Any]
) -> None:
    """Write some rows of a row group, in ascending order, into `out` [rows, width], float32 or float16.

    Raises:
        UnusualPages: also where a vector of those pages is not finite in that dtype, or the file cannot be read or
            decompressed: pyarrow reports what is wrong.
    """
    try:
        _fill(path, metadata, group, column, rows, out)
    except (OSError, ValueError, TypeError, LookupError, RecursionError, pa.ArrowException) as error:
        raise UnusualPages from error


def _fill(
    path: Path, metadata: pq.FileMetaData, group: int, column: str, rows: npt.NDArray[np.int64], out: npt.NDArray[Any]
) -> None:
    number = next(i for i in range(metadata.num_columns) if metadata.schema.column(i).path.split(".")[0] == column)
    declared, chunk = metadata.schema.column(number), metadata.row_group(group).column(number)
    width, there = out.shape[1], metadata.row_group(group).num_rows
    if (
        (declared.physical_type, declared.max_repetition_level, chunk.has_dictionary_page) != ("FLOAT", 1, False)
        or chunk.compression not in _CODECS
        or chunk.num_values != there * width
        or width % 8
        or width < 16  # shorter runs are stored in another way
    ):
        raise UnusualPages
    spare = np.empty((0, width), np.float32)
    first = low = 0  # of the rows of the row group, and of `rows`
    with path.open("rb", buffering=0) as stream:
        for encoding, values in _pages(stream, chunk, width, there, declared.max_definition_level):
            count = values.shape[1] // width
            high = int(np.searchsorted(rows, first + count))
            whole = high - low == count and out.dtype == np.float32
            if not whole and len(spare) < count:
                spare = np.empty((count, width), np.float32)
            page = out[low:high] if whole else spare[:count]
            _join_bytes(values, encoding, page.reshape(-1))
            with np.errstate(over="ignore"):  # reported by the caller
                page = page.astype(out.dtype, copy=False)
            if not np.isfinite(page).all():
                raise UnusualPages
            if not whole:
                out[low:high] = page[rows[low:high] - first]
            first, low = first + count, high
            if low == len(rows):
                return
    raise UnusualPages


def _pages(
    stream: io.FileIO, chunk: pq.ColumnChunkMetaData, width: int, rows: int, level: int
) -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
    """(encoding, its bytes [4, values]) of each page of a column; `rows` are at most in it, `level` means no null.

    The bytes of a page are overwritten by the next one.
    """
    memory = bytearray()
    at, end = chunk.data_page_offset, chunk.data_page_offset + chunk.total_compressed_size
    while at < end:
        stream.seek(at)
        head = stream.read(_HEADER)
        header, size = _read_struct(head, 0)
        page: dict[int, Any] = header[_DATA_PAGE]
        values, encoding = page[_VALUES], page[_ENCODING]
        if (
            (header[_KIND], page[_DEFINITION], page[_REPETITION]) != (0, _RLE, _RLE)
            or encoding not in (_PLAIN, _BYTE_STREAM_SPLIT)
            or values % width
            or not 0 < values <= rows * width
            or not 4 * values <= header[_SIZE] < 1 << 31
            or not 0 < header[_STORED] <= end - at
        ):
            raise UnusualPages
        levels = _full_levels(values, width, level)
        if header[_SIZE] != len(levels) + 4 * values:
            raise UnusualPages
        stream.seek(at + size)
        if len(memory) < header[_STORED]:
            memory = bytearray(header[_STORED] * 2)  # kept for all pages: fresh memory costs more than reading
        stored = memoryview(memory)[: header[_STORED]]
        if stream.readinto(stored) < len(stored) or (
            _CRC in header and header[_CRC] & 0xFFFFFFFF != zlib.crc32(stored)
        ):
            raise UnusualPages
        codec = chunk.compression.lower()
        body = stored if codec == "uncompressed" else pa.decompress(stored, header[_SIZE], codec, asbytes=False)
        content = np.frombuffer(body, np.uint8)
        if content[: len(levels)].tobytes() != levels:
            raise UnusualPages
        floats = content[len(levels) :]
        yield encoding, floats.reshape(-1, 4).T if encoding == _PLAIN else floats.reshape(4, -1)
        rows -= values // width
        at += size + header[_STORED]


def _full_levels(values: int, width: int, level: int) -> bytes:
    """The levels of a page of lists of `width` values without a null, as parquet's run-length encoding stores them."""
    # of a list: 8 bits that say where it begins, then width - 8 times 1
    repetition = (b"\x03\xfe" + _varint((width - 8) << 1) + b"\x01") * (values // width)
    definition = _varint(values << 1) + bytes([level])
    return b"".join(len(part).to_bytes(4, "little") + part for part in (repetition, definition))


def _join_bytes(split: npt.NDArray[np.uint8], encoding: int, out: npt.NDArray[np.float32]) -> None:
    """Floats of their bytes [4, n], lowest first."""
    if encoding == _PLAIN:  # next to each other in memory
        out.view(np.uint8).reshape(-1, 4)[...] = split.T
        return
    # one call, so that threads wait for each other once a page
    np.einsum("kn,k->n", split, _PLACES, out=out.view(np.uint32), dtype=np.uint32)


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return number, at


def _read_struct(data: bytes, at: int) -> tuple[dict[int, Any], int]:
    """A struct of Thrift's compact protocol as number of field → value, and where it ends."""
    found: dict[int, Any] = {}
    field = 0
    while head := data[at]:
        at += 1
        kind, step = head & 0x0F, head >> 4
        if not step:
            raise UnusualPages  # numbers of fields that are far apart; none of a page header are
        field += step
        if kind in (1, 2):
            found[field] = kind == 1
        elif kind in _INTEGERS:
            number, at = _read_varint(data, at)
            found[field] = (number >> 1) ^ -(number & 1)
        elif kind == _BINARY:
            length, at = _read_varint(data, at)
            found[field], at = data[at : at + length], at + length
        elif kind == _STRUCT:
            found[field], at = _read_struct(data, at)
        else:
            raise UnusualPages
    return found, at + 1
