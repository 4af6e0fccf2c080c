"""One request on a curl handle: which addresses it may connect to, how much is read, and what was received."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import io
import os
import re
import socket
import ssl
import tempfile
import time
import urllib.request
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from builder.http import machine
from builder.http.addresses import why_refused
from sqid_lib.errors import FetchError, missing_extra

try:
    import pycurl
except ImportError:
    raise missing_extra("pycurl", "build", "to download images") from None

REDIRECTS = (301, 302, 303, 307, 308)

_PROBLEMS = {  # curl's own messages contain times, so two runs would record different ones
    pycurl.E_COULDNT_CONNECT: "no connection",
    pycurl.E_GOT_NOTHING: "the server closed the connection without an answer",
    pycurl.E_PARTIAL_FILE: "the connection broke within the body",
    pycurl.E_RECV_ERROR: "the connection broke",
    pycurl.E_SEND_ERROR: "the connection broke",
    pycurl.E_UNSUPPORTED_PROTOCOL: "the answer is no HTTP",
    pycurl.E_COULDNT_RESOLVE_PROXY: "the environment's proxy is unknown, or not a URL",  # curl names its password
    100: "the headers are too large",  # CURLE_TOO_LARGE, without a name in pycurl
}
_RESETS = (pycurl.E_GOT_NOTHING, pycurl.E_PARTIAL_FILE, pycurl.E_RECV_ERROR, pycurl.E_SEND_ERROR)

_IN_MEMORY = 1 << 20  # bytes of a body kept in memory; longer ones go to a temporary file
_BUFFER = 1 << 17  # most bytes that curl passes at once
_UNWANTED = 1 << 16  # bytes read of a body that is not wanted, so that its connection can be used again
_STATUS_LINE = re.compile(rb"HTTP/[0-9.]+ ([0-9]{3})\b")


class Transfer:
    """A curl handle, used for one request after another: making one costs as much as a small request.

    Args:
        headers: sent with every request.
        cap: most bytes of a body, as received and decoded.
        proxies: whether the environment's proxies are used.
        may_connect: IP address and port of a connection → whether the recipe allows it, private or not.
        spill: directory for bodies over 1 MiB.
    """

    def __init__(
        self,
        headers: list[str],
        *,
        cap: int,
        proxies: bool,
        may_connect: Callable[[str, int], bool],
        spill: Path,
    ) -> None:
        self._cap, self._proxies, self._may_connect, self._spill = cap, proxies, may_connect, spill
        self.curl = curl = pycurl.Curl()
        options: dict[int, Any] = {
            pycurl.NOSIGNAL: 1,
            pycurl.HTTP_VERSION: pycurl.CURL_HTTP_VERSION_1_1,
            pycurl.HTTPHEADER: headers,
            pycurl.BUFFERSIZE: _BUFFER,
            pycurl.CONNECTTIMEOUT_MS: 2**31 - 1,  # no limit: the wait for a free connection would count
            pycurl.MAXFILESIZE_LARGE: cap,
            pycurl.OPENSOCKETFUNCTION: self._open_socket,
            pycurl.PREREQFUNCTION: self._connected,
            pycurl.HEADERFUNCTION: self._header,
            pycurl.WRITEFUNCTION: self._write,
            **_certificates(),
        }
        for option, value in options.items():
            curl.setopt(option, value)

    def begin(self, origin: str, path: str, *, addresses: str | None, allowed: bool, every_body: bool) -> None:
        """Prepare a request.

        Args:
            origin: "scheme://host", and ":port" if it is not the default of the scheme.
            path: with the query; sent as it is: in a URL curl would change "%7c" to "%7C".
            addresses: "+host:port:address,…" as looked up; None if curl is to look it up.
            allowed: the recipe allows any address for this host.
            every_body: also read the bodies of other answers than 200.
        """
        self._every_body = every_body
        self.head: list[bytes] = []  # the lines of the last answer up to the empty one
        self._pieces: list[bytes] = []  # of the body
        self._file: IO[bytes] | None = None  # where pieces go when there are many
        self._stored = False  # whether the body is stored
        self._inflate: Any = None
        self._received = self._size = 0
        self.problem: tuple[str, str] | None = None  # status and detail
        self.refused: str | None = None
        self.failure: OSError | None = None  # of writing to the spill directory
        self.socket_error = 0  # errno of opening a socket
        self.last_activity: float | None = None  # when a connection was started or ready, or bytes came; time.monotonic
        proxy = _proxy_of(origin) if self._proxies else b""
        self._allowed = allowed and not proxy  # else other hosts could use an open connection to the proxy
        self.curl.setopt(pycurl.URL, origin)
        self.curl.setopt(pycurl.PROXY, proxy)  # empty: none, whatever the environment says
        # an HTTP proxy needs the whole URL; SOCKS, and tunnels to https, forward requests unread
        whole = proxy and origin.startswith("http:") and not proxy.startswith(b"socks")
        self.curl.setopt(pycurl.REQUEST_TARGET, origin + path if whole else path)
        if addresses is not None:
            self.curl.setopt(pycurl.RESOLVE, [addresses])

    @property
    def code(self) -> int:
        """The HTTP status of the last answer; 0 if none came."""
        return int(self.curl.getinfo(pycurl.RESPONSE_CODE))

    @property
    def complete(self) -> bool:
        """Whether all headers of an answer came."""
        return bool(self.head) and not self.head[-1].strip()

    @property
    def status(self) -> int:
        """The HTTP status as the headers so far have it; 0 if they have none."""
        status = _STATUS_LINE.match(self.head[0]) if self.head else None
        return int(status[1]) if status else 0

    @property
    def wanted(self) -> bool:
        """Whether the body of this answer is to be read."""
        return self.status == 200 or (self._every_body and self.status not in REDIRECTS)

    def why(self, code: int, message: str) -> tuple[str, str, bool]:
        """For an error of curl: status, one line of explanation, and whether another attempt may succeed."""
        if self.problem:
            return *self.problem, False
        if self.refused:
            return "refused", self.refused, False
        if code == pycurl.E_FILESIZE_EXCEEDED:
            return "too_large", f"more than {self._cap} bytes", False
        if code == pycurl.E_OPERATION_TIMEDOUT:
            return "timeout", "no connection in time", False
        if message.startswith("Too large response headers"):  # with the code of a broken connection
            return "connection", "the headers are too large", False
        detail = _PROBLEMS.get(code) or message or f"curl error {code}"
        return "bad_url" if code == pycurl.E_URL_MALFORMAT else "connection", detail, code in _RESETS

    def fault(self, code: int, host: str) -> FetchError | None:
        """For an error of curl: the error that ends the run, if this machine is to blame."""
        if code == pycurl.E_OUT_OF_MEMORY:
            return machine.fault(errno.ENOMEM, host)
        if code == pycurl.E_SSL_CACERT_BADFILE:
            return machine.no_certificates(host)
        if code in (pycurl.E_COULDNT_CONNECT, pycurl.E_SEND_ERROR, pycurl.E_RECV_ERROR):
            return machine.fault(self.socket_error or int(self.curl.getinfo(pycurl.OS_ERRNO)), host)
        return None

    def body(self) -> IO[bytes]:
        """The body, at its start, of a complete answer; sets `problem` if it is empty or truncated."""
        if self._inflate is not None and self._received and not self._inflate.eof:
            self.problem = "corrupt", "content encoding: truncated"
        elif not self._size:
            self.problem = "empty", "no bytes"
        file = self._file or io.BytesIO(b"".join(self._pieces))
        file.seek(0)  # writes what is buffered; if that fails, `drop` closes it
        self._file = None
        return file

    def drop(self) -> None:
        """Discard what was received."""
        self._pieces.clear()
        if self._file is not None:
            with contextlib.suppress(OSError):  # the disk is full
                self._file.close()
            self._file = None

    # -- called by curl; an exception would be printed and lost ------------------------------------------------

    def _open_socket(self, _purpose: int, address: tuple[Any, ...]) -> Any:
        """The address check: sees the final address of every connection, before it is made."""
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
            opened = _socket(family, kind, protocol)
        except OSError as error:  # no IPv6 on this machine, for example
            self.socket_error = error.errno or 0
            return pycurl.SOCKET_BAD
        asyncio.get_running_loop().call_soon(opened.close)  # curl takes a duplicate
        self.last_activity = time.monotonic()
        return opened

    def _connected(self, *_addresses: object) -> int:
        self.refused = None  # that was another address of the host
        self.last_activity = time.monotonic()
        return int(pycurl.PREREQFUNC_OK)

    def _header(self, line: bytes) -> None:
        self.last_activity = time.monotonic()
        if self._received:
            return  # ignore trailers
        if line[:5] == b"HTTP/" and self.complete:  # after an interim answer, or one of a proxy
            self.head.clear()
        self.head.append(line)

    def _write(self, data: bytes) -> int | None:
        self.last_activity = time.monotonic()
        try:
            if not self._received:
                self._start()
            self._received += len(data)
            if self._stored:
                self._store(data)
        except zlib.error as error:
            self.problem = "corrupt", f"content encoding: {error}"
        except OSError as error:
            self.failure = error
        if self.problem or self.failure or (self._received > _UNWANTED and not self._stored):
            return -1
        return None

    def _start(self) -> None:
        self._stored = self.wanted
        if not any(line[:17].lower() == b"content-encoding:" for line in self.head):
            return
        encoding = headers(self.head)["content-encoding"].lower()
        if encoding in ("gzip", "x-gzip", "deflate"):
            self._inflate = zlib.decompressobj(47)
        elif self._stored and encoding not in ("identity", ""):
            self.problem = "http_error", f"content encoding {encoding[:40]!r} was not asked for"

    def _store(self, data: bytes) -> None:
        if self._inflate is not None and self._inflate.eof:
            data = b""  # zlib would copy the rest again with every piece
        elif self._inflate is not None:
            data = self._inflate.decompress(data, self._cap - self._size + 1)
        self._size += len(data)
        if self._received > self._cap or self._size > self._cap:
            self.problem = "too_large", f"more than {self._cap} bytes"
        elif self._file is not None:
            self._file.write(data)
        else:
            self._pieces.append(data)
            if self._size > _IN_MEMORY:
                self._file = tempfile.TemporaryFile(dir=self._spill)  # noqa: SIM115 - the caller closes it
                self._file.writelines(self._pieces)
                self._pieces.clear()


def _socket(family: int, kind: int, protocol: int) -> socket.socket:
    """A socket that can be duplicated, which curl does: it would not say why it cannot."""
    opened = socket.socket(family, kind, protocol)
    try:
        os.close(os.dup(opened.fileno()))
    except OSError:
        opened.close()
        raise
    return opened


def headers(head: Sequence[bytes]) -> dict[str, str]:
    """The headers among the lines of an answer's head, by their names in lower case; of equal names the first."""
    pairs = [line.decode("utf-8", "surrogateescape").partition(":") for line in reversed(head[1:])]
    return {name.lower(): value.strip() for name, colon, value in pairs if colon}


def _proxy_of(origin: str) -> bytes:
    scheme, _, authority = origin.partition("://")
    if urllib.request.proxy_bypass(authority):
        return b""
    proxies = urllib.request.getproxies()
    proxy: str = proxies.get(scheme) or proxies.get("all") or ""
    return proxy.encode("utf-8", "surrogateescape")  # pycurl takes only ASCII text


def _certificates() -> dict[int, str]:
    """The certificate authorities for https: the system's, or SSL_CERT_FILE and SSL_CERT_DIR, as in Python."""
    paths = ssl.get_default_verify_paths()
    if paths.cafile:
        return {pycurl.CAINFO: paths.cafile}
    if paths.capath:
        return {pycurl.CAPATH: paths.capath}
    import certifi

    return {pycurl.CAINFO: certifi.where()}
