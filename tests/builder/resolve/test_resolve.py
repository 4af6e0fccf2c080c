from __future__ import annotations

import bz2
import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pcsv
import pyarrow.parquet as pq
import pytest
from file_server import FileServer

from builder.recipe import CatalogueSettings, EsciSettings, Recipe, ResolveSettings
from builder.resolve import resolve, tables
from builder.resolve.stage import pending
from builder.resolve.tables import Format
from sqid_lib import schemas
from sqid_lib.errors import (
    CorruptFileError,
    DuplicateKeyError,
    EmptyFileError,
    HtmlPageError,
    IntegrityError,
    LfsPointerError,
    MissingFileError,
    SchemaError,
    SourceError,
)

MAIN = [("0060538260", "us"), ("B01", "es"), ("B01", "us"), ("NA", "us"), ("nan", "us"), ("null", "us")]
SUPP = [("B09", "us")]
URL = "https://images.example/I/{}.jpg"


@pytest.fixture
def work(tmp_path: Path) -> Path:
    work = tmp_path / "work"
    (work / "sample").mkdir(parents=True)
    for name, keys in (("products", MAIN), ("supp", SUPP)):
        rows = [{"product_id": product, "product_locale": locale, "product_title": "t"} for product, locale in keys]
        pq.write_table(pa.Table.from_pylist(rows, schemas.PRODUCTS_SCHEMA), work / "sample" / f"{name}.parquet")
    return work


def resolved(work: Path, *tables: Path | str) -> list[dict[str, Any]]:
    recipe = Recipe(
        name="t",
        version="1",
        esci=EsciSettings(path="."),
        resolve=ResolveSettings(tables=tuple(str(t) for t in tables)),
    )
    resolve(recipe, work)
    table = pq.read_table(work / "resolve" / "urls.parquet")
    assert table.schema.equals(schemas.RESOLVED_SCHEMA)
    assert table["part"].to_pylist() == ["main"] * len(MAIN) + ["supp"] * len(SUPP)
    assert list(zip(*(table[c].to_pylist() for c in ("product_id", "product_locale")), strict=True)) == MAIN + SUPP
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def urls(work: Path, *tables: Path | str) -> dict[str, str | None]:
    return {f"{r['product_id']}/{r['product_locale']}": r["image_url"] for r in resolved(work, *tables)}


