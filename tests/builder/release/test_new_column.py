"""A column declared in schemas.py alone is read, released, described on the card, loaded and validated."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import new_columns

ROOT = Path(__file__).parents[3]


def test_a_column_declared_in_schemas_alone(tmp_path: Path) -> None:
    for name in ("sqid_lib", "builder"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("demo", "__pycache__"))
    new_columns.declare(tmp_path / "sqid_lib" / "schemas.py")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, new_columns.__file__, str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
