"""README holds what it says: its code blocks run, its recipe loads, its commands and links exist."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from builder import demo, pipeline, recipe
from builder.cli.main import COMMANDS, _parser
from sqid_lib import schemas

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where README is read: the demo has run, the repository is at hand."""
    root = tmp_path_factory.mktemp("readme")
    work = root / "demo-work"
    with demo.prepare(work) as overrides:
        pipeline.build(recipe.load("demo", overrides), work)
    (root / "builder").symlink_to(ROOT / "builder")
    return root


@pytest.fixture
def inside(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")


@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize("block", blocks("python"), ids=lambda block: block.split("\n")[0][:40])
def test_each_python_block_runs(block: str) -> None:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(block, "README.md", "exec"), {"__name__": "readme"})
    assert printed.getvalue().strip()


@pytest.mark.usefixtures("inside")
def test_each_command_is_understood(folder: Path) -> None:
    lines = [re.split("[#>]", line)[0].strip() for block in blocks("bash") for line in block.splitlines()]
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("sqid ")]
    assert {command[0] for command in commands} == set(COMMANDS)
    for command in commands:
        _parser().parse_args(command)
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert {line.split()[1] for line in lines if line.startswith("make ")} <= set(targets)


def test_the_recipe_loads(tmp_path: Path) -> None:
    (tmp_path / "esci").mkdir()
    (tmp_path / "image_urls.csv").touch()
    (tmp_path / "recipe.toml").write_text(blocks("toml")[0], encoding="utf-8")
    assert recipe.load(tmp_path / "recipe.toml").encoder.model == "openai/clip-vit-base-patch32"
    for name in ("esci-s.jsonl.zst", "meta_Electronics.jsonl.gz"):
        (tmp_path / name).touch()
    head = "name = 'x'\nversion = '1'\n[esci]\npath = 'esci'\n"
    (tmp_path / "recipe.toml").write_text(head + blocks("toml")[1], encoding="utf-8")
    assert recipe.load(tmp_path / "recipe.toml").resolve.pages.permission


def test_the_configs_counts_and_gains_are_those_of_schemas() -> None:
    for config in schemas.CONFIGS:
        assert f"| `{config}`" in README
    assert all(f"{count:,}" in README for count in schemas.PUBLISHED_COUNTS.values())
    assert "Gains are " + ", ".join(f"{label} {gain}" for label, gain in schemas.GAINS.items()) in README


@pytest.mark.parametrize("name", ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_lead_somewhere(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    assert [link for link in links if not (ROOT / link).exists()] == []
