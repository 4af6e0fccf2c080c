"""sqid_lib.encoders.image_inputs: what encode_images takes, and what it refuses by number and reason."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from encoder_fixtures import ODD_IMAGES, encoded, make_image, write_clip
from PIL import Image

from sqid_lib import images
from sqid_lib.encoders import Encoder, load_encoder
from sqid_lib.errors import CorruptFileError, EmptyFileError, MissingFileError, UsageError

PHOTO, GREY, CLEAR = ODD_IMAGES["large"], ODD_IMAGES["grey"], ODD_IMAGES["alpha"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return load_encoder(str(write_clip(tmp_path_factory.mktemp("clip"))), device="cpu")


@pytest.fixture(scope="module")
def png(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "photo, of? a #shoe.png"
    path.write_bytes(encoded(PHOTO))
    return path


KINDS: dict[str, Any] = {
    "path": lambda png: png,
    "string": str,
    "bytes": lambda png: png.read_bytes(),
    "bytearray": lambda png: bytearray(png.read_bytes()),
    "memoryview": lambda png: memoryview(png.read_bytes()),
    "image": lambda png: PHOTO,
    "image not yet read": Image.open,
    "array": lambda png: np.asarray(PHOTO),
    "array, not contiguous": lambda png: np.asarray(PHOTO)[::-1][::-1],
    "tensor": lambda png: torch.from_numpy(np.array(PHOTO)),
    "tensor, permuted": lambda png: torch.from_numpy(np.array(PHOTO)).permute(2, 0, 1).contiguous().permute(1, 2, 0),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_image_gives_the_same_vector_alone_and_in_a_list(encoder: Encoder, png: Path, kind: str) -> None:
    expected = encoder.encode_images([PHOTO])
    assert expected.shape == (1, 32)
    assert np.array_equal(encoder.encode_images(KINDS[kind](png)), expected)
    assert np.array_equal(encoder.encode_images([KINDS[kind](png)]), expected)
    assert np.array_equal(np.concatenate(list(encoder.image_batches(KINDS[kind](png)))), expected)


@pytest.mark.parametrize(
    ("array", "image"),
    [
        (np.asarray(GREY), GREY),
        (np.asarray(GREY)[:, :, None], GREY),
        (np.asarray(CLEAR), CLEAR),
        (torch.from_numpy(np.array(GREY)), GREY),
    ],
)
def test_grey_and_transparent_arrays_are_as_the_images_of_pillow(encoder: Encoder, array: Any, image: Any) -> None:
    assert np.array_equal(encoder.encode_images(array), encoder.encode_images([image]))


def test_an_array_of_four_dimensions_is_a_list(encoder: Encoder) -> None:
    three = [make_image(seed) for seed in range(3)]
    stacked = np.stack([np.asarray(image) for image in three])
    expected = encoder.encode_images(three)
    for batch in (stacked, torch.from_numpy(stacked), (image for image in stacked)):
        assert np.array_equal(encoder.encode_images(batch), expected)


def test_a_list_may_mix_kinds(encoder: Encoder, png: Path) -> None:
    vectors = encoder.encode_images([png, PHOTO, png.read_bytes(), np.asarray(PHOTO), str(png)])
    assert np.allclose(vectors, vectors[0], rtol=1e-4, atol=1e-5)
    assert vectors.shape == (5, 32)


def test_a_path_below_the_home_directory(encoder: Encoder, png: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(png.parent))
    assert np.array_equal(encoder.encode_images(f"~/{png.name}"), encoder.encode_images(PHOTO))


def test_what_decode_returns_may_be_of_any_kind(encoder: Encoder, png: Path) -> None:
    kept: dict[str, Any] = {"path": png, "bytes": png.read_bytes(), "none": None}
    vectors = encoder.encode_images(kept.keys(), decode=lambda name: kept[name])
    assert np.allclose(vectors[0], vectors[1], rtol=1e-4, atol=1e-5)
    assert np.isnan(vectors[2]).all()


PIXELS = np.zeros((8, 6, 3), np.uint8)
NOT_IMAGES = {
    "None": (None, r"images\[1\]: not an image; expected .*a path.*, got None"),
    "number": (7, r"images\[1\]: not an image; expected .*, got int"),
    "list": ([1, 2], r"images\[1\]: not an image; expected .*, got list"),
    "URL": (
        "https://example.org/a.jpg",
        r"images\[1\]: a URL is not downloaded here; got https://example\.org/a\.jpg\. Dow",
    ),
    "CHW": (
        PIXELS.transpose(2, 0, 1),
        r"the channels come first; expected .*\[H, W, C\].*got uint8 \[3, 8, 6\]\. Use array\.",
    ),
    "CHW tensor": (
        torch.zeros(3, 8, 6, dtype=torch.uint8),
        r"the channels come first;.*got uint8 \[3, 8, 6\]\..*tensor\.permute",
    ),
    "float": (
        PIXELS / np.float32(255),
        r"does not hold bytes; expected uint8.*got float32 \[8, 6, 3\]\. Pass values of 0",
    ),
    "float tensor": (torch.zeros(3, 8, 6), r"does not hold bytes; expected uint8.*got float32 \[3, 8, 6\]"),
    "bfloat16": (torch.zeros(8, 6, 3, dtype=torch.bfloat16), r"does not hold bytes; .*got bfloat16"),
    "bool": (np.zeros((8, 6), bool), r"does not hold bytes; .*got bool"),
    "two channels": (np.zeros((8, 6, 2), np.uint8), r"the last axis is not the channels; .*got uint8 \[8, 6, 2\]"),
    "one axis": (np.zeros(8, np.uint8), r"not one image; .*got uint8 \[8\]"),
    "no pixels": (np.zeros((0, 6, 3), np.uint8), r"not one image; .*got uint8 \[0, 6, 3\]"),
    "no pixels of Pillow": (Image.new("RGB", (0, 5)), r"images\[1\]: an image without pixels; got 0 × 5"),
    "a line": (np.zeros((1, 501, 3), np.uint8), r"images\[1\]: one side is over 500 times.*got 501 × 1"),
}


@pytest.mark.parametrize("name", NOT_IMAGES)
def test_what_is_no_image_is_refused_by_its_number(encoder: Encoder, name: str) -> None:
    item, message = NOT_IMAGES[name]
    with pytest.raises(UsageError, match=message):
        encoder.encode_images([PHOTO, item])


@pytest.mark.parametrize("given", [None, 3, {"a": 1}, {"b"}])
def test_what_is_no_list_of_images_is_refused(encoder: Encoder, given: Any) -> None:
    with pytest.raises(UsageError, match=f"images: cannot be encoded; expected a list.*got {type(given).__name__[:4]}"):
        encoder.encode_images(given)


def test_files_that_cannot_be_used(encoder: Encoder, png: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "page.jpg").write_bytes(b"<html>")
    (tmp_path / "half.png").write_bytes(png.read_bytes()[:-500])
    (tmp_path / "bitmap.bmp").write_bytes(encoded(PHOTO, "BMP"))
    cases = {
        "none.jpg": (MissingFileError, r"images\[0\], '.*none\.jpg': no such file\. Check the path"),
        "x" * 5000: (MissingFileError, "cannot be read: .*too long"),
        "a\0b": (MissingFileError, "no such file|null"),
        "pipe": (MissingFileError, "not a file"),
        ".": (MissingFileError, "not a file"),
        "empty.jpg": (EmptyFileError, r"images\[0\], '.*empty\.jpg': no bytes"),
        "page.jpg": (CorruptFileError, r"page\.jpg': no JPEG, PNG, GIF or WEBP.*got not_image"),
        "half.png": (CorruptFileError, r"half\.png': .*got truncated"),
        "bitmap.bmp": (CorruptFileError, "got not_image"),
    }
    for name, (error, message) in cases.items():
        with pytest.raises(error, match=message):
            encoder.encode_images([f"{tmp_path}/{name}"])
    with pytest.raises(CorruptFileError, match=r"images\[2\]: .*not_image"):
        encoder.encode_images([png, png, b"no image"])
    with (
        Image.open(tmp_path / "half.png") as half,
        pytest.raises(CorruptFileError, match=r"images\[0\]: the image cannot be decoded"),
    ):
        encoder.encode_images(half)


def test_too_many_pixels_are_refused_before_they_are_decoded(
    encoder: Encoder, png: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images.decode, "__defaults__", (1000,))
    with pytest.raises(CorruptFileError, match=r"640 × 480 pixels.*got too_many_pixels"):
        encoder.encode_images(png)


# -- progress ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("progress", "shown"), [(True, True), (False, False), (None, False)])
def test_progress_is_shown_when_asked_for(
    encoder: Encoder, capsys: pytest.CaptureFixture[str], progress: bool | None, shown: bool
) -> None:
    encoder.encode_images([PHOTO, GREY, CLEAR], batch_size=2, progress=progress)
    out, err = capsys.readouterr()
    assert out == ""
    assert ("3/3" in err) == shown


def test_progress_of_a_generator_counts_without_a_total(encoder: Encoder, capsys: pytest.CaptureFixture[str]) -> None:
    encoder.encode_images((image for image in [PHOTO, GREY]), progress=True)
    assert "2image" in capsys.readouterr().err
