"""The report opened from a file in Chromium: a map that works, an empty console, no request, no accessibility fault."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import pytest
import report_fixtures as fixtures
from chromium import launched, needs_chromium

from builder.report import report

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    work = fixtures.write_work(tmp_path_factory.mktemp("browser") / "work", fixtures.shop())
    return report(work, method="pca").path.as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with launched() as started:
        yield started


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_a_report_in_a_browser(browser: Any, url: str, width: int, scheme: str) -> None:
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme, bypass_csp=False)
    page = context.new_page()
    said: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(url)
    check_map(page)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    check_texts(page, width)
    assert [request for request in requests if not request.startswith("data:")] == [url]
    assert said == []
    context.close()


def check_texts(page: Any, width: int) -> None:
    """Labels of an axis stand beside its numbers, names are not broken, captions fit the page."""
    boxes = "(texts) => texts.map((text) => text.getBoundingClientRect()).map(({ left, right }) => [left, right])"
    for chart in page.locator("svg.chart").all():
        ends = chart.locator("text.tick[text-anchor=end]").evaluate_all(boxes)
        for _, right in chart.locator("text.label[transform]").evaluate_all(boxes):
            assert right <= min(left for left, _ in ends)
    method = page.locator("#ranking-table th", has_text="clip_image")
    assert method.evaluate("cell => cell.getBoundingClientRect().height") < 40  # one line
    assert max(right for _, right in page.locator("main > section > .scroll caption").evaluate_all(boxes)) <= width


def check_map(page: Any) -> None:
    """Hover, keys and menus of the map."""
    tip = page.locator("#tip")
    assert tip.is_hidden()
    page.locator("#map-text").scroll_into_view_if_needed()
    page.locator("#map-text circle").nth(5).hover(force=True)
    near = tip.locator(".title").inner_text()
    assert near.startswith("product number ") and tip.locator("img").count() == 1
    page.locator("#map-text").focus()
    seen = set()
    for _ in range(60):
        page.keyboard.press("ArrowRight")
        seen.add(tip.locator(".title").inner_text())
    assert len(seen) == 60 and fixtures.HOSTILE[1] in seen  # shown as text
    page.keyboard.press("Escape")
    assert tip.is_hidden()
    circle = page.locator("#map-text circle").nth(55)  # the generic image
    colours = []
    for by in ("label", "status", "brand"):
        page.get_by_label("Colour by").select_option(by)
        assert page.locator(".maps .legend:visible").count() == 1
        colours.append(circle.evaluate("circle => getComputedStyle(circle).fill"))
    assert len(set(colours)) > 1
    page.get_by_label("Placed by").select_option("image")
    assert page.locator("#map-image").is_visible() and page.locator("#map-text").is_hidden()
    assert page.locator("#map-image circle").count() == 49


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.slow)])
def test_no_serious_accessibility_fault(browser: Any, url: str, scheme: str) -> None:
    axe = importlib.import_module("axe_core_python.sync_playwright")
    context = browser.new_context(viewport={"width": 1000, "height": 800}, color_scheme=scheme, bypass_csp=True)
    page = context.new_page()
    page.goto(url)
    page.evaluate("document.querySelectorAll('details').forEach(details => { details.open = true })")
    faults = axe.Axe().run(page)["violations"]
    assert [
        (fault["id"], fault["nodes"][0]["html"]) for fault in faults if fault["impact"] in ("serious", "critical")
    ] == []
    context.close()
