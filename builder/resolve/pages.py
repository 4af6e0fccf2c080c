"""Product pages as a source of image URLs: requested slowly, one by one, under robots.txt, until a server refuses."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

import pyarrow as pa

from builder.engines import Tick
from builder.http.client import ACCEPT_PAGES, Answer, Client
from builder.http.mirrors import mirrored
from builder.http.transfer import REDIRECTS
from builder.http.urls import join_url
from builder.recipe import FetchSettings, PagesSettings
from builder.resolve.page_images import is_captcha, main_image
from builder.resolve.visited_pages import Page, VisitedPages
from sqid_lib.errors import FetchError, missing_extra
from sqid_lib.joined.image_status import image_status

if TYPE_CHECKING:
    from protego import Protego

ROBOT = "sqid"  # the name that rules in robots.txt use for this program
SOURCE = "page"  # in the table of resolved URLs

_MAX_PAGE = 8_000_000  # bytes
_MAX_ROBOTS = 512 * 1024  # bytes that are read as rules (RFC 9309: at least 500 KiB)
_ROBOTS_AGE = 24 * 3600.0  # seconds until robots.txt is read again (RFC 9309, 2.4)
_TRIES = 4
_BACKOFF = 5.0  # delays before the first retry, doubled each time
_LONGEST_WAIT = 3600.0  # seconds
_FORBIDDEN_RUN = 5  # 403s in a row
_FAILING_RUN = 20  # failures in a row
_LATER = "Build again later; pages visited so far are kept."
_log = logging.getLogger(__name__)


def page_url(pages: PagesSettings, product_id: str, product_locale: str) -> str:
    """The URL of a product's page."""
    return pages.url.format(product_id=quote(product_id, safe=""), product_locale=quote(product_locale, safe=""))


async def visit(
    urls: Sequence[str], pages: PagesSettings, limits: FetchSettings, visited: VisitedPages, tick: Tick
) -> None:
    """Visit pages one after another and record what each shows.

    Raises:
        FetchError: a captcha, a row of 403s or failures, a Retry-After that is too long, or a robots.txt that cannot
            be read. Pages visited so far are kept.
    """
    largest = min(limits.max_bytes, _MAX_PAGE)
    async with Client(limits, accept=ACCEPT_PAGES, contact=pages.contact, max_bytes=largest) as client:
        await _Visitor(pages, limits, visited, client, tick).run(urls)


class _UnreachableError(Exception):
    """robots.txt could not be read, so nothing may be requested."""


@dataclass
class _Host:
    """The rules of a host, and when the next request may be made."""

    rules: Protego | None = None  # None: nothing is allowed
    read_at: float | None = None
    delay: float = 0.0
    not_before: float = 0.0


