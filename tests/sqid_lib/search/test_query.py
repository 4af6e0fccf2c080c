"""What can be searched for: texts, vectors, images from paths, bytes and PIL; what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encoder_fixtures import encoded, make_image

from sqid_lib.errors import CorruptFileError, MissingFileError, SourceError, UsageError
from sqid_lib.search import query as module
from sqid_lib.search.query import query_vectors

WIDTH = 4


class Recorder:
    """Records what it is asked to encode; the vector is the length of a text, or the size of an image."""

    model_id, revision, width = "recorder", "1", WIDTH

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def encode_text(self, texts: Any) -> Any:
        self.seen += texts
        return np.full((len(texts), WIDTH), 2.0, np.float32)

    def encode_images(self, images: Any) -> Any:
        self.seen += [image.size for image in images]
        return np.tile(np.array([3, 0, 0, 0], np.float32), (len(images), 1))


def refuse() -> Any:
    raise AssertionError("no encoder is needed")


def test_a_text_and_an_image_are_two_unit_vectors() -> None:
    recorder = Recorder()
    found = query_vectors("red", make_image(1, (7, 5)), WIDTH, lambda: recorder)
    assert recorder.seen == ["red", (7, 5)]
    assert found.tolist() == [[0.5] * 4, [1, 0, 0, 0]]


@pytest.mark.parametrize("as_bytes", [True, False])
def test_an_image_file_is_decoded(tmp_path: Path, as_bytes: bool) -> None:
    recorder, data = Recorder(), encoded(make_image(2, (9, 6), "RGBA"))
    (tmp_path / "photo.png").write_bytes(data)
    query_vectors(None, data if as_bytes else tmp_path / "photo.png", WIDTH, lambda: recorder)
    assert recorder.seen == [(9, 6)]


def test_vectors_need_no_encoder() -> None:
    found = query_vectors(np.array([0, 2, 0, 0]), np.array([0, 0, 0.5, 0]), WIDTH, refuse)
    assert found.tolist() == [[0, 1, 0, 0], [0, 0, 1, 0]]


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("靴 👟 rouge\u0301", "靴 👟 rouge\u0301"),
        ("red\udcff shoe", "red\ufffd shoe"),
        ("\ud83d\udc5f", "👟"),
        ("  red  ", "  red  "),
        ("\u202eder", "\u202eder"),
    ],
)
def test_odd_text_reaches_the_encoder_as_unicode(text: str, seen: str) -> None:
    recorder = Recorder()
    query_vectors(text, None, WIDTH, lambda: recorder)
    assert recorder.seen == [seen]


@pytest.mark.parametrize("text", ["", "   ", "\n\t", "\u3000"])
def test_an_empty_text_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="empty"):
        query_vectors(text, None, WIDTH, refuse)


@pytest.mark.parametrize(
    ("query", "image"),
    [
        (np.array([1.0, 1e39, 0, 0]), None),  # not a number of 32 bits
        (None, None),
        (np.zeros(3), None),
        (np.zeros((1, 4)), None),
        (np.array([1, 2, np.nan, 0]), None),
        (np.array(list("abcd")), None),
        (["red"], None),
        (None, 7),
        (None, np.zeros(5)),
    ],
)
def test_other_things_are_refused(query: Any, image: Any) -> None:
    with pytest.raises(UsageError):
        query_vectors(query, image, WIDTH, Recorder)


def test_an_unusable_image_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = tmp_path / "page.jpg"
    text.write_text("<html>")
    cut = tmp_path / "cut.png"
    cut.write_bytes(encoded(make_image(1))[:200])
    empty = tmp_path / "empty.png"
    empty.touch()
    for path, status in ((text, "not_image"), (cut, "truncated"), (empty, "empty")):
        with pytest.raises(CorruptFileError, match=status) as caught:
            query_vectors(None, path, WIDTH, Recorder)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    for path in (tmp_path / "nowhere.png", tmp_path, Path("/dev/zero")):
        with pytest.raises(MissingFileError, match=str(path)):
            query_vectors(None, path, WIDTH, Recorder)
    monkeypatch.setattr(module, "MAX_IMAGE_BYTES", 100)
    with pytest.raises(SourceError, match="too large"):
        query_vectors(None, cut, WIDTH, Recorder)


def test_a_url_is_not_read() -> None:
    with pytest.raises(MissingFileError, match="on this machine"):
        query_vectors(None, "https://photos.example/1.jpg", WIDTH, Recorder)
