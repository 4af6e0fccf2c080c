"""The HTTP client for images and pages: URLs and servers are untrusted, so every step is checked and limited."""

from __future__ import annotations

import asyncio
import email.utils
import errno
import socket
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from builder.database import reporting_disk_errors
from builder.http import machine
from builder.http.event_loop import Connections, Problem
from builder.http.names import Names
from builder.http.transfer import REDIRECTS, Transfer, headers
from builder.http.urls import BadUrlError, Target, join_url, parse_url, printable_line
from builder.recipe import FetchSettings

ACCEPT_IMAGES = "image/jpeg, image/png, image/gif, image/webp;q=0.9, */*;q=0.1"
ACCEPT_PAGES = "text/html, application/xhtml+xml;q=0.9, */*;q=0.1"

_RETRIED = (408, 429)  # and 5xx


@dataclass
class Answer:
    """The result of one request.

    Attributes:
        status: "ok" if a body came with 200, else a value of `schemas.IMAGE_STATUS`.
        url: the URL that answered, after redirects.
        http_status: of the last answer; None if none came.
        head: its lines, up to the empty one.
        body: the decoded body, at its start; None unless `ok` or requested by the caller.
        detail: one line that explains the status.
        again: whether another attempt may succeed.
        retry_after: seconds to wait before it, by the server's Retry-After.
    """

    status: str
    url: str
    http_status: int | None = None
    head: Sequence[bytes] = ()
    body: IO[bytes] | None = None
    detail: str | None = None
    again: bool = False
    retry_after: float | None = None

    @property
    def headers(self) -> dict[str, str]:
        """The headers by their names in lower case; of equal names the first."""
        return headers(self.head)


@dataclass(eq=False, slots=True)
class _Request:
    """A request in progress, its redirects included. The watch ends it by cancelling `coming` and sets `ended`."""

    until: float
    transfer: Transfer | None = None
    coming: asyncio.Future[Problem | None] | None = None
    ended: str | None = None


class Client:
    """Requests under the limits of a recipe's [fetch]. An async context manager.

    The address check is at the socket: it applies to the final address of every connection, whatever name, literal,
    redirect or DNS answer led there. With `trust_env` and a proxy that is the proxy's, which must be in `allow_hosts`.

    Args:
        limits: times, sizes, ports, hosts.
        accept: the Accept header.
        contact: how the owner of a server can reach the user; part of the User-Agent.
        spill: directory for bodies over 1 MiB.
        max_bytes: of a body; default that of `limits`.
    """

    def __init__(
        self,
        limits: FetchSettings,
        *,
        accept: str,
        contact: str = "",
        spill: Path | None = None,
        max_bytes: int | None = None,
    ) -> None:
        self._limits, self._max_bytes = limits, max_bytes or limits.max_bytes
        self._spill = spill or Path(tempfile.gettempdir())
        self._allowed = frozenset(_host_port(entry) for entry in limits.allow_hosts)
        self._requests: set[_Request] = set()
        self._idle: list[Transfer] = []
        self._names = Names()
        self.user_agent = user_agent(contact)
        self._headers = [f"User-Agent: {self.user_agent}", f"Accept: {accept}", "Accept-Encoding: identity"]

    async def __aenter__(self) -> Self:
        self._connections = Connections(self._limits.concurrency, self._limits.per_host)
        self._watch = asyncio.create_task(self._end_late_ones())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._watch.cancel()
        self._names.close()
        self._connections.close()
        for transfer in self._idle:
            transfer.curl.close()

    async def _end_late_ones(self) -> None:
        """Enforce the times of all requests with one timer: a timer for each would be a tenth of all work here."""
        read_timeout = self._limits.read_timeout
        tick = min(1.0, max(0.02, min(read_timeout, self._limits.timeout) / 20))
        while True:
            await asyncio.sleep(tick)
            now = time.monotonic()
            for request in self._requests:
                if request.transfer is None or request.coming is None:
                    continue
                last = request.transfer.last_activity
                if now >= request.until:
                    ended = f"not done after {self._limits.timeout:g} s"
                elif last is not None and now - last >= read_timeout:
                    ended = f"nothing came for {read_timeout:g} s"
                else:
                    continue
                if request.coming.cancel():  # else it has just ended
                    request.ended = ended

    async def get(self, url: str, *, redirects: int | None = None, every_body: bool = False) -> Answer:
        """GET a URL, following at most `redirects` redirects (default: the recipe's). No answer of a server raises.

        Args:
            every_body: also read the bodies of other answers than 200.

        Raises:
            DiskError: no space for a large body.
            FetchError: this machine cannot make connections.
        """
        left = self._limits.max_redirects if redirects is None else redirects
        at = url
        request = _Request(time.monotonic() + self._limits.timeout)
        self._requests.add(request)
        try:
            while True:
                answer = await self._hop(request, at, every_body)
                answer.detail = answer.detail and printable_line(answer.detail)
                target = answer.headers.get("location") if answer.http_status in REDIRECTS else None
                if target is None or redirects == 0:
                    return answer
                if left == 0:
                    many = f"redirected more than {self._limits.max_redirects} times"
                    answer.status, answer.detail = "redirects", many
                    return answer
                left -= 1
                at = join_url(at, target)
        finally:
            self._requests.discard(request)

    async def _hop(self, request: _Request, url: str, every_body: bool) -> Answer:
        try:
            target = parse_url(url)
        except BadUrlError as error:
            return Answer("bad_url", url, detail=str(error))
        host, port = target.host, target.port
        allowed = (target.name, str(port)) in self._allowed
        if not allowed and port not in self._limits.ports:
            return Answer("refused", url, detail=f"port {port} is not among the recipe's ports")
        try:
            addresses = None if self._limits.trust_env else await self._names.look_up(host, port, request.until)
        except TimeoutError:
            return Answer("timeout", url, detail=f"no answer of the name service in {self._limits.timeout:g} s")
        except (OSError, UnicodeError) as error:
            await self._check_lookup(host, error, request.until)
            reason = isinstance(error, OSError) and error.strerror
            return Answer("connection", url, detail=f"the host name cannot be looked up: {reason or error}")
        transfer = self._idle.pop() if self._idle else self._transfer()
        transfer.begin(target.origin, target.path, addresses=addresses, allowed=allowed, every_body=every_body)
        try:
            return await self._transferred(request, transfer, target, url)
        finally:
            transfer.drop()

    async def _check_lookup(self, host: str, error: Exception, until: float) -> None:
        """Raise if a name was not found because of this machine."""
        try:
            machine.check_files()
        except OSError as own:
            error = own
        number = error.errno if isinstance(error, OSError) and not isinstance(error, socket.gaierror) else None
        memory = isinstance(error, socket.gaierror) and error.errno == socket.EAI_MEMORY
        fault = machine.fault(errno.ENOMEM if memory else number or 0, host)
        if fault is None and isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN:
            fault = None if await self._names.answers(until) else machine.no_name_service(host)
        if fault:
            raise fault from error

    async def _transferred(self, request: _Request, transfer: Transfer, target: Target, url: str) -> Answer:
        request.transfer, request.coming = transfer, self._connections.begin(transfer.curl)
        try:
            problem = await request.coming
        except asyncio.CancelledError:
            self._connections.abandon(transfer.curl)
            task = asyncio.current_task()
            if request.ended is None or (task and task.cancelling()):
                raise
            return Answer("timeout", url, detail=request.ended)
        finally:
            request.coming = request.transfer = None
            self._idle.append(transfer)
        fault = problem and transfer.fault(problem[0], target.host)
        if fault:
            raise fault
        with reporting_disk_errors(self._spill):
            return _answer(transfer, url, problem)

    def _transfer(self) -> Transfer:
        return Transfer(
            self._headers,
            cap=self._max_bytes,
            proxies=self._limits.trust_env,
            may_connect=self._is_own_proxy,
            spill=self._spill,
        )

    def _is_own_proxy(self, host: str, port: int) -> bool:
        return self._limits.trust_env and _host_port(f"{host}:{port}") in self._allowed


