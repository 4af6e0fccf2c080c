"""Flipped bits, truncated and deleted files in WORK, in converted stores and in releases."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

from torture import tasks
from torture.outcome import Fault, Lost, Silent
from torture.process import Child, Ran, sqid
from torture.world import STAGES, World, check_plain

_HARMS: tuple[str, ...] = ("flip", "flip", "flip", "truncate", "delete")


def harm(folder: Path, rng: Random, wanted: Callable[[Path], bool] = lambda _: True) -> str:
    """Damage one file below a folder and keep its times, as a failing disk would; says what was done."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock" and wanted(path)]
    path, kind = rng.choice(sorted(path for path in files if path.stat().st_size)), rng.choice(_HARMS)
    stat = path.stat()
    if kind == "delete":
        path.unlink()
        return f"deleted {path.relative_to(folder)}"
    at = rng.randrange(stat.st_size)
    if kind == "truncate":
        os.truncate(path, at)
    else:
        with path.open("r+b") as file:
            file.seek(at)
            byte = file.read(1)[0]
            file.seek(at)
            file.write(bytes([byte ^ (1 << rng.randrange(8))]))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    return f"{kind} at byte {at} of {path.relative_to(folder)}"


def between_runs(world: World, rng: Random) -> None:
    """Damage in a finished WORK: the next build makes it again, and then all of it is as it was written."""
    folder = world.folder()
    work = world.work("tables", None, folder)
    done = harm(work, rng)
    try:
        world.check("tables", work)
        checked = world.build("tables", work, "--check")
        if checked.code:
            raise Lost(f"--check after the next build: {checked.text[-500:]}")
    except (Lost, Silent) as failed:
        raise type(failed)(f"{done}: {failed}") from failed
    shutil.rmtree(folder)


def before_a_stage(world: World, rng: Random) -> None:
    """Damage in the WORK of an unfinished build."""
    folder, stage = world.folder(), rng.choice(STAGES[1:5])
    work = world.work("tables", stage, folder)
    done = harm(work, rng)
    try:
        world.check("tables", work)
    except (Lost, Silent) as failed:
        raise type(failed)(f"before {stage}: {done}: {failed}") from failed
    shutil.rmtree(folder)


def during_a_run(world: World, rng: Random) -> None:
    """Damage of the files that a running stage reads."""
    folder, stage = world.folder(), rng.choice(STAGES[1:5])
    work = world.work("tables", stage, folder)
    child = world.start("tables", work)
    time.sleep(rng.uniform(0, sum(world.seconds["tables", name] for name in STAGES[STAGES.index(stage) :]) / 2))
    try:
        done = harm(work, rng, lambda path: "sqid" not in str(path.relative_to(work)) and path.suffix != ".part")
    except OSError as error:  # the build moved the file meanwhile
        done = f"nothing ({error.strerror})"
    ran = child.wait()
    try:
        if ran.code == 0:
            world.compare("tables", work)
        world.check("tables", work, [ran])
    except (Lost, Silent) as failed:
        raise type(failed)(f"during {stage} and later: {done}: {failed}") from failed
    shutil.rmtree(folder)


def check_alone(world: World, rng: Random) -> None:
    """`--check` finds damage of every file that is stamped."""
    folder = world.folder()
    work = world.work("tables", None, folder)
    done = harm(work, rng, lambda path: path.parent.name in ("sample", "embed") or "sqid" in path.parts[-4:])
    ran = world.build("tables", work, "--check")
    check_plain(ran)
    if ran.code != 1:
        raise Silent(f"{done}: --check says: {ran.text[-200:]}")
    shutil.rmtree(folder)


def released(world: World, rng: Random) -> None:
    """Damage of a release: `sqid validate` finds it."""
    folder = world.folder()
    release = Path(shutil.copytree(world.release(), folder / "sqid"))
    done = harm(release, rng)
    ran = Child((sqid, [["validate", str(release)]]), folder / "log").wait()
    check_plain(ran)
    if ran.code != 1:
        raise Silent(f"{done}: {ran.text[-200:]}")
    shutil.rmtree(folder)


def converted(world: World, rng: Random) -> None:
    """Damage of a converted store: an error, or the right rows; and then it is converted again."""
    folder, release = world.folder(), str(world.release())
    cache = folder / "cache"

    def read(number: int) -> Ran:
        return Child((tasks.read_store, [release, str(cache)]), folder / f"{number}.log").wait()

    first = read(0)
    check_plain(first)
    done = harm(cache, rng)
    for number in (1, 2):
        ran = read(number)
        check_plain(ran)
        if ran.code == 0 and tasks.answer(ran.text) != tasks.answer(first.text):
            raise Silent(f"{done}: other rows")
    if ran.code:
        raise Lost(f"{done}: twice: {ran.text[-400:]}")
    shutil.rmtree(folder)


FAULTS = [
    Fault("damage between two builds", between_runs, 4),
    Fault("damage before a stage", before_a_stage, 1),
    Fault("damage during a build", during_a_run, 1),
    Fault("damage and --check", check_alone, 2),
    Fault("damage of a release, validated", released, 2),
    Fault("damage of a converted store", converted, 1),
]
