from __future__ import annotations

import contextlib
import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sqid_lib.images import ImageError, check, decode, sniff


def encoded(image: Image.Image, image_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def noise(mode: str, size: tuple[int, int] = (31, 17)) -> Image.Image:
    """An image in which every pixel, and every alpha, differs."""
    raw = "RGB" if mode in ("1", "L") else mode
    pixels = np.random.default_rng(0).bytes(size[0] * size[1] * len(raw))
    return Image.frombytes(raw, size, pixels).convert(mode)


def sixteen_bit() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 65536, (17, 31), np.uint16))


def palette() -> Image.Image:
    return noise("RGB").quantize(64)


IMAGES: dict[str, Callable[[], bytes]] = {
    "jpeg": lambda: encoded(noise("RGB"), "JPEG"),
    "jpeg gray": lambda: encoded(noise("L"), "JPEG"),
    "jpeg cmyk": lambda: encoded(noise("CMYK"), "JPEG"),
    "jpeg progressive": lambda: encoded(noise("RGB"), "JPEG", progressive=True),
    "jpeg turned by exif": lambda: encoded(noise("RGB"), "JPEG", exif=_turned()),
    "png": lambda: encoded(noise("RGB"), "PNG"),
    "png bit": lambda: encoded(noise("1"), "PNG"),
    "png 16 bit": lambda: encoded(sixteen_bit(), "PNG"),
    "png alpha": lambda: encoded(noise("RGBA"), "PNG"),
    "png gray alpha": lambda: encoded(noise("RGBA").convert("LA"), "PNG"),
    "png palette": lambda: encoded(palette(), "PNG"),
    "png palette, one colour clear": lambda: encoded(palette(), "PNG", transparency=3),
    "png palette, alpha per colour": lambda: encoded(palette(), "PNG", transparency=bytes(range(0, 256, 4))),
    "png rgb, one colour clear": lambda: encoded(Image.new("RGB", (9, 9), "red"), "PNG", transparency=(255, 0, 0)),
    "gif": lambda: encoded(palette(), "GIF"),
    "gif clear": lambda: encoded(palette(), "GIF", transparency=3),
    "gif animated": lambda: encoded(palette(), "GIF", save_all=True, append_images=[Image.new("P", (31, 17))]),
    "webp": lambda: encoded(noise("RGB"), "WEBP"),
    "webp lossless alpha": lambda: encoded(noise("RGBA"), "WEBP", lossless=True),
    "webp animated": lambda: encoded(noise("RGB"), "WEBP", save_all=True, append_images=[Image.new("RGB", (31, 17))]),
}


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


@pytest.mark.parametrize("name", IMAGES)
def test_decode_gives_the_rgb_that_clip_processor_sees(name: str) -> None:
    pytest.importorskip("transformers")
    from transformers.image_transforms import convert_to_rgb

    data = IMAGES[name]()
    rgb = decode(data)
    assert rgb.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(rgb), convert_to_rgb(Image.open(io.BytesIO(data)), return_numpy=True))


def test_clear_pixels_become_white_and_gray_stays_gray() -> None:
    assert decode(encoded(Image.new("RGBA", (2, 2), (10, 20, 30, 0)), "PNG")).getpixel((0, 0)) == (255, 255, 255)
    assert decode(encoded(Image.new("L", (2, 2), 77), "PNG")).getpixel((1, 1)) == (77, 77, 77)


def refusal(data: bytes, max_pixels: int = 1_000_000) -> str:
    with pytest.raises(ImageError) as caught:
        decode(data, max_pixels)
    assert "\n" not in caught.value.detail
    assert caught.value.detail
    return caught.value.status


@pytest.mark.parametrize(
    "data",
    [
        b"<html><body>Sorry</body></html>",
        b"version https://git-lfs.github.com/spec/v1\n",
        b"\x00" * 100,
        b"RIFF\x00\x00\x00\x00WAVEfmt ",
        b"%!PS-Adobe-3.0 EPSF-3.0\n",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        encoded(Image.new("RGB", (4, 4)), "BMP"),
        encoded(Image.new("RGB", (4, 4)), "TIFF"),
        encoded(Image.new("RGB", (4, 4)), "ICO"),
    ],
)
def test_other_contents_are_not_images_whatever_pillow_could_open(data: bytes) -> None:
    assert sniff(data) is None
    assert refusal(data) == "not_image"


