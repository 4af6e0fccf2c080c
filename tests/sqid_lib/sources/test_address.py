"""The one parser of addresses: every form, revisions with slashes, and which of a folder and a repository wins."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqid_lib.errors import SourceError, UsageError
from sqid_lib.sources.address import HUB, Address, parse_address
from sqid_lib.sources.object_copy import release_directory

FORMS = {
    "hf://datasets/ORG/n": ("hub", "ORG/n", None, ""),
    "hf://datasets/ORG/n/": ("hub", "ORG/n", None, ""),
    "hf://datasets/ORG/n/data/urls/": ("hub", "ORG/n", None, "data/urls"),
    "hf://datasets/ORG/n@v1.0": ("hub", "ORG/n", "v1.0", ""),
    "hf://datasets/ORG/n@v1.0/data": ("hub", "ORG/n", "v1.0", "data"),
    "hf://datasets/ORG/n@refs/pr/1": ("hub", "ORG/n", "refs/pr/1", ""),
    "hf://datasets/ORG/n@refs/pr/1/data/urls": ("hub", "ORG/n", "refs/pr/1", "data/urls"),
    "hf://datasets/ORG/n@refs/convert/parquet/": ("hub", "ORG/n", "refs/convert/parquet", ""),
    "hf://datasets/ORG/n@refs%2Fpr%2F1/a/b": ("hub", "ORG/n", "refs/pr/1", "a/b"),
    "hf://datasets/ORG/n@feature%2Fx": ("hub", "ORG/n", "feature/x", ""),
    "ORG/n": ("hub", "ORG/n", None, ""),
    "ORG/n/": ("hub", "ORG/n", None, ""),
    "ORG/n@v1": ("hub", "ORG/n", "v1", ""),
    "ORG/n@refs/pr/1": ("hub", "ORG/n", "refs/pr/1", ""),
    "https://host/folder": ("http", "", None, "https://host/folder"),
    "https://host/folder//": ("http", "", None, "https://host/folder"),
    "http://127.0.0.1:80/x?y=1": ("http", "", None, "http://127.0.0.1:80/x?y=1"),
}


@pytest.mark.parametrize("text", FORMS)
def test_every_form(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    address = parse_address(text)
    assert (address.kind, address.repo, address.revision, address.path) == FORMS[text]
    again = parse_address(str(address))
    assert (again.kind, again.repo, again.revision, again.path) == FORMS[text]


@pytest.mark.parametrize("text", ["x", "./ORG/n", "../a/b", "a/b/c", "ORG/n@v1/data", "a b/c", "work#1/x?y", "/abs/x/"])
def test_everything_else_is_a_local_path(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    address = parse_address(text)
    assert address.kind == "local" and address.local == Path(address.path)
    assert Path(address.path).is_absolute() and address.repo == ""


def test_a_path_object_is_local_whatever_it_spells(tmp_path: Path) -> None:
    assert parse_address(Path("ORG/n")).kind == "local"
    assert parse_address("sub", tmp_path).local == tmp_path / "sub"
    assert parse_address("tables/urls.csv", tmp_path, file=True).local == tmp_path / "tables" / "urls.csv"


def test_a_local_folder_wins_over_the_hub_and_the_log_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ORG" / "n").mkdir(parents=True)
    with caplog.at_level(logging.INFO, logger="sqid_lib"):
        assert parse_address("ORG/n").local == tmp_path / "ORG" / "n"
    assert "local directory" in caplog.text and "hf://datasets/ORG/n" in caplog.text
    assert parse_address("hf://datasets/ORG/n").kind == HUB
    assert parse_address("ORG/n@v1").kind == HUB  # no folder of that name


@pytest.mark.parametrize("text", ["hf://ORG/n", "hf://datasets/ORG", "hf://datasets/ORG/n@", "hf://models/a/b", "hf:x"])
def test_what_only_looks_like_a_dataset_is_an_error(text: str) -> None:
    with pytest.raises(SourceError, match=r"hf://datasets/ORG/NAME\[@REVISION\]\[/PATH\]"):
        parse_address(text)


def test_other_schemes_are_an_error() -> None:
    with pytest.raises(SourceError, match="not an address that can be read; expected hf://"):
        parse_address("ftp://bucket/x")
    for blank in ("", " "):
        with pytest.raises(UsageError, match="an empty address; expected hf://"):
            parse_address(blank)
    with pytest.raises(UsageError, match="an empty address"):
        release_directory("")


def test_a_revision_can_be_added_once() -> None:
    address = parse_address("hf://datasets/ORG/n/data")
    assert address.at(None) is address and address.at("v1").revision == "v1"
    assert address.at("v1").at("v1").revision == "v1"
    with pytest.raises(UsageError, match="two revisions"):
        address.at("v1").at("v2")
    with pytest.raises(UsageError, match="only a dataset on the Hub has a revision"):
        parse_address("https://host/x").at("v1")


NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,8}", fullmatch=True)
REVISIONS = st.one_of(st.none(), st.text("abc/@%.-é ", min_size=1, max_size=9))


@given(NAMES, NAMES, REVISIONS, st.lists(NAMES, max_size=3))
def test_what_is_printed_is_read_back(org: str, name: str, revision: str | None, path: list[str]) -> None:
    address = Address(HUB, "/".join(path), f"{org}/{name}", revision)
    assert parse_address(str(address)) == address
