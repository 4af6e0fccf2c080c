"""Whether `datasets` loads every config of the card: what validate calls valid can be loaded."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from builder.validate.problem import Problem
from builder.validate.rows import Scan
from sqid_lib import schemas
from sqid_lib.errors import first_line


def check_loading(release: Path, scans: Mapping[str, Scan]) -> Iterator[Problem]:
    """Let `datasets` resolve each config of the folder, and make its first row of each split.

    The row is read by pyarrow: a process that leaves a stream of `datasets` 5 early may abort at its end, and a whole
    split would be copied to the cache. The files and the card must have been checked: `datasets` follows links and
    whatever paths and URLs a card names.
    """
    import datasets

    with tempfile.TemporaryDirectory() as cache:
        for config, scan in scans.items():
            if not scan.filled:
                continue
            try:
                builder = datasets.load_dataset_builder(str(release), config, cache_dir=cache)
                message = _wrong(release.resolve(), builder, scan)
            except Exception as error:  # datasets raises many kinds of errors, of which each means: it does not load
                message = f"{type(error).__name__}: {first_line(error)}"
            if message:
                yield Problem("load", f"data/{config}", f"load_dataset does not load it ({message})")


def _wrong(release: Path, builder: Any, scan: Scan) -> str:
    """What differs between the loaded config and the data; "" if nothing does."""
    from datasets.table import table_cast

    features, files = builder.info.features, builder.config.data_files
    width = next((f.type.list_size for f in scan.columns or () if hasattr(f.type, "list_size")), 1)
    if features != schemas.config_features(scan.config, width, scan.carried):
        return "its features are not those of the data"
    if sorted(files) != sorted(scan.filled):
        return f"its splits are {', '.join(sorted(files))}, not {', '.join(sorted(scan.filled))}"
    for name, paths in files.items():
        found = sorted(Path(path).resolve().relative_to(release).as_posix() for path in paths)
        wanted = sorted(scan.filled[name].files)
        if found != wanted:
            return f"its files of {name} are {', '.join(found)}, not {', '.join(wanted)}"
        with pq.ParquetFile(paths[0]) as file:
            row = pa.Table.from_batches([next(file.iter_batches(1))])
        if list(features.decode_example(table_cast(row, features.arrow_schema).to_pylist()[0])) != list(features):
            return f"the first row of {name} has not its columns"
    return ""
