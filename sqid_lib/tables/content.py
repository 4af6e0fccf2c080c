"""Opening files, recognising what they are before they are parsed, and turning library exceptions into ours."""

from __future__ import annotations

import errno
import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa

from sqid_lib.errors import (
    CorruptFileError,
    DownloadError,
    EmptyFileError,
    HtmlPageError,
    LfsPointerError,
    MissingFileError,
    SchemaError,
    SourceError,
    first_line,
    write_error,
)
from sqid_lib.files import File
from sqid_lib.sources import open_ranges
from sqid_lib.sources.retry import safe_cause

Source = File | Path | str
PARQUET, CSV, JSON = "parquet", "csv", "json"
_UNREADABLE = (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, pa.ArrowKeyError)
_OF_THE_MACHINE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES, errno.EPERM)  # not the file's fault
_PARQUET_MAGIC = b"PAR1"
_LFS_MAGIC = b"version https://git-lfs"
_CODECS = ((b"\x1f\x8b", "gzip"), (b"BZh", "bz2"), (b"\x28\xb5\x2f\xfd", "zstd"))  # how a compressed file begins
_EXCEL = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1")  # how .xlsx (and any zip archive) and .xls begin
_BOMS = ((b"\xff\xfe\0\0", "utf-32"), (b"\0\0\xfe\xff", "utf-32"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
_UTF8_BOM = b"\xef\xbb\xbf"
_KINDS = (
    (re.compile(r"\.(?:csv|tsv|txt)(?:\.(?:gz|bz2|zst|zstd))?$", re.IGNORECASE), CSV),
    (re.compile(r"\.(?:json|jsonl|ndjson)(?:\.(?:gz|bz2|zst|zstd))?$", re.IGNORECASE), JSON),
)
_PIECE = 1 << 20  # bytes that are read at once
MAX_TEXT = 4 << 30  # bytes of a csv or json file, decompressed: it is parsed in memory


def kind_of(file: Source) -> str:
    """PARQUET, CSV or JSON, by the name of the file; that of a download is in its URL, before a signature."""
    url = file.url if isinstance(file, File) else str(file)
    name = urlsplit(url).path if "://" in url else url
    return next((kind for pattern, kind in _KINDS if pattern.search(name)), PARQUET)


def open_file(file: Source) -> Any:
    """The file as a pyarrow stream; a remote one is read by ranges."""
    path = file.path if isinstance(file, File) else str(file)
    try:
        if path.startswith(("http://", "https://", "hf://")):
            return pa.PythonFile(open_ranges(path), mode="r")
        if os.path.isdir(path):  # noqa: PTH112 - a str
            raise SourceError("this is a directory, not a file", where=file)
        return pa.OSFile(path, "rb")
    except SourceError:
        raise
    except FileNotFoundError as error:
        raise MissingFileError("no such file", where=file, fix="Check the path.") from error
    except OSError as error:
        raise DownloadError(f"cannot be opened: {first_line(error)}", where=file) from safe_cause(error)


@contextmanager
def open_text(file: Source, kind: str) -> Iterator[tuple[io.BufferedReader, list[str]]]:
    """The bytes of a csv or json file as a stream, decompressed, and the compression, for the log.

    Compression (gzip, bz2, zstd) is recognised by the first bytes. Exceptions of the block are reported as the file's.

    Raises:
        EmptyFileError, LfsPointerError, HtmlPageError, CorruptFileError: it is something else than a text file.
    """
    where = str(file)
    with open_file(file) as stream, reporting(where):
        size = stream.size()
        head = bytes(stream.read(min(size, 512)))
        check_kind(head, size, where, kind)
        stream.seek(0)
        codec = next((name for magic, name in _CODECS if head.startswith(magic)), None)
        text = io.BufferedReader(pa.CompressedInputStream(stream, codec) if codec else stream, 1 << 20)
        if codec:
            head = text.peek(512)
            check_kind(head[:512], len(head), where, kind)
        yield text, [codec] if codec else []


def encoding_of(head: bytes) -> str:
    """The encoding that the byte-order mark at the start of a text states; UTF-8 where there is none."""
    return next((name for magic, name in _BOMS if head.startswith(magic)), "utf-8-sig")


def read_text(file: Source, kind: str, limit: int = MAX_TEXT) -> tuple[bytes, list[str]]:
    """The content of a csv or json file as UTF-8, and what had to be done for that, for the log.

    Text that is neither UTF-8 nor has a byte-order mark is returned as it is.

    Args:
        limit: bytes to read at most; a larger file is an error where the limit is the default.

    Raises:
        SourceError: as `open_text`.
    """
    where = str(file)
    with open_text(file, kind) as (stream, notes):
        data = _read(stream, limit if limit < MAX_TEXT else limit + 1)
    if len(data) > MAX_TEXT:
        raise CorruptFileError(f"a {kind} file of more than 4 GiB", where=where, fix="Write it as parquet.")
    encoding = encoding_of(data)
    if encoding != "utf-8-sig":
        notes.append(encoding.upper())
        whole = data[: len(data) // 4 * 4] if limit < MAX_TEXT else data  # no half character at the limit
        try:
            data = whole.decode(encoding, "ignore" if limit < MAX_TEXT else "strict").encode()
        except UnicodeError as error:
            raise CorruptFileError(f"the file is damaged: {first_line(error)}", where=where) from error
    return data.removeprefix(_UTF8_BOM), notes


def _read(stream: io.BufferedReader, most: int) -> bytes:
    """Up to so many bytes; `stream.read(most)` would ask for that much memory before it reads one."""
    found = io.BytesIO()
    while most > 0 and (piece := stream.read(min(most, _PIECE))):
        most -= found.write(piece)
    return found.getvalue()


def check_kind(head: bytes, size: int, where: str, kind: str) -> None:
    """Recognise HTML pages, Git LFS pointers and other formats before parsing.

    Args:
        head: the first bytes of the file.
        size: of the file, in bytes.
        kind: what it should be.
    """
    if not size:
        raise EmptyFileError("the file is empty", where=where, fix="Fetch it again.")
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith(_LFS_MAGIC):
        raise LfsPointerError(
            "this is a Git LFS pointer, not the file",
            where=where,
            expected=f"the data ({kind})",
            got=f"{size} bytes of pointer",
            fix=_lfs_remedy(where),
        )
    if text.startswith((b"<!doctype html", b"<html", b"<?xml", b"<head", b"<body", b"<!--")):
        raise HtmlPageError(
            "this is a web page, not the file",
            where=where,
            expected=kind,
            got=repr(head[:40].decode("utf-8", "replace")),
            fix="Open the address in a browser to see what the server says, then correct it.",
        )
    if head.startswith(_EXCEL):
        raise CorruptFileError(
            "this is an Excel workbook or another archive, not a table",
            where=where,
            expected=kind,
            got=repr(head[:8]),
            fix="Save it as csv (in Excel: CSV UTF-8).",
        )
    if kind == PARQUET and not head.startswith(_PARQUET_MAGIC):
        raise CorruptFileError(
            "this is not a parquet file",
            where=where,
            expected="PAR1 at its start",
            got=repr(head[:8]),
            fix="Fetch it again; a table of text is read if its name ends in .csv, .tsv, .txt, .json or .jsonl.",
        )
    known = head.startswith((*(magic for magic, _ in _CODECS), *(magic for magic, _ in _BOMS)))
    if kind != PARQUET and b"\0" in head and not known:
        fix = "Save it as UTF-8." if head[1:2] == b"\0" or head[:1] == b"\0" else "Save it as csv."
        raise CorruptFileError(f"this is not a {kind} file", where=where, expected="text", got=repr(head[:8]), fix=fix)


def check_parquet(stream: Any, where: str) -> None:
    """`check_kind` for a parquet file, and whether its end is there."""
    size = stream.size()
    check_kind(bytes(stream.read(min(size, 512))), size, where, PARQUET)
    stream.seek(max(size - 4, 0))
    tail = bytes(stream.read(4))
    if tail != _PARQUET_MAGIC or size < 12:
        raise CorruptFileError(
            "the parquet file is truncated",
            where=where,
            expected="PAR1 at its end",
            got=f"{tail!r} after {size} bytes",
            fix="Fetch it again.",
        )
    stream.seek(0)


def is_parquet(file: Source) -> bool:
    """Whether the file begins as parquet files do, whatever its name is."""
    with open_file(file) as stream, reporting(str(file)):
        return bytes(stream.read(4)) == _PARQUET_MAGIC


def _lfs_remedy(where: str) -> str:
    parts = urlsplit(where)
    if parts.hostname == "raw.githubusercontent.com":
        return f"Use https://media.githubusercontent.com/media{parts.path}"
    if "://" in where:
        return "On GitHub the data is at https://media.githubusercontent.com/media/OWNER/REPO/BRANCH/PATH."
    return "Run `git lfs pull` in that checkout, or fetch the file itself."


@contextmanager
def reporting(where: str) -> Iterator[None]:
    """Turn exceptions of pyarrow and of the network into SourceErrors; `where` names the file."""
    try:
        yield
    except SourceError:
        raise
    except FileNotFoundError as error:
        raise MissingFileError("no such file", where=where, fix="Check the path.") from error
    except (*_UNREADABLE, UnicodeDecodeError, EOFError) as error:
        if "Empty CSV file" in str(error):
            raise EmptyFileError("the file has no rows", where=where, fix="Fetch it again.") from error
        if "Expected all lists to be of size" in str(error):  # pyarrow before 26
            raise SchemaError(
                "this pyarrow cannot read null in lists of fixed length",
                where=where,
                fix="Install pyarrow 26 or later.",
            ) from error
        raise CorruptFileError(
            f"the file is damaged: {first_line(error)}", where=where, fix="Fetch it again or mend it."
        ) from error
    except OSError as error:
        if error.errno in _OF_THE_MACHINE and "://" not in where:
            raise write_error(error, where, doing="read", again="it") from error
        damaged = "://" not in where
        cls = CorruptFileError if damaged else DownloadError
        raise cls(
            f"the file {'is damaged' if damaged else 'cannot be read'}: {first_line(error)}",
            where=where,
            fix="Fetch it again.",
        ) from safe_cause(error)