def write(path: Path, data: bytes | str) -> Path:
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def json_lines(rows: Sequence[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def test_csv_gives_urls_statuses_and_sources(work: Path, tmp_path: Path) -> None:
    table = write(
        tmp_path / "urls.csv",
        f"product_id,image_url\n0060538260,{URL.format('a')}\nB01,{URL.format('01RmK%2BJ4pJL')}\nnan,\n"
        f"null,{schemas.GENERIC_IMAGE_URL}\nB09,{URL.format('x%7Cy')}\nOTHER,{URL.format('o')}\n",
    )
    rows = {f"{r['product_id']}/{r['product_locale']}": r for r in resolved(work, table)}
    assert {k: r["image_status"] for k, r in rows.items()} == {
        "0060538260/us": "ok",
        "B01/es": "placeholder",
        "B01/us": "placeholder",
        "NA/us": "missing",
        "nan/us": "missing",
        "null/us": "generic",
        "B09/us": "ok",
    }
    assert rows["B09/us"]["image_url"] == URL.format("x%7Cy")
    assert rows["B01/us"]["image_url"] == URL.format("01RmK%2BJ4pJL")
    assert rows["nan/us"]["image_url"] is None
    assert (rows["nan/us"]["source"], rows["B09/us"]["source"]) == (None, "urls.csv")


def test_the_bad_url_of_a_product_that_is_not_fetched_is_found_here(work: Path, tmp_path: Path) -> None:
    table = write(tmp_path / "u.csv", "product_id,image_url\nNA,javascript:alert(1)\nB09,javascript:alert(1)\n")
    rows = {row["product_id"]: row["image_status"] for row in resolved(work, table)}
    assert (rows["NA"], rows["B09"]) == ("ok", "bad_url")


def test_csv_of_spreadsheets_keeps_ids_as_text(work: Path, tmp_path: Path) -> None:
    lines = ["product_id,image_url", f'0060538260,"{URL.format("a,b")}"', f"NA,{URL.format('na')}"]
    lines.append(f"nan,{URL.format('n')}")
    table = write(tmp_path / "urls.csv", b"\xef\xbb\xbf" + "".join(f"{line}\r\n" for line in lines).encode())
    found = urls(work, table)
    assert found["0060538260/us"] == URL.format("a,b")
    assert (found["NA/us"], found["nan/us"], found["null/us"]) == (URL.format("na"), URL.format("n"), None)


def test_a_locale_column_separates_products_of_one_id(work: Path, tmp_path: Path) -> None:
    rows = [("B01", "us", URL.format("us")), ("B01", "es", URL.format("es")), ("NA", "jp", URL.format("jp"))]
    names = ["product_id", "product_locale", "image_url"]
    table = pa.table([pa.array(c, pa.large_string()) for c in zip(*rows, strict=True)], names=names)
    pq.write_table(table, tmp_path / "urls.parquet")
    found = urls(work, tmp_path / "urls.parquet")
    assert (found["B01/us"], found["B01/es"], found["NA/us"]) == (URL.format("us"), URL.format("es"), None)


def test_the_first_table_with_a_url_wins(work: Path, tmp_path: Path) -> None:
    first = write(tmp_path / "first.csv", f"product_id,image_url\nB01,{URL.format(1)}\nNA,\nnull,  \n")
    second = write(
        tmp_path / "second.csv",
        f"image_url,product_id\n{URL.format(2)},B01\n{URL.format(2)},NA\n{URL.format(2)},null\n",
    )
    rows = {r["product_id"]: (r["image_url"], r["source"]) for r in resolved(work, first, second)}
    assert rows["B01"] == (URL.format(1), "first.csv")
    assert rows["NA"] == rows["null"] == (URL.format(2), "second.csv")
    assert rows["nan"] == (None, None)


def test_no_table_leaves_every_url_missing(work: Path) -> None:
    assert {r["image_status"] for r in resolved(work)} == {"missing"}


ESCI_S: list[dict[str, Any]] = [
    {"type": "error", "asin": "nan", "locale": "us", "error": "not found"},
    {"type": "product", "asin": "B01", "locale": "us", "image": URL.format("us")},
    {"type": "product", "asin": "B01", "locale": "es", "image": URL.format("es")},
    {"type": "product", "asin": "B01", "locale": "us", "image": URL.format("crawled again")},
    {
        "asin": "NA",
        "locale": "us",
        "image": "https://m.media-amazon.com/images/W/IMAGERENDERING_521856-T1/images/I/71abc._AC_SX425_.jpg",
    },
    {"asin": "null", "locale": "us", "image": None},
    {"asin": "B09", "locale": "us", "image": ""},
]


def zstd(data: bytes) -> bytes:
    return bytes(pa.Codec("zstd").compress(data, asbytes=True))


@pytest.mark.parametrize(
    ("suffix", "pack"), [("", bytes), (".gz", gzip.compress), (".bz2", bz2.compress), (".zst", zstd)]
)
def test_esci_s_lines_plain_and_compressed(work: Path, tmp_path: Path, suffix: str, pack: Any) -> None:
    found = urls(work, write(tmp_path / f"esci.json{suffix}", pack(json_lines(ESCI_S))))
    assert (found["B01/us"], found["B01/es"]) == (URL.format("us"), URL.format("es"))
    assert found["NA/us"] == "https://m.media-amazon.com/images/I/71abc._AC_SX425_.jpg"
    assert found["null/us"] is found["nan/us"] is found["B09/us"] is None


def test_amazon_reviews_take_the_best_rendition_of_the_main_image(work: Path, tmp_path: Path) -> None:
    def image(variant: str, hi_res: str | None, large: str | None, thumb: str | None) -> dict[str, str | None]:
        return {"variant": variant, "hi_res": hi_res, "large": large, "thumb": thumb}

    rows = [
        {"parent_asin": "B01", "images": [image("PT01", "p", "p", "p"), image("MAIN", "hi", "large", "thumb")]},
        {"parent_asin": "NA", "images": [image("MAIN", None, "large", "thumb")]},
        {"parent_asin": "nan", "images": [image("MAIN", None, "", "thumb")]},
        {"parent_asin": "null", "images": [image("PT01", "p", "p", "p")]},
        {"parent_asin": "B09", "images": {"variant": ["PT01", "MAIN"], "hi_res": ["p", None], "large": ["p", "l"]}},
        {"parent_asin": "0060538260", "images": []},
    ]
    found = urls(work, write(tmp_path / "meta.jsonl", json_lines(rows)))
    assert found == {
        "B01/us": "hi",
        "B01/es": "hi",
        "NA/us": "large",
        "nan/us": "thumb",
        "null/us": None,
        "B09/us": "l",
        "0060538260/us": None,
    }


@pytest.mark.parametrize("name", ["esci.csv", "esci.parquet"])
def test_the_columns_of_a_format_are_read_from_any_kind_of_file(work: Path, tmp_path: Path, name: str) -> None:
    rows = [{key: row.get(key) for key in ("asin", "locale", "image")} for row in ESCI_S]
    table = pa.Table.from_pylist(rows)
    if name.endswith("csv"):
        pcsv.write_csv(table, tmp_path / name)
    else:
        pq.write_table(table, tmp_path / name)
    found = urls(work, tmp_path / name)
    assert (found["B01/us"], found["B01/es"]) == (URL.format("us"), URL.format("es"))
    assert found["NA/us"] == "https://m.media-amazon.com/images/I/71abc._AC_SX425_.jpg"
    assert found["null/us"] is found["nan/us"] is found["B09/us"] is None


def test_a_format_is_one_entry(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shop = Format(
        "a shop", product_id="sku", image="photo", locale="market", url=lambda name: name and URL.format(name)
    )
    monkeypatch.setattr(tables, "FORMATS", (*tables.FORMATS, shop))
    rows = [{"sku": "B01", "market": "es", "photo": "es"}, {"sku": "NA", "market": "us", "photo": ""}]
    lines = write(tmp_path / "shop.jsonl", json_lines(rows))
    text = write(tmp_path / "shop.csv", "sku,market,photo\nB01,es,es\nNA,us,\n")
    for table in (lines, text):
        found = urls(work, table)
        assert (found["B01/es"], found["B01/us"], found["NA/us"]) == (URL.format("es"), None, None)


def test_a_url_given_twice_is_not_a_conflict(work: Path, tmp_path: Path) -> None:
    table = write(tmp_path / "urls.csv", f"product_id,image_url\nB01,{URL.format(1)}\nB01,{URL.format(1)}\nB01,\n")
    assert urls(work, table)["B01/us"] == URL.format(1)


def test_two_urls_of_one_product_are_refused_and_named(work: Path, tmp_path: Path) -> None:
    table = write(tmp_path / "urls.csv", f"product_id,image_url\nB01,{URL.format(1)}\nB01,{URL.format(2)}\n")
    with pytest.raises(DuplicateKeyError, match=r"urls\.csv.*'B01' with https://images.example/I/1.jpg and .*2\.jpg"):
        resolved(work, table)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"


@pytest.mark.parametrize(
    ("name", "data", "error"),
    [
        ("a.csv", POINTER, LfsPointerError),
        ("a.parquet", POINTER, LfsPointerError),
        ("a.jsonl", POINTER, LfsPointerError),
        ("a.jsonl.zst", POINTER, LfsPointerError),
        ("a.csv", b"<!DOCTYPE html><html></html>", HtmlPageError),
        ("a.parquet", b"<html></html>", HtmlPageError),
        ("a.jsonl", b"<html></html>", HtmlPageError),
        ("a.csv", b"", EmptyFileError),
        ("a.parquet", b"", EmptyFileError),
        ("a.jsonl", b"", EmptyFileError),
        ("a.jsonl.gz", gzip.compress(b"", mtime=0), EmptyFileError),
        ("a.csv", b"asin,url\nB01,x\n", SchemaError),
        ("a.jsonl", b'{"id": 1}\n', SchemaError),
        ("a.csv", b"product_id,image_url\nB01,x,y,z\n", CorruptFileError),
        ("a.parquet", b"PAR1" + b"\x00" * 50, CorruptFileError),
        ("a.jsonl", b'{"asin": "B01", "image": "x"}\n{"asin": "B0', CorruptFileError),
        ("a.jsonl", b"[1]\n", CorruptFileError),
        ("a.jsonl.gz", gzip.compress(json_lines(ESCI_S), mtime=0)[:-12], CorruptFileError),
        ("a.jsonl.zst", zstd(json_lines(ESCI_S))[:-3], CorruptFileError),
        ("a.jsonl.zst", b"not zstd at all", CorruptFileError),
    ],
)
def test_files_that_are_no_table_are_refused_and_nothing_is_written(
    work: Path, tmp_path: Path, name: str, data: bytes, error: type[SourceError]
) -> None:
    table = write(tmp_path / name, data)
    with pytest.raises(error, match=name):
        resolved(work, table)
    assert not (work / "resolve" / "urls.parquet").exists()


@pytest.mark.parametrize("name", ["gone.csv", "gone.parquet", "gone.jsonl.zst"])
def test_missing_tables_are_named(work: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(MissingFileError, match=name):
        resolved(work, tmp_path / name)


def test_json_lines_name_the_damaged_line(work: Path, tmp_path: Path) -> None:
    table = write(tmp_path / "a.jsonl", b'{"asin": "B01"}\n\n{"asin": \n')
    with pytest.raises(CorruptFileError, match="line 3 is not JSON"):
        resolved(work, table)


def test_same_inputs_give_the_same_bytes(work: Path, tmp_path: Path) -> None:
    table = write(tmp_path / "urls.csv", f"product_id,image_url\nB01,{URL.format(1)}\n")
    contents = []
    for _ in range(2):
        resolved(work, table)
        contents.append((work / "resolve" / "urls.parquet").read_bytes())
    assert contents[0] == contents[1]
    assert [p.name for p in (work / "resolve").iterdir()] == ["urls.parquet"]


def test_signatures_and_passwords_of_urls_are_not_kept(work: Path, tmp_path: Path) -> None:
    (tmp_path / "www").mkdir()
    (tmp_path / "www" / "urls.csv").write_text("product_id,image_url\nB01,https://x/1.jpg\n")
    secret = "s3cretPassw0rd"
    with FileServer(tmp_path / "www") as server:
        base = server.url.replace("://", f"://user:{secret}@")
        rows = resolved(work, f"{base}/urls.csv?X-Amz-Signature={secret}")
    assert {row["source"] for row in rows if row["image_url"]} == {"urls.csv"}
    assert all(secret.encode() not in path.read_bytes() for path in (work / "resolve").iterdir())


# -- the images of a catalogue -------------------------------------------------------------------------------------


def catalogue(*tables: Path | str) -> Recipe:
    shop = CatalogueSettings(products="https://shop.example/feed/products.csv?sig=s3cret", locale="de")
    return Recipe(
        name="t", version="1", catalogue=shop, resolve=ResolveSettings(tables=tuple(str(table) for table in tables))
    )


def write_images(work: Path, *images: str | None, keys: Sequence[tuple[str, str]] = MAIN) -> None:
    rows = [{"product_id": p, "product_locale": q, "image": i} for (p, q), i in zip(keys, images, strict=True)]
    table = pa.Table.from_pylist(rows, schemas.CATALOGUE_IMAGES_SCHEMA)
    pq.write_table(table, work / "sample" / "images.parquet", row_group_size=2)


def test_the_images_of_a_catalogue_are_the_first_source(work: Path, tmp_path: Path) -> None:
    own = ("file:a&amp;b.jpg", "row:0:5", f"{URL.format(1)}?a=1&amp;b=2", None, " ", schemas.GENERIC_IMAGE_URL)
    write_images(work, *own)
    table = write(tmp_path / "more.csv", f"product_id,image_url\nB01,{URL.format(7)}\nNA,{URL.format(8)}\n")
    resolve(catalogue(table), work)
    rows = pq.read_table(work / "resolve" / "urls.parquet").to_pylist()
    assert [(row["image_url"], row["image_status"], row["source"]) for row in rows] == [
        ("file:a&amp;b.jpg", "ok", "products.csv"),
        ("row:0:5", "ok", "products.csv"),
        (f"{URL.format(1)}?a=1&b=2", "ok", "products.csv"),
        (URL.format(8), "ok", "more.csv"),
        (None, "missing", None),
        (schemas.GENERIC_IMAGE_URL, "generic", "products.csv"),
        (None, "missing", None),
    ]
    assert pending(catalogue(table), work) == (
        "would look for the image URLs of 7 products in the products table and 1 table"
    )
    assert pending(catalogue(), work) == "would look for the image URLs of 7 products in the products table"


def test_images_of_other_products_are_refused(work: Path) -> None:
    write_images(work, *["file:a.jpg"] * len(MAIN), keys=MAIN[::-1])
    with pytest.raises(IntegrityError, match=r"images\.parquet: the products are not those of sample/products"):
        resolve(catalogue(), work)


def test_local_references_mean_nothing_without_a_catalogue(work: Path, tmp_path: Path) -> None:
    table = write(tmp_path / "urls.csv", "product_id,image_url\nNA,file:/etc/hostname\nB09,file:x.jpg\n")
    write_images(work, *["file:a.jpg"] * len(MAIN))
    rows = {row["product_id"]: row for row in resolved(work, table)}
    assert (rows["B01"]["image_status"], rows["B09"]["image_status"]) == ("missing", "bad_url")
