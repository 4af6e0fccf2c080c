"""The harness itself: what it prints and repeats, and that its damage and its failing calls are real."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from random import Random
from typing import Any, Self

import pytest

from torture import command, fuzz, patches, rot
from torture.outcome import Doubled, Fault, Lost, Silent, Tally, table


class NoWorld:
    """In place of the shop, for faults that do not need it."""

    def __init__(self, *_: object) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def silent(_world: object, rng: Random) -> None:
    if rng.random() < 0.5:
        raise Silent("other bytes")


def doubled(_world: object, _rng: Random) -> None:
    raise Doubled("two requests")


def crashes(_world: object, _rng: Random) -> None:
    raise KeyError("of the harness")


FAULTS = [
    Fault("calm", lambda _world, _rng: None, 2),
    Fault("silent at times", silent, 8),
    Fault("doubled", doubled, 1),
    Fault("crashes", crashes, 1),
    Fault("long", lambda _world, _rng: None, 0, 1),
]


@pytest.fixture(autouse=True)
def faults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "FAULTS", FAULTS)
    monkeypatch.setattr(command, "World", NoWorld)


def test_every_failure_is_counted_and_printed_with_how_to_repeat_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--short"]) == 1
    out = capsys.readouterr().out
    counts = {line[:44].strip(): line[44:].split() for line in out.splitlines()[2:]}
    assert counts["calm"] == ["2", "2", "0", "0", "0"]
    assert counts["doubled"] == ["1", "0", "0", "1", "0"]
    assert counts["crashes"] == ["1", "0", "1", "0", "0"] and "KeyError: 'of the harness'" in out
    assert "long" not in counts
    tries, survived, _, _, wrong = map(int, counts["silent at times"])
    assert (tries, survived + wrong) == (8, 8) and 0 < wrong < 8
    repeated = [line for line in out.splitlines() if "repeat it" in line and "silent at times" in line]
    assert len(repeated) == wrong
    number = repeated[0].rpartition(" ")[2]
    assert command.main(["--seed", "15", "--only", "silent at times", "--try", number]) == 1
    assert "silent: other bytes" in capsys.readouterr().out


def test_only_survivors_are_a_success(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--only", "calm", "--short"]) == 0
    assert command.main(["--only", "long", "--minutes", "1"]) == 0
    assert command.main(["--only", "no such"]) == 2
    assert "  calm\n" in capsys.readouterr().err


def test_the_table_adds_up() -> None:
    tallies = [Tally(FAULTS[0], 3), Tally(FAULTS[1], 4, failures={1: Silent("x"), 2: Lost("y")}), Tally(FAULTS[2])]
    assert [line.split()[-5:] for line in table(tallies).splitlines()[1:]] == [
        ["3", "3", "0", "0", "0"],
        ["4", "2", "1", "0", "1"],
        ["7", "5", "1", "0", "1"],
    ]


@pytest.mark.parametrize("seed", range(12))
def test_damage_is_one_file_and_keeps_its_times(tmp_path: Path, seed: int) -> None:
    for name in ("a", "b/c", "b/d"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(bytes(50))
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    done = rot.harm(tmp_path, Random(seed))
    harmed = [path for path in times if not path.exists() or path.read_bytes() != bytes(50)]
    assert len(harmed) == 1 and done.endswith(str(harmed[0].relative_to(tmp_path)))
    assert all(path.stat().st_mtime_ns == time for path, time in times.items() if path.exists())


@pytest.mark.parametrize(("lasting", "failing"), [(False, [2]), (True, [2, 3, 4])])
def test_a_call_fails_where_the_patch_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lasting: bool, failing: list[int]
) -> None:
    monkeypatch.setattr(os, "mkdir", os.mkdir)  # taken back after the test
    patches.apply(patches.Patch("mkdir", errno.ENOSPC, 2, lasting))
    failed = []
    for number in range(1, 5):
        try:
            (tmp_path / str(number)).mkdir()
        except OSError as error:
            assert (error.errno, error.filename) == (errno.ENOSPC, str(tmp_path / str(number)))
            failed.append(number)
    assert failed == failing


def test_examples_are_edits_of_a_valid_file() -> None:
    edits: list[Any] = [("insert", 0.5, 0.0, b"xy", 0), ("truncate", 0.75, 0.0, b"", 0), ("flip", 0.0, 0.0, b"", 65)]
    assert fuzz.edited(b"0123456789", edits) == b"A1234xy56"
    assert fuzz.edited(b"0123", [("repeat", 0.0, 0.25, b"", 2)]) == b"000123"
