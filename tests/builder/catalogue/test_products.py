"""Stage sample of a catalogue: which rows come out, in which order and types, and every bad row with its place."""

from __future__ import annotations

import decimal
import json
import logging
import random
import unicodedata
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from catalogues import rows, sampled, shop
from hypothesis import given, settings
from hypothesis import strategies as st

from builder import pipeline, recipe, stages
from builder.catalogue import tables
from builder.plan import plan
from builder.sample import sample
from builder.stamps import Stamps
from sqid_lib import schemas
from sqid_lib.errors import (
    ContractError,
    CorruptFileError,
    CountError,
    DuplicateKeyError,
    EmptyFileError,
    RecipeError,
    SchemaError,
    SqidError,
    TextLengthError,
)
from sqid_lib.tables import spool

GOLDEN = """sku;title;description;marke;farbe;bild;preis
P2;"Größe 42, weiß";"Leichter Schuh.
Für Straßen & Wege";Müller;weiß;https://x.example/2.jpg;19.90
P10;日本語の靴　赤;軽い靴です。;ブランド;赤;;5
P1;„Über“ – Hose;;;grün;https://x.example/1.jpg|https://x.example/1b.jpg;
"""


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_german_and_japanese_texts(tmp_path: Path, encoding: str) -> None:
    made = sampled(tmp_path, GOLDEN.encode(encoding), 'keep = ["preis"]\n')
    assert made["products"].to_pylist() == [
        {
            **{"product_id": "P1", "product_title": "„Über“ – Hose", "product_description": None},
            **{"product_bullet_point": None, "product_brand": None, "product_color": "grün", "product_locale": "de"},
            **{"preis": None, "image_count": 2},
        },
        {
            **{"product_id": "P10", "product_title": "日本語の靴　赤", "product_description": "軽い靴です。"},
            **{
                "product_bullet_point": None,
                "product_brand": "ブランド",
                "product_color": "赤",
                "product_locale": "de",
            },
            **{"preis": 5.0, "image_count": 0},
        },
        {
            **{"product_id": "P2", "product_title": "Größe 42, weiß"},
            "product_description": "Leichter Schuh.\nFür Straßen & Wege",
            **{"product_bullet_point": None, "product_brand": "Müller", "product_color": "weiß"},
            **{"product_locale": "de", "preis": 19.9, "image_count": 1},
        },
    ]
    assert made["images"].schema == schemas.CATALOGUE_IMAGES_SCHEMA
    assert rows(made["images"], *schemas.CATALOGUE_IMAGES_SCHEMA.names) == [
        ("P1", "de", "https://x.example/1.jpg"),
        ("P10", "de", None),
        ("P2", "de", "https://x.example/2.jpg"),
    ]
    further = pa.schema([("preis", pa.float64()), ("image_count", pa.int32())])
    assert made["products"].schema == pa.schema([*schemas.SAMPLED_PRODUCTS_SCHEMA, *further])
    assert made["supp"].schema == schemas.SAMPLED_PRODUCTS_SCHEMA and made["supp"].num_rows == 0
    assert made["queries"].schema == schemas.SAMPLED_QUERIES_SCHEMA and made["queries"].num_rows == 0
    assert made["judgments"].schema == schemas.SAMPLED_JUDGMENTS_SCHEMA and made["judgments"].num_rows == 0


def test_windows_1252_as_excel_writes_it(tmp_path: Path) -> None:
    made = sampled(tmp_path, "sku;title\r\n1;Größe – „weiß“ 5€\r\n".encode("cp1252"))
    assert rows(made["products"], "product_title") == ["Größe – „weiß“ 5€"]


