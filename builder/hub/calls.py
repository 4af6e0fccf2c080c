"""Calls to the Hub: repeated while another attempt can help, then reported in one line without the token."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, TypeVar

from sqid_lib.errors import AuthError, DiskError, HubError, RefusedError
from sqid_lib.sources.retry import Failure, retrying

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

WAITS_S = (1.0, 2.0, 4.0, 8.0, 16.0)  # between attempts; huggingface_hub itself repeats some calls within each
PATIENCE_S = 300.0  # no new attempt later than this after the first
MAX_WAIT_S = 120.0  # at most, also where Retry-After states more
TIMEOUT_S = 300.0  # without an answer; huggingface_hub has no limit of its own
CONNECT_S = 10.0  # without a connection
FIRST_ATTEMPTS = 3  # while no call was answered: without a network the user should not wait
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
_NETWORK_MODULES = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3")


class Calls:
    """`HfApi` that repeats calls. Use as a context manager.

    Attributes:
        api: the client of huggingface_hub.
        token: what it sends, None if there is none; never logged, and removed from every message.
    """

    def __init__(self, repo: str, token: str | None, endpoint: str | None) -> None:
        from huggingface_hub import HfApi, get_token

        self.repo = repo
        self.token = token or get_token()
        self.api = HfApi(endpoint=endpoint, token=self.token or False)
        self._timeout: Any = None
        self._answered, self._unanswered = False, 0

    def __enter__(self) -> Calls:
        self._timeout = getattr(_session(), "timeout", None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _set_timeout(self._timeout)

    def run(self, doing: str, call: Callable[..., _T], *args: Any, also: tuple[int, ...] = (), **options: Any) -> _T:
        """The result of a call, after as many attempts as can help.

        Args:
            doing: what the call does, for messages.
            also: HTTP statuses worth another attempt here, besides overload, timeouts and broken connections.

        Raises:
            AuthError: 401 or 403.
            RefusedError: any other refusal.
            HubError: no answer, or the Hub still failed at the last attempt.
            DiskError: a local file cannot be read or written.
        """

        def attempt() -> _T:
            _set_timeout((CONNECT_S, TIMEOUT_S, TIMEOUT_S, TIMEOUT_S))  # connect, read, write, wait for a connection
            result = call(*args, **options)
            self._answered = True
            return result

        def explain(error: Exception) -> Failure:
            return self._explain(doing, error, also)

        return retrying(attempt, explain, waits=WAITS_S, patience=PATIENCE_S, max_wait=MAX_WAIT_S)

    def _explain(self, doing: str, error: Exception, also: tuple[int, ...]) -> Failure:
        """Which error the user sees, and whether another attempt can help."""
        status, cleaned = _status(error), self._clean(error)
        self._answered = self._answered or bool(status)
        if not self._answered and _is_network(error):
            return self._unreachable(error, cleaned)
        if status in (*_TRANSIENT, *also) if status else _is_network(error):
            failed = HubError(
                f"{doing} failed",
                where=self.repo,
                got=f"HTTP status {status}" if status else cleaned,
                fix="Nothing is half done: push again later, and it continues.",
            )
            _log.warning("%s: %s", doing, status or cleaned)
            return Failure(failed, again=True, wait=_retry_after(error))
        return Failure(self._refused(doing, error, status, cleaned))

    def _unreachable(self, error: Exception, cleaned: str) -> Failure:
        """No call was answered yet: a few attempts, without a word."""
        self._unanswered += 1
        offline = any(type(e).__name__ == "OfflineModeIsEnabled" for e in _chain(error))
        fix = "Unset HF_HUB_OFFLINE" if offline else "Check the network"
        failed = HubError(
            "the Hub cannot be reached", where=self.api.endpoint, got=cleaned, fix=f"{fix} and push again."
        )
        return Failure(failed, again=not offline and self._unanswered < FIRST_ATTEMPTS)

    def _refused(self, doing: str, error: Exception, status: int, cleaned: str) -> Exception:
        """The error for a failure that another attempt cannot change."""
        if (status == 401 and not _is_missing(error)) or type(error).__name__ == "XetAuthenticationError":
            return AuthError(
                f"{doing}: the Hub does not accept the token", where=self.repo, fix="Log in again: hf auth login."
            )
        if status == 403:
            return AuthError(
                f"{doing}: the token does not allow this",
                where=self.repo,
                fix=f"Use a token with write access to {self.repo.partition('/')[0]}.",
            )
        if isinstance(error, OSError) and error.filename is not None:
            return DiskError(error.strerror or cleaned, where=error.filename, fix="Check the file and its permissions.")
        if not status:
            return HubError(f"{doing}: {cleaned}", where=self.repo)
        refused = RefusedError(f"{doing}: refused", where=self.repo, got=f"{status} {cleaned}")
        refused.status, refused.missing = status, _is_missing(error)
        return refused

    def _clean(self, error: Exception) -> str:
        """One line without the token: the message of the server, or the error and what caused it."""
        chain = list(_chain(error))
        message = next((m for e in chain if (m := getattr(e, "server_message", None))), None)
        causes = dict.fromkeys(str(e) or type(e).__name__ for e in (chain[0], chain[-1]))
        line = " ".join((message or ": ".join(causes)).split())[:300]
        return line.replace(self.token, "<token>") if self.token else line


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _response(error: BaseException) -> Any:
    return next((r for e in _chain(error) if (r := getattr(e, "response", None)) is not None), None)


def _status(error: BaseException) -> int:
    """The HTTP status of the answer behind an error, 0 if there was no answer."""
    return int(getattr(_response(error), "status_code", 0) or 0)


def _retry_after(error: BaseException) -> float | None:
    """Seconds of the header Retry-After."""
    headers = getattr(_response(error), "headers", {})
    value = headers.get("Retry-After", "")
    return float(value) if value.isdigit() else None


def _is_network(error: BaseException) -> bool:
    """Whether the network failed: a lost connection, a timeout, a web page in place of JSON, an error of Xet."""
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
    session = _session()  # huggingface_hub replaces it after some failures, so this is set before every attempt
    if hasattr(session, "timeout"):
        session.timeout = timeout
