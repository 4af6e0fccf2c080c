from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_release import write_release

from builder import engines
from builder.cli import main
from sqid_lib import schemas

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
    image, values, folder = tmp_path / "t.png", tmp_path / "q.csv", tmp_path / "runs"
    status, out, err = evaluate(
        "--methods", "random,clip_image", "rrf", "--baseline", "clip_image", "--slices", "source",
        "--plot", str(image), "--per-query", str(values), "--export", str(folder),
    )  # fmt: skip
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()[:4]] == ["method", "random", "clip_image", "rrf"]
    assert "source: negations" in out
    assert err.splitlines()[-3:] == [f"wrote {values}", f"wrote {folder}", f"wrote {image}"]
    assert image.read_bytes().startswith(b"\x89PNG")
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


def test_relevant_labels(evaluate: Run) -> None:
    for words, relevant in ([], "E"), (["--relevant", "ES"], "ES"), (["--relevant", "E", "--relevant", "S"], "ES"):
        status, out, _ = evaluate(*words, "--methods", "random", "--json")
        assert status == 0
        assert json.loads(out)[0]["relevant"] == relevant


def test_labels_and_gains_of_the_releases_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    release = write_release(tmp_path / "release", queries=20, products=80, per_query=12)
    own = {"E": ("just right", 3.0), "S": ("near", 2.0), "C": ("far", 1.0), "I": ("no", 0.0)}
    for path in (release / "data" / schemas.JUDGMENTS).iterdir():
        rows = pq.read_table(path)
        labels = [own[label] for label in rows["esci_label"].to_pylist()]
        for name, values in (("esci_label", [n for n, _ in labels]), ("gain", [g for _, g in labels])):
            field = rows.schema.field(name)
            rows = rows.set_column(rows.schema.get_field_index(name), field, pa.array(values, field.type))
        pq.write_table(rows, path)
    (release / schemas.SHA256SUMS).unlink()
    command = ["evaluate", str(release), "--cache-dir", str(tmp_path / "cache"), "--export", str(tmp_path / "runs")]
    assert main([*command, "--metrics-engine", "ir-measures", "--relevant", "just right", "--relevant", "near"]) == 0
    out = capsys.readouterr().out
    assert "binary measures count just right and near" in out
    assert "gains of the release: just right 3, near 2, far 1, no 0" in out
    written = (tmp_path / "runs" / "qrels.trec").read_text().splitlines()
    assert {line.split()[-1] for line in written} == {"300", "200", "100", "0"}
    assert main([*command, "--json"]) == 0
    (row, *_) = json.loads(capsys.readouterr().out)
    assert (row["gains"], row["relevant"]) == ("release", ["just right"])
    for wrong in (["--gains", "esci-repo"], ["--gains", "esci"], ["--relevant", "E"]):
        assert main([*command, *wrong]) == 2


def test_the_engine_of_a_build_is_not_the_engine_of_metrics(evaluate: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        evaluate("--engine", "fast")
    assert stop.value.code == 2
    assert "--engine" in capsys.readouterr().err
    fast, slow = (evaluate("--metrics-engine", engine, "--json") for engine in ("fast", "ir-measures"))
    for one, other in zip(json.loads(fast[1]), json.loads(slow[1]), strict=True):
        assert one["ndcg"] == pytest.approx(other["ndcg"], abs=1e-12)


def test_retrieve(evaluate: Run) -> None:
    status, out, _ = evaluate("--retrieve", "--top", "20", "--metrics", "ndcg@10,recall@20", "p@1", "--json")
    assert status == 0
    rows = json.loads(out)
    assert [row["method"] for row in rows] == ["clip_text", "clip_image", "fusion"]
    assert {"ndcg", "ndcg_at_10", "recall_at_20", "precision_at_1"} < set(rows[0])
    assert {row["top"] for row in rows} == {20}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--ray-address", "auto", "--retrieve"], "--ray-address belongs to --engine ray; got --engine local"),
        (["--engine", "ray"], "--engine belongs to --retrieve; got --engine ray"),
    ],
)
def test_an_engine_that_would_do_nothing_is_refused(evaluate: Run, words: list[str], message: str) -> None:
    status, out, err = evaluate(*words)
    assert (status, out) == (2, "")
    assert message in err


