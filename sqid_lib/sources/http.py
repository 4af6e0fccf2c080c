"""Files at http and https URLs, with the HTTP client that huggingface_hub brings."""

from __future__ import annotations

import hashlib
import io
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from filelock import FileLock
from tqdm import tqdm

from sqid_lib import schemas
from sqid_lib.errors import DownloadError, NoRangesError, without_secrets
from sqid_lib.files import File
from sqid_lib.sources.retry import disk_error, downloading

SHA256 = "sha256-"  # begins a version that states the content
UNKNOWN = "unknown-"  # begins the version of a file whose server states none: it is downloaded each time
_CHUNK = 1 << 20  # bytes written at a time: what a broken download keeps
_TIMEOUT_S = 60.0  # without a byte
_WHOLE = "Download it instead of streaming; EmbeddingStore.open does."
_HEADERS = {"Accept-Encoding": "identity"}  # no compression on the way, so that ranges and sizes are the file's


class _StatusError(OSError):
    """An answer that is no success; `status` is its HTTP status."""

    def __init__(self, status: int, url: str, headers: Mapping[str, str]) -> None:
        super().__init__(without_secrets(f"HTTP {status} for {url}"))
        self.status = status
        self.response = _Answer(status, headers)


class _Answer:
    """The part of an answer that `retry.explain` reads."""

    def __init__(self, status_code: int, headers: Mapping[str, str]) -> None:
        self.status_code, self.headers = status_code, headers


@contextmanager
def _get(url: str, headers: Mapping[str, str], method: str = "GET") -> Iterator[Any]:
    """The answer to a request, its body not yet read; `_StatusError` for a status of 400 and more."""
    from huggingface_hub import get_session

    session: Any = get_session()
    every = {**_HEADERS, **headers}
    if callable(getattr(session, "stream", None)):  # huggingface_hub 1 and later: a client of httpx
        request: Any = session.stream(method, url, headers=every, follow_redirects=True, timeout=_TIMEOUT_S)
    else:  # before: a session of requests
        request = session.request(method, url, headers=every, stream=True, allow_redirects=True, timeout=_TIMEOUT_S)
    with request as answer:
        if answer.status_code >= 400:
            raise _StatusError(answer.status_code, url, answer.headers)
        yield answer


def _chunks(answer: Any) -> Iterator[bytes]:
    if hasattr(answer, "iter_bytes"):
        yield from answer.iter_bytes(_CHUNK)
    else:
        yield from answer.iter_content(_CHUNK)


def look(url: str) -> File | None:
    """The file at a URL with its version; None where the server says that there is none.

    The version is made of ETag, date and size. Where the server states neither ETag nor date, it is new at every call.

    Raises:
        DownloadError: the server refuses or cannot be reached.
    """
    return downloading(lambda: _look(url), url)


def _look(url: str) -> File | None:
    try:
        with _get(url, {}, "HEAD") as answer:
            headers = answer.headers
    except _StatusError as error:
        if error.status in (404, 410):
            return None
        if error.status not in (400, 403, 405, 501):
            raise
        try:
            with _get(url, {}) as answer:  # some servers refuse HEAD, and some signed URLs allow GET only
                headers = answer.headers
        except _StatusError as again:
            if again.status in (404, 410):
                return None
            raise
    validators = _validators(headers)
    size = headers.get("Content-Length", "")
    return File(url, "-".join([*validators, size]) if validators else f"{UNKNOWN}{time.time_ns()}")


def _validators(headers: Mapping[str, str]) -> list[str]:
    """What an answer states that changes with the content of the file."""
    return [headers[name] for name in ("ETag", "Last-Modified") if headers.get(name)]


