"""Calls over a network: repeated while that can help, then reported as one error."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from sqid_lib.errors import DiskError, DownloadError, MissingFileError, SqidError, first_line, without_secrets

T = TypeVar("T")
WAITS_S = (0.5, 1.0, 2.0)  # between attempts
GO_ONLINE = "Unset HF_HUB_OFFLINE / HF_DATASETS_OFFLINE and load it once."
MOVE_CACHE = (
    "Free some space or name another directory: cache_dir=…, or set HF_HOME "
    "(HF_DATASETS_CACHE for prepared rows, HF_HUB_CACHE for files of the Hub)."
)
_NOT_IN_CACHE = ("LocalEntryNotFoundError", "IncompleteSnapshotError", "RevisionResolutionError")  # huggingface_hub's
_FULL = (errno.ENOSPC, errno.EDQUOT)
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST)


@dataclass(frozen=True)
class Failure:
    """What an exception of a call means.

    Attributes:
        error: what to raise.
        again: whether another attempt may help.
        wait: seconds that the server asked to wait before it; None if it did not.
    """

    error: Exception
    again: bool = False
    wait: float | None = None


def retrying(
    call: Callable[[], T],
    explain: Callable[[Exception], Failure],
    *,
    waits: Sequence[float] = WAITS_S,
    patience: float = float("inf"),
    max_wait: float = 120.0,
) -> T:
    """What `call` returns, after as many attempts as `explain` asks for.

    Args:
        explain: what an exception of `call` means. A SqidError is raised as it is.
        waits: seconds between attempts; there is one attempt more than there are waits.
        patience: seconds after the first attempt within which another may begin.
        max_wait: seconds at most, however long the server asks to wait.

    Raises:
        Exception: the error of the last failure. Its cause shows no password or token.
    """
    started = time.monotonic()
    for wait in (*waits, None):
        try:
            return call()
        except SqidError:
            raise
        except Exception as error:  # each HTTP library has its own base class
            failure = explain(error)
            if not failure.again or wait is None or time.monotonic() - started > patience:
                raise failure.error from safe_cause(error)
            time.sleep(min(max_wait, failure.wait or wait))
    raise AssertionError("unreachable")


def downloading(call: Callable[[], T], where: str) -> T:
    """`retrying` for reads from servers and the Hub.

    Raises:
        MissingFileError: the server says that there is no such file, repository or revision.
        DownloadError: it refuses, cannot be reached, or offline mode is on.
        DiskError: the cache is full or cannot be written.
    """
    return retrying(call, lambda error: explain(error, where))


def explain(error: Exception, where: str) -> Failure:
    """What an exception of an HTTP library, of huggingface_hub or of the disk means."""
    kind = type(error).__name__
    not_in_cache = kind in _NOT_IN_CACHE
    if not_in_cache and isinstance(error.__cause__, Exception):  # the cause says why the Hub was not reached
        return explain(error.__cause__, where)
    if not_in_cache or "Offline" in kind:
        return Failure(DownloadError("not downloaded before, and offline mode is on", where=where, fix=GO_ONLINE))
    if (disk := disk_error(error)) is not None:
        return Failure(disk)
    if isinstance(error, ImportError):
        return Failure(DownloadError(f"a package is missing: {first_line(error)}", where=where, fix="Install it."))
    response = getattr(error, "response", None)
    status = getattr(error, "status", None) or getattr(response, "status_code", None)
    if isinstance(error, FileNotFoundError) or status in (404, 410) or "NotFound" in kind:
        return Failure(MissingFileError("no such file, repository or revision", where=where, fix="Check the address."))
    if status in (401, 403) or "Gated" in kind:
        of_the_hub = not where.startswith(("http://", "https://"))  # no token is sent to other servers
        fix = (
            "Log in with `hf auth login`, or check the address."
            if of_the_hub
            else "Check the address, and who may read it."
        )
        return Failure(DownloadError(f"access refused (HTTP {status})", where=where, fix=fix))
    reason = f"HTTP {status}" if status else f"{kind}: {first_line(error)}"
    fix = "Check the network and try again; HF_HUB_OFFLINE=1 uses what was loaded before."
    final = "Redirect" in kind or "InvalidURL" in kind or (status and 400 <= status < 429 and status not in (408, 425))
    asked = getattr(response, "headers", {}).get("Retry-After", "") if response is not None else ""
    wait = float(asked) if asked.isdigit() else None
    return Failure(DownloadError(f"cannot be reached ({reason})", where=where, fix=fix), not final, wait)


def disk_error(error: BaseException, directory: str = "the cache") -> DiskError | None:
    """The error for a cache that is full or cannot be written; None if `error` is about something else.

    Args:
        directory: the cache, in the message where the exception names no file.
    """
    if not isinstance(error, OSError):
        return None
    full = error.errno in _FULL
    if not full and not (error.errno in _REFUSED and error.filename):  # without a file name it is of the network
        return None
    what = "no space in the cache" if full else f"the cache cannot be written: {error.strerror}"
    return DiskError(what, where=error.filename or directory, fix=MOVE_CACHE)


def safe_cause(error: Exception) -> Exception:
    """The exception itself, or one line of it where it or one of its causes shows a secret: tracebacks print causes."""
    texts = [text for each in _chain(error) for text in (str(each), *getattr(each, "__notes__", ()))]
    if all(without_secrets(text) == text for text in texts):
        return error
    return ConnectionError(without_secrets(f"{type(error).__name__}: {first_line(error)}"))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
