"""The made-up shop: what the selection must find in it, what it must drop, and that a seed fixes every byte."""

from __future__ import annotations

import hashlib
import urllib.error
import urllib.request
from pathlib import Path
from random import Random

import pandas as pd
import pyarrow.parquet as pq
import pytest

from builder.demo.catalogue import KINDS, Goods, Look, Wish, grade, held_out, looks, query_text, title
from builder.demo.serve import serve_images
from builder.demo.shop import AMAZON, COUNTS, HOST, MOVED, Shop, write_shop
from sqid_lib import schemas

pytest.importorskip("PIL")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return write_shop(tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="module")
def examples(shop: Shop) -> pd.DataFrame:
    return pd.read_parquet(shop.esci / schemas.ESCI_EXAMPLES)


@pytest.fixture(scope="module")
def products(shop: Shop) -> pd.DataFrame:
    return pd.read_parquet(shop.esci / schemas.ESCI_PRODUCTS)


@pytest.fixture(scope="module")
def chosen(examples: pd.DataFrame) -> pd.DataFrame:
    """The judgments of the default selection, selected a second time by hand."""
    return examples[
        (examples["small_version"] == 1) & (examples["split"] == "test") & (examples["product_locale"] == "us")
    ]


@pytest.fixture(scope="module")
def urls(shop: Shop) -> dict[str, str]:
    table = pd.read_csv(shop.tables[0], keep_default_na=False)
    return dict(zip(table["product_id"], table["image_url"], strict=True))


def test_files_have_the_official_schemas(shop: Shop) -> None:
    assert pq.read_schema(shop.esci / schemas.ESCI_EXAMPLES).equals(schemas.EXAMPLES_SCHEMA)
    assert pq.read_schema(shop.esci / schemas.ESCI_PRODUCTS).equals(schemas.PRODUCTS_SCHEMA)
    assert list(pd.read_csv(shop.esci / schemas.ESCI_SOURCES)) == schemas.SOURCES_SCHEMA.names


def test_the_default_selection_finds_the_stated_counts(examples: pd.DataFrame, chosen: pd.DataFrame) -> None:
    small_us = examples[(examples["small_version"] == 1) & (examples["product_locale"] == "us")]
    judged = small_us.groupby("product_id").size()
    supp = [x for x, count in judged.items() if count >= 2 and x not in set(chosen["product_id"])]
    found = {
        "products": chosen["product_id"].nunique(),
        "queries": chosen["query_id"].nunique(),
        "judgments": len(chosen),
        "supp": len(supp),
    }
    assert found == COUNTS


def test_every_query_has_all_four_labels_and_a_list_worth_ranking(chosen: pd.DataFrame) -> None:
    for _, judged in chosen.groupby("query_id"):
        assert set(judged["esci_label"]) == set(schemas.LABELS)
        assert 15 <= len(judged) <= 25
        assert judged["product_id"].is_unique
        assert judged["query"].nunique() == 1


def test_keys_are_unique_and_refer_to_products(examples: pd.DataFrame, products: pd.DataFrame, shop: Shop) -> None:
    keys = products[["product_locale", "product_id"]].apply(tuple, axis=1)
    assert keys.is_unique
    assert set(examples[["product_locale", "product_id"]].apply(tuple, axis=1)) == set(keys)
    assert examples["example_id"].is_unique
    assert not examples.duplicated(["query_id", "product_locale", "product_id"]).any()
    assert set(pd.read_csv(shop.esci / schemas.ESCI_SOURCES)["query_id"]) == set(examples["query_id"])


def test_the_selection_has_something_to_drop(
    examples: pd.DataFrame, chosen: pd.DataFrame, products: pd.DataFrame
) -> None:
    assert set(examples["product_locale"]) == {"us", "es", "jp"}
    assert set(examples["split"]) == {"train", "test"}
    large_only = examples[examples["small_version"] == 0]
    assert set(large_only["split"]) == {"train", "test"}
    assert (large_only["large_version"] == 1).all()
    assert set(large_only["product_id"]) - set(chosen["product_id"])
    by_locale = {locale: frame.set_index("product_id") for locale, frame in products.groupby("product_locale")}
    overlap = by_locale["us"].index.intersection(by_locale["es"].index)
    assert len(overlap) >= 20
    titles = [by_locale[locale].loc[overlap, "product_title"].tolist() for locale in ("us", "es")]
    assert all(us != es for us, es in zip(*titles, strict=True))
    train = examples[(examples["small_version"] == 1) & (examples["split"] == "train")]
    assert (train.groupby("product_id").size() == 1).any()  # too few judgments to be supplementary


def test_columns_have_gaps_as_the_real_ones(products: pd.DataFrame) -> None:
    for column in ("product_bullet_point", "product_brand", "product_color"):
        assert 0 < products[column].isna().mean() < 0.5, column
    assert (products["product_description"] == "").any()
    assert products["product_title"].str.len().min() > 0


