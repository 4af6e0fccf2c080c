"""Errors of the disk on purpose: in a child, one call of a function of `os` fails."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import Any

FUNCTIONS = ("replace", "rename", "fsync", "open", "mkdir", "unlink", "write", "pwrite", "ftruncate")


@dataclass(frozen=True)
class Patch:
    """Call number `nth` (from 1) of os.`function`, and if `lasting` all later ones, raise OSError(`error`)."""

    function: str
    error: int
    nth: int
    lasting: bool


def apply(patch: Patch) -> None:
    """Patch this process for the rest of its life; paths outside temporary folders and WORK are spared."""
    genuine, calls = getattr(os, patch.function), 0

    def failing(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        target = str(arguments[0]) if arguments else ""
        if patch.function == "open" and "/work" not in target:
            return genuine(*arguments, **options)
        if isinstance(arguments[0], int) and not stat.S_ISREG(os.fstat(arguments[0]).st_mode):  # a pipe is no disk
            return genuine(*arguments, **options)
        calls += 1
        if calls == patch.nth or (patch.lasting and calls > patch.nth):
            named = [target] if target.startswith("/") else []
            raise OSError(patch.error, os.strerror(patch.error), *named)
        return genuine(*arguments, **options)

    setattr(os, patch.function, failing)
