"""The end of a build: what became of the images, on stderr, in WORK/summary.json, and against [expect] min_images."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from builds import FROM_ARTIFACTS, write_recipe

from builder import pipeline, summary
from builder.fetch.failures import GIVEN_UP
from builder.recipe import CatalogueSettings, EsciSettings, ExpectSettings, FetchSettings, Recipe, load
from sqid_lib import schemas
from sqid_lib.errors import CorruptFileError, CountError, RecipeError

COMMAND = "sqid build r.toml --work w"
URL = "https://images.example"


def recipe(min_images: int | None = None) -> Recipe:
    limits = FetchSettings(mirrors={f"{URL}/": "http://127.0.0.1:8123/"})
    expect = ExpectSettings(min_images=min_images)
    return Recipe(name="t", version="1", esci=EsciSettings(path="."), fetch=limits, expect=expect)


def write_outcomes(work: Path, *rows: tuple[str | None, str, int | None, str | None]) -> Path:
    """A product for each URL, status, HTTP status and detail."""
    blank: dict[str, Any] = dict.fromkeys(schemas.OUTCOMES_SCHEMA.names)
    table = [
        blank
        | {"product_locale": "us", "product_id": f"B{i:04}", "image_url": url, "image_status": status}
        | {"http_status": code, "detail": detail, "sha256": f"{i:064}" if status in ("ok", "generic") else None}
        for i, (url, status, code, detail) in enumerate(rows)
    ]
    (work / "fetch").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(table, schemas.OUTCOMES_SCHEMA), work / "fetch" / "outcomes.parquet")
    return work


MIXED = (
    *((f"{URL}/{n}", "ok", 200, None) for n in range(4)),
    (f"{URL}/g", "generic", 200, None),
    *((f"{URL}/t{n}", "connection", None, "no connection") for n in range(3)),
    (f"{URL}/5", "http_error", 503, "HTTP 503"),
    (f"{URL}/4", "not_found", 404, "HTTP 404"),
    ("http://10.0.0.1/x", "refused", None, "10.0.0.1 is not a public address"),
    (f"{URL}/none.gif", "placeholder", None, None),
    (None, "missing", None, None),
    (None, "blocked", None, None),  # a product page, which fetch cannot try again
)


def test_images_that_were_fetched_and_have_no_vector_are_named(tmp_path: Path) -> None:
    fetched = [*(("u", "ok"),) * 5, ("u", "generic"), (None, "missing")]
    write_outcomes(tmp_path, *((url, status, None, None) for url, status in fetched))
    statuses = ["error", "ok", "non_finite", "error", "not_encoded", "error", "missing"]
    (tmp_path / "embed").mkdir()
    rows = {"product_id": [f"B{i:04}" for i in range(len(statuses))], "image_status": statuses}
    pq.write_table(pa.table(rows).slice(0, 4), tmp_path / "embed" / "products-00000.parquet")
    found = summary.summarize(recipe(), tmp_path, COMMAND)
    assert found is not None and not found.without_vector  # embed has not finished
    pq.write_table(pa.table(rows).slice(4), tmp_path / "embed" / "products-00001.parquet")
    found = summary.summarize(recipe(), tmp_path, COMMAND)
    assert found is not None
    assert "images without a vector: error 3 (B0000, B0003, B0005), non_finite 1 (B0002)" in found.lines()
    written = json.loads(found.write(tmp_path, recipe()).read_text())["without_vector"]
    assert written["error"] == {"count": 3, "first": ["B0000", "B0003", "B0005"]}


def test_urls_that_ended_their_workers_are_named(tmp_path: Path) -> None:
    rows = ((f"{URL}/{n}", "error", None, GIVEN_UP if n < 4 else "other") for n in range(6))
    found = summary.summarize(recipe(), write_outcomes(tmp_path, *rows), COMMAND)
    assert found is not None
    named = ", ".join(f"{URL}/{n}" for n in range(3))
    assert f"URLs that ended the workers that fetched them: 4 ({named}, …)" in found.lines()


def test_products_statuses_hosts_and_what_to_run_next(tmp_path: Path) -> None:
    found = summary.summarize(recipe(), write_outcomes(tmp_path, *MIXED), COMMAND)
    assert found is not None
    assert found.lines() == [
        "images: 14 products, 11 with a URL, 5 with an image (45% of those)",
        "image statuses: ok 4, connection 3, blocked 1, generic 1, http_error 1, missing 1, not_found 1, "
        "placeholder 1, refused 1",
        "images of 127.0.0.1:8123: 5 of 10 failed, most with connection (no connection)",
        "images of 10.0.0.1: 1 of 1 failed, most with refused (10.0.0.1 is not a public address)",
        f"next, to try 4 failures again that may pass: {COMMAND}",
        f"next, once their hosts or ports are allowed in [fetch], to try 1 refused URLs again: {COMMAND}",
        f"next, if the servers changed, to try 1 failures again: {COMMAND} --retry not_found",
    ]
    assert found.warning() is not None
    written = json.loads(found.write(tmp_path, recipe()).read_text())
    assert (tmp_path / "summary.json").exists()
    assert (written["recipe"], written["products"], written["with_url"], written["images"]) == ("t", 14, 11, 5)
    assert written["statuses"]["connection"] == 3
    assert written["hosts"][0] == {
        "host": "127.0.0.1:8123",
        "products": 10,
        "failures": 5,
        "reason": "connection",
        "detail": "no connection",
    }
    assert written["next"][2]["command"] == f"{COMMAND} --retry not_found"


@pytest.mark.parametrize(
    ("ok", "failed", "without", "warning"),
    [
        (5, 5, 9, None),
        (4, 5, 0, "FEW IMAGES: only 4 of the 9 products that have a URL got an image (connection 5, ok 4)."),
        (0, 3, 0, "FEW IMAGES: only 0 of the 3 products that have a URL got an image (connection 3)."),
        (0, 0, 7, "NO IMAGES: none of the 7 products has a URL. Check [resolve] of the recipe."),
        (0, 0, 0, None),
    ],
)
def test_under_half_is_said_aloud(tmp_path: Path, ok: int, failed: int, without: int, warning: str | None) -> None:
    rows: list[tuple[str | None, str, int | None, str | None]] = []
    rows += [(f"{URL}/{n}", "ok", 200, None) for n in range(ok)]
    rows += [(f"{URL}/f{n}", "connection", None, "no connection") for n in range(failed)]
    rows += [(None, "missing", None, None) for _ in range(without)]
    found = summary.summarize(recipe(), write_outcomes(tmp_path, *rows), COMMAND)
    assert found is not None and found.warning() == warning


def test_min_images_names_statuses_hosts_and_what_to_run(tmp_path: Path) -> None:
    write_outcomes(tmp_path, *MIXED)
    summary.check_images(recipe(5), tmp_path, COMMAND)
    summary.check_images(recipe(0), tmp_path, COMMAND)
    summary.check_images(recipe(), tmp_path, COMMAND)
    with pytest.raises(CountError) as raised:
        summary.check_images(recipe(6), tmp_path, COMMAND)
    message = str(raised.value)
    assert message.startswith(
        "expect.min_images: too few images; finished work and an earlier release are kept; expected at least 6, got 5 "
        "of 14 products: ok 4, connection 3, "
    )
    assert message.endswith(
        "failures by host: 127.0.0.1:8123 5 (connection), 10.0.0.1 1 (refused). Mend the cause and run: " + COMMAND
    )


def test_damage_that_came_meanwhile_is_named(tmp_path: Path) -> None:
    write_outcomes(tmp_path, ("https://a.example/1.jpg", "ok", 200, None))
    path = tmp_path / "fetch" / "outcomes.parquet"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(CorruptFileError, match=r"outcomes\.parquet.*damaged"):
        summary.summarize(recipe(), tmp_path, "sqid build")
    with pytest.raises(CorruptFileError, match=r"outcomes\.parquet.*damaged"):
        summary.made("fetch", tmp_path)


def test_nothing_to_count_is_no_summary(tmp_path: Path) -> None:
    assert summary.summarize(recipe(), tmp_path, COMMAND) is None


def test_artifacts_have_no_stage_that_min_images_counts(tmp_path: Path, esci: Path, artifacts: Path) -> None:
    text = FROM_ARTIFACTS + "[expect]\nmin_images = 3\n"
    with pytest.raises(RecipeError, match=r"expect\.min_images: needs the stage fetch, which \[artifacts\] skips"):
        pipeline.build(load(write_recipe(tmp_path, text)), tmp_path / "work")


def test_a_build_without_any_url_says_so_aloud_and_keeps_an_earlier_release(
    tmp_path: Path, esci: Path, caplog: pytest.LogCaptureFixture
) -> None:
    said: list[str] = []
    work, release = tmp_path / "work", tmp_path / "work" / schemas.RELEASE_DIR
    release.mkdir(parents=True)
    with caplog.at_level(logging.WARNING), pytest.raises(CountError, match=r"expect\.min_images"):
        pipeline.build(load(write_recipe(tmp_path, "[expect]\nmin_images = 1\n")), work, say=said.append)
    assert [record.message for record in caplog.records] == [
        "NO IMAGES: none of the 36 products has a URL. Check [resolve] of the recipe."
    ]
    assert said[-3:] == [
        "fetch: 0 of 0 images, done before",
        "images: 36 products, 0 with a URL, 0 with an image",
        "image statuses: missing 36",
    ]
    assert (work / "summary.json").exists()
    assert list(release.iterdir()) == []
    assert not (work / "embed").exists()


# -- local images of a catalogue -----------------------------------------------------------------------------------


def shop() -> Recipe:
    return Recipe(name="t", version="1", catalogue=CatalogueSettings(products="p.csv", locale="de"))


def test_local_images_have_advice_of_their_own(tmp_path: Path) -> None:
    rows = [
        *((f"file:a/{n}.jpg", "not_found", None, "no such file") for n in range(3)),
        ("file:0.jpg", "ok", None, None),
        ("file:/etc/passwd", "refused", None, "outside the folder of the images"),
        ("row:0:1", "corrupt", None, "JPEG: broken data stream"),
        ("row:0:2", "missing", None, "no bytes in the row"),
        (f"{URL}/1", "connection", None, "no connection"),
        (None, "missing", None, None),
    ]
    found = summary.summarize(shop(), write_outcomes(tmp_path, *rows), COMMAND)
    assert found is not None
    assert found.lines() == [
        "images: 9 products, 7 with a URL or a local image, 1 with an image (14% of those)",
        "image statuses: not_found 3, missing 2, connection 1, corrupt 1, ok 1, refused 1",
        "images of local files: 4 of 5 failed, most with not_found (no such file, such as a/0.jpg)",
        "images of images.example: 1 of 1 failed, most with connection (no connection)",
        "images of rows of the products: 1 of 1 failed, most with corrupt (JPEG: broken data stream, such as row:0:1)",
        f"next, to try 1 failures again that may pass: {COMMAND}",
        f"next, once their files are there and sound, to read 4 local images again: {COMMAND}",
        f"next, once images of [catalogue] is the folder that holds them, to read 1 local images again: {COMMAND}",
    ]
    assert str(found.warning()).startswith("FEW IMAGES: only 1 of the 7 products that have a URL or a local image got")


def test_a_catalogue_without_images_names_its_section(tmp_path: Path) -> None:
    found = summary.summarize(shop(), write_outcomes(tmp_path, (None, "missing", None, None)), COMMAND)
    assert found is not None
    assert found.warning() == ("NO IMAGES: none of the 1 products has an image. Check [catalogue] of the recipe.")


def test_without_a_catalogue_a_reference_is_a_bad_url(tmp_path: Path) -> None:
    found = summary.summarize(recipe(), write_outcomes(tmp_path, ("file:1.jpg", "bad_url", None, "x")), COMMAND)
    assert found is not None and found.lines()[2] == "images of (no host): 1 of 1 failed, most with bad_url (x)"


@pytest.mark.parametrize(
    ("urls", "words"),
    [
        ((URL, None), "1 of 2 products have a URL"),
        (("file:1.jpg", "row:0:1"), "2 of 2 products have a local image"),
        (("file:1.jpg", URL), "2 of 2 products have a URL or a local image"),
    ],
)
def test_what_resolve_made(tmp_path: Path, urls: tuple[str | None, ...], words: str) -> None:
    rows = [dict.fromkeys(schemas.RESOLVED_SCHEMA.names) | {"image_url": url} for url in urls]
    (tmp_path / "resolve").mkdir()
    pq.write_table(pa.Table.from_pylist(rows, schemas.RESOLVED_SCHEMA), tmp_path / "resolve" / "urls.parquet")
    assert summary.made("resolve", tmp_path) == words
