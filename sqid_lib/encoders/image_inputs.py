"""What people pass as an image - an image of Pillow, a path, bytes, an array - to an image of Pillow."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, Union

import numpy as np
from numpy.typing import NDArray

from sqid_lib import images
from sqid_lib.errors import CorruptFileError, EmptyFileError, MissingFileError, SqidError, UsageError, first_line

if TYPE_CHECKING:
    import torch
    from PIL import Image

ImageLike: TypeAlias = Union[
    "Image.Image", str, os.PathLike[str], bytes, bytearray, memoryview, NDArray[np.uint8], "torch.Tensor"
]
_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+://")
_CHANNELS = (1, 3, 4)  # grey, RGB, RGBA
_EXPECTED = "an image of Pillow, a path, the bytes of a file, or a uint8 array [H, W, C] or [H, W]"


def as_items(given: ImageLike | Iterable[Any]) -> Iterable[Any]:
    """The images one by one, a single image as a list of one; an array of four dimensions is a list of images.

    Raises:
        UsageError: neither an image nor a list.
    """
    from PIL import Image

    if isinstance(given, (Image.Image, str, os.PathLike, bytes, bytearray, memoryview)) or _dimensions(given) in (2, 3):
        return [given]
    if isinstance(given, (dict, set, frozenset)) or not isinstance(given, Iterable):
        raise UsageError("cannot be encoded", where="images", expected=f"a list; each {_EXPECTED}", got=_kind(given))
    return given


def as_image(item: ImageLike, row: int) -> Image.Image:
    """One image; paths and bytes are decoded by the rules of `sqid_lib.images.decode`.

    Args:
        row: its number in the list, for messages.

    Raises:
        UsageError: None, a URL, an array of another layout or type, or anything else that is no image.
        MissingFileError: no such file.
        EmptyFileError, CorruptFileError: a file or bytes without a usable image.
    """
    from PIL import Image

    where = f"images[{row}]"
    if isinstance(item, (str, os.PathLike)):
        data, where = _read(item, where)
        image = _decode(data, where)
    elif isinstance(item, (bytes, bytearray, memoryview)):
        image = _decode(bytes(item), where)
    elif isinstance(item, Image.Image):
        image = _loaded(item, where)
    elif _dimensions(item) is not None:
        image = Image.fromarray(_pixels(item, where))
    else:
        raise UsageError("not an image", where=where, expected=_EXPECTED, got=_kind(item))
    if max(image.size) > images.MAX_ASPECT * min(image.size):
        size = f"{image.width} × {image.height} pixels"
        raise UsageError(f"one side is over {images.MAX_ASPECT} times as long as the other", where=where, got=size)
    return image


def _read(item: str | os.PathLike[str], where: str) -> tuple[bytes, str]:
    """The bytes of a file, and the name for messages."""
    if isinstance(item, str) and _URL.match(item):
        raise UsageError(
            "a URL is not downloaded here",
            where=where,
            got=item,
            fix="Download it and pass the bytes: urllib.request.urlopen(url, timeout=30).read(). For many URLs, "
            "sqid build downloads with limits for size, time, address and host.",
        )
    where = f"{where}, {os.fspath(item)[:200]!r}"
    try:
        path = Path(item).expanduser()
        if path.is_file():  # a FIFO would block
            return path.read_bytes(), where
        what = "not a file" if path.exists() else "no such file"
    except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL in it, an unknown ~user, no permission
        what = f"the file cannot be read: {first_line(error)}"
    raise MissingFileError(what, where=where, fix="Check the path of the image.")


def _decode(data: bytes, where: str) -> Image.Image:
    try:
        return images.decode(data)
    except images.ImageError as error:
        kind = EmptyFileError if error.status == "empty" else CorruptFileError
        raise kind(error.detail, where=where, expected="a whole JPEG, PNG, GIF or WEBP", got=error.status) from error


def _loaded(image: Image.Image, where: str) -> Image.Image:
    """The image with its pixels, which Pillow reads only when they are needed."""
    try:
        image.load()
    except Exception as error:  # decoders raise nearly anything on damaged bytes
        raise CorruptFileError(f"the image cannot be decoded: {first_line(error)}", where=where) from error
    if not image.width or not image.height:
        raise UsageError("an image without pixels", where=where, got=f"{image.width} × {image.height} pixels")
    return image


def _pixels(item: Any, where: str) -> NDArray[np.uint8]:
    """uint8 [H, W, 3 or 4] or [H, W] of an array or tensor."""
    kind, shape = str(item.dtype).removeprefix("torch."), tuple(item.shape)

    def refusal(what: str, fix: str) -> SqidError:
        expected = "uint8 [H, W, C] with 1, 3 or 4 channels, or [H, W]"
        return UsageError(what, where=where, expected=expected, got=f"{kind} {list(shape)}", fix=fix)

    if kind != "uint8":
        fix = "Pass values of 0 to 255 before any normalising; of values from 0 to 1: (255 * array).round() as uint8."
        raise refusal("the array does not hold bytes", fix)
    if len(shape) not in (2, 3) or 0 in shape:
        raise refusal("the array is not one image", "A list or an array [N, H, W, C] holds several.")
    if len(shape) == 3 and shape[2] not in _CHANNELS:
        layout = "the channels come first" if shape[0] in _CHANNELS else "the last axis is not the channels"
        raise refusal(layout, "Use array.transpose(1, 2, 0), or tensor.permute(1, 2, 0).")
    array: NDArray[np.uint8] = item if isinstance(item, np.ndarray) else item.detach().cpu().numpy()
    return array[:, :, 0] if len(shape) == 3 and shape[2] == 1 else array


def _dimensions(item: Any) -> int | None:
    """Of an array of numpy or a tensor of torch; None for anything else."""
    if isinstance(item, np.ndarray):
        return item.ndim
    import torch

    return item.ndim if isinstance(item, torch.Tensor) else None


def _kind(item: Any) -> str:
    return "None" if item is None else type(item).__name__
