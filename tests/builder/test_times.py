"""WORK/times.json: what a stage took, kept until it runs again."""

from __future__ import annotations

from pathlib import Path

import pytest
from builds import FROM_ARTIFACTS, write_recipe

from builder import pipeline, recipe, times


def test_a_build_records_what_each_stage_took(tmp_path: Path, esci: Path, artifacts: Path) -> None:
    loaded, work = recipe.load(str(write_recipe(tmp_path, FROM_ARTIFACTS))), tmp_path / "work"
    pipeline.build(loaded, work)
    first = times.read(work)
    assert list(first) == ["sample", "validate", "release"] and all(seconds > 0 for seconds in first.values())
    pipeline.build(loaded, work)  # done before
    assert times.read(work) == first


def test_a_later_run_replaces_the_seconds_of_a_stage(tmp_path: Path) -> None:
    times.record(tmp_path, "fetch", 12.34567)
    times.record(tmp_path, "embed", 2.0)
    times.record(tmp_path, "fetch", 1.0)
    assert times.read(tmp_path) == {"fetch": 1.0, "embed": 2.0}


@pytest.mark.parametrize("content", ["", "[]", '{"fetch": "long"}', "\x00"])
def test_damaged_times_are_none(tmp_path: Path, content: str) -> None:
    (tmp_path / times.FILE).write_text(content)
    assert times.read(tmp_path) == {}
    times.record(tmp_path, "fetch", 1.0)
    assert times.read(tmp_path) == {"fetch": 1.0}
