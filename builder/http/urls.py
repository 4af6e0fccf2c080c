"""Untrusted URLs: what is requested for them, byte for byte, and which are never requested."""

from __future__ import annotations

import re
import string
from typing import NamedTuple
from urllib.parse import quote, urlsplit

from sqid_lib.errors import missing_extra

try:
    from yarl import URL
except ImportError:
    raise missing_extra("yarl", "build", "to read URLs") from None

_VISIBLE_ASCII = string.digits + string.ascii_letters + string.punctuation
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_PATH = re.compile(r"[^/?#]*//[^/?#]*([^#]*)")
_ON_THE_WIRE = re.compile(r"[!-~]*")  # visible ASCII
_HOST = re.compile(r"[0-9a-z_][0-9a-z_.-]*")  # curl would decode other names, or give them a meaning ("*", "-host")
_RAW_BYTES = re.compile("[\udc80-\udcff]")  # bytes of a header that are not UTF-8, as surrogateescape decodes them
_LONGEST = 1 << 16  # characters; curl accepts 8 million, servers far fewer


class BadUrlError(ValueError):
    """A URL that is never requested; the message says why."""


class Target(NamedTuple):
    """What a request needs of a URL.

    Attributes:
        scheme: http or https.
        name: the host as it is written.
        host: the host as DNS knows it, in ASCII.
        port: the URL's, or the default of the scheme.
        path: with the query, as it is sent.
    """

    scheme: str
    name: str
    host: str
    port: int
    path: str

    @property
    def origin(self) -> str:
        """Scheme and host, and the port unless it is the default of the scheme."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        default = self.port == {"http": 80, "https": 443}[self.scheme]
        return f"{self.scheme}://{host}" if default else f"{self.scheme}://{host}:{self.port}"


def parse_url(url: str) -> Target:
    """A URL as it is sent: every published byte stays, characters that HTTP cannot carry are percent-encoded.

    Raises:
        BadUrlError: not http or https, no host, a bad port, control characters, or a user name in it.
    """
    url = url.strip()
    if len(url) > _LONGEST:
        raise BadUrlError(f"longer than {_LONGEST} characters")
    try:
        text = url if _ON_THE_WIRE.fullmatch(url) else _encoded(url)
        parsed = URL(text, encoded=True)
        name, host, port, scheme = parsed.host, parsed.raw_host, parsed.port, parsed.scheme
    except BadUrlError:
        raise
    except (ValueError, TypeError, IndexError) as error:  # IndexError: yarl's, of "a]b[c"
        raise BadUrlError(f"not a URL: {error}") from None
    if scheme not in ("http", "https"):
        raise BadUrlError(f"scheme {scheme!r} is not http or https")
    if not host or not name or port is None:
        raise BadUrlError("no host in the URL")
    if ":" not in host and not _HOST.fullmatch(host.lower()):
        raise BadUrlError("no host can have such a name")
    if parsed.raw_user is not None or parsed.raw_password is not None:
        raise BadUrlError("a user name in the URL")
    match = _PATH.match(text)
    path = match[1] if match else ""
    return Target(scheme, name.lower(), host.lower(), port, path if path.startswith("/") else f"/{path}")


def _encoded(url: str) -> str:
    if _CONTROL.search(url):
        raise BadUrlError("control characters in the URL")
    authority = urlsplit(url).netloc
    if not authority.isascii():
        url = url.replace(authority, URL(f"http://{authority}").raw_authority, 1)  # the host as punycode
    return quote(url, safe=_VISIBLE_ASCII, errors="surrogateescape")  # bytes of a header that are not UTF-8 too


def join_url(base: str, target: str) -> str:
    """The URL that a redirect or a link on a page leads to, its bytes as given."""
    target = _RAW_BYTES.sub(lambda raw: f"%{ord(raw[0]) & 0xFF:02X}", target)  # no file can hold lone surrogates
    try:
        return str(URL(base, encoded=True).join(URL(target, encoded=True)))
    except (ValueError, IndexError):
        return target  # parse_url says what is wrong with it


def printable_line(text: str) -> str:
    """Untrusted text made safe for a file and a terminal: one line of printable characters, at most 200."""
    return " ".join("".join(c if c.isprintable() else " " for c in text[:1000]).split())[:200]
