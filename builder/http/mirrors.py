"""Mirrors: URL prefixes that are requested in place of published ones. Needs no package of an extra."""

from __future__ import annotations

import re
from collections.abc import Mapping

_AUTHORITY = re.compile(r"[a-zA-Z]+://([^/?#]*)")


def mirrored(url: str, mirrors: Mapping[str, str]) -> str:
    """The URL that is requested in place of a published one: the longest matching prefix is replaced."""
    if not mirrors:
        return url
    prefix = max((p for p in mirrors if url.startswith(p)), key=len, default=None)
    return url if prefix is None else mirrors[prefix] + url[len(prefix) :]


def authority(url: str) -> str:
    """Host and port as the URL has them, in lower case; empty if it has none."""
    match = _AUTHORITY.match(url.strip())
    return match[1].rpartition("@")[2].lower() if match else ""