def test_no_bytes_are_empty() -> None:
    assert refusal(b"") == "empty"


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "GIF", "WEBP"])
@pytest.mark.parametrize("part", [0.02, 0.5, 0.9])
def test_images_that_end_early_are_truncated(image_format: str, part: float) -> None:
    data = encoded(noise("RGB", (200, 200)), image_format)
    assert sniff(data) == image_format
    assert refusal(data[: int(len(data) * part)]) == "truncated"


def test_damage_in_the_pixels_is_found_though_the_header_is_whole() -> None:
    data = bytearray(encoded(noise("RGB", (200, 200)), "PNG"))
    data[len(data) // 2 : len(data) // 2 + 64] = bytes(64)
    assert refusal(bytes(data)) == "corrupt"


def bomb(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(1001, 1000), (10_000, 10_000), (60_000, 60_000), (2**31 - 1, 2**31 - 1)])
def test_too_many_pixels_are_refused_before_decoding(size: tuple[int, int]) -> None:
    assert refusal(bomb(*size)) == "too_many_pixels"


def test_exactly_the_allowed_pixels_pass() -> None:
    assert decode(encoded(Image.new("RGB", (100, 50)), "PNG"), max_pixels=5000).size == (100, 50)
    assert refusal(encoded(Image.new("RGB", (100, 50)), "PNG"), max_pixels=4999) == "too_many_pixels"


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(IMAGES)), st.integers(0, 10_000), st.binary(min_size=1, max_size=16))
def test_damaged_bytes_give_an_image_or_a_status_and_nothing_else(name: str, at: int, junk: bytes) -> None:
    data = bytearray(IMAGES[name]())
    at %= len(data)
    data[at : at + len(junk)] = junk
    assert verdict(check, bytes(data)) == verdict(lambda *a: decode(*a).size, bytes(data))


def verdict(judge: Callable[[bytes, int], tuple[int, int]], data: bytes) -> tuple[int, int] | str:
    try:
        return judge(data, 100_000)
    except ImageError as error:
        assert error.status in {"empty", "not_image", "truncated", "corrupt", "too_many_pixels"}
        return error.status


@pytest.mark.parametrize("name", IMAGES)
def test_check_gives_the_size_that_decode_gives(name: str) -> None:
    data = IMAGES[name]()
    assert check(data) == decode(data).size


@pytest.mark.parametrize("part", [0.02, 0.3, 0.6, 0.9, 0.99])
@pytest.mark.parametrize("progressive", [False, True])
def test_check_finds_truncated_jpegs(part: float, progressive: bool) -> None:
    data = encoded(noise("RGB", (300, 200)), "JPEG", progressive=progressive)
    with pytest.raises(ImageError, match="truncated"):
        check(data[: int(len(data) * part)])


# -- truncated JPEGs that are kept ----------------------------------------------------------------------------------


