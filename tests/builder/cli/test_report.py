"""`sqid report`, and the report that `sqid build` writes at its end."""

from __future__ import annotations

from pathlib import Path

import pytest
import report_fixtures as fixtures
from builds import FROM_ARTIFACTS, write_recipe

from builder import report
from builder.cli import main
from builder.release.manifest import read
from sqid_lib import schemas


def test_prints_the_path_of_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work = fixtures.write_work(tmp_path / "work", fixtures.shop())
    assert main(["report", str(work), "--map", "pca"]) == 0
    assert capsys.readouterr().out == f"{work / 'report.html'}\n"
    assert main(["report", str(work / schemas.RELEASE_DIR), "--out", str(tmp_path / "a" / "b.html")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'a' / 'b.html'}\n"
    assert (tmp_path / "a" / "b.html").exists()


@pytest.mark.parametrize(("name", "status"), [("empty", 1), ("none", 1)])
def test_an_error_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, status: int) -> None:
    (tmp_path / "empty").mkdir()
    assert main(["report", str(tmp_path / name)]) == status
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("sqid report: ") and captured.err.count("\n") == 1


def test_a_build_writes_a_report_beside_its_release(
    tmp_path: Path,
    esci: Path,
    artifacts: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    work = tmp_path / "work"
    command = ["build", str(write_recipe(tmp_path, FROM_ARTIFACTS)), "--work", str(work)]
    assert main(command) == 0
    page = work / "report.html"
    assert f"· report: {page}, " in capsys.readouterr().err
    files = {name: (work / schemas.RELEASE_DIR / name).read_bytes() for name in read(work / schemas.RELEASE_DIR).files}
    written = page.read_bytes()
    assert main(command) == 0
    assert f"· report: {page}, done before\n" in capsys.readouterr().err
    assert page.read_bytes() == written
    page.write_bytes(written.replace(b"<h1>", b"<h2>"))  # damage
    assert main(command) == 0
    assert page.read_bytes() == written
    assert {path.name for path in work.iterdir() if not path.name.startswith(".")} == {
        *("sample", schemas.RELEASE_DIR, "summary.json", "times.json", "report.html")
    }

    def fail(work: Path) -> None:
        raise MemoryError("no\nroom")

    monkeypatch.setattr(report, "report_of_build", fail)
    capsys.readouterr()
    assert main(command) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{work / schemas.RELEASE_DIR}\n"
    assert captured.err.endswith("· report: not written (MemoryError: no); the release is complete\n")
    assert {name: (work / schemas.RELEASE_DIR / name).read_bytes() for name in files} == files
