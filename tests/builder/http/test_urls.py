from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builder.http.urls import BadUrlError, join_url, parse_url


@pytest.mark.parametrize(
    "url",
    [
        "https://m.media-amazon.com/images/I/A13._CLa%7C2140%2C2000%7C71o.png%7C0%2C0%2B0.0_AC_.png",
        "https://m.media-amazon.com/images/I/51z._SY291_BO1,204,203,200_QL40_.jpg",
        "http://h.example/a%2fb/../c//d;e?q=%20+x&y=|{}^`",
        "http://h.example:8080/",
    ],
)
def test_urls_keep_every_published_byte(url: str) -> None:
    assert url.endswith(parse_url(url).path)
    assert parse_url(f" {url}\n") == parse_url(url)


def test_parts_of_a_url() -> None:
    assert parse_url("HTTP://H.example:8080") == ("http", "h.example", "h.example", 8080, "/")
    assert parse_url("https://h.example?") == ("https", "h.example", "h.example", 443, "/?")
    assert parse_url("http://[::1]/a?b/c#d") == ("http", "::1", "::1", 80, "/a?b/c")
    assert parse_url("http://[::1]:443/").origin == "http://[::1]:443"
    assert parse_url("https://H.example:443/a").origin == "https://h.example"


def test_what_http_cannot_carry_is_encoded() -> None:
    assert parse_url("http://h.example/a b/é%7C").path == "/a%20b/%C3%A9%7C"
    parsed = parse_url("http://bücher.example:8080/a%41%7c")
    assert parsed == ("http", "bücher.example", "xn--bcher-kva.example", 8080, "/a%41%7c")


@pytest.mark.parametrize(
    "url",
    [
        *("", "x", "//h.example/", "ftp://h.example/", "file:///etc/passwd", "javascript:alert(1)", "data:image/png,x"),
        *("http://", "http:///path", "http://:80/", "http://h.example:99999/", "http://h.example:x/", "http://[::1/"),
        *("http://h.example/\r\nHost: evil", "http://h.example/\x00", "http://u:p@h.example/", "http://u@h.example/"),
        *("http://h.example/\ud800", "http://K=]A['%@", "http://*/", "http://-h/", "http://+h/", "http://127%2e0.0.1/"),
        *("http://h\u00a0x/", "http://a,b/", "http://h.example/" + "a" * 70_000),
    ],
)
def test_other_urls_are_bad(url: str) -> None:
    with pytest.raises(BadUrlError):
        parse_url(url)


@given(st.text())
@settings(max_examples=200, deadline=None)
def test_any_text_is_a_url_or_a_bad_one(text: str) -> None:
    for url in (text, f"http://{text}", f"http://h.example/{text}"):
        with contextlib.suppress(BadUrlError):
            assert parse_url(url).scheme in ("http", "https")


def test_redirect_targets_join_and_keep_their_bytes() -> None:
    assert join_url("http://h.example/a/b%7C?x", "c%7Cd") == "http://h.example/a/c%7Cd"
    assert join_url("https://h.example/a", "//o.example/%2F") == "https://o.example/%2F"
    assert join_url("http://h.example/a", "http://a]b[x@") == "http://a]b[x@"
    assert join_url("http://h.example/a", "/caf\udce9") == "http://h.example/caf%E9"
