from __future__ import annotations

import asyncio
import itertools
import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hostile_server import LoopbackServer, Request, answer
from hypothesis import given, settings
from hypothesis import strategies as st

from builder.pipeline import build
from builder.recipe import EsciSettings, FetchSettings, PagesSettings, Recipe, ResolveSettings
from builder.resolve import resolve
from builder.resolve.page_images import is_captcha, main_image
from builder.resolve.stage import pending
from builder.stamps import Stamps
from sqid_lib import schemas
from sqid_lib.errors import FetchError, MissingExtraError, UsageError

IMAGE = "https://m.media-amazon.com/images/I/71abc._AC_SX679_.jpg"
OTHER = "https://m.media-amazon.com/images/I/61xyz._SX385_.jpg"
CAPTCHA = b'<html><title>Robot Check</title><form action="/errors/validateCaptcha"></form></html>'

# -- the main image of a page -----------------------------------------------------------------------------------

GALLERY = {"hiRes": IMAGE, "thumb": "https://h/t.jpg", "large": "https://h/l.jpg", "variant": "MAIN"}
PAGES: dict[str, tuple[str, str | None]] = {
    "high resolution": (f'<img id="landingImage" data-old-hires="{IMAGE}" src="https://h/small.jpg">', IMAGE),
    "no high resolution": (f'<img id="landingImage" data-old-hires="" src="{IMAGE}">', IMAGE),
    "largest rendition": (
        '<img id="landingImage" src="https://h/s.jpg" data-a-dynamic-image=\'{"https://h/a.jpg":[10,20],'
        f'"{IMAGE}":[300,200],"https://h/b.jpg":[200,100]}}\'>',
        IMAGE,
    ),
    "renditions escaped": (
        f'<img id="landingImage" data-a-dynamic-image="{{&quot;{IMAGE}&quot;:[1,1]}}">',
        IMAGE,
    ),
    "renditions broken": (f'<img id="landingImage" data-a-dynamic-image="{{oops" src="{IMAGE}">', IMAGE),
    "renditions of nothing": (f'<img id="landingImage" data-a-dynamic-image="[]" src="{IMAGE}">', IMAGE),
    "lazy": (
        f'<img id="landingImage" src="data:image/gif;base64,R0lG"><meta property="og:image" content="{IMAGE}">',
        IMAGE,
    ),
    "book": (f'<img id="imgBlkFront" src="{IMAGE}">', IMAGE),
    "e-book": (f'<img id="ebooksImgBlkFront" src="{IMAGE}">', IMAGE),
    "mobile": (f'<img id="main-image" src="{IMAGE}">', IMAGE),
    "no scheme": ('<img id="main-image" src="//h.example/a%7Cb.jpg">', "https://h.example/a%7Cb.jpg"),
    "relative": ('<img id="main-image" src="/i/a.jpg">', "https://shop.example/i/a.jpg"),
    "gallery": (
        "<script>var data = {'colorImages': { 'initial': " + json.dumps([GALLERY]) + "}, 'x': 1};</script>",
        IMAGE,
    ),
    "gallery without high resolution": (
        "<script>'colorImages':{'initial':"
        + json.dumps([{"hiRes": None, "large": IMAGE, "variant": "MAIN"}])
        + "}</script>",
        IMAGE,
    ),
    "gallery of variants": (
        "<script>'colorImages': {'initial': " + json.dumps([{**GALLERY, "hiRes": OTHER, "variant": "PT01"}, GALLERY]),
        IMAGE,
    ),
    "gallery of a book": (
        "<script>'imageGalleryData' : " + json.dumps([{"mainUrl": IMAGE, "thumbUrl": OTHER}]) + ",</script>",
        IMAGE,
    ),
    "gallery broken": ("<script>'colorImages': {'initial': [{\"hiRes\": </script>", None),
    "open graph": (f'<meta property="og:image" content="{IMAGE}">', IMAGE),
    "element before gallery": (
        f"<script>'colorImages': {{'initial': {json.dumps([GALLERY])}}}</script>"
        f'<img id="landingImage" src="{OTHER}">',
        OTHER,
    ),
    "other images only": ('<img src="https://h/logo.png"><img id="logo" src="https://h/l.png">', None),
    "nothing": ("", None),
}


