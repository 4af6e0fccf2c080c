"""Untrusted files and answers, changed by hypothesis: an error of ours or a result, soon and in little memory."""

from __future__ import annotations

import resource
import shutil
from functools import partial
from random import Random

from torture import fuzz
from torture.outcome import Fault, Lost
from torture.process import Child
from torture.world import World

_MEMORY = 24 << 30  # bytes of address space, most of which libraries reserve and never use
_EXAMPLES = 150


def hostile(kind: str, world: World, rng: Random) -> None:
    """One batch of examples of one kind in a child."""
    folder = world.folder()
    (folder / "release").symlink_to(world.release())
    call = (fuzz.run, [kind, str(folder), rng.getrandbits(32), _EXAMPLES])
    ran = Child(call, folder / "log", limits=[(resource.RLIMIT_AS, _MEMORY)]).wait()
    if ran.code:
        case = folder / "case"
        shown = case.read_bytes()[:120] if case.is_file() else b""
        raise Lost(f"{kind}: ended with {ran.code} on {shown!r}: {ran.text[-900:]}")
    shutil.rmtree(folder)


FAULTS = [
    Fault(f"hostile {kind}", partial(hostile, kind), 0 if kind in ("release", "yaml card", "png", "webp") else 1)
    for kind in fuzz.KINDS
]
