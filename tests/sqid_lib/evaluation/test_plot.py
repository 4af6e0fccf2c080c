from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from evaluation_fixtures import memory_store, random_store

from sqid_lib import evaluation
from sqid_lib.errors import UsageError


def test_plot_writes_an_image(tmp_path: Path) -> None:
    from PIL import Image

    result = evaluation.compare(random_store(15), resamples=100)
    with Image.open(result.plot(tmp_path / "new" / "table.png")) as image:
        image.load()
        assert len(image.getcolors(10**6) or []) > 10
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["table.png"]
    with pytest.raises(UsageError, match="unknown image format"):
        result.plot(tmp_path / "table.exe")


DRAW = """
import os, sys
from evaluation_fixtures import random_store
from sqid_lib import evaluation
evaluation.compare(random_store(15), ["clip_text"], resamples=100).plot(sys.argv[1])
import matplotlib
print(os.environ["MPLBACKEND"], matplotlib.rcParams["backend"])
"""


@pytest.mark.parametrize(
    ("backend", "kept"), [("module://matplotlib_inline.backend_inline", False), ("nonsense", False), ("svg", True)]
)
def test_a_backend_that_is_not_installed_does_not_matter(tmp_path: Path, backend: str, kept: bool) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "MPLBACKEND": backend}
    done = subprocess.run(
        [sys.executable, "-c", DRAW, str(tmp_path / "table.png")], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "table.png").read_bytes().startswith(b"\x89PNG")
    variable, used = done.stdout.split()
    assert variable == backend  # what the user set stays, also for matplotlib where it can be used
    assert (used == backend) == kept


def test_names_are_drawn_as_they_are(tmp_path: Path) -> None:
    store = memory_store([[(0, "E"), (1, "S")], [(0, "S"), (1, "E")]], 2)
    result = evaluation.compare(store, ["$x_$+clip_text"], scores={"$x_$": [1, 0, 1, 0], "\udcff": [1, 2, 3, 4]})
    text = result.plot(tmp_path / "table.svg").read_text(encoding="utf-8")
    assert "<!-- $x_$+clip_text -->" in text
    assert "<!-- \\udcff -->" in text
