"""A made-up shop in the form of the official ESCI files, with drawn images and tables of image URLs."""

from __future__ import annotations

import csv
import hashlib
import io
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Self
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq

from builder.demo.catalogue import (
    BRANDS,
    COLOURS,
    KINDS,
    PATTERNS,
    Goods,
    Look,
    Wish,
    goods,
    grade,
    held_out,
    looks,
    materials,
    query_text,
    title,
)
from sqid_lib import schemas
from sqid_lib.files import replacing

HOST = "https://images.shop.example/"  # a reserved name (RFC 2606); fetch.mirrors maps it to a loopback server
AMAZON = "https://m.media-amazon.com/"  # of the placeholder and generic images only; mapped in the same way
MOVED = "moved/"  # URLs under this path redirect to the image
QUERIES_PER_KIND = 3
PRODUCTS_PER_QUERY = 7  # made for the query: 3 to 5 are exact, the others differ in one attribute
COUNTS = {"products": 462, "queries": 66, "judgments": 1314, "supp": 90}  # of the default selection
SOURCES = ("other", "other", "other", "behavioral", "parse_pattern", "nlqec")


@dataclass(frozen=True)
class Shop:
    """Paths of a shop: the ESCI directory, the tables of image URLs, and the directory to serve as HOST."""

    esci: Path
    tables: tuple[Path, Path]
    images: Path

    @classmethod
    def in_folder(cls, root: Path) -> Self:
        """The shop in `root`, written or not."""
        return cls(root / "esci", (root / schemas.PRODUCT_URLS, root / schemas.SUPP_URLS), root / "images")


@dataclass(frozen=True)
class Listing:
    """A product as the shop lists it."""

    product_id: str
    item: Goods
    title: str
    locale: str = schemas.CLASSIC_LOCALE


@dataclass(frozen=True)
class Search:
    """A query with the products judged for it."""

    wish: Wish
    text: str
    judged: list[Listing]
    split: str = "test"
    small: bool = True
    locale: str = schemas.CLASSIC_LOCALE


def write_shop(root: Path, seed: int = 0) -> Shop:
    """Write the shop `seed` under `root`; the same seed gives the same bytes, and files that are right are kept.

    The default selection (small, test, us) has COUNTS for every seed. The shop also holds what this selection leaves
    out: a train split, large-only judgments, and es and jp products, some of them under ids of us products.
    """
    main, tests = _main_part(seed)
    supp, others = _other_part(seed, main)
    shop = Shop.in_folder(root)
    _write_esci(shop.esci, [*tests, *others], seed)
    for table, listings in zip(shop.tables, (main, supp), strict=True):
        rows = _image_urls(listings, shop.images, seed)
        _write(table, _csv(("product_id", "image_url"), rows))
    _draw_backdrop(shop.images)
    return shop


def _main_part(seed: int) -> tuple[list[Listing], list[Search]]:
    """The us products and the queries of the selection; every query asks for a look that training holds out."""
    rng = Random(f"shop {seed}")
    wishes = []
    for kind in KINDS:
        for look in rng.sample([x for x in looks() if x.kind == kind and held_out(x)], QUERIES_PER_KIND):
            asked = rng.random()  # four in ten ask for a brand or a material, which no image shows
            brand = rng.choice(BRANDS) if asked < 0.2 else None
            wishes.append(Wish(look, brand, rng.choice(materials(kind)) if asked > 0.8 else None))
    own = [[_listing(item, rng) for item in _made_for(wish, rng)] for wish in wishes]
    everything = [listing for listings in own for listing in listings]
    searches = []
    for i, (wish, mine) in enumerate(zip(wishes, own, strict=True)):
        by_label = defaultdict[str, list[Listing]](list)
        for x in rng.sample(everything, len(everything)):
            by_label[grade(wish, x.item)].append(x)
        alike = [x for x in by_label["E"] + by_label["S"] if x not in mine]
        judged = [*mine, *alike[:6], *by_label["C"][:3], *by_label["I"][: 1 + i % 7]]
        searches.append(Search(wish, query_text(wish, rng), judged))
    return everything, searches


def _made_for(wish: Wish, rng: Random) -> list[Goods]:
    """PRODUCTS_PER_QUERY products: some have everything that is asked for, the others differ in one attribute."""
    exact = rng.randrange(3, 6)
    items = []
    for i in range(PRODUCTS_PER_QUERY):
        item = goods(wish.look, rng)
        item = replace(item, brand=wish.brand or item.brand, material=wish.material or item.material)
        if i >= exact:
            item = _changed(item, wish, rng)
        items.append(item)
    return items


