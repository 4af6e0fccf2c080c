"""The YAML block of a card: what it holds, and that no block costs time or memory."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import DatasetCard
from hypothesis import given, settings
from hypothesis import strategies as st

from builder.release import card_yaml
from builder.release.card_yaml import read_metadata
from builder.validate import validate
from sqid_lib import schemas
from sqid_lib.errors import CorruptFileError, MissingFileError, SqidError


def test_it_reads_what_huggingface_hub_reads(good: Path) -> None:
    assert read_metadata(good) == DatasetCard.load(good / schemas.CARD).data.to_dict()


@pytest.mark.parametrize("content", ["", "# no yaml", "---\na: [\n---\n", "---\n- 1\n---\n", "---\na: 1\n"])
def test_a_card_of_another_shape_is_reported(release: Path, content: str) -> None:
    (release / schemas.CARD).write_text(content)
    with pytest.raises(CorruptFileError):
        read_metadata(release)


def test_no_card_is_reported(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError):
        read_metadata(tmp_path)


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefghijk", "bcdefghijkl", strict=True)
)


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (BOMB, "alias"),
        ("a: &x [1]\nb: *x", "alias"),
        ("a: &x {b: 1}\nc:\n  <<: *x", "alias"),
        ("a: &x [*x]", "alias"),
        ("a: " + "[" * 30_000, "levels"),
        ("- " * 10_000, "levels"),
        ("a: " + "x" * 64_000, "characters"),
        ("a: 1\r\nb: 2", "carriage return"),
        ("a: 1\r---\rb: [", "carriage return"),
        ("a: 1\n--- \nb: 1", "one document|single document"),
        ("1: 2", "not a table"),
        ("a: !!python/object/apply:os.system [id]", "could not determine a constructor"),
        ("a: 2001-99-99", "month must be in"),
    ],
)
def test_a_harmful_block_is_refused_and_not_read_by_others(
    release: Path, block: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (release / schemas.CARD).write_bytes(f"---\n{block}\n---\n".encode())
    with pytest.raises(CorruptFileError, match=reason):
        read_metadata(release)
    monkeypatch.setattr(yaml, "safe_load", lambda text: pytest.fail("huggingface_hub or datasets parsed the card"))
    assert "card" in {problem.code for problem in validate(release)}


def test_a_bomb_costs_no_work(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = []
    compose = yaml.SafeLoader.compose_node

    def counting(*arguments: Any) -> Any:
        nodes.append(arguments)
        return compose(*arguments)

    monkeypatch.setattr(yaml.SafeLoader, "compose_node", counting)
    (release / schemas.CARD).write_text(f"---\n{BOMB}\n---\n")
    with pytest.raises(CorruptFileError):
        read_metadata(release)
    assert len(nodes) < 20


def test_a_card_larger_than_any_is_not_read(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(card_yaml, "_MAX_BYTES", 1_000)
    with pytest.raises(CorruptFileError, match="more than 1,000 bytes"):
        read_metadata(release)


@settings(max_examples=100, deadline=None)
@given(block=st.text(alphabet="abc012:-[]{}&*!?|>'\"#%@,. \n\t", max_size=60))
def test_any_block_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, block: str) -> None:
    folder = tmp_path_factory.getbasetemp() / "any"
    folder.mkdir(exist_ok=True)
    (folder / schemas.CARD).write_text(f"---\n{block}\n---\n", newline="\n")
    with contextlib.suppress(SqidError):
        assert isinstance(read_metadata(folder), dict)
