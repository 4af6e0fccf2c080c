"""What the work directory of a build knows beyond its release: images, why some failed, and times."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from builder import times
from builder.report.markup import data_uri
from builder.report.release import Release
from sqid_lib import images, schemas
from sqid_lib.errors import MissingExtraError, SourceError
from sqid_lib.joined.image_status import is_http
from sqid_lib.tables.keys import key_strings
from sqid_lib.tables.reader import read_parquet

if TYPE_CHECKING:
    from sqid_lib.stored_images import StoredImages

_COLUMNS = (*schemas.PRODUCT_KEY, "image_url", "sha256", "detail")
_MAX_PIXELS = 16_000_000  # of an image that is decoded for a thumbnail
_QUALITY = 60


@dataclass(frozen=True)
class Work:
    """A work directory, its outcomes in the order of the products of its release.

    Attributes:
        sha256s: of each product's stored image; None where there is none.
        references: what each product's image was fetched from, a URL or a local image.
        detail: of each product, as fetch ended.
        times: stage → seconds.
    """

    path: Path
    sha256s: Sequence[str | None]
    references: Sequence[str | None]
    detail: Sequence[str | None]
    times: Mapping[str, float]

    @cached_property
    def _stored(self) -> StoredImages:
        from sqid_lib.stored_images import StoredImages  # needs the extra "build"

        return StoredImages(self.path / "fetch")

    def thumbnails(self, rows: Sequence[int], side: int) -> tuple[dict[int, str], str]:
        """Small JPEGs of products as data: URLs, and in words why there are none, "" where there are.

        Args:
            rows: of products; those without an image, or with one that cannot be decoded here, are left out.
            side: pixels of the longer side, at most.
        """
        wanted = {row: sha256 for row in rows if (sha256 := self.sha256s[row])}
        if not wanted:
            return {}, "no image is stored in this work directory"
        made: dict[str, str] = {}
        try:
            for sha256, image in self._stored.read_few(sorted(set(wanted.values()))):
                if small := _thumbnail(image, side):
                    made[sha256] = small
        except (SourceError, MissingExtraError) as error:
            return {}, f"the stored images cannot be read ({error.what})"
        except ImportError as error:
            return {}, f"the stored images cannot be read without the package {error.name}"
        return {row: made[sha256] for row, sha256 in wanted.items() if sha256 in made}, ""


def read_work(path: Path, release: Release) -> Work:
    """The work directory of a release; what it lacks, such as images, is empty.

    Raises:
        SourceError: fetch/outcomes.parquet is damaged.
    """
    outcomes = path / "fetch" / "outcomes.parquet"
    schema = pa.schema([schemas.OUTCOMES_SCHEMA.field(name) for name in _COLUMNS])
    table = read_parquet(str(outcomes), schema) if outcomes.is_file() else schema.empty_table()
    at = pc.index_in(key_strings(release.products), value_set=key_strings(table))
    fetched, published = (_http_url(rows["image_url"]) for rows in (table, release.products))
    same = pc.and_(pc.is_valid(at), pc.equal(fetched.take(at), published))
    at = pc.if_else(same, at, pa.scalar(None, at.type))  # not what a later fetch left
    sha256s, references, detail = (
        table[name].combine_chunks().take(at).to_pylist() for name in ("sha256", "image_url", "detail")
    )
    return Work(path, sha256s, references, detail, times.read(path))


def _http_url(references: pa.ChunkedArray) -> pa.Array:
    """The URLs, and "" for local images, whose path a release does not publish."""
    urls = references.combine_chunks()
    return pc.fill_null(pc.if_else(is_http(urls), urls, ""), "")


def _thumbnail(data: bytes, side: int) -> str | None:
    try:
        image = images.decode(data, _MAX_PIXELS, keep_truncated=True)
    except images.ImageError:
        return None
    image.thumbnail((side, side))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=_QUALITY)
    return data_uri("image/jpeg", out.getvalue())
