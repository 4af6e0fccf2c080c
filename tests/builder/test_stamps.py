"""Files of WORK that are damaged or gone between two builds or during one: found before use and made again."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
from builds import FROM_ARTIFACTS, write_recipe

from builder import pipeline, recipe, times
from builder.release import manifest
from builder.stamps import Stamps, describe
from sqid_lib import schemas
from sqid_lib.errors import CorruptFileError, FetchError, MissingFileError
from sqid_lib.joined.selection import Selection

SAMPLED = ("products", "supp", "queries", "judgments")


def flip(path: Path, position: int | None = None) -> None:
    """Change one bit and keep size and time, as a failing disk would."""
    stat, data = path.stat(), bytearray(path.read_bytes())
    data[len(data) // 2 if position is None else position] ^= 4
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the one that says how long stages took."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != times.FILE]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture
def built(tmp_path: Path, esci: Path, artifacts: Path) -> tuple[recipe.Recipe, Path]:
    loaded = recipe.load(write_recipe(tmp_path, FROM_ARTIFACTS))
    pipeline.build(loaded, tmp_path / "work")
    return loaded, tmp_path / "work"


def build(built: tuple[recipe.Recipe, Path], only: str | None = None) -> list[str]:
    """The lines said of what was started, made again, or done before; without counts."""
    said: list[str] = []
    pipeline.build(*built, only=only, say=said.append)
    told = [line for line in said if line.endswith((" …", ": made again", ", done before"))]
    return [re.sub(": .*, done before", ": done before", line).removesuffix(" …") for line in told]


@pytest.mark.parametrize("name", SAMPLED)
@pytest.mark.parametrize("harm", ["flip", "delete", pytest.param("truncate", marks=pytest.mark.slow)])
def test_a_sampled_file_is_made_again(built: tuple[recipe.Recipe, Path], name: str, harm: str) -> None:
    path, before = built[1] / "sample" / f"{name}.parquet", contents(built[1])
    if harm == "flip":
        flip(path)
    elif harm == "truncate":
        os.truncate(path, path.stat().st_size // 2)
    else:
        path.unlink()
    words = "is missing" if harm == "delete" else "is damaged"
    assert build(built) == [f"sample/{name}.parquet {words}: made again", "sample", "release: done before", "validate"]
    assert contents(built[1]) == before


@pytest.mark.parametrize(
    "harm",
    ["flip", *(pytest.param(harm, marks=pytest.mark.slow) for harm in ("truncate", "delete"))],
)
def test_every_file_of_a_release_is_made_again(built: tuple[recipe.Recipe, Path], harm: str) -> None:
    before = contents(built[1])
    for name in sorted(contents(built[1] / "sqid")):
        path = built[1] / "sqid" / name
        if harm == "flip":
            flip(path)
        elif harm == "truncate":
            os.truncate(path, 10)
        else:
            path.unlink()
        words = "is missing" if harm == "delete" else "is damaged"
        assert build(built)[1:3] == [f"sqid/{name} {words}: made again", "release"]
        assert contents(built[1]) == before


def test_a_foreign_file_in_a_damaged_release_is_kept(built: tuple[recipe.Recipe, Path]) -> None:
    flip(built[1] / "sqid" / schemas.MANIFEST)
    (built[1] / "sqid" / "mine.txt").write_text("notes")
    with pytest.raises(Exception, match=r"no build wrote.*mine\.txt"):
        build(built)
    assert (built[1] / "sqid" / "mine.txt").read_text() == "notes"


@pytest.mark.parametrize("stage", ["sample", "release"])
@pytest.mark.parametrize("harm", [b"", pytest.param(b"{}", marks=pytest.mark.slow), b"\xff\xff", None])
def test_a_damaged_stamp_makes_its_stage_run_again(
    built: tuple[recipe.Recipe, Path], stage: str, harm: bytes | None
) -> None:
    before, path = contents(built[1]), built[1] / ".stamps" / stage
    for position in range(5, path.stat().st_size, path.stat().st_size // 4) if harm is None else [0]:
        if harm is None:
            flip(path, position)
        else:
            path.write_bytes(harm)
        assert stage in build(built)
        assert contents(built[1]) == before


def test_a_stage_alone_refuses_damaged_inputs_and_says_what_to_do(built: tuple[recipe.Recipe, Path]) -> None:
    flip(built[1] / "sample" / "judgments.parquet")
    before = contents(built[1])
    with pytest.raises(CorruptFileError, match=r"judgments\.parquet is damaged.*without --only, or with --only sample"):
        build(built, "release")
    assert contents(built[1]) == before
    (built[1] / ".stamps" / "sample").unlink()
    with pytest.raises(MissingFileError, match=r"sample has not finished.*--only sample"):
        build(built, "release")


def test_damage_while_a_stage_reads_gives_no_release_that_counts(
    built: tuple[recipe.Recipe, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, write = contents(built[1]), manifest.write
    (built[1] / ".stamps" / "release").unlink()

    def write_then_flip(*arguments: Any, **options: Any) -> Any:
        flip(built[1] / "sample" / "judgments.parquet")
        return write(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr("builder.release.stage.manifest.write", write_then_flip)
        with pytest.raises(CorruptFileError, match=r"judgments\.parquet is damaged"):
            build(built)
    assert "release" in build(built)
    assert contents(built[1]) == before


def test_a_file_that_is_not_written_again_keeps_its_checksum(tmp_path: Path) -> None:
    path = tmp_path / "embed" / "encoder.json"
    path.parent.mkdir()
    path.write_text("{}")
    stamps = Stamps(tmp_path)
    stamps.write("embed", "")
    assert stamps.changed("embed") == {}
    flip(path)
    stamps.write("embed", "")  # a run that found nothing to do
    assert Stamps(tmp_path).changed("embed") == {"embed/encoder.json": "is damaged"}
    assert stamps.changed("embed", again=True) == {"embed/encoder.json": "is damaged"}


def test_one_line_for_many_files() -> None:
    assert describe({"a": "is missing"}) == "a is missing"
    assert describe({"a": "is missing", "b": "is damaged"}) == "a is missing (and 1 more file of this stage)"


def test_left_overs_of_a_killed_build_are_removed_and_no_other_file(built: tuple[recipe.Recipe, Path]) -> None:
    work, dead = built[1], 4_000_000_000  # above the highest process number of any system
    for folder in ("fetch", "shop/images", "sample", ".stamps"):
        (work / folder).mkdir(parents=True, exist_ok=True)
        (work / folder / f".x.parquet.{dead}-1.part").touch()
    kept = [work / "fetch" / name for name in (f".x.{os.getppid()}-1.part", "mine.part", ".mine.part", "x.1-1.part")]
    for path in kept:
        path.touch()
    build(built)
    assert not list(work.rglob(f"*{dead}*"))
    assert all(path.exists() for path in kept)


def test_a_stage_that_fails_before_it_writes_stays_finished(
    built: tuple[recipe.Recipe, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, work = built
    before = contents(work)
    with monkeypatch.context() as patch:
        patch.setattr("builder.pipeline.sample", fail)
        changed = loaded.model_copy(update={"selection": Selection(supp_min_judgments=1)})
        with pytest.raises(FetchError, match="no network"):
            pipeline.build(changed, work)
    assert contents(work) == before
    assert build(built, "release") == ["release: done before"]


def fail(*_: Any) -> None:
    raise FetchError("no network")