@pytest.mark.parametrize("name", PAGES)
def test_main_image_is_found_where_pages_keep_it(name: str) -> None:
    page, expected = PAGES[name]
    assert main_image(f"<html><body>{page}</body></html>".encode(), "https://shop.example/dp/B01") == expected
    assert main_image(page.encode(), "https://shop.example/dp/B01") == expected


@given(
    st.binary(), st.sampled_from(["utf-8", "shift_jis", "latin-1", "no such charset", "idna", "undefined", "\udcff"])
)
@settings(max_examples=100, deadline=None)
def test_any_bytes_are_a_page(page: bytes, charset: str) -> None:
    assert main_image(page, "https://shop.example/", charset) is None


@pytest.mark.parametrize(
    ("page", "headers", "image", "expected"),
    [
        (CAPTCHA, {}, None, True),
        (CAPTCHA, {}, IMAGE, True),
        (b"<p>Enter the characters you see below</p>", {}, None, True),
        (b'<div class="g-recaptcha"></div>', {}, None, True),
        (b'<div class="g-recaptcha"></div>', {}, IMAGE, False),
        (b"<p>This captcha novel is a thriller</p>", {}, None, False),
        (b"", {"x-amzn-waf-action": "challenge"}, None, True),
        (b"", {"cf-mitigated": "challenge"}, None, True),
        (b"", {}, None, False),
    ],
)
def test_pages_that_ask_for_proof_of_a_person(
    page: bytes, headers: dict[str, str], image: str | None, expected: bool
) -> None:
    assert is_captcha(page, headers, image=image) is expected


# -- visits -------------------------------------------------------------------------------------------------------

ROBOTS = b"User-agent: *\nDisallow: /dp/SECRET\nAllow: /\n"


def shown(image: str) -> bytes:
    return answer(f'<html><img id="landingImage" src="{image}"></html>'.encode(), Content_Type="text/html")


ANSWERS = {
    "/robots.txt": answer(ROBOTS),
    "/dp/OK": shown(IMAGE),
    "/dp/NONE": answer(b"<html>Sorry, we could not find that page</html>"),
    "/dp/EMPTY": answer(b""),
    "/dp/PLACEHOLDER": shown("https://m.media-amazon.com/images/I/01RmK%2BJ4pJL._AC_.gif"),
    "/dp/GENERIC": shown(schemas.GENERIC_IMAGE_URL),
    "/dp/GONE": answer(b"", 404),
    "/dp/410": answer(b"", 410),
    "/dp/FORBIDDEN": answer(b"", 403),
    "/dp/BROKEN": answer(b"", 400),
    "/dp/MOVED": answer(b"", 301, Location="/dp/OK"),
    "/dp/TO-SECRET": answer(b"", 302, Location="/dp/SECRET"),
    "/dp/LOOP": answer(b"", 302, Location="/dp/LOOP"),
    "/dp/SECRET": shown(IMAGE),
    "/dp/CAPTCHA": answer(CAPTCHA),
    "/dp/CAPTCHA-503": answer(CAPTCHA, 503),
    "/dp/A%2FB": shown(OTHER),
}


async def shop(request: Request, writer: asyncio.StreamWriter) -> None:
    writer.write(ANSWERS.get(request.path) or answer(b"", 403))


@pytest.fixture
def server() -> Iterator[LoopbackServer]:
    with LoopbackServer(shop) as running:
        yield running


def recipe(server: LoopbackServer, *tables: str, **pages: Any) -> Recipe:
    settings: dict[str, Any] = {
        "permission": True,
        "contact": "me@example.org",
        "delay": 0.001,
        "url": "https://shop.example/dp/{product_id}",
    }
    limits = FetchSettings(
        mirrors={"https://shop.example/": f"{server.origin}/"}, allow_hosts=(f"127.0.0.1:{server.port}",), timeout=5.0
    )
    return Recipe(
        name="t",
        version="1",
        esci=EsciSettings(path="."),
        resolve=ResolveSettings(tables=tables, pages=PagesSettings(**settings | pages)),
        fetch=limits,
    )


def sampled(work: Path, *products: str) -> Path:
    (work / "sample").mkdir(parents=True, exist_ok=True)
    rows = [{"product_id": product, "product_locale": "us"} for product in products]
    pq.write_table(pa.Table.from_pylist(rows, schemas.PRODUCTS_SCHEMA), work / "sample" / "products.parquet")
    pq.write_table(schemas.PRODUCTS_SCHEMA.empty_table(), work / "sample" / "supp.parquet")
    return work


