"""sqid_lib.encoders: exactly CLIP, whatever comes in."""

from __future__ import annotations

import importlib.util
import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from encoder_families import FAMILIES, write_family
from encoder_fixtures import ODD_IMAGES, ODD_TEXTS, write_clip

from sqid_lib.encoders import Encoder, load_encoder
from sqid_lib.errors import EncoderError, MissingExtraError, UsageError


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
    texts, images = row_by_row(clip, ODD_TEXTS, list(ODD_IMAGES.values()))
    assert relative(encoder.encode_text(ODD_TEXTS, batch_size=2), texts) < 1e-5
    assert relative(encoder.encode_images(ODD_IMAGES.values(), batch_size=2), images) < 1e-5
    assert texts.std(axis=0).min() > 0.01  # the inputs do differ
    assert images.std(axis=0).min() > 0.01


def test_shapes(encoder: Encoder) -> None:
    for vectors in (encoder.encode_text(["a"]), encoder.encode_images([ODD_IMAGES["tall"]])):
        assert vectors.shape == (1, 32)
        assert vectors.dtype == np.float32
    assert encoder.encode_text([]).shape == encoder.encode_images([]).shape == (0, 32)
    assert encoder.width == 32
    assert encoder.text_limit == 77


def test_repr_is_one_short_line(clip: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    short = encoder.revision[:13]
    assert repr(encoder) == f"Encoder({str(clip)!r}, revision={short!r}, device='cpu', dtype='float32', width=32)"
    monkeypatch.setattr(encoder, "model_id", "ORG/clip")
    monkeypatch.setattr(encoder, "revision", COMMIT)
    assert repr(encoder) == "Encoder('ORG/clip', revision='0123456', device='cpu', dtype='float32', width=32)"


def test_an_image_that_does_not_decode_is_nan(encoder: Encoder) -> None:
    images = list(ODD_IMAGES.items())
    vectors = encoder.encode_images(images, decode=lambda item: None if item[0] == "wide" else item[1])
    assert [bool(np.isnan(row).all()) for row in vectors] == [name == "wide" for name, _ in images]


@pytest.mark.parametrize("batch_size", [1, 2, None])
def test_batches_of_texts_hold_the_vectors_of_the_whole(encoder: Encoder, batch_size: int | None) -> None:
    texts = list(dict.fromkeys(ODD_TEXTS))
    batches = encoder.text_batches(texts, batch_size=batch_size)
    assert sorted(row for rows in batches.rows for row in rows) == list(range(len(texts)))
    whole = encoder.encode_text(texts, batch_size=batch_size)
    for rows, vectors in zip(batches.rows, batches.vectors, strict=True):
        assert np.array_equal(vectors, whole[rows])


@pytest.mark.parametrize("on_gpu", [False, True])
def test_batches_of_images_hold_the_vectors_of_the_whole(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch, on_gpu: bool
) -> None:
    monkeypatch.setattr(Encoder, "on_gpu", property(lambda self: on_gpu))
    images = [*ODD_IMAGES.items()][:5]

    def decode(item: tuple[str, Any]) -> Any:
        return None if item[0] in dict(images[2:4]) else item[1]

    parts = list(encoder.image_batches(images, batch_size=2, decode=decode))
    assert [len(part) for part in parts] == [2, 2, 1]
    assert np.isnan(parts[1]).all()  # not one image of the batch decodes
    whole = encoder.encode_images(images, batch_size=2, decode=decode)
    assert np.array_equal(np.concatenate(parts), whole, equal_nan=True)


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
    with pytest.raises(EncoderError, match="do not match the config"):
        load_encoder(str(folder))


@pytest.mark.parametrize(
    ("module", "package"), [("torch", "torch"), ("transformers", "transformers"), ("PIL", "pillow")]
)
def test_a_package_that_is_missing(clip: Path, monkeypatch: pytest.MonkeyPatch, module: str, package: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"{package}.*sqid\[build\]"):
        load_encoder(str(clip))


def test_unknown_dtype_and_device(clip: Path) -> None:
    with pytest.raises(UsageError, match="float32 or bfloat16 or float16"):
        load_encoder(str(clip), dtype="int8")
    with pytest.raises(UsageError, match="no such device"):
        load_encoder(str(clip), device="toaster")


@pytest.mark.parametrize("family", FAMILIES)
def test_other_families_equal_row_by_row(tmp_path: Path, family: str) -> None:
    import torch
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    folder = write_family(tmp_path, family)
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    encoder = load_encoder(str(folder), device="cpu")
    limit = encoder.text_limit
    padding = "max_length" if family.startswith("siglip") else False
    texts, images = [], []
    with torch.inference_mode():
        for text in ODD_TEXTS:
            tokens = tokenizer(text, padding=padding, truncation=True, max_length=limit, return_tensors="pt")
            texts.append(model.get_text_features(**tokens).pooler_output[0].numpy())
        for image in ODD_IMAGES.values():
            pixels = processor(image.convert("RGB"), return_tensors="pt")
            images.append(model.get_image_features(**pixels).pooler_output[0].numpy())
    assert encoder.width == {"chinese_clip": 24}.get(family, 32)
    assert limit == {"chinese_clip": 40, "align": 64}.get(family, 16)
    assert relative(encoder.encode_text(ODD_TEXTS, batch_size=2), np.stack(texts)) < 1e-5
    opaque = [image.convert("RGB") for image in ODD_IMAGES.values()]
    assert relative(encoder.encode_images(opaque, batch_size=2), np.stack(images)) < 1e-5
    assert np.stack(texts).std(axis=0).max() > 0.001
    assert np.stack(images).std(axis=0).max() > 0.001


def test_towers_of_different_width_are_refused(tmp_path: Path) -> None:
    folder = write_family(tmp_path, "align")
    config = json.loads((folder / "config.json").read_text())
    encoder = load_encoder(str(folder), device="cpu")
    encoder.width = config["projection_dim"] + 1
    with pytest.raises(EncoderError, match="differ in width"):
        encoder.encode_images([ODD_IMAGES["tall"]])


# -- fast paths that must change nothing --------------------------------------------------------------------------


def test_packed_linears_equal_plain_ones(tmp_path: Path) -> None:
    folder = write_clip(tmp_path, hidden=256)
    plain, packed = (load_encoder(str(folder), device="cpu", linear=linear) for linear in ("plain", "packed"))
    assert (plain.linear, packed.linear) == ("plain", "packed")
    assert relative(packed.encode_text(ODD_TEXTS), plain.encode_text(ODD_TEXTS)) < 1e-5
    images = list(ODD_IMAGES.values())
    assert relative(packed.encode_images(images), plain.encode_images(images)) < 1e-5


def test_packed_linears_that_differ_are_not_used(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sqid_lib.encoders import linear

    forward = linear.PackedLinear.forward
    monkeypatch.setattr(linear.PackedLinear, "forward", lambda self, x: forward(self, x) * 1.001)
    assert load_encoder(str(clip), device="cpu", linear="packed").linear == "plain"


def test_packed_linears_that_fail_are_not_used(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sqid_lib.encoders import linear

    def fail(self: object, linear: object) -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(linear.PackedLinear, "__init__", fail)
    assert load_encoder(str(clip), device="cpu", linear="packed").linear == "plain"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(1, 1, 3), (2, 7, 5), (3, 257, 513)])
def test_quick_gelu_in_place_gives_the_same_floats(shape: tuple[int, ...], dtype: str) -> None:
    import torch
    from transformers.activations import QuickGELUActivation

    from sqid_lib.encoders.activation import InPlaceQuickGELU

    inputs = (20 * torch.randn(shape, generator=torch.Generator().manual_seed(0))).to(getattr(torch, dtype))
    expected = QuickGELUActivation()(inputs)
    with torch.inference_mode():
        got = InPlaceQuickGELU()(inputs.clone())
    # vector and scalar code may round the exponential differently where an array ends
    torch.testing.assert_close(got, expected, rtol=2e-7 if dtype == "float32" else 0, atol=0)


def test_quick_gelu_is_replaced_only_between_linear_layers(encoder: Encoder) -> None:
    from torch import nn
    from transformers.activations import QuickGELUActivation

    from sqid_lib.encoders.activation import InPlaceQuickGELU, replace_quick_gelu

    kinds = [type(module) for module in encoder._network.modules()]
    assert kinds.count(InPlaceQuickGELU) == 4  # two layers in each tower
    assert QuickGELUActivation not in kinds
    other = nn.Module()
    other.dense, other.activation_fn = nn.Linear(2, 2), QuickGELUActivation()
    replace_quick_gelu(other)
    assert type(other.activation_fn) is QuickGELUActivation


@pytest.mark.parametrize(
    ("vision", "expected"), [((224, 14), 4), ((224, 32), 16), ((224, 16), 5), ((384, 4), 1), ((None, 14), 8)]
)
def test_images_at_once_are_about_a_thousand_patches(vision: tuple[int | None, int], expected: int) -> None:
    from sqid_lib.encoders.encoder import _images_at_once

    config = SimpleNamespace(vision_config=SimpleNamespace(image_size=vision[0], patch_size=vision[1]))
    assert _images_at_once(config) == expected
    assert _images_at_once(SimpleNamespace()) == 8


@pytest.mark.parametrize("name", ["CLIPImageProcessor", "SiglipImageProcessor", "ChineseCLIPImageProcessor"])
def test_byte_tables_give_the_processors_own_numbers(name: str, tmp_path: Path) -> None:
    import torch
    from transformers import AutoImageProcessor

    from sqid_lib.encoders.pixels import Pixels, from_table

    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": name}))
    processor = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    pixels = Pixels(processor)
    assert pixels.table is not None
    for image in ODD_IMAGES.values():
        prepared = pixels.prepare(image)["pixel_values"]
        assert prepared.dtype == np.uint8
        ours = from_table(torch.from_numpy(pixels.table), torch.from_numpy(prepared[None]))
        assert np.array_equal(ours.numpy(), processor(image, return_tensors="np")["pixel_values"])


def test_a_processor_that_does_more_is_asked_itself(tmp_path: Path) -> None:
    from transformers import AutoImageProcessor

    from sqid_lib.encoders.pixels import Pixels

    config = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 20}}
    config |= {"crop_size": {"height": 32, "width": 32}}  # the crop pads
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    processor = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    ours = Pixels(processor).prepare(ODD_IMAGES["tall"])["pixel_values"]
    assert np.array_equal(ours, processor(ODD_IMAGES["tall"], return_tensors="np")["pixel_values"][0])