def _answer(transfer: Transfer, url: str, problem: Problem | None) -> Answer:
    if transfer.failure:
        raise transfer.failure
    code = transfer.code
    answered = transfer.complete and code >= 200
    if (answered or problem is None) and transfer.status != code:  # curl reads a first line or a trailer differently
        return Answer("connection", url, detail="the answer is no HTTP")
    if problem is None or (answered and not transfer.wanted):
        return _answered(transfer, url, code)
    if answered and code != 200 and transfer.problem:  # its body is not needed
        return _answered(transfer, url, code, body=False)
    status, detail, again = transfer.why(*problem)
    return Answer(status, url, code if answered else None, detail=detail, again=again)


def _answered(transfer: Transfer, url: str, code: int, *, body: bool = True) -> Answer:
    answer = Answer(_status_of(code), url, code, transfer.head)
    if code != 200:
        answer.detail = f"HTTP {code}"
        answer.again = code in _RETRIED or 500 <= code < 600
        answer.retry_after = _seconds(answer.headers.get("retry-after"))
    if transfer.wanted and body:
        read = transfer.body()
        if transfer.problem and code == 200:
            read.close()
            answer.status, answer.detail = transfer.problem
        else:
            answer.body = read
    return answer


def user_agent(contact: str = "") -> str:
    """The User-Agent header."""
    try:
        version = metadata.version("sqid")
    except metadata.PackageNotFoundError:
        version = "0"
    return f"sqid/{version} (dataset builder{f'; +{contact}' if contact else ''})"


def _host_port(entry: str) -> tuple[str, str]:
    host, _, port = entry.lower().rpartition(":")
    return host.strip("[]"), port


def _status_of(code: int) -> str:
    if code == 200:
        return "ok"
    if code in (404, 410):
        return "not_found"
    if code in (401, 403):
        return "blocked"
    return "redirects" if code in REDIRECTS else "http_error"


def _seconds(retry_after: str | None) -> float | None:
    """Retry-After in seconds: a number, or a date (RFC 9110, 10.2.3)."""
    if retry_after is None:
        return None
    text = retry_after.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None
