"""embed with an encoder of sentence-transformers: of texts alone, and of texts and images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("sentence_transformers")

from embed_work import FINAL, PRODUCTS, contents, encoders, make_work, read, title
from encoder_fixtures import write_clip

from builder.embed import embed
from builder.embed.stage import pending
from builder.packages import needed
from builder.recipe import EncoderSettings, EsciSettings, Recipe
from sqid_lib import schemas


def recipe_of(model: Path, **settings: Any) -> Recipe:
    encoder = EncoderSettings(model=str(model), device="cpu", backend="sentence-transformers", **settings)
    return Recipe(name="tiny", version="1.0.0", esci=EsciSettings(path="esci"), encoder=encoder)


@pytest.fixture(scope="module")
def multimodal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from sentence_transformers import SentenceTransformer

    root = tmp_path_factory.mktemp("models")
    SentenceTransformer(str(write_clip(root / "clip")), device="cpu").save_pretrained(str(root / "sentences"))
    return root / "sentences"


@pytest.fixture(scope="module")
def of_texts(multimodal: Path) -> Path:
    """The text tower alone."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling
    from transformers import CLIPTextModel

    tower = multimodal.parent / "tower"
    CLIPTextModel.from_pretrained(multimodal.parent / "clip").save_pretrained(tower)
    for path in (multimodal.parent / "clip").glob("*"):
        if path.name not in ("config.json", "model.safetensors", "preprocessor_config.json"):
            (tower / path.name).write_bytes(path.read_bytes())
    model = SentenceTransformer(modules=[Transformer(str(tower)), Pooling(64)], device="cpu")
    model.save_pretrained(str(multimodal.parent / "texts"))
    return multimodal.parent / "texts"


def test_a_model_of_texts_gives_text_vectors_and_says_so_of_images(of_texts: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    work, recipe = make_work(tmp_path), recipe_of(of_texts)
    embed(recipe, work)
    products = read(work, "products")
    expected = ["not_encoded" if status in ("ok", "generic", "truncated") else status for status in FINAL]
    assert products["image_status"].to_pylist() == expected
    assert set(expected) <= set(schemas.IMAGE_STATUS)
    assert products["clip_image_features"].null_count == PRODUCTS
    model = SentenceTransformer(str(of_texts), device="cpu")
    for row, vector in enumerate(products["clip_text_features"].to_pylist()):
        assert vector == pytest.approx(model.encode(title(row) or "").tolist(), abs=1e-5)
    assert pending(recipe, work) is None


def test_a_multimodal_model_is_recorded_and_its_vectors_are_kept(multimodal: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    work, recipe = make_work(tmp_path), recipe_of(multimodal, shard_rows=4)
    embed(recipe, work)
    before = contents(work)
    [folder] = encoders(work)
    record = json.loads((folder / "encoder.json").read_text())
    assert record["backend"] == "sentence-transformers" and record["linear"] == "plain"
    assert "sentence-transformers" in record["versions"] and record["revision"].startswith("local-")
    products = read(work, "products")
    assert products["image_status"].to_pylist() == FINAL
    for name in before:
        if "products-" in name:
            (work / "embed" / name).unlink()
    embed(recipe, work)
    assert contents(work) == before
    texts = SentenceTransformer(str(multimodal), device="cpu").encode([title(row) or "" for row in range(PRODUCTS)])
    for vector, expected in zip(products["clip_text_features"].to_pylist(), texts, strict=True):
        assert vector == pytest.approx(expected.tolist(), abs=1e-5)


def test_vectors_of_another_backend_are_not_taken(multimodal: Path, tmp_path: Path) -> None:
    work = make_work(tmp_path)
    embed(recipe_of(multimodal), work)
    clip = recipe_of(multimodal.parent / "clip")
    embed(clip.model_copy(update={"encoder": clip.encoder.model_copy(update={"backend": "transformers"})}), work)
    assert len(encoders(work)) == 2


def test_a_model_of_open_clip(tmp_path: Path) -> None:
    pytest.importorskip("open_clip")
    import open_clip
    import torch
    from safetensors.torch import save_file

    tower = {"layers": 1, "width": 32}
    config: dict[str, Any] = {
        "embed_dim": 16,
        "vision_cfg": {**tower, "image_size": 32, "head_width": 16, "patch_size": 16},
        "text_cfg": {**tower, "context_length": 16, "vocab_size": 49408, "heads": 2},
    }
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    torch.manual_seed(0)
    save_file(open_clip.CLIP(**config).state_dict(), folder / "open_clip_model.safetensors")
    work = make_work(tmp_path / "work")
    encoder = EncoderSettings(model=str(folder), device="cpu", backend="open_clip")
    recipe = recipe_of(folder).model_copy(update={"encoder": encoder})
    embed(recipe, work)
    assert read(work, "products")["image_status"].to_pylist() == FINAL
    assert pending(recipe, work) is None
    [made] = encoders(work)
    assert {"open_clip_torch", "torchvision"} <= json.loads((made / "encoder.json").read_text())["versions"].keys()


@pytest.mark.parametrize(
    ("backend", "package"), [("open_clip", "open_clip"), ("sentence-transformers", "sentence_transformers")]
)
def test_the_packages_that_a_backend_needs(backend: Any, package: str) -> None:
    recipe = recipe_of(Path("model"))
    encoder = recipe.encoder.model_copy(update={"backend": backend})
    assert package in needed("embed", recipe.model_copy(update={"encoder": encoder}))
