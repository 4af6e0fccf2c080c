"""Fixtures from one tiny made-up ESCI; what makes the whole run shorter."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_esci

# files that take long or start many processes are run first: none then runs alone at the end, on one core of several
FIRST = (
    "sqid_lib/sources/test_sources.py",
    "test_sqid.py",
    "builder/hub/test_push.py",
    "builder/embed/test_embed.py",
    "builder/explore/test_page.py",
    "sqid_lib/streams/test_release.py",
    "sqid_lib/streams/test_stream.py",
    "sqid_lib/store/test_store.py",
    "builder/fetch/test_fetch.py",
    "builder/test_engines.py",
    "builder/cli/test_terminal.py",
    "test_train_fusion.py",
)
# Ray leaves many threads in a process, whose forks may then hang: after it, and beside it, are files that fork nothing
LAST = (
    "builder/test_engines_ray.py",
    "builder/validate/test_validate.py",
    "sqid_lib/encoders/test_encoders.py",
    "builder/release/test_release.py",
    "builder/test_stamps.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    folder = Path(__file__).parent
    places = {folder / file: place - len(FIRST) for place, file in enumerate(FIRST)}
    places |= {folder / file: place + 1 for place, file in enumerate(LAST)}
    items.sort(key=lambda item: places.get(item.path, 0))


@pytest.fixture(scope="session", autouse=True)
def no_fsync() -> Iterator[None]:
    """Nothing waits for the disk: only a loss of power would show a difference, and waiting is a fifth of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def one_thread_of_torch() -> None:
    """The processes of `make test` have a core each: with more threads torch takes three times as long."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


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
