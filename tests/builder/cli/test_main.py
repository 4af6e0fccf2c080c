"""The command sqid: exit statuses, one line of failure on stderr, results on stdout."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from builds import FROM_ARTIFACTS, write_recipe

from builder.cli import main
from sqid_lib import schemas


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    try:
        status = main([str(a) for a in arguments])
    except SystemExit as ended:
        status = int(ended.code or 0)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_build_validate_and_again(
    tmp_path: Path, esci: Path, artifacts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, work = write_recipe(tmp_path, FROM_ARTIFACTS), tmp_path / "work"
    status, out, err = run(capsys, "build", recipe, "--work", work)
    assert (status, out) == (0, f"{work / 'sqid'}\n")
    assert err.splitlines() == ["· sample", "· release", "· validate"]
    assert run(capsys, "validate", work / "sqid") == (0, f"{work / 'sqid'}: valid\n", "")
    (work / "sqid" / schemas.QUERY_FEATURES).write_bytes(b"harm")
    status, out, err = run(capsys, "validate", work / "sqid")
    assert status == 1 and schemas.QUERY_FEATURES in out and "problem" in err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["polish"],
        ["build", "demo"],
        ["build", "x.toml", "--work", "w", "--set", "nonsense"],
        ["build", "RECIPE", "--work", "w", "--only", "polish"],
        ["build", "RECIPE", "--work", "w", "--only", "sample", "--retry", "timeout"],
        ["validate", "nowhere"],
        ["push", "DIR"],
    ],
)
def test_wrong_usage_is_2(
    tmp_path: Path,
    esci: Path,
    artifacts: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_recipe(tmp_path, FROM_ARTIFACTS).rename(tmp_path / "RECIPE")
    (tmp_path / "x.toml").write_bytes((tmp_path / "RECIPE").read_bytes())
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "") and err


def test_a_failure_is_1_and_one_line(tmp_path: Path, esci: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_recipe(tmp_path, "[fetch]\nconcurency = 3\n")
    status, out, err = run(capsys, "build", recipe, "--work", tmp_path / "work")
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert "fetch.concurency" in err and "concurrency" in err
    assert not (tmp_path / "work").exists()


def test_a_directory_that_cannot_be_written_is_told(
    tmp_path: Path, esci: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    status, _, err = run(capsys, "build", write_recipe(tmp_path), "--work", tmp_path / "file" / "work")
    assert status == 1 and err.count("\n") == 1 and str(tmp_path / "file") in err


@pytest.mark.parametrize("command", ["build", "validate", "push", "evaluate"])
def test_every_help_has_an_example(capsys: pytest.CaptureFixture[str], command: str) -> None:
    status, out, _ = run(capsys, command, "--help")
    assert status == 0 and f"sqid {command} " in out.split("example", 1)[1]


def test_a_full_disk_is_told(tmp_path: Path, esci: Path, artifacts: Path) -> None:
    """A limit on the size of files stands in for a full disk: the write fails half-way."""
    recipe, work = write_recipe(tmp_path, FROM_ARTIFACTS), tmp_path / "work"
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000));"
        "from builder.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "build", str(recipe), "--work", str(work)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 1 and done.stdout == ""
    assert "Traceback" not in done.stderr and "File too large" in done.stderr
    assert not (work / "sqid").exists()
    assert not [p for p in work.rglob("*.parquet") if p.name.startswith(".")]
