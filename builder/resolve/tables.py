"""Tables of image URLs: csv, parquet or json lines, in one of the formats of FORMATS."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.compute as pc

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
_MAX_LINE = 64_000_000  # bytes; a longer line is not a row of a table
_HEAD = 1_000  # lines among which one must have the id of a product
_DEAD_SEGMENT = re.compile(r"/images/W/.+?/images/")  # of ESCI-S URLs that no server answers any more
_SIZES = ("hi_res", "large", "thumb")  # of Amazon Reviews 2023, best first


def _as_it_is(image: Any) -> Any:
    return image


def _without_dead_segment(image: Any) -> Any:
    return _DEAD_SEGMENT.sub("/images/", image) if isinstance(image, str) else None


def _largest_main_image(images: Any) -> Any:
    """The largest size of variant MAIN; `images` is a list of objects, or one object of lists."""
    if isinstance(images, dict):
        lists = {k: v for k, v in images.items() if isinstance(v, list)}
        images = [dict(zip(lists, values, strict=False)) for values in zip(*lists.values(), strict=False)]
    if not isinstance(images, list):
        return None
    main = [image for image in images if isinstance(image, dict) and image.get("variant") == "MAIN"]
    return next((i[size] for i in main[:1] for size in _SIZES if isinstance(i.get(size), str) and i[size]), None)


@dataclass(frozen=True)
class Format:
    """A kind of table, recognised by its columns (csv, parquet) or keys (json lines).

    Attributes:
        name: for messages.
        product_id: column of the id; the first format whose column a row has is the row's.
        image: column that holds the URL, or what `url` finds it in.
        locale: column of the locale; a table without it, and a row without one, is about every locale.
        url: value of `image` → URL; anything but text means that there is none.
    """

    name: str
    product_id: str
    image: str
    locale: str = "product_locale"
    url: Callable[[Any], Any] = _as_it_is

    def row(self, row: Mapping[str, Any]) -> tuple[Any, Any, Any]:
        """Id, URL and locale."""
        return row[self.product_id], self.url(row.get(self.image)), row.get(self.locale)


FORMATS = (
    Format("SQID", product_id="product_id", image="image_url"),
    Format("Amazon Reviews 2023", product_id="parent_asin", image="images", url=_largest_main_image),
    Format("ESCI-S", product_id="asin", image="image", locale="locale", url=_without_dead_segment),
)


def image_urls(path: str, locales: pa.ChunkedArray, ids: pa.ChunkedArray) -> pa.Array:
    """The URL that a table gives for each product, null where it gives none.

    Args:
        path: local path or URL of a csv or parquet file, or of json lines, which may be compressed (gz, bz2, zst).
        locales, ids: string[N] each, the keys looked for.

    Returns:
        string[N]; blank URLs are null.

    Raises:
        SourceError: the file does not exist, is not a table, or has the columns of no format.
        DuplicateKeyError: a csv or parquet file gives a product two URLs. In json lines, which come from crawls, the
            first URL of a product counts.
    """
    table = _read_json_lines(path, pc.unique(ids)) if _JSON_LINES.search(path) else _read_columns(path)
    blank = pc.equal(pc.utf8_trim_whitespace(table["image_url"]), "")
    table = table.filter(pc.invert(blank)).drop_null()  # a null mask drops null URLs too
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
            f"{len(twice)} products have two different image URLs",
            where=path,
            expected="one image_url per product",
            got=f"product {example.replace(chr(9), ' ')!r} with {_examples(rows, example)}",
            fix="Keep one row per product.",
        )


def _examples(rows: pa.Table, key: str) -> str:
    urls = rows.filter(pc.equal(rows["key"], key))["image_url"]
    return " and ".join(pc.unique(urls).to_pylist()[:2])


def _read_columns(path: str) -> pa.Table:
    """product_id, image_url and perhaps product_locale of a csv or parquet file."""
    names = column_names(path)
    found = next((f for f in FORMATS if {f.product_id, f.image} <= set(names)), FORMATS[0])
    columns = {found.product_id: "product_id", found.image: "image_url", found.locale: "product_locale"}
    schema = pa.schema([(name, pa.string()) for name in columns if name != found.locale or name in names])
    table = read_table(path, schema).rename_columns([columns[name] for name in schema.names])
    if found.url is not _as_it_is:
        urls = [found.url(value) for value in table["image_url"].to_pylist()]
        table = table.set_column(1, "image_url", pa.chunked_array([pa.array(urls, pa.string())]))
    return table


def _read_json_lines(path: str, ids: pa.Array) -> pa.Table:
    """The same for json lines, only the rows of these ids: these files hold all the text of a shop."""
    wanted = set(ids.to_pylist())
    rows: dict[tuple[str | None, str], str] = {}
    known = False
    for number, row in _json_lines(path):
        found = next((f for f in FORMATS if f.product_id in row), None)
        if found is not None:
            product, url, locale = found.row(row)
            known = known or product is not None
            if isinstance(product, str) and product in wanted and isinstance(url, str) and url.strip():
                rows.setdefault((locale if isinstance(locale, str) else None, product), url)
        if number == _HEAD and not known:
            break
    if not known:
        raise SchemaError(
            "no row has the id of a product",
            where=path,
            expected=" or ".join(f"{f.product_id} and {f.image} ({f.name})" for f in FORMATS),
        )
    columns = {"product_id": [p for _, p in rows], "image_url": list(rows.values())}
    if any(locale for locale, _ in rows):
        columns["product_locale"] = [locale or "" for locale, _ in rows]
    return pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})


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
            raise EmptyFileError("the file is empty", where=path, fix="Download it again.")


def _object(line: bytes, number: int, path: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        if number == 1:
            _raise_if_other_content(line, path)
        raise CorruptFileError(
            f"line {number} is not JSON: {first_line(error)}", where=path, fix="Download it again or correct that line."
        ) from error
    if not isinstance(row, dict):
        raise CorruptFileError(f"line {number} is not a JSON object", where=path, got=str(line[:40]))
    return row


def _raise_if_other_content(line: bytes, path: str) -> None:
    if line.startswith(b"version https://git-lfs"):
        raise LfsPointerError(
            "this is a Git LFS pointer, not the file",
            where=path,
            fix="Run `git lfs pull`, or download the file.",
        )
    if line.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"<":
        raise HtmlPageError("this is a web page, not the file", where=path, got=str(line[:40]))
