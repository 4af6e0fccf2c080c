"""Fixtures from one tiny made-up ESCI."""

from __future__ import annotations

from collections.abc import Iterator
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


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """torch with one thread: sums that depend on no other, and more cost than they give to a model this small."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