def _changed(item: Goods, wish: Wish, rng: Random) -> Goods:
    """The product with another colour or pattern, or another brand or material if the query asks for one."""
    part = rng.choice([*("colour", "pattern") * 2, *(["brand"] * 4 if wish.brand else ["material"] * 4)])
    if part == "brand":
        return replace(item, brand=rng.choice([x for x in BRANDS if x != wish.brand]))
    if part == "material" and wish.material:
        return replace(item, material=rng.choice([x for x in materials(item.look.kind) if x != wish.material]))
    if part == "pattern":
        return replace(
            item, look=replace(item.look, pattern=rng.choice([x for x in PATTERNS if x != item.look.pattern]))
        )
    return replace(item, look=replace(item.look, colour=rng.choice([x for x in COLOURS if x != item.look.colour])))


def _other_part(seed: int, main: list[Listing]) -> tuple[list[Listing], list[Search]]:
    """The supplementary products, and the searches that the default selection leaves out."""
    rng = Random(f"rest of shop {seed}")
    seen = [look for look in looks() if not held_out(look)]

    def search(pool: list[Listing], split: str, small: bool, locale: str = "us") -> Search:
        wish = Wish(rng.choice(pool).item.look)
        text = query_text(wish, rng) if locale == "us" else _foreign(wish.look, locale)
        return Search(wish, text, pool, split, small, locale)

    train = [_listing(goods(rng.choice(seen), rng), rng) for _ in range(120)]
    supp, once = train[:90], train[90:]  # judged twice: supplementary; judged once: left out
    searches = []
    for i in range(30):
        pool = [*supp[i * 3 : i * 3 + 9], *supp[: max(0, i * 3 + 9 - len(supp))], once[i], *rng.sample(main, 3)]
        searches.append(search(pool, "train", True))
    large = [_listing(goods(rng.choice(seen), rng), rng) for _ in range(40)]
    searches += [search([*large[i::8], *rng.sample(main, 4)], "test" if i % 2 else "train", False) for i in range(8)]
    for locale, count in (("es", 12), ("jp", 6)):
        overlapping = rng.sample(main, 24)  # the same ids as in us, for other products
        abroad = [replace(x, locale=locale, title=_foreign(x.item.look, locale)) for x in overlapping]
        searches += [search(rng.sample(abroad, 10), "test", True, locale) for _ in range(count)]
    return supp, searches


def _listing(item: Goods, rng: Random) -> Listing:
    name = "".join(rng.choices("0123456789BCDFGHJKLMNPQRSTVWXYZ", k=8))
    return Listing(f"B0{name}", item, title(item, rng))


_ABROAD = {
    "es": "{kind} de color {colour} ({pattern}), nuevo diseño para el hogar",
    "jp": "{kind} {colour} {pattern} 新しいデザイン 家庭用",
}


def _foreign(look: Look, locale: str) -> str:
    return _ABROAD[locale].format(kind=look.kind, colour=look.colour, pattern=look.pattern)


# -- the ESCI files -------------------------------------------------------------------------------------------------


def _write_esci(root: Path, searches: list[Search], seed: int) -> None:
    examples: list[tuple[object, ...]] = []
    sources: list[tuple[object, ...]] = []
    listings: dict[tuple[str, str], Listing] = {}
    order = Random(f"order {seed}").sample(
        range(len(searches)), len(searches)
    )  # so that a query_id does not show the part
    for query_id, search in sorted(zip((1000 + i for i in order), searches, strict=True)):
        sources.append((query_id, SOURCES[query_id % len(SOURCES)]))
        for x in search.judged:
            listings[x.locale, x.product_id] = x
            judgment = (search.text, query_id, x.product_id, x.locale, grade(search.wish, x.item))
            examples.append((len(examples), *judgment, int(search.small), 1, search.split))
    products = [_product_row(x, Random(f"{seed} {x.locale} {x.product_id}")) for _, x in sorted(listings.items())]
    _write(root / schemas.ESCI_EXAMPLES, _parquet(examples, schemas.EXAMPLES_SCHEMA))
    _write(root / schemas.ESCI_PRODUCTS, _parquet(products, schemas.PRODUCTS_SCHEMA))
    _write(root / schemas.ESCI_SOURCES, _csv(("query_id", "source"), sources))


