"""What an image url says of the picture behind it, before any download; shared by the builder and the loader."""

from __future__ import annotations

import re
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc

from sqid_lib import schemas

_GENERIC_STEM = schemas.GENERIC_IMAGE_URL.partition("://")[2].partition("/")[2].partition("._")[0]
_GENERIC = re.escape(f"/{_GENERIC_STEM}.")
# an id starts the last part of the path and ends before the modifiers: "/01RmK+J4pJL._AC_.gif"
_PLACEHOLDER = (
    rf"/(?:{'|'.join(re.escape(i) for i in sorted(schemas.PLACEHOLDER_IMAGE_IDS))})(?:[._?#]|$)"
    rf"|{'|'.join(re.escape(part) for part in schemas.PLACEHOLDER_URL_PARTS)}"
)


def image_status(urls: pa.Array | pa.ChunkedArray) -> pa.Array:
    """The status of each url: `missing` (null or blank), `placeholder`, `generic` or `ok`.

    Urls are compared after percent-decoding, as hosts do ("%2B" is "+").

    Args:
        urls: string[N], nulls allowed.

    Returns:
        string[N] without nulls, values of `schemas.IMAGE_STATUS`.
    """
    if isinstance(urls, pa.ChunkedArray):
        urls = urls.combine_chunks()
    decoded = _percent_decoded(urls.cast(pa.string()))
    blank = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(decoded), ""), True)
    return pc.case_when(
        pc.make_struct(
            blank, pc.match_substring_regex(decoded, _PLACEHOLDER), pc.match_substring_regex(decoded, _GENERIC)
        ),
        *(pa.scalar(s) for s in (schemas.MISSING, schemas.PLACEHOLDER, schemas.GENERIC, schemas.OK)),
    )


def _percent_decoded(urls: pa.Array) -> pa.Array:
    escaped = pc.fill_null(pc.match_substring(urls, "%"), False)
    rare = urls.filter(escaped)  # about one published url in two thousand, so Python may do these
    if not len(rare):
        return urls
    return pc.replace_with_mask(urls, escaped, pa.array([unquote(u) for u in rare.to_pylist()], pa.string()))
