"""Progress on stderr: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import io
import sys

import pytest

from builder.progress import progress


def test_elsewhere_than_on_a_terminal_there_are_plain_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr("builder.progress.time.monotonic", lambda: now)
    with progress("fetch", 2_000, 1_000) as bar:
        bar.update()
        now += 10
        bar.update(500)
        bar.update(9)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "fetch: 1,000 of 2,000 URLs",
        "fetch: 1,501 of 2,000 URLs, 50.1/s, 00:09 left",
        "fetch: 1,510 of 2,000 URLs, 51.0/s, 00:09 left",
    ]


def test_on_a_terminal_there_is_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress("pages", 4, 1, unit="page") as bar:
        bar.update(3)
    last = terminal.getvalue().split("\r")[-1]
    assert last.startswith("pages: 100%") and "4/4" in last and "page/s" in last


def test_what_failed_is_counted_apart(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with progress("fetch", 2_000, 1_000, failed=10) as bar:
        bar.update(1, 1)
        bar.update(2)
    lines = ["fetch: 1,000 of 2,000 URLs: 990 ok, 10 failed", "fetch: 1,003 of 2,000 URLs: 992 ok, 11 failed"]
    assert capsys.readouterr().err.splitlines() == lines
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress("fetch", 4, 1, failed=0) as bar:
        bar.update(3, 1)
    assert "4/4" in terminal.getvalue() and terminal.getvalue().rstrip().endswith("3 ok, 1 failed]")


def test_a_failure_leaves_the_last_count(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="broken"), progress("embed", 3, unit="input") as bar:
        bar.update()
        raise ValueError("broken")
    assert capsys.readouterr().err.splitlines() == ["embed: 0 of 3 inputs", "embed: 1 of 3 inputs"]
