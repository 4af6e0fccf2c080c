"""The command sqid: exit statuses, one line of failure on stderr, results on stdout; what works without extras."""

from __future__ import annotations

import errno
import json
import os
import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from builds import FROM_ARTIFACTS, write_recipe

from builder import pipeline
from builder.cli import main
from builder.cli.main import COMMANDS
from builder.engines import ENGINES, import_path
from builder.recipe import Recipe, json_schema
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
    lines = err.splitlines()
    assert lines[:2] == ["· sample …", "· sample: 36 products, 5 queries, 72 judgments, 3 supplementary products"]
    assert lines[2:5] == ["· release …", "· validate …", "· validate: no problems"]
    assert lines[5].startswith("· release: 12 files, ")
    assert lines[6:8] == [
        "· images: 36 products, 33 with a URL, 33 with an image (100% of those)",
        "· image statuses: ok 32, missing 2, generic 1, placeholder 1",
    ]
    assert len(lines) == 9 and lines[8].startswith(f"· report: {work / 'report.html'}, ")
    sample = "· sample: 36 products, 5 queries, 72 judgments, 3 supplementary products, done before\n"
    assert run(capsys, "build", recipe, "--work", work, "--only", "sample") == (0, f"{work / 'sample'}\n", sample)
    assert run(capsys, "validate", work / "sqid") == (0, f"{work / 'sqid'}: valid\n", "")
    (work / "sqid" / schemas.QUERY_FEATURES).write_bytes(b"harm")
    status, out, err = run(capsys, "validate", work / "sqid")
    assert status == 1 and schemas.QUERY_FEATURES in out and "problem" in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["polish"],
        ["recipe"],
        ["build", "RECIPE", "--work", "w", "--engine", "steam"],
        ["build", "RECIPE", "--work", "w", "--ray-address", "auto"],
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


