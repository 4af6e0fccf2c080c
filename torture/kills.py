"""kill -9 and Ctrl-C at random moments of every stage, and two builds at once."""

from __future__ import annotations

import shutil
import signal
import time
from collections import Counter
from functools import partial
from random import Random

from torture.outcome import Doubled, Fault, Lost
from torture.world import CONCURRENCY, STAGES, World, check_plain

_CTRL_C = 5.0  # seconds until a build must have ended


def kill(stage: str, recipe: str, world: World, rng: Random) -> None:
    """A stage is killed, alone or with its helper processes, at any moment."""
    folder = world.folder()
    work = world.work(recipe, stage, folder)
    asked = len(world.server.requests)
    child = world.start(recipe, work, "--only", stage)
    time.sleep(rng.uniform(0, world.seconds[recipe, stage]))
    child.signal(signal.SIGKILL, group=rng.random() < 0.5)
    world.check(recipe, work, [child.wait()])
    if stage in ("resolve", "fetch"):
        _check_requests(world, asked, kills=1, pages=recipe == "pages")
    shutil.rmtree(folder)


def kill_repeatedly(world: World, rng: Random) -> None:
    """A whole build is killed five times; together the requests are those of one build and those in flight."""
    folder = world.folder()
    work, asked, ended = world.work("tables", "sample", folder), len(world.server.requests), []
    whole = sum(world.seconds["tables", stage] for stage in STAGES)
    for _ in range(5):
        child = world.start("tables", work)
        time.sleep(rng.uniform(0, whole / 2))
        child.signal(signal.SIGKILL, group=rng.random() < 0.5)
        ended.append(child.wait())
    world.check("tables", work, ended)
    _check_requests(world, asked, kills=5)
    shutil.rmtree(folder)


def interrupt(world: World, rng: Random) -> None:
    """Ctrl-C in a terminal, at any moment of any stage: the build ends soon and says so in one line."""
    folder, stage = world.folder(), rng.choice(STAGES)
    recipe = rng.choice(("tables", "pages")) if stage in ("resolve", "fetch") else "tables"
    work = world.work(recipe, stage, folder)
    child = world.start(recipe, work, "--only", stage)
    time.sleep(rng.uniform(0.05, world.seconds[recipe, stage]))
    began = time.monotonic()
    child.signal(signal.SIGINT, group=True)
    ran = child.wait()
    took = time.monotonic() - began
    check_plain(ran)
    if took > _CTRL_C:
        raise Lost(f"Ctrl-C in {stage}: ended after {took:.1f} s")
    if ran.code not in (0, 130):
        raise Lost(f"Ctrl-C in {stage}: exit status {ran.code}: {ran.text[-300:]}")
    world.check(recipe, work)
    shutil.rmtree(folder)


def two_at_once(world: World, rng: Random) -> None:
    """Two builds in one directory: one of them works, the other says that the first does."""
    folder, stage = world.folder(), rng.choice(STAGES[:5])
    work = world.work("tables", stage, folder)
    first = world.start("tables", work)
    time.sleep(rng.uniform(0, world.seconds["tables", stage] / 2))
    second = world.start("tables", work)
    ended = [first.wait(), second.wait()]
    for ran in ended:
        check_plain(ran)
    refused = [ran for ran in ended if ran.code]
    if len(refused) > 1 or any("another build" not in ran.text for ran in refused):
        raise Lost("; ".join(ran.text[-300:] for ran in refused))
    world.compare("tables", work)
    world.check("tables", work)
    shutil.rmtree(folder)


def _check_requests(world: World, asked: int, *, kills: int, pages: bool = False) -> None:
    """Only what was in flight at a kill is requested again."""
    hits = Counter(request.path for request in world.server.requests[asked:])
    hits.pop("/robots.txt", None)
    again = sum(count - 1 for path, count in hits.items() if path.startswith("/dp/") == pages)
    if again > kills * (1 if pages else CONCURRENCY):
        raise Doubled(f"{again} requests came again after {kills} kills: {hits.most_common(5)}")


FAULTS = [
    *(
        Fault(f"kill -9 in {stage}{' from pages' if recipe == 'pages' else ''}", partial(kill, stage, recipe), short)
        for stage, recipe, short in (
            *((stage, "tables", 1 if stage != "validate" else 0) for stage in STAGES),
            ("resolve", "pages", 1),
        )
    ),
    Fault("kill -9 five times in a whole build", kill_repeatedly, 0),
    Fault("Ctrl-C in any stage", interrupt, 2),
    Fault("two builds at once", two_at_once, 1),
]
