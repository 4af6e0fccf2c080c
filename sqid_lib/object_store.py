"""A folder of an object store (s3://, gs://, …): whole objects by their exact names; nothing here lists a folder.

pyarrow speaks S3 and Google Cloud Storage, fsspec the others that are installed. Credentials come from the environment
or the usual files of the provider, an endpoint of S3 from AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from sqid_lib.errors import DiskError, DownloadError, MissingFileError, SqidError, UsageError, first_line, write_error
from sqid_lib.files import replacing

_ADDRESS = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<path>[^?#@]+)")
_SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss", "az", "oci", "oss", "memory")
_BLOCK = 16 << 20  # bytes copied at once
_SECONDS = 10.0  # for a connection
_ANSWER = 60.0  # seconds without a byte
_TRIES = 4  # of a request
_AWS = re.compile(r"AWS Error (?P<code>\w+) during \w+ operation: (?P<words>.*)")
_REQUEST = re.compile(r" ?\(Request ID: [^)]*\)")
_AT_ONCE = 8  # objects copied
Made = TypeVar("Made")
_FIX = "Check the address, the credentials and the network, and run it again; finished work is kept."


def is_object_store(text: str | os.PathLike[str]) -> bool:
    """Whether it is the address of an object store, and not a local path or a URL of another kind."""
    match = _ADDRESS.match(text) if isinstance(text, str) else None
    return match is not None and match["scheme"] in _SCHEMES


@dataclass(frozen=True)
class ObjectStore:
    """A folder of an object store. It can be pickled; each process opens its own connections.

    Args:
        url: such as s3://bucket/prefix, without credentials.

    Raises:
        UsageError: not such an address, or no package for it is installed.

    Methods raise DownloadError where the store does not answer or refuses to read, and DiskError where it refuses to
    write.
    """

    url: str

    def __post_init__(self) -> None:
        match = _ADDRESS.fullmatch(self.url)
        if match is None or match["scheme"] not in _SCHEMES:
            raise UsageError(
                "not the address of an object store",
                where=self.url,
                expected="s3://BUCKET/PREFIX or gs://BUCKET/PREFIX, without credentials and options",
            )
        object.__setattr__(self, "url", self.url.rstrip("/"))

    def __str__(self) -> str:
        return self.url

    def below(self, name: str) -> ObjectStore:
        """A folder in this one."""
        return ObjectStore(f"{self.url}/{name}")

    def read(self, name: str) -> bytes | None:
        """A small object; None if it is not there."""
        try:
            with self.open(name) as file:
                data: bytes = file.read()
                return data
        except MissingFileError:
            return None

    def open(self, name: str) -> Any:
        """An object as a pyarrow file, of which ranges are read.

        Raises:
            MissingFileError: it is not there.
        """
        with self._reporting(name, DownloadError):
            filesystem, root = _filesystem(self.url)
            try:
                return filesystem.open_input_file(f"{root}/{name}")
            except FileNotFoundError as error:
                raise MissingFileError("no such object", where=f"{self.url}/{name}") from error

    def size(self, name: str) -> int | None:
        """Bytes of an object, asked for by its exact name; None if it is not there."""
        try:
            with self._reporting(name, DownloadError), self.open(name) as file:
                return int(file.size())
        except MissingFileError:
            return None

    def get(self, name: str, path: Path) -> bool:
        """Copy an object to a local file, which appears whole or not at all; whether the object is there."""
        try:
            with (
                self._reporting(name, DownloadError),
                self.open(name) as file,
                replacing(path) as part,
                part.open("wb") as copy,
            ):
                while block := file.read(_BLOCK):
                    copy.write(block)
        except MissingFileError:
            return False
        return True

    def put(self, path: Path, name: str) -> None:
        """Copy a local file to an object, which appears whole or not at all."""
        with path.open("rb") as file:
            self._write(name, iter(lambda: file.read(_BLOCK), b""))

    def write(self, name: str, data: bytes) -> None:
        """Write an object, which appears whole or not at all."""
        self._write(name, iter([data]))

    def _write(self, name: str, blocks: Iterator[bytes]) -> None:
        with self._reporting(name, DiskError):
            filesystem, root = _filesystem(self.url)
            with filesystem.open_output_stream(f"{root}/{name}") as stream:
                for block in blocks:
                    stream.write(block)

    def remove(self, name: str) -> None:
        """Remove an object, if it is there."""
        with self._reporting(name, DiskError):
            filesystem, root = _filesystem(self.url)
            try:
                filesystem.delete_file(f"{root}/{name}")
            except FileNotFoundError:
                return

    @contextmanager
    def _reporting(self, name: str, error: type[SqidError]) -> Iterator[None]:
        try:
            yield
        except OSError as raised:
            if raised.filename or raised.errno in (errno.ENOSPC, errno.EDQUOT):  # of the local copy
                raise write_error(raised) from raised
            raise self.failure(name, raised, error) from raised

    def failure(self, name: str, error: OSError, kind: type[SqidError] = DownloadError) -> SqidError:
        """The error for one of pyarrow's or fsspec's."""
        return kind(f"the object store failed: {_words(error)}", where=f"{self.url}/{name}", fix=_FIX)


def for_each(do: Callable[[str], Made], names: Iterable[str]) -> list[Made]:
    """Do something with several objects at once; the results in the order of the names."""
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        return list(threads.map(do, names))


@dataclass(frozen=True)
class ObjectFile:
    """One object, opened as a local file would be."""

    store: ObjectStore
    name: str

    def open(self, _mode: str = "rb") -> Any:
        """As `ObjectStore.open`."""
        return self.store.open(self.name)

    def __str__(self) -> str:
        return f"{self.store}/{self.name}"


def _words(error: OSError) -> str:
    """What the store said, in one line without what changes from request to request."""
    match = _AWS.search(str(error).replace("\n", " "))
    words = f"{match['code']}: {match['words']}" if match else first_line(error)
    return _REQUEST.sub("", words)[:200]


@lru_cache(maxsize=16)
def _filesystem(url: str) -> tuple[Any, str]:
    """The filesystem of an address, and the path of the address in it."""
    import pyarrow.fs

    match = _ADDRESS.fullmatch(url)
    assert match is not None
    if match["scheme"] == "s3":
        return _s3(match["path"].partition("/")[0]), match["path"]
    try:
        filesystem, path = pyarrow.fs.FileSystem.from_uri(url)
        return filesystem, path
    except (ValueError, NotImplementedError):  # not one of pyarrow's own
        import fsspec

        try:
            filesystem, path = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise UsageError(f"no package for this address: {first_line(error)}", where=url) from error
        return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(filesystem)), path


def _s3(bucket: str) -> Any:
    from pyarrow import fs

    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if region is None and endpoint is None:
        region = fs.resolve_s3_region(bucket)
    return fs.S3FileSystem(
        region=region or "us-east-1",
        endpoint_override=endpoint,
        connect_timeout=_SECONDS,
        request_timeout=_ANSWER,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=_TRIES),
        allow_delayed_open=True,  # a small object is one request
    )
