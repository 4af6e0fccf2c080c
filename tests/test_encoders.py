"""sqid_lib.encoders: exactly CLIP, whatever comes in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from encoder_fixtures import ODD_PICTURES, ODD_TEXTS, write_clip

from sqid_lib.encoders import Encoder, load_encoder
from sqid_lib.errors import EncoderError, UsageError


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def encoder(clip: Path) -> Encoder:
    return load_encoder(str(clip), device="cpu")


def row_by_row(clip: Path, texts: list[str], images: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    """The snippet of the published README: CLIPModel + CLIPProcessor, one input at a time."""
    import torch
    from transformers import CLIPModel, CLIPProcessor

    model, processor = CLIPModel.from_pretrained(clip), CLIPProcessor.from_pretrained(clip)

    def vector(out: Any) -> np.ndarray:
        row: np.ndarray = (out if isinstance(out, torch.Tensor) else out.pooler_output)[0].numpy()
        return row

    with torch.inference_mode():
        text = [
            vector(model.get_text_features(**processor(text=[t], truncation=True, return_tensors="pt"))) for t in texts
        ]
        image = [vector(model.get_image_features(**processor(images=i, return_tensors="pt"))) for i in images]
    return np.stack(text), np.stack(image)


def relative(a: np.ndarray, b: np.ndarray) -> float:
    """Largest difference of a row, relative to the row's norm."""
    return float((np.linalg.norm(a - b, axis=1) / np.linalg.norm(b, axis=1)).max())


def test_equals_row_by_row(clip: Path, encoder: Encoder) -> None:
    texts, images = row_by_row(clip, ODD_TEXTS, list(ODD_PICTURES.values()))
    assert relative(encoder.encode_text(ODD_TEXTS, batch_size=2), texts) < 1e-5
    assert relative(encoder.encode_images(ODD_PICTURES.values(), batch_size=2), images) < 1e-5
    assert texts.std(axis=0).min() > 0.01  # the inputs do tell themselves apart
    assert images.std(axis=0).min() > 0.01


def test_shapes(encoder: Encoder) -> None:
    for vectors in (encoder.encode_text(["a"]), encoder.encode_images([ODD_PICTURES["tall"]])):
        assert vectors.shape == (1, 32)
        assert vectors.dtype == np.float32
    assert encoder.encode_text([]).shape == encoder.encode_images([]).shape == (0, 32)
    assert encoder.width == 32
    assert encoder.text_limit == 77


def test_one_string_is_not_a_list(encoder: Encoder) -> None:
    with pytest.raises(UsageError, match="list of strings"):
        encoder.encode_text("red shoes")


def test_a_picture_that_does_not_decode_is_nan(encoder: Encoder) -> None:
    pictures = list(ODD_PICTURES.items())
    vectors = encoder.encode_images(pictures, decode=lambda item: None if item[0] == "wide" else item[1])
    assert [bool(np.isnan(row).all()) for row in vectors] == [name == "wide" for name, _ in pictures]


def test_an_error_of_decode_is_the_callers(encoder: Encoder) -> None:
    def decode(_: object) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        encoder.encode_images([1, 2, 3], decode=decode)


def test_revision_of_a_directory_is_its_content(clip: Path, encoder: Encoder, tmp_path: Path) -> None:
    copy = write_clip(tmp_path / "same")
    assert load_encoder(str(copy)).revision == encoder.revision
    assert load_encoder(str(write_clip(tmp_path / "other", seed=1))).revision != encoder.revision
    assert encoder.revision.startswith("local-")


def test_no_model(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match=r"no such model directory.*Hub id"):
        load_encoder(str(tmp_path / "nowhere"))
    with pytest.raises(EncoderError, match=r"config\.json is missing"):
        load_encoder(str(tmp_path))


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    folder = write_clip(tmp_path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(EncoderError, match=r"no safetensors weights.*pytorch_model\.bin"):
        load_encoder(str(folder))


def test_remote_code_is_refused(tmp_path: Path) -> None:
    folder = write_clip(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModel": "mine.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(EncoderError, match="cannot be loaded"):
        load_encoder(str(folder))
    assert not (tmp_path / "ran").exists()


def test_truncated_weights_are_refused(tmp_path: Path) -> None:
    folder = write_clip(tmp_path)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(EncoderError, match="cannot be loaded"):
        load_encoder(str(folder))


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    folder = write_clip(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 3
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(EncoderError, match="do not fit the config"):
        load_encoder(str(folder))


def test_unknown_dtype_and_device(clip: Path) -> None:
    with pytest.raises(UsageError, match="float32 or bfloat16 or float16"):
        load_encoder(str(clip), dtype="int8")
    with pytest.raises(UsageError, match="no such device"):
        load_encoder(str(clip), device="toaster")
