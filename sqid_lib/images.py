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
MAX_ASPECT = 500  # long side to short: a model resizes the short side to its size, and the long side with it
MAX_MISSING = 0.5  # of 255 levels: how much the missing end of a kept JPEG can change its pixels, on average
_WHITE = (255, 255, 255, 255)
_JPEG_END = b"\xff\xd9"
_JPEG_RESTARTS = b"\xff\xdd\x00\x04"
_JPEG_FRAME = re.compile(rb"\xff[\xc0-\xc2]\x00.{6}([\x01-\x04])", re.DOTALL)  # up to the number of components
_JPEG_SCAN = re.compile(rb"\xff\xda\x00.([\x01-\x04])", re.DOTALL)
_OTHER_END = bytes(range(1, 255))  # repeated: bytes after the end that give other pixels than none
_SIDE = 512  # pixels, at least, of the smaller copies that are compared
_ADDRESS = re.compile(r"<[^<>]* at 0x[0-9a-f]+>")  # of an object in a message: differs from run to run


class ImageError(ValueError):
    """Bytes that are not a usable image.

    Attributes:
        status: "empty", "not_image", "truncated", "corrupt" or "too_many_pixels", as in `schemas.IMAGE_STATUS`.
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


def check_format(data: bytes) -> str:
    """As `sniff`: what can be said of the bytes without decoding them.

    Raises:
        ImageError: empty or not_image.
    """
    if not data:
        raise ImageError("empty", "no bytes")
    image_format = sniff(data)
    if image_format is None:
        raise ImageError("not_image", f"no JPEG, PNG, GIF or WEBP; starts with {data[:12]!r}")
    return image_format


def decode(data: bytes, max_pixels: int = MAX_PIXELS, *, keep_truncated: bool = False) -> Image.Image:
    """Decode an image wholly to the RGB that transformers' CLIPProcessor makes of it.

    Gray, palette, CMYK and 16-bit images are converted as `Image.convert("RGB")` does; alpha is composited onto white,
    as newer versions of `transformers.image_transforms.convert_to_rgb` do. Of an animation the first frame is taken;
    an EXIF orientation is ignored.

    Args:
        data: the file's bytes; only they determine the format.
        max_pixels: width × height allowed; larger images are refused before they are decoded.
        keep_truncated: decode a JPEG that ends early as browsers do, if what is missing can change its pixels by at
            most `MAX_MISSING` on average: some hundredths of its bytes if they are the last pixels, more if it is
            progressive.

    Returns:
        A loaded image of mode RGB.

    Raises:
        ImageError: empty, of another format, too large, truncated or damaged.
        MissingExtraError: Pillow is not installed.
    """
    with _reporting_damage(data):
        try:
            return _to_rgb(_open(data, max_pixels))
        except Exception as error:
            if not (keep_truncated and sniff(data) == "JPEG" and _ends_early(data, error)):
                raise
        return _to_rgb(_open(_completed(data, max_pixels), max_pixels))


def decode_for_model(data: bytes, max_pixels: int = MAX_PIXELS, *, keep_truncated: bool = False) -> Image.Image:
    """As `decode`; an image with one side over `MAX_ASPECT` times as long as the other is "too_many_pixels" too."""
    image = decode(data, max_pixels, keep_truncated=keep_truncated)
    if max(image.size) > MAX_ASPECT * min(image.size):
        raise ImageError("too_many_pixels", f"{image.width} × {image.height}: too large when resized")
    return image


def check(data: bytes, max_pixels: int = MAX_PIXELS, *, keep_truncated: bool = False) -> tuple[int, int]:
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
        try:
            _to_rgb(image)
        except Exception as error:
            if not (keep_truncated and sniff(data) == "JPEG" and _ends_early(data, error)):
                raise
            _completed(data, max_pixels)
        return size


def _completed(data: bytes, max_pixels: int) -> bytes:
    """A JPEG that ends early, with an end; Pillow's own switch for such files is global, also for other threads.

    How much is missing shows where other bytes after the last one give other pixels.
    """
    from PIL import ImageChops, ImageStat

    data = data.rstrip(b"\xff")  # the first half of a marker or of an escaped byte
    if _JPEG_RESTARTS in data:
        raise ImageError("truncated", "JPEG: the file ends early; with restart markers, what is missing is not known")
    if not _has_every_scan(data):
        raise ImageError("truncated", "JPEG: the file ends early, whole scans are missing")

    def small(end: bytes) -> Image.Image:
        image = _open(data + end, max_pixels)
        image.draft(None, (_SIDE, _SIDE))
        return _to_rgb(image)

    width, height = _open(data, max_pixels).size
    other = _OTHER_END * (width * height // 4 // len(_OTHER_END) + 1)  # enough for an eighth of the pixels, or more
    try:
        difference = ImageChops.difference(small(_JPEG_END), small(other + _JPEG_END))
    except Exception as error:
        raise ImageError("truncated", f"JPEG: the file ends early, in a header: {_message(error)}") from None
    missing = sum(ImageStat.Stat(difference).mean) / 3
    if missing > MAX_MISSING:
        raise ImageError(
            "truncated", f"JPEG: the file ends early; what is missing changes pixels by {missing:.1f} of 255 levels"
        )
    return data + _JPEG_END


def _has_every_scan(data: bytes) -> bool:
    """Whether the last scan of each component of a JPEG has begun; a progressive one has several."""
    frames = list(_JPEG_FRAME.finditer(data))
    if not frames:
        return False
    frame = frames[-1]  # a thumbnail in the metadata has a frame of its own, before
    wanted = set(data[frame.end() :: 3][: frame[1][0]])
    first, last = set[int](), set[int]()  # components whose first and last coefficient have their last bit
    for scan in _JPEG_SCAN.finditer(data, frame.end()):
        parameters = scan.end() + 2 * scan[1][0]
        components = set(data[scan.end() : parameters : 2])
        start, stop, bits = data[parameters : parameters + 3].ljust(3, b"\xff")
        if bits & 15 == 0:
            first |= components if start == 0 else set()
            last |= components if stop == 63 else set()
    return wanted <= first & last


def _ends_early(data: bytes, error: Exception) -> bool:
    if sniff(data) == "WEBP":
        return len(data) < 8 + int.from_bytes(data[4:8], "little")
    return "truncated" in str(error).lower()  # Pillow raises OSError both for damaged and for truncated files


def _open(data: bytes, max_pixels: int) -> ImageFile.ImageFile:
    """An image whose header is read and whose pixels are not."""
    try:
        from PIL import Image
    except ImportError:
        raise missing_extra("pillow", "build", "to decode images") from None

    image_format = check_format(data)
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
        status = "truncated" if _ends_early(data, error) else "corrupt"
        raise ImageError(status, f"{sniff(data)}: {_message(error)}") from None


def _to_rgb(image: ImageFile.ImageFile) -> Image.Image:
    from PIL import Image

    image.load()
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, _WHITE), rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _message(error: BaseException) -> str:
    return " ".join(_ADDRESS.sub("", first_line(error)).split())
