from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_release import write_release

from builder.cli import main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_release(tmp_path_factory.mktemp("evaluate") / "release", queries=20, products=80, per_query=12)


@pytest.fixture
def evaluate(release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str) -> tuple[int, str, str]:
        status = main(["evaluate", str(release), "--cache-dir", str(tmp_path / "cache"), *arguments])
        return status, *capsys.readouterr()

    return run


def test_json_is_all_of_stdout(release: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "builder", "evaluate", str(release), "--cache-dir", str(tmp_path), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = json.loads(done.stdout)
    assert [row["method"] for row in rows] == ["random", "clip_text", "clip_image", "fusion", "rrf"]
    assert all(0 < row["ndcg_low"] <= row["ndcg"] <= row["ndcg_high"] <= 1 for row in rows)


def test_table_and_files(evaluate: Run, tmp_path: Path) -> None:
    picture, values, folder = tmp_path / "t.png", tmp_path / "q.csv", tmp_path / "runs"
    status, out, err = evaluate(
        "--methods", "random,clip_image", "rrf", "--baseline", "clip_image", "--slices", "source",
        "--plot", str(picture), "--per-query", str(values), "--export", str(folder),
    )  # fmt: skip
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()[:4]] == ["method", "random", "clip_image", "rrf"]
    assert "source: negations" in out
    assert err.splitlines()[-3:] == [f"wrote {values}", f"wrote {folder}", f"wrote {picture}"]
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert len(list(csv.DictReader(io.StringIO(values.read_text())))) == 60
    assert sorted(path.name for path in folder.iterdir()) == ["beir", "clip_image.run", "qrels.trec", "rrf.run"]
    status, out, _ = evaluate("--csv", "--run", str(folder / "rrf.run"), "--methods", "rrf")
    first, second = csv.DictReader(io.StringIO(out))
    assert status == 0
    assert first["ndcg"] == second["ndcg"]


def test_swapped_gains_are_named(evaluate: Run) -> None:
    status, out, _ = evaluate("--gains", "esci-repo", "--json")
    assert status == 0
    assert {row["gains"] for row in json.loads(out)} == {"esci-repo-swapped"}


def test_retrieve(evaluate: Run) -> None:
    status, out, _ = evaluate("--retrieve", "--top", "20", "--metrics", "ndcg@10,recall@20", "p@1", "--json")
    assert status == 0
    rows = json.loads(out)
    assert [row["method"] for row in rows] == ["clip_text", "clip_image", "fusion"]
    assert {"ndcg", "ndcg_at_10", "recall_at_20", "precision_at_1"} < set(rows[0])
    assert {row["top"] for row in rows} == {20}


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--methods", "nope"], 2, "unknown method"),
        (["--metrics", "map"], 2, "unknown metric"),
        (["--baseline", "sbert"], 2, "baseline is not compared"),
        (["--plot", "table.exe"], 2, "unknown picture format"),
        (["--run", "/nowhere.run"], 1, "no such run file"),
        (["--features", "/nowhere.parquet"], 1, "no such features"),
        (["--retrieve", "--methods", "rrf"], 2, "cannot search"),
        (["--retrieve", "--top", "3"], 2, "deeper"),
    ],
)
def test_failures_are_one_line(evaluate: Run, arguments: list[str], status: int, message: str) -> None:
    got, out, err = evaluate(*arguments)
    assert got == status
    assert message in err.splitlines()[-1]
    assert "Traceback" not in err
    assert "--plot" in arguments or not out


def test_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", "--help"])
    assert stop.value.code == 0
    assert "sqid evaluate WORK/sqid" in capsys.readouterr().out
