"""Addresses of files and datasets: the only parser of hf://, https:// and ORG/NAME.

hf://datasets/ORG/NAME[@REVISION][/PATH]    a dataset on the Hub; REVISION may be refs/pr/1 or refs/convert/parquet
ORG/NAME[@REVISION]                         the same in short; a local directory of that name wins
https://HOST/PATH                           http:// too
s3://BUCKET/PATH                            gs:// too: a release on an object store, read from a copy in the cache
anything else                               a local path
"""

from __future__ import annotations

import logging
import os
import posixpath
import re
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote, unquote

from sqid_lib.errors import SourceError, UsageError
from sqid_lib.object_store import is_object_store

LOCAL, HTTP, HUB = "local", "http", "hub"
_NAME = r"[A-Za-z0-9][\w.-]*"
_SHORT = re.compile(rf"(?P<repo>{_NAME}/{_NAME})(?:@(?P<rest>.+))?")
_HUB = re.compile(rf"hf://datasets/(?P<repo>{_NAME}/{_NAME})(?:@(?P<rest>.*)|/(?P<path>.*))?")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
# refs/pr/1, refs/convert/parquet, refs/heads/main; any other revision with a slash is written with %2F
_REVISION = re.compile(r"(?P<revision>refs/[^/]+/[^/]+|[^/]+)(?:/(?P<path>.*))?")
_FORMS = "hf://datasets/ORG/NAME[@REVISION][/PATH], ORG/NAME, https://…, s3://… or a local path"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Address:
    """Where something is.

    Attributes:
        kind: LOCAL, HTTP or HUB.
        path: a local path; the whole URL; or the path within the repository, "" for its root. No slash at its end.
        repo: ORG/NAME on the Hub.
        revision: branch, tag, commit or ref on the Hub; None for its main branch.
        short: whether it was written ORG/NAME, which could also have been meant as a local directory.
    """

    kind: str
    path: str
    repo: str = ""
    revision: str | None = None
    short: bool = False

    def __str__(self) -> str:
        if self.kind != HUB:
            return self.path
        revision = f"@{quote(self.revision, safe='')}" if self.revision else ""
        return posixpath.join(f"hf://datasets/{self.repo}{revision}", self.path).rstrip("/")

    @property
    def local(self) -> Path | None:
        """The local path; None for an address elsewhere."""
        return Path(self.path) if self.kind == LOCAL else None

    def at(self, revision: str | None) -> Address:
        """The same place at another revision; None leaves it as it is.

        Raises:
            UsageError: it is not on the Hub, or names another revision itself.
        """
        if revision is None:
            return self
        if self.kind != HUB:
            raise UsageError("only a dataset on the Hub has a revision", where=self, got=f"revision {revision!r}")
        if self.revision not in (None, revision):
            raise UsageError(
                "the address and `revision` name two revisions", where=self, expected=self.revision, got=revision
            )
        return replace(self, revision=revision)


def parse_address(text: str | os.PathLike[str], base: Path | None = None, *, file: bool = False) -> Address:
    """Read an address.

    Args:
        text: an address as a person writes it; a Path is always local.
        base: directory that relative local paths are relative to; default: the working directory.
        file: it names one file, so ORG/NAME can only be a local path.

    Raises:
        UsageError: no text.
        SourceError: a scheme or form that is none of the above; or an object store that holds no release or fails.
    """
    if isinstance(text, os.PathLike):
        return _local(os.fspath(text), base)
    if not text.strip():
        raise UsageError("an empty address", expected=_FORMS)
    if text.startswith("hf:"):
        return _hub(text)
    if text.startswith(("http://", "https://")):
        return Address(HTTP, text.rstrip("/"))
    if is_object_store(text) and not (base or Path()).joinpath(text).exists():
        from sqid_lib.sources.object_copy import local_copy

        return Address(LOCAL, str(local_copy(text)))
    if _SCHEME.match(text) and not (base or Path()).joinpath(text).exists():
        raise SourceError("not an address that can be read", where=text, expected=_FORMS)
    local = _local(text, base)
    short = None if file else _SHORT.fullmatch(text.rstrip("/"))
    if short is None:
        return local
    if Path(local.path).exists():
        _log.info("%s: the local directory %s is used; for the Hub write hf://datasets/%s", text, local.path, text)
        return local
    revision, path = _split(short["rest"])
    if path:  # ORG/NAME takes no path
        return local
    return Address(HUB, "", short["repo"], revision, short=True)


def _local(text: str, base: Path | None) -> Address:
    path = os.path.abspath((base or Path()) / Path(text).expanduser())  # noqa: PTH100 - links stay as they are
    return Address(LOCAL, path)


def _hub(text: str) -> Address:
    match = _HUB.fullmatch(text.rstrip("/"))
    revision, path = _split(match["rest"]) if match and match["rest"] is not None else (None, "")
    if match is None or (match["rest"] is not None and revision is None):
        raise SourceError(
            "not the address of a dataset", where=text, expected="hf://datasets/ORG/NAME[@REVISION][/PATH]"
        )
    return Address(HUB, path or match["path"] or "", match["repo"], revision)


def _split(rest: str | None) -> tuple[str | None, str]:
    """What follows the "@": the revision, and the path behind it."""
    match = _REVISION.fullmatch(rest) if rest else None
    return (unquote(match["revision"]), match["path"] or "") if match else (None, "")
