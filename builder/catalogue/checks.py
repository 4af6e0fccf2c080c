"""What is wrong, or likely wrong, with the products of a shop's table as a whole."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sqid_lib import schemas
from sqid_lib.errors import RecipeError
from sqid_lib.sources import parse_address
from sqid_lib.tables.keys import text_hashes

if TYPE_CHECKING:
    from builder.recipe import CatalogueSettings

_HTML = r"</?[A-Za-z][A-Za-z0-9]*(?:\s[^<>]*)?/?>"
_ROUNDED = r"^\d(?:[.,]\d+[eE]\+?|[eE]\+)\d+$"  # what Excel makes of a long number
_ROWS = 65_536  # of ids at once
NO_IMAGE, URL, LOCAL, ROW = range(4)  # kinds of references
_log = logging.getLogger(__name__)


def image_kinds(images: pa.Array) -> npt.NDArray[np.uint8]:
    """What each reference is: NO_IMAGE (null), LOCAL (a file), ROW (of the table) or URL; [rows]."""
    kinds = np.where(images.is_valid().to_numpy(zero_copy_only=False), np.uint8(URL), np.uint8(NO_IMAGE))
    for kind, prefix in ((LOCAL, schemas.FILE_IMAGE), (ROW, schemas.ROW_IMAGE)):
        kinds[pc.fill_null(pc.starts_with(images, prefix), False).to_numpy(zero_copy_only=False)] = kind
    return kinds


def check_images(
    kinds: npt.NDArray[np.uint8],
    reference: Callable[[int], str],
    names: Mapping[str, str],
    where: str,
    settings: CatalogueSettings,
) -> None:
    """Raise RecipeError if local images are named and no folder is known; log how many products have an image.

    Args:
        kinds: of `image_kinds`, of each product.
        reference: the image of the product of a number.
        names: our column → the table's.
    """
    local = kinds == LOCAL
    count, locals_ = np.count_nonzero(kinds), int(local.sum())
    if locals_ and settings.images is None:
        example = reference(int(local.argmax())).removeprefix(schemas.FILE_IMAGE)
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
    rows = int((kinds == ROW).sum())
    if not count:
        _log.warning("%s: no product has an image", where)
    else:
        _log.info(
            "%s: products with an image: %d of %d; in local files: %d, in the table: %d",
            where,
            count,
            len(kinds),
            locals_,
            rows,
        )


def has_html(texts: Sequence[pa.Array]) -> npt.NDArray[np.bool_]:
    """Which rows have HTML tags in one of their texts; [rows]."""
    found = [pc.fill_null(pc.match_substring_regex(column, _HTML), False) for column in texts]
    masks = [mask.to_numpy(zero_copy_only=False) for mask in found]
    return np.asarray(np.logical_or.reduce(masks), np.bool_)


def warn(
    ids: pa.StringArray, untitled: npt.NDArray[np.bool_], html: npt.NDArray[np.bool_], where: str, *, csv: bool
) -> None:
    """Warn of what is likely a fault of the table: ids that nearly agree or were rounded, empty titles, HTML.

    Args:
        untitled, html: which products have no title, and which have HTML; [products].
    """
    alike, examples = _alike(ids)
    if alike:
        _log.warning(
            "%s: ids that differ from another one only in case, spaces or Unicode form: %d, such as %s; all are kept",
            *(where, alike, " and ".join(map(repr, examples))),
        )
    rounded = ids.filter(pc.match_substring_regex(ids, _ROUNDED)) if csv else ids.slice(0, 0)
    if len(rounded):
        _log.warning(
            "%s: ids that look like numbers which a spreadsheet has rounded: %d, such as %r",
            *(where, len(rounded), rounded[0].as_py()),
        )
    for found, what in (
        (untitled, "products without a title"),
        (html, "products with HTML tags in their texts, which the encoder reads as text"),
    ):
        if found.any():
            _log.warning("%s: %s: %d, such as %r", where, what, int(found.sum()), ids[int(found.argmax())].as_py())


def _alike(ids: pa.StringArray) -> tuple[int, list[str]]:
    """How many ids agree with another one in all but case, spaces and Unicode form, and two that do."""
    hashes = np.concatenate([text_hashes(_folded(ids.slice(i, _ROWS))) for i in range(0, len(ids), _ROWS)])
    ordered = np.sort(hashes)
    again = ordered[1:][ordered[1:] == ordered[:-1]]
    if not len(again):
        return 0, []
    likely = ids.filter(pa.array(np.isin(hashes, again)))
    folded = _folded(likely)
    counted = pc.value_counts(folded)
    several = counted.filter(pc.greater(counted.field("counts"), 1))
    if not len(several):
        return 0, []
    examples = likely.filter(pc.equal(folded, several.field("values")[0]))
    return pc.sum(several.field("counts")).as_py(), examples.slice(0, 2).to_pylist()


def _folded(ids: pa.StringArray) -> pa.StringArray:
    return pc.utf8_lower(pc.utf8_normalize(pc.replace_substring_regex(ids, r"\s+", ""), form="NFKC"))
