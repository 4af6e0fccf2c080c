"""Images that are bytes in rows of a catalogue's products: what a reference "row:FILE:ROW" counts.

The files, at the versions that stage sample read, and the column of images travel in the metadata of
WORK/sample/images.parquet and WORK/resolve/urls.parquet, beside the references.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from sqid_lib.errors import CorruptFileError
from sqid_lib.files import File

_KEY = b"sqid.image_rows"
_AGAIN = "Run the sample and resolve stages again."


@dataclass(frozen=True)
class ImageRows:
    """The files that hold the images.

    Attributes:
        files: of the products, in the order in which references count them, each at the version that was read.
        column: name of the column that holds the images: binary or struct<bytes, path>, or lists of them.
    """

    files: tuple[File, ...] = ()
    column: str = ""

    def metadata(self) -> dict[bytes, bytes]:
        """For the schema of a table of references; URLs are left out, since they may hold a password."""
        files = [("" if _is_http(file.url) else file.url, file.version) for file in self.files]
        return {_KEY: json.dumps({"column": self.column, "files": files}).encode()}


def read_image_rows(metadata: Mapping[bytes, bytes] | None, products: str, where: str) -> ImageRows:
    """The reverse of `ImageRows.metadata`; no files where the metadata has none.

    Args:
        products: address of the products, for a file whose URL was left out: a URL names one file.
        where: the file whose metadata it is, for messages.

    Raises:
        CorruptFileError: the metadata is not that which was written.
    """
    text = (metadata or {}).get(_KEY)
    if text is None:
        return ImageRows()
    try:
        values = json.loads(text)
        files = tuple(File(str(url) or products, str(version)) for url, version in values["files"])
        return ImageRows(files, str(values["column"]))
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptFileError("the metadata is damaged", where=where, fix=_AGAIN) from error


def _is_http(url: str) -> bool:
    return url.startswith(("http://", "https://"))
