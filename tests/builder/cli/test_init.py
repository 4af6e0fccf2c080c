"""`sqid init`: what it sees in a shop's tables, and a recipe that builds as it is."""

from __future__ import annotations

import shlex
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from encoder_fixtures import encoded, make_image
from loopback_hub import LoopbackHub

from builder import recipe
from builder.catalogue.catalogue import Catalogue, read_catalogue
from builder.catalogue.products import Products
from builder.cli import main
from builder.cli.init import _name
from builder.recipe import CardSettings, CatalogueSettings
from sqid_lib.errors import LabelError, SqidError

Run = Callable[..., tuple[int, str, str]]
SHOP = "sku,title,Brand,image,price\nA1,Red shoe,Löwe,photos/a1.png,10\nB2,Blue hat,,photos/b2.jpg,3\nC3,Scarf,x,,1\n"
JUDGED = "query,sku,label\nred shoe,A1,exact\nred shoe,B2,irrelevant\nhat,B2,exact\n"


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a1.png").write_bytes(encoded(make_image(1)))
    (tmp_path / "photos" / "b2.jpg").write_bytes(encoded(make_image(2), "JPEG"))
    (tmp_path / "shop.csv").write_text(SHOP, encoding="utf-8")
    (tmp_path / "judged.csv").write_text(JUDGED, encoding="utf-8")
    return tmp_path


@pytest.fixture
def init(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str) -> tuple[int, str, str]:
        status = main(["init", *arguments])
        return status, *capsys.readouterr()

    return run


def settings(path: str = "sqid.toml") -> CatalogueSettings:
    found = recipe.load(path).catalogue
    assert found is not None
    return found


def read(path: str = "sqid.toml") -> Catalogue:
    return read_catalogue(settings(path))


def table(products: Products) -> pa.Table:
    return pa.concat_tables(products.slices())


def images(products: Products) -> list[str | None]:
    found: list[str | None] = pa.concat_tables(products.images())["image"].to_pylist()
    return found


def test_a_recipe_that_reads_the_tables_as_they_are(shop: Path, init: Run) -> None:
    status, out, err = init("shop.csv", "judged.csv", "--locale", "us")
    assert (status, out) == (0, "sqid.toml\nsqid build sqid.toml --work work\n")
    assert "warning" not in err and "BEFORE" not in err
    values = tomllib.loads((shop / "sqid.toml").read_text(encoding="utf-8"))
    assert values["name"] == "shop" and values["version"] == "1.0.0"
    assert values["catalogue"] == {
        "products": "shop.csv",
        "locale": "us",
        "images": ".",
        "judgments": "judged.csv",
        "keep": [],
        "unknown_products": "refuse",
        "columns": {
            "product_id": "sku",
            "product_title": "title",
            "product_brand": "Brand",
            "image": "image",
            "query": "query",
            "label": "label",
        },
        "labels": {"exact": 1.0, "irrelevant": 0.0},
    }
    assert values["card"] == CardSettings().model_dump(mode="json")
    catalogue = read()
    assert catalogue.products.keys["product_id"].to_pylist() == ["A1", "B2", "C3"]
    assert images(catalogue.products) == ["file:photos/a1.png", "file:photos/b2.jpg", None]
    assert sorted(catalogue.judgments["gain"].to_pylist()) == [0.0, 1.0, 1.0]


def test_what_is_seen_is_shown_on_the_terminal_and_in_the_recipe(shop: Path, init: Run) -> None:
    _, _, err = init("shop.csv", "judged.csv", "--locale", "us")
    text = (shop / "sqid.toml").read_text(encoding="utf-8")
    for line in (
        "1  product_id     A1",
        "   product_title  Red shoe",
        "   product_brand  Löwe",
        "   image          photos/a1.png",
        "2  product_id     B2",
        "   product_brand  (blank)",
        "1  query       red shoe",
        "   label       exact",
    ):
        assert f"  {line}\n" in err and f"#   {line}\n" in text
    assert "shop.csv: 3 products\n  product_id     is the column 'sku'\n" in err
    assert "not used: 'price'" in err and '# Columns that are not used: "price".\nkeep = []' in text
    assert "judgments, 3 rows, 2 queries" in err and "label 'exact': 2 rows, gain 1.0" in err