def download(file: File, target: Path) -> None:
    """Download a file to `target`, continuing where an earlier attempt stopped, in this process or another.

    The bytes received so far are in a `.part` file beside it. A server without ranges sends the whole file again.

    Args:
        target: a path of its own for each version of the URL, so that parts of two versions never mix.

    Raises:
        DownloadError, MissingFileError: the server refuses or cannot be reached.
        DiskError: the disk is full, or the directory cannot be written.
    """
    part = target.with_name(target.name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if not target.exists():
                downloading(lambda: _append(file.url, part), file.url)
                os.replace(part, target)  # noqa: PTH105
    except OSError as error:
        raise disk_error(error, str(target.parent)) or error from error


def _append(url: str, part: Path) -> None:
    with part.open("ab") as stream:
        start = stream.tell()
        try:
            with _get(url, {"Range": f"bytes={start}-"} if start else {}) as answer:
                if start and _first_byte(answer) != start:
                    stream.truncate(start := 0)
                _write(answer, stream, start, url)
        except _StatusError as error:
            if error.status != 416:
                raise
            stream.truncate(0)  # the server has nothing after the part, which may still be wrong: start again
            with _get(url, {}) as answer:
                _write(answer, stream, 0, url)
        stream.flush()
        os.fsync(stream.fileno())


def _write(answer: Any, stream: io.BufferedWriter, start: int, url: str) -> None:
    length = answer.headers.get("Content-Length")
    total = start + int(length) if length else None
    name = urlsplit(url).path.rpartition("/")[2][:40]
    with tqdm(total=total, initial=start, desc=name, unit="B", unit_scale=True, disable=None, leave=False) as bar:
        for chunk in _chunks(answer):
            stream.write(chunk)
            bar.update(len(chunk))
    stream.flush()
    if total is not None and stream.tell() != total:
        raise ConnectionError(f"{stream.tell()} of {total} bytes arrived")


def _first_byte(answer: Any) -> int:
    """Where in the file the body of an answer begins."""
    if answer.status_code != 206:
        return 0
    text = answer.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
    return int(text) if text.isdigit() else -1


def open_ranges(url: str, *, cache: bool = True) -> io.BufferedIOBase | io.RawIOBase:
    """A file at a URL, of which only the ranges that are read are requested.

    Args:
        cache: read a megabyte ahead; without it every read is one request.

    Raises:
        NoRangesError: the server sends whole files only.
        MissingFileError, DownloadError: it is not there, or cannot be reached; later also: it changed since.
    """
    return io.BufferedReader(_Ranges(url), _CHUNK) if cache else _Ranges(url)


class _Ranges(io.RawIOBase):
    def __init__(self, url: str) -> None:
        self._url, self._at = url, 0
        self._state = downloading(self._first_state, url)
        self._size = int(self._state[0])

    def _first_state(self) -> list[str]:
        with _get(self._url, {"Range": "bytes=0-0"}) as answer:
            state = self._state_of(answer)
            if answer.status_code != 206 or not state[0].isdigit():
                raise NoRangesError("the server sends whole files only", where=self._url, fix=_WHOLE)
            return state

    @staticmethod
    def _state_of(answer: Any) -> list[str]:
        """The size of the file, and what else changes with its content."""
        return [answer.headers.get("Content-Range", "").rpartition("/")[2], *_validators(answer.headers)]

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        stop = min(self._at + len(buffer), self._size)
        if stop <= self._at:
            return 0
        data = downloading(lambda: self._range(self._at, stop), self._url)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def _range(self, start: int, stop: int) -> bytes:
        with _get(self._url, {"Range": f"bytes={start}-{stop - 1}"}) as answer:
            if _first_byte(answer) != start:
                raise NoRangesError("the server sends whole files only", where=self._url, fix=_WHOLE)
            if self._state_of(answer) != self._state:
                raise DownloadError("the file changed while it was read", where=self._url, fix="Load it again.")
            data = b"".join(_chunks(answer))
        if len(data) != stop - start:
            raise ConnectionError(f"{len(data)} of {stop - start} bytes arrived")
        return data


def below(base: str, name: str) -> str:
    """URL of a file below the URL of a directory, which may have a query, such as a signature."""
    directory, mark, query = base.partition("?")
    return f"{directory}/{name}{mark}{query}"


def listing(base: str) -> dict[str, File]:
    """The files below a URL by their name: those that the manifest of a release lists, and itself; none without one.

    A file's version is the sha256 that the manifest states. Hidden files are left out.

    Raises:
        DownloadError: the server refuses or cannot be reached.
    """
    try:
        manifest = downloading(lambda: _read(below(base, schemas.MANIFEST)), base)
        files = json.loads(manifest or b"{}").get("files", {})
    except (ValueError, AttributeError, RecursionError):
        return {}
    found = {}
    for name, stated in files.items() if isinstance(files, dict) else ():
        if not any(part.startswith(".") for part in name.split("/")) and not name.startswith("/"):
            sha256 = stated.get("sha256") if isinstance(stated, dict) else None
            version = f"{SHA256}{sha256}" if sha256 else f"{UNKNOWN}{time.time_ns()}"
            found[name] = File(below(base, name), version)
    if found:
        sha256 = hashlib.sha256(manifest or b"").hexdigest()
        found[schemas.MANIFEST] = File(below(base, schemas.MANIFEST), f"{SHA256}{sha256}")
    return found


def _read(url: str) -> bytes | None:
    """The whole content of a small file; None where the server says that there is none."""
    try:
        with _get(url, {}) as answer:
            return b"".join(_chunks(answer))
    except _StatusError as error:
        if error.status in (404, 410):
            return None
        raise
