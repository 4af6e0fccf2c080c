"""kill -9 of conversions, loads and pushes, of workers of a DataLoader, and two readers at once."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

from torture import tasks
from torture.outcome import Doubled, Fault, Lost, Silent
from torture.process import Child, Ran, sqid
from torture.world import World, check_plain, contents

_METHODS = ("fork", "spawn", "forkserver")


def convert(world: World, rng: Random) -> None:
    """A conversion is killed at any moment; the next one gives the right rows and leaves nothing over."""
    folder = world.folder()
    _killed(tasks.read_store, lambda cache: [str(world.release()), cache], folder, rng)
    left = [path.name for path in (folder / "cache").iterdir() if path.name.startswith(".")]
    if left:
        raise Lost(f"left over: {left[0]}")
    shutil.rmtree(folder)


def load(world: World, rng: Random) -> None:
    """`sqid.load` is killed at any moment; the next one gives the right rows."""
    folder = world.folder()
    _killed(
        tasks.read_dataset, lambda cache: [str(world.root / "artifacts"), str(world.root / "esci"), cache], folder, rng
    )
    shutil.rmtree(folder)


def convert_two_at_once(world: World, rng: Random) -> None:
    """Two conversions into one cache: both give the right rows."""
    folder, release = world.folder(), str(world.release())
    first = Child((tasks.read_store, [release, str(folder / "cache")]), folder / "0.log")
    time.sleep(rng.uniform(0, 0.5))
    second = Child((tasks.read_store, [release, str(folder / "cache")]), folder / "1.log")
    ended = [first.wait(), second.wait()]
    for ran in ended:
        check_plain(ran)
        if ran.code:
            raise Lost(ran.text[-500:])
    if tasks.answer(ended[0].text) != tasks.answer(ended[1].text):
        raise Silent("the two found different rows")
    shutil.rmtree(folder)


def push(world: World, rng: Random) -> None:
    """A push is killed at any moment; the next one completes it with one commit and one tag."""
    folder = world.folder()
    repo = f"ORG/{folder.name}"
    command = ["push", str(world.release()), "--repo", repo, "--tag", "v1"]
    child = Child((sqid, [command]), folder / "0.log")
    time.sleep(rng.uniform(0, 2.0))
    child.signal(signal.SIGKILL, group=True)
    check_plain(child.wait())
    again = Child((sqid, [command]), folder / "1.log").wait()
    check_plain(again)
    if again.code:
        raise Lost(again.text[-500:])
    found = {name: data for name, data in world.hub.files(repo).items() if name != ".gitattributes"}
    if found != contents(world.release()):
        raise Silent("the repository holds other files than the release")
    if len(world.hub.repos[repo].commits) != 2 or len(world.hub.repos[repo].tags) != 1:
        raise Doubled(f"{len(world.hub.repos[repo].commits)} commits, {len(world.hub.repos[repo].tags)} tags")
    shutil.rmtree(folder)


def worker(world: World, rng: Random) -> None:
    """A worker of a DataLoader is killed: the epoch ends with an error, or with all its rows."""
    folder, release = world.folder(), str(world.release())
    call = (tasks.read_with_killed_worker, [release, rng.choice(_METHODS), rng.randrange(6)])
    ran = Child(call, folder / "0.log").wait()
    if ran.code not in (0, 1):
        raise Lost(f"{call[1][1]}: ended with {ran.code}: {ran.text[-3000:]}")
    if ran.code == 0 and tasks.answer(ran.text) != f"answer: {tasks.count_rows(release)} rows":
        raise Silent(f"{call[1][1]}: a short epoch: {tasks.answer(ran.text)}")
    shutil.rmtree(folder)


def _killed(task: Callable[..., int], arguments: Callable[[str], Sequence[object]], folder: Path, rng: Random) -> None:
    def start(cache: str, log: str) -> Child:
        call: tuple[Callable[..., Any], Sequence[object]] = (task, arguments(str(folder / cache)))
        return Child(call, folder / log)

    right = start("other", "0.log").wait()
    check_plain(right)
    child = start("cache", "1.log")
    time.sleep(rng.uniform(0, right.seconds))
    child.signal(signal.SIGKILL, group=True)
    check_plain(child.wait())
    again: Ran = start("cache", "2.log").wait()
    check_plain(again)
    if again.code or right.code:
        raise Lost(again.text[-500:] or right.text[-500:])
    if tasks.answer(again.text) != tasks.answer(right.text):
        raise Silent("other rows after a kill")


FAULTS = [
    Fault("kill -9 while a store is converted", convert, 1),
    Fault("kill -9 in sqid.load", load, 1),
    Fault("kill -9 in push", push, 1),
    Fault("two conversions at once", convert_two_at_once, 1),
    Fault("kill -9 of a DataLoader's worker", worker, 0),  # hangs about once in 100 tries under forkserver
]