def test_every_key_has_the_meaning_that_the_reference_prints(shop: Path, init: Run) -> None:
    init("shop.csv", "judged.csv")
    comments = " ".join(
        line.removeprefix("# ")
        for line in (shop / "sqid.toml").read_text(encoding="utf-8").splitlines()
        if line[:1] == "#"
    )
    for model in (CatalogueSettings, CardSettings):
        for key, field in model.model_fields.items():
            if key != "clicks":
                assert " ".join((field.description or "?").split()) in comments, key


def test_without_a_locale_one_is_assumed_and_said(shop: Path, init: Run) -> None:
    _, _, err = init("shop.csv")
    assert "The locale is taken to be 'en': name another with --locale, or in the recipe." in err
    assert settings().locale == "en"
    assert "# It was not given to `sqid init`: 'en' is assumed." in (shop / "sqid.toml").read_text(encoding="utf-8")


def test_another_language_than_english_is_told_about_the_model(shop: Path, init: Run) -> None:
    _, _, err = init("shop.csv", "--locale", "de")
    assert "has learned from English texts: for 'de' consider" in err
    (shop / "clip").mkdir()
    _, _, err = init("shop.csv", "--locale", "de", "--model", "clip", "--out", "other.toml")
    assert "English" not in err
    assert recipe.load("other.toml").encoder.model == str(shop.resolve() / "clip")


def test_paths_are_relative_to_the_recipe_and_a_recipe_is_not_overwritten(shop: Path, init: Run) -> None:
    status, out, _ = init("shop.csv", "judged.csv", "--images", "photos", "--out", "a b/shop.toml")
    assert (status, out.splitlines()) == (
        0,
        ["a b/shop.toml", shlex.join(["sqid", "build", "a b/shop.toml", "--work", "a b/work"])],
    )
    values = tomllib.loads((shop / "a b" / "shop.toml").read_text(encoding="utf-8"))["catalogue"]
    assert [values[name] for name in ("products", "judgments", "images")] == [
        "../shop.csv",
        "../judged.csv",
        "../photos",
    ]
    before = (shop / "a b" / "shop.toml").read_bytes()
    status, out, err = init("shop.csv", "--out", "a b/shop.toml")
    assert (status, out) == (2, "") and "the recipe is there already. Name another file with --out" in err
    assert (shop / "a b" / "shop.toml").read_bytes() == before
    assert init("shop.csv", "--out", "a b/shop.toml", "--force")[0] == 0
    assert (shop / "a b" / "shop.toml").read_bytes() != before