def results(work: Path) -> dict[str, tuple[str, str | None, str | None]]:
    rows = pq.read_table(work / "resolve" / "urls.parquet").to_pylist()
    return {r["product_id"]: (r["image_status"], r["image_url"], r["source"]) for r in rows}


def test_every_kind_of_page_has_its_status(server: LoopbackServer, tmp_path: Path) -> None:
    names = ["OK", "NONE", "EMPTY", "PLACEHOLDER", "GENERIC", "GONE", "410", "FORBIDDEN", "BROKEN", "MOVED"]
    resolve(recipe(server), sampled(tmp_path, *names, "TO-SECRET", "LOOP", "SECRET", "A/B"))
    assert {name: status for name, (status, _, _) in results(tmp_path).items()} == {
        "OK": "ok",
        "NONE": "missing",
        "EMPTY": "missing",
        "PLACEHOLDER": "placeholder",
        "GENERIC": "generic",
        "GONE": "missing",
        "410": "missing",
        "FORBIDDEN": "blocked",
        "BROKEN": "error",
        "MOVED": "ok",
        "TO-SECRET": "blocked",
        "LOOP": "error",
        "SECRET": "blocked",
        "A/B": "ok",
    }
    assert results(tmp_path)["MOVED"] == ("ok", IMAGE, "page")
    assert results(tmp_path)["A/B"] == ("ok", OTHER, "page")
    assert results(tmp_path)["FORBIDDEN"][1:] == (None, None)
    assert server.requests[0].path == "/robots.txt"
    assert server.hits()["/robots.txt"] == 1
    assert server.hits()["/dp/SECRET"] == 0


@pytest.mark.parametrize("package", ["protego", "selectolax.lexbor"])
def test_a_missing_package_is_named_with_its_extra(
    server: LoopbackServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=r"pip install \"sqid\[build\]\""):
        resolve(recipe(server), sampled(tmp_path, "OK"))


def test_requests_say_who_asks(server: LoopbackServer, tmp_path: Path) -> None:
    resolve(recipe(server), sampled(tmp_path, "OK"))
    assert {r.headers["User-Agent"].partition("/")[0] for r in server.requests} == {"sqid"}
    assert all("me@example.org" in r.headers["User-Agent"] for r in server.requests)


def test_tables_come_first_and_pages_serve_the_rest(server: LoopbackServer, tmp_path: Path) -> None:
    table = tmp_path / "urls.csv"
    table.write_text(f"product_id,image_url\nOK,{OTHER}\n")
    resolve(recipe(server, str(table)), sampled(tmp_path, "OK", "MOVED"))
    assert results(tmp_path) == {"OK": ("ok", OTHER, "urls.csv"), "MOVED": ("ok", IMAGE, "page")}
    assert server.hits()["/dp/MOVED"] == 1


def test_visited_pages_are_counted_without_a_request(server: LoopbackServer, tmp_path: Path) -> None:
    work, words = sampled(tmp_path, "OK", "GONE", "BROKEN"), "would look for the image URLs of 3 products in 0 tables"
    assert pending(recipe(server, permission=False), work) == words
    assert pending(recipe(server), work) == f"{words}, then on product pages, of which 0 were visited before"
    assert not (work / "resolve").exists() and not server.requests
    resolve(recipe(server), work)
    requests, files = len(server.requests), sorted((work / "resolve").iterdir())
    assert pending(recipe(server), work).endswith(" 3 were visited before")
    assert pending(recipe(server), work, ["error"]).endswith(" 2 were visited before")
    assert (len(server.requests), sorted((work / "resolve").iterdir())) == (requests, files)


def test_pages_are_off_without_permission(server: LoopbackServer, tmp_path: Path) -> None:
    resolve(recipe(server, permission=False), sampled(tmp_path, "OK"))
    assert (server.requests, results(tmp_path)["OK"][0]) == ([], "missing")


