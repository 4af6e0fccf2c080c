"""How many connections fit into the number of files that this process may open."""

from __future__ import annotations

import logging
import resource
from pathlib import Path

from builder.fetch.decoders import cpus
from builder.recipe import FetchSettings
from sqid_lib.errors import StageError

_PER_CONNECTION = 2  # a socket, and a temporary file for a large body
_PER_DECODER = 3  # both ends of its pipes for a moment, and what asyncio watches it with
_OTHERS = 16  # name lookups, the event loop, shards
_UNKNOWN = 32  # files open now, where no list of them can be read

_log = logging.getLogger(__name__)


def fit_open_files(limits: FetchSettings) -> FetchSettings:
    """The same settings, with as many connections at once as the limit of open files allows; a change is logged.

    Raises:
        StageError: not even one connection fits.
    """
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if allowed == resource.RLIM_INFINITY:
        return limits
    taken = _open_now() + _PER_DECODER * cpus() + _OTHERS
    possible = (allowed - taken) // _PER_CONNECTION
    if possible >= limits.concurrency:
        return limits
    if possible < 1:
        raise StageError(
            "too few open files are allowed",
            where="ulimit -n",
            expected=f"at least {taken + _PER_CONNECTION * limits.concurrency} for fetch.concurrency = "
            f"{limits.concurrency}",
            got=allowed,
            fix="Raise the limit, for example: ulimit -n 1024.",
        )
    _log.warning(
        "fetch: at most %d requests at once and not %d: this process may open %d files (raise it with ulimit -n)",
        possible,
        limits.concurrency,
        allowed,
    )
    return limits.model_copy(update={"concurrency": possible})


def _open_now() -> int:
    for folder in (Path("/proc/self/fd"), Path("/dev/fd")):
        if folder.is_dir():
            return sum(1 for _ in folder.iterdir())
    return _UNKNOWN
