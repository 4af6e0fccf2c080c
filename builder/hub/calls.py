"""Calls to the Hub that may fail: repeated while that can help, then told in one line without the token."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, TypeVar

from sqid_lib.errors import AuthError, HubError, RefusedError

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

WAITS_S = (1.0, 2.0, 4.0, 8.0, 16.0)  # between attempts; huggingface_hub itself repeats some calls within each
PATIENCE_S = 300.0  # no new attempt later than this after the first
MAX_WAIT_S = 120.0  # however long the Hub asks us to wait
TIMEOUT_S = 300.0  # without an answer; huggingface_hub would wait forever
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
_NETWORK_MODULES = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3")


class Calls:
    """`HfApi` with patience. Use as a context manager.

    Attributes:
        api: the genuine client.
        token: what it sends, None if there is none; never logged, and taken out of every message.
    """

    def __init__(self, repo: str, token: str | None, endpoint: str | None) -> None:
        from huggingface_hub import HfApi, get_token

        self.repo = repo
        self.token = token or get_token()
        self.api = HfApi(endpoint=endpoint, token=self.token or False)
        self._timeout: Any = None

    def __enter__(self) -> Calls:
        self._timeout = getattr(_session(), "timeout", None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _set_timeout(self._timeout)

    def run(self, doing: str, call: Callable[..., _T], *args: Any, also: tuple[int, ...] = (), **options: Any) -> _T:
        """The result of a call, after as many attempts as help.

        Args:
            doing: what it does, for messages.
            also: http statuses that are worth another attempt here, besides overload, timeouts and broken connections.

        Raises:
            AuthError: 401 or 403.
            RefusedError: any other refusal.
            HubError: no answer, or the Hub still failed after the last attempt.
        """
        started = time.monotonic()
        for wait in (*WAITS_S, None):
            _set_timeout(TIMEOUT_S)
            try:
                return call(*args, **options)
            except Exception as error:
                status = _status(error)
                helps = status in (*_TRANSIENT, *also) if status else _is_network(error)
                if not helps:
                    raise self._told(doing, error, status) from error
                if wait is None or time.monotonic() - started > PATIENCE_S:
                    raise self._failed(doing, error, status) from error
                wait = min(MAX_WAIT_S, _asked_to_wait(error) or wait)
                _log.warning("%s: %s; again in %g s", doing, status or self._clean(error), wait)
                time.sleep(wait)
        raise AssertionError("unreachable")

    def _failed(self, doing: str, error: Exception, status: int) -> HubError:
        return HubError(
            f"{doing} failed {len(WAITS_S) + 1} times",
            where=self.repo,
            got=f"http status {status}" if status else self._clean(error),
            fix="Nothing is half done: push again when the Hub is well, and it goes on.",
        )

    def _told(self, doing: str, error: Exception, status: int) -> Exception:
        """What the person sees; a disk that fails stays what it is."""
        if (status == 401 and not _is_missing(error)) or type(error).__name__ == "XetAuthenticationError":
            return AuthError(
                f"{doing}: the Hub does not accept the token", where=self.repo, fix="Log in again: hf auth login."
            )
        if status == 403:
            return AuthError(
                f"{doing}: the token may not do this",
                where=self.repo,
                fix=f"Use a token with write access to {self.repo.partition('/')[0]}.",
            )
        if isinstance(error, OSError) and error.filename is not None:
            return error
        if not status:
            return HubError(f"{doing}: {self._clean(error)}", where=self.repo)
        refused = RefusedError(f"{doing}: refused", where=self.repo, got=f"{status} {self._clean(error)}")
        refused.status, refused.missing = status, _is_missing(error)
        return refused

    def _clean(self, error: Exception) -> str:
        """One line without the token: what the server said, or the error and what caused it."""
        chain = list(_chain(error))
        said = next((m for e in chain if (m := getattr(e, "server_message", None))), None)
        causes = dict.fromkeys(str(e) or type(e).__name__ for e in (chain[0], chain[-1]))
        line = " ".join((said or ": ".join(causes)).split())[:300]
        return line.replace(self.token, "<token>") if self.token else line


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _response(error: BaseException) -> Any:
    return next((r for e in _chain(error) if (r := getattr(e, "response", None)) is not None), None)


def _status(error: BaseException) -> int:
    """The http status an error stands for, 0 if it came without an answer."""
    return int(getattr(_response(error), "status_code", 0) or 0)


def _asked_to_wait(error: BaseException) -> float | None:
    headers = getattr(_response(error), "headers", {})
    value = headers.get("Retry-After", "")
    return float(value) if value.isdigit() else None


def _is_network(error: BaseException) -> bool:
    """Whether a call broke on the way: a lost connection, a timeout, a web page for JSON, Xet in trouble."""
    chain = list(_chain(error))
    return type(chain[-1]) is RuntimeError or any(
        isinstance(e, ConnectionError | TimeoutError | json.JSONDecodeError)
        or type(e).__module__.partition(".")[0] in _NETWORK_MODULES
        for e in chain
    )


def _is_missing(error: BaseException) -> bool:
    from huggingface_hub.errors import RepositoryNotFoundError

    return any(isinstance(e, RepositoryNotFoundError) for e in _chain(error))


def _session() -> Any:
    from huggingface_hub import get_session

    return get_session()


def _set_timeout(timeout: Any) -> None:
    session = _session()  # made anew after some failures, so this is set before every attempt
    if hasattr(session, "timeout"):
        session.timeout = timeout
