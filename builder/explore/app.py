"""The web application: the page, its static files, and the JSON under /api/.

GET  /api/release                                 counts, labels, methods, encoder
GET  /api/queries?text=&top=&offset=              the queries, all of them by default
GET  /api/query/ID?weight=                        judged products by weight of text, nDCG, curve of nDCG by weight
GET  /api/query/ID/catalogue?weight=&top=         the best of all products, judged or not
GET  /api/query/ID/compare?first=&second=         judged products in the orders of two methods
GET  /api/search?q=&weight=&top=                  the best of all products for a text
POST /api/search?q=&weight=&top=                  … for the image that is the body, and the text if one is given
GET  /api/products?top=&offset=                   products in the order of the release
GET  /api/product/ID/neighbours?by=&top=&locale=  the nearest products by text or by image
GET  /api/product/ID/image?locale=                the stored image

An error is {"error": one line} with status 400, 404, 405, 413, 503 (no encoder) or 500.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from importlib import resources
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from builder.explore.catalogue import MAX_TOP, SIDES, Catalogue
from builder.explore.guard import Guard, security_headers
from sqid_lib.errors import EncoderError, MissingExtraError, SqidError, UsageError

MAX_UPLOAD = 20 << 20  # bytes of an image
_UPLOADS = 4  # images that are in memory at a time; others wait
TOP, NEIGHBOURS = 40, 12  # products by default
PAGE = "index.html"
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_KEEP = {"cache-control": "private, max-age=86400"}
_log = logging.getLogger(__name__)


def make_app(catalogue: Catalogue, names: frozenset[str], frame_ancestors: tuple[str, ...] = ()) -> ASGIApp:
    """The application.

    Args:
        names: host names under which it answers, see `guard.allowed_names`.
        frame_ancestors: origins whose pages may show it in a frame.
    """
    views, files = _Views(catalogue), _static_files()
    routes = [
        *(Route(f"/api/{path}", _answering(view)) for path, view in views.by_path().items()),
        Route("/api/search", views.search_image, methods=["POST"]),
        Route("/api/product/{product_id:path}/image", views.image),
        *(Route(f"/{name}", _static(name, data)) for name, data in files.items()),
        Route("/", _static(PAGE, files[PAGE])),
    ]
    handlers: dict[Any, Any] = {HTTPException: _http_error, SqidError: _sqid_error, Exception: _other_error}
    app = Starlette(routes=routes, exception_handlers=handlers)
    return Guard(app, names, security_headers(frame_ancestors))  # outside of all, so that answers to failures pass it


class _Views:
    """One method a path: reads the parameters and asks the catalogue. All but two run in threads."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._uploads = asyncio.Semaphore(_UPLOADS)

    def by_path(self) -> dict[str, Callable[[Request], Any]]:
        return {
            "release": lambda _: self._catalogue.release(),
            "queries": self._queries,
            "query/{query_id}": self._query,
            "query/{query_id}/catalogue": self._whole,
            "query/{query_id}/compare": self._compare,
            "search": self._search,
            "products": lambda r: self._catalogue.browse(_whole(r, "offset", 0), _whole(r, "top", TOP)),
            "product/{product_id:path}/neighbours": self._neighbours,
        }

    def _queries(self, request: Request) -> Any:
        top = _whole(request, "top", -1)
        text = request.query_params.get("text", "")
        return self._catalogue.queries(text, None if top < 0 else top, _whole(request, "offset", 0))

    def _query(self, request: Request) -> Any:
        return self._catalogue.query(self._query_id(request), _weight(request))

    def _whole(self, request: Request) -> Any:
        return self._catalogue.whole(self._query_id(request), _weight(request), _whole(request, "top", TOP))

    def _compare(self, request: Request) -> Any:
        first, second = (request.query_params.get(name, "") for name in ("first", "second"))
        return self._catalogue.compare(self._query_id(request), first, second)

    def _search(self, request: Request) -> Any:
        text = request.query_params.get("q", "")
        return self._catalogue.search(text, None, _weight(request), _whole(request, "top", TOP))

    def _neighbours(self, request: Request) -> Any:
        by, top = request.query_params.get("by", "text"), _whole(request, "top", NEIGHBOURS)
        if by not in SIDES:
            raise UsageError("unknown kind of neighbours", where="by", expected=" or ".join(SIDES), got=repr(by))
        return self._catalogue.neighbours(self._product(request), by, min(top, MAX_TOP - 1))

    async def search_image(self, request: Request) -> Response:
        """Search for the image in the body."""
        text, weight = request.query_params.get("q") or None, _weight(request)
        top = _whole(request, "top", TOP)
        async with self._uploads:
            data = await _body(request)
            if not data:
                raise UsageError("no image in the request", where="body", expected="the bytes of an image")
            return JSONResponse(await run_in_threadpool(self._catalogue.search, text, data, weight, top))

    def image(self, request: Request) -> Response:
        """The stored image of a product, as it was fetched."""
        found = self._catalogue.image(self._product(request))
        if found is None:
            raise HTTPException(404, "no image of this product is stored")
        data, media_type, sha256 = found
        return Response(data, media_type=media_type, headers=_KEEP | {"etag": f'"{sha256}"'})

    def _query_id(self, request: Request) -> int:
        name = request.path_params["query_id"]
        try:
            query_id = int(name)
            self._catalogue.store.query_index(query_id)
        except (KeyError, ValueError):
            raise HTTPException(404, f"no such query: {name[:80]}") from None
        return query_id

    def _product(self, request: Request) -> int:
        name = request.path_params["product_id"]
        try:
            return self._catalogue.product_row(name, request.query_params.get("locale"))
        except KeyError:
            raise HTTPException(404, f"no such product: {name[:80]}") from None