class _Visitor:
    def __init__(
        self, pages: PagesSettings, limits: FetchSettings, visited: VisitedPages, client: Client, tick: Tick
    ) -> None:
        self._pages, self._limits, self._visited, self._client = pages, limits, visited, client
        self._tick = tick
        self._hosts: dict[str, _Host] = {}
        self._forbidden: list[str] = []
        self._failing: list[str] = []

    async def run(self, urls: Sequence[str]) -> None:
        for url in urls:
            page = await self._visit(url)
            self._visited.record(page)
            self._tick(1)
            self._stop_if_refused(page)

    async def _visit(self, url: str) -> Page:
        first = at = mirrored(url, self._limits.mirrors)
        for _ in range(self._limits.max_redirects + 1):
            try:
                if not await self._allowed(at):
                    return Page(url, "blocked", detail=f"robots.txt forbids {at}")
            except _UnreachableError as error:
                if at == first:
                    raise FetchError(
                        "robots.txt cannot be read, so no page is requested",
                        where=_origin(at),
                        got=str(error),
                        fix=_LATER,
                    ) from None
                return Page(url, "error", detail=f"robots.txt of {_origin(at)} cannot be read")
            answer = await self._get(at)
            target = answer.headers.get("location") if answer.http_status in REDIRECTS else None
            if target is None:
                return self._judge(url, at, answer)
            at = join_url(at, target)
        return Page(url, "error", http_status=answer.http_status, detail="too many redirects")

    def _judge(self, url: str, at: str, answer: Answer) -> Page:
        body = _read(answer)
        image = main_image(body, at, _charset(answer)) if answer.http_status == 200 else None
        if is_captcha(body, answer.headers, image=image):
            raise FetchError(
                "the server asks for a captcha",
                where=at,
                fix="It does not allow programs. Ask its owner, or use tables.",
            )
        code = answer.http_status
        if code in (401, 403):
            return Page(url, "blocked", http_status=code, detail=answer.detail)
        if code in (404, 410):
            return Page(url, "missing", http_status=code, detail=answer.detail)
        if code != 200 or (answer.status not in ("ok", "empty")):
            return Page(url, "error", http_status=code, detail=f"{answer.status}: {answer.detail}")
        if image is None:
            return Page(url, "missing", http_status=code, detail="no image on the page")
        return Page(url, image_status(pa.array([image]))[0].as_py(), image, code)

    def _stop_if_refused(self, page: Page) -> None:
        """End the run on a row of refusals; the next run requests these pages again."""
        if page.http_status is None and page.status == "blocked":
            return  # by robots.txt, so nothing was requested
        self._forbidden = [*self._forbidden, page.url] if page.status == "blocked" else []
        self._failing = [*self._failing, page.url] if page.status == "error" else []
        if len(self._forbidden) >= _FORBIDDEN_RUN:
            self._visited.forget(self._forbidden)
            raise FetchError(
                f"the server refused {_FORBIDDEN_RUN} pages in a row",
                where=page.url,
                got=page.detail,
                fix="It does not allow these requests. Ask its owner, or use tables.",
            )
        if len(self._failing) >= _FAILING_RUN:
            self._visited.forget(self._failing)
            raise FetchError(f"{_FAILING_RUN} pages failed in a row", where=page.url, got=page.detail, fix=_LATER)

    # -- one request ----------------------------------------------------------------------------------------

    async def _get(self, url: str) -> Answer:
        """One page, without redirects; tried again after longer and longer waits while the server asks for them."""
        for attempt in range(_TRIES):
            answer = await self._spaced(url)
            if not answer.again:
                return answer
            self._judge(url, url, answer)  # a captcha may come with 503
            if attempt == _TRIES - 1:
                break
            host = self._hosts[_origin(url)]
            wait = max(answer.retry_after or 0.0, max(host.delay, self._pages.delay) * _BACKOFF * 2**attempt)
            self._refuse_long_wait(url, wait)
            host.not_before = max(host.not_before, _now() + wait * random.uniform(1.0, 1.2))
        if answer.http_status in (429, 503):
            raise FetchError("the server keeps asking to slow down", where=url, got=answer.detail, fix=_LATER)
        return answer

    def _refuse_long_wait(self, url: str, wait: float) -> None:
        if wait > _LONGEST_WAIT:
            raise FetchError(f"the server asks to be left alone for {wait:.0f} s", where=url, fix=_LATER)

    async def _spaced(self, url: str) -> Answer:
        """A request, after the pause since the end of the last answer of its host."""
        host = self._hosts.setdefault(_origin(url), _Host())
        await asyncio.sleep(max(0.0, host.not_before - _now()))
        try:
            return await self._client.get(url, redirects=0, every_body=True)
        finally:
            pause = max(self._pages.delay, host.delay) * random.uniform(1.0, 1.5)
            host.not_before = _now() + pause

    # -- robots.txt -----------------------------------------------------------------------------------------

    async def _allowed(self, url: str) -> bool:
        host = self._hosts.setdefault(_origin(url), _Host())
        if host.read_at is None or _now() - host.read_at > _ROBOTS_AGE:
            host.rules = await self._read_rules(f"{_origin(url)}/robots.txt")
            host.read_at = _now()
            host.delay = _crawl_delay(host.rules)
            if host.delay > _LONGEST_WAIT:
                words = f"robots.txt asks for {host.delay:g} s between two requests"
                raise FetchError(words, where=_origin(url), fix="Ask its owner, or use tables.")
            if host.delay > self._pages.delay:
                _log.warning("%s: robots.txt asks for %g s between two requests", _origin(url), host.delay)
        return host.rules is not None and bool(host.rules.can_fetch(url, ROBOT))

    async def _read_rules(self, url: str) -> Protego | None:
        """The rules of a host: empty if it has no robots.txt, None (nothing is allowed) if even that is forbidden."""
        try:
            from protego import Protego
        except ImportError:
            raise missing_extra("protego", "build", "to follow robots.txt") from None

        at = url
        for _ in range(self._limits.max_redirects + 1):
            answer = await self._get(at)
            target = answer.headers.get("location") if answer.http_status in REDIRECTS else None
            if target is None:
                break
            at = join_url(at, target)
        code = answer.http_status
        if code in (401, 403):
            return None
        if code is not None and (400 <= code < 500 and code != 429):
            return Protego.parse("")
        if code != 200 or answer.status not in ("ok", "empty"):
            raise _UnreachableError(f"{answer.status}: {answer.detail}")
        return Protego.parse(_read(answer)[:_MAX_ROBOTS].decode("utf-8-sig", "replace"))


def _crawl_delay(rules: Protego | None) -> float:
    """Seconds between two requests that robots.txt asks for."""
    if rules is None:
        return 0.0
    rate = rules.request_rate(ROBOT)
    return max(float(rules.crawl_delay(ROBOT) or 0.0), rate.seconds / rate.requests if rate and rate.requests else 0.0)


def _read(answer: Answer) -> bytes:
    if answer.body is None:
        return b""
    with answer.body as body:
        answer.body = None
        return body.read()


def _charset(answer: Answer) -> str:
    _, _, charset = answer.headers.get("content-type", "").lower().partition("charset=")
    return charset.split(";")[0].strip("\"' ") or "utf-8"


def _origin(url: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError:
        return url  # of a redirect; it is never requested
    return f"{parts.scheme}://{parts.netloc}".lower()


def _now() -> float:
    return asyncio.get_running_loop().time()
