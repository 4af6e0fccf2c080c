"""The Dockerfile of the Space: what it copies is enough for a wheel, and its command is one that `sqid` reads."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import yaml

from builder.cli.main import _parser

ROOT = Path(__file__).parents[3]
SPACE = ROOT / "docs/explore/space"
LINES = (SPACE / "Dockerfile").read_text(encoding="utf-8").splitlines()


def instructions(name: str) -> list[str]:
    return [line.partition(" ")[2] for line in LINES if line.startswith(f"{name} ")]


def test_what_is_copied_makes_a_wheel_with_the_page(tmp_path: Path) -> None:
    for words in map(str.split, instructions("COPY")):
        *sources, target = [word for word in words if not word.startswith("--")]
        for source in sources:
            if (ROOT / source).is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(ROOT / source, tmp_path / "app" / target, symlinks=True, ignore=ignored)
            else:
                (tmp_path / "app").mkdir(exist_ok=True)
                shutil.copy(ROOT / source, tmp_path / "app" / target)
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=tmp_path / "app", check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        names = packed.namelist()
    assert {"builder/explore/static/index.html", "builder/dataset_card.md"} <= set(names)


def test_the_extras_and_the_commands_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (install,) = [line for line in instructions("RUN") if "pip install" in line]
    (extras,) = re.findall(r"\.\[([\w,]+)\]", install)
    assert set(extras.split(",")) <= set(project["optional-dependencies"])
    (build,) = [line for line in instructions("RUN") if line.startswith("sqid build")]
    assert _parser().parse_args(shlex.split(build)[1:]).recipe == "demo"
    (command,) = instructions("CMD")
    shell = json.loads(command)[2].removeprefix("exec ")
    for variables in ({}, {"SQID_DATASET": "ORG/sqid", "SPACE_HOST": "org-sqid.example"}):
        words = subprocess.run(["sh", "-c", f"echo {shell}"], env=variables, capture_output=True, text=True, check=True)
        args = _parser().parse_args(shlex.split(words.stdout)[1:])
        assert (args.command, args.host, args.allow_frame) == ("explore", "0.0.0.0", ["https://huggingface.co"])
        assert args.dataset == variables.get("SQID_DATASET", "/home/user/demo/sqid")
        assert args.allow_host == [variables.get("SPACE_HOST", "localhost")]
        settings = yaml.safe_load((SPACE / "README.md").read_text(encoding="utf-8").split("---")[1])
        assert settings["sdk"] == "docker" and settings["app_port"] == args.port == int(instructions("EXPOSE")[0])
