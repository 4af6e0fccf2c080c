"""Calls over a network, repeated while that can help, then reported as one error."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from sqid_lib.errors import DiskError, DownloadError, MissingFileError, SqidError, first_line

T = TypeVar("T")
WAITS_S = (0.5, 1.0, 2.0)  # between attempts
GO_ONLINE = "Unset HF_HUB_OFFLINE / HF_DATASETS_OFFLINE and load it once."


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
        explain: what an exception of `call` means. Errors of ours pass as they are.
        waits: seconds between attempts; one attempt more than waits.
        patience: seconds after the first attempt within which another may begin.
        max_wait: seconds at most, however long the server asks to wait.

    Raises:
        Exception: the error of the last failure.
    """
    started = time.monotonic()
    for wait in (*waits, None):
        try:
            return call()
        except SqidError:
            raise
        except Exception as error:  # each HTTP library has a tree of its own
            failure = explain(error)
            if not failure.again or wait is None or time.monotonic() - started > patience:
                raise failure.error from error
            time.sleep(min(max_wait, failure.wait or wait))
    raise AssertionError("unreachable")


def downloading(call: Callable[[], T], where: str) -> T:
    """`retrying` for reads from servers and the Hub.

    Raises:
        MissingFileError: the server says that there is no such thing.
        DownloadError: it refuses, cannot be reached, or offline mode is on.
        DiskError: no space for what it sends.
    """
    return retrying(call, lambda error: explain(error, where))


def explain(error: Exception, where: str) -> Failure:
    """What an exception of an HTTP library, of huggingface_hub or of the disk means."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        fix = "Free some space, or name another cache_dir."
        return Failure(DiskError(f"no space for {where}", where=error.filename or "the cache", fix=fix))
    if isinstance(error, ImportError):
        return Failure(DownloadError(f"a package is missing: {first_line(error)}", where=where, fix="Install it."))
    response = getattr(error, "response", None)
    status = getattr(error, "status", None) or getattr(response, "status_code", None)
    kind = type(error).__name__
    if isinstance(error, FileNotFoundError) or status in (404, 410) or "NotFound" in kind:
        return Failure(MissingFileError("no such file, repository or revision", where=where, fix="Check the address."))
    if status in (401, 403) or "Gated" in kind:
        fix = "Log in with `hf auth login`, or check the address."
        return Failure(DownloadError(f"access refused (HTTP {status})", where=where, fix=fix))
    if "Offline" in kind:
        return Failure(DownloadError("offline mode is on", where=where, fix=GO_ONLINE))
    reason = f"HTTP {status}" if status else f"{kind}: {first_line(error)}"
    fix = "Check the network and try again; HF_HUB_OFFLINE=1 uses what was loaded before."
    final = "Redirect" in kind or "InvalidURL" in kind or (status and 400 <= status < 429 and status not in (408, 425))
    asked = getattr(response, "headers", {}).get("Retry-After", "") if response is not None else ""
    wait = float(asked) if asked.isdigit() else None
    return Failure(DownloadError(f"cannot be reached ({reason})", where=where, fix=fix), not final, wait)
