"""A release with texts and labels that pages must not trust, its images, and the explorer served in a thread."""

from __future__ import annotations

import hashlib
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from embed_work import write
from encoder_fixtures import encoded, make_image
from starlette.types import ASGIApp
from tiny_release import write_release

from builder.explore import server
from builder.explore.app import make_app
from builder.explore.catalogue import Catalogue
from builder.explore.guard import allowed_names
from sqid_lib import schemas
from sqid_lib.store import EmbeddingStore

SCRIPT = "<script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\"> & more"
LONG = "long title " * 100_000  # 1.1 MB
LABELS = {"Exact": 1.0, "Near": 0.25, "Off": 0.0}  # none of ESCI's


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Message
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Served:
    """The explorer at a loopback address."""

    url: str
    catalogue: Catalogue

    def get(self, path: str, headers: Mapping[str, str] | None = None, data: bytes | None = None) -> Answer:
        request = urllib.request.Request(self.url + path, data, dict(headers or {}))
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=30) as answer:
                return Answer(answer.status, answer.headers, answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, error.headers, error.read())

    def json(self, path: str) -> Any:
        answer = self.get(path)
        assert answer.status == 200, answer.body
        return answer.json


@contextmanager
def served_app(app: ASGIApp, catalogue: Catalogue) -> Iterator[Served]:
    with server.listen("127.0.0.1", 0) as listening:
        ready = threading.Event()
        running = server.Server(app, ready.set)
        thread = threading.Thread(target=running.run, args=([listening],))
        thread.start()
        assert ready.wait(20)
        try:
            yield Served(server.url_of(listening, "127.0.0.1"), catalogue)
        finally:
            running.should_exit = True
            thread.join(20)


@contextmanager
def served(catalogue: Catalogue) -> Iterator[Served]:
    """The explorer of a catalogue on a free port, until the context ends."""
    with served_app(make_app(catalogue, allowed_names("127.0.0.1")), catalogue) as found:
        yield found


def rewrite(release: Path, config: str, column: str, values: list[Any]) -> None:
    """Replace a column of a config that has one shard."""
    (path,) = (release / "data" / config).iterdir()
    rows = pq.read_table(path)
    at = rows.schema.get_field_index(column)
    pq.write_table(rows.set_column(at, rows.schema.field(at), pa.array(values, rows.schema.field(at).type)), path)


def read_column(release: Path, config: str, column: str) -> list[Any]:
    (path,) = (release / "data" / config).iterdir()
    return pq.read_table(path, columns=[column])[column].to_pylist()  # type: ignore[no-any-return]


def odd_release(root: Path) -> Path:
    """60 products, of which the first two judged for the first query have hostile titles.

    Labels are not ESCI's, and ids of queries have 61 bits.
    """
    release = write_release(root / "release", shards=1)
    titles = read_column(release, schemas.FEATURES, "product_title")
    ids = read_column(release, schemas.FEATURES, "product_id")
    query_ids = read_column(release, schemas.JUDGMENTS, "query_id")
    judged = read_column(release, schemas.JUDGMENTS, "product_id")
    first = [product for query, product in zip(query_ids, judged, strict=True) if query == query_ids[0]]
    titles[ids.index(first[0])], titles[ids.index(first[1])] = SCRIPT, LONG
    rewrite(release, schemas.FEATURES, "product_title", titles)
    rewrite(release, schemas.URLS, "product_title", titles)
    names = dict(zip("ESCI", ("Exact", "Near", "Near", "Off"), strict=True))
    labels = [names[label] for label in read_column(release, schemas.JUDGMENTS, "esci_label")]
    rewrite(release, schemas.JUDGMENTS, "esci_label", labels)
    rewrite(release, schemas.JUDGMENTS, "gain", [LABELS[label] for label in labels])
    for config in (schemas.QUERIES, schemas.JUDGMENTS):  # ids that a JavaScript number cannot hold
        numbers = read_column(release, config, "query_id")
        rewrite(release, config, "query_id", [2**60 + number for number in numbers])
    queries = read_column(release, schemas.QUERIES, "query")
    queries[1] = "靴 & <b>zapatos</b> naïve"
    rewrite(release, schemas.QUERIES, "query", queries)
    (release / schemas.SHA256SUMS).unlink()
    return release


def write_work(work: Path, release: Path, stored: int = 40) -> Path:
    """fetch/outcomes.parquet and two files of images for the first `stored` products that have an image."""
    ids, locales = (read_column(release, schemas.FEATURES, name) for name in schemas.PRODUCT_KEY)
    shown = read_column(release, schemas.FEATURES, "has_image")
    (work / "fetch").mkdir(parents=True)
    rows: list[dict[str, Any]] = []
    images: list[dict[str, Any]] = []
    for number, (product_id, locale, there) in enumerate(zip(ids, locales, shown, strict=True)):
        row = {"product_id": product_id, "product_locale": locale, "image_status": "ok" if there else "missing"}
        if there and len(images) < stored:
            data = encoded(make_image(number, (64, 48)), "JPEG" if number % 2 else "PNG")
            images.append({"sha256": hashlib.sha256(data).hexdigest(), "image": data})
            row["sha256"] = images[-1]["sha256"]
        rows.append(row)
    write(work / "fetch/outcomes.parquet", rows[::-1], schemas.OUTCOMES_SCHEMA)
    write(work / "fetch/images-00000.parquet", images[:7], schemas.IMAGES_SCHEMA)
    write(work / "fetch/images-00001.parquet", images[7:], schemas.IMAGES_SCHEMA)
    return work


class Bare:
    """A store with other tables in place of its own."""

    def __init__(self, store: Any, **tables: Any) -> None:
        self._store, self._tables = store, tables

    def __getattr__(self, name: str) -> Any:
        return self._tables[name] if name in self._tables else getattr(self._store, name)


def unjudged(store: EmbeddingStore) -> Bare:
    """The store without judgments."""
    none = np.empty(0, np.int64)
    return Bare(store, judgments=store.judgments.slice(0, 0), judgment_query_index=none, judgment_product_index=none)


def unasked(store: EmbeddingStore) -> Bare:
    """The store without queries."""
    return Bare(unjudged(store), queries=store.queries.slice(0, 0), query_features=store.query_features[:0])
