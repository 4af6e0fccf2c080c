"""Whether `datasets` loads every config of the card: what validate calls valid can be loaded."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from builder.validate.problem import Problem
from builder.validate.rows import Scan
from sqid_lib import schemas
from sqid_lib.errors import first_line


def check_loading(release: Path, scans: Mapping[str, Scan]) -> Iterator[Problem]:
    """Load each config from the folder, as users do, and read the first row of each split.

    Rows are streamed, so that the cost is one row group a split. The files and the card must have been checked:
    `datasets` follows links and whatever paths and URLs a card names.
    """
    import datasets

    with tempfile.TemporaryDirectory() as cache:
        for config, scan in scans.items():
            if not scan.filled:
                continue
            try:
                builder = datasets.load_dataset_builder(str(release), config, cache_dir=cache)
                streams = builder.as_streaming_dataset()
                message = _wrong(builder.info.features, streams, scan)
            except Exception as error:  # datasets raises many kinds of errors, of which each means: it does not load
                message = f"{type(error).__name__}: {first_line(error)}"
            if message:
                yield Problem("load", f"data/{config}", f"load_dataset does not load it ({message})")


def _wrong(features: Any, streams: Mapping[str, Any], scan: Scan) -> str:
    """What differs between the loaded config and the data; "" if nothing does."""
    width = next((f.type.list_size for f in scan.columns or () if hasattr(f.type, "list_size")), 1)
    if features != schemas.config_features(scan.config, width):
        return "its features are not those of the data"
    if sorted(streams) != sorted(scan.filled):
        return f"its splits are {', '.join(sorted(streams))}, not {', '.join(sorted(scan.filled))}"
    for name, stream in streams.items():
        row = next(iter(stream), None)
        if row is None or list(row) != list(features):
            return f"the first row of {name} has not its columns"
    return ""