# -- out of memory ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fits", [1, 3])
def test_out_of_memory_halves_the_batch(encoder: Encoder, monkeypatch: pytest.MonkeyPatch, fits: int) -> None:
    images = list(ODD_IMAGES.values())
    expected = encoder.encode_text(ODD_TEXTS), encoder.encode_images(images)
    sizes: list[int] = []
    features = encoder._features

    def scarce(method: Any, inputs: dict[str, Any]) -> Any:
        count = len(next(iter(inputs.values())))
        if count > fits:
            raise RuntimeError(
                "[enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator: can't allocate memory: you tried"
            )
        sizes.append(count)
        return features(method, inputs)

    monkeypatch.setattr(encoder, "_features", scarce)
    assert relative(encoder.encode_text(ODD_TEXTS), expected[0]) < 1e-5
    assert relative(encoder.encode_images(images), expected[1]) < 1e-5
    assert max(sizes) <= fits


@pytest.mark.parametrize(
    "words", ["CUDA out of memory. Tried to allocate", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling", ""]
)
def test_what_counts_as_out_of_memory(words: str) -> None:
    from sqid_lib.encoders.encoder import _out_of_memory

    assert _out_of_memory(RuntimeError(words)) == bool(words)


def test_float32_on_a_gpu_is_not_tf32(clip: Path) -> None:
    import torch

    encoder = load_encoder(str(clip), device="cpu")
    encoder.device = "cuda:0"  # the switches can be looked at without a GPU
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with encoder._no_tf32():
            assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (False, False)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


def test_not_even_one_fits(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    def scarce(method: Any, inputs: dict[str, Any]) -> Any:
        raise MemoryError

    monkeypatch.setattr(encoder, "_features", scarce)
    with pytest.raises(EncoderError, match="not even one input fits"):
        encoder.encode_text(["a", "b c d"])


def test_a_failing_model_is_reported(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(method: Any, inputs: dict[str, Any]) -> Any:
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr(encoder, "_features", broken)
    with pytest.raises(EncoderError, match="shapes cannot be multiplied"):
        encoder.encode_text(["a"])


@pytest.mark.parametrize("on_gpu", [False, True])
def test_images_are_read_only_a_few_batches_ahead(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch, on_gpu: bool
) -> None:
    monkeypatch.setattr(Encoder, "on_gpu", property(lambda self: on_gpu))
    read, done = [0], [0]
    furthest = [0]
    features = encoder._features

    def images() -> Any:
        for _ in range(40):
            read[0] += 1
            furthest[0] = max(furthest[0], read[0] - done[0])
            yield ODD_IMAGES["exact"]

    def counting(method: Any, inputs: dict[str, Any]) -> Any:
        done[0] += len(next(iter(inputs.values())))
        return features(method, inputs)

    encoder.__dict__["_features"] = counting
    try:
        assert len(encoder.encode_images(images(), batch_size=2)) == 40
    finally:
        del encoder.__dict__["_features"]
    assert furthest[0] <= 4 * 2 + 1


def test_images_prepared_beside_the_network_come_in_order(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [*ODD_IMAGES.values()] * 3
    in_turns = encoder.encode_images(images, batch_size=2, threads=3)
    monkeypatch.setattr(Encoder, "on_gpu", property(lambda self: True))
    assert np.array_equal(encoder.encode_images(images, batch_size=2, threads=3), in_turns)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_gives_float32_near_the_truth(clip: Path, encoder: Encoder, dtype: str) -> None:
    half = load_encoder(str(clip), device="cpu", dtype=dtype)
    images = list(ODD_IMAGES.values())
    for ours, truth in (
        (half.encode_text(ODD_TEXTS), encoder.encode_text(ODD_TEXTS)),
        (half.encode_images(images), encoder.encode_images(images)),
    ):
        assert ours.dtype == np.float32
        assert 1e-5 < relative(ours, truth) < 0.05


# -- code that is not transformers --------------------------------------------------------------------------------

TITLES = [
    "Women's Running Shoes, Breathable Mesh Sneakers (Size 8.5) - Red/Black",
    'Signature 12" Medium Firm Memory Foam Mattress, Queen',
    "Désinfectant café_crème 2-Pack 100% coton, 3.5oz/100g 靴",
    "red running shoes women lamp desk oak steel kettle blue cotton shirt " * 8,
    "",
]


def test_equals_a_numpy_forward_written_from_the_paper(clip: Path, encoder: Encoder) -> None:
    from numpy_clip import NumpyClip

    independent = NumpyClip(clip)
    assert relative(encoder.encode_text(TITLES), np.stack([independent.text(title) for title in TITLES])) < 1e-4
    opaque = [image for name, image in ODD_IMAGES.items() if name != "alpha"]
    assert relative(encoder.encode_images(opaque), np.stack([independent.image(image) for image in opaque])) < 1e-4


def test_equals_open_clip(clip: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from numpy_clip import NumpyClip

    if importlib.util.find_spec("open_clip") is None:
        pytest.skip("open_clip_torch is not installed")
    for name in ("", ".ops", ".ops.misc", ".transforms", ".transforms.functional"):  # wanted for its transforms alone
        stub = ModuleType(f"torchvision{name}")
        stub.__getattr__ = lambda attribute: type(attribute, (), {"BICUBIC": 3, "BILINEAR": 2})  # type: ignore[method-assign]
        monkeypatch.setitem(sys.modules, stub.__name__, stub)
        if name:
            parent, _, child = stub.__name__.rpartition(".")
            setattr(sys.modules[parent], child, stub)
    build = importlib.import_module("open_clip.model").CLIP

    independent = NumpyClip(clip)  # for its tokens and pixels
    towers = {"layers": 2, "width": 64}
    model = build(
        embed_dim=32,
        vision_cfg={**towers, "head_width": 16, "image_size": 32, "patch_size": 8, "mlp_ratio": 2.0},
        text_cfg={**towers, "heads": 4, "vocab_size": len(independent.vocabulary), "mlp_ratio": 2.0},
        quick_gelu=True,
    ).eval()
    model.load_state_dict(as_open_clip(independent.weights, layers=2), strict=False)
    ids = torch.zeros(len(TITLES), 77, dtype=torch.long)
    for row, title in enumerate(TITLES):
        tokens = independent.tokens(title)
        ids[row, : len(tokens)] = torch.tensor(tokens)
    opaque = [image for name, image in ODD_IMAGES.items() if name != "alpha"]
    pixels = torch.tensor(np.stack([independent.preprocess(image) for image in opaque]), dtype=torch.float32)
    with torch.inference_mode():
        texts, images = model.encode_text(ids).numpy(), model.encode_image(pixels).numpy()
    assert relative(encoder.encode_text(TITLES), texts) < 1e-4
    assert relative(encoder.encode_images(opaque), images) < 1e-4


def as_open_clip(weights: dict[str, Any], layers: int) -> dict[str, Any]:
    """The weights under open_clip's names."""
    import torch

    names = {
        "logit_scale": "logit_scale",
        "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
        "text_model.embeddings.position_embedding.weight": "positional_embedding",
        "vision_model.embeddings.class_embedding": "visual.class_embedding",
        "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
        "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    }
    norms = {
        "text_model.final_layer_norm": "ln_final",
        "vision_model.pre_layrnorm": "visual.ln_pre",
        "vision_model.post_layernorm": "visual.ln_post",
    }
    out = {"text_projection": weights["text_projection.weight"].T, "visual.proj": weights["visual_projection.weight"].T}
    for tower, ours in (("text_model", "transformer"), ("vision_model", "visual.transformer")):
        for layer in range(layers):
            at, to = f"{tower}.encoder.layers.{layer}", f"{ours}.resblocks.{layer}"
            for kind in ("weight", "bias"):
                parts = [weights[f"{at}.self_attn.{p}_proj.{kind}"] for p in "qkv"]
                out[f"{to}.attn.in_proj_{kind}"] = np.concatenate(parts)
            for theirs, mine in (
                ("self_attn.out_proj", "attn.out_proj"),
                ("layer_norm1", "ln_1"),
                ("layer_norm2", "ln_2"),
            ):
                norms[f"{at}.{theirs}"] = f"{to}.{mine}"
            norms |= {f"{at}.mlp.fc1": f"{to}.mlp.c_fc", f"{at}.mlp.fc2": f"{to}.mlp.c_proj"}
    for theirs, mine in norms.items():
        names |= {f"{theirs}.{kind}": f"{mine}.{kind}" for kind in ("weight", "bias")}
    out |= {mine: weights[theirs] for theirs, mine in names.items()}
    return {name: torch.tensor(array, dtype=torch.float32) for name, array in out.items()}


def test_alpha_is_white(encoder: Encoder) -> None:
    from PIL import Image

    image = ODD_IMAGES["alpha"]
    flat = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    assert relative(encoder.encode_images([image]), encoder.encode_images([flat])) < 1e-6


# -- a Hub ----------------------------------------------------------------------------------------------------------

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def model_hub(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A Hub on loopback with the model ORG/clip; yields the names of the files it was asked for."""
    asked: list[str] = []
    files = {path.name: path.read_bytes() for path in clip.iterdir()}
    files |= dict.fromkeys(("pytorch_model.bin", "code.py", "model.fp16.safetensors", "onnx/config.json"), b"no")

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            name = self.path.partition("?")[0].removeprefix(f"/ORG/clip/resolve/{COMMIT}/")
            if self.path.startswith(("/api/models/ORG/clip/revision/main", f"/api/models/ORG/clip/revision/{COMMIT}")):
                siblings = [{"rfilename": name} for name in files]
                return self.reply(200, json.dumps({"id": "ORG/clip", "sha": COMMIT, "siblings": siblings}).encode())
            if self.path.startswith(f"/api/models/ORG/clip/tree/{COMMIT}"):
                rows = [{"type": "file", "path": n, "size": len(d), "oid": f"{n}"} for n, d in files.items()]
                return self.reply(200, json.dumps(rows).encode())
            if name in files:
                asked.append(name)
                return self.reply(200, files[name])
            code = "RevisionNotFound" if self.path.startswith("/api/models/ORG/clip") else "RepoNotFound"
            return self.reply(404, b"{}", code)

        def reply(self, status: int, data: bytes, code: str = "") -> None:
            self.send_response(status)
            headers = {"Content-Length": str(len(data)), "ETag": f'"{hash(data)}"', "X-Repo-Commit": COMMIT}
            for header, value in (headers | ({"X-Error-Code": code} if code else {})).items():
                self.send_header(header, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    at(f"http://127.0.0.1:{server.server_port}", monkeypatch)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    yield asked
    server.shutdown()
    server.server_close()
    thread.join()


def at(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """HF_ENDPOINT, which is read when huggingface_hub is imported."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)


def test_a_model_of_the_hub(model_hub: list[str], encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = load_encoder("ORG/clip", device="cpu")
    assert ours.revision == COMMIT
    assert np.array_equal(ours.encode_text(["red shoes"]), encoder.encode_text(["red shoes"]))
    assert "model.safetensors" in model_hub
    assert not set(model_hub) & {"pytorch_model.bin", "code.py", "model.fp16.safetensors", "onnx/config.json"}
    # no server: the cache is used, and what it lacks is reported
    at("http://127.0.0.1:9", monkeypatch)
    assert load_encoder("ORG/clip", device="cpu").revision == COMMIT
    with pytest.raises(EncoderError, match=r"cannot be downloaded, and is not in the cache.*directory that holds"):
        load_encoder("ORG/other", device="cpu")


def test_what_the_hub_does_not_have(model_hub: list[str]) -> None:
    with pytest.raises(EncoderError, match="no such revision"):
        load_encoder("ORG/clip", revision="v9", device="cpu")
    with pytest.raises(EncoderError, match="no such model on the Hub"):
        load_encoder("ORG/nothing", device="cpu")
