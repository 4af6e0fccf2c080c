"""The main image of a product page, and pages that are a captcha."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from builder.http.urls import join_url
from sqid_lib.errors import missing_extra

if TYPE_CHECKING:
    from selectolax.lexbor import LexborHTMLParser, LexborNode

_MAIN_IMAGES = ("#landingImage", "#imgBlkFront", "#ebooksImgBlkFront", "#main-image")
# scripts with the image gallery of a page; a JSON list of images follows
_GALLERIES = (
    re.compile(r"""["']colorImages["']\s*:\s*\{\s*["']initial["']\s*:\s*(?=\[)"""),
    re.compile(r"""["']imageGalleryData["']\s*:\s*(?=\[)"""),
)
_GALLERY_KEYS = ("hiRes", "large", "mainUrl", "thumb", "thumbUrl")

# signs that only a captcha page has
_CAPTCHA = re.compile(
    rb"/errors/validateCaptcha|opfcaptcha|<title[^>]*>\s*(?:Robot Check|Bot Check|Just a moment\.\.\.)"
    rb"|Enter the characters you see below|Type the characters you see in this image"
    rb"|cf-challenge|challenge-platform|px-captcha|awswaf\.com/[^\"']*captcha",
    re.IGNORECASE,
)
# widgets that ordinary pages have too: a captcha only if there is no product
_CAPTCHA_WIDGET = re.compile(rb"g-recaptcha|h-captcha|cf-turnstile|captcha-delivery\.com", re.IGNORECASE)
_CHALLENGE_HEADERS = (("x-amzn-waf-action", ("captcha", "challenge")), ("cf-mitigated", ("challenge",)))


def main_image(page: bytes, url: str, charset: str = "utf-8") -> str | None:
    """The absolute URL of a product page's main image; None if the page shows none.

    Tried in order: the main image element (high resolution, then its largest rendition, then its source), the
    gallery scripts, og:image.

    Args:
        page: the HTML as received.
        url: of the page, for relative URLs.
        charset: of the page, by its headers; UTF-8 if it is unknown.
    """
    try:
        from selectolax.lexbor import LexborHTMLParser
    except ImportError:
        raise missing_extra("selectolax", "build", "to read product pages") from None

    try:
        text = page.decode(charset, "replace")
    except (LookupError, ValueError):  # unknown, or not a charset of text: idna, undefined
        text = page.decode("utf-8", "replace")
    tree = LexborHTMLParser(text)
    for candidate in _candidates(tree):
        absolute = join_url(url, candidate.strip())
        if urlsplit(absolute).scheme in ("http", "https"):  # not the data: URLs of lazy loading
            return absolute
    return None


def is_captcha(page: bytes, headers: Mapping[str, str], *, image: str | None) -> bool:
    """Whether a page, or its headers, ask for a captcha; `image` is what main_image found on it."""
    for name, values in _CHALLENGE_HEADERS:
        if headers.get(name, "").lower() in values:
            return True
    return bool(_CAPTCHA.search(page) or (image is None and _CAPTCHA_WIDGET.search(page)))


def _candidates(tree: LexborHTMLParser) -> Iterator[str]:
    for selector in _MAIN_IMAGES:
        for node in tree.css(selector):
            yield from _of_element(node)
    scripts = [script.text() for script in tree.css("script")]
    for gallery in _GALLERIES:
        for script in scripts:
            yield from _of_gallery(script, gallery)
    for node in tree.css('meta[property="og:image"], meta[name="og:image"]'):
        yield from filter(None, [node.attributes.get("content")])


def _of_element(node: LexborNode) -> Iterator[str]:
    attributes = node.attributes
    yield from filter(None, [attributes.get("data-old-hires")])
    yield from _largest(_json(attributes.get("data-a-dynamic-image") or ""))
    yield from filter(None, [attributes.get("src")])


def _largest(renditions: Any) -> Iterator[str]:
    """The largest of {url: [width, height]}."""
    sizes = {}
    for url, size in renditions.items() if isinstance(renditions, dict) else ():
        numbers = [n for n in size if isinstance(n, int | float)] if isinstance(size, list) else []
        sizes[url] = numbers[0] * numbers[1] if len(numbers) == 2 else 0
    if sizes:
        yield max(sizes, key=lambda url: sizes[url])


def _of_gallery(script: str, gallery: re.Pattern[str]) -> Iterator[str]:
    match = gallery.search(script)
    images = _json(script[match.end() :]) if match else None
    for image in images if isinstance(images, list) else ():
        if isinstance(image, dict) and image.get("variant", "MAIN") == "MAIN":
            yield from (image[key] for key in _GALLERY_KEYS if isinstance(image.get(key), str) and image[key])


def _json(text: str) -> Any:
    """The JSON value a text begins with; None if it begins with none."""
    try:
        return json.JSONDecoder().raw_decode(text)[0]
    except (ValueError, RecursionError):
        return None
