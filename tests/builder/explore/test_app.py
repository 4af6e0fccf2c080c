"""The JSON of the explorer against sqid_lib, and what its server refuses."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np
import pyarrow as pa
import pytest
from encoder_fixtures import encoded, make_image
from explore_fixtures import LABELS, LONG, SCRIPT, Bare, Served, served, served_app, unasked, unjudged
from search_fixtures import QueryVectors, brute_force
from tiny_release import write_release

from builder.explore.app import MAX_UPLOAD, make_app
from builder.explore.cards import LONGEST
from builder.explore.catalogue import MAX_TOP, Catalogue
from builder.explore.guard import allowed_names
from builder.explore.release import read_brands
from sqid_lib import evaluation, schemas
from sqid_lib.errors import EncoderError
from sqid_lib.store import EmbeddingStore


def ids(answer: Any) -> list[str]:
    return [card["product_id"] for card in answer["products"]]


def test_the_release(explorer: Served, store: EmbeddingStore) -> None:
    found = explorer.json("api/release")
    assert {name: found[name] for name in ("products", "queries", "judgments")} == {
        "products": 60,
        "queries": 12,
        "judgments": 84,
    }
    assert [(row["label"], row["gain"]) for row in found["labels"]] == list(LABELS.items())
    assert sum(row["count"] for row in found["labels"]) == 84
    assert found["images"] == int(store.has_image.sum())
    assert found["methods"] == ["clip_text", "clip_image", "fusion", "rrf", "bm25", "run:mine.run"]


def test_queries_are_all_there_and_can_be_filtered(explorer: Served, store: EmbeddingStore) -> None:
    found = explorer.json("api/queries")
    assert [row["query_id"] for row in found["queries"]] == store.queries["query_id"].to_pylist()
    assert [row["id"] for row in found["queries"]] == explorer.json("api/release")["query_ids"]
    assert [int(row["id"]) for row in found["queries"]] == store.queries["query_id"].to_pylist()
    assert (found["total"], {row["judged"] for row in found["queries"]}) == (12, {7})
    assert explorer.json("api/queries?text=QUERY NUMBER&top=3&offset=2".replace(" ", "%20"))["total"] == 11
    (one,) = explorer.json(f"api/queries?text={quote('靴 & <b>')}")["queries"]
    assert one["query"] == "靴 & <b>zapatos</b> naïve"
    assert explorer.json("api/queries?text=.*")["queries"] == []


def test_a_query_that_is_the_text_or_has_the_id_comes_first(store: EmbeddingStore) -> None:
    texts = [f"mug {n}" for n in range(12)]
    texts[7] = "mug"
    catalogue = Catalogue(Bare(store, queries=store.queries.set_column(1, "query", pa.array(texts))))
    found = catalogue.queries("mug", 3)
    assert ([row["query"] for row in found["queries"]], found["total"]) == (["mug", "mug 0", "mug 1"], 12)
    query_id = store.queries["query_id"][5].as_py()
    assert [row["query_id"] for row in catalogue.queries(str(query_id))["queries"]] == [query_id]


@pytest.mark.parametrize("weight", [0, 0.3, 1])
def test_the_order_and_ndcg_of_a_query_are_those_of_evaluation(
    explorer: Served, store: EmbeddingStore, weight: float
) -> None:
    table = evaluation.compare(store, [f"fusion:{weight}"], resamples=100)
    lists, scores = table.lists, table.scores[f"fusion:{weight}"]
    order = lists.order(scores)
    for number, query_id in enumerate(table.query_ids.tolist()):
        found = explorer.json(f"api/query/{query_id}?weight={weight}")
        rows = order[lists.query[order] == number]
        assert ids(found) == [store.products["product_id"][int(row)].as_py() for row in lists.product[rows]]
        assert [card["score"] for card in found["products"]] == pytest.approx(scores[rows], abs=1e-12)
        assert [card["gain"] for card in found["products"]] == [LABELS[card["label"]] for card in found["products"]]
        assert [card["rank"] for card in found["products"]] == list(range(1, 8))
        assert found["ndcg"] == pytest.approx(table.per_query[f"fusion:{weight}"][number, 0], abs=1e-12)
        curve = dict(found["curve"])
        assert len(curve) == 21 and curve[weight] == pytest.approx(found["ndcg"], abs=1e-12)


def test_cards_have_brand_image_and_short_texts(explorer: Served, store: EmbeddingStore) -> None:
    query_id = store.queries["query_id"][0].as_py()
    cards = explorer.json(f"api/query/{query_id}")["products"]
    titles = {card["title"] for card in cards}
    assert SCRIPT in titles and LONG[: LONGEST - 1] + "…" in titles
    assert all(card["brand"].startswith("brand ") for card in cards)
    every = explorer.json(f"api/products?top={MAX_TOP}")["products"]
    stored = [card for card in every if card["image"] and card["image"].startswith("api/")]
    elsewhere = [card["image"] for card in every if card["image"] and not card["image"].startswith("api/")]
    assert len(stored) == 40 and elsewhere and all(url.startswith("https://images.example/") for url in elsewhere)
    assert {card["image_status"] for card in every if card["image"] is None} == {"missing", "not_found"}


def test_stored_images_are_served_as_what_they_are(explorer: Served) -> None:
    cards = explorer.json("api/products?top=20")["products"]
    kinds = set()
    for card in cards:
        if card["image"]:
            answer = explorer.get(card["image"])
            assert answer.status == 200 and answer.headers["x-content-type-options"] == "nosniff"
            kinds.add((answer.headers["content-type"], answer.body[:4]))
    assert kinds == {("image/jpeg", b"\xff\xd8\xff\xe0"), ("image/png", b"\x89PNG")}
    without = next(card["product_id"] for card in cards if card["image"] is None)
    assert explorer.get(f"api/product/{without}/image").status == 404


def test_the_whole_catalogue_of_a_query(explorer: Served, store: EmbeddingStore) -> None:
    query_id = store.queries["query_id"][3].as_py()
    found = explorer.json(f"api/query/{query_id}/catalogue?weight=0.25&top=60")
    expected = brute_force(store, [store.query_features[3]], 0.25)
    assert ids(found) == [product for _, product, _ in expected]
    judged = explorer.json(f"api/query/{query_id}?weight=0.25")
    labels = {card["product_id"]: card["label"] for card in judged["products"]}
    assert {card["product_id"]: card["label"] for card in found["products"] if card["label"]} == labels
    assert found["ndcg"] == judged["ndcg"]


def test_search_by_text_image_and_both(explorer: Served, store: EmbeddingStore) -> None:
    photo = encoded(make_image(3))
    for text, data in (("query number 4", None), ("", photo), ("query number 4", photo)):
        found = explorer.get(f"api/search?q={quote(text)}&weight=0.7&top=15", data=data)
        assert found.status == 200, found.body
        expected = store.search(text or None, image=data, weight=0.7, top=15, encoder=QueryVectors(store))
        assert ids(found.json) == [hit.product_id for hit in expected]
        assert [card["score"] for card in found.json["products"]] == pytest.approx([hit.score for hit in expected])


def test_neighbours(explorer: Served, store: EmbeddingStore) -> None:
    row = int(np.flatnonzero(store.has_image)[5])
    product_id = store.products["product_id"][row].as_py()
    for by, weight, vectors in (("text", 1.0, store.text_features), ("image", 0.0, store.image_features)):
        found = explorer.json(f"api/product/{product_id}/neighbours?by={by}&top=9")
        expected = [name for _, name, _ in brute_force(store, [vectors[row]], weight) if name != product_id]
        assert ids(found) == expected[:9]
        assert found["product"]["product_id"] == product_id
    without = store.products["product_id"][int(np.flatnonzero(~store.has_image)[0])].as_py()
    answer = explorer.get(f"api/product/{without}/neighbours?by=image")
    assert answer.status == 400 and "no image vector" in answer.json["error"]


def test_two_methods_side_by_side(explorer: Served, store: EmbeddingStore) -> None:
    query_id = store.queries["query_id"][0].as_py()
    names = ["clip_image", "rrf"]
    table = evaluation.compare(store, names, resamples=100)
    found = explorer.json(f"api/query/{query_id}/compare?first=clip_image&second=rrf")
    for side, name in zip(("first", "second"), names, strict=True):
        assert found[side]["ndcg"] == pytest.approx(table.per_query[name][0, 0], abs=1e-12)
        assert found[side]["mean_ndcg"] == pytest.approx(table.per_query[name][:, 0].mean(), abs=1e-12)
    first, second = ids(found["first"]), ids(found["second"])
    assert sorted(first) == sorted(second) and first != second
    assert [card["other_rank"] for card in found["second"]["products"]] == [first.index(name) + 1 for name in second]


def test_a_run_file_and_what_it_does_not_retrieve(explorer: Served, store: EmbeddingStore) -> None:
    query_id = store.queries["query_id"][0].as_py()
    found = explorer.json(f"api/query/{query_id}/compare?first=run:mine.run&second=fusion:0.25")
    cards = found["first"]["products"]
    assert [card["rank"] for card in cards] == [1, 2, 3, 4, 5, None, None]
    assert [card["score"] for card in cards[5:]] == [None, None]
    weighted = explorer.json(f"api/query/{query_id}?weight=0.25")
    assert ids(found["second"]) == ids(weighted) and found["second"]["ndcg"] == weighted["ndcg"]


@pytest.mark.parametrize("method", ["run:/etc/passwd", "features:/etc", "sbert:ORG/model", "nothing", "clip_text+rrf"])
def test_methods_that_were_not_offered_are_refused(explorer: Served, store: EmbeddingStore, method: str) -> None:
    query_id = store.queries["query_id"][0].as_py()
    answer = explorer.get(f"api/query/{query_id}/compare?first=clip_text&second={quote(method)}")
    assert answer.status == 400 and "unknown method" in answer.json["error"]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("api/query/999999999", 404),
        ("api/query/abc", 404),
        ("api/query/1/nothing", 404),
        ("api/product/none/neighbours", 404),
        ("api/product/none/image", 404),
        ("api/product/B1/neighbours?by=smell", 400),
        ("api/search?q=", 400),
        ("api/search?q=red&weight=1.5", 400),
        ("api/search?q=red&weight=nan", 400),
        ("api/search?q=red&top=0", 400),
        ("api/search?q=red&top=100000", 400),
        ("api/search?q=red&top=-1", 400),
        ("api/products?offset=x", 400),
        ("nothing", 404),
        ("static/../app.py", 404),
        ("..%2fapp.py", 404),
        ("%2e%2e/%2e%2e/etc/passwd", 404),
        ("//etc/passwd", 404),
    ],
)
def test_refusals_are_one_line(explorer: Served, path: str, status: int) -> None:
    answer = explorer.get(path)
    assert answer.status == status
    assert "\n" not in answer.json["error"]
    assert "content-security-policy" in answer.headers


def test_an_id_with_slashes_and_a_locale(store: EmbeddingStore, explorer: Served) -> None:
    class Slashed(Catalogue):
        def product_row(self, product_id: str, locale: str | None) -> int:
            assert (product_id, locale) == ("a/b?c", "us")
            return 4

    with served(Slashed(store)) as other:
        found = other.json(f"api/product/{quote('a/b?c', safe='')}/neighbours?locale=us")
    assert found["product"]["product_id"] == store.products["product_id"][4].as_py()


def raw(explorer: Served, method: str, path: str, headers: dict[str, str], body: bytes = b"") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(urlsplit(explorer.url).netloc, timeout=20)
    connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders(body or None)
    answer = connection.getresponse()
    found = answer.status, answer.read()
    connection.close()
    return found


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:99", 200),
        ("LOCALHOST", 200),
        ("[::1]:80", 200),
        ("evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("localhost@evil.example", 421),
        ("[::1]evil.example", 421),
        ("localhost:evil.example", 421),
        ("", 421),
    ],
)
def test_only_names_of_this_server_are_answered(explorer: Served, host: str, status: int) -> None:
    assert raw(explorer, "GET", "/api/release", {"Host": host})[0] == status


def test_images_of_other_sites_are_refused_and_links_are_not(explorer: Served) -> None:
    fetch = {"Host": "localhost", "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}
    assert raw(explorer, "GET", "/api/search?q=red", fetch)[0] == 403
    assert raw(explorer, "GET", "/", fetch | {"Sec-Fetch-Mode": "navigate"})[0] == 200
    assert raw(explorer, "GET", "/api/release", fetch | {"Sec-Fetch-Site": "same-origin"})[0] == 200


def test_allowed_names_and_frames(store: EmbeddingStore) -> None:
    assert allowed_names("0.0.0.0", ["Shop.Example"]) == {"localhost", "127.0.0.1", "[::1]", "shop.example"}
    assert "[fe80::1]" in allowed_names("fe80::1") and "10.0.0.7" in allowed_names("10.0.0.7")
    catalogue = Catalogue(store)
    with served_app(make_app(catalogue, allowed_names("127.0.0.1"), ("https://hub.example",)), catalogue) as framed:
        headers = framed.get("").headers
        assert "frame-ancestors https://hub.example" in headers["content-security-policy"]
        assert "x-frame-options" not in headers


def test_headers_of_the_page(explorer: Served) -> None:
    answer = explorer.get("")
    assert answer.status == 200 and answer.headers["content-type"].startswith("text/html")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "script-src 'self';" in policy and "style-src 'self';" in policy
    assert "frame-ancestors 'none'" in policy and "unsafe" not in policy
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["x-frame-options"] == "DENY"
    for forbidden in (b"<style", b" style=", b" onclick=", b"<script>", b"javascript:"):
        assert forbidden not in answer.body


def test_uploads_are_limited_decoded_and_from_this_page(explorer: Served) -> None:
    local = {"Host": "localhost"}
    for body in (b"<html>", b"GIF89a" + b"\0" * 40, encoded(make_image(1))[:-40]):
        status, answer = raw(explorer, "POST", "/api/search", {**local, "Content-Length": str(len(body))}, body)
        assert status == 400 and "not an image that can be used" in json.loads(answer)["error"]
    assert raw(explorer, "POST", "/api/search", {**local, "Content-Length": str(MAX_UPLOAD + 1)})[0] == 413
    assert raw(explorer, "POST", "/api/search", {**local, "Content-Length": "0"})[0] == 400
    other = {**local, "Origin": "https://evil.example", "Content-Length": "1"}
    assert raw(explorer, "POST", "/api/search", other, b"x")[0] == 403
    assert raw(explorer, "DELETE", "/api/search", local)[0] == 405
    chunked = b"%x\r\n" % (MAX_UPLOAD + 1) + b"x" * (MAX_UPLOAD + 1) + b"\r\n0\r\n\r\n"
    assert raw(explorer, "POST", "/api/search", {**local, "Transfer-Encoding": "chunked"}, chunked)[0] == 413


def test_an_upload_that_ends_early_is_no_failure(explorer: Served, caplog: pytest.LogCaptureFixture) -> None:
    address = urlsplit(explorer.url)
    for _ in range(5):  # more than are read at a time
        with socket.create_connection((address.hostname, address.port), 20) as connection:
            connection.sendall(b"POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nx")
    assert explorer.get("api/search", data=encoded(make_image(1))).status == 200
    assert not caplog.records


def test_an_encoder_that_cannot_be_loaded_is_reported_and_not_tried_again(store: EmbeddingStore) -> None:
    tried = []

    class Failing(QueryVectors):
        def encode_text(self, texts: Any, /) -> Any:
            tried.append(texts)
            raise EncoderError("no such model", fix="Give another.")

    with served(Catalogue(store, encoder=Failing(store))) as explorer:
        for _ in range(2):
            answer = explorer.get("api/search?q=red")
            assert (answer.status, answer.json) == (503, {"error": "no such model. Give another."})
        assert explorer.json("api/products")["total"] == 60
    assert len(tried) == 1


def test_a_release_without_judgments_or_queries(store: EmbeddingStore) -> None:
    query_id = store.queries["query_id"][0].as_py()
    with served(Catalogue(unjudged(store))) as explorer:
        found = explorer.json(f"api/query/{query_id}")
        assert (found["ndcg"], found["products"], found["curve"], found["query"]["judged"]) == (None, [], [], 0)
        assert len(explorer.json(f"api/query/{query_id}/catalogue")["products"]) == 40
        assert explorer.json("api/release")["labels"] == []
    with served(Catalogue(unasked(store))) as explorer:
        assert explorer.json("api/queries") == {"total": 0, "queries": []}
        assert len(ids(explorer.json("api/products?offset=50"))) == 10


def test_a_failure_inside_is_one_line(store: EmbeddingStore, caplog: pytest.LogCaptureFixture) -> None:
    broken = Bare(store, products=None)
    catalogue = Catalogue(store)
    catalogue.store = broken
    with served(catalogue) as explorer:
        answer = explorer.get("api/products")
    assert answer.status == 500 and answer.json["error"].startswith("the server failed")
    assert "content-security-policy" in answer.headers


def test_the_classic_files_alone_have_no_texts(tmp_path: Path) -> None:
    write_release(tmp_path / "release", classic=True)
    shutil.rmtree(tmp_path / "release/data")
    (tmp_path / "release" / schemas.SHA256SUMS).unlink()
    store = EmbeddingStore.open(tmp_path / "release", cache_dir=tmp_path / "cache")
    with served(Catalogue(store, brands=read_brands(store, tmp_path / "release", None, None))) as explorer:
        (query, *_) = explorer.json("api/queries")["queries"]
        assert explorer.json(f"api/queries?text={query['id']}")["queries"] == [query]
        assert query["query"] == f"query {query['query_id']}"
        cards = explorer.json(f"api/query/{query['query_id']}/catalogue?top=3")["products"]
        assert [card["title"] for card in cards] == [card["brand"] for card in cards] == [None] * 3
