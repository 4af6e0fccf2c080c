"""Decode and check untrusted images: bytes → RGB, or a status that says why not."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sqid_lib.errors import MissingExtraError, first_line, missing_extra

if TYPE_CHECKING:
    from PIL import Image, ImageFile

FORMATS = ("JPEG", "PNG", "GIF", "WEBP")
MAX_PIXELS = 50_000_000
_WHITE = (255, 255, 255, 255)
_ADDRESS = re.compile(r"<[^<>]* at 0x[0-9a-f]+>")  # of an object in a message: differs from run to run


class ImageError(ValueError):
    """Bytes that are not a usable image.

    Attributes:
        status: "empty", "not_image", "corrupt" or "too_many_pixels", as in `schemas.IMAGE_STATUS`.
        detail: one line that explains it.
    """

    def __init__(self, status: str, detail: str) -> None:
        super().__init__(status, detail)
        self.status, self.detail = status, detail

    def __str__(self) -> str:
        return f"{self.status}: {self.detail}"


def sniff(data: bytes) -> str | None:
    """The format of an image by its first bytes, one of `FORMATS`; None for anything else."""
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
    """Decode an image wholly to the RGB that transformers' CLIPProcessor makes of it.

    Gray, palette, CMYK and 16-bit images are converted as `Image.convert("RGB")` does; alpha is composited onto white,
    as newer versions of `transformers.image_transforms.convert_to_rgb` do. Of an animation the first frame is taken;
    an EXIF orientation is ignored.

    Args:
        data: the file's bytes; only they determine the format.
        max_pixels: width × height allowed; larger images are refused before they are decoded.

    Returns:
        A loaded image of mode RGB.

    Raises:
        ImageError: empty, of another format, too large, truncated or damaged.
        MissingExtraError: Pillow is not installed.
    """
    with _reporting_damage(data):
        return _to_rgb(_open(data, max_pixels))


def check(data: bytes, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Whether `decode` would succeed, in half its time and memory: reads the whole image, keeps none of it.

    Of a JPEG every coefficient is read, which is where damage shows, but only an eighth of the pixels is computed.

    Returns:
        Width and height in pixels.

    Raises:
        ImageError, MissingExtraError: as `decode`.
    """
    with _reporting_damage(data):
        image = _open(data, max_pixels)
        size = image.size
        image.draft(None, (1, 1))  # does nothing for other formats than JPEG
        _to_rgb(image)
        return size


def _open(data: bytes, max_pixels: int) -> ImageFile.ImageFile:
    """An image whose header is read and whose pixels are not."""
    try:
        from PIL import Image
    except ImportError:
        raise missing_extra("pillow", "build", "to decode images") from None

    if not data:
        raise ImageError("empty", "no bytes")
    image_format = sniff(data)
    if image_format is None:
        raise ImageError("not_image", f"no JPEG, PNG, GIF or WEBP; starts with {data[:12]!r}")
    try:
        image = Image.open(io.BytesIO(data), formats=[image_format])
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError("too_many_pixels", _message(error)) from None
    if image.width * image.height > max_pixels:
        raise ImageError("too_many_pixels", f"{image.width} × {image.height} pixels")
    return image


@contextmanager
def _reporting_damage(data: bytes) -> Iterator[None]:
    """Raise ImageError in place of what decoders raise on damaged bytes, which is nearly any exception."""
    try:
        yield
    except (ImageError, MissingExtraError):
        raise
    except Exception as error:
        raise ImageError("corrupt", f"{sniff(data)}: {_message(error)}") from None


def _to_rgb(image: ImageFile.ImageFile) -> Image.Image:
    from PIL import Image

    image.load()
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, _WHITE), rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _message(error: BaseException) -> str:
    return " ".join(_ADDRESS.sub("", first_line(error)).split())
