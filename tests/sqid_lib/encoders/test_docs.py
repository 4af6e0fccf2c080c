"""docs/encoders.md holds what it says: its code runs, one block after another."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

ROOT = Path(__file__).parents[3]
DOCS = (ROOT / "docs" / "encoders.md").read_text(encoding="utf-8")


def test_each_python_block_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "builder").symlink_to(ROOT / "builder")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```", DOCS, re.DOTALL | re.MULTILINE):
        exec(compile(block, "docs/encoders.md", "exec"), names)
    printed = capsys.readouterr().out.splitlines()
    width = names["encoder"].width
    assert printed[0].startswith("Encoder('builder/demo/tiny_clip', revision='local-")
    assert printed[1:] == [str((3, width)), str((3, width)), "[False  True]"]


def test_the_benchmark_it_names_exists() -> None:
    (named,) = re.findall(r"benchmarks/\w+\.py", DOCS)
    assert (ROOT / named).is_file()
