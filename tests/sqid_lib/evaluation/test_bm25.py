"""bm25 against its formula, computed here without the package that the method uses."""

from __future__ import annotations

import logging
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluation_fixtures import MemoryStore, memory_store, random_store

from sqid_lib import evaluation
from sqid_lib.errors import MissingExtraError
from sqid_lib.evaluation.bm25 import words

pytest.importorskip("bm25s")

WORDS = ["red", "blue", "shoe", "sock", "wool", "cotton", "men", "women", "kids", "new"]


def with_texts(store: MemoryStore, titles: list[str | None], queries: list[str | None]) -> MemoryStore:
    store.products = store.products.set_column(2, "product_title", [titles])
    store.queries = store.queries.set_column(1, "query", [queries])
    return store


def text_store(seed: int, *, queries: int = 10, products: int = 80, **options: Any) -> MemoryStore:
    """Titles of 0 to 7 words, so that many products tie."""
    rng = np.random.default_rng(seed)
    texts = [" ".join(rng.choice(WORDS, rng.integers(0, 8))) for _ in range(products + queries)]
    store = random_store(seed, queries=queries, products=products, **options)
    return with_texts(store, list(texts[:products]), list(texts[products:]))


def by_the_formula(store: MemoryStore, k1: float = 1.2, b: float = 0.75) -> np.ndarray[Any, Any]:
    """Scores [Q, P] for texts of plain words."""
    titles = [(title or "").split() for title in store.products["product_title"].to_pylist()]
    mean = sum(map(len, titles)) / len(titles)
    scores = np.zeros((store.queries.num_rows, len(titles)))
    for q, query in enumerate(store.queries["query"].to_pylist()):
        for word in (query or "").split():
            having = sum(word in title for title in titles)
            idf = math.log(1 + (len(titles) - having + 0.5) / (having + 0.5))
            for p, title in enumerate(titles):
                tf = title.count(word)
                scores[q, p] += idf * tf / (tf + k1 * (1 - b + b * len(title) / mean)) if tf else 0
    return scores


def test_by_hand() -> None:
    store = memory_store([[(0, "E"), (1, "S"), (2, "I")]], 4)
    with_texts(store, ["red shoe red", "shoe", "sock", "red sock blue sock"], ["red shoe"])  # the last is not judged
    result = evaluation.compare(store, ["bm25"], resamples=100)
    idf = math.log(1 + (4 - 2 + 0.5) / (2 + 0.5))  # each word is in 2 of 4 titles, whose mean length is 9/4
    red_shoe = idf * 2 / (2 + 1.2 * (0.25 + 0.75 * 3 / 2.25)) + idf * 1 / (1 + 1.2 * (0.25 + 0.75 * 3 / 2.25))
    shoe = idf * 1 / (1 + 1.2 * (0.25 + 0.75 * 1 / 2.25))
    assert result.scores["bm25"].tolist() == pytest.approx([red_shoe, shoe, 0], abs=1e-15)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_judged_pairs_equal_the_formula_over_the_whole_catalogue(seed: int) -> None:
    store = text_store(seed, shuffle=True)
    result = evaluation.compare(store, ["bm25"], resamples=100)
    expected = by_the_formula(store)[result.lists.query_index[result.lists.query], result.lists.product]
    np.testing.assert_allclose(result.scores["bm25"], expected, rtol=1e-12, atol=1e-15)
    assert len(np.unique(result.scores["bm25"])) < len(expected)  # there are ties


@pytest.mark.parametrize("top", [1, 7, 30, 200])
def test_retrieval_is_exact_and_leaves_out_products_without_a_word_of_the_query(top: int) -> None:
    store = text_store(3)
    found = evaluation.retrieve(store, ["bm25"], top=top, metrics="ndcg", resamples=100).rankings["bm25"]
    scores = by_the_formula(store).round(12)
    for q in range(10):
        expected = np.argsort(-scores[q], kind="stable")[: min(top, int((scores[q] > 0).sum()))]
        assert found.product[found.query == q].tolist() == expected.tolist()
        np.testing.assert_allclose(found.score[found.query == q], scores[q][expected], rtol=1e-9)


def test_ties_go_to_the_smaller_product_id_whatever_the_order_of_rows_and_words() -> None:
    store = with_texts(memory_store([[(0, "I"), (1, "E")]], 3), ["red shoe", "shoe red", "sock"], ["red shoe"])
    store.products = store.products.set_column(0, "product_id", [["B", "A", "C"]])
    assert evaluation.compare(store, ["bm25"], resamples=100).rankings["bm25"].product.tolist() == [1, 0]
    found = evaluation.retrieve(store, ["bm25"], top=1, metrics="ndcg", resamples=100)
    assert found.rankings["bm25"].product.tolist() == [1]


