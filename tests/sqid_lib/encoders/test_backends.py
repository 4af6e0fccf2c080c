"""Encoders of open_clip and sentence-transformers: what the libraries' own functions give; what is refused."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from encoder_fixtures import ODD_IMAGES, ODD_TEXTS, WORDS, write_clip

from sqid_lib import load_encoder
from sqid_lib.encoders.loading import content_revision
from sqid_lib.errors import EncoderError, MissingExtraError, UsageError

needs_open_clip = pytest.mark.skipif(importlib.util.find_spec("open_clip") is None, reason="open_clip_torch")
needs_sentences = pytest.mark.skipif(importlib.util.find_spec("sentence_transformers") is None, reason="sbert")
OPEN_CLIP_CONFIG: dict[str, Any] = {
    "model_cfg": {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 2},
    },
    "preprocess_cfg": {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3], "interpolation": "bicubic"},
}


def relative(found: Any, expected: Any) -> float:
    """The largest difference of a row, as a share of that row's largest value."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    return float((np.abs(found - expected).max(axis=1) / np.abs(expected).max(axis=1)).max())


# -- open_clip -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def open_clip_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of open_clip, as its own `push_to_hf_hub` lays it out."""
    import torch
    from open_clip.model import CLIP
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("open_clip")
    (folder / "open_clip_config.json").write_text(json.dumps(OPEN_CLIP_CONFIG))
    torch.manual_seed(3)
    model = CLIP(**OPEN_CLIP_CONFIG["model_cfg"])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder


@needs_open_clip
def test_open_clip_gives_the_vectors_of_open_clip(open_clip_model: Path) -> None:
    import open_clip
    import torch

    encoder = load_encoder(str(open_clip_model), device="cpu", backend="open_clip")
    assert (encoder.width, encoder.text_limit, encoder.has_images, encoder.linear) == (24, 32, True, "plain")
    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{open_clip_model}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{open_clip_model}")
    model.eval()
    images = list(ODD_IMAGES.values())
    with torch.inference_mode():  # one by one
        texts = [model.encode_text(tokenizer([text]))[0].numpy() for text in ODD_TEXTS]
        pictures = [model.encode_image(preprocess(image)[None])[0].numpy() for image in images]
    assert relative(encoder.encode_text(ODD_TEXTS), texts) < 1e-5
    assert relative(encoder.encode_images(images, batch_size=3), pictures) < 1e-5
    assert not np.allclose(texts[0], texts[2])


@needs_open_clip
def test_a_pickle_beside_the_weights_of_open_clip_is_not_loaded(open_clip_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(open_clip_model, tmp_path / "model")
    (folder / "open_clip_pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    expected = load_encoder(str(open_clip_model), device="cpu", backend="open_clip").encode_text(["lamp"])
    found = load_encoder(str(folder), device="cpu", backend="open_clip").encode_text(["lamp"])
    np.testing.assert_array_equal(found, expected)


def change_config(folder: Path, part: str, **values: Any) -> None:
    path = folder / "open_clip_config.json"
    config = json.loads(path.read_text())
    (config["model_cfg"][part] if part else config["model_cfg"]).update(values)
    path.write_text(json.dumps(config))


def only_a_pickle(folder: Path) -> None:
    (folder / "open_clip_model.safetensors").rename(folder / "open_clip_pytorch_model.bin")


@needs_open_clip
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (only_a_pickle, r"no safetensors weights.*open_clip_pytorch_model\.bin.*never loaded"),
        (lambda f: (f / "open_clip_config.json").unlink(), r"open_clip_config\.json is missing"),
        (lambda f: (f / "open_clip_config.json").write_text("[]"), "holds no JSON object"),
        (lambda f: (f / "open_clip_config.json").write_text("{}"), "has no model_cfg"),
        (lambda f: change_config(f, "text_cfg", layers=3), "the model cannot be loaded"),
        (lambda f: change_config(f, "text_cfg", layers=10**6), "more modules than there are weights"),
        (lambda f: change_config(f, "text_cfg", width=10**6), "larger modules than the weights have"),
        (lambda f: change_config(f, "text_cfg", hf_model_name="a/b"), "from another repo"),
        (lambda f: change_config(f, "vision_cfg", timm_model_name="hf-hub:a/b"), "from elsewhere"),
        (lambda f: change_config(f, "text_cfg", tokenizer_kwargs={"trust_remote_code": True}), "from elsewhere"),
        (lambda f: (f / "open_clip_model.safetensors").write_bytes(b"\xff" * 100), "file is truncated"),
    ],
)
def test_models_of_open_clip_that_are_refused(
    open_clip_model: Path, tmp_path: Path, damage: Callable[[Path], Any], message: str
) -> None:
    folder = shutil.copytree(open_clip_model, tmp_path / "model")
    damage(folder)
    with pytest.raises(EncoderError, match=message):
        load_encoder(str(folder), device="cpu", backend="open_clip")


# -- sentence-transformers -----------------------------------------------------------------------------------------


