"""Whether `datasets` loads every config of the card: what validate calls valid can be loaded.

Run as a program, it loads the configs of a release and prints what is wrong with each as JSON. It is a process of its
own because a process that leaves a stream of `datasets` 5 early may hang or abort at its end.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from builder.engines import import_path
from builder.validate.problem import Problem
from builder.validate.rows import Scan
from sqid_lib import schemas
from sqid_lib.errors import first_line

_SECONDS = 600  # for all configs; the first row group of each split is read


def check_loading(release: Path, scans: Mapping[str, Scan]) -> Iterator[Problem]:
    """Load each config from the folder, as users do, and read the first row of each split.

    Rows are streamed, so that the cost is one row group a split. The files and the card must have been checked:
    `datasets` follows links and whatever paths and URLs a card names.
    """
    asked = {
        name: {"width": _width(scan), "splits": sorted(scan.filled)} for name, scan in scans.items() if scan.filled
    }
    command = [sys.executable, "-P", "-m", "builder.validate.loading", str(release.resolve()), json.dumps(asked)]
    environment = {**os.environ, "PYTHONPATH": import_path(), "HF_HUB_OFFLINE": "1"}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, timeout=_SECONDS, check=False)
        found = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        found = dict.fromkeys(asked, f"it took more than {_SECONDS} s")
    except (IndexError, ValueError):
        found = dict.fromkeys(asked, f"the process that loaded it ended with {done.returncode}")
    for config, message in found.items():
        if message:
            yield Problem("load", f"data/{config}", f"load_dataset does not load it ({message})")


def _width(scan: Scan) -> int:
    return next((f.type.list_size for f in scan.columns or () if hasattr(f.type, "list_size")), 1)


def _load(release: str, asked: Mapping[str, Any]) -> dict[str, str]:
    """What is wrong with each config, "" if nothing is."""
    import datasets

    found = {}
    with tempfile.TemporaryDirectory() as cache:
        for config, wanted in asked.items():
            try:
                builder = datasets.load_dataset_builder(release, config, cache_dir=cache)
                streams = builder.as_streaming_dataset()
                found[config] = _wrong(config, builder.info.features, streams, **wanted)
            except Exception as error:  # datasets raises many kinds of errors, of which each means: it does not load
                found[config] = f"{type(error).__name__}: {first_line(error)}"
    return found


def _wrong(config: str, features: Any, streams: Mapping[str, Any], width: int, splits: list[str]) -> str:
    """What differs between the loaded config and the data."""
    if features != schemas.config_features(config, width):
        return "its features are not those of the data"
    if sorted(streams) != splits:
        return f"its splits are {', '.join(sorted(streams))}, not {', '.join(splits)}"
    for name, stream in streams.items():
        row = next(iter(stream), None)
        if row is None or list(row) != list(features):
            return f"the first row of {name} has not its columns"
    return ""


if __name__ == "__main__":
    sys.stdout.write(f"\n{json.dumps(_load(sys.argv[1], json.loads(sys.argv[2])))}\n")
    sys.stdout.flush()
    os._exit(0)  # without the threads of the streams, which may not end
