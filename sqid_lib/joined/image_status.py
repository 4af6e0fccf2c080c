"""Image URLs as they are read, and what a URL says about its image before any download; for builder and loader."""

from __future__ import annotations

import logging
import re
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc

from sqid_lib import schemas

_AMPERSANDS = "&(?:amp;)+"  # "&" as HTML writes it
_GENERIC_STEM = schemas.GENERIC_IMAGE_URL.partition("://")[2].partition("/")[2].partition("._")[0]
_GENERIC = re.escape(f"/{_GENERIC_STEM}.")
# an id starts the last part of the path and ends before the modifiers: "/01RmK+J4pJL._AC_.gif"
_PLACEHOLDER = (
    rf"/(?:{'|'.join(re.escape(i) for i in sorted(schemas.PLACEHOLDER_IMAGE_IDS))})(?:[._?#]|$)"
    rf"|{'|'.join(re.escape(part) for part in schemas.PLACEHOLDER_URL_PARTS)}"
)

_log = logging.getLogger(__name__)


def clean_urls(urls: pa.ChunkedArray, where: str) -> pa.ChunkedArray:
    """The same URLs, null where they are blank, and "&" in place of "&amp;" in those copied from HTML.

    A URL with "&amp;" and a bare "&" could mean either: it stays as it is, and the log warns of it.

    Args:
        urls: string[N], nulls allowed.
        where: the file, for the log.
    """
    urls = pc.if_else(pc.equal(pc.utf8_trim_whitespace(urls), ""), None, urls)
    escaped = pc.fill_null(pc.match_substring(urls, "&amp;"), False)
    count = pc.sum(escaped).as_py()
    if not count:
        return urls
    bare = pc.fill_null(pc.match_substring(pc.replace_substring_regex(urls, _AMPERSANDS, ""), "&"), False)
    unclear = pc.sum(pc.and_(escaped, bare)).as_py()
    if unclear:
        _log.warning("%s: %d URLs hold both &amp; and & and are left as they are", where, unclear)
    if count > unclear:
        _log.info("%s: &amp; is read as & in %d URLs", where, count - unclear)
    return pc.if_else(pc.and_not(escaped, bare), pc.replace_substring_regex(urls, _AMPERSANDS, "&"), urls)


def image_status(urls: pa.Array | pa.ChunkedArray) -> pa.Array:
    """The status of each URL: `missing` (null or blank), `placeholder`, `generic` or `ok`.

    URLs are compared after percent-decoding, as image hosts do ("%2B" is "+").

    Args:
        urls: string[N], nulls allowed.

    Returns:
        string[N] without nulls, values of `schemas.IMAGE_STATUS`.
    """
    if isinstance(urls, pa.ChunkedArray):
        urls = urls.combine_chunks()
    urls = urls.cast(pa.string())
    decoded, http = _percent_decoded(urls), is_http(urls)
    blank = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(decoded), ""), True)
    return pc.case_when(
        pc.make_struct(
            blank,
            pc.and_(http, pc.match_substring_regex(decoded, _PLACEHOLDER)),
            pc.and_(http, pc.match_substring_regex(decoded, _GENERIC)),
        ),
        *(pa.scalar(s) for s in (schemas.MISSING, schemas.PLACEHOLDER, schemas.GENERIC, schemas.OK)),
    )


def is_http(urls: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Whether each URL begins with http or https and a host; null for null.

    Stage fetch reports the other URLs as `bad_url`; where nothing is fetched, this decides it.
    """
    return pc.match_substring_regex(urls, r"(?i)^\s*https?://[^/\s]")


def _percent_decoded(urls: pa.Array) -> pa.Array:
    escaped = pc.fill_null(pc.match_substring(urls, "%"), False)
    rare = urls.filter(escaped)  # about one published URL in two thousand, so a loop in Python is fast enough
    if not len(rare):
        return urls
    return pc.replace_with_mask(urls, escaped, pa.array([unquote(u) for u in rare.to_pylist()], pa.string()))
