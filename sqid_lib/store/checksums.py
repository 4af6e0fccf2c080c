"""The statement of a conversion: its format and the checksum of each file, compared before the files are used.

Small files are compared whenever a store is opened, the large matrices by a thread while the store is in use.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from sqid_lib.errors import StoreError
from sqid_lib.files import checksum, text_checksum, write_text

STORE = "store.json"
FORMAT = 3  # of a converted directory; a change makes every older conversion stale
LARGE = 64 << 20  # bytes; files of up to this size are compared at opening, which takes 10 ms at official size
OPEN_AGAIN = "Open the release it was made from again: the store is then made anew."

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Statement:
    """What store.json states.

    Attributes:
        dtype, width: of the matrices, whose files have no header.
        files: name → (bytes, checksum).
    """

    dtype: str
    width: int
    files: Mapping[str, tuple[int, str]]
    format: int = FORMAT

    def write(self, directory: Path) -> None:
        """Write store.json, with a checksum of its own."""
        stated = asdict(self)
        write_text(directory / STORE, json.dumps({**stated, "checksum": _of_statement(stated)}, indent=1))


def state(directory: Path, dtype: str, width: int, known: Mapping[str, str]) -> Statement:
    """The statement of the files that are now in a directory; checksums that are `known` are not computed again."""
    paths = sorted(directory.iterdir())
    sums = {path.name: known.get(path.name) or checksum(path) for path in paths}
    return Statement(dtype, width, {path.name: (path.stat().st_size, sums[path.name]) for path in paths})


@dataclass(frozen=True)
class Converted:
    """A converted directory that can be used; the files of `unchecked` are large and not compared yet."""

    path: Path
    stated: Statement
    unchecked: tuple[str, ...] = ()


def check(directory: Path, everything: bool = False) -> Converted:
    """A converted directory whose files have the stated sizes, and the small ones (or all) the stated content.

    Raises:
        StoreError: it is not whole, damaged or of another format. Where a file differs from its checksum, store.json is
            removed, so that opening the release makes the conversion anew.
    """
    stated = _read(directory)
    for name, (expected, _) in stated.files.items():
        size = (directory / name).stat().st_size
        if size != expected:
            raise _damaged(directory / name, f"{expected:,} bytes", f"{size:,}")
    unchecked = () if everything else tuple(name for name, (size, _) in stated.files.items() if size > LARGE)
    compare(directory, stated, set(stated.files) - set(unchecked))
    return Converted(directory, stated, unchecked)


def _read(directory: Path) -> Statement:
    try:
        stated = json.loads((directory / STORE).read_text(encoding="utf-8"))
        if stated["format"] != FORMAT:
            raise StoreError("the store was converted by another version of sqid", where=directory, fix=OPEN_AGAIN)
        if stated.pop("checksum") != _of_statement(stated):
            raise StoreError("not a whole converted store", where=directory / STORE, got="damage", fix=OPEN_AGAIN)
        found = Statement(**stated)
        if missing := [name for name in found.files if not (directory / name).is_file()]:
            raise StoreError("not a whole converted store", where=directory, got=f"no {missing[0]}", fix=OPEN_AGAIN)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError("not a whole converted store", where=directory, fix=OPEN_AGAIN) from error
    return found


def compare(directory: Path, stated: Statement, names: Iterable[str]) -> None:
    """Compare files with their checksums; errors as `check`."""
    for name in sorted(names):
        expected, path = stated.files[name][1], directory / name
        try:
            found = checksum(path)
        except OSError as error:
            raise StoreError("the converted store cannot be read", where=path, got=error, fix=OPEN_AGAIN) from error
        if found != expected:
            _revoke(directory)
            raise _damaged(path, f"checksum {expected}", found)


class Watch:
    """Compares the large files of a store while it is in use, once in each process that uses it."""

    def __init__(self, converted: Converted) -> None:
        self._converted = converted
        self._whole = not converted.unchecked
        self._pid = os.getpid()
        self._running: Future[None] | None = None
        if not self._whole:
            pool = ThreadPoolExecutor(1, thread_name_prefix="sqid-verify")
            self._running = pool.submit(self._compare)
            pool.shutdown(wait=False)  # its thread ends by itself; the interpreter waits for it at exit

    def wait(self) -> None:
        """Return once all files are compared; StoreError if one differs."""
        if self._whole:
            return
        if self._running is not None and self._pid == os.getpid():
            self._running.result()
        else:  # a forked process has none of its parent's threads
            self._compare()

    def _compare(self) -> None:
        try:
            compare(self._converted.path, self._converted.stated, self._converted.unchecked)
        except StoreError as error:
            _log.error("%s", error)
            raise
        self._whole = True


def _damaged(path: Path, expected: str, got: str) -> StoreError:
    return StoreError("not a whole converted store", where=path, expected=expected, got=got, fix=OPEN_AGAIN)


def _revoke(directory: Path) -> None:
    try:
        (directory / STORE).unlink(missing_ok=True)
    except OSError as error:  # a cache that this user cannot write
        _log.warning("%s is damaged and cannot be removed: %s", directory, error)


def _of_statement(stated: Mapping[str, object]) -> str:
    return text_checksum(json.dumps(stated, sort_keys=True))