def test_faults_of_the_products_are_warnings(shop: Path, init: Run) -> None:
    text = "sku,title,image\nA1,<b>Red</b>,a1.png\na1,,gone.png\nB,x,../shop.csv\nB,x,../shop.csv\nC,x,none.jpg\n"
    (shop / "shop.csv").write_text(text, encoding="utf-8")
    (shop / "photos" / "none.jpg").touch()
    status, _, err = init("shop.csv", "--images", "photos")
    assert status == 0
    for said in (
        "ids that differ from another one only in case, spaces or Unicode form: 2, such as 'A1' and 'a1'",
        "products without a title: 1, such as 'a1'",
        "products with HTML tags in their texts, which the encoder reads as text: 1, such as 'A1'",
        "photos: 1 image cannot be used: no such file, such as 'gone.png' of product 'a1'",
        "photos: 1 image cannot be used: outside the folder of the images, such as '../shop.csv' of product 'B'",
        "photos: 1 image cannot be used: no bytes, such as 'none.jpg' of product 'C'",
        "rows that repeat the product of another row: 1, such as 'B'",
    ):
        assert said in err
    assert len(read().products.ids) == 4


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sku,title\nA,x\nA,y\n", "shop.csv, line 3: two rows have the product id 'A' and contradict each other"),
        ("sku,Bezeichner\nA,x\n", "no column is known to be product_title"),
        ("sku,title\n,x\n", "shop.csv, line 2: the id is empty (column 'sku')"),
    ],
)
def test_what_would_stop_a_build_is_said_and_the_recipe_is_written(shop: Path, init: Run, text: str, said: str) -> None:
    (shop / "shop.csv").write_text(text, encoding="utf-8")
    status, out, err = init("shop.csv", "judged.csv")
    assert (status, out.splitlines()[0]) == (0, "sqid.toml")
    assert f"BEFORE THE BUILD: {shop.name}" not in err and "BEFORE THE BUILD: " in err and said in err
    with pytest.raises(SqidError) as caught:
        read()
    assert said in str(caught.value)


def test_unknown_labels_are_left_to_the_user(shop: Path, init: Run) -> None:
    text = "query;sku;label\nq;A1;gut\nq;B2;0,5\nr;A1;sehr gut\nr;C3;2\n"
    (shop / "judged.csv").write_text(text, encoding="utf-8")
    status, _, err = init("shop.csv", "judged.csv")
    assert status == 0
    assert (
        "BEFORE THE BUILD: judged.csv: labels 'gut', 'sehr gut' without a gain: fill in [catalogue.labels]"
        in err.replace(f"{shop}/", "")
    )
    with pytest.raises(LabelError, match="unknown label 'gut'"):
        read()
    recipe_text = (shop / "sqid.toml").read_text(encoding="utf-8")
    assert "# Labels that are numbers, and so need no line here: 2 (1 rows)" in recipe_text.replace(
        "(1 row)", "(1 rows)"
    )
    filled = recipe_text.replace("# gut = …  #", "gut = 1  #").replace('# "sehr gut" = …  #', '"sehr gut" = 2  #')
    (shop / "sqid.toml").write_text(filled, encoding="utf-8")
    assert sorted(read().judgments["gain"].to_pylist()) == [0.5, 1.0, 2.0, 2.0]


def test_a_column_of_texts_is_not_taken_for_labels(shop: Path, init: Run) -> None:
    rows = "".join(f"q{i},A1,word {i}\n" for i in range(40))
    (shop / "judged.csv").write_text(f"query,sku,rating\n{rows}", encoding="utf-8")
    _, _, err = init("shop.csv", "judged.csv")
    assert (
        "the column 'rating' has 40 different words, such as 'word 0', without a gain: is it the column of labels?"
        in err
    )


def test_judged_products_that_are_gone(shop: Path, init: Run) -> None:
    (shop / "judged.csv").write_text(JUDGED + "hat,gone,exact\n", encoding="utf-8")
    _, _, err = init("shop.csv", "judged.csv")
    assert "line 5, the first of them: a judged product is not in the catalogue, in 1 of 4 rows" in err
    assert 'The recipe says unknown_products = "drop" for now.' in err and "BEFORE" not in err
    assert read().judgments.num_rows == 3
    (shop / "judged.csv").write_text("query,sku,label\nhat,a1,exact\nhat,B2,exact\n", encoding="utf-8")
    _, _, err = init("shop.csv", "judged.csv", "--force")
    assert "BEFORE THE BUILD: " in err and "The catalogue has 'A1', which differs in case" in err
    assert settings().unknown_products == "refuse"


