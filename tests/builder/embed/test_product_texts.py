"""[encoder] text: the columns that make the text of a product."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from embed_work import PRODUCTS, contents, make_work, read, title
from encoder_fixtures import write_clip

from builder import recipe as recipes
from builder.embed import embed
from builder.embed.inputs import TEXTS, product_texts, read_inputs
from builder.recipe import EncoderSettings, EsciSettings, Recipe
from sqid_lib import load_encoder
from sqid_lib.errors import RecipeError, SchemaError
from sqid_lib.schemas import SAMPLED_PRODUCTS_SCHEMA

BOTH = "{product_title} {product_brand}"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip"))


def recipe_of(clip: Path, **settings: Any) -> Recipe:
    encoder = EncoderSettings(model=str(clip), device="cpu", **settings)
    return Recipe(name="tiny", version="1.0.0", esci=EsciSettings(path="esci"), encoder=encoder)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{product_title}", ["Shoe", "", "  Lamp ", "", " "]),
        (BOTH, ["Shoe Acme", "Acme", "Lamp", "", ""]),
        ("{product_brand}: {product_title} {price}", ["Acme: Shoe 9.5", "Acme:", ":   Lamp  2", ":  3", ""]),
        ("{{{product_title}}}", ["{Shoe}", "", "{  Lamp }", "", ""]),
        ("{product_brand}{product_brand}", ["AcmeAcme", "AcmeAcme", "", "", ""]),
    ],
)
def test_the_text_of_a_product(template: str, expected: list[str]) -> None:
    columns = {
        "product_title": pa.chunked_array([["Shoe", None], ["  Lamp ", "", " "]]),
        "product_brand": pa.array(["Acme", "Acme", None, "", None]),
        "price": pa.array([9.5, None, 2.0, 3.0, None]),
    }
    parts = EncoderSettings(text=template).text_parts
    assert product_texts(pa.table(columns), parts).to_pylist() == expected


def test_the_vectors_are_those_of_the_text_and_queries_are_encoded_as_they_are(clip: Path, tmp_path: Path) -> None:
    work = make_work(tmp_path, supp=2)
    embed(recipe_of(clip, text=BOTH), work)
    encoder = load_encoder(str(clip), device="cpu")
    texts = [f"{title(row) or ''} b".strip() for row in range(PRODUCTS)]
    expected = encoder.encode_text(texts)
    found = read(work, "products")["clip_text_features"].to_pylist()
    for row in range(PRODUCTS):
        assert found[row] == pytest.approx(expected[row].tolist(), abs=2e-6)
    queries = pq.read_table(work / "sample/queries.parquet")["query"].to_pylist()
    for vector, wanted in zip(
        read(work, "queries")["clip_text_features"].to_pylist(), encoder.encode_text(queries), strict=True
    ):
        assert vector == pytest.approx(wanted.tolist(), abs=2e-6)


def test_another_text_encodes_texts_and_reuses_images(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = make_work(tmp_path)
    embed(recipe_of(clip), work)
    first = contents(work)
    capsys.readouterr()
    embed(recipe_of(clip, text=BOTH), work)
    assert "embed: 0 images, 7 texts to encode; 9 reused" in capsys.readouterr().err  # 3 query texts, 6 images
    embed(recipe_of(clip, text="{product_title}"), work)
    again = contents(work)
    assert {name: data for name, data in again.items() if name in first} == first


def test_names_that_are_no_columns(tmp_path: Path) -> None:
    (tmp_path / "esci").mkdir()
    (tmp_path / "shop.csv").touch()

    def load(text: str, source: str) -> Recipe:
        path = tmp_path / "recipe.toml"
        path.write_text(f'name = "x"\nversion = "1"\n{source}\n[encoder]\ntext = "{text}"\n')
        return recipes.load(path)

    esci, shop = '[esci]\npath = "esci"', '[catalogue]\nproducts = "shop.csv"\nlocale = "de"\nkeep = ["price"]'
    assert load("{product_title}, {product_id}", esci).encoder.text == "{product_title}, {product_id}"
    assert load("{product_title} {price}", shop).encoder.text == "{product_title} {price}"
    with pytest.raises(RecipeError) as raised:
        load("{product_titel}", esci)
    for said in ("'encoder.text' names a column", *SAMPLED_PRODUCTS_SCHEMA.names, "'product_titel'", "product_title?"):
        assert said in str(raised.value)
    with pytest.raises(RecipeError, match=r"product_locale, price, got 'size'.*catalogue\.keep"):
        load("{product_title} {size}", shop)
    for bad in ("title", "{", "{}", "{product_title!r}", "{product_title:>9}", ""):
        with pytest.raises(RecipeError, match=r"bad value for 'encoder\.text'.*names of columns in braces"):
            load(bad, esci)


def test_a_column_that_the_sample_has_not(clip: Path, tmp_path: Path) -> None:
    work = make_work(tmp_path)
    recipe = recipe_of(clip)
    settings = recipe.encoder.model_copy(update={"text": "{product_title} {price}"})
    with pytest.raises(SchemaError, match="column 'price' is missing"):
        read_inputs(recipe.model_copy(update={"encoder": settings}), work)
    table = pq.read_table(work / "sample/products.parquet")
    pq.write_table(table.append_column("price", pa.array(range(PRODUCTS))), work / "sample/products.parquet")
    values = read_inputs(recipe.model_copy(update={"encoder": settings}), work).items[TEXTS].values
    texts = values.slice(0, len(values))
    assert f"{title(0)} 0" in texts and "3" in texts  # the product without a title
