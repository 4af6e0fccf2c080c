"""The one HTTP core, for pictures and pages: urls and servers are strangers', so every step is guarded and bounded."""

from __future__ import annotations

import asyncio
import email.utils
import io
import re
import socket
import string
import tempfile
import time
import zlib
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self
from urllib.parse import quote, urlsplit

from builder.addresses import why_refused
from builder.recipe import Fetch
from sqid_lib.errors import missing_extra

try:
    import aiohttp
    from yarl import URL
except ImportError:
    raise missing_extra("aiohttp", "build", "to download pictures") from None

ACCEPT_PICTURES = "image/jpeg, image/png, image/gif, image/webp;q=0.9, */*;q=0.1"
ACCEPT_PAGES = "text/html, application/xhtml+xml;q=0.9, */*;q=0.1"

_IN_MEMORY = 1 << 20  # bytes of a body kept in memory; more goes to a temporary file
_VISIBLE_ASCII = string.digits + string.ascii_letters + string.punctuation
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_ON_THE_WIRE = re.compile(r"[!-~]*")  # visible ASCII
REDIRECTS = (301, 302, 303, 307, 308)
_RETRIED = (408, 429)  # and 5xx


class BadUrlError(ValueError):
    """An url that is never requested; the message says why."""


def parse_url(url: str) -> URL:
    """An url as it goes on the wire: every published byte stays, what HTTP cannot carry is percent-encoded.

    Raises:
        BadUrlError: not http or https, no host, a bad port, control characters, or a user name in it.
    """
    url = url.strip()
    try:
        parsed = URL(url, encoded=True) if _ON_THE_WIRE.fullmatch(url) else _encoded(url)
        host, port, scheme = parsed.raw_host, parsed.port, parsed.scheme
    except BadUrlError:
        raise
    except (ValueError, TypeError) as error:
        raise BadUrlError(f"not an url: {error}") from None
    if scheme not in ("http", "https"):
        raise BadUrlError(f"scheme {scheme!r} is not http or https")
    if not host or port is None:
        raise BadUrlError("no host in the url")
    if parsed.raw_user is not None or parsed.raw_password is not None:
        raise BadUrlError("a user name in the url")
    return parsed


def _encoded(url: str) -> URL:
    if _CONTROL.search(url):
        raise BadUrlError("control characters in the url")
    if not (urlsplit(url).hostname or "").isascii():
        return URL(url)  # the host becomes punycode
    return URL(quote(url, safe=_VISIBLE_ASCII), encoded=True)


@dataclass
class Answer:
    """What came of one request.

    Attributes:
        status: "ok" if a body came with 200, else a value of `schemas.IMAGE_STATUS`.
        url: the url that answered, after redirects.
        http_status: of the last answer; None where none came.
        body: the decoded body, at its start; None unless `ok` or asked for.
        detail: one line for people.
        again: whether another try may help.
        retry_after: seconds the server asks to wait.
    """

    status: str
    url: str
    http_status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: IO[bytes] | None = None
    detail: str | None = None
    again: bool = False
    retry_after: float | None = None


@dataclass
class _Hop:
    """One connection being made: whether the recipe allows its host anything, and what the guard said."""

    allowed: bool
    refused: str | None = None


_HOP: ContextVar[_Hop] = ContextVar("_HOP")