def photo(size: tuple[int, int] = (300, 200), **options: Any) -> bytes:
    """A JPEG with large plain areas, as product images have."""
    image = Image.new("RGB", size, "white")
    image.paste(Image.radial_gradient("L").convert("RGB").resize((size[0] // 2, size[1] // 2)), (20, 60))
    return encoded(image, "JPEG", **options)


JPEGS: dict[str, Callable[[], bytes]] = {
    "noise": lambda: encoded(noise("RGB", (300, 200)), "JPEG"),
    "photo": photo,
    "progressive": lambda: photo(progressive=True),
    "gray": lambda: encoded(noise("L", (300, 200)), "JPEG"),
    "CMYK": lambda: encoded(noise("CMYK", (300, 200)), "JPEG"),
    "4:4:4": lambda: encoded(noise("RGB", (300, 200)), "JPEG", subsampling=0),
}


@pytest.mark.parametrize("name", JPEGS)
@pytest.mark.parametrize("missing", [1, 2, 3, 4, 6])
def test_a_jpeg_that_lacks_a_few_bytes_is_kept_where_it_is_asked_for(name: str, missing: int) -> None:
    whole = JPEGS[name]()
    data = whole[:-missing]
    assert refusal(data) == "truncated"
    rgb = decode(data, keep_truncated=True)
    assert check(data, keep_truncated=True) == rgb.size == (300, 200)
    changed = np.abs(np.asarray(rgb).astype(int) - np.asarray(decode(whole)))
    assert changed.mean() <= 0.5
    assert (changed > 0).any(axis=2).mean() <= 0.02
    if missing <= 2:  # the end marker alone
        assert not changed.any()


@pytest.mark.parametrize("name", JPEGS)
@pytest.mark.parametrize("part", [0.1, 0.3, 0.5, 0.7])
def test_a_jpeg_that_lacks_much_is_never_kept(name: str, part: float) -> None:
    whole = JPEGS[name]()
    data = whole[: int(len(whole) * part)]
    for judge in (check, decode):
        with pytest.raises(ImageError) as refused:
            judge(data, keep_truncated=True)
        assert refused.value.status in {"truncated", "corrupt"}  # corrupt: not even the size is there


def test_a_progressive_jpeg_that_ends_between_two_scans_is_never_kept() -> None:
    whole = photo(progressive=True)
    scans = [at for at in range(len(whole)) if whole.startswith(b"\xff\xda", at)]
    assert len(scans) > 5
    for at in scans[1:]:
        with pytest.raises(ImageError, match="truncated: JPEG: the file ends early"):
            decode(whole[:at], keep_truncated=True)


def test_a_jpeg_with_a_thumbnail_is_judged_by_its_own_scans() -> None:
    exif = Image.Exif()
    exif[0x9286] = photo((64, 64))  # a comment that is a JPEG
    whole = photo(progressive=True, exif=exif)
    assert decode(whole[:-3], keep_truncated=True).size == (300, 200)
    at = [at for at in range(len(whole)) if whole.startswith(b"\xff\xda", at)][-1]
    with pytest.raises(ImageError, match="whole scans are missing"):
        decode(whole[:at], keep_truncated=True)


@pytest.mark.parametrize("name", JPEGS)
def test_no_place_of_the_cut_lets_a_jpeg_through_that_differs_much(name: str) -> None:
    whole = JPEGS[name]()
    pixels = np.asarray(decode(whole)).astype(int)
    kept = 0
    for end in range(len(whole) - 2, 300, -max(1, len(whole) // 300)):
        with contextlib.suppress(ImageError):
            rgb = decode(whole[:end], keep_truncated=True)
            assert np.abs(np.asarray(rgb) - pixels).mean() < 1.5
            kept += 1
    assert 1 <= kept < 100


def test_a_jpeg_with_nothing_but_its_header_is_never_kept() -> None:
    whole = photo((1000, 1000))
    data = whole[: whole.index(b"\xff\xda") + 20]
    with pytest.raises(ImageError, match=r"ends early; what is missing changes pixels by \d\d\.\d of 255 levels"):
        decode(data, keep_truncated=True)


def test_a_jpeg_with_restart_markers_is_never_kept() -> None:
    data = encoded(noise("RGB", (300, 200)), "JPEG", restart_marker_rows=1)[:-100]
    with pytest.raises(ImageError, match="restart markers"):
        decode(data, keep_truncated=True)


@pytest.mark.parametrize("name", ["png", "gif", "webp"])
def test_only_jpegs_are_kept(name: str) -> None:
    data = IMAGES[name]()
    with pytest.raises(ImageError, match="truncated"):
        decode(data[: len(data) // 2], keep_truncated=True)


def test_keeping_changes_nothing_for_whole_images_and_for_damage() -> None:
    for make in IMAGES.values():
        np.testing.assert_array_equal(np.asarray(decode(make(), keep_truncated=True)), np.asarray(decode(make())))
    for data in (b"", b"<html>", b"\xff\xd8\xff", bomb(60_000, 60_000)):
        assert verdict(lambda d, n: check(d, n, keep_truncated=True), data) == verdict(check, data)


def test_a_truncated_jpeg_with_too_many_pixels_is_refused_as_such() -> None:
    with pytest.raises(ImageError, match="too_many_pixels"):
        decode(photo()[:-2], max_pixels=1000, keep_truncated=True)