def test_the_same_rows_give_the_same_bytes_from_every_kind_of_file(tmp_path: Path) -> None:
    listed = [
        {"sku": str(i * 7919 % 50), "title": f" Titel {i}\n", "image": f"https://x.example/{i}.jpg", "price": i / 4}
        for i in range(50)
    ]
    lines = "".join(json.dumps(row) + "\n" for row in listed)
    csv = "sku,title,image,price\n" + "".join(f'{r["sku"]},"{r["title"]}",{r["image"]},{r["price"]}\n' for r in listed)
    made, images = set(), []
    for name, table in (("a.csv", csv), ("a.jsonl", lines), ("a.parquet", pa.Table.from_pylist(listed))):
        sampled(tmp_path, table, 'keep = ["price"]\n', name)
        files = sorted((tmp_path / "work" / "sample").iterdir())
        # images.parquet also names the file that it was read from
        made.add(tuple(path.read_bytes() for path in files if path.name != "images.parquet"))
        images.append(pq.read_table(tmp_path / "work" / "sample" / "images.parquet").replace_schema_metadata())
    assert len(made) == 1 and images[0].equals(images[1]) and images[0].equals(images[2])


@settings(max_examples=15, deadline=None)
@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Zs", "Zl", "Zp"]), min_size=1, max_size=4),
        st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=6),
        min_size=1,
        max_size=12,
    ),
    st.sampled_from(["a.csv", "a.jsonl", "a.parquet"]),
)
def test_every_row_is_kept_once_in_the_order_of_its_id(
    tmp_path_factory: pytest.TempPathFactory, titles: dict[str, str], name: str
) -> None:
    table: str | pa.Table = pa.table({"sku": list(titles), "title": list(titles.values())})
    if name == "a.jsonl":
        table = "".join(json.dumps({"sku": sku, "title": title}) + "\n" for sku, title in titles.items())
    elif name == "a.csv":
        cells = [[f'"{cell.replace(chr(34), 2 * chr(34))}"' for cell in row] for row in titles.items()]
        table = "sku,title\n" + "".join(",".join(row) + "\n" for row in cells)
    found = rows(sampled(tmp_path_factory.mktemp("shop"), table, name=name)["products"], "product_id", "product_title")
    assert [sku for sku, _ in found] == sorted(titles, key=str.encode)
    assert [title for _, title in found] == [_trimmed(titles[sku]) for sku, _ in found]


def _trimmed(text: str) -> str | None:
    blank = pa.compute.utf8_trim_whitespace(pa.scalar(text)).as_py()
    return str(blank) or None


# -- ids ----------------------------------------------------------------------------------------------------------


def test_ids_of_csv_stay_text(tmp_path: Path) -> None:
    made = sampled(tmp_path, "sku,title\n001,a\n1e5,b\n12345678901234567890,c\nNA,d\n 7 ,e\n1.0,f\n")
    assert rows(made["products"], "product_id") == ["001", "1.0", "12345678901234567890", "1e5", "7", "NA"]


@pytest.mark.parametrize(
    "ids",
    [
        pa.array([10, 9], pa.int32()),
        pa.array([10.0, 9.0]),
        pa.array([decimal.Decimal("10.00"), decimal.Decimal("9.00")]),
        pa.array([" 10", b"9 ".decode()]),
        pa.array([b"10", b"9"]),
        pa.array(["10", "9"]).dictionary_encode(),
        pa.array(["10", "9"], pa.large_string()),
    ],
    ids=lambda ids: str(ids.type),
)
def test_ids_of_any_type_are_texts(tmp_path: Path, ids: pa.Array) -> None:
    made = sampled(tmp_path, pa.table({"sku": ids, "title": ["ten", "nine"]}), name="a.parquet")
    assert rows(made["products"], "product_id", "product_title") == [("10", "ten"), ("9", "nine")]


def test_ids_that_differ_in_case_or_spaces_are_kept_apart_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    decomposed = unicodedata.normalize("NFD", "Ä1")
    made = sampled(tmp_path, f"sku,title\nA 1,a\na1,b\nA1,c\nB,d\nÄ1,e\n{decomposed},f\n")
    assert len(rows(made["products"], "product_id")) == 6
    assert "ids that differ from another one only in case, spaces or Unicode form: 5, such as " in caplog.text


def test_ids_that_a_spreadsheet_has_rounded_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sampled(tmp_path, "sku,title\n4.00638E+12,a\n1e5,b\n5E+11,c\n")
    assert "ids that look like numbers which a spreadsheet has rounded: 2, such as '4.00638E+12'" in caplog.text


# -- bad input ----------------------------------------------------------------------------------------------------

