"""How long each stage of a build took, in WORK/times.json."""

from __future__ import annotations

import json
from pathlib import Path

from sqid_lib.files import write_text

FILE = "times.json"


def record(work: Path, stage: str, seconds: float) -> None:
    """Note the seconds of the run that finished a stage; they replace those of an earlier run."""
    write_text(work / FILE, json.dumps(read(work) | {stage: round(seconds, 3)}, indent=2) + "\n")


def read(work: Path) -> dict[str, float]:
    """Stage → seconds of the run that finished it; none where nothing usable is recorded."""
    try:
        found = json.loads((work / FILE).read_text(encoding="utf-8"))
        return {str(stage): float(seconds) for stage, seconds in found.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
