"""csv tables with columns of unknown names: texts with line breaks, names as they are, and the line of a row."""

from __future__ import annotations

import logging
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqid_lib.errors import CorruptFileError
from sqid_lib.tables.delimited import csv_header, csv_line, read_csv_texts

SHOP = 'Sku;Title;Info\r\n\r\n# made by hand\r\n001;"a ""b""\r\nc;d";\r\n002; "x" ;2\r\n\r\n1e5;Grüße;3\r\n'


def written(folder: Path, data: str | bytes, name: str = "a.csv") -> Path:
    path = folder / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_names_and_cells_are_as_in_the_file(tmp_path: Path, encoding: str) -> None:
    path = written(tmp_path, SHOP.encode(encoding))
    assert csv_header(path, ["sku"]) == ["Sku", "Title", "Info"]
    table = read_csv_texts(path, ["Title", "Sku"], ["sku"])
    assert table.to_pydict() == {"Title": ['a "b"\r\nc;d', "x", "Grüße"], "Sku": ["001", "002", "1e5"]}
    assert read_csv_texts(path, ["Info"]).to_pydict() == {"Info": [None, "2", "3"]}


def test_excel_breaks_lines_within_cells_of_windows_1252_as_unix_does(tmp_path: Path) -> None:
    path = written(tmp_path, 'Sku;Title\r\n1;"Grüße\naus Köln"\r\n'.encode("cp1252"))
    assert read_csv_texts(path, ["Title"]).to_pydict() == {"Title": ["Grüße\naus Köln"]}


def test_the_line_of_a_row_counts_blank_lines_comments_and_line_breaks(tmp_path: Path) -> None:
    path = written(tmp_path, SHOP)
    assert [csv_line(path, row) for row in range(3)] == [4, 6, 8]


def test_a_small_file_takes_little_memory(tmp_path: Path) -> None:
    path = written(tmp_path, SHOP)
    tracemalloc.start()
    csv_header(path)
    read_csv_texts(path, ["Sku"])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 32 << 20


def test_hints_decide_the_delimiter(tmp_path: Path) -> None:
    path = written(tmp_path, "sku;title, with a lot, of commas, in it\n1;2\n")
    assert csv_header(path) == ["sku;title", "with a lot", "of commas", "in it"]
    assert csv_header(path, ["sku"]) == ["sku", "title, with a lot, of commas, in it"]


def test_a_header_in_another_encoding_than_its_first_megabyte_shows(tmp_path: Path) -> None:
    path = written(tmp_path, ("name\n" + "ä" * (1 << 20)).encode())  # the first megabyte ends within a letter
    assert csv_header(path) == ["name"]


def test_a_row_of_another_width_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, "sku,title\n1,a\n2,b,c\n")
    with pytest.raises(CorruptFileError, match="line 3 has another number of columns"):
        read_csv_texts(path, ["sku"])


def test_a_cell_that_swallowed_rows_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = written(tmp_path, 'sku,title,info,price\n1,"x,y,1\n2,a,b,2\n3,b,c,3\n4,19",d,4\n')
    with caplog.at_level(logging.WARNING):
        assert read_csv_texts(path, ["sku", "title"]).to_pydict()["sku"] == ["1"]
    assert "line 2: a cell of 4 lines, some of which look like rows" in caplog.text


def test_prose_of_several_lines_is_not_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = written(tmp_path, 'sku,title\n1,"Soft, warm\nRed, blue\n\nand green, too"\n')
    with caplog.at_level(logging.WARNING):
        read_csv_texts(path, ["title"])
    assert not caplog.text


@given(
    cells=st.lists(st.tuples(st.text("ab\"',;\n", max_size=6), st.text("xy \n", max_size=4)), min_size=1, max_size=6)
)
def test_rows_written_by_python_are_on_the_line_that_is_named(
    tmp_path_factory: pytest.TempPathFactory, cells: list[tuple[str, str]]
) -> None:
    lines = ["sku,title"]
    places = []
    for first, second in cells:
        places.append(len("\n".join(lines).split("\n")) + 1)
        lines.append('"{}","{}"'.format(first.replace('"', '""'), second))
    path = written(tmp_path_factory.mktemp("csv"), "\n".join(lines) + "\n")
    assert [csv_line(path, row) for row in range(len(cells))] == places
    table = read_csv_texts(path, ["sku", "title"])
    assert table.column("sku").to_pylist() == [first.strip() or None for first, _ in cells]
