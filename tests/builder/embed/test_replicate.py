"""builder.embed.replicate: the genuine client against a loopback server with the prediction API."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("replicate")

from builder.embed import embed
from builder.embed.replicate import MODEL, Replicate
from builder.recipe import EncoderSettings, EsciSettings, Recipe
from sqid_lib import schemas
from sqid_lib.encoders.batching import VectorBatches
from sqid_lib.errors import EncoderError

WIDTH, LIMIT = 8, 20  # of the model behind the server: floats, words
BAD_IMAGE = "http://example.com/broken.jpg"


def vector(line: str) -> list[float]:
    """What the model on the server makes of a line; as CLIP's tokenizer does, it lowers the case."""
    digest = hashlib.sha256(line.lower().encode()).digest()
    return [byte / 16 - 8 for byte in digest[:WIDTH]]


class Service(ThreadingHTTPServer):
    """Predictions in memory; `script` holds statuses to answer before any prediction."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: list[int] = []
        self.asked: list[str] = []
        self.predictions: dict[str, dict[str, Any]] = {}
        self.width = WIDTH
        self.lock = threading.Lock()


class Handler(BaseHTTPRequestHandler):
    server: Service
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            if self.headers["Authorization"] != "Bearer r8_secret":
                return self.reply(401, {"detail": "Unauthenticated", "status": 401})
            if self.server.script:
                status = self.server.script.pop(0)
                return self.reply(status, {"detail": "not now", "status": status}, {"Retry-After": "0"})
            name = f"p{len(self.server.predictions)}"
            self.server.asked.append(body["input"]["inputs"])
            self.server.predictions[name] = {
                "id": name,
                "model": "andreasjansson/clip-features",
                "version": body["version"],
                "input": body["input"],
                "status": "starting",
                "output": None,
                "error": None,
                "logs": "",
                "urls": {"get": f"/v1/predictions/{name}", "cancel": f"/v1/predictions/{name}/cancel"},
            }
            return self.reply(201, self.server.predictions[name])

    def do_GET(self) -> None:
        with self.server.lock:
            prediction = self.server.predictions[self.path.rpartition("/")[2]]
            if prediction["status"] == "starting":
                prediction["status"] = "processing"
            else:
                self.finish_prediction(prediction)
            return self.reply(200, prediction)

    def finish_prediction(self, prediction: dict[str, Any]) -> None:
        # as the model's own predict() does
        lines = [line.strip() for line in prediction["input"]["inputs"].strip().splitlines()]
        texts = [line for line in lines if not re.match("^https?://", line)]
        if BAD_IMAGE in lines or any(len(text.split()) > LIMIT for text in texts):
            prediction |= {
                "status": "failed",
                "error": "The size of tensor a (81) must match the size of tensor b (77)",
            }
        else:
            output = [{"input": line, "embedding": vector(line)[: self.server.width]} for line in lines]
            prediction |= {"status": "succeeded", "output": output}

    def reply(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(data)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    server = Service()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    monkeypatch.setenv("REPLICATE_BASE_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("REPLICATE_API_TOKEN", "r8_secret")
    monkeypatch.setenv("REPLICATE_POLL_INTERVAL", "0.01")
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def recipe() -> Recipe:
    encoder = EncoderSettings(backend="replicate", text_batch=3, image_batch=2, shard_rows=4)
    return Recipe(name="tiny", version="1.0.0", esci=EsciSettings(path="esci"), encoder=encoder)


def in_order(batches: VectorBatches) -> np.ndarray:
    """Every vector at the row of its input."""
    vectors = np.concatenate(list(batches.vectors))
    rows = [row for batch in batches.rows for row in batch]
    assert sorted(rows) == list(range(len(vectors)))
    return vectors[np.argsort(rows)]


def test_texts_come_back_in_order(service: Service, recipe: Recipe) -> None:
    texts = ["red shoes", "lamp", "red shoes", "", "two\nlines  here", "Ünïcode 靴", "http://no.image/at all"]
    batches = Replicate(recipe).texts(texts)
    vectors = in_order(batches)
    lines = ["red shoes", "lamp", "red shoes", "", "two lines here", "Ünïcode 靴", "http://no.image/at all"]
    assert vectors.dtype == np.float32
    assert np.array_equal(vectors, np.array([vector(line) for line in lines], np.float32))
    asked = [line for inputs in service.asked[1:] for line in inputs.splitlines()]
    assert asked.count("red shoes") == 1  # equal texts once
    assert max(len(inputs.splitlines()) for inputs in service.asked) <= 3 + 2
    assert {p["version"] for p in service.predictions.values()} == {MODEL.partition(":")[2]}


def test_images_and_those_that_fail(service: Service, recipe: Recipe) -> None:
    urls = ["https://example.com/1.jpg", BAD_IMAGE, "https://example.com/2.jpg", "ftp://example.com/3.jpg"]
    batches, statuses = Replicate(recipe).images(urls)
    vectors = in_order(batches)
    assert statuses == {BAD_IMAGE: "error", "ftp://example.com/3.jpg": "bad_url"}
    assert np.isnan(vectors[[1, 3]]).all()
    assert np.array_equal(vectors[[0, 2]], np.array([vector(urls[0]), vector(urls[2])], np.float32))


def test_long_texts_are_truncated_at_the_last_word_that_fits(service: Service, recipe: Recipe) -> None:
    words = [f"word{chr(97 + n)}" for n in range(26)]
    vectors = in_order(Replicate(recipe).texts(["short", " ".join(words), "other"]))
    assert np.array_equal(vectors[1], np.array(vector(" ".join(words[:LIMIT])), np.float32))
    assert np.array_equal(vectors[0], np.array(vector("short"), np.float32))


def test_rate_limits_are_waited_out(service: Service, recipe: Recipe) -> None:
    backend = Replicate(recipe)
    service.script = [429, 429, 503]
    assert np.array_equal(in_order(backend.texts(["lamp"]))[0], np.array(vector("lamp"), np.float32))
    assert not service.script


def test_a_token_that_is_refused(service: Service, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPLICATE_API_TOKEN", "r8_wrong")
    with pytest.raises(EncoderError, match=r"refuses the token.*REPLICATE_API_TOKEN") as caught:
        Replicate(recipe)
    assert "r8_wrong" not in str(caught.value)


def test_no_token(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REPLICATE_API_TOKEN", raising=False)
    with pytest.raises(EncoderError, match="REPLICATE_API_TOKEN is not set"):
        Replicate(recipe)


def test_a_server_that_fails(service: Service, recipe: Recipe) -> None:
    backend = Replicate(recipe)
    service.script = [500]
    with pytest.raises(EncoderError, match=r"Replicate answers 500.*finished shards are kept"):
        in_order(backend.texts(["lamp"]))


def test_a_service_that_cannot_be_reached(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:  # bound and not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("REPLICATE_BASE_URL", f"http://127.0.0.1:{taken.getsockname()[1]}")
        monkeypatch.setenv("REPLICATE_API_TOKEN", "r8_secret")
        with pytest.raises(EncoderError, match=r"cannot be reached.*Check the network"):
            Replicate(recipe)


def test_answers_of_another_shape(service: Service, recipe: Recipe) -> None:
    backend = Replicate(recipe)
    service.width = 0
    with pytest.raises(EncoderError, match="not a vector per line"):
        in_order(backend.texts(["lamp"]))


def test_every_image_failing_is_an_error(service: Service, recipe: Recipe) -> None:
    with pytest.raises(EncoderError, match="not one of 1 images"):
        in_order(Replicate(recipe).images([BAD_IMAGE])[0])


def test_a_whole_pass_and_again(service: Service, recipe: Recipe, tmp_path: Path) -> None:
    urls = [f"https://example.com/{row}.jpg" for row in range(5)] + [BAD_IMAGE, None]
    make_work(tmp_path, urls)
    embed(recipe, tmp_path)
    products = pa.concat_tables(pq.read_table(path) for path in sorted((tmp_path / "embed").glob("products-*.parquet")))
    assert products["image_status"].to_pylist() == ["ok"] * 5 + ["error", "missing"]
    assert products["clip_image_features"].to_pylist() == [vector(url) for url in urls[:5] if url] + [None, None]
    assert products["clip_text_features"].to_pylist() == [vector(f"title {row}") for row in range(7)]
    record = json.loads((tmp_path / "embed/encoder.json").read_text())
    assert (record["width"], record["backend"], record["revision"]) == (WIDTH, "replicate", MODEL.partition(":")[2])
    asked = len(service.asked)
    embed(recipe, tmp_path)
    assert len(service.asked) == asked  # nothing is paid twice
    settings = recipe.encoder.model_copy(update={"model": f"someone/clip:{'ab' * 32}"})
    embed(recipe.model_copy(update={"encoder": settings}), tmp_path)
    assert service.predictions[f"p{asked}"]["version"] == "ab" * 32


def make_work(work: Path, urls: list[str | None]) -> None:
    (work / "sample").mkdir()
    (work / "fetch").mkdir()
    rows = [
        {"product_id": f"P{row}", "product_locale": "us", "product_title": f"title {row}"} for row in range(len(urls))
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=schemas.PRODUCTS_SCHEMA), work / "sample/products.parquet")
    queries = [{"query_id": 1, "query": "lamp", "source": "other"}]
    pq.write_table(
        pa.Table.from_pylist(queries, schema=schemas.SAMPLED_QUERIES_SCHEMA), work / "sample/queries.parquet"
    )
    outcomes = [
        {**row, "image_url": url, "image_status": "ok" if url else "missing"}
        for row, url in zip(rows, urls, strict=True)
    ]
    pq.write_table(pa.Table.from_pylist(outcomes, schema=schemas.OUTCOMES_SCHEMA), work / "fetch/outcomes.parquet")