def _product_row(x: Listing, rng: Random) -> tuple[str | None, ...]:
    bullets = [
        f"MADE TO LAST: {x.item.material} that is easy to care for",
        "A GOOD GIFT: comes in a plain box, ready to wrap",
        f"FROM {x.item.brand.upper()}: 30 days to send it back",
    ]
    description = f"<p>The {x.item.brand} {x.item.look.kind} – for every day.<br></p>" if rng.random() < 0.5 else ""
    colour = x.item.look.colour.title() if rng.random() < 0.7 else None
    points = "\n".join(bullets[: rng.randrange(1, 4)]) if rng.random() < 0.85 else None
    brand = x.item.brand if rng.random() < 0.97 else None
    return x.product_id, x.title, description, points, brand, colour, x.locale


# -- images and their URLs ------------------------------------------------------------------------------------------


def _image_urls(listings: list[Listing], images: Path, seed: int) -> list[tuple[str, str]]:
    """Rows of a table of image URLs; draws the images. About one product in eight has no usable image."""
    from PIL import Image

    placeholders = sorted(schemas.PLACEHOLDER_IMAGE_IDS)
    rows, last = [], ""
    for i, x in enumerate(listings):
        rng = Random(f"picture {seed} {x.product_id}")  # another word would change every image
        extension, kind = (("jpg", "JPEG"), ("jpg", "JPEG"), ("png", "PNG"), ("webp", "WEBP"))[i % 4]
        name = f"{_image_id(x)}._AC_SX{rng.choice((160, 192, 240))}_.{extension}"
        url, path = f"{HOST}I/{name}", images / "I" / name
        if i % 16 == 5:  # no URL is known: an empty cell, or no row at all
            if i % 32 == 5:
                rows.append((x.product_id, ""))
            continue
        if i % 37 == 7:
            url = f"{AMAZON}images/I/{quote(placeholders[i % len(placeholders)])}._AC_.jpg"
        elif i % 101 == 9:
            url = schemas.GENERIC_IMAGE_URL
        elif i % 97 == 11:
            url = f"{HOST}I/gone-{name}"  # no such file: 404
        elif i % 149 == 12:
            _write(path, b"<!doctype html><title>Sorry</title>")
        elif i % 67 == 13 and last:
            url = last  # two products, one image
        elif not path.exists():
            from builder.demo.drawings import draw

            side = 192 if i % 5 else 256
            image = draw(x.item.look, rng, (side, 192))
            if i % 24 == 6:
                image = image.convert("P", palette=Image.Palette.ADAPTIVE)
            buffer = io.BytesIO()
            image.save(buffer, kind, **({} if kind == "PNG" else {"quality": 90}))
            data = buffer.getvalue()
            _write(path, data[: len(data) // 2] if i % 211 == 14 else data)  # truncated: cannot be decoded
        last = url
        rows.append((x.product_id, url.replace(f"{HOST}I/", f"{HOST}{MOVED}I/") if i % 19 == 15 else url))
    return rows


def _image_id(x: Listing) -> str:
    return "71" + hashlib.sha256(x.product_id.encode()).hexdigest()[:8] + "L"


def _draw_backdrop(images: Path) -> None:
    from builder.demo.drawings import backdrop

    path = images / schemas.GENERIC_IMAGE_URL.removeprefix(AMAZON)
    if not path.exists():
        buffer = io.BytesIO()
        backdrop().save(buffer, "JPEG")
        _write(path, buffer.getvalue())


# -- bytes ----------------------------------------------------------------------------------------------------------


def _parquet(rows: Sequence[tuple[object, ...]], schema: pa.Schema) -> bytes:
    columns = [pa.array(column, field.type) for column, field in zip(zip(*rows, strict=True), schema, strict=True)]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_arrays(columns, schema=schema), buffer)
    return buffer.getvalue()


def _csv(header: tuple[str, ...], rows: Sequence[tuple[object, ...]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue().encode()


def _write(path: Path, data: bytes) -> None:
    """Write atomically; a file that holds these bytes already is kept, so that a build finds no change."""
    if path.exists() and path.read_bytes() == data:
        return
    with replacing(path) as part:
        part.write_bytes(data)