def test_retrieve_on_an_engine_is_retrieve(evaluate: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine here is the local one under another name, and each of its shards has 13 products."""
    monkeypatch.setattr("sqid_lib.evaluation.retrieval._SHARD", 13)
    words = ["--retrieve", "--methods", "clip_text,clip_image,rrf,bm25", "--csv", "--export"]
    _, here, _ = evaluate(*words, str(tmp_path / "here"))
    monkeypatch.setattr("builder.cli.engine.find_engine", lambda _name: engines.find("local"))
    status, there, err = evaluate("--engine", "ray", *words, str(tmp_path / "there"))
    assert status == 0
    assert there == here
    assert "search: 7 of 7 shards" in err
    for path in (tmp_path / "here").glob("*.run"):
        assert path.read_bytes() == (tmp_path / "there" / path.name).read_bytes()
    assert [path.name for path in (tmp_path / "cache").iterdir() if path.name.startswith(".results")] == []


def test_bm25_and_rank_fusion(evaluate: Run, tmp_path: Path) -> None:
    status, out, err = evaluate("--methods", "bm25,rrf", "--metrics", "ap", "--json")
    assert status == 0
    assert [row["method"] for row in json.loads(out)] == ["bm25", "rrf"]
    assert "ap" in json.loads(out)[0]
    assert err == ""
    status, out, _ = evaluate("--retrieve", "--methods", "bm25", "rrf", "--csv", "--export", str(tmp_path / "runs"))
    assert status == 0
    assert [row["method"] for row in csv.DictReader(io.StringIO(out))] == ["bm25", "rrf"]
    assert (tmp_path / "runs" / "bm25.run").exists()


def test_queries_of_a_file(evaluate: Run, tmp_path: Path) -> None:
    file = tmp_path / "held_out.txt"
    whole = json.loads(evaluate("--methods", "clip_image", "--json")[1])
    evaluate("--methods", "clip_image", "--per-query", str(tmp_path / "all.csv"))
    ids = [line.split(",")[0] for line in (tmp_path / "all.csv").read_text().splitlines()[1:]]
    file.write_text(f"{ids[0]}\n\n{ids[2]}\n", encoding="utf-8-sig")  # as editors of Windows write it
    [row] = json.loads(evaluate("--methods", "clip_image", "--json", "--queries", str(file))[1])
    assert row["queries"] == 2 < whole[0]["queries"]
    for text, message in (("x1\n", "held_out.txt: not query ids; expected an integer in each line"), (None, "cannot")):
        file.write_text(text) if text else file.unlink()
        status, _, err = evaluate("--queries", str(file))
        assert status != 0 and message in err


def test_slices_by_spaces_or_commas(evaluate: Run) -> None:
    status, out, _ = evaluate("--methods", "clip_text", "--slices", "source,length", "images")
    assert status == 0
    titles = [line.split(":")[0] for line in out.splitlines() if line.endswith(" queries)")]
    assert list(dict.fromkeys(titles)) == ["source", "length", "images"]
    assert "slices by length: no query in 1-10, 21-40, over 40" in out.splitlines()


def test_what_a_run_file_lacks_is_a_note(evaluate: Run, tmp_path: Path) -> None:
    assert evaluate("--methods", "clip_text", "--export", str(tmp_path / "runs"))[0] == 0
    lines = (tmp_path / "runs" / "clip_text.run").read_text().splitlines()
    run = tmp_path / "mine.run"
    run.write_text("\n".join([*lines, "999999999 Q0 X 1 1 x"]))
    status, out, _ = evaluate("--run", str(run))
    assert status == 0
    assert f"run:{run}: 1 of {len(lines) + 1} lines name a query or product that the dataset lacks" in out


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--methods", "nope"], 2, "unknown method"),
        (["--methods", "clip_txt"], 2, "Did you mean clip_text?"),
        (["--relevant", "I"], 2, "unknown relevant"),
        (["--metrics", "map"], 2, "Did you mean ap?"),
        (["--slices", "sorce"], 2, "Did you mean source?"),
        (["--baseline", "sbert"], 2, "baseline is not among"),
        (["--plot", "table.exe"], 2, "unknown image format"),
        (["--run", "/nowhere.run"], 1, "no such run file"),
        (["--features", "/nowhere.parquet"], 1, "no such features"),
        (["--retrieve", "--methods", "random"], 2, "cannot search"),
        (["--retrieve", "--top", "3"], 2, "longer rankings"),
    ],
)
def test_failures_are_one_line(evaluate: Run, arguments: list[str], status: int, message: str) -> None:
    got, out, err = evaluate(*arguments)
    assert got == status
    assert message in err.splitlines()[-1]
    assert "Traceback" not in err
    assert not out


def test_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", "--help"])
    assert stop.value.code == 0
    assert "sqid evaluate WORK/sqid" in capsys.readouterr().out
