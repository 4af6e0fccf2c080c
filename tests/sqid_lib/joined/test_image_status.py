from __future__ import annotations

import logging
from urllib.parse import quote

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sqid_lib import schemas
from sqid_lib.joined.image_status import clean_urls, image_status, is_http

HOST = "https://m.media-amazon.com/images/I/"


def status(url: str | None) -> str:
    value: str = image_status(pa.array([url], pa.string()))[0].as_py()
    return value


@pytest.mark.parametrize("url", [None, "", "  ", "\t"])
def test_no_url_is_missing(url: str | None) -> None:
    assert status(url) == "missing"


@pytest.mark.parametrize("image_id", sorted(schemas.PLACEHOLDER_IMAGE_IDS))
@pytest.mark.parametrize("modifier", [".gif", "._AC_.gif", "._BO1,204,203,200_.jpg", ""])
def test_each_image_that_says_no_image_is_a_placeholder(image_id: str, modifier: str) -> None:
    assert status(f"{HOST}{image_id}{modifier}") == "placeholder"
    assert status(f"{HOST}{quote(image_id)}{modifier}") == "placeholder"


@pytest.mark.parametrize("part", schemas.PLACEHOLDER_URL_PARTS)
def test_no_image_paths_are_placeholders(part: str) -> None:
    assert status(f"https://images.example/G/01{part}_CB1_.gif") == "placeholder"


@pytest.mark.parametrize(
    "url",
    [
        f"{HOST}71lspKEUvbL._SX679_.jpg",
        f"{HOST}A13usaonutL._CLa%7C2140%2C2000%7C71obSG0v07L.png%7C0%2C0_AC_SX342_.png",
        f"{HOST}01RmK+J4pJLx.gif",  # another id that starts alike
        f"{HOST}x01RmK+J4pJL.gif",
        f"{HOST}01rmk+j4pjl.gif",
        "https://images.amazon.com/images/P/0060538260.01.jpg",
    ],
)
def test_other_images_are_ok(url: str) -> None:
    assert status(url) == "ok"


@pytest.mark.parametrize(
    ("url", "http"),
    [
        ("https://x.example/a.jpg", True),
        (" HTTP://x.example/a.jpg", True),
        ("javascript:alert(1)//https://x.example/", False),
        ("data:image/png;base64,AAAA", False),
        ("//x.example/a.jpg", False),
        ("a.jpg", False),
        ("ftp://x.example/a", False),
        ("https:///a", False),
        (None, None),
    ],
)
def test_which_urls_are_http(url: str | None, http: bool | None) -> None:
    assert is_http(pa.array([url], pa.string())).to_pylist() == [http]


def test_only_a_url_of_http_is_a_placeholder_or_generic() -> None:
    assert status("javascript:alert(1)//no-img-sm.gif") == "ok"  # fetch ends it as bad_url
    assert status(schemas.GENERIC_IMAGE_URL.replace("https", "ftp")) == "ok"


def test_the_default_video_image_is_generic_whatever_its_modifiers() -> None:
    assert status(schemas.GENERIC_IMAGE_URL) == "generic"
    assert status(schemas.GENERIC_IMAGE_URL.replace("_SX1080_", "_SX400_")) == "generic"
    assert status(schemas.GENERIC_IMAGE_URL.replace("/G/01/", "/G/%30%31/")) == "generic"


def test_chunks_and_other_string_types_and_all_null() -> None:
    urls = [None, f"{HOST}01RmK%2BJ4pJL.gif", schemas.GENERIC_IMAGE_URL, f"{HOST}1.jpg"]
    expected = ["missing", "placeholder", "generic", "ok"]
    chunked = pa.chunked_array([urls[:1], urls[1:]], pa.string())
    for array in (chunked, pa.array(urls, pa.large_string()), pa.array(urls).dictionary_encode()):
        assert image_status(array).to_pylist() == expected
        assert image_status(array).type == pa.string()
    assert image_status(pa.nulls(2)).to_pylist() == ["missing"] * 2
    assert len(image_status(pa.chunked_array([], pa.string()))) == 0


@settings(max_examples=50, deadline=None)
@given(st.lists(st.one_of(st.none(), st.text(), st.sampled_from([f"{HOST}01RmK%2BJ4pJL.gif", "%", "%ff"]))))
def test_each_row_is_decided_alone(urls: list[str | None]) -> None:
    assert image_status(pa.array(urls, pa.string())).to_pylist() == [status(url) for url in urls]


def test_html_escapes_are_undone_only_where_that_is_certain(caplog: pytest.LogCaptureFixture) -> None:
    given = [
        "https://x.example/i?a=1&amp;b=2",
        "https://x.example/i?a=1&amp;amp;b=2",
        "https://x.example/i?a=1&amp;b=2&c=3",
        "https://x.example/i?a=1&b=2",
        "  ",
        None,
    ]
    with caplog.at_level(logging.INFO, logger="sqid_lib"):
        found = clean_urls(pa.chunked_array([given], pa.string()), "urls.csv").to_pylist()
    assert found == [
        "https://x.example/i?a=1&b=2",
        "https://x.example/i?a=1&b=2",
        "https://x.example/i?a=1&amp;b=2&c=3",
        "https://x.example/i?a=1&b=2",
        None,
        None,
    ]
    levels = {record.levelname: record.getMessage() for record in caplog.records}
    assert "&amp; is read as & in 2 URLs" in levels["INFO"] and "1 URLs hold both" in levels["WARNING"]
