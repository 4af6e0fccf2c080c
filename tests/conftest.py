"""Fixtures from one tiny made-up ESCI."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_esci


@pytest.fixture
def esci(tmp_path: Path) -> Path:
    return tiny_esci.write_esci(tmp_path / "esci")


@pytest.fixture
def artifacts(tmp_path: Path) -> Path:
    return tiny_esci.write_artifacts(tmp_path / "artifacts")


@pytest.fixture
def cache(tmp_path: Path) -> str:
    return str(tmp_path / "cache")