def test_a_click_log(shop: Path, init: Run) -> None:
    text = "search_term,sku,impressions,clicks\nshoe,A1,100,30\nshoe,B2,100,0\n"
    (shop / "clicks.csv").write_text(text, encoding="utf-8")
    _, _, err = init("shop.csv", "clicks.csv")
    assert "a click log, 2 rows, 1 queries" in err
    assert settings().clicks == recipe.ClickSettings()
    assert "clicks / (impressions + prior)" in (shop / "sqid.toml").read_text(encoding="utf-8")
    assert read().judgments["esci_label"].to_pylist() == ["30/100", "0/100"]
    (shop / "clicks.csv").write_text(text.replace("30", "130"), encoding="utf-8")
    _, _, err = init("shop.csv", "clicks.csv", "--force")
    assert "line 2: more clicks than impressions" in err


def test_a_list_of_queries(shop: Path, init: Run) -> None:
    (shop / "asked.csv").write_text("query\nshoe\nhat\n", encoding="utf-8")
    _, _, err = init("shop.csv", "asked.csv")
    assert "queries, 2 rows, 2 queries" in err
    assert (settings().judgments, Path(settings().queries or "").name) == (None, "asked.csv")
    assert read().queries.num_rows == 2


def test_labels_without_a_known_column_of_products_are_no_list_of_queries(shop: Path, init: Run) -> None:
    (shop / "judged.csv").write_text("query,product,label\nshoe,A1,exact\n", encoding="utf-8")
    _, _, err = init("shop.csv", "judged.csv")
    assert "BEFORE THE BUILD: judged.csv: no column is known to be product_id" in err
    assert settings().queries is None and settings().judgments is not None
    (shop / "judged.csv").write_text("query,product,stars\nshoe,A1,5\n", encoding="utf-8")
    _, _, err = init("shop.csv", "judged.csv", "--force")
    assert "warning: judged.csv: read as a list of queries. If it holds judgments" in err


def test_a_column_that_could_be_several_is_guessed_and_said(shop: Path, init: Run) -> None:
    (shop / "shop.csv").write_text("sku,title,photo,picture\nA1,x,photos/a1.png,\n", encoding="utf-8")
    _, _, err = init("shop.csv")
    assert "image          is the column 'photo', or is it 'picture'?" in err
    assert 'image = "photo"  # or "picture"?' in (shop / "sqid.toml").read_text(encoding="utf-8")
    assert images(read().products) == ["file:photos/a1.png"]


def test_other_names_in_the_judgments(shop: Path, init: Run) -> None:
    (shop / "judged.csv").write_text(JUDGED.replace("sku", "asin"), encoding="utf-8")
    init("shop.csv", "judged.csv")
    assert 'product_id is "asin", which a build recognises by itself' in (shop / "sqid.toml").read_text(
        encoding="utf-8"
    )
    assert read().judgments.num_rows == 3


def test_german_and_japanese_files(shop: Path, init: Run) -> None:
    text = "Artikelnummer;Bezeichnung;Marke;Bild\r\n001;Mütze;Löwe;https://img.example/a.jpg\r\n"
    (shop / "katalog.csv").write_bytes(text.encode("cp1252"))
    assert init("katalog.csv", "--locale", "de")[0] == 0
    products = read().products
    assert table(products).select(["product_id", "product_title"]).to_pylist() == [
        {"product_id": "001", "product_title": "Mütze"}
    ]
    assert settings().images is None and images(products) == ["https://img.example/a.jpg"]
    (shop / "商品.jsonl").write_text('{"商品コード": "1", "商品名": "赤い\\u3000靴", "色": "赤"}\n', encoding="utf-8")
    status, _, err = init("商品.jsonl", "--locale", "ja", "--out", "ja.toml")
    assert status == 0 and "product_title  赤い 靴" in err
    assert tomllib.loads((shop / "ja.toml").read_text(encoding="utf-8"))["name"] == "商品"
    assert table(read("ja.toml").products)["product_title"].to_pylist() == ["赤い\u3000靴"]


