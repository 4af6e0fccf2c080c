"""Urls of strangers: what is requested for them, byte for byte, and what is never requested."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from urllib.parse import quote, urlsplit

from sqid_lib.errors import missing_extra

try:
    from yarl import URL
except ImportError:
    raise missing_extra("yarl", "build", "to read urls") from None

_VISIBLE_ASCII = string.digits + string.ascii_letters + string.punctuation
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_ON_THE_WIRE = re.compile(r"[!-~]*")  # visible ASCII


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