def test_a_finished_visit_asks_for_nothing_again(server: LoopbackServer, tmp_path: Path) -> None:
    sampled(tmp_path, "OK", "GONE", "BROKEN", "FORBIDDEN")
    resolve(recipe(server), tmp_path)
    before, done = (tmp_path / "resolve" / "urls.parquet").read_bytes(), len(server.requests)
    resolve(recipe(server), tmp_path)
    assert ((tmp_path / "resolve" / "urls.parquet").read_bytes(), len(server.requests)) == (before, done)
    resolve(recipe(server), tmp_path, retry=["error", "blocked"])
    assert sorted(r.path for r in server.requests[done:]) == ["/dp/BROKEN", "/dp/FORBIDDEN", "/robots.txt"]
    with pytest.raises(UsageError, match="--retry"):
        resolve(recipe(server), tmp_path, retry=["ok"])


def test_a_build_of_this_stage_alone_visits_failed_pages_again(server: LoopbackServer, tmp_path: Path) -> None:
    sampled(tmp_path, "OK", "GONE", "BROKEN")
    Stamps(tmp_path).write("sample", "key")
    build(recipe(server), tmp_path, only="resolve")
    done = len(server.requests)
    build(recipe(server), tmp_path, only="resolve", retry=["error"])
    assert sorted(r.path for r in server.requests[done:]) == ["/dp/BROKEN", "/robots.txt"]
    with pytest.raises(UsageError, match="unknown failure of pages"):
        build(recipe(server), tmp_path, only="resolve", retry=["timeout"])


@pytest.mark.parametrize("name", ["CAPTCHA", "CAPTCHA-503"])
def test_a_captcha_ends_the_run_and_what_was_visited_is_kept(server: LoopbackServer, tmp_path: Path, name: str) -> None:
    sampled(tmp_path, "OK", name, "GONE")
    for run in range(2):
        with pytest.raises(FetchError, match=r"asks for a captcha.*use tables"):
            resolve(recipe(server), tmp_path)
        assert server.hits()["/dp/OK"] == 1
        assert server.hits()[f"/dp/{name}"] == run + 1
    assert server.hits()["/dp/GONE"] == 0
    assert not (tmp_path / "resolve" / "urls.parquet").exists()


def test_a_run_of_refusals_ends_the_run_and_is_asked_again_next_time(server: LoopbackServer, tmp_path: Path) -> None:
    sampled(tmp_path, "OK", *(f"X{n}" for n in range(20)))
    for run in (1, 2):
        with pytest.raises(FetchError, match="refused 5 pages in a row"):
            resolve(recipe(server), tmp_path)
        assert (server.hits()["/dp/OK"], server.hits()["/dp/X4"], server.hits()["/dp/X5"]) == (1, run, 0)


def test_single_refusals_among_answers_do_not(server: LoopbackServer, tmp_path: Path) -> None:
    mixed = [name for n in range(8) for name in (f"X{n}", "OK" if n % 2 else "GONE")]
    resolve(recipe(server), sampled(tmp_path, *dict.fromkeys(mixed[:6])))
    assert Counter(status for status, _, _ in results(tmp_path).values()) == {"blocked": 3, "ok": 1, "missing": 1}


def scripted(robots: bytes | Callable[[int], bytes], page: Callable[[Request, int], bytes]) -> LoopbackServer:
    """A server whose answers depend on how often it was asked before."""

    async def serve(request: Request, writer: asyncio.StreamWriter) -> None:
        times = running.hits()[request.path]
        if request.path == "/robots.txt":
            writer.write(robots(times) if callable(robots) else robots)
        else:
            writer.write(page(request, times))

    running = LoopbackServer(serve)
    return running


@pytest.mark.parametrize(
    ("robots", "status"),
    [
        (answer(b"", 404), "ok"),
        (answer(b"", 410), "ok"),
        (answer(b""), "ok"),
        (answer(b"<html>no rules here</html>"), "ok"),
        (answer(b"\xff\xfe\x00 garbage \x00" * 50), "ok"),
        (answer(b"User-agent: *\nDisallow: /\n"), "blocked"),
        (answer(b"User-agent: sqid\nDisallow: /dp/\n\nUser-agent: *\nAllow: /\n"), "blocked"),
        (answer(b"User-agent: other\nDisallow: /\n"), "ok"),
        (answer(b"User-agent: *\nDisallow: /dp/*K$\n"), "blocked"),
        (answer(b"\xef\xbb\xbfUser-agent: *\nDisallow: /dp/\n"), "blocked"),
        (answer(b"", 401), "blocked"),
        (answer(b"", 403), "blocked"),
    ],
)
def test_robots_rules_are_kept(tmp_path: Path, robots: bytes, status: str) -> None:
    with scripted(robots, lambda request, times: shown(IMAGE)) as server:
        resolve(recipe(server), sampled(tmp_path, "OK"))
        assert results(tmp_path)["OK"][0] == status
        assert [r.path for r in server.requests] == ["/robots.txt", *(["/dp/OK"] if status == "ok" else [])]


