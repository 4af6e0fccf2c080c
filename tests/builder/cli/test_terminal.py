"""Terminals that are not UTF-8, output that is redirected, warnings, and Ctrl-C."""

from __future__ import annotations

import argparse
import json
import logging
import os
import pty
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_release import write_release

from builder.cli import build
from builder.cli.terminal import log_handler
from sqid_lib import schemas

C_LOCALE = {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
TERMINALS = [{"PYTHONIOENCODING": "cp1252"}, {"PYTHONIOENCODING": "ascii"}, C_LOCALE]
NAMES = ["cp1252", "ascii", "C"]
SOME = [TERMINALS[0], pytest.param(TERMINALS[1], marks=pytest.mark.slow), TERMINALS[2]]
SOURCE = "größe → 日本"


def test_the_log_and_the_next_command_have_no_secrets(capsys: pytest.CaptureFixture[str]) -> None:
    address = "https://x.example/shop.csv?token=geheim"
    log_handler().emit(logging.LogRecord("sqid", logging.INFO, "", 0, "%s: columns", (address,), None))
    assert capsys.readouterr().err == "INFO: https://x.example/shop.csv?token=…: columns\n"
    words = ["build", "r.toml", "--work", "w", "--set", f"catalogue.products={address}"]
    parser = argparse.ArgumentParser()
    build.add_arguments(parser)
    assert "geheim" not in build._command(parser.parse_args(words[1:]))


def test_closed_streams_are_the_null_device() -> None:
    code = "import builder.cli as c, os; c.main(['recipe', '--schema']); os._exit(os.open('/dev/null', 0))"
    for closed in (">&-", "2>&- <&-", ">&- 2>&- <&-"):
        done = subprocess.run(["sh", "-c", f'"$0" -c "$1" {closed}', sys.executable, code], check=False)
        assert done.returncode > 2


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release whose queries have a source that no terminal but a UTF-8 one can show."""
    directory = write_release(tmp_path_factory.mktemp("terminal") / "release", queries=20, products=80, per_query=12)
    for path in (directory / "data" / schemas.QUERIES).iterdir():
        rows = pq.read_table(path)
        column = rows.schema.get_field_index("source")
        rows = rows.set_column(column, rows.schema.field(column), pa.array([SOURCE] * len(rows)))
        pq.write_table(rows, path)
    (directory / schemas.SHA256SUMS).unlink()
    return directory


def environment(release: Path, changes: dict[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONIOENCODING", "LC_ALL")}
    return {**kept, "PYTHONPATH": os.pathsep.join(sys.path), "SQID_CACHE": str(release.parent / "cache"), **changes}


def run(release: Path, changes: dict[str, str], *arguments: str | bytes) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "builder", *arguments], capture_output=True, env=environment(release, changes)
    )


@pytest.mark.parametrize("terminal", SOME, ids=NAMES)
def test_the_table_is_readable_on_any_terminal(release: Path, terminal: dict[str, str]) -> None:
    done = run(
        release, terminal, "evaluate", str(release), "--methods", "clip_text", "fusion:0.5", "--slices", "source"
    )
    assert done.returncode == 0, done.stderr
    out = done.stdout.decode("cp1252" if "cp1252" in terminal.values() else "ascii")
    lines = out.splitlines()
    assert lines[0].split()[-3:] == ["vs", "clip_text", "p"]
    assert len(lines[2]) == len(lines[0])  # columns are aligned
    shown = "größe" if "cp1252" in terminal.values() else r"gr\xf6\xdfe"
    assert rf"source: {shown} -> \u65e5\u672c (20 queries)" in lines


@pytest.mark.parametrize("terminal", SOME, ids=NAMES)
def test_help_is_readable_on_any_terminal(release: Path, terminal: dict[str, str]) -> None:
    build, evaluate = (run(release, terminal, command, "--help") for command in ("build", "evaluate"))
    assert (build.returncode, evaluate.returncode) == (0, 0), build.stderr + evaluate.stderr
    assert b"sample -> resolve -> fetch" in build.stdout
    dot = b"\xb7" if "cp1252" in terminal.values() else b"*"
    assert b"a" + dot + b"A + (1-a)" + dot + b"B of any two methods" in evaluate.stdout


@pytest.fixture(scope="module", params=["--json", "--csv"])
def evaluation(release: Path, request: pytest.FixtureRequest) -> tuple[list[str], bytes]:
    """Arguments that ask for data, and what they print where all is UTF-8."""
    command = ["evaluate", str(release), "--methods", "clip_text", "--slices", "source", request.param]
    return command, run(release, {"PYTHONUTF8": "1"}, *command).stdout


@pytest.mark.parametrize("terminal", SOME, ids=NAMES)
def test_redirected_data_are_utf_8_whatever_the_terminal(
    release: Path, terminal: dict[str, str], evaluation: tuple[list[str], bytes]
) -> None:
    command, expected = evaluation
    done = run(release, terminal, *command)
    assert done.returncode == 0, done.stderr
    assert done.stdout == expected
    assert SOURCE.encode() in done.stdout
    if command[-1] == "--json":
        assert SOURCE in json.loads(done.stdout)[0]["slices"]["source"]


def test_data_on_a_terminal_are_in_its_encoding(release: Path) -> None:
    main, shell = pty.openpty()
    command = ["-m", "builder", "evaluate", str(release), "--methods", "clip_text", "--slices", "source", "--json"]
    with os.fdopen(shell, "wb") as out:
        changes = environment(release, {"PYTHONIOENCODING": "ascii"})
        done = subprocess.run([sys.executable, *command], stdout=out, stderr=subprocess.PIPE, env=changes)
    shown = os.read(main, 1 << 16)
    os.close(main)
    assert done.returncode == 0, done.stderr
    assert rb"gr\xf6\xdfe -> \u65e5\u672c" in shown


@pytest.mark.parametrize("terminal", [*SOME, {"PYTHONUTF8": "1"}], ids=[*NAMES, "utf-8"])
def test_a_path_that_is_not_utf_8_keeps_its_bytes(release: Path, tmp_path: Path, terminal: dict[str, str]) -> None:
    path = os.fsencode(tmp_path) + b"/gr\xf6.run"
    Path(os.fsdecode(path)).write_text("10 Q0 X 1 1 x\n")
    done = run(release, terminal, b"evaluate", os.fsencode(release), b"--run", path)
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr
    assert path + b":1: unknown query" in done.stderr


@pytest.mark.parametrize("terminal", SOME, ids=NAMES)
def test_a_store_can_be_printed(release: Path, terminal: dict[str, str]) -> None:
    code = f"from sqid_lib import EmbeddingStore; print(EmbeddingStore.open({str(release)!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment(release, terminal))
    assert done.returncode == 0, done.stderr
    assert b"80 products, 20 queries, 240 judgments, 8 x float32" in done.stdout


def test_a_warning_is_one_line_without_a_path(release: Path, tmp_path: Path) -> None:
    code = (
        "import sys, warnings\nfrom builder.cli import evaluate, main\n"
        "evaluate.run = lambda args: warnings.warn('no image\\nof a product') or 0\n"
        "sys.exit(main(['evaluate', 'x']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment(release, {}))
    assert (done.returncode, done.stderr) == (0, b"WARNING: no image of a product\n")


# -- Ctrl-C ---------------------------------------------------------------------------------------------------------

INTERRUPT = """
import os, signal, sys
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupt())
from builder.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    "module",
    [
        "numpy",
        "pyarrow",
        "torch",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("sqid_lib.evaluation.metrics", "bm25s")),
    ],
)
def test_ctrl_c_ends_with_one_line_also_during_imports(release: Path, module: str) -> None:
    code = INTERRUPT.format(module=module)
    command = ["evaluate", str(release), "--retrieve", "--methods", "bm25", "clip_text"]
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, env=environment(release, {}))
    assert done.returncode == 130
    assert done.stdout == b""
    assert done.stderr.startswith(b"stopped") and done.stderr.count(b"\n") == 1
