"""HTML for notebooks: images, escaped texts, and the queries on which rankings differ."""

from __future__ import annotations

import re
from html import unescape

import numpy as np
import pyarrow as pa
from evaluation_fixtures import MemoryStore, memory_store, random_store

from sqid_lib import evaluation
from sqid_lib.evaluation.notebook import PRODUCTS, QUERIES, escaped, image

EVIL = "<script>alert(1)</script>\"'&"


def with_images(store: MemoryStore) -> MemoryStore:
    count = store.products.num_rows
    urls = [f"https://i.example/{n}.jpg" if n % 5 else None for n in range(count)]
    store.products = store.products.append_column("image_url", pa.array(urls, pa.string()))
    store.products = store.products.append_column(
        "image_status", pa.array(["ok" if url else "missing" for url in urls])
    )
    return store


def test_an_image_or_its_status() -> None:
    shown = image("HTTPS://i.example/1.jpg?a=1&b=\"'", "ok", EVIL)
    assert shown.startswith('<img src="HTTPS://i.example/1.jpg?a=1&amp;b=&quot;&#x27;" alt="ok" title="&lt;script&gt;')
    for url in (
        None,
        "",
        "javascript:alert(1)",
        "data:image/png;base64,AAAA",
        "//i.example/1.jpg",
        "file:///etc/passwd",
    ):
        shown = image(url, "not_found", EVIL)
        assert "<img" not in shown and "<script" not in shown and ">not_found</span>" in shown
    assert ">no image</span>" in image(None, None)
    assert ">ok, no image URL</span>" in image(None, "ok")
    assert len(escaped("x" * 1_000_000)) == 200 and escaped(None) == ""


def test_the_queries_that_differ_most_come_first_with_their_best_products() -> None:
    store = with_images(random_store(14))
    result = evaluation.compare(store, ["random", "clip_text", "clip_image"], baseline="clip_text", resamples=100)
    page = result._repr_html_()
    ndcg = {name: values[:, 0] for name, values in result.per_query.items()}
    worst = np.argsort(-np.abs(ndcg["clip_image"] - ndcg["clip_text"]), kind="stable")[:QUERIES]
    names = store.queries["query"].take(result.lists.query_index[worst]).to_pylist()
    assert re.findall("<b>(.*?)</b>", page) == names
    assert "Where clip_text and clip_image differ most" in page
    values = [f"{name}: nDCG {ndcg[name][n]:.4f}" for n in worst for name in ("clip_text", "clip_image")]
    assert re.findall(r"<div>(\w+: nDCG [\d.]+)</div>", page) == values
    lists, query = result.lists, int(worst[0])
    order = lists.order(result.scores["clip_text"])
    judgments = order[lists.query[order] == query][:PRODUCTS]
    line = page.split(values[0])[1].split(values[1])[0]
    labels = store.judgments["esci_label"].take(lists.row[judgments]).to_pylist()
    assert re.findall("<br>(.*?)</span>", line) == labels
    titles = store.products["product_title"].take(lists.product[judgments]).to_pylist()
    assert [unescape(title) for title in re.findall('title="(.*?)"', line)] == titles


def test_one_ranking_whole_catalogue_and_none() -> None:
    store = with_images(random_store(14))
    assert (
        "Where clip_text has the lowest nDCG" in evaluation.compare(store, ["clip_text"], resamples=100)._repr_html_()
    )
    assert "<img" not in evaluation.compare(store, ["random"], resamples=100)._repr_html_()
    assert "<img" not in evaluation.compare(random_store(14), resamples=100)._repr_html_()
    page = evaluation.retrieve(store, ["clip_text", "clip_image"], resamples=100)._repr_html_()
    assert "<br>not judged</span>" in page


def test_texts_are_escaped() -> None:
    store = with_images(memory_store([[(0, EVIL), (1, "no")]], 2, gains={EVIL: 1.0, "no": 0.0}))
    store.products = store.products.set_column(2, "product_title", pa.array([EVIL, EVIL]))
    store.queries = store.queries.set_column(1, "query", pa.array([EVIL]))
    page = evaluation.compare(store, ["clip_text"], scores={EVIL: np.ones(2)}, resamples=100)._repr_html_()
    assert "<script" not in page and page.count("&lt;script&gt;") >= 5
