"""What the manifest states, against the data and against itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from builder.release.manifest import Manifest
from builder.validate.problem import Problem
from builder.validate.rows import Scan
from sqid_lib import schemas

# floats that the published CLIP models give
_WIDTHS = {
    "openai/clip-vit-base-patch16": 512,
    "openai/clip-vit-base-patch32": 512,
    "openai/clip-vit-large-patch14": 768,
    "openai/clip-vit-large-patch14-336": 768,
}


def check_manifest(release: Path, stated: Manifest | None, scans: Mapping[str, Scan]) -> Iterator[Problem]:
    """Counts, rows, width and model of manifest.json, and what its recipe expects and selects."""
    if stated is None:
        return  # reported with the files
    expected = stated.recipe.get("expect")
    for name, rows in counts(scans).items():
        if stated.counts.get(name) != rows:
            yield count_problem(schemas.MANIFEST, f"counts.{name}", stated.counts.get(name), rows)
        wanted = expected.get(name) if isinstance(expected, dict) else None
        if wanted is not None and wanted != rows:
            yield count_problem(schemas.MANIFEST, f"recipe.expect.{name}", wanted, rows)
    for path, file in stated.files.items():
        if path.endswith(".parquet") and (release / path).is_file():
            found = _rows(release / path)
            if found is not None and found != file.rows:
                yield count_problem(schemas.MANIFEST, path, file.rows, found)
    for config, scan in scans.items():
        for field in scan.columns or ():
            if pa.types.is_fixed_size_list(field.type) and field.type.list_size != stated.width:
                message = f"{field.name} has {field.type.list_size} floats, {schemas.MANIFEST} states {stated.width}"
                yield Problem("width", f"data/{config}", message)
    for message in (*_of_itself(stated), *_of_selection(release, stated, scans)):
        yield Problem("contradiction", schemas.MANIFEST, message)


def counts(scans: Mapping[str, Scan]) -> dict[str, int]:
    """Distinct products, queries, judgments, supp; those of a config that was not read whole are left out."""
    found = {}
    for name, config in schemas.COUNTED.items():
        if scans[config].complete and (keys := scans[config].distinct_keys()) is not None:
            found[name] = keys
    return found


def count_problem(where: str, what: str, got: Any, rows: int) -> Problem:
    return Problem("count", where, f"{what} is {got}, the data has {rows:,}")


def _of_itself(stated: Manifest) -> Iterator[str]:
    """Name, version and model are those of its recipe, and the vectors are as wide as those of the model."""
    for key in ("name", "version"):
        of_recipe = stated.recipe.get(key, getattr(stated, key))
        if of_recipe != getattr(stated, key):
            yield f"{key} is {getattr(stated, key)!r}, its recipe states {of_recipe!r}"
    model = _section(stated, "encoder").get("model", stated.model)
    if model != stated.model:
        yield f"model is {stated.model!r}, its recipe states {model!r}"
    width = _WIDTHS.get(stated.model.lower(), stated.width)
    if stated.made_here and width != stated.width:
        yield f"model is {stated.model!r}, which gives {width} floats, and the vectors have {stated.width}"


def _of_selection(release: Path, stated: Manifest, scans: Mapping[str, Scan]) -> Iterator[str]:
    """Locales and splits of the data are those that the recipe selects, and so are the classic files."""
    selection = _section(stated, "selection")
    for config, scan in scans.items():
        if "locales" in selection and scan.locales - set(stated.locales):
            others = ", ".join(sorted(scan.locales - set(stated.locales))[:3])
            yield f"its recipe selects the locales {', '.join(stated.locales)}, data/{config} has {others}"
        wanted = selection.get("splits")
        if config != schemas.SUPP and isinstance(wanted, list):
            extra = sorted(set(scan.filled) - set(map(str, wanted)) - {schemas.SUPP_VECTORS_SPLIT})
            if extra:
                yield f"its recipe selects the splits {', '.join(map(str, wanted))}, data/{config} has {extra[0]}"
    embedded = schemas.SUPP_VECTORS_SPLIT in scans[schemas.FEATURES].filled
    if embedded and selection.get("embed_supp") is False:
        yield "its recipe states embed_supp = false, and supplementary products have vectors"
    if _section(stated, "release").get("classic_files") is False:
        for name in schemas.CLASSIC_FILES:
            if (release / name).is_file():
                yield f"its recipe states classic_files = false, and there is {name}"


def _section(stated: Manifest, name: str) -> Mapping[str, Any]:
    section = stated.recipe.get(name)
    return section if isinstance(section, dict) else {}


def _rows(path: Path) -> int | None:
    try:
        return int(pq.read_metadata(path).num_rows)
    except (pa.ArrowException, OSError):
        return None  # reported with the rows or the classic files
