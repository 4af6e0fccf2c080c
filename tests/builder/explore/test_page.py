"""The page of the explorer in a real Chromium: orders against Python, hostile texts, links, keys, accessibility."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, cast

import pytest
from axe_core_python.sync_playwright import Axe
from chromium import launched, needs_chromium
from encoder_fixtures import encoded, make_image
from explore_fixtures import LONG, SCRIPT, Served, served, unasked, unjudged
from playwright.sync_api import Browser, Locator, Page, Route, expect
from search_fixtures import QueryVectors

from builder.explore.cards import LONGEST
from builder.explore.catalogue import Catalogue
from sqid_lib import evaluation
from sqid_lib.errors import EncoderError
from sqid_lib.store import EmbeddingStore

DESKTOP, PHONE = {"width": 1280, "height": 860}, {"width": 390, "height": 844}
BROKEN = b"no image at all"
PIXELS = encoded(make_image(1, (30, 40)))

pytestmark = needs_chromium


class Open(Protocol):
    def __call__(
        self, path: str = "", *, size: dict[str, int] = DESKTOP, scheme: str = "light", server: Served | None = None
    ) -> Page: ...


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as running:
        yield running


@pytest.fixture
def messages() -> list[str]:
    """Errors and warnings of the pages of a test, and requests elsewhere that are not for images; none is expected."""
    return []


@pytest.fixture
def open_page(browser: Browser, explorer: Served, messages: list[str]) -> Iterator[Open]:
    """Opens a page and waits for its cards. Images of other hosts are answered here, every second one is broken."""
    contexts = []

    def image(route: Route) -> None:
        broken = int(route.request.url.rpartition("/")[2].removesuffix(".jpg")[1:]) % 2
        route.fulfill(body=BROKEN if broken else PIXELS, content_type="image/png")

    def open_one(
        path: str = "", *, size: dict[str, int] = DESKTOP, scheme: str = "light", server: Served | None = None
    ) -> Page:
        context = browser.new_context(viewport=cast(Any, size), color_scheme=cast(Any, scheme), reduced_motion="reduce")
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        url = (server or explorer).url
        page.route("https://images.example/**", image)
        page.on("console", lambda m: messages.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.on(
            "request",
            lambda r: None if r.url.startswith(url) or r.resource_type == "image" else messages.append(r.url),
        )
        page.goto(url + path)
        expect(page.get_by_test_id("card").first).to_be_visible()
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert messages == []


@pytest.fixture(scope="module")
def table(store: EmbeddingStore) -> evaluation.Comparison:
    return evaluation.compare(store, ["fusion:0.5", "fusion:0.2", "clip_image", "bm25"], resamples=100)


def ordered(table: evaluation.Comparison, method: str, query: int) -> list[str]:
    """The product ids of a judged list in the order of a method."""
    lists = table.lists
    order = lists.order(table.scores[method])
    products = lists.product[order[lists.query[order] == query]]
    return [table.store.products["product_id"][int(row)].as_py() for row in products]


def ids(place: Page | Locator) -> list[str | None]:
    cards = place.locator('[data-testid="card"]')
    return cast(list[str | None], cards.evaluate_all("cards => cards.map(card => card.dataset.productId)"))


def settled(page: Page) -> None:
    expect(page.locator("#results")).not_to_have_attribute("aria-busy", "true")


def shows(page: Page, expected: list[str], place: str = "#results") -> None:
    """Wait until exactly these products are shown, in this order."""
    page.wait_for_function(
        "([place, expected]) => JSON.stringify([...document.querySelectorAll(`${place} [data-testid=card]`)]"
        ".map(card => card.dataset.productId)) === expected",
        arg=[place, str(expected).replace("'", '"').replace(", ", ",")],
    )


def test_the_slider_shows_the_order_and_ndcg_of_python(open_page: Open, table: evaluation.Comparison) -> None:
    page = open_page()
    for weight, method in (("0.5", "fusion:0.5"), ("0.2", "fusion:0.2"), ("0", "clip_image")):
        page.get_by_test_id("weight").fill(weight)
        shows(page, ordered(table, method, 0))
        value = table.per_query[method][0, 0]
        expect(page.get_by_test_id("ndcg")).to_have_text(f"{value:.4f}")
        shown = page.get_by_test_id("ndcg").get_attribute("data-value")
        assert float(shown or "nan") == pytest.approx(value, abs=1e-12)
    ranks = page.locator("#grid .rank").all_text_contents()
    assert ranks == [str(rank) for rank in range(1, 8)]
    page.wait_for_url("**weight=0")
    thumb = page.get_by_test_id("weight").bounding_box()
    dot = page.locator("#curve .dot").bounding_box()
    assert thumb and dot and abs(dot["x"] + dot["width"] / 2 - thumb["x"] - 11) < 1, "the dot is over the thumb"


def test_a_query_is_typed_picked_and_stepped_through(
    open_page: Open, table: evaluation.Comparison, explorer: Served
) -> None:
    page = open_page()
    query = page.get_by_test_id("query")
    query.fill("number 4")
    query.press("Enter")
    shows(page, ordered(table, "fusion:0.5", 4))
    expect(query).to_have_value("query number 4")
    page.keyboard.press("j")
    shows(page, ordered(table, "fusion:0.5", 5))
    page.keyboard.press("k")
    page.keyboard.press("k")
    shows(page, ordered(table, "fusion:0.5", 3))
    query.click()
    page.locator("#query-list li").nth(1).click()
    expect(query).to_have_value("靴 & <b>zapatos</b> naïve")
    shows(page, ordered(table, "fusion:0.5", 1))
    page.go_back()
    shows(page, ordered(table, "fusion:0.5", 3))
    query.fill("query number 6")
    expect(page.locator("#query-list li").first).to_contain_text("query number 6")
    query.press("Tab")
    shows(page, ordered(table, "fusion:0.5", 6))
    query.fill("query number")
    expect(page.locator("#query-list li")).to_have_count(12)
    query.press("Tab")
    expect(query).to_have_value("query number 6")
    query.fill("no query has this text")
    query.press("Enter")
    expect(page.locator("#search-title")).to_have_text("no query has this text")


def test_text_and_images_are_searched(open_page: Open, store: EmbeddingStore, tmp_path: Path) -> None:
    page = open_page()

    def expected(text: str | None, image: bytes | None) -> list[str]:
        found = store.search(text, image=image, top=40, encoder=QueryVectors(store))
        return [hit.product_id for hit in found]

    page.keyboard.press("/")
    page.keyboard.type("query number 7")
    page.keyboard.press("Enter")
    shows(page, expected("query number 7", None))
    (tmp_path / "photo.png").write_bytes(encoded(make_image(3, (50, 20))))
    page.locator("#search-file").set_input_files(tmp_path / "photo.png")
    shows(page, expected("query number 7", (tmp_path / "photo.png").read_bytes()))
    page.get_by_test_id("search").fill("")
    page.get_by_role("button", name="Back to the query").click()
    expect(page.get_by_test_id("ndcg")).to_be_visible()
    bits = [int(byte) for byte in encoded(make_image(4, (25, 20)))]
    page.evaluate(
        "bits => { const data = new DataTransfer();"
        "data.items.add(new File([new Uint8Array(bits)], 'dropped.png', {type: 'image/png'}));"
        "for (const kind of ['dragover', 'drop'])"
        "document.body.dispatchEvent(new DragEvent(kind, {dataTransfer: data, bubbles: true, cancelable: true})); }",
        bits,
    )
    shows(page, expected(None, bytes(bits)))
    expect(page.locator("#search-title")).to_have_text("dropped.png")


def test_the_whole_catalogue_has_judged_and_other_products(open_page: Open, store: EmbeddingStore) -> None:
    page = open_page()
    page.get_by_role("button", name="Whole catalogue").click()
    shows(page, [hit.product_id for hit in store.search(store.query_features[0], top=40)])
    page.get_by_role("button", name="Show more").click()
    shows(page, [hit.product_id for hit in store.search(store.query_features[0], top=60)])
    assert page.locator("#grid .badge").count() == 60
    assert page.locator("#grid .badge.unjudged").count() == 60 - 7


def test_neighbours_by_text_and_by_image(open_page: Open, store: EmbeddingStore) -> None:
    page = open_page()
    product_id = next(name for name in ids(page) if name and store.has_image[store.product_index(name)])
    row = store.product_index(product_id)
    page.locator(f'#grid [data-product-id="{product_id}"]').get_by_test_id("neighbours").click()
    panel = page.get_by_test_id("neighbours")
    expect(panel).to_have_attribute("id", "detail")
    for weight, vectors, button in ((1.0, store.text_features, "by text"), (0.0, store.image_features, "by image")):
        panel.get_by_role("button", name=button).click()
        expected = [hit.product_id for hit in store.search(vectors[row], top=13, weight=weight)]
        shows(page, [name for name in expected if name != product_id][:12], "#detail")
    page.wait_for_url("**by=image")
    page.keyboard.press("Escape")
    expect(page.locator("#detail")).to_be_hidden()
    expect(panel).to_have_count(7)
    page.wait_for_url(lambda url: "product" not in url)


def test_two_methods_are_compared(open_page: Open, table: evaluation.Comparison) -> None:
    page = open_page()
    page.keyboard.press("3")
    page.get_by_test_id("second").select_option("bm25")
    page.get_by_test_id("first").select_option("clip_image")
    first, second = ordered(table, "clip_image", 0), ordered(table, "bm25", 0)
    shows(page, [*first, *second])
    values = [f"{table.per_query[name][0, 0]:.4f}" for name in ("clip_image", "bm25")]
    assert page.locator("#versus .ndcg").all_text_contents() == values
    moves = page.locator("#versus section").nth(1).locator(".moved > :first-child").all_text_contents()
    steps = [first.index(name) - rank for rank, name in enumerate(second)]
    assert moves == ["=" if step == 0 else f"{'▲' if step > 0 else '▼'} {abs(step)}" for step in steps]
    page.get_by_test_id("second").select_option("run:mine.run")
    expect(page.locator("#versus .moved.lost")).to_have_count(2)


def test_texts_of_a_release_are_only_texts(open_page: Open) -> None:
    page = open_page()
    titles = page.locator("#grid .title").all_text_contents()
    assert SCRIPT in titles and LONG[: LONGEST - 1] + "…" in titles
    assert page.title() != "taken" and page.locator("#grid script").count() == 0
    boxes = [card.bounding_box() for card in page.get_by_test_id("card").all()[:5]]
    assert len({box["height"] for box in boxes if box}) == 1, "a long title does not stretch its card"
    page.locator("#grid .title", has_text="<script>").click()
    expect(page.locator("#detail-title")).to_have_text(SCRIPT)
    assert page.title() != "taken"


def test_filters_and_a_link_that_restores_the_view(open_page: Open) -> None:
    page = open_page(size=PHONE)
    page.get_by_role("button", name="Whole catalogue").click()
    expect(page.get_by_test_id("card")).to_have_count(40)
    page.get_by_test_id("filter").get_by_role("button", name="not judged").click()
    page.get_by_label("Brand").select_option("brand 2")
    page.get_by_label("Image status").select_option("ok")
    page.get_by_test_id("weight").fill("0.85")
    settled(page)
    assert page.locator("#grid .maker").all_text_contents() == ["brand 2"] * page.get_by_test_id("card").count()
    assert page.locator("#grid .badge").count() == page.locator("#grid .badge.unjudged").count() > 0
    page.locator("#grid .title").first.click()
    expect(page.locator("#detail .card")).to_have_count(12)
    page.wait_for_url("**product=**")
    path = page.evaluate("location.pathname + location.search").removeprefix("/")
    other = open_page(path, scheme="dark")
    expect(other.locator("#detail .card")).to_have_count(12)
    for place in ("#grid", "#detail"):
        assert ids(other.locator(place)) == ids(page.locator(place))
    for name in ("weight", "ndcg", "query"):
        read = "field => field.value ?? field.textContent"
        assert other.get_by_test_id(name).evaluate(read) == page.get_by_test_id(name).evaluate(read)
    assert other.locator("#shown").text_content() == page.locator("#shown").text_content()
    other.keyboard.press("Escape")
    other.get_by_role("button", name="Clear").click()
    expect(other.locator("#grid .card")).to_have_count(40)


def test_an_image_that_does_not_load_shows_its_status(open_page: Open, store: EmbeddingStore) -> None:
    rows = store.products.to_pylist()
    elsewhere = [row for row in rows if row["image_url"]][40:]  # those before are stored
    broken = next(row for row in elsewhere if int(row["product_id"][1:]) % 2)
    none = next(row for row in rows if row["image_status"] == "not_found")
    page = open_page()
    for row, status in ((broken, "ok, but not loaded"), (none, "not found")):
        page.goto(page.url.split("?")[0] + f"?product={row['product_id']}")
        expect(page.locator("#detail-image .status-name")).to_have_text(status)


def test_a_link_to_a_product_that_is_gone(open_page: Open, messages: list[str]) -> None:
    page = open_page("?product=gone")
    for _ in range(2):
        expect(page.get_by_test_id("error")).to_have_text("no such product: gone")
        settled(page)
    page.get_by_test_id("weight").fill("0.6")
    page.wait_for_url("**weight=0.6")
    settled(page)
    expect(page.get_by_test_id("error")).to_be_visible()
    page.keyboard.press("j")
    expect(page.get_by_test_id("error")).to_be_hidden()
    assert len(messages) == 1 and "404" in messages.pop()


def test_keys_go_from_product_to_product(open_page: Open) -> None:
    page = open_page()
    page.locator("#grid .title").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    focused = "document.activeElement.closest('.card').dataset.productId"
    assert page.evaluate(focused) == ids(page)[1]
    page.keyboard.press("ArrowDown")
    assert page.evaluate(focused) == ids(page)[-1] or page.evaluate(focused) == ids(page)[1]
    page.keyboard.press("Enter")
    expect(page.get_by_test_id("neighbours")).to_be_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("]")
    expect(page.get_by_test_id("weight")).to_have_value("0.55")
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keys")).to_be_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("q")
    expect(page.get_by_test_id("query")).to_be_focused()


VIEWS: dict[str, Callable[[Page], None]] = {
    "": lambda page: page.get_by_test_id("query").click(),
    "?view=catalogue&label=not+judged&brand=brand+2": lambda page: None,
    "?view=compare": lambda page: None,
    "?product=PRODUCT": lambda page: expect(page.locator("#detail .card")).to_have_count(12),
}


@pytest.mark.parametrize(("size", "scheme"), [(DESKTOP, "light"), (PHONE, "dark")], ids=["desktop", "phone"])
def test_every_view_is_accessible_and_fits(
    open_page: Open, explorer: Served, store: EmbeddingStore, size: dict[str, int], scheme: str
) -> None:
    product = store.products["product_id"][0].as_py()
    page = open_page(size=size, scheme=scheme)
    for path, prepare in VIEWS.items():
        page.goto(explorer.url + path.replace("PRODUCT", product))
        expect(page.get_by_test_id("card").first).to_be_visible()
        prepare(page)
        settled(page)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, background[4:-1].split(","))) < 200) == (scheme == "dark")
        found = Axe().run(page, options={"resultTypes": ["violations"]})["violations"]
        serious = {
            rule["id"]: [node["html"] for node in rule["nodes"]][:3]
            for rule in found
            if rule["impact"] in ("serious", "critical")
        }
        assert serious == {}, path


def test_without_an_encoder_the_error_is_one_line(open_page: Open, store: EmbeddingStore, messages: list[str]) -> None:
    class Missing(QueryVectors):
        def encode_text(self, texts: Any, /) -> Any:
            raise EncoderError("no such model", fix="Give another.")

    with served(Catalogue(store, encoder=Missing(store))) as server:
        page = open_page(server=server)
        page.get_by_test_id("search").fill("red mug")
        page.get_by_test_id("search").press("Enter")
        expect(page.get_by_test_id("error")).to_have_text("no such model. Give another.", use_inner_text=True)
        page.get_by_role("button", name="Back to the query").click()
        expect(page.get_by_test_id("error")).to_be_hidden()
        expect(page.get_by_test_id("card")).to_have_count(7)
    assert len(messages) == 1 and "503" in messages.pop()


def test_a_slow_search_holds_up_no_other_view(open_page: Open, store: EmbeddingStore) -> None:
    loaded = threading.Event()

    class Slow(QueryVectors):
        def encode_text(self, texts: Any, /) -> Any:
            assert loaded.wait(20)
            return super().encode_text(texts)

    with served(Catalogue(store, encoder=Slow(store))) as server:
        page = open_page(server=server)
        page.get_by_test_id("search").fill("red mug")
        page.get_by_test_id("search").press("Enter")
        expect(page.locator("#progress")).to_be_visible()
        expect(page.locator("#search-title")).to_have_text("red mug")
        page.get_by_role("button", name="Back to the query").click()
        expect(page.get_by_test_id("ndcg")).to_be_visible()
        expect(page.locator("#progress")).to_be_hidden()
        expect(page.get_by_test_id("card")).to_have_count(7)
        loaded.set()


def test_a_release_without_judgments_and_one_without_queries(open_page: Open, store: EmbeddingStore) -> None:
    with served(Catalogue(unjudged(store), encoder=QueryVectors(store))) as server:
        page = open_page(server=server)
        expect(page.get_by_test_id("card")).to_have_count(40)
        expect(page.get_by_test_id("ndcg")).to_have_text("–")
        page.get_by_role("button", name="Judged").click()
        expect(page.locator("#empty")).to_contain_text("No product is judged for this query")
    with served(Catalogue(unasked(store), encoder=QueryVectors(store))) as server:
        page = open_page(server=server)
        expect(page.get_by_test_id("query")).to_be_disabled()
        shows(page, store.products["product_id"].to_pylist()[:40])
        page.get_by_test_id("search").fill("red mug")
        page.get_by_test_id("search").press("Enter")
        expect(page.locator("#search-title")).to_have_text("red mug")
        expect(page.get_by_role("button", name="Back to all products")).to_be_visible()