class Client:
    """Requests under the limits of a recipe's [fetch]. An async context manager.

    The guard sits at the socket: it sees the final address of every connection, whatever name, literal, redirect or
    DNS answer led there. With `trust_env` and a proxy it sees the proxy, which must then be in `allow_hosts`.

    Args:
        limits: times, sizes, ports, hosts.
        accept: the Accept header.
        contact: how the owner of a server reaches the person who runs this; goes into the User-Agent.
        spill: directory for bodies over 1 MiB.
    """

    def __init__(self, limits: Fetch, *, accept: str, contact: str = "", spill: Path | None = None) -> None:
        self._limits, self._accept = limits, accept
        self._spill = str(spill) if spill else None
        self._allowed = frozenset(_host_port(entry) for entry in limits.allow_hosts)
        self._running: dict[asyncio.Timeout, float] = {}  # with the loop's time when each must be done, soonest first
        self.user_agent = user_agent(contact)

    async def __aenter__(self) -> Self:
        limits = self._limits
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=limits.concurrency,
                limit_per_host=limits.per_host,
                ttl_dns_cache=300,
                socket_factory=self._guarded_socket,
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": self.user_agent, "Accept": self._accept, "Accept-Encoding": "identity"},
            auto_decompress=False,
            trust_env=limits.trust_env,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=limits.read_timeout, sock_read=limits.read_timeout),
        )
        self._watch = asyncio.create_task(self._end_late_ones())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._watch.cancel()
        await self._session.close()

    async def _end_late_ones(self) -> None:
        """The total time of all requests under one timer: one for each would cost a tenth of all work here."""
        clock = asyncio.get_running_loop().time
        while True:
            while self._running and next(iter(self._running.values())) <= clock():
                late = next(iter(self._running))
                del self._running[late]
                late.reschedule(clock())
            soonest = next(iter(self._running.values()), clock() + self._limits.timeout)
            await asyncio.sleep(soonest - clock())

    async def get(self, url: str, *, redirects: int | None = None, every_body: bool = False) -> Answer:
        """GET an url, following at most `redirects` redirects (default: the recipe's). Raises nothing a server causes.

        Args:
            every_body: read the bodies of other answers than 200 too.
        """
        left = self._limits.max_redirects if redirects is None else redirects
        at = url
        time_limit = asyncio.timeout(None)  # set by the watch
        try:
            async with time_limit:
                self._running[time_limit] = asyncio.get_running_loop().time() + self._limits.timeout
                while True:
                    answer = await self._hop(at, every_body)
                    target = answer.headers.get("Location") if answer.http_status in REDIRECTS else None
                    if target is None or redirects == 0:
                        return answer
                    if left == 0:
                        answer.status, answer.detail = (
                            "redirects",
                            f"redirected more than {self._limits.max_redirects} times",
                        )
                        return answer
                    left -= 1
                    at = join_url(at, target)
        except TimeoutError:
            return Answer("timeout", at, detail=f"not done after {self._limits.timeout:g} s")
        finally:
            self._running.pop(time_limit, None)

    async def _hop(self, url: str, every_body: bool) -> Answer:
        try:
            target = parse_url(url)
        except BadUrlError as error:
            return Answer("bad_url", url, detail=str(error))
        allowed = _host_port(f"{target.host}:{target.port}") in self._allowed
        if not allowed and target.port not in self._limits.ports:
            return Answer("refused", url, detail=f"port {target.port} is not among the recipe's ports")
        hop = _Hop(allowed)
        token = _HOP.set(hop)
        try:
            async with self._session.get(target, allow_redirects=False) as response:
                return await self._read(response, url, every_body)
        except TimeoutError:  # of connecting or of one read; that of the whole request cancels instead
            return Answer("timeout", url, detail=f"nothing came for {self._limits.read_timeout:g} s")
        except (aiohttp.InvalidURL, UnicodeError) as error:
            return Answer("bad_url", url, detail=_line(error))
        except (aiohttp.ClientError, OSError) as error:
            if hop.refused:
                return Answer("refused", url, detail=hop.refused)
            return Answer("connection", url, detail=_line(error), again=_is_reset(error))
        except Exception as error:  # whatever a hostile answer breaks in the parser stays one row's matter
            return Answer("error", url, detail=_line(error))
        finally:
            _HOP.reset(token)

    async def _read(self, response: aiohttp.ClientResponse, url: str, every_body: bool) -> Answer:
        code = response.status
        answer = Answer(_status_of(code), url, code, response.headers)
        if code != 200:
            answer.detail = f"HTTP {code}"
            answer.again = code in _RETRIED or code >= 500
            answer.retry_after = _seconds(response.headers.get("Retry-After"))
        if code == 200 or (every_body and code not in REDIRECTS):
            problem = await self._read_body(response, answer)
            if problem and code == 200:
                answer.status, answer.detail = problem
        return answer

    async def _read_body(self, response: aiohttp.ClientResponse, answer: Answer) -> tuple[str, str] | None:
        """Read a body under both caps, on the wire and decoded; says what is wrong with it, if anything is."""
        cap = self._limits.max_bytes
        if response.content_length is not None and response.content_length > cap:
            return "too_large", f"{response.content_length} bytes, more than {cap}"
        encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
        if encoding not in ("identity", "", "gzip", "x-gzip", "deflate"):
            return "http_error", f"content encoding {encoding[:40]!r} was not asked for"
        inflate = None if encoding in ("identity", "") else zlib.decompressobj(47)
        if inflate is None and response.content_length and response.content_length <= _IN_MEMORY:
            answer.body = io.BytesIO(await response.read())  # as nearly all are, and faster
            return None
        body = tempfile.SpooledTemporaryFile(_IN_MEMORY, dir=self._spill)  # noqa: SIM115 - goes to the caller
        try:
            problem = await self._copy(response, body, inflate)
        except BaseException:
            body.close()
            raise
        if problem:
            body.close()
            return problem
        body.seek(0)
        answer.body = body
        return None

    async def _copy(self, response: aiohttp.ClientResponse, body: IO[bytes], inflate: Any) -> tuple[str, str] | None:
        cap = self._limits.max_bytes
        wire = size = 0
        async for data in response.content.iter_any():
            wire += len(data)
            if inflate is not None:
                try:
                    data = inflate.decompress(data, cap - size + 1)
                except zlib.error as error:
                    return "corrupt", f"content encoding: {error}"
            size += len(data)
            if wire > cap or size > cap:
                return "too_large", f"more than {cap} bytes"
            body.write(data)
        if inflate is not None and wire and not inflate.eof:
            return "corrupt", "content encoding: truncated"
        return None if size else ("empty", "no bytes")

    def _guarded_socket(self, address: tuple[Any, ...]) -> socket.socket:
        """Called by the connector with the final address of every connection, before it is made."""
        family, kind, protocol, _, (host, port, *_) = address
        hop = _HOP.get()
        allowed = hop.allowed or (self._limits.trust_env and _host_port(f"{host}:{port}") in self._allowed)
        reason = None if allowed else why_refused(host)
        if reason:
            hop.refused = reason
            raise PermissionError(reason)
        return socket.socket(family, kind, protocol)


def user_agent(contact: str = "") -> str:
    """What servers are told of this program."""
    try:
        version = metadata.version("sqid")
    except metadata.PackageNotFoundError:
        version = "0"
    return f"sqid/{version} (dataset builder{f'; +{contact}' if contact else ''})"


def join_url(base: str, target: str) -> str:
    """The url a redirect or a link on a page leads to, its bytes as given."""
    try:
        return str(URL(base, encoded=True).join(URL(target, encoded=True)))
    except ValueError:
        return target  # parse_url will say what is wrong with it


def mirrored(url: str, mirrors: Mapping[str, str]) -> str:
    """The url that is requested in place of a published one: the longest matching prefix is replaced."""
    if not mirrors:
        return url
    prefix = max((p for p in mirrors if url.startswith(p)), key=len, default=None)
    return url if prefix is None else mirrors[prefix] + url[len(prefix) :]


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


def _is_reset(error: BaseException) -> bool:
    """The connection broke after it was made: worth another try, unlike a host that cannot be reached."""
    if isinstance(error, aiohttp.ClientConnectorError):
        return False
    return isinstance(error, aiohttp.ServerDisconnectedError | aiohttp.ClientOSError | aiohttp.ClientPayloadError)


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


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