@pytest.mark.parametrize("code", [500, 503, 429])
def test_unreadable_robots_rules_end_the_run_before_any_page(tmp_path: Path, code: int) -> None:
    with scripted(answer(b"", code), lambda request, times: shown(IMAGE)) as server:
        with pytest.raises(FetchError, match=r"robots\.txt|slow down"):
            resolve(recipe(server), sampled(tmp_path, "OK"))
        assert set(server.hits()) == {"/robots.txt"}


def test_a_busy_server_is_waited_for_and_then_left_alone(tmp_path: Path) -> None:
    def busy(request: Request, times: int) -> bytes:
        return shown(IMAGE) if times > 2 and request.path == "/dp/OK" else answer(b"", 503, Retry_After=0)

    with scripted(answer(b"", 404), busy) as server:
        resolve(recipe(server), sampled(tmp_path / "a", "OK"))
        assert results(tmp_path / "a")["OK"][0] == "ok"
        assert server.hits()["/dp/OK"] == 3
        with pytest.raises(FetchError, match="keeps asking to slow down"):
            resolve(recipe(server), sampled(tmp_path / "b", "BUSY"))
        assert server.hits()["/dp/BUSY"] == 4


def test_a_server_with_a_retry_after_of_a_day_ends_the_run(tmp_path: Path) -> None:
    with scripted(answer(b"", 404), lambda request, times: answer(b"", 429, Retry_After=86_400)) as server:
        with pytest.raises(FetchError, match="left alone for 86400 s"):
            resolve(recipe(server), sampled(tmp_path, "OK", "GONE"))
        assert server.hits() == {"/robots.txt": 1, "/dp/OK": 1}


def test_a_failing_server_ends_the_run(tmp_path: Path) -> None:
    with scripted(answer(b"", 404), lambda request, times: answer(b"", 400)) as server:
        with pytest.raises(FetchError, match="20 pages failed in a row"):
            resolve(recipe(server), sampled(tmp_path, *(f"P{n:02}" for n in range(30))))
        assert len(server.requests) == 21


def test_pages_never_lead_into_the_own_network(server: LoopbackServer, tmp_path: Path) -> None:
    target = f"http://localhost:{server.port}/dp/OK"
    with scripted(answer(b"", 404), lambda request, times: answer(b"", 302, Location=target)) as other:
        resolve(recipe(other), sampled(tmp_path, "AWAY"))
    assert (server.requests, results(tmp_path)["AWAY"][0]) == ([], "error")


@pytest.mark.parametrize(
    ("location", "status"),
    [("/caf@", "ok"), ("http://@h/", "error"), ("http://a]b[x@", "error"), ("http://[::1/", "error")],
)
def test_redirects_to_no_url_are_results(tmp_path: Path, location: str, status: str) -> None:
    def page(request: Request, times: int) -> bytes:
        moved = answer(b"", 302, Location=location).replace(b"@", b"\xe9")  # no UTF-8
        return moved if request.path == "/dp/OK" else shown(IMAGE)

    with scripted(answer(b"", 404), page) as server:
        resolve(recipe(server), sampled(tmp_path, "OK"))
        assert results(tmp_path)["OK"][0] == status


def test_a_pause_of_hours_that_robots_txt_asks_for_ends_the_stage(tmp_path: Path) -> None:
    with (
        scripted(answer(b"User-agent: *\nCrawl-delay: 4000\n"), lambda _request, _times: shown(IMAGE)) as server,
        pytest.raises(FetchError, match=r"robots.txt asks for 4000 s between two requests. Ask its owner"),
    ):
        resolve(recipe(server), sampled(tmp_path, "A"))