# -- parameters -----------------------------------------------------------------------------------------------------


def _weight(request: Request) -> float:
    """Parameter `weight`; its range is checked by the catalogue."""
    text = request.query_params.get("weight", "0.5")
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not 0 <= weight <= 1:
        raise UsageError("bad weight", where="weight", expected="a number from 0 to 1", got=repr(text[:40]))
    return weight


def _whole(request: Request, name: str, default: int) -> int:
    text = request.query_params.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise UsageError("not a number", where=name, expected="a whole number", got=repr(text[:40]))
    return int(text)


async def _body(request: Request) -> bytes:
    """The body, read no further than the largest image allowed."""
    stated = request.headers.get("content-length", "0")
    data = bytearray()
    if stated.isdecimal() and int(stated) <= MAX_UPLOAD:
        try:
            async for chunk in request.stream():
                data += chunk
                if len(data) > MAX_UPLOAD:
                    break
            else:
                return bytes(data)
        except ClientDisconnect:
            raise HTTPException(400, "the connection ended before the image was complete") from None
    raise HTTPException(413, f"the image is too large; at most {MAX_UPLOAD:,} bytes")


# -- answers --------------------------------------------------------------------------------------------------------


def _answering(view: Callable[[Request], Any]) -> Callable[[Request], Response]:
    """An endpoint that starlette runs in a thread: numpy works there while others are served."""

    def endpoint(request: Request) -> Response:
        return JSONResponse(view(request), headers={"cache-control": "no-store"})

    return endpoint


def _static_files() -> dict[str, bytes]:
    """Every file of the page by name, read once: no path of a request ever reaches the disk."""
    folder = resources.files(__package__) / "static"
    return {file.name: file.read_bytes() for file in folder.iterdir() if "." in file.name}


def _static(name: str, data: bytes) -> Callable[[Request], Response]:
    media_type = _TYPES[name[name.rindex(".") :]]

    def endpoint(_request: Request) -> Response:
        return Response(data, media_type=media_type, headers={"cache-control": "no-cache"})

    return endpoint


def _error(status: int, message: str) -> Response:
    return JSONResponse({"error": message}, status)


def _http_error(_request: Request, error: HTTPException) -> Response:
    return _error(error.status_code, error.detail)


def _sqid_error(_request: Request, error: SqidError) -> Response:
    return _error(503 if isinstance(error, EncoderError | MissingExtraError) else 400, str(error))


def _other_error(_request: Request, error: Exception) -> Response:
    _log.error("a request failed", exc_info=error)
    return _error(500, f"the server failed: {type(error).__name__}; its log says more")