def test_products_left_out_still_count_in_the_corpus() -> None:
    store = text_store(4, without_image=tuple(range(0, 80, 3)))
    dropped = evaluation.compare(store, ["bm25"], missing="drop", resamples=100)
    expected = by_the_formula(store)[dropped.lists.query_index[dropped.lists.query], dropped.lists.product]
    np.testing.assert_allclose(dropped.scores["bm25"], expected, rtol=1e-12, atol=1e-15)
    found = evaluation.retrieve(store, ["bm25"], missing="drop", top=100, resamples=100).rankings["bm25"]
    assert (found.product % 3 != 0).all()


def test_a_word_twice_in_the_query_counts_twice() -> None:
    store = with_texts(memory_store([[(0, "E")], [(0, "E")]], 2), ["red shoe", "sock"], ["red red", "red"])
    twice, once = evaluation.compare(store, ["bm25"], resamples=100).scores["bm25"]
    assert once > 0
    assert twice == pytest.approx(2 * once)


def test_missing_and_empty_texts_score_0() -> None:
    store = memory_store([[(0, "E"), (1, "S"), (2, "I")], [(2, "E")], [(2, "E")], [(2, "E")]], 3)
    with_texts(store, [None, "", "red shoe"], ["red", None, "", "!? ...-"])
    scores = evaluation.compare(store, ["bm25"], resamples=100).scores["bm25"]
    assert scores.tolist() == [0, 0, pytest.approx(scores[2]), 0, 0, 0]
    assert scores[2] > 0
    nothing = with_texts(store, [None, "", "--"], ["red", None, "", "shoe"])
    result = evaluation.compare(nothing, ["bm25"], resamples=100)
    assert set(result.scores["bm25"]) == {0}
    assert "bm25: no product has a title with a word, all of them score 0" in result.notes
    assert len(evaluation.retrieve(nothing, ["bm25"], resamples=100).rankings["bm25"].product) == 0


def test_it_can_be_fused() -> None:
    result = evaluation.compare(text_store(5), ["bm25+clip_text:0.5", "bm25", "clip_text"], resamples=100)
    text, bm25 = result.scores["clip_text"], result.scores["bm25"]
    mixed = 0.5 * (bm25 - bm25.mean()) / bm25.std() + 0.5 * (text - text.mean()) / text.std()
    np.testing.assert_allclose(result.scores["bm25+clip_text:0.5"], mixed)


# -- words ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Women's RED Shoes, size 7.5", "women s red shoes size 7 5"),
        ("Große MÜTZE für Ärzte", "grosse mütze für ärzte"),  # no stemming, ß is ss
        ("u\N{COMBINING DIAERESIS}ber", "über"),
        ("ＡＢＣ１２３ ﬁt", "abc123 fit"),  # full width, ligature
        ("ワイヤレスイヤホン", "ワイ イヤ ヤレ レス スイ イヤ ヤホ ホン"),
        ("ワイヤ・ホン 水", "ワイ イヤ ホン 水"),
        ("ﾊﾟｿｺﾝ", "パソ ソコ コン"),  # half width
        ("iPhone用ケース2個", "iphone 用ケ ケー ース 2 個"),
        ("人々", "人々"),
        ("한국어 제품", "한국어 제품"),
        ("", ""),
        (" -- ", ""),
    ],
)
def test_words(text: str, expected: str) -> None:
    assert list(words(text)) == expected.split()


def test_japanese_titles_are_found_by_a_part_of_a_word() -> None:
    store = memory_store([[(0, "E"), (1, "I")]], 2)
    with_texts(store, ["高音質ワイヤレスイヤホン", "水筒"], ["イヤホン"])
    scores = evaluation.compare(store, ["bm25"], resamples=100).scores["bm25"]
    assert scores[0] > 0 == scores[1]


# -- around it ------------------------------------------------------------------------------------------------------


def test_scores_do_not_depend_on_the_hash_seed(tmp_path: Path) -> None:
    script = tmp_path / "scores.py"
    script.write_text(
        "from test_bm25 import text_store\nfrom sqid_lib import evaluation\n"
        "print(evaluation.compare(text_store(6), ['bm25'], resamples=100).scores['bm25'].tobytes().hex())\n"
    )
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    printed = {
        subprocess.run(
            [sys.executable, str(script)],
            env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(printed) == 1


def test_the_package_does_not_write_to_the_log(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger().setLevel(logging.WARNING)
    evaluation.compare(text_store(7), ["bm25"], resamples=100)
    assert not caplog.records


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bm25s", None)
    for judge in (evaluation.compare, evaluation.retrieve):
        with pytest.raises(MissingExtraError, match=r"bm25s.*sqid\[eval\]"):
            judge(text_store(8), ["bm25"])
