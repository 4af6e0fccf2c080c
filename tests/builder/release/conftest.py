"""A release that many tests read, and copies of it that they may change."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from release_fixtures import write_release


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_release(tmp_path_factory.mktemp("good") / "tiny")


@pytest.fixture
def release(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "tiny"))
