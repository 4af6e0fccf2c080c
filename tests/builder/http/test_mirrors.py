"""builder.http.mirrors: what is requested in place of a published URL, and from which host."""

from __future__ import annotations

import pytest

from builder.http.mirrors import authority, mirrored


def test_the_longest_mirror_prefix_wins_and_the_rest_is_kept() -> None:
    mirrors = {"https://h.example/": "http://m:1/", "https://h.example/I/": "http://m:2/x/"}
    assert mirrored("https://h.example/I/a%7Cb", mirrors) == "http://m:2/x/a%7Cb"
    assert mirrored("https://h.example/P/a", mirrors) == "http://m:1/P/a"
    assert mirrored("https://o.example/https://h.example/", mirrors) == "https://o.example/https://h.example/"


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://H.example/a?b", "h.example"),
        (" http://127.0.0.1:8123/x", "127.0.0.1:8123"),
        ("http://me:secret@h.example:81", "h.example:81"),
        ("no url", ""),
    ],
)
def test_the_host_of_a_url(url: str, host: str) -> None:
    assert authority(url) == host
