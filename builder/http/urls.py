"""Urls of strangers: what is requested for them, byte for byte, and what is never requested."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import quote, urlsplit

from sqid_lib.errors import missing_extra

try:
    from yarl import URL
except ImportError:
    raise missing_extra("yarl", "build", "to read urls") from None

_VISIBLE_ASCII = string.digits + string.ascii_letters + string.punctuation
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_PATH = re.compile(r"[^/?#]*//[^/?#]*([^#]*)")
_ON_THE_WIRE = re.compile(r"[!-~]*")  # visible ASCII
_HOST = re.compile(r"[0-9a-z_][0-9a-z_.-]*")  # others curl would decode, or take for rules of its own ("*", "-host")
_RAW_BYTES = re.compile("[\udc80-\udcff]")  # of a header, as surrogateescape leaves them
_LONGEST = 1 << 16  # characters; curl takes 8 million, no server does


class BadUrlError(ValueError):
    """An url that is never requested; the message says why."""


class Target(NamedTuple):
    """What a request needs of an url.

    Attributes:
        scheme: http or https.
        name: the host as people write it.
        host: the host as the name service knows it, in ASCII.
        port: the url's, or the scheme's own.
        path: with the query, as it goes on the wire.
    """

    scheme: str
    name: str
    host: str
    port: int
    path: str

    @property
    def origin(self) -> str:
        """Scheme and host, and the port unless it is the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        own = self.port == {"http": 80, "https": 443}[self.scheme]
        return f"{self.scheme}://{host}" if own else f"{self.scheme}://{host}:{self.port}"


def parse_url(url: str) -> Target:
    """An url as it goes on the wire: every published byte stays, what HTTP cannot carry is percent-encoded.

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
        raise BadUrlError(f"not an url: {error}") from None
    if scheme not in ("http", "https"):
        raise BadUrlError(f"scheme {scheme!r} is not http or https")
    if not host or not name or port is None:
        raise BadUrlError("no host in the url")
    if ":" not in host and not _HOST.fullmatch(host.lower()):
        raise BadUrlError("no host has such a name")
    if parsed.raw_user is not None or parsed.raw_password is not None:
        raise BadUrlError("a user name in the url")
    match = _PATH.match(text)
    path = match[1] if match else ""
    return Target(scheme, name.lower(), host.lower(), port, path if path.startswith("/") else f"/{path}")


def _encoded(url: str) -> str:
    if _CONTROL.search(url):
        raise BadUrlError("control characters in the url")
    authority = urlsplit(url).netloc
    if not authority.isascii():
        url = url.replace(authority, URL(f"http://{authority}").raw_authority, 1)  # the host becomes punycode
    return quote(url, safe=_VISIBLE_ASCII, errors="surrogateescape")  # raw bytes of a header too


def join_url(base: str, target: str) -> str:
    """The url a redirect or a link on a page leads to, its bytes as given."""
    target = _RAW_BYTES.sub(lambda raw: f"%{ord(raw[0]) & 0xFF:02X}", target)  # no file takes lone surrogates
    try:
        return str(URL(base, encoded=True).join(URL(target, encoded=True)))
    except (ValueError, IndexError):
        return target  # parse_url will say what is wrong with it


def one_line(text: str) -> str:
    """A stranger's words as a file and a terminal can take them: one short line of what can be printed."""
    return " ".join("".join(c if c.isprintable() else " " for c in text[:1000]).split())[:200]


def mirrored(url: str, mirrors: Mapping[str, str]) -> str:
    """The url that is requested in place of a published one: the longest matching prefix is replaced."""
    if not mirrors:
        return url
    prefix = max((p for p in mirrors if url.startswith(p)), key=len, default=None)
    return url if prefix is None else mirrors[prefix] + url[len(prefix) :]
