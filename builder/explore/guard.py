"""What every request and every answer passes: names of this server only, and headers that bind the browser.

A page of another site can make a browser ask 127.0.0.1, even under a name of its own (DNS rebinding); such a request
carries that other name in its Host header.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")
ANY_ADDRESS = ("0.0.0.0", "::", "")
FOREIGN = "requests from pages of other sites are refused"


def allowed_names(host: str, more: Sequence[str] = ()) -> frozenset[str]:
    """Names under which a server bound to `host` answers, in lower case and without a port."""
    bound = () if host in ANY_ADDRESS else (f"[{host}]" if ":" in host else host,)
    return frozenset(name.lower() for name in (*LOCAL_NAMES, *bound, *more))


def host_name(value: str) -> str:
    """The name in a Host header, in lower case: "[::1]:80" → "[::1]"."""
    name, _, port = value.strip().lower().rpartition(":")
    return name if port.isdecimal() else value.strip().lower()


def security_headers(frame_ancestors: Sequence[str] = ()) -> dict[str, str]:
    """Headers of every answer.

    Args:
        frame_ancestors: origins whose pages may show this one in a frame; default none.
    """
    policy = {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "connect-src": "'self'",
        "img-src": "'self' blob: http: https:",  # images of products come from anywhere
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": " ".join(frame_ancestors) or "'none'",
    }
    headers = {
        "content-security-policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cross-origin-resource-policy": "same-origin",
        "permissions-policy": "camera=(), microphone=(), geolocation=()",
    }
    return headers if frame_ancestors else headers | {"x-frame-options": "DENY"}


class Guard:
    """ASGI middleware: 421 for a Host that is not ours, 403 for a request that another site's page sends."""

    def __init__(self, app: ASGIApp, names: frozenset[str], headers: dict[str, str]) -> None:
        self._app, self._names, self._headers = app, names, headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self._headers)
            await send(message)

        if refusal := self._refusal(Headers(scope=scope)):
            status, reason = refusal
            body = json.dumps({"error": reason}).encode()
            content = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
            await send_guarded({"type": "http.response.start", "status": status, "headers": content})
            await send_guarded({"type": "http.response.body", "body": body})
            return
        await self._app(scope, receive, send_guarded)

    def _refusal(self, headers: Headers) -> tuple[int, str] | None:
        hosts = headers.getlist("host")
        if len(hosts) != 1 or host_name(hosts[0]) not in self._names:
            return 421, "the server does not answer under this host name; start it with --allow-host NAME"
        origin = headers.get("origin")
        if origin is not None and host_name(origin.partition("://")[2]) not in self._names:
            return 403, FOREIGN
        if headers.get("sec-fetch-site") == "cross-site" and headers.get("sec-fetch-mode") != "navigate":
            return 403, FOREIGN  # an image or script of another page, which has no Origin; a link to here is allowed
        return None
