"""One request on a curl handle: what may be connected to, how much is read, and what came."""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
import tempfile
import time
import urllib.request
import zlib
from collections.abc import Callable
from typing import IO, Any

from builder.addresses import why_refused
from sqid_lib.errors import missing_extra

try:
    import pycurl
except ImportError:
    raise missing_extra("pycurl", "build", "to download pictures") from None

REDIRECTS = (301, 302, 303, 307, 308)
CurlError = pycurl.error

_PROBLEMS = {  # curl's words say how long it took, so no two runs would record the same
    pycurl.E_COULDNT_CONNECT: "no connection",
    pycurl.E_GOT_NOTHING: "the server closed the connection without an answer",
    pycurl.E_PARTIAL_FILE: "the connection broke within the body",
    pycurl.E_RECV_ERROR: "the connection broke",
    pycurl.E_SEND_ERROR: "the connection broke",
    pycurl.E_UNSUPPORTED_PROTOCOL: "the answer is no HTTP",
}
_RESETS = (pycurl.E_GOT_NOTHING, pycurl.E_PARTIAL_FILE, pycurl.E_RECV_ERROR, pycurl.E_SEND_ERROR)

_IN_MEMORY = 1 << 20  # bytes of a body kept in memory; more goes to a temporary file
_BUFFER = 1 << 17  # bytes that curl hands over at once, at most
_UNWANTED = 1 << 16  # bytes read of a body nobody wants, so that its connection can be used again
_STATUS_LINE = re.compile(rb"HTTP/[0-9.]+ ([0-9]{3})\b")


def connections(total: int, per_host: int) -> Any:
    """What runs transfers in the event loop, over at most so many connections (a `pycurl.AsyncCurlMulti`)."""
    multi = pycurl.AsyncCurlMulti()
    multi.setopt(pycurl.M_MAX_TOTAL_CONNECTIONS, total)
    multi.setopt(pycurl.M_MAX_HOST_CONNECTIONS, per_host)
    multi.setopt(pycurl.M_MAXCONNECTS, total)
    return multi


