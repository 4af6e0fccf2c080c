"""csv as programs write it: what can mean one thing only is read, the rest is an error that names the line."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import logging
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sqid_lib import schemas
from sqid_lib.errors import CorruptFileError, EmptyFileError, HtmlPageError, LfsPointerError, SchemaError, SourceError
from sqid_lib.tables import reader

URLS = schemas.URLS_FILE_SCHEMA
ROWS = [("0060538260", "https://x.example/a,b.jpg"), ("B2", None), ("B3", "https://x.example/3.jpg")]
PLAIN = 'product_id,image_url\n0060538260,"https://x.example/a,b.jpg"\nB2,\nB3,https://x.example/3.jpg\n'
SEMICOLONS = "product_id;image_url\r\n0060538260;https://x.example/a,b.jpg\r\nB2;\r\nB3;https://x.example/3.jpg\r\n"
TABS = SEMICOLONS.replace(";", "\t")
SPACES = 'product_id, image_url\n 0060538260 , "https://x.example/a,b.jpg" \nB2, \n\u00a0B3, https://x.example/3.jpg\n'
COMMENTS = "# made by hand\n\n" + PLAIN.replace("B2", "# and here\nB2")
OTHER_COLUMNS = 'title,IMAGE_URL,product_id\n"5"" TV,\nnew","https://x.example/a,b.jpg",0060538260\n6" pan,,B2\n'
OTHER_COLUMNS += "Café,https://x.example/3.jpg,B3\n"
ZSTD = pa.Codec("zstd")

# name → the file, its content, and what the log says of it
FILES: dict[str, tuple[str, bytes, str]] = {
    "plain": ("a.csv", PLAIN.encode(), ""),
    "bom": ("a.csv", b"\xef\xbb\xbf" + PLAIN.encode(), ""),
    "no line end": ("a.csv", PLAIN.rstrip().encode(), ""),
    "old Mac": ("a.csv", PLAIN.replace("\n", "\r").encode(), ""),
    "semicolons": ("a.csv", SEMICOLONS.encode(), "semicolon"),
    "tabs": ("a.tsv", TABS.encode(), "tab"),
    "bars": ("a.txt", TABS.replace("\t", "|").encode(), "vertical bar"),
    "Excel": ("a.csv", b"sep=;\r\n" + SEMICOLONS.encode(), "semicolon"),
    "UTF-16": ("a.txt", TABS.encode("utf-16"), "UTF-16"),
    "UTF-16 big-endian": ("a.csv", b"\xfe\xff" + PLAIN.encode("utf-16-be"), "UTF-16"),
    "capitals": ("a.csv", PLAIN.replace("product_id,image_url", "PRODUCT_ID,Image_URL").encode(), "another case"),
    "spaces": ("a.csv", SPACES.encode(), "spaces around cells"),
    "comments": ("a.csv", COMMENTS.encode(), "1 comment lines between the rows"),
    "other columns": ("a.csv", OTHER_COLUMNS.encode(), "another case"),
    "Windows-1252 elsewhere": ("a.csv", OTHER_COLUMNS.encode("cp1252"), "Windows-1252"),
    "gzip": ("a.csv.gz", gzip.compress(PLAIN.encode(), mtime=0), "gzip"),
    "bz2": ("a.tsv.bz2", bz2.compress(TABS.encode()), "bz2, tab"),
    "zstd": ("a.csv.zst", ZSTD.compress(PLAIN.encode(), asbytes=True), "zstd"),
    "gzip by content": ("a.csv", gzip.compress(PLAIN.encode(), mtime=0), "gzip"),
    "already decompressed": ("a.csv.gz", PLAIN.encode(), ""),
}


@pytest.mark.parametrize("name", FILES)
def test_what_is_certain_is_read_and_the_log_says_how(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    file, data, said = FILES[name]
    (tmp_path / file).write_bytes(data)
    with caplog.at_level(logging.INFO, logger="sqid_lib"):
        table = reader.read_table(str(tmp_path / file), URLS)
    assert list(zip(*(column.to_pylist() for column in table.columns), strict=True)) == ROWS
    assert table.schema == URLS
    assert said in caplog.text and (said or not caplog.text)
    assert set(reader.column_names(str(tmp_path / file))) >= {"product_id", "image_url"}


def test_windows_1252_is_read_from_a_file_with_the_line_ends_of_windows(tmp_path: Path) -> None:
    text = "product_id;image_url\r\nB1;https://x.example/café–1.jpg\r\n"
    (tmp_path / "a.csv").write_bytes(text.encode("cp1252"))
    table = reader.read_table(str(tmp_path / "a.csv"), URLS)
    assert table.column("image_url").to_pylist() == ["https://x.example/café–1.jpg"]
    (tmp_path / "a.csv").write_bytes(text.replace("\r\n", "\n").encode("cp1252"))
    with pytest.raises(CorruptFileError, match=r"line 2 is not UTF-8.*CSV UTF-8"):
        reader.read_table(str(tmp_path / "a.csv"), URLS)
    (tmp_path / "a.csv").write_bytes(text.encode("cp1252") + b"B2;\x81\r\n")  # no letter of Windows-1252
    with pytest.raises(CorruptFileError, match="line 2 is not UTF-8"):
        reader.read_table(str(tmp_path / "a.csv"), URLS)


def rows(count: int) -> list[str]:
    return [f"B{n},https://x.example/{n}.jpg" for n in range(count)]


@pytest.mark.parametrize(
    ("stray", "said"),
    [
        ('"B7,https://x.example/7.jpg', r"line 9 is never closed"),
        ('B7,"https://x.example/7.jpg', r"line 9 is never closed"),
        ('"B7"x,https://x.example/7.jpg', r"opens in line 9 ends within a cell in line 9"),
        ('B7,"https://x.example/7.jpg\nB,"x', r"opens in line 9 ends within a cell in line 10"),
    ],
)
def test_a_stray_quote_is_an_error_with_its_line(tmp_path: Path, stray: str, said: str) -> None:
    lines = rows(462)
    lines[7] = stray
    path = tmp_path / "a.csv"
    path.write_text("\n".join(["product_id,image_url", *lines]) + "\n")
    with pytest.raises(CorruptFileError, match=said):
        reader.read_table(str(path), URLS)


def test_a_line_break_within_a_cell_of_a_url_is_an_error_with_its_line(tmp_path: Path) -> None:
    lines = rows(9)
    lines[3], lines[5] = 'B3,"https://x.example/3.jpg', 'B5,https://x.example/5.jpg"'
    path = tmp_path / "a.csv"
    path.write_text("\n".join(["product_id,image_url", *lines]) + "\n")
    with pytest.raises(CorruptFileError, match=r"line 5: a cell with a line break"):
        reader.read_table(str(path), URLS)
    path.write_text('query_id,source\n1,other\n2,"other\n3,other"\n4,other\n')
    with pytest.raises(CorruptFileError, match=r"line 3: a cell with a line break"):
        reader.read_table(str(path), schemas.SOURCES_SCHEMA)


@pytest.mark.parametrize(
    ("data", "error", "said"),
    [
        (
            b"product_id,image_url\nB1,http://x\n\nB2,http://x,more\n",
            CorruptFileError,
            r"line 4 .*got 3.*[Pp]ut quotes",
        ),
        (b"B1,http://x\nB2,http://y\n", SchemaError, "'product_id' is missing.*got B1, http://x"),
        (b"product_id,image_url,PRODUCT_ID,IMAGE_URL\na,b,c,d\n", None, ""),
        (b"Product_ID,image_url,PRODUCT_ID\na,b,c\n", SchemaError, "there twice"),
        ("product_id,image_url\n".encode("utf-16-le"), CorruptFileError, "Save it as UTF-8"),
        (b"PK\x03\x04\0\0\0\0", CorruptFileError, "Save it as csv"),
        (b"# only a comment\n", EmptyFileError, "no rows"),
        (b"\n\n", EmptyFileError, "no rows"),
        (b"x" * 200_000, CorruptFileError, "no header"),
        (gzip.compress(b"<!doctype html>", mtime=0), HtmlPageError, "web page"),
        (gzip.compress(b"version https://git-lfs.github.com/spec/v1\n", mtime=0), LfsPointerError, "pointer"),
        (gzip.compress(b"product_id,image_url\nB1,x\n" * 99, mtime=0)[:40], CorruptFileError, "damaged"),
        (b"\xff\xfep\0r\0o", CorruptFileError, "damaged|'product_id' is missing"),
    ],
)
def test_the_rest_is_refused_with_its_reason(
    tmp_path: Path, data: bytes, error: type[SourceError] | None, said: str
) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(data)
    if error is None:  # the official names win over the same in capitals
        assert reader.read_table(str(path), URLS).to_pylist() == [{"product_id": "a", "image_url": "b"}]
        return
    with pytest.raises(error, match=said) as raised:
        reader.read_table(str(path), URLS)
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)


def test_a_header_alone_is_a_table_without_rows(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("product_id,image_url\n")
    table = reader.read_table(str(tmp_path / "a.csv"), URLS)
    assert table.num_rows == 0 and table.schema == URLS


def test_optional_columns_are_read_where_they_are(tmp_path: Path) -> None:
    wanted = pa.schema([*URLS, ("product_locale", pa.string())])
    (tmp_path / "a.csv").write_text("product_id,image_url\nB1,x\n")
    (tmp_path / "b.csv").write_text("product_locale,product_id,image_url\nes,B1,x\n")
    assert reader.read_table(str(tmp_path / "a.csv"), wanted, ("product_locale",)).column_names == URLS.names
    assert reader.read_table(str(tmp_path / "b.csv"), wanted, ("product_locale",)).to_pylist() == [
        {"product_id": "B1", "image_url": "x", "product_locale": "es"}
    ]
    with pytest.raises(SchemaError, match="'product_locale' is missing"):
        reader.read_table(str(tmp_path / "a.csv"), wanted)


def test_a_cell_of_three_megabytes_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"product_id,image_url\nB1,{'x' * 3_000_000}\nB2,y\n")
    table = reader.read_table(str(tmp_path / "a.csv"), URLS)
    assert [len(url) for url in table.column("image_url").to_pylist()] == [3_000_000, 1]


def test_numbers_with_a_fraction_of_zero_are_ids(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("query_id,source\n7.0,other\n 8 ,\n,x\n")  # pandas after a merge
    assert reader.read_table(str(path), schemas.SOURCES_SCHEMA).column("query_id").to_pylist() == [7, 8, None]
    path.write_text("query_id,source\n7.5,other\n")
    with pytest.raises(SchemaError, match=r"'query_id' cannot be read as int64.*7\.5"):
        reader.read_table(str(path), schemas.SOURCES_SCHEMA)


CELLS = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\0\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029")
)


@settings(max_examples=200, deadline=None)
@given(
    cells=st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=5),
    delimiter=st.sampled_from(",\t;|"),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
    line_end=st.sampled_from(["\n", "\r\n"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)
def test_what_pythons_csv_writes_is_read_back(
    tmp_path_factory: pytest.TempPathFactory,
    cells: list[tuple[str, str]],
    delimiter: str,
    quoting: int,
    line_end: str,
    encoding: str,
) -> None:
    stream = io.StringIO()
    writer = csv.writer(stream, delimiter=delimiter, quoting=quoting, lineterminator=line_end)  # type: ignore[arg-type]
    writer.writerows([URLS.names, *cells])
    path = tmp_path_factory.mktemp("c") / "a.csv"
    path.write_bytes(stream.getvalue().encode(encoding))
    table = reader.read_table(str(path), URLS)
    spaces = pa.compute.utf8_trim_whitespace
    expected = [tuple(spaces(cell).as_py() or None for cell in map(pa.scalar, row)) for row in cells]
    found = list(zip(*(column.to_pylist() for column in table.columns), strict=True))
    assert found == expected