def test_urls_and_images_go_wrong_in_every_known_way(chosen: pd.DataFrame, urls: dict[str, str], shop: Shop) -> None:
    from PIL import Image

    known = set(chosen["product_id"])
    assert set(urls) < known  # a few have no row at all
    assert "" in urls.values()
    assert any(".media-amazon.com/images/I/" in url for url in urls.values())
    assert list(urls.values()).count(schemas.GENERIC_IMAGE_URL) >= 2
    assert any(url.startswith(HOST + MOVED) for url in urls.values())
    shown = [url for url in urls.values() if url.startswith(HOST)]
    assert len(set(shown)) < len(shown)  # one image for two products
    outcomes = {"ok": 0, "gone": 0, "unknown": 0, "cut": 0}
    formats = set()
    for url in set(shown):
        path = shop.images / url.removeprefix(HOST).removeprefix(MOVED)
        if not path.exists():
            outcomes["gone"] += 1
            continue
        try:
            with Image.open(path) as image:
                formats.add(image.format)
                image.load()
            outcomes["ok"] += 1
        except OSError as error:
            outcomes["unknown" if "identify" in str(error) else "cut"] += 1
    assert formats == {"JPEG", "PNG", "WEBP"}
    assert all(outcomes.values()), outcomes
    assert outcomes["ok"] > 0.8 * len(known)


def test_test_queries_ask_for_looks_that_training_never_sees(chosen: pd.DataFrame) -> None:
    held = [look for look in looks() if held_out(look)]
    assert 0.1 < len(held) / len(list(looks())) < 0.25
    assert {look.kind for look in held} == set(KINDS)
    trained = {query_text(Wish(look), Random(i)) for look in looks() if not held_out(look) for i in range(40)}
    assert trained.isdisjoint(chosen["query"])
    assert chosen["query"].nunique() == COUNTS["queries"]


def test_the_same_seed_gives_the_same_bytes_and_keeps_the_files(shop: Shop, tmp_path: Path) -> None:
    def digests(root: Path) -> dict[str, str]:
        files = sorted(path for path in root.rglob("*") if path.is_file())
        return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    again = write_shop(tmp_path)
    first = digests(shop.esci.parent)
    assert digests(tmp_path) == first
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    damaged = again.esci / schemas.ESCI_SOURCES
    damaged.write_text("damaged")
    write_shop(tmp_path)
    assert digests(tmp_path) == first
    assert all(path.stat().st_mtime_ns == time for path, time in times.items() if path != damaged)


def test_grades_follow_from_attributes() -> None:
    wish = Wish(Look("mug", "red", "striped"), brand="Norbrim")
    exact = Goods(Look("mug", "red", "striped"), "Norbrim", "ceramic")
    assert grade(wish, exact) == "E"
    assert grade(Wish(wish.look, material="steel"), exact) == "S"
    assert grade(wish, Goods(exact.look, "Pindrift", "ceramic")) == "S"
    assert grade(wish, Goods(Look("mug", "blue", "striped"), "Norbrim", "ceramic")) == "S"
    assert grade(wish, Goods(Look("teapot", "red", "striped"), "Norbrim", "ceramic")) == "C"
    assert grade(wish, Goods(Look("boot", "red", "striped"), "Norbrim", "wool")) == "I"


def test_some_titles_leave_out_what_the_image_shows() -> None:
    item = Goods(Look("mug", "purple", "striped"), "Norbrim", "ceramic")
    titles = [title(item, Random(i)).lower() for i in range(300)]
    for words in (("purple", "violet"), ("strip",), ("mug",), ("norbrim",)):
        share = sum(any(word in text for word in words) for text in titles) / len(titles)
        assert 0.3 < share < 1, words


def test_images_are_served_with_redirects_and_nothing_outside(shop: Shop, urls: dict[str, str]) -> None:
    name = next(url.removeprefix(HOST) for url in urls.values() if url.endswith(".webp") and f"/{MOVED}" not in url)
    (shop.images.parent / "secret.txt").write_text("secret")
    with serve_images(shop.images) as address:
        base = f"http://{address}/"
        for path in (name, MOVED + name):
            with urllib.request.urlopen(base + path) as answer:
                assert answer.read() == (shop.images / name).read_bytes()
                assert answer.headers["Content-Type"] == "image/webp"
                assert answer.url == base + name
        with urllib.request.urlopen(schemas.GENERIC_IMAGE_URL.replace(AMAZON, base)) as answer:
            assert answer.headers["Content-Type"] == "image/jpeg"
        for path in ("I/gone.jpg", "../secret.txt", "%2e%2e/secret.txt", "moved/../../secret.txt"):
            with pytest.raises(urllib.error.HTTPError, match="404") as refused:
                urllib.request.urlopen(base + path)
            refused.value.close()
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(base + name)
