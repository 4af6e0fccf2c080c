"""The images of a catalogue that need no request: files of a folder, and bytes in rows of the products."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow.parquet as pq

from builder.catalogue.image_rows import ImageRows, read_image_rows
from builder.engines import Tick
from builder.fetch.decoders import Decoders
from builder.fetch.failures import rules_of
from builder.fetch.image_folder import ImageFolder, LocalImage
from builder.fetch.ledger import Ledger, Outcome
from builder.fetch.parquet_images import images_in_rows
from builder.fetch.recorder import Recorder
from builder.recipe import FetchSettings, Recipe
from sqid_lib import schemas
from sqid_lib.errors import IntegrityError, RecipeError
from sqid_lib.sources import parse_address
from sqid_lib.tables.reader import reporting

_WAITING = 256  # outcomes that wait for one commit
_AGAIN = "Run the stages sample and resolve again."
_NO_FOLDER = LocalImage("no folder", None, "refused", "no folder of images: the products are not on this machine")
_NO_ROW = LocalImage("no row", None, schemas.BAD_URL, "not a row of the products")
_ROW = re.compile(rf"{schemas.ROW_IMAGE}(0|[1-9][0-9]{{0,8}}):(0|[1-9][0-9]{{0,17}})")  # one spelling a row


@dataclass(frozen=True)
class LocalImages:
    """Where the references of a catalogue lead to; none is local without a catalogue.

    Attributes:
        folder: of the files, None if there is none.
        rows: what "row:" counts, None without a catalogue.
    """

    folder: str | None = None
    rows: ImageRows | None = None

    def is_local(self, url: str) -> bool:
        """Whether it is a reference to a local image, not a URL to request."""
        return self.rows is not None and url.startswith((schemas.FILE_IMAGE, schemas.ROW_IMAGE))

    def version(self, url: str) -> str | None:
        """What is there now, without opening it: an outcome of another version is out of date. None for a URL.

        Raises:
            DiskError: as `ImageFolder.version`.
            IntegrityError: resolve/urls.parquet does not name the file.
        """
        if not self.is_local(url):
            return None
        if url.startswith(schemas.FILE_IMAGE):
            return self._files.version(url.removeprefix(schemas.FILE_IMAGE)) if self._files else _NO_FOLDER.version
        place = self._parse_row(url)
        return self._rows.files[place[0]].version if place else _NO_ROW.version

    def read(self, references: Sequence[str], max_bytes: int) -> Iterator[tuple[str, LocalImage]]:
        """Each reference with its image, read when it is asked for; in another order than that of the references.

        Raises:
            DiskError: as `ImageFolder.read`.
            IntegrityError, SourceError: as `images_in_rows`.
        """
        rows: dict[int, dict[int, str]] = {}  # file → row → reference
        for reference in references:
            if reference.startswith(schemas.FILE_IMAGE):
                path = reference.removeprefix(schemas.FILE_IMAGE)
                yield reference, self._files.read(path, max_bytes) if self._files else _NO_FOLDER
            elif place := self._parse_row(reference):
                rows.setdefault(place[0], {})[place[1]] = reference
            else:
                yield reference, _NO_ROW
        for number, wanted in sorted(rows.items()):
            file = self._rows.files[number]
            for row, data in images_in_rows(file, list(wanted), self._rows.column):
                yield wanted[row], _in_row(file.version, data, max_bytes)

    @cached_property
    def _files(self) -> ImageFolder | None:
        return ImageFolder(self.folder) if self.folder is not None else None

    @property
    def _rows(self) -> ImageRows:
        assert self.rows is not None
        return self.rows

    def _parse_row(self, reference: str) -> tuple[int, int] | None:
        match = _ROW.fullmatch(reference)
        if match is None:
            return None
        if int(match[1]) >= len(self._rows.files):
            raise IntegrityError(
                "the file of a reference is not known", where="resolve/urls.parquet", got=reference, fix=_AGAIN
            )
        return int(match[1]), int(match[2])


def local_images(recipe: Recipe, work: Path) -> LocalImages:
    """Where the local images of a recipe are; WORK/resolve/urls.parquet names the files that hold rows.

    Without `catalogue.images` paths are relative to the products' folder, if that is on this machine.

    Raises:
        RecipeError: `catalogue.images` is not on this machine.
        SourceError: resolve/urls.parquet is missing or damaged.
    """
    if recipe.catalogue is None:
        return LocalImages()
    path = str(work / "resolve" / "urls.parquet")
    with reporting(path):
        rows = read_image_rows(pq.read_schema(path).metadata, recipe.catalogue.products, path)
    products = parse_address(recipe.catalogue.products, file=True).local
    if recipe.catalogue.images is None:
        home = products if products is None or products.is_dir() else products.parent
        return LocalImages(None if home is None else str(home), rows)
    folder = parse_address(recipe.catalogue.images, file=True).local
    if folder is None:
        raise RecipeError(
            "the images must be in a folder of this machine",
            where="catalogue.images",
            got=recipe.catalogue.images,
            fix="Download them; or leave the key out, and name images by https:// URLs.",
        )
    return LocalImages(str(folder), rows)


async def store(
    references: Sequence[str], images: LocalImages, limits: FetchSettings, ledger: Ledger, tick: Tick
) -> None:
    """Read every local image, store those that are sound, and record an outcome for each reference.

    Args:
        references: distinct, none of them in the ledger.
        tick: called with 1 for each reference, and whether it failed.

    Raises:
        DiskError: the disk fails or is full, or too many files are open; nothing is recorded for the image.
        StageError: decoder processes do not start.
        IntegrityError, SourceError: as `LocalImages.read`.
    """
    found = images.read(references, limits.max_bytes)

    async def work(recorder: Recorder) -> None:
        for url, image in found:
            outcome, offset, version = Outcome(url, image.status, detail=image.detail), None, image.version
            checking = image.data is not None and recorder.check(outcome, image.data)
            del image  # its bytes are in the spool
            if checking:
                outcome, offset = await checking
            rules = rules_of(url, outcome.status, limits, version)
            await recorder.record(outcome._replace(rules=rules), offset)

    try:
        async with Decoders(
            ledger, max_pixels=limits.max_pixels, keep_truncated=limits.truncated == "keep"
        ) as decoders:
            recorder = Recorder(ledger, decoders, tick)
            try:
                async with asyncio.TaskGroup() as tasks:
                    for _ in range(min(_WAITING, len(references))):
                        tasks.create_task(work(recorder))
            finally:
                recorder.finish()
    except BaseExceptionGroup as group:  # of the task group: the first failure ended the others
        raise group.exceptions[0] from None


def _in_row(version: str, data: bytes | None, max_bytes: int) -> LocalImage:
    if data is None:
        return LocalImage(version, None, schemas.MISSING, "no bytes in the row")
    if len(data) > max_bytes:
        return LocalImage(version, None, "too_large", f"more than {max_bytes} bytes")
    return LocalImage(version, data)
