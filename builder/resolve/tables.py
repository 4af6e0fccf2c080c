"""Tables of image URLs: csv, parquet or JSON, in one of the formats of FORMATS."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from sqid_lib import sources
from sqid_lib.errors import CorruptFileError, DuplicateKeyError, SchemaError
from sqid_lib.files import File
from sqid_lib.joined.image_status import clean_urls
from sqid_lib.joined.matches import both_sides, warn
from sqid_lib.tables.columns import is_text
from sqid_lib.tables.content import JSON, PARQUET
from sqid_lib.tables.json_rows import json_objects
from sqid_lib.tables.keys import trimmed
from sqid_lib.tables.reader import check_columns, column_names, conform, open_parquet, read_table, reporting, table_kind

_HEAD = 1_000  # objects among which one must have the id of a product
_BATCH_ROWS = 16_384
_EXAMPLES = 3
_KEYS = pa.schema([(name, pa.string()) for name in ("product_id", "product_locale")])
_ROWS = pa.schema([*_KEYS, ("image_url", pa.string())])
_DEAD_SEGMENT = re.compile(r"/images/W/.+?/images/")  # of ESCI-S URLs that no server answers any more
_SIZES = ("hi_res", "large", "thumb")  # of Amazon Reviews 2023, best first


def _as_it_is(image: Any) -> Any:
    return image


def _without_dead_segment(image: Any) -> Any:
    return _DEAD_SEGMENT.sub("/images/", image) if isinstance(image, str) else None


def _largest_main_image(images: Any) -> Any:
    """The largest size of variant MAIN; `images` is a list of objects, one object of lists, or either as JSON."""
    if isinstance(images, str):
        try:
            images = json.loads(images)
        except (ValueError, RecursionError):
            return None
    if isinstance(images, dict):
        lists = {k: v for k, v in images.items() if isinstance(v, list)}
        images = [dict(zip(lists, values, strict=False)) for values in zip(*lists.values(), strict=False)]
    if not isinstance(images, list):
        return None
    main = [image for image in images if isinstance(image, dict) and image.get("variant") == "MAIN"]
    return next((i[size] for i in main[:1] for size in _SIZES if isinstance(i.get(size), str) and i[size]), None)


@dataclass(frozen=True)
class Format:
    """A kind of table, recognised by its columns (csv, parquet) or keys (JSON).

    Attributes:
        name: for messages.
        product_id: column of the id; in JSON the first format whose key an object has is the object's.
        image: column that holds the URL, or what `url` finds it in.
        locale: column of the locale; a table without it, and a row without one, is about every locale.
        url: value of `image` → URL; anything but text means that there is none.
        crawled: the rows come from a crawl: of several URLs of a product the first one counts, where another table
            contradicts itself, and a row that cannot be read is left out.
    """

    name: str
    product_id: str
    image: str
    locale: str = "product_locale"
    url: Callable[[Any], Any] = _as_it_is
    crawled: bool = False


FORMATS = (
    Format("SQID", product_id="product_id", image="image_url"),
    Format("Amazon Reviews 2023", product_id="parent_asin", image="images", url=_largest_main_image, crawled=True),
    Format("ESCI-S", product_id="asin", image="image", locale="locale", url=_without_dead_segment, crawled=True),
)


def image_urls(address: str, products: pa.Table) -> pa.Array:
    """The URL that a table gives for each product, null where it gives none.

    Warns where under half of the table's rows, or of the products if they are fewer, match.

    Args:
        address: local path or URL (http, https, hf) of a csv, json or parquet file; see `tables.reader` for the kinds
            that are read. Remote files are downloaded into the cache.
        products: product_id, product_locale: string[N] each, the keys looked for.

    Returns:
        string[N]; blank URLs are null.

    Raises:
        SourceError: the file does not exist, is not a table, or has the columns of no format.
        DuplicateKeyError: a product has two URLs, in a format that is not crawled.
    """
    file = sources.download(sources.find_file(address))
    rows = _Rows(file, pc.unique(products["product_id"]))
    {PARQUET: _read_parquet, JSON: _read_json}.get(table_kind(file), _read_csv)(file, rows)
    return rows.look_up(products)


@dataclass
class _Rows:
    """The rows of a table that have an id looked for; of the others only how many there are, and examples.

    Attributes:
        ids: those looked for.
        count: rows that have an id, in all.
        others: keys of the first rows with another id.
        parts: tables of `_ROWS`.
        crawled: as in Format.
    """

    file: File
    ids: pa.Array
    count: int = 0
    others: list[dict[str, Any]] = field(default_factory=list)
    parts: list[pa.Table] = field(default_factory=list)
    crawled: bool = False

    def add(self, format: Format, table: pa.Table) -> None:
        """Keep what is needed of a table with the columns of a format."""
        where = str(self.file)
        names = {format.product_id: "product_id", format.locale: "product_locale"}
        have = pa.schema([(name, pa.string()) for name in names if name in table.column_names])
        keys = trimmed(conform(table, have, where).rename_columns([names[name] for name in have.names]), where)
        if len(have) == 1:
            keys = keys.append_column("product_locale", pa.nulls(len(keys), pa.string()))
        wanted = pc.is_in(keys["product_id"], value_set=self.ids)
        self.count += len(keys) - keys["product_id"].null_count
        if len(self.others) < _EXAMPLES:
            rest = pc.and_(pc.invert(wanted), pc.is_valid(keys["product_id"]))
            self.others += keys.filter(rest).slice(0, _EXAMPLES).to_pylist()
        images = table[format.image]
        if is_text(images.type):
            image = pa.schema([(format.image, pa.string())])
            images = conform(table, image, where)[format.image]
        urls: pa.ChunkedArray | pa.Array = images.filter(wanted)
        if format.url is not _as_it_is:
            urls = _texts([format.url(value) for value in urls.to_pylist()], where)
        self.crawled = self.crawled or format.crawled
        self.parts.append(keys.filter(wanted).append_column("image_url", urls).select(_ROWS.names))

    def look_up(self, products: pa.Table) -> pa.Array:
        """The result of `image_urls`."""
        where = str(self.file)
        table = trimmed(pa.concat_tables([_ROWS.empty_table(), *self.parts]), where)
        table = table.set_column(2, "image_url", clean_urls(table["image_url"], where)).combine_chunks()
        stated = pc.is_valid(table["product_locale"])
        by_key, by_id = table.filter(stated), table.filter(pc.invert(stated))
        sides = (_key(by_key), by_key, _key(products)), (by_id["product_id"], by_id, products["product_id"])
        matched = pc.or_(*(pc.is_in(wanted, value_set=keys.combine_chunks()) for keys, _, wanted in sides))
        self._warn_of_mismatch(products, pc.sum(matched).as_py() or 0, table)
        return pc.coalesce(*(self._urls(*side) for side in sides)).combine_chunks()

    def _urls(self, keys: pa.ChunkedArray, table: pa.Table, wanted: pa.ChunkedArray) -> pa.ChunkedArray:
        there = pc.is_valid(table["image_url"])
        keys, urls = keys.filter(there), table["image_url"].filter(there)
        if not self.crawled:
            _check_unique(keys, urls, str(self.file))
        return urls.take(pc.index_in(wanted, value_set=keys.combine_chunks()))

    def _warn_of_mismatch(self, products: pa.Table, matched: int, table: pa.Table) -> None:
        """Warn if few products match, or no row has a URL; `table` holds the rows of products looked for."""
        if 2 * matched < min(self.count, len(products)) or not self.count:
            theirs = pa.Table.from_pylist(self.others[:_EXAMPLES], _KEYS) if self.others else table.select(_KEYS.names)
            warn(
                f"{self.file}: of {self.count:,} rows with an id, {matched:,} are of the {len(products):,} products "
                f"of this build. {both_sides(theirs, products)}"
            )
        elif table["image_url"].null_count == len(table):
            warn(f"{self.file}: {matched:,} products of this build are in it, and none of them has an image URL")


def _key(keys: pa.Table) -> pa.ChunkedArray:
    return pc.binary_join_element_wise(keys["product_locale"], keys["product_id"], "\t")


def _check_unique(keys: pa.ChunkedArray, urls: pa.ChunkedArray, where: str) -> None:
    rows = pa.table({"key": keys, "image_url": urls})
    counts = rows.group_by("key").aggregate([("image_url", "count_distinct")])
    twice = counts.filter(pc.greater(counts["image_url_count_distinct"], 1))
    if len(twice):
        example = twice["key"][0].as_py()
        found = pc.unique(rows.filter(pc.equal(rows["key"], example))["image_url"]).to_pylist()
        raise DuplicateKeyError(
            f"{len(twice)} products have two different image URLs",
            where=where,
            expected="one image_url per product",
            got=f"product {example.replace(chr(9), ' ')!r} with {' and '.join(found[:2])}",
            fix="Keep one row per product.",
        )


def _texts(values: list[Any], where: str) -> pa.Array:
    """The values that are text, null for the others."""
    try:
        return pa.array([value if isinstance(value, str) else None for value in values], pa.string())
    except UnicodeEncodeError as error:
        raise CorruptFileError("a locale or an image URL holds half a character", where=where) from error


# -- the kinds of files ----------------------------------------------------------------------------------------------


def _read_csv(file: File, rows: _Rows) -> None:
    format, names = _format_of(column_names(file, _names()), file)
    rows.add(format, read_table(file, pa.schema([(name, pa.string()) for name in names])))


def _read_parquet(file: File, rows: _Rows) -> None:
    where = str(file)
    with open_parquet(file) as parquet, reporting(where):
        have = parquet.schema_arrow
        format, names = _format_of(have.names, file)
        keys = [name for name in names if name != format.image or format.url is _as_it_is]
        check_columns(have, pa.schema([(name, pa.string()) for name in keys]), where)
        for batch in parquet.iter_batches(_BATCH_ROWS, columns=names):
            rows.add(format, pa.Table.from_batches([batch]))


def _format_of(names: Sequence[str], file: File) -> tuple[Format, list[str]]:
    """The format whose columns these are, and those of its columns that are there."""
    for format in FORMATS:
        if {format.product_id, format.image} <= set(names):
            return format, [n for n in (format.product_id, format.locale, format.image) if n in names]
    raise _unknown(file, f"the columns {', '.join(names)}")


def _names() -> list[str]:
    return [name for f in FORMATS for name in (f.product_id, f.locale, f.image)]


def _unknown(file: File, got: str) -> SchemaError:
    return SchemaError(
        "not a table of image URLs of a known format",
        where=file,
        expected=" or ".join(f"{f.product_id} and {f.image} ({f.name})" for f in FORMATS),
        got=got,
        fix="Rename its columns to those of one format.",
    )


def _read_json(file: File, rows: _Rows) -> None:
    """Batch by batch: files of crawls hold all the text of a shop."""
    wanted, known = set(rows.ids.to_pylist()), False
    batch: list[tuple[str, Any, Any]] = []
    for number, item in json_objects(file):
        format, row = _format_of_object(item)
        product = row.get(format.product_id) if format else None
        known = known or product is not None
        if format and isinstance(product, str):
            rows.crawled = rows.crawled or format.crawled
            if product.strip() in wanted:
                batch.append((product, row.get(format.locale), format.url(row.get(format.image))))
            else:
                rows.count += 1
                if len(rows.others) < _EXAMPLES:
                    locale = row.get(format.locale)
                    rows.others.append({"product_id": product, "product_locale": locale and str(locale)})
        elif format and product is not None and not format.crawled:
            raise SchemaError(
                f"{format.product_id} of object {number} is not text",
                where=file,
                got=repr(product)[:60],
                fix="Write ids as text: a number loses the zeros at its start.",
            )
        if number >= _HEAD and not known:
            break
        if len(batch) == _BATCH_ROWS:
            _add_batch(rows, batch)
            batch = []
    if not known:
        raise _unknown(file, "no object with one of these ids")
    _add_batch(rows, batch)


def _add_batch(rows: _Rows, batch: list[tuple[str, Any, Any]]) -> None:
    columns = zip(*batch, strict=True) if batch else ([], [], [])
    table = pa.table([_texts(list(values), str(rows.file)) for values in columns], names=_ROWS.names)
    rows.add(FORMATS[0], table)


def _format_of_object(item: dict[str, Any]) -> tuple[Format | None, dict[str, Any]]:
    """The format whose id an object has, and the object with its keys as that format spells them."""
    for format in FORMATS:
        if format.product_id in item:
            return format, item
    row = {key.lower(): value for key, value in item.items()}
    return (None, item) if row.keys() == item.keys() else _format_of_object(row)
