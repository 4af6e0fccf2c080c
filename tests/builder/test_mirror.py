"""`sqid build --work s3://…`: the same release as on a disk, and a driver with an empty disk goes on.

The S3 of these tests refuses to list.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_esci
from builds import FROM_ARTIFACTS, write_recipe
from loopback_s3 import LoopbackS3, serving

from builder import pipeline, recipe
from builder.cli import main
from builder.mirror import Mirror, place_of
from builder.recipe import Recipe
from sqid_lib import schemas
from sqid_lib.errors import DiskError, StageError, UsageError

WORK = "s3://bucket/run"
DONE = ["sample: done before", "release: done before", "validate"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe and its inputs; and, once `built` ran, the cache of the machine that built."""
    root = tmp_path_factory.mktemp("mirror")
    tiny_esci.write_esci(root / "esci")
    tiny_esci.write_artifacts(root / "artifacts")
    write_recipe(root, FROM_ARTIFACTS)
    return root


@pytest.fixture(scope="module")
def loaded(root: Path) -> Recipe:
    return recipe.load(root / "recipe.toml")


@pytest.fixture(scope="module")
def built(root: Path) -> dict[str, bytes]:
    """All objects after a build."""
    with pytest.MonkeyPatch.context() as patch, serving(patch) as s3:
        patch.setenv("SQID_CACHE", str(root / "first"))
        assert main(["build", str(root / "recipe.toml"), "--work", WORK]) == 0
        return s3.objects


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, root: Path, built: dict[str, bytes]) -> Iterator[LoopbackS3]:
    """The store after a build, seen by the machine that built."""
    shutil.copytree(root / "first", tmp_path / "first")
    monkeypatch.setenv("SQID_CACHE", str(tmp_path / "first"))
    with serving(monkeypatch) as running:
        running.objects |= built
        yield running


def build(loaded: Recipe, only: str | None = None) -> list[str]:
    """What was begun or done before."""
    said: list[str] = []
    pipeline.build(loaded, WORK, only=only, say=said.append)
    done = (line.partition(":")[0] + ": done before" for line in said if line.endswith(", done before"))
    return [*done, *(line.removesuffix(" …") for line in said if line.endswith(" …"))]


def other_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str = "second") -> Path:
    monkeypatch.setenv("SQID_CACHE", str(tmp_path / name))
    return place_of(WORK)[0]


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_release_on_a_store_is_that_of_a_disk_and_another_machine_finds_it(
    loaded: Recipe,
    s3: LoopbackS3,
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    expected = files(pipeline.build(loaded, tmp_path / "disk"))
    assert {name: s3.objects[f"run/sqid/{name}"] for name in s3.keys("run/sqid/")} == expected
    people = {"times.json", "summary.json", "report.html", "driver.txt"}
    assert people <= set(s3.keys("run/"))
    local = other_machine(monkeypatch, tmp_path)
    capsys.readouterr()
    assert main(["build", str(root / "recipe.toml"), "--work", WORK]) == 0
    out, err = capsys.readouterr()
    assert out == f"{WORK}/sqid\n"
    assert err.count("done before") == 3  # sample, release, report
    assert files(local / "sqid") == expected
    assert {key for method, key in s3.requests if method == "PUT"} == {f"run/{name}" for name in people}
    assert main(["build", str(root / "recipe.toml"), "--work", WORK, "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith("sample: done before\n")


def test_what_another_machine_finished_since_is_taken_over(
    loaded: Recipe, s3: LoopbackS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other_machine(monkeypatch, tmp_path)
    without = loaded.release.model_copy(update={"classic_files": False})
    newer = loaded.model_copy(update={"version": "2", "release": without})
    build(newer)
    local = other_machine(monkeypatch, tmp_path, "first")
    assert schemas.PRODUCT_URLS not in s3.keys("run/sqid/")  # objects of the earlier release are removed
    assert build(newer) == DONE
    assert files(local / "sqid") == {name: s3.objects[f"run/sqid/{name}"] for name in s3.keys("run/sqid/")}


def test_damaged_objects_are_found_and_made_again(
    loaded: Recipe, s3: LoopbackS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"run/sample/{name}.parquet" for name in ("products", "queries", "judgments")]
    whole = {name: s3.objects[name] for name in names}
    s3.objects[names[0]] = whole[names[0]][:-5]
    s3.objects[names[1]] = whole[names[1]][:-5] + bytes(5)
    del s3.objects[names[2]]
    other_machine(monkeypatch, tmp_path)
    assert build(loaded) == ["release: done before", "sample", "validate"]
    assert {name: s3.objects[name] for name in names} == whole


def test_a_lost_object_is_stored_again_by_the_machine_that_has_it(loaded: Recipe, s3: LoopbackS3) -> None:
    whole = s3.objects.pop("run/sample/supp.parquet")
    assert build(loaded) == DONE
    assert s3.objects["run/sample/supp.parquet"] == whole


def test_a_store_lost_while_files_are_copied_leaves_the_stage_unfinished(
    loaded: Recipe, s3: LoopbackS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = loaded.model_copy(update={"version": "2"})

    def lost(method: str, key: str) -> tuple[int, str, str] | None:
        return (403, "AccessDenied", "Access Denied") if method == "PUT" and key == "run/sqid/README.md" else None

    s3.refuse = lost
    with pytest.raises(DiskError, match=r"run/sqid/README\.md: the object store failed: ACCESS_DENIED"):
        build(newer)
    assert s3.objects["run/.stamps/release"].startswith(b"unfinished\n")
    s3.refuse = lambda _method, _key: None
    assert build(newer) == DONE  # the machine has it, and copies it
    before = {name: s3.objects[f"run/sqid/{name}"] for name in s3.keys("run/sqid/")}
    local = other_machine(monkeypatch, tmp_path)
    assert build(newer) == DONE
    assert files(local / "sqid") == before


def test_a_store_that_cannot_be_written_ends_the_build_at_once(
    root: Path, s3: LoopbackS3, capsys: pytest.CaptureFixture[str]
) -> None:
    s3.refuse = lambda _method, _key: (403, "AccessDenied", "Access Denied")
    assert main(["build", str(root / "recipe.toml"), "--work", WORK]) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "s3://bucket/run/driver.txt: the object store failed: ACCESS_DENIED" in err
    assert len(s3.requests) < 6


def test_one_build_at_a_time_on_a_machine(loaded: Recipe, s3: LoopbackS3, monkeypatch: pytest.MonkeyPatch) -> None:
    def second(_: str) -> None:
        build(loaded)

    with pytest.raises(StageError, match="another build is running here"):
        pipeline.build(loaded, WORK, say=second)


def test_check_is_for_directories(root: Path, s3: LoopbackS3) -> None:
    assert main(["build", str(root / "recipe.toml"), "--work", WORK, "--check"]) == 2


def test_each_address_has_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQID_CACHE", str(tmp_path))
    assert place_of("WORK") == (Path("WORK"), None)
    assert place_of(Path("s3:/b")) == (Path("s3:/b"), None)
    folder, store = place_of("s3://b/x")
    assert folder.parent == tmp_path / "work" and folder.name.startswith("b-x-")
    assert place_of("s3://b/x/") == (folder, store)
    assert place_of("s3://b-x")[0] != folder
    assert store is not None and Mirror(folder, store).store.url == "s3://b/x"
    with pytest.raises(UsageError, match="without credentials"):
        place_of("s3://k:s@b/x")