def write_sentence_bert(folder: Path, **settings: Any) -> Path:
    """A random text-only model of two layers, mean pooling and a dense layer."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Dense, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling
    from transformers import BertConfig, BertModel, BertTokenizerFast

    bert = folder.parent / f"{folder.name}-bert"
    bert.mkdir(parents=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys(WORDS), *"abcdefgh", "query", ":"]
    (bert / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(str(bert / "vocab.txt")).save_pretrained(bert)
    torch.manual_seed(5)
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=40, **size)).save_pretrained(bert)
    modules = [Transformer(str(bert), max_seq_length=24), Pooling(16), Dense(16, 10)]
    SentenceTransformer(modules=modules, device="cpu", **settings).save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def sentence_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sentence_bert(tmp_path_factory.mktemp("models") / "sentences")


@needs_sentences
def test_a_model_of_texts_gives_what_encode_gives(sentence_bert: Path) -> None:
    from sentence_transformers import SentenceTransformer

    encoder = load_encoder(str(sentence_bert), device="cpu", backend="sentence-transformers")
    assert (encoder.width, encoder.text_limit, encoder.has_images) == (10, 24, False)
    model = SentenceTransformer(str(sentence_bert), device="cpu")
    expected = [model.encode(text) for text in ODD_TEXTS]
    assert relative(encoder.encode_text(ODD_TEXTS), expected) < 1e-5
    assert not np.allclose(expected[0], expected[4])
    with pytest.raises(EncoderError, match="encodes texts only"):
        encoder.encode_images(list(ODD_IMAGES.values()))


@needs_sentences
def test_the_default_prompt_is_used_as_encode_does(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    folder = write_sentence_bert(tmp_path / "m", prompts={"query": "query: "}, default_prompt_name="query")
    model = SentenceTransformer(str(folder), device="cpu")
    found = load_encoder(str(folder), device="cpu", backend="sentence-transformers").encode_text(["oak lamp"])
    assert relative(found, [model.encode("oak lamp")]) < 1e-5
    assert relative(found, [model.encode("oak lamp", prompt="")]) > 1e-3


@pytest.fixture(scope="module")
def sentence_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from sentence_transformers import SentenceTransformer

    root = tmp_path_factory.mktemp("models")
    SentenceTransformer(str(write_clip(root / "clip")), device="cpu").save_pretrained(str(root / "sentences"))
    return root / "sentences"


@needs_sentences
def test_a_multimodal_model_gives_what_encode_gives(sentence_clip: Path) -> None:
    from sentence_transformers import SentenceTransformer

    encoder = load_encoder(str(sentence_clip), device="cpu", backend="sentence-transformers")
    assert encoder.has_images
    model = SentenceTransformer(str(sentence_clip), device="cpu")
    images = [image.convert("RGB") for image in ODD_IMAGES.values() if min(image.size) > 1]
    assert relative(encoder.encode_text(ODD_TEXTS), [model.encode(text) for text in ODD_TEXTS]) < 1e-5
    assert relative(encoder.encode_images(images, batch_size=3), [model.encode([i])[0] for i in images]) < 1e-5


def own_class(folder: Path) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["type"] = "os.system"
    (folder / "modules.json").write_text(json.dumps(modules))


def pickled_dense(folder: Path) -> None:
    [weights] = folder.glob("2_*/model.safetensors")
    weights.rename(weights.with_name("pytorch_model.bin"))


def remote_code(folder: Path) -> None:
    path = folder / "sentence_bert_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_args": {"trust_remote_code": True}}))


@needs_sentences
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (own_class, r"needs code of its own.*got os\.system"),
        (pickled_dense, r"no safetensors weights.*pytorch_model\.bin.*never loaded"),
        (remote_code, "asks for code of its own"),
        (lambda f: (f / "modules.json").unlink(), r"modules\.json is missing"),
        (lambda f: (f / "modules.json").write_text("{}"), "holds no list of modules"),
        (lambda f: (f / "model.safetensors").unlink(), "missing|cannot be loaded"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 99), "file is truncated"),
    ],
)
def test_models_of_sentence_transformers_that_are_refused(
    sentence_bert: Path, tmp_path: Path, damage: Callable[[Path], Any], message: str
) -> None:
    folder = shutil.copytree(sentence_bert, tmp_path / "model")
    damage(folder)
    with pytest.raises(EncoderError, match=message):
        load_encoder(str(folder), device="cpu", backend="sentence-transformers")


# -- all -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backend", "name"),
    [
        ("transformers", "model.safetensors"),
        ("open_clip", "open_clip_model.safetensors"),
        ("sentence-transformers", "2_Dense/model.safetensors"),
    ],
)
def test_the_revision_follows_the_files_that_are_loaded(tmp_path: Path, backend: str, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"1")
    (tmp_path / "onnx").mkdir()
    before = content_revision(tmp_path, backend)
    (tmp_path / "README.md").write_text("x")
    (tmp_path / "onnx" / "config.json").write_text("x")
    (tmp_path / "pytorch_model.bin").write_text("x")
    assert content_revision(tmp_path, backend) == before
    (tmp_path / name).write_bytes(b"2")
    assert content_revision(tmp_path, backend) != before


def test_an_unknown_backend_and_one_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="unknown backend; expected transformers or open_clip"):
        load_encoder(str(tmp_path), backend="clip")
    for module, backend, extra in (
        ("open_clip", "open_clip", "open-clip"),
        ("sentence_transformers", "sentence-transformers", "sbert"),
    ):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(MissingExtraError, match=rf"sqid\[{extra}\]"):
            load_encoder(str(tmp_path), backend=backend)
