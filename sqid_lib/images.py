"""Decoding downloaded pictures: bytes of unknown origin → RGB, or a status that says why not."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sqid_lib.errors import MissingExtraError, missing_extra

if TYPE_CHECKING:
    from PIL import Image, ImageFile

FORMATS = ("JPEG", "PNG", "GIF", "WEBP")
MAX_PIXELS = 50_000_000
_WHITE = (255, 255, 255, 255)


class PictureError(ValueError):
    """Bytes that are no usable picture.

    Attributes:
        status: "empty", "not_image", "corrupt" or "too_many_pixels", as in `schemas.IMAGE_STATUS`.
        detail: one line for people.
    """

    def __init__(self, status: str, detail: str) -> None:
        super().__init__(status, detail)
        self.status, self.detail = status, detail

    def __str__(self) -> str:
        return f"{self.status}: {self.detail}"


def sniff(data: bytes) -> str | None:
    """The format of a picture by its first bytes, one of `FORMATS`; None for anything else."""
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP"
    return None


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode a picture wholly to the RGB that transformers' CLIPProcessor makes of it.

    Gray, palette, CMYK and 16-bit pictures are converted as `Image.convert("RGB")` does; alpha is composited onto
    white, as `transformers.image_transforms.convert_to_rgb` does since it composites. Of an animation the first frame
    is taken; an EXIF orientation is left alone.

    Args:
        data: the file's bytes; its format is told by content alone.
        max_pixels: width × height allowed; larger pictures are refused before they are decoded.

    Returns:
        A loaded picture of mode RGB.

    Raises:
        PictureError: empty, of another format, too large, truncated or damaged.
        MissingExtraError: Pillow is not installed.
    """
    with _telling(data):
        return _to_rgb(_open(data, max_pixels))


def check(data: bytes, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Whether `decode` would succeed, for half its time and memory: reads the whole picture, keeps none of it.

    Of a JPEG every coefficient is read, which is where damage shows, and only an eighth of the pixels computed.

    Returns:
        Width and height in pixels.

    Raises:
        PictureError, MissingExtraError: as `decode`.
    """
    with _telling(data):
        picture = _open(data, max_pixels)
        size = picture.size
        picture.draft(None, (1, 1))  # for other formats than JPEG this does nothing
        _to_rgb(picture)
        return size


def _open(data: bytes, max_pixels: int) -> ImageFile.ImageFile:
    """A picture whose header is read and whose pixels are not."""
    try:
        from PIL import Image
    except ImportError:
        raise missing_extra("pillow", "build", "to decode pictures") from None

    if not data:
        raise PictureError("empty", "no bytes")
    picture_format = sniff(data)
    if picture_format is None:
        raise PictureError("not_image", f"no JPEG, PNG, GIF or WEBP; starts with {data[:12]!r}")
    try:
        picture = Image.open(io.BytesIO(data), formats=[picture_format])
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PictureError("too_many_pixels", _one_line(error)) from None
    if picture.width * picture.height > max_pixels:
        raise PictureError("too_many_pixels", f"{picture.width} × {picture.height} pixels")
    return picture


@contextmanager
def _telling(data: bytes) -> Iterator[None]:
    """Turns whatever a decoder raises on damaged bytes, which is nearly anything, into PictureError."""
    try:
        yield
    except (PictureError, MissingExtraError):
        raise
    except Exception as error:
        raise PictureError("corrupt", f"{sniff(data)}: {_one_line(error)}") from None


def _to_rgb(picture: ImageFile.ImageFile) -> Image.Image:
    from PIL import Image

    picture.load()
    if "A" in picture.getbands() or picture.info.get("transparency") is not None:
        rgba = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, _WHITE), rgba).convert("RGB")
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _one_line(error: BaseException) -> str:
    said = re.sub(r"<[^<>]* at 0x[0-9a-f]+>", "", str(error))  # an address differs from run to run
    return " ".join(said.split())[:200] or type(error).__name__
