"""A comparison as text, HTML and a data frame."""

from __future__ import annotations

import json
import math
import re
from html import unescape

import numpy as np
from evaluation_fixtures import memory_store, random_store

from sqid_lib import evaluation


def test_table_is_aligned() -> None:
    table = str(evaluation.compare(random_store(14), resamples=100)).split("\n\n")[0].splitlines()
    assert table[0].split()[:2] == ["method", "nDCG"]
    end = table[0].index("nDCG") + 4
    assert all(line[end - 6 : end].count(".") == 1 for line in table[1:])


def test_the_table_is_ascii() -> None:
    result = evaluation.compare(random_store(14), slices=("source", "images", "length"), resamples=100)
    assert str(result).isascii()
    assert repr(result) == str(result)
    first = result.rows[0]
    assert f"{first['ndcg']:.4f}  {first['ndcg_low']:.4f}-{first['ndcg_high']:.4f}" in str(result)
    assert "vs random" in str(result)


def test_a_data_frame_has_the_rows_of_json() -> None:
    result = evaluation.compare(random_store(14), ["clip_text", "fusion"], slices=("source",), resamples=100)
    frame = result.to_pandas()
    expected = json.loads(result.to_json())
    assert frame["method"].tolist() == ["clip_text", "fusion"]
    assert frame.columns.tolist()[:4] == ["method", "ndcg", "ndcg_low", "ndcg_high"]
    assert set(frame.columns) | {"slices"} == {key for row in expected for key in row}
    for name in ("ndcg", "ndcg_at_10", "queries", "gains"):
        assert frame[name].tolist() == [row[name] for row in expected]
    assert math.isnan(frame["delta"][0])  # the baseline has no difference from itself
    assert frame["delta"][1] == expected[1]["delta"]
    assert frame["weights"][1] == expected[1]["weights"]


def test_html_has_the_cells_of_the_table_and_the_notes() -> None:
    result = evaluation.compare(random_store(14), slices=("source",), resamples=100)
    page = result._repr_html_()
    rows = [re.findall("<t[hd]>(.*?)</t[hd]>", row) for row in re.findall("<tr>(.*?)</tr>", page)]
    tables = [part.splitlines() for part in str(result).split("\n\n")[:-1]]
    lines = [line for table in tables for line in table if not line.startswith("source:")]
    assert [[cell for cell in map(unescape, row) if cell] for row in rows] == [re.split("  +", line) for line in lines]
    assert {len(row) for row in rows} == {len(rows[0])}
    assert page.count("<table>") == 3
    assert "<caption>source: negations (6 queries)</caption>" in page
    assert [unescape(note) for note in re.findall("<li>(.*?)</li>", page)] == result.notes


def test_html_is_escaped() -> None:
    gains = {"<b>": 1.0, "no & never": 0.0}
    store = memory_store([[(0, "<b>"), (1, "no & never")]], 2, gains=gains)
    store.queries = store.queries.set_column(2, "source", [["<script>"]])
    page = evaluation.compare(store, scores={"<i>&": np.ones(2)}, slices=("source",), resamples=100)._repr_html_()
    assert not [tag for tag in ("<b>", "<i>", "<script>", "& never") if tag in page]
    assert "<td>&lt;i&gt;&amp;</td>" in page
    assert "source: &lt;script&gt; (1 queries)" in page
    assert "&lt;b&gt; 1, no &amp; never 0" in page
