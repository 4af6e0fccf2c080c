"""The counts of a finished stage, in words."""

from __future__ import annotations

from pathlib import Path

import pyarrow.compute as pc

from builder.summary.rows import WITHOUT_URL, count_rows, is_in, is_local, read
from builder.summary.summary import a_url
from sqid_lib import schemas


def made(stage: str, work: Path) -> str:
    """The counts of a finished stage, in words."""
    match stage:
        case "sample":
            names = {"products": "products", "queries": "queries", "judgments": "judgments"}
            counts = [f"{count_rows([work / 'sample' / f'{name}.parquet']):,} {word}" for name, word in names.items()]
            return ", ".join([*counts, f"{count_rows([work / 'sample' / 'supp.parquet']):,} supplementary products"])
        case "resolve":
            urls = read(work / "resolve" / "urls.parquet", ["image_url"])["image_url"]
            found = len(urls) - urls.null_count
            what = a_url(pc.sum(is_local(urls)).as_py() or 0, found)
            return f"{found:,} of {len(urls):,} products have {what}"
        case "fetch":
            rows = read(work / "fetch" / "outcomes.parquet", ["image_url", "image_status", "sha256"])
            stored = pc.count_distinct(rows["image_url"].filter(pc.is_valid(rows["sha256"])))
            wanted = pc.and_(pc.is_valid(rows["image_url"]), pc.invert(is_in(rows, WITHOUT_URL)))
            return f"{stored.as_py():,} of {pc.count_distinct(rows['image_url'].filter(wanted)).as_py():,} images"
        case "embed":
            parts = {"products": "products", "queries": "queries", "supp": "supplementary products"}
            counted = {word: count_rows((work / "embed").glob(f"{part}-*.parquet")) for part, word in parts.items()}
            return "vectors of " + ", ".join(f"{rows:,} {word}" for word, rows in counted.items() if rows)
        case "release":
            files = [path for path in (work / schemas.RELEASE_DIR).rglob("*") if path.is_file()]
            size = sum(path.stat().st_size for path in files)
            return f"{len(files):,} files, {_size(size)}"
        case _:
            return "no problems"


def _size(count: int) -> str:
    size, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 1_000:
            break
        size, unit = size / 1_000, larger
    return f"{size:.1f} {unit}" if unit != "B" else f"{count} B"
