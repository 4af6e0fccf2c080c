"""How a csv text is laid out: its encoding, delimiter and columns, and on which line a row or cell is."""

from __future__ import annotations

import codecs
import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from sqid_lib import schemas
from sqid_lib.errors import CorruptFileError, EmptyFileError

_DELIMITERS = {",": "comma", "\t": "tab", ";": "semicolon", "|": "vertical bar"}
_KNOWN = frozenset(column.name for config in schemas.DECLARED.values() for column in config.columns)
_LINE = re.compile(rb"[^\r\n]*(?:\r\n|\r|\n|$)")
_SEPARATOR_LINE = re.compile(rb'"?sep=(.)"?\s*', re.IGNORECASE | re.DOTALL)  # Excel's own first line
_MAX_HEADER = 100_000  # bytes
_LEFT_TO_USER = "Save it as csv in UTF-8 (in Excel: CSV UTF-8)."


@dataclass(frozen=True)
class Layout:
    """How the text is laid out.

    Attributes:
        names: of the columns; official ones as we spell them.
        given: the same as the file spells them.
        start: where the first row begins, in bytes.
    """

    delimiter: str
    names: list[str]
    given: list[str]
    start: int


def as_utf8(data: bytes, where: str, *, head: bool = False) -> tuple[bytes, bool]:
    """The text as UTF-8, and whether it was taken for Windows-1252, which `_check_windows` has to confirm.

    Args:
        head: the text is the first part of a longer one, and may end within a character.
    """
    try:
        if not (data.isascii() or (not head and _is_utf8(data))):
            codecs.getincrementaldecoder("utf-8")().decode(data, final=not head)
        return data, False
    except UnicodeDecodeError as error:
        try:
            return data.decode("cp1252").encode(), True
        except UnicodeDecodeError:
            raise not_utf8(line_of(data, error.start), where) from error


def _is_utf8(data: bytes) -> bool:
    """Whether it is UTF-8, without the copy that decoding makes, which has up to four times its size."""
    edges = pa.array([0, len(data)], pa.int64()).buffers()[1]
    try:
        pa.LargeStringArray.from_buffers(1, edges, pa.py_buffer(data)).validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def not_utf8(line: int, where: str) -> CorruptFileError:
    return CorruptFileError(
        f"line {line} is not UTF-8, and which other encoding it has is not certain", where=where, fix=_LEFT_TO_USER
    )


def find_layout(data: bytes, wanted: Sequence[str], notes: list[str], where: str) -> Layout:
    """The delimiter is the one that gives the header most columns of the official names, then most columns."""
    at, comments, delimiters = 0, 0, tuple(_DELIMITERS)
    while True:
        line = _LINE.match(data, at)
        assert line is not None
        text = line.group().strip()
        if separator := _SEPARATOR_LINE.fullmatch(line.group()):
            delimiters = (separator[1].decode("latin-1"),)
        elif text.startswith(b"#"):
            comments += 1
        elif text:
            break
        if line.end() == len(data):
            raise EmptyFileError("the file has no rows", where=where, fix="Fetch it again.")
        at = line.end()
    if line.end() - at > _MAX_HEADER:
        raise CorruptFileError(f"the first line has {line.end() - at:,} bytes, so it is no header", where=where)
    header = line.group().rstrip(b"\r\n").decode("utf-8", "replace")
    known = _KNOWN.union(wanted)
    cells = {
        d: [cell.strip() for cell in next(csv.reader([header], delimiter=d, skipinitialspace=True))] for d in delimiters
    }
    official = {d: [_official(name, known, found) for name in found] for d, found in cells.items()}
    best = max(delimiters, key=lambda d: (sum(name in known for name in official[d]), len(cells[d])))
    if best != ",":
        notes.append(f"{_DELIMITERS.get(best, best)} as its delimiter")
    if comments:
        notes.append(f"{comments} comment lines")
    return Layout(best, official[best], cells[best], line.end())


def _official(name: str, known: frozenset[str], names: Sequence[str]) -> str:
    """The official name that `name` spells in another case, unless it is there in its own case too."""
    lower = name.lower()
    return lower if lower in known and lower not in names else name


def row_starts(data: bytes, layout: Layout) -> Iterator[int]:
    """Where each row begins, without blank lines and comments."""
    cell = re.compile(rb' *"(?:[^"]|"")*" *|[^\r\n%s]*' % re.escape(layout.delimiter.encode()))
    at = layout.start
    while at < len(data):
        start, cells, end = at, 0, b""
        while end in (b"", layout.delimiter.encode()) and at <= len(data):
            match = cell.match(data, at)
            assert match is not None
            at, cells = match.end() + 1, cells + 1
            end = data[match.end() : at] or b"\n"
        comment = data.startswith(b"#", start) and cells != len(layout.names)
        if at - 1 > start and not comment:
            yield start


def place_of(data: bytes, text: str) -> int:
    """Where a row or cell is in the file, for messages."""
    forms = (f"\n{text}", f"\r{text}", text, text.replace('"', '""'))
    found = [at + len(form) - len(form.lstrip("\r\n")) for form in forms if (at := data.find(form.encode())) >= 0]
    return found[0] if found else 0


def line_of(data: bytes, at: int) -> int:
    """The number, from 1, of the line that holds the byte at `at`."""
    before = data[:at]
    return 1 + (before.count(b"\n") or before.count(b"\r"))
