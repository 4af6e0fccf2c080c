"""What is searched for: a text, an image, or their vectors, as rows of unit length."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from sqid_lib.errors import CorruptFileError, MissingFileError, SourceError, UsageError
from sqid_lib.evaluation.arrays import Float32s
from sqid_lib.evaluation.cosine import unit
from sqid_lib.images import FORMATS, ImageError, decode
from sqid_lib.search.encoder import QueryEncoder

if TYPE_CHECKING:
    import PIL.Image

MAX_IMAGE_BYTES = 50_000_000  # of a file; a photo has a few million
Image: TypeAlias = "str | os.PathLike[str] | bytes | PIL.Image.Image | np.ndarray[Any, Any]"


def query_vectors(
    query: str | np.ndarray[Any, Any] | None,
    image: Image | None,
    width: int,
    encoder: Callable[[], QueryEncoder],
) -> Float32s:
    """The vectors of a query: float32 [1, D], or [2, D] of its text and its image, each of unit length.

    Args:
        query, image: see `EmbeddingStore.search`.
        encoder: called if one of them is not a vector already.

    Raises:
        UsageError: neither is given, the text is empty, a vector has the wrong shape, or a value has another type.
        MissingFileError, SourceError, CorruptFileError: the image file cannot be read or decoded.
    """
    if query is None and image is None:
        raise UsageError("nothing to search for", expected="a query, an image or both")
    text = _text(query) if isinstance(query, str) else query
    if isinstance(image, str | os.PathLike):
        image = _decoded(_read(Path(image)), image)
    elif isinstance(image, bytes):
        image = _decoded(image, "image")
    found = []
    if text is not None:
        found.append(encoder().encode_text([text]) if isinstance(text, str) else _vector(text, "query", width))
    if image is not None:
        pixels = hasattr(image, "getpixel")  # a PIL image, without importing PIL where no image is
        found.append(encoder().encode_images([image]) if pixels else _vector(image, "image", width))
    return unit(np.concatenate(found))


def _text(text: str) -> str:
    if not text.strip():
        raise UsageError("the query is empty", where="query", expected="a text", got=repr(text[:40]))
    # a lone surrogate stands for a byte that is not UTF-8; tokenizers refuse it
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _vector(vector: Any, name: str, width: int) -> Float32s:
    if not isinstance(vector, np.ndarray):
        expected = "a text or a vector" if name == "query" else "a path, bytes, a PIL image or a vector"
        raise UsageError("cannot be searched for", where=name, expected=expected, got=type(vector).__name__)
    fits = vector.shape == (width,) and vector.dtype.kind in "fiu"
    if not fits or not (np.abs(vector) <= np.finfo(np.float32).max).all():  # NaN is not either
        expected, got = f"{width} finite numbers", f"{vector.dtype} {list(vector.shape)}"
        raise UsageError("not a vector of this store", where=name, expected=expected, got=got)
    return np.asarray(vector, np.float32)[None]


def _read(path: Path) -> bytes:
    if not path.is_file():
        what = "not a file" if path.exists() else "no such image file"
        raise MissingFileError(what, where=path, expected="an image on this machine")
    try:
        with path.open("rb") as file:
            data = file.read(MAX_IMAGE_BYTES + 1)
    except OSError as error:
        raise SourceError(f"the image cannot be read: {error.strerror}", where=path) from error
    if len(data) > MAX_IMAGE_BYTES:
        raise SourceError("the image file is too large", where=path, expected=f"at most {MAX_IMAGE_BYTES:,} bytes")
    return data


def _decoded(data: bytes, where: object) -> PIL.Image.Image:
    try:
        return decode(data)
    except ImageError as error:
        expected = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
        raise CorruptFileError("not an image that can be used", where=where, expected=expected, got=error) from error