@pytest.mark.parametrize(
    ("arguments", "question"),
    [
        (["biuld", "demo", "--work", "w"], "Did you mean build?"),
        (["build", "dmeo", "--work", "w"], "Did you mean demo?"),
        (["build", "demo", "--work", "w", "--only", "fecth"], "Did you mean fetch?"),
        (["build", "demo", "--work", "w", "--engine", "locla"], "Did you mean local?"),
        (["build", "demo", "--work", "w", "--retry", "corrupt,not_fond"], "Did you mean not_found?"),
        (["build", "demo", "--work", "w", "--only", "resolve", "--retry", "mising"], "Did you mean missing?"),
    ],
)
def test_a_mistyped_name_is_answered_with_a_question(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    question: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for dry in ([], ["--dry-run"]):
        status, out, err = run(capsys, *arguments, *dry)
        assert (status, out, err.count("\n")) == (1 if arguments[1] == "dmeo" else 2, "", 1)
        assert err.rstrip().endswith(question)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_is_1_and_one_line(tmp_path: Path, esci: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_recipe(tmp_path, "[fetch]\nconcurency = 3\n")
    status, out, err = run(capsys, "build", recipe, "--work", tmp_path / "work")
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert "fetch.concurency" in err and "concurrency" in err
    assert not (tmp_path / "work").exists()


def test_a_directory_that_cannot_be_written_is_reported(
    tmp_path: Path, esci: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    status, _, err = run(capsys, "build", write_recipe(tmp_path), "--work", tmp_path / "file" / "work")
    assert status == 1 and err.count("\n") == 1 and str(tmp_path / "file") in err


def test_ctrl_c_at_any_time_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["builder.cli.main"], "_parser", interrupted)  # before a command has begun
    assert run(capsys, "build", "demo") == (130, "", "stopped; finished work is kept, run it again to continue\n")


def test_too_little_memory_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("builder.cli.validate.run", exhausted)
    assert run(capsys, "validate", "x") == (1, "", "sqid validate: not enough memory. Run it again with more.\n")


@pytest.mark.parametrize("command", list(COMMANDS))
def test_every_help_has_an_example(capsys: pytest.CaptureFixture[str], command: str) -> None:
    status, out, _ = run(capsys, command, "--help")
    assert status == 0 and f"sqid {command} " in out.split("example", 1)[1]


def test_a_full_disk_is_reported(tmp_path: Path, esci: Path, artifacts: Path) -> None:
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


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.EMFILE, "", "/w/x"), r"/w/x: cannot be read or written: Too many open files\. Raise the limit"),
        (OSError(errno.EACCES, "", "/w/x"), r"/w/x: cannot be .*: Permission denied\. Check the path and its permiss"),
        (OSError(errno.ENOSPC, "", "/w/x"), r"/w/x: no space left\. Make room"),
        (OSError(errno.EIO, ""), r"sqid recipe: cannot be .*: Input/output error\. Run it again"),
    ],
)
def test_errors_of_the_system_come_with_the_advice_they_ask_for(
    error: OSError, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(_: object) -> int:
        raise error

    monkeypatch.setattr("builder.cli.recipe.run", refuse)
    assert main(["recipe", "--schema"]) == 1
    assert re.search(said, capsys.readouterr().err)


def test_alone_it_prints_help(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys)
    assert (status, err) == (0, "")
    assert all(f"    {command} " in out for command in COMMANDS)
    assert run(capsys, "--help") == (0, out, "")


@pytest.mark.parametrize("arguments", [[], ["--help"], ["polish"]])
def test_help_imports_no_large_package(arguments: list[str]) -> None:
    code = "import sys; from builder.cli import main\ntry: main(sys.argv[1:])\nfinally: print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    loaded = done.stdout.splitlines()[-1].split()
    assert "builder.cli.main" in loaded
    assert not {"torch", "transformers", "datasets", "pandas", "numpy", "pyarrow", "pydantic"} & set(loaded)


def test_version_is_for_bug_reports(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, "--version")
    assert (status, err) == (0, "")
    found = dict(line.split(" ", 1) for line in out.splitlines())
    assert list(found)[:6] == ["sqid", "Python", "platform", "datasets", "huggingface_hub", "pyarrow"]
    assert found["sqid"] == metadata.version("sqid")
    assert found["Python"] == platform.python_version()
    assert set(found) - set(list(found)[:6]) <= {"torch", "transformers"}


def test_the_schema_is_all_of_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, "recipe", "--schema")
    assert (status, err) == (0, "")
    assert json.loads(out) == json_schema()


def test_engines_are_those_there_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = run(capsys, "build", "demo", "--work", tmp_path, "--engine", "steam")
    assert status == 2 and all(engine in err.splitlines()[-1] for engine in ("steam", *ENGINES))
    assert "{" + ",".join(ENGINES) + "}" in run(capsys, "build", "--help")[1]


def test_the_address_of_the_cluster_is_a_setting_of_the_recipe(
    tmp_path: Path, esci: Path, artifacts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: dict[str, Any] = {}

    def build(recipe: Recipe, work: Path, **options: Any) -> Path:
        built.update(options, address=recipe.engine.address)
        return work

    monkeypatch.setattr(pipeline, "build", build)
    path = write_recipe(tmp_path, FROM_ARTIFACTS)
    assert main(["build", str(path), "--work", "w", "--engine", "ray", "--ray-address", "host:6379"]) == 0
    assert (built["engine"], built["address"]) == ("ray", "host:6379")
    assert built["command"] == f"sqid build {path} --work w --engine ray --set 'engine.address=\"host:6379\"'"


@pytest.fixture
def release(tmp_path: Path, esci: Path, artifacts: Path) -> Path:
    assert main(["build", str(write_recipe(tmp_path, FROM_ARTIFACTS)), "--work", str(tmp_path / "work")]) == 0
    return tmp_path / "work" / "sqid"


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--help"], 0, ""),
        pytest.param(["--version"], 0, "", marks=pytest.mark.slow),
        pytest.param(["validate", "RELEASE"], 0, "", marks=pytest.mark.slow),
        (["evaluate", "RELEASE", "--cache-dir", "CACHE", "--methods", "random"], 0, ""),
        pytest.param(["push", "RELEASE", "--repo", "no-slash"], 2, "no-slash", marks=pytest.mark.slow),
        pytest.param(["recipe", "--schema"], 1, 'pip install "sqid[build]"', marks=pytest.mark.slow),
        (["build", "demo", "--work", "CACHE"], 1, 'pip install "sqid[build]"'),
    ],
)
def test_only_recipes_need_pydantic(
    tmp_path: Path, release: Path, arguments: list[str], status: int, message: str
) -> None:
    places = {"RELEASE": str(release), "CACHE": str(tmp_path / "cache")}
    code = "import sys; sys.modules['pydantic'] = None; from builder.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, *(places.get(argument, argument) for argument in arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr and message in done.stderr
    assert status == 0 or done.stderr.count("\n") == 1