IMAGES = 'images = "."\n'
BAD: dict[str, tuple[str | pa.Table, str, type[SqidError], str]] = {
    "no bytes": ("", "", EmptyFileError, "the file is empty"),
    "no rows": ("sku,title\n", "", EmptyFileError, "the table has no rows"),
    "an empty id": ("sku,title\n1,a\n\n ,b\n,c\n", "", ContractError, r"shop.csv, line 4: the id is empty .*'sku'"),
    "a null id": (pa.table({"sku": ["1", None], "title": ["a", "b"]}), "", ContractError, "shop.csv, row 2: the id is"),
    "an id of two lines": ('sku,title\n"1\n2",a\n', "", ContractError, r"line 2: an id with a line break.*'1\\n2'"),
    "a fraction as id": (
        pa.table({"sku": [1.0, 2.5], "title": ["a", "b"]}),
        "",
        SchemaError,
        "row 2: .*not a whole.*2.5",
    ),
    "a float too large": (pa.table({"sku": [1.0, 1e17], "title": ["a", "b"]}), "", SchemaError, "row 2: .*exact"),
    "lists as ids": (pa.table({"sku": [["1"]], "title": ["a"]}), "", SchemaError, "'sku' holds no ids"),
    "objects as titles": (pa.table({"sku": ["1"], "title": [{"de": "a"}]}), "", SchemaError, "'title' holds no texts"),
    "bytes that are no text": (
        *(pa.table({"sku": ["1"], "title": [b"\xff\xfe"]}), "", SchemaError, "'title' cannot be read as text"),
    ),
    "rows that contradict": (
        *("sku,title\n1,a\n2,b\n1,c\n", "", DuplicateKeyError),
        r"line 4: two rows have the product id '1' and .*product_title 'a', as in .*line 2, got 'c'",
    ),
    "rows that contradict in null": (
        *("sku,title,brand\n1,a,\n1,a,x\n", "", DuplicateKeyError),
        "expected product_brand 'None'",
    ),
    "a kept column that contradicts": (
        *("sku,title,price\n1,a,1\n1,a,2\n", 'keep = ["price"]\n', DuplicateKeyError, "expected price '1'"),
    ),
    "an unknown column to keep": (
        *("sku,title,price\n1,a,1\n", 'keep = ["prize"]\n', RecipeError),
        r"catalogue.keep: the tables have no such column.*sku, title, price, got 'prize'. Did you mean price\?",
    ),
    "a column to keep with a name of ours": (
        *("sku,title,gain\n1,a,1\n", 'keep = ["gain"]\n', RecipeError, "a column of ours has this name.*'gain'"),
    ),
    "a column to keep twice": (
        *("sku,title,c\n1,a,1\n", 'keep = ["c", "c"]\n', RecipeError, "the name is there twice.*'c'"),
    ),
    **{
        f"a column to keep named {name}": (
            *(f"sku,title,{name}\n1,a,1\n", f'keep = ["{name}"]\n', RecipeError, f"a column of ours has.*'{name}'"),
        )
        for name in ("image", "image_count")
    },
    "a title of more than a megabyte": (
        *(f"sku,title\n1,a\n2,{'x' * 1_048_577}\n", "", TextLengthError),
        r"shop.csv, line 3: a text is too long \(column 'title'\); expected at most 1,048,576 bytes, got 1,048,577",
    ),
    "lists to keep": (
        *(pa.table({"sku": ["1"], "title": ["a"], "c": [[1]]}), 'keep = ["c"]\n', SchemaError),
        "c: a kept column holds lists or objects",
    ),
    "a stated column that is not there": (
        *("sku,title\n1,a\n", '[catalogue.columns]\nimage = "foto"\n', RecipeError),
        "catalogue.columns.image: no table has this column",
    ),
    "a wrong delimiter": ("sku~title\n1~a\n", "", SchemaError, "no column is known to be.*sku~title.*delimiter"),
    "two columns of one name": ("sku,title,title\n1,a,b\n", "", SchemaError, "two columns have the name 'title'"),
    "a row of another width": ("sku,title\n1,a\n2,b,c\n", "", CorruptFileError, "line 3 has another number of col"),
    "no column of titles": ("sku,text\n1,a\n", "", SchemaError, "no column is known to be product_title"),
    "a count that is not met": (
        *("sku,title\n1,a\n", "[expect]\nproducts = 2\n", CountError, "expected products = 2, got products = 1"),
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_error_and_nothing_is_written(tmp_path: Path, case: str) -> None:
    table, text, error, message = BAD[case]
    loaded = shop(tmp_path, table, text)
    with pytest.raises(error, match=message):
        sample(loaded, tmp_path / "work")
    assert not list((tmp_path / "work").rglob("*.parquet"))


# -- rows of one product ------------------------------------------------------------------------------------------


def test_equal_rows_with_several_images_are_one_product(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    csv = "sku,title,image\nB,b,\nA,a,a1.jpg\nB,b,b1.jpg\nA,a,a2.jpg|a3.jpg\nA,a,a1.jpg\nC,c,c.jpg\nB,b,\n"
    made = sampled(tmp_path, csv, IMAGES)
    assert rows(made["products"], "product_id", "image_count") == [("A", 3), ("B", 1), ("C", 1)]
    assert rows(made["images"], "image") == ["file:a1.jpg", "file:b1.jpg", "file:c.jpg"]
    assert "rows that repeat the product of another row: 4, such as 'A'; products with several images: 1" in caplog.text


def test_equal_rows_with_lists_of_images_are_one_product(tmp_path: Path) -> None:
    image = {"bytes": b"\xff\xd8", "path": "a.jpg"}
    images = [None, [image] * 2, [{"bytes": None, "path": "b.jpg"}], [None, image]]
    made = sampled(tmp_path, pa.table({"sku": list("BABA"), "title": list("baba"), "image": images}), IMAGES)
    assert rows(made["products"], "product_id", "image_count") == [("A", 3), ("B", 1)]
    assert rows(made["images"], "image") == ["row:0:1", "file:b.jpg"]


def test_without_several_images_there_is_no_count(tmp_path: Path) -> None:
    made = sampled(tmp_path, "sku,title,image\n1,a,1.jpg\n1,a,1.jpg\n2,b,\n", IMAGES)
    assert made["products"].schema == schemas.SAMPLED_PRODUCTS_SCHEMA and made["products"].num_rows == 2


# -- warnings -----------------------------------------------------------------------------------------------------


def test_texts_with_html_and_products_without_a_title_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    csv = "sku,title,description\n1,,x < y > z\n2,a,<p>soft</p>\n3,<b>b</b>,<br/>\n4,a <3 b,&amp;\n"
    made = sampled(tmp_path, csv)
    assert rows(made["products"], "product_description")[1] == "<p>soft</p>"
    assert "products with HTML tags in their texts, which the encoder reads as text: 2, such as '2'" in caplog.text
    assert "products without a title: 1, such as '1'" in caplog.text


def test_some_local_images_without_a_folder_are_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = sampled(tmp_path, "sku,title,image\n1,a,https://x.example/1.jpg\n2,b,n/a\n")
    assert rows(made["images"], "image") == ["https://x.example/1.jpg", "file:n/a"]
    assert "images that are no URLs: 1, such as 'n/a'" in caplog.text


def test_local_images_by_product_id(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("1.png", "3.jpg"):
        (folder / name).touch()
    made = sampled(tmp_path, "sku,title\n1,a\n2,b\n3,c\n", 'images = "photos"\n')
    assert rows(made["images"], "image") == ["file:1.png", None, "file:3.jpg"]
    made = sampled(tmp_path, "sku,title,image\n1,a,https://x.example/1.jpg\n2,b,\n3,c,\n", 'images = "photos"\n')
    assert rows(made["images"], "image") == ["https://x.example/1.jpg", None, "file:3.jpg"]
    sampled(tmp_path, "sku,title\n4,a\n", 'images = "photos"\n')
    assert "no product has an image" in caplog.text


# -- kept columns -------------------------------------------------------------------------------------------------


def kept(tmp_path: Path, table: str | pa.Table, *names: str, name: str = "shop.csv") -> tuple[list[Any], list[str]]:
    made = sampled(tmp_path, table, f"keep = {json.dumps(names)}\n", name)["products"]
    return rows(made, *names), [str(made.schema.field(name).type) for name in names]


def test_kept_columns_of_csv_are_numbers_where_all_cells_are(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    csv = "sku,title,price,stock,zip,size,Empty,ean\n1,a,19.90,3,01234,9,,1234567890123456789012\n2,b,5,-4,56789,M,,1\n"
    with caplog.at_level(logging.INFO):
        values, types = kept(tmp_path, csv, "price", "stock", "zip", "size", "Empty", "ean")
    assert values == [(19.9, 3, "01234", "9", None, 1.234567890123456789012e21), (5.0, -4, "56789", "M", None, 1.0)]
    assert types == ["double", "int64", "string", "string", "string", "double"]
    assert "column price: kept as numbers" in caplog.text and "column stock: kept as integers" in caplog.text


def test_kept_numbers_may_have_a_decimal_comma(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    csv = "sku;title;Preis;many;ip;list\n1;a;1.234,50;1,234;1.234.567;1,2\n2;b;5;5,678;2.345.678;3,4,5\n3;c;;9;1.1;6\n"
    with caplog.at_level(logging.INFO):
        values, types = kept(tmp_path, csv, "Preis", "many", "ip", "list")
    assert [value[0] for value in values] == [1234.5, 5.0, None]
    assert types == ["double", "string", "string", "string"]
    assert "column Preis: kept as numbers, since every cell is one, with a decimal comma" in caplog.text


def test_kept_columns_of_parquet_keep_their_type(tmp_path: Path) -> None:
    table = pa.table(
        {
            **{"sku": ["1"], "title": ["a"], "text": ["007"], "yes": [True], "day": [date(2024, 5, 1)]},
            "small": pa.array([3], pa.int8()),
            "half": pa.array([0.5], pa.float32()),
            "money": [decimal.Decimal("9.99")],
            "kind": pa.array(["x"]).dictionary_encode(),
            "none": pa.nulls(1),
        }
    )
    values, types = kept(tmp_path, table, *table.column_names[2:], name="a.parquet")
    assert values == [("007", True, "2024-05-01", 3, 0.5, 9.99, "x", None)]
    assert types == ["string", "bool", "string", "int64", "double", "double", "string", "string"]


def test_kept_columns_of_json_have_one_type(tmp_path: Path) -> None:
    lines = [{"sku": 1, "title": "a", "n": 1, "m": 1, "t": "5"}, {"sku": 2, "title": "b", "n": 2.5, "m": "x"}]
    values, types = kept(tmp_path, "".join(json.dumps(r) + "\n" for r in lines), *"nmt", name="a.jsonl")
    assert values == [(1.0, "1", "5"), (2.5, "x", None)] and types == ["double", "string", "string"]


def test_kept_columns_of_several_files_have_one_type(tmp_path: Path) -> None:
    (tmp_path / "shop").mkdir()
    for number, value in enumerate((1, 2.5)):
        table = pa.table({"sku": [str(number)], "title": ["a"], "n": [value]})
        pq.write_table(table, tmp_path / "shop" / f"{number}.parquet")
    (tmp_path / "recipe.toml").write_text(
        'name = "s"\nversion = "1"\n[catalogue]\nproducts = "shop"\nlocale = "de"\nkeep = ["n"]\n'
    )
    sample(recipe.load(tmp_path / "recipe.toml"), tmp_path / "work")
    assert pq.read_table(tmp_path / "work/sample/products.parquet")["n"].to_pylist() == [1.0, 2.5]


# -- lists and whole numbers in text columns ----------------------------------------------------------------------


def test_lists_of_texts_are_lines_and_numbers_are_digits(tmp_path: Path) -> None:
    table = pa.table(
        {"sku": ["1", "2"], "title": [501.0, None], "features": [["soft", None, "warm"], []], "colour": [7, None]}
    )
    made = sampled(tmp_path, table, name="a.parquet")["products"]
    assert rows(made, "product_title", "product_bullet_point", "product_color") == [
        ("501", "soft\nwarm", "7"),
        (None, None, None),
    ]


# -- what decides whether the stage is finished -------------------------------------------------------------------


def test_the_stage_runs_again_when_a_table_a_setting_or_the_names_of_images_change(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    text, csv = 'images = "photos"\n', "sku,title\n1,a\n"
    work, said = tmp_path / "work", list[str]()

    def ran(table: str, text: str) -> bool:
        loaded = shop(tmp_path, table, text)
        said.clear()
        planned = plan(loaded, work, only="sample")["sample"]
        pipeline.build(loaded, work, only="sample", say=said.append)
        ran = not said[-1].endswith("done before")
        assert ran == (planned != "done before")
        return ran

    assert ran(csv, text)
    loaded = recipe.load(tmp_path / "recipe.toml")
    assert plan(loaded, work, only="sample") == {"sample": "done before"}
    key = stages.key_of("sample", loaded, Stamps(work))
    assert stages.key_of("sample", recipe.load(tmp_path / "recipe.toml"), Stamps(work)) == key
    assert ran(csv + "2,b\n", text)
    (tmp_path / "photos" / "2.jpg").touch()
    pipeline.build(recipe.load(tmp_path / "recipe.toml"), work, only="sample", say=said.append)
    assert rows(pq.read_table(work / "sample" / "images.parquet"), "image") == [None, "file:2.jpg"]
    assert ran(csv + "2,b\n", text + 'keep = ["title"]\n')


def test_the_plan_of_tables_elsewhere_uses_no_network(tmp_path: Path) -> None:
    loaded = shop(tmp_path, "sku,title\n1,a\n")
    pipeline.build(loaded, tmp_path / "work", only="sample")
    assert loaded.catalogue is not None
    elsewhere = loaded.catalogue.model_copy(update={"judgments": "https://x.invalid/judgments.csv"})
    planned = plan(loaded.model_copy(update={"catalogue": elsewhere}), tmp_path / "work", only="sample")
    assert planned["sample"] == "would run again if the recipe or a file at https://x.invalid/judgments.csv changed"


def test_judgments_are_of_the_products(tmp_path: Path) -> None:
    (tmp_path / "judgments.csv").write_text("query,sku,label\nrote schuhe,1,gut\n")
    made = sampled(tmp_path, "sku,title\n1,a\n2,b\n", 'judgments = "judgments.csv"\nlabels = {gut = 1.0}\n')
    assert rows(made["judgments"], "query", "product_id", "esci_label", "gain") == [("rote schuhe", "1", "gut", 1.0)]
    assert rows(made["queries"], "query") == ["rote schuhe"]


@pytest.mark.parametrize("order", ["sorted", "backwards", "mixed"])
def test_batches_and_their_order_do_not_change_the_products(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    ids = [f"P{number:03d}" for number in range(60)]
    table: list[dict[str, Any]] = [
        {"sku": product, "title": f"title <b>{n}</b>" if n % 9 == 0 else f"title {n}", "n": n / 2 if n % 5 else None}
        | {"image": f"https://x.example/{n}-{copy}.jpg" if (n + copy) % 3 else None}
        for n, product in enumerate(ids)
        for copy in range(1 + (n % 4 == 0) * 2)
    ]
    expected = sampled(tmp_path, pa.Table.from_pylist(table), 'keep = ["n"]\n', "shop.parquet")
    assert rows(expected["products"], "product_id") == ids and expected["products"]["image_count"][8].as_py() == 2
    for module, name in ((tables, "BATCH_ROWS"), (spool, "GROUP_ROWS")):
        monkeypatch.setattr(module, name, 7)
    mixed = random.Random(0).sample(table, len(table))
    read = {"sorted": table, "backwards": table[::-1], "mixed": mixed}[order]
    found = sampled(tmp_path, pa.Table.from_pylist(read), 'keep = ["n"]\n', "shop.parquet")
    assert found["products"].equals(expected["products"])
    first: dict[str, str | None] = {}
    for row in read:
        first[row["sku"]] = first.get(row["sku"]) or row["image"]
    assert dict(rows(found["images"], "product_id", "image")) == first
