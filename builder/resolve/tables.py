"""Tables of image urls made by others: csv, parquet, ESCI-S and Amazon Reviews 2023 metadata."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.compute as pc

from sqid_lib import schemas
from sqid_lib.errors import (
    CorruptFileError,
    DuplicateKeyError,
    EmptyFileError,
    HtmlPageError,
    LfsPointerError,
    SchemaError,
    first_line,
)
from sqid_lib.tables.reader import column_names, read_table, reporting

_JSON_LINES = re.compile(r"\.(?:jsonl?|ndjson)(?:\.(?:gz|bz2|zst|zstd))?$", re.IGNORECASE)
_CODECS = {"gz": "gzip", "bz2": "bz2", "zst": "zstd", "zstd": "zstd"}
_MAX_LINE = 64_000_000  # bytes; a longer line is no row of a table
_DEAD_SEGMENT = re.compile(r"/images/W/.+?/images/")  # ESCI-S renderings that no longer answer
_SIZES = ("hi_res", "large", "thumb")  # of Amazon Reviews 2023, best first
_URLS_WITH_LOCALE = pa.schema([*schemas.URLS_FILE_SCHEMA, pa.field("product_locale", pa.string())])


def image_urls(path: str, locales: pa.ChunkedArray, ids: pa.ChunkedArray) -> pa.Array:
    """The url a table gives for each product, null where it gives none.

    Read are csv and parquet with columns product_id, image_url and perhaps product_locale; ESCI-S json lines
    (`asin`, `image`, `locale`); Amazon Reviews 2023 metadata json lines (`parent_asin`, `images`); json lines with
    the columns of the csv. Json lines may be compressed (gz, bz2, zst). A row without a locale speaks of every locale.

    Args:
        path: local path or url.
        locales, ids: string[N] each, the keys looked for.

    Returns:
        string[N]; blank urls are null.

    Raises:
        SourceError: the file is missing, no such table, or lacks a column.
        DuplicateKeyError: a csv or parquet file gives a product two urls. In json lines, which are crawls, the first
            url of a product counts.
    """
    if _JSON_LINES.search(path):
        table = _read_json_lines(path, pc.unique(ids))
    else:
        located = "product_locale" in column_names(path)
        table = read_table(path, _URLS_WITH_LOCALE if located else schemas.URLS_FILE_SCHEMA)
    blank = pc.equal(pc.utf8_trim_whitespace(table["image_url"]), "")
    table = table.filter(pc.invert(blank)).drop_null()  # a null mask drops null urls too
    if "product_locale" in table.column_names:
        keys, wanted = _key(table["product_locale"], table["product_id"]), _key(locales, ids)
    else:
        keys, wanted = table["product_id"], ids
    _check_unique(keys, table, path)
    found = table["image_url"].take(pc.index_in(wanted, keys.combine_chunks()))
    return found.combine_chunks()


def _key(locales: pa.ChunkedArray, ids: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.binary_join_element_wise(locales, ids, "\t")


def _check_unique(keys: pa.ChunkedArray, table: pa.Table, path: str) -> None:
    rows = pa.table({"key": keys, "image_url": table["image_url"]})
    urls = rows.group_by("key").aggregate([("image_url", "count_distinct")])
    twice = urls.filter(pc.greater(urls["image_url_count_distinct"], 1))
    if len(twice):
        example = twice["key"][0].as_py()
        raise DuplicateKeyError(
            f"{len(twice)} products have two different image urls",
            where=path,
            expected="one image_url per product",
            got=f"product {example.replace(chr(9), ' ')!r} with {_examples(rows, example)}",
            fix="Keep one row per product.",
        )


def _examples(rows: pa.Table, key: str) -> str:
    urls = rows.filter(pc.equal(rows["key"], key))["image_url"]
    return " and ".join(pc.unique(urls).to_pylist()[:2])


def _read_json_lines(path: str, ids: pa.Array) -> pa.Table:
    """The rows of the wanted ids, streamed: these files hold all of a shop's text."""
    wanted = set(ids.to_pylist())
    rows: dict[tuple[str | None, str], str] = {}
    known = False
    for number, row in _json_lines(path):
        product, url = _url_of(row)
        known = known or product is not None
        if product in wanted and isinstance(url, str) and url.strip():
            locale = row.get("locale", row.get("product_locale"))
            rows.setdefault((locale if isinstance(locale, str) else None, str(product)), url)
        if number == 1000 and not known:
            break
    if not known:
        raise SchemaError(
            "no row names a product",
            where=path,
            expected="asin and image (ESCI-S), parent_asin and images (Amazon Reviews) or product_id and image_url",
        )
    columns = {"product_id": [p for _, p in rows], "image_url": list(rows.values())}
    if any(locale for locale, _ in rows):
        columns["product_locale"] = [locale or "" for locale, _ in rows]
    return pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})


def _url_of(row: dict[str, Any]) -> tuple[Any, Any]:
    """Product id and image url of one json row, None where it names none."""
    if "parent_asin" in row:
        return row["parent_asin"], _main_picture(row.get("images"))
    if "asin" in row:
        image = row.get("image")
        return row["asin"], _DEAD_SEGMENT.sub("/images/", image) if isinstance(image, str) else None
    return row.get("product_id"), row.get("image_url")


def _main_picture(images: Any) -> str | None:
    """The largest rendition of variant MAIN; `images` is a list of objects, or one object of lists."""
    if isinstance(images, dict):
        lists = {k: v for k, v in images.items() if isinstance(v, list)}
        images = [dict(zip(lists, values, strict=False)) for values in zip(*lists.values(), strict=False)]
    if not isinstance(images, list):
        return None
    main = [image for image in images if isinstance(image, dict) and image.get("variant") == "MAIN"]
    return next((i[size] for i in main[:1] for size in _SIZES if isinstance(i.get(size), str) and i[size]), None)


def _json_lines(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers from 1, and objects, of a json lines file."""
    with reporting(path), fsspec.open(path, "rb") as raw:
        stream = raw
        codec = _CODECS.get(path.rpartition(".")[2].lower())
        head = raw.read(64)
        raw.seek(0)
        if codec and not head.startswith(b"version https://git-lfs"):
            # pyarrow reads all three, so no package for zstd is needed
            stream = io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), codec), 1 << 20)
        number = 0
        while line := stream.readline(_MAX_LINE):
            number += 1
            if line.strip():
                yield number, _object(line, number, path)
        if not number:
            raise EmptyFileError("the file is empty", where=path, fix="Fetch it again.")


def _object(line: bytes, number: int, path: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        if number == 1:
            _tell_other_content(line, path)
        raise CorruptFileError(
            f"line {number} is not JSON: {first_line(error)}", where=path, fix="Fetch it again or mend that line."
        ) from error
    if not isinstance(row, dict):
        raise CorruptFileError(f"line {number} is no JSON object", where=path, got=str(line[:40]))
    return row


def _tell_other_content(line: bytes, path: str) -> None:
    if line.startswith(b"version https://git-lfs"):
        raise LfsPointerError(
            "this is a Git LFS pointer, not the file", where=path, fix="Run `git lfs pull`, or fetch the file itself."
        )
    if line.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"<":
        raise HtmlPageError("this is a web page, not the file", where=path, got=str(line[:40]))
