"""The table of ranking methods, and all that follows from it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from evaluation_fixtures import memory_store, random_store

from builder.cli import main
from sqid_lib import evaluation
from sqid_lib.errors import UsageError
from sqid_lib.evaluation.arrays import Floats
from sqid_lib.evaluation.cosine import unit
from sqid_lib.evaluation.methods import DEFAULT_METHODS, METHODS, described, is_method
from sqid_lib.evaluation.scorer import Method, Scorer
from sqid_lib.evaluation.search import Search

README = Path(__file__).parents[3] / "README.md"


def test_the_table() -> None:
    assert DEFAULT_METHODS == ("random", "clip_text", "clip_image", "fusion", "rrf")
    forms = [form for form, _ in described()]
    assert forms[:4] == ["bm25", "random", "random_draw", "clip_text"]  # text baselines first
    assert forms[4:8] == ["clip_image", "fusion[:WEIGHT]", "rrf", "sbert[:MODEL]"]
    assert forms[8:11] == ["cross-encoder[:MODEL]", "run:FILE", "features:FILE"]
    assert forms[-1] == "A+B[:WEIGHT]"
    searching = {name for name, method in METHODS.items() if method.searches}
    assert searching >= {"bm25", "clip_text", "clip_image", "fusion", "rrf", "sbert", "run", "features"}
    published = {"random": 0.7483, "clip_text": 0.8107, "clip_image": 0.8225, "sbert": 0.8292}
    assert published == evaluation.PUBLISHED_NDCG
    assert all(is_method(name) for name in ("random", "run:x", "clip_text:3"))
    assert not any(is_method(name) for name in ("", "nope", "clip"))


def test_readme_has_the_table_of_methods() -> None:
    rows = "".join(f"| `{form}` | {summary} |\n" for form, summary in described())
    table = f"| method | ranks by |\n|---|---|\n{rows}\n"
    assert table in README.read_text(encoding="utf-8"), f"README needs this table:\n{table}"


def title_length(scorer: Scorer, _argument: str) -> Floats:
    titles = scorer.store.products["product_title"].to_pylist()
    return np.array([float(len(titles[p])) for p in scorer.lists.product])


def title_length_searches(scorer: Scorer, _argument: str) -> list[Search]:
    lengths = np.array([[len(t)] for t in scorer.store.products["product_title"].to_pylist()], np.float32)
    rows = scorer.lists.query_index
    return [Search(rows, unit(np.ones((len(rows), 1), np.float32)), lambda products: lengths[products])]


@pytest.fixture
def scratch(monkeypatch: pytest.MonkeyPatch) -> Method:
    """A method that is in the table and nowhere else."""
    method = Method("title_length", "length of the title", title_length)
    monkeypatch.setitem(METHODS, method.name, method)
    return method


@pytest.mark.usefixtures("scratch")
def test_a_method_added_to_the_table_ranks_and_fuses() -> None:
    store = memory_store([[(0, "I"), (1, "S"), (2, "E")]], 3)
    store.products = store.products.set_column(2, "product_title", [["a", "bbb", "cc"]])
    result = evaluation.compare(store, ["title_length", "title_length+clip_text:1"], resamples=100)
    assert result.scores["title_length"].tolist() == [1, 3, 2]
    assert result.rankings["title_length+clip_text:1"].product.tolist() == [1, 2, 0]
    with pytest.raises(UsageError, match="scores have the name of a method"):
        evaluation.compare(store, scores={"title_length": [1, 2, 3]})


@pytest.mark.usefixtures("scratch")
def test_a_method_added_to_the_table_is_in_help_and_in_errors(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    assert re.search(r"^  title_length +length of the title$", capsys.readouterr().out, re.MULTILINE)
    with pytest.raises(UsageError, match=r"unknown method.*features:FILE, title_length, A\+B.*mean title_length\?"):
        evaluation.compare(random_store(0), ["title_lenght"])


def test_a_method_added_to_the_table_can_search_if_it_says_so(scratch: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    store = memory_store([[(0, "E"), (1, "S")]], 3)
    store.products = store.products.set_column(2, "product_title", [["a", "bbb", "cc"]])
    with pytest.raises(UsageError, match=r"cannot search all products.*run:FILE, features:FILE, got 'title_length'"):
        evaluation.retrieve(store, ["title_length"])
    searching = Method(scratch.name, scratch.summary, scratch.judged, title_length_searches)
    monkeypatch.setitem(METHODS, scratch.name, searching)
    found = evaluation.retrieve(store, ["title_length"], resamples=100)
    assert found.rankings["title_length"].product.tolist() == [1, 2, 0]
    with pytest.raises(UsageError, match=r"cannot search all products.*features:FILE, title_length, got 'random'"):
        evaluation.retrieve(store, ["random"])


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("clip_txt", "clip_text"),
        ("clip_text:3", "clip_text"),
        ("clip_image:", "clip_image"),
        ("run", "run:FILE"),
        ("run:", "run:FILE"),
        ("feature:x", "features:FILE"),
        ("clip_text+clip_imag", "clip_image"),
        ("cross_encoder:m", "cross-encoder[:MODEL]"),
    ],
)
def test_unknown_methods_name_the_nearest(name: str, meant: str) -> None:
    with pytest.raises(UsageError, match=rf"unknown method.*Did you mean {re.escape(meant)}\?$"):
        evaluation.compare(random_store(1), [name], resamples=100)


@pytest.mark.parametrize("name", ["nope", "", "clip_text+nope", "a+b+c"])
def test_nothing_is_suggested_where_nothing_is_near(name: str) -> None:
    with pytest.raises(UsageError, match=r"unknown method.*got '[a-z+_]*'$"):
        evaluation.compare(random_store(1), [name], resamples=100)


def test_names_are_checked_before_anything_is_ranked(scratch: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(scorer: Scorer, argument: str) -> Floats:
        raise AssertionError

    monkeypatch.setitem(METHODS, scratch.name, Method(scratch.name, "", never, never))  # type: ignore[arg-type]
    for judge in (evaluation.compare, evaluation.retrieve):
        with pytest.raises(UsageError):
            judge(random_store(2), ["title_length", "nope"])
    with pytest.raises(UsageError, match="unknown backend"):
        evaluation.retrieve(random_store(2), ["title_length"], backend="gpu")


def test_random_has_no_scores_to_fuse() -> None:
    with pytest.raises(UsageError, match=r"no scores to add; got 'random'"):
        evaluation.compare(random_store(3), ["clip_text+random:0.5"], resamples=100)
