from __future__ import annotations

import json

from sqid_lib.search.result import COLUMNS, Hit, SearchResult

HITS = (
    Hit(
        "B1", "us", "Red <b>shoes</b>\x1b[31m " + "long " * 30, "https://i.example/1.jpg?a=1&b='\"", "ok", 0.9, 0.8, 1.0
    ),
    Hit("B2", "jp", None, "javascript:alert(1)", None, 0.25, 0.5, 0.0),
    Hit("B3", "us", "靴", None, "missing", 0.1, 0.2, 0.0),
)
FOUND = SearchResult(HITS, ("a note & more",))


def test_it_is_a_sequence_of_hits() -> None:
    assert (len(FOUND), FOUND[0], list(FOUND)) == (3, HITS[0], list(HITS))


def test_text() -> None:
    header, first, second, _, note = str(FOUND).splitlines()
    assert header.split() == ["score", "text", "image", "product_id", "locale", "image_status", "title"]
    assert first.split()[:7] == ["1", "0.9000", "0.8000", "1.0000", "B1", "us", "ok"]
    assert "\x1b" not in first and first.endswith("…") and second.split()[-1] == "jp"
    assert note == "a note & more"
    assert str(SearchResult(())) == "no product found"


def test_html_is_escaped_and_shows_only_web_images() -> None:
    page = FOUND._repr_html_()
    assert page.count("<img ") == 1 and 'loading="lazy"' in page
    assert 'src="https://i.example/1.jpg?a=1&amp;b=&#x27;&quot;"' in page
    assert "<b>" not in page and "javascript" not in page and "a note &amp; more" in page


def test_json_and_data_frame_have_the_same_values() -> None:
    rows = json.loads(FOUND.to_json())
    assert [row["product_id"] for row in rows] == ["B1", "B2", "B3"]
    assert tuple(rows[0]) == COLUMNS == tuple(FOUND.to_pandas().columns)
    assert FOUND.to_pandas()["score"].tolist() == [0.9, 0.25, 0.1]
    assert rows[1]["title"] is None
    assert list(SearchResult(()).to_pandas().columns) == list(COLUMNS)
    assert json.loads(SearchResult(()).to_json()) == []