# -- sqid build --dry-run -------------------------------------------------------------------------------------------


def listing(root: Path) -> dict[str, int]:
    return {str(path.relative_to(root)): path.stat().st_mtime_ns for path in root.rglob("*")}


def test_a_dry_run_of_artifacts(
    tmp_path: Path, esci: Path, artifacts: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, work = write_recipe(tmp_path, FROM_ARTIFACTS), tmp_path / "work"
    command = ("build", recipe, "--work", work, "--dry-run")
    before = (
        f"sample: would read ESCI from {esci}\n"
        f"release: would write {work / 'sqid'}\n"
        "validate: would check the release\n"
    )
    assert run(capsys, *command) == (0, before, "")
    assert not work.exists()
    run(capsys, *command[:-1])
    files = listing(work)
    done = "sample: done before\nrelease: done before\nvalidate: would check the release\n"
    assert run(capsys, *command) == (0, done, "")
    assert run(capsys, *command, "--only", "release") == (0, "release: done before\n", "")
    changed = "release: would run again: the recipe or its inputs changed"
    assert run(capsys, *command, "--set", "version='2'")[1].splitlines()[:2] == ["sample: done before", changed]
    assert run(capsys, *command, "--set", "selection.supp_min_judgments=1")[1].splitlines()[:2] == [
        "sample: would run again: the recipe or its inputs changed",
        changed,
    ]
    monkeypatch.setattr("sqid_lib.schemas.fingerprint", lambda: "another column")
    assert run(capsys, *command, "--only", "release")[1] == changed + "\n"
    assert listing(work) == files


def test_a_dry_run_uses_no_network(tmp_path: Path, esci: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work, far = tmp_path / "work", "https://esci.example.invalid/files"
    signed = f"{far.replace('://', '://user:password@')}?sig=secret"
    recipe = write_recipe(tmp_path)
    run(capsys, "build", recipe, "--work", work, "--only", "sample")
    status, out, err = run(capsys, "build", recipe, "--work", work, "--dry-run", "--set", f"esci.path={signed}")
    assert (status, err) == (0, "")
    assert out.splitlines() == [
        f"sample: would run again if the recipe or a file at {far}?sig=… changed",
        "resolve: would look for the image URLs of 39 products in 0 tables",
        "fetch: would download the images, at most 32 at once",
        "embed: would encode texts and images with openai/clip-vit-large-patch14 (device auto)",
        f"release: would write {work / 'sqid'}",
        "validate: would check the release",
    ]


def test_a_build_gives_memory_back_to_the_system() -> None:
    program = """
import builder.cli, contextlib
with contextlib.suppress(SystemExit):
    builder.cli.main(["build", "--help"])
import pyarrow
assert pyarrow.default_memory_pool().backend_name == "system"
"""
    environment = {name: value for name, value in os.environ.items() if name != "ARROW_DEFAULT_MEMORY_POOL"}
    environment["PYTHONPATH"] = import_path()
    subprocess.run([sys.executable, "-c", program], env=environment, stdout=subprocess.DEVNULL, check=True)