class Transfer:
    """A curl handle, for one request after another: making one costs as much as a small request.

    Args:
        headers: sent with every request.
        read_timeout: seconds until a connection must be made.
        cap: bytes of a body, on the wire and decoded.
        proxies: whether the environment's proxies are used.
        may_connect: told the IP address and port of a connection, says whether the recipe allows it anything.
        spill: directory for bodies over 1 MiB.
    """

    def __init__(
        self,
        headers: list[str],
        *,
        read_timeout: float,
        cap: int,
        proxies: bool,
        may_connect: Callable[[str, int], bool],
        spill: str | None,
    ) -> None:
        self._read_timeout = read_timeout
        self._cap, self._proxies, self._may_connect, self._spill = cap, proxies, may_connect, spill
        self.curl = curl = pycurl.Curl()
        options: dict[int, Any] = {
            pycurl.NOSIGNAL: 1,
            pycurl.PROXY: "",  # none, whatever the environment says
            pycurl.HTTP_VERSION: pycurl.CURL_HTTP_VERSION_1_1,
            pycurl.HTTPHEADER: headers,
            pycurl.PATH_AS_IS: 1,
            pycurl.BUFFERSIZE: _BUFFER,
            pycurl.CONNECTTIMEOUT_MS: max(1, round(1000 * read_timeout)),
            pycurl.MAXFILESIZE_LARGE: cap,
            pycurl.OPENSOCKETFUNCTION: self._open_socket,
            pycurl.PREREQFUNCTION: self._connected,
            pycurl.HEADERFUNCTION: self._header,
            pycurl.WRITEFUNCTION: self._write,
            **_certificates(),
        }
        for option, value in options.items():
            curl.setopt(option, value)

    def begin(self, url: str, *, addresses: str | None, allowed: bool, every_body: bool) -> None:
        """Get ready for a request.

        Args:
            url: every byte of its path and query is sent as it is.
            addresses: "host:port:address,…" as the name service said; None leaves the question to curl.
            allowed: the recipe allows its host to be anywhere.
            every_body: read the bodies of other answers than 200 too.
        """
        self._allowed, self._every_body = allowed, every_body
        self._headers: list[bytes] = []
        self._inflate: Any = None
        self._wire = self._size = 0
        self.body: IO[bytes] | None = None
        self.problem: tuple[str, str] | None = None  # status and detail
        self.refused: str | None = None
        self.failure: OSError | None = None  # of the spill
        self.heard: float | None = None  # when the connection was ready or something came; monotonic
        self.curl.setopt(pycurl.URL, url)
        if addresses is not None:
            self.curl.setopt(pycurl.RESOLVE, [addresses])
        if self._proxies:
            self.curl.setopt(pycurl.PROXY, _proxy_of(url))

    @property
    def code(self) -> int:
        """The HTTP status of the last answer; 0 if none came."""
        return int(self.curl.getinfo(pycurl.RESPONSE_CODE))

    @property
    def complete(self) -> bool:
        """Whether all headers of an answer came."""
        return bool(self._headers) and not self._headers[-1].strip()

    @property
    def wanted(self) -> bool:
        """Whether the body of this answer is to be read."""
        status = _STATUS_LINE.match(self._headers[0]) if self._headers else None
        code = int(status[1]) if status else 0
        return code == 200 or (self._every_body and code not in REDIRECTS)

    def headers(self) -> dict[str, str]:
        """The headers of the last answer by their names in lower case; of equal names the first."""
        named: dict[str, str] = {}
        for line in self._headers[1:]:
            name, _, value = line.decode("latin-1").partition(":")
            named.setdefault(name.strip().lower(), value.strip())
        return named

    def why(self, error: pycurl.error) -> tuple[str, str, bool]:
        """What an error comes to: a status, one line for people, and whether another try may help."""
        code, words = (*error.args, "")[:2]
        if self.problem:
            return *self.problem, False
        if self.refused:
            return "refused", self.refused, False
        if code == pycurl.E_FILESIZE_EXCEEDED:
            return "too_large", f"more than {self._cap} bytes", False
        if code == pycurl.E_OPERATION_TIMEDOUT:
            return "timeout", f"no connection after {self._read_timeout:g} s", False
        detail = _PROBLEMS.get(code) or " ".join(words.split())[:200] or f"curl error {code}"
        return "bad_url" if code == pycurl.E_URL_MALFORMAT else "connection", detail, code in _RESETS

    def end(self) -> None:
        """After a request that came whole: tells `problem` what its body lacks, and goes to the start of it."""
        if self._inflate is not None and self._wire and not self._inflate.eof:
            self.problem = "corrupt", "content encoding: truncated"
        elif not self._size:
            self.problem = "empty", "no bytes"
        if self.body is not None:
            self.body.seek(0)

    def drop(self) -> None:
        """Forget the body."""
        if self.body is not None:
            self.body.close()
            self.body = None

    # -- called by curl; what they raise would be printed and lost ---------------------------------------------

    def _open_socket(self, _purpose: int, address: tuple[Any, ...]) -> Any:
        """The guard: sees the final address of every connection, before it is made."""
        family, kind, protocol, where = address
        if family not in (socket.AF_INET, socket.AF_INET6):
            self.refused = "neither IPv4 nor IPv6"
            return pycurl.SOCKET_BAD
        host, port = where[:2]
        if not self._allowed and not self._may_connect(host, port):
            reason = why_refused(host)
            if reason:
                self.refused = reason
                return pycurl.SOCKET_BAD
        try:
            opened = socket.socket(family, kind, protocol)
        except OSError:  # no IPv6 here, say
            return pycurl.SOCKET_BAD
        asyncio.get_running_loop().call_soon(opened.close)  # curl takes a duplicate
        return opened

    def _connected(self, *_addresses: object) -> int:
        self.heard = time.monotonic()
        return int(pycurl.PREREQFUNC_OK)

    def _header(self, line: bytes) -> None:
        self.heard = time.monotonic()
        if self.complete and not self._wire and _STATUS_LINE.match(line):  # after an interim answer or a proxy's
            self._headers.clear()
        if not self._wire:  # trailers are nobody's wish
            self._headers.append(line)

    def _write(self, data: bytes) -> int | None:
        self.heard = time.monotonic()
        try:
            if not self._wire:
                self._start()
            self._wire += len(data)
            if self.problem is None:
                self._keep(data)
        except zlib.error as error:
            self.problem = "corrupt", f"content encoding: {error}"
        except OSError as error:
            self.failure = error
        if self.problem or self.failure or (self.body is None and self._wire > _UNWANTED):
            return -1
        return None

    def _start(self) -> None:
        if not self.wanted:
            return
        encoding = self.headers().get("content-encoding", "identity").lower()
        if encoding in ("gzip", "x-gzip", "deflate"):
            self._inflate = zlib.decompressobj(47)
        elif encoding not in ("identity", ""):
            self.problem = "http_error", f"content encoding {encoding[:40]!r} was not asked for"
            return
        self.body = tempfile.SpooledTemporaryFile(_IN_MEMORY, dir=self._spill)  # noqa: SIM115 - goes to the caller

    def _keep(self, data: bytes) -> None:
        if self.body is None:
            return
        if self._inflate is not None:
            data = self._inflate.decompress(data, self._cap - self._size + 1)
        self._size += len(data)
        if self._wire > self._cap or self._size > self._cap:
            self.problem = "too_large", f"more than {self._cap} bytes"
            return
        self.body.write(data)


def _proxy_of(url: str) -> str:
    scheme, _, rest = url.partition("://")
    authority = rest.partition("/")[0]
    if urllib.request.proxy_bypass(authority):
        return ""
    proxies = urllib.request.getproxies()
    return proxies.get(scheme) or proxies.get("all") or ""


def _certificates() -> dict[int, str]:
    """Whom https trusts: the system's authorities, or SSL_CERT_FILE and SSL_CERT_DIR, as in Python."""
    paths = ssl.get_default_verify_paths()
    if paths.cafile:
        return {pycurl.CAINFO: paths.cafile}
    if paths.capath:
        return {pycurl.CAPATH: paths.capath}
    import certifi

    return {pycurl.CAINFO: certifi.where()}
