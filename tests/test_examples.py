"""The example on stored vectors runs as it is, and training beats zero-shot on queries that it has not seen."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_release import write_release

EXAMPLES = Path(__file__).parent.parent / "examples"
NAMES = ("train_two_tower",)


def run(name: str, release: Path, cache: Path, *options: str) -> tuple[float, float]:
    """Mean held-out nDCG, zero-shot and trained, as the example prints them."""
    arguments = [sys.executable, str(EXAMPLES / f"{name}.py"), str(release), "--cache-dir", str(cache), *options]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300, env=one_thread, check=False)
    found = re.search(r"held-out queries: zero-shot ([\d.]+), trained ([\d.]+)$", done.stdout.strip())
    assert found, done.stderr
    return float(found[1]), float(found[2])


@pytest.mark.parametrize("name", NAMES)
def test_beats_zero_shot_where_there_is_something_to_learn(name: str, tmp_path: Path) -> None:
    release = write_release(tmp_path / "release", products=200, queries=42, per_query=15, width=16)
    zero_shot, trained = run(name, release, tmp_path / "cache", "--epochs", "30")
    assert 0.5 < zero_shot < trained - 0.03  # half of the dimensions are noise that training can turn off


@pytest.mark.slow
def test_the_same_seed_gives_the_same_figures(tmp_path: Path) -> None:
    release = write_release(tmp_path / "release", products=100, queries=12, per_query=10, width=8)
    first, second = (run("train_two_tower", release, tmp_path / "cache", "--epochs", "1") for _ in range(2))
    assert first == second


@pytest.mark.slow
def test_beats_zero_shot_on_the_demo(tmp_path: Path) -> None:
    from builder.demo.__main__ import run as build_demo

    release = build_demo(tmp_path / "demo")
    for name in NAMES:
        zero_shot, trained = run(name, release, tmp_path / "cache")
        assert zero_shot < trained, name