def test_two_requests_are_never_closer_than_the_delay(tmp_path: Path) -> None:
    arrivals: list[float] = []

    def page(request: Request, times: int) -> bytes:
        arrivals.append(time.monotonic())
        return shown(IMAGE)

    def robots(times: int) -> bytes:
        arrivals.append(time.monotonic())
        return answer(b"User-agent: *\nCrawl-delay: 0.2\n")

    with scripted(robots, page) as server:
        resolve(recipe(server, delay=0.05), sampled(tmp_path, "A", "B", "C"))
    gaps = [later - earlier for earlier, later in itertools.pairwise(arrivals)]
    assert gaps[0] >= 0.05  # the rules were not known before
    assert min(gaps[1:]) >= 0.2


@pytest.mark.slow
def test_two_thousand_pages_of_all_kinds(tmp_path: Path) -> None:
    kinds = {
        "image": shown(IMAGE),
        "placeholder": shown("https://m.media-amazon.com/images/I/01RmK+J4pJL.gif"),
        "generic": shown(schemas.GENERIC_IMAGE_URL),
        "gone": answer(b"", 404),
        "nothing": answer(b"<html>no image</html>"),
        "moved": answer(b"", 301, Location="/dp/image-0"),
        "forbidden": answer(b"", 403),
        "secret": shown(IMAGE),
        "trap": answer(b"", 302, Location="/dp/secret-0"),
        "broken": answer(b"", 400),
    }
    expected = dict(
        zip(
            kinds,
            ["ok", "placeholder", "generic", "missing", "missing", "ok", "blocked", "blocked", "blocked", "error"],
            strict=True,
        )
    )

    async def serve(request: Request, writer: asyncio.StreamWriter) -> None:
        rules = b"User-agent: *\nDisallow: /dp/secret\nDisallow: /dp/*-1999$\n"
        writer.write(answer(rules) if request.path == "/robots.txt" else kinds[request.path[4:].partition("-")[0]])

    names = [f"{kind}-{n}" for n in range(200) for kind in kinds]
    with LoopbackServer(serve) as server:
        resolve(recipe(server, delay=0.0001), sampled(tmp_path, *names))
    assert {name: status for name, (status, _, _) in results(tmp_path).items()} == {
        name: expected[name.partition("-")[0]] for name in names
    }
    log = [request.path for request in server.requests]
    assert log[0] == "/robots.txt"
    assert not [path for path in log if path.startswith("/dp/secret")]
    assert Counter(log)["/robots.txt"] == 1
    assert len(log) == 1 + 1800 + 200  # every page but the secret ones, and where the moved ones went


# -- kill -9 ------------------------------------------------------------------------------------------------------

RUN = """
import json, sys
from pathlib import Path
from builder.recipe import EsciSettings, FetchSettings, PagesSettings, Recipe, ResolveSettings
from builder.resolve import resolve
limits, pages = json.loads(sys.argv[2])
pages = ResolveSettings(pages=PagesSettings(**pages))
limits = FetchSettings(**limits)
resolve(Recipe(name="t", version="1", esci=EsciSettings(path="."), resolve=pages, fetch=limits), Path(sys.argv[1]))
"""


@pytest.mark.parametrize("kills", [2, pytest.param(5, marks=pytest.mark.slow)])
def test_killed_visits_lose_and_double_nothing(tmp_path: Path, kills: int) -> None:
    async def slow(request: Request, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.005)
        number = int(request.path[5:]) if request.path.startswith("/dp/") else 0
        writer.write(ANSWERS["/robots.txt"] if not number else answer(b"", 404) if number % 5 == 0 else shown(OTHER))

    names = [f"{n:04}" for n in range(1, 80 * kills)]
    with LoopbackServer(slow) as server:
        built = recipe(server)
        settings = json.dumps([built.fetch.model_dump(), built.resolve.pages.model_dump()])
        sampled(tmp_path, *names)
        for kill in range(kills):
            command = [sys.executable, "-c", RUN, str(tmp_path), settings]
            process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
            while len(server.requests) < 50 * (kill + 1) and process.poll() is None:
                time.sleep(0.002)
            process.send_signal(signal.SIGKILL)
            process.wait()
        resolve(built, tmp_path)
        pages = Counter({path: n for path, n in server.hits().items() if path != "/robots.txt"})
    assert len(pages) == len(names)
    assert pages.total() - len(names) <= kills  # only the page in flight
    assert Counter(status for status, _, _ in results(tmp_path).values()) == Counter(
        "missing" if int(name) % 5 == 0 else "ok" for name in names
    )
