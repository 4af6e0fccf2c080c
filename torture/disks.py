"""Full, broken and read-only disks, and too many open files: the build says so, and the next one goes on."""

from __future__ import annotations

import errno
import os
import resource
import shutil
from random import Random

from torture import patches, tasks
from torture.outcome import Fault, Lost
from torture.process import Child, Ran
from torture.world import STAGES, World, check_plain

_ERRORS = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EMFILE, errno.EACCES, errno.EDQUOT)


def failing_call(world: World, rng: Random) -> None:
    """One call of a function of the operating system fails, or all from then on."""
    patch = patches.Patch(
        rng.choice(patches.FUNCTIONS), rng.choice(_ERRORS), rng.choice((1, 1, 2, 3, 5, 8, 13, 21)), rng.random() < 0.5
    )
    _harmed_build(world, rng, f"os.{patch.function} call {patch.nth}: {os.strerror(patch.error)}", patch=patch)


def small_files(world: World, rng: Random) -> None:
    """No file may grow beyond some bytes, the nearest thing to a full disk."""
    size = int(10 ** rng.uniform(1, 5.3))
    _harmed_build(world, rng, f"ulimit -f {size} bytes", limits=[(resource.RLIMIT_FSIZE, size)])


def few_files(world: World, rng: Random) -> None:
    """Few files may be open at once."""
    count = rng.randrange(14, 60)  # fewer are too few for Python itself
    _harmed_build(world, rng, f"ulimit -n {count}", limits=[(resource.RLIMIT_NOFILE, count)])


def read_only(world: World, rng: Random) -> None:
    """A folder of WORK that must not be written to; for root, whom no permission stops, by failing calls."""
    folder, stage = world.folder(), rng.choice(STAGES[:5])
    work = world.work("tables", stage, folder)
    if os.geteuid() == 0:
        patch = patches.Patch("replace", errno.EROFS, 1, True)
        ran = world.start("tables", work, patch=patch).wait()
    else:
        target = rng.choice([work, *(path for path in work.rglob("*") if path.is_dir())])
        target.chmod(0o500)
        ran = world.start("tables", work).wait()
        target.chmod(0o755)
    _check(ran, f"read-only before {stage}")
    world.check("tables", work)
    shutil.rmtree(folder)


def full_cache(world: World, rng: Random) -> None:
    """The conversion of a release on a full disk; the next one is right."""
    folder, size = world.folder(), int(10 ** rng.uniform(1, 4))
    call = (tasks.read_store, [str(world.release()), str(folder / "cache")])
    harmed = Child(call, folder / "0.log", limits=[(resource.RLIMIT_FSIZE, size)]).wait()
    check_plain(harmed)
    again = Child(call, folder / "1.log").wait()
    right = Child((tasks.read_store, [str(world.release()), str(folder / "other")]), folder / "2.log").wait()
    if again.code or tasks.answer(again.text) != tasks.answer(right.text):
        raise Lost(f"ulimit -f {size} bytes, then: {again.text[-500:]}")
    shutil.rmtree(folder)


def _harmed_build(world: World, rng: Random, what: str, **harm: object) -> None:
    folder, stage = world.folder(), rng.choice(STAGES[:5])
    work = world.work("tables", stage, folder)
    ran = world.start("tables", work, **harm).wait()
    _check(ran, f"before {stage}: {what}")
    try:
        if ran.code == 0:
            world.compare("tables", work)
        world.check("tables", work)
    except Exception as failed:
        raise type(failed)(f"before {stage}: {what}: {failed}") from failed
    shutil.rmtree(folder)


def _check(ran: Ran, what: str) -> None:
    try:
        check_plain(ran)
    except Lost as failed:
        raise Lost(f"{what}: {failed}") from failed
    if ran.code and not ran.text.rstrip().splitlines()[-1:]:
        raise Lost(f"{what}: exit status {ran.code} without a word")


FAULTS = [
    Fault("a call of the operating system fails", failing_call, 2),
    Fault("full disk (ulimit -f)", small_files, 2),
    Fault("too many open files (ulimit -n)", few_files, 1),
    Fault("read-only folders", read_only, 1),
    Fault("full disk while a store is converted", full_cache, 1),
]
