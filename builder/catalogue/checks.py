"""What is wrong, or likely wrong, with the products of a shop's table as a whole."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sqid_lib import schemas
from sqid_lib.errors import RecipeError
from sqid_lib.sources import parse_address

if TYPE_CHECKING:
    from builder.recipe import CatalogueSettings

_HTML = r"</?[A-Za-z][A-Za-z0-9]*(?:\s[^<>]*)?/?>"
_ROUNDED = r"^\d(?:[.,]\d+[eE]\+?|[eE]\+)\d+$"  # what Excel makes of a long number
_log = logging.getLogger(__name__)


def check_images(images: pa.Array, names: Mapping[str, str], where: str, settings: CatalogueSettings) -> None:
    """Raise RecipeError if local images are named and no folder is known; log how many products have an image."""
    there = pc.is_valid(images)
    local = pc.fill_null(pc.starts_with(images, schemas.FILE_IMAGE), False)
    count, locals_ = pc.sum(there).as_py() or 0, pc.sum(local).as_py() or 0
    if locals_ and settings.images is None:
        example = images.filter(local)[0].as_py().removeprefix(schemas.FILE_IMAGE)
        beside = parse_address(settings.products, file=True).local is not None
        if locals_ == count and not beside:
            raise RecipeError(
                f"column {names['image']!r} names local images, and the recipe does not say where they are",
                where="catalogue.images",
                expected="a folder, to which they are relative",
                got=repr(example),
                fix='Add images = "…" to [catalogue].',
            )
        if locals_ < count:
            _log.warning(
                "%s: images that are no URLs: %d, such as %r; %s",
                *(where, locals_, example),
                "they are looked for beside the table" if beside else "for local images add images = … to [catalogue]",
            )
    rows = pc.sum(pc.starts_with(images, schemas.ROW_IMAGE)).as_py()
    if not count:
        _log.warning("%s: no product has an image", where)
    else:
        _log.info(
            "%s: products with an image: %d of %d; in local files: %d, in the table: %d",
            where,
            count,
            len(images),
            locals_,
            rows,
        )


def warn(table: pa.Table, where: str, *, csv: bool) -> None:
    """Warn of what is likely a fault of the table: ids that nearly agree or were rounded, empty titles, HTML."""
    ids = table.column("product_id")
    alike, examples = _alike(ids)
    if alike:
        _log.warning(
            "%s: ids that differ from another one only in case, spaces or Unicode form: %d, such as %s; all are kept",
            *(where, alike, " and ".join(map(repr, examples))),
        )
    rounded = ids.filter(pc.match_substring_regex(ids, _ROUNDED))
    if csv and len(rounded):
        _log.warning(
            "%s: ids that look like numbers which a spreadsheet has rounded: %d, such as %r",
            *(where, len(rounded), rounded[0].as_py()),
        )
    empty = ids.filter(pc.is_null(table.column("product_title")))
    if len(empty):
        _log.warning("%s: products without a title: %d, such as %r", where, len(empty), empty[0].as_py())
    html = np.zeros(len(ids), np.bool_)
    for name in schemas.TEXT_COLUMNS:
        html |= pc.fill_null(pc.match_substring_regex(table.column(name), _HTML), False).to_numpy()
    if html.any():
        _log.warning(
            "%s: products with HTML tags in their texts, which the encoder reads as text: %d, such as %r",
            *(where, int(html.sum()), ids[int(html.argmax())].as_py()),
        )


def _alike(ids: pa.ChunkedArray) -> tuple[int, list[str]]:
    """How many ids agree with another one in all but case, spaces and Unicode form, and two that do."""
    folded = pc.utf8_lower(pc.utf8_normalize(pc.replace_substring_regex(ids, r"\s+", ""), form="NFKC"))
    counted = pc.value_counts(folded)
    several = counted.filter(pc.greater(counted.field("counts"), 1))
    if not len(several):
        return 0, []
    examples = ids.filter(pc.equal(folded, several.field("values")[0]))
    return pc.sum(several.field("counts")).as_py(), examples.slice(0, 2).to_pylist()