def test_images_in_the_table(shop: Path, init: Run) -> None:
    stored: list[dict[str, Any]] = [{"bytes": encoded(make_image(n)), "path": f"{n}.png"} for n in range(2)]
    (shop / "shop").mkdir()
    pq.write_table(pa.table({"id": [1, 2], "title": ["x", "y"], "image": stored}), shop / "shop" / "train.parquet")
    status, _, err = init("shop")
    assert status == 0 and "image          (an image in the table)" in err
    assert images(read().products) == ["row:0:0", "row:0:1"]


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["gone.csv"], 1, "gone.csv"),
        (["empty.csv"], 1, "empty.csv: the file is empty"),
        (["shop.csv", "gone.csv"], 1, "gone.csv"),
        (["shop.csv", "--images", "gone"], 1, "--images gone: no such folder of images. Check the path."),
        (["twice.csv"], 1, "two columns have the name 'title'"),
        (["shop.csv", "--locale", " "], 2, "--locale: not a locale; expected one such as de, got ' '"),
        (["shop.csv", "--locale", "d\ne"], 2, "--locale: not a locale; expected one such as de, got 'd\\ne'"),
    ],
)
def test_one_line_says_why_there_is_no_recipe(
    shop: Path, init: Run, arguments: list[str], status: int, said: str
) -> None:
    (shop / "empty.csv").touch()
    (shop / "twice.csv").write_text("sku,title,title\nA,x,y\n", encoding="utf-8")
    found, out, err = init(*arguments)
    assert (found, out) == (status, "") and said in err and err.count("\n") == 1
    assert not (shop / "sqid.toml").exists()


def test_no_text_of_a_table_breaks_the_recipe(shop: Path, init: Run) -> None:
    rows = [
        {"sku": 'a"\\', "title": 'x\u2028y\x07"""\n[catalogue]', "label\n": "=", "#": "'"},
        {"sku": "b", "title": "\x7f" * 200, "label\n": "", "#": ""},
    ]
    pq.write_table(pa.Table.from_pylist(rows), shop / 'odd "shop".parquet')
    judged = {"query": ["q\nr", "s"], "sku": ['a"\\', "b"], "label": ["x]\n=1 #", "\x7f"]}
    pq.write_table(pa.table(judged), shop / "judged.parquet")
    status, _, _ = init('odd "shop".parquet', "judged.parquet")
    assert status == 0
    assert settings().columns["product_id"] == "sku"


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("a b/My shop.csv.gz", "My-shop"),
        ("shop", "shop"),
        ("https://shop.example/export/products.jsonl.zst?token=1", "products"),
        ("hf://datasets/ORG/fashion@v1.0/data/train.parquet", "fashion"),
        ("???.csv", "my-catalogue"),
    ],
)
def test_the_name_is_that_of_the_table(address: str, name: str) -> None:
    assert _name(address) == name


ON_THE_HUB = """
import sys
from builder.cli import main
from builder.cli.init import _name
print(main(["init", sys.argv[1], "--out", sys.argv[2]]))
"""


def test_a_dataset_on_the_hub(shop: Path) -> None:
    images: list[dict[str, Any]] = [{"bytes": encoded(make_image(0)), "path": "0.png"}]
    (shop / "repo" / "data").mkdir(parents=True)
    table = pa.table({"id": ["1"], "title": ["x"], "image": images})
    pq.write_table(table, shop / "repo" / "data" / "train-00000-of-00001.parquet")
    with LoopbackHub(shop / "hub") as hub:
        hub.add_repo("ORG/shop", shop / "repo")
        printed = hub.run(ON_THE_HUB, "hf://datasets/ORG/shop", str(shop / "hub.toml"))
    assert printed.splitlines()[-1] == "0"
    values = tomllib.loads((shop / "hub.toml").read_text(encoding="utf-8"))
    assert (values["name"], values["catalogue"]["products"]) == ("shop", "hf://datasets/ORG/shop")
    assert "images" not in values["catalogue"] and values["catalogue"]["columns"]["image"] == "image"
