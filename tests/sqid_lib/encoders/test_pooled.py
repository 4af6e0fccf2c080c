"""sqid_lib.encoders.pooled: the last layer for the pooled row alone gives the vectors of the whole layer."""

from __future__ import annotations

import copy
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from encoder_families import write_family
from encoder_fixtures import ODD_IMAGES, ODD_TEXTS, write_clip

from sqid_lib.encoders import load_encoder
from sqid_lib.encoders.pooled import PooledLayer, pool_last_layers


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip"))


def pooled_layers(network: Any) -> list[str]:
    return [name for name, module in network.named_modules() if type(module) is PooledLayer]


def vectors_of(output: Any) -> torch.Tensor:
    """What `get_text_features` gives: vectors with transformers 4, an output that holds them with 5."""
    found: torch.Tensor = getattr(output, "pooler_output", output)
    return found


def networks(folder: Path, attention: str) -> tuple[Any, Any]:
    from transformers import CLIPModel

    whole = CLIPModel.from_pretrained(folder, attn_implementation=attention).eval().requires_grad_(False)
    pooled = copy.deepcopy(whole)
    assert pool_last_layers(pooled)
    return whole, pooled


def test_both_towers_of_clip_are_pooled(folder: Path) -> None:
    network = load_encoder(str(folder), device="cpu")._network
    assert pooled_layers(network) == ["text_model.encoder.layers.1", "vision_model.encoder.layers.1"]


@pytest.mark.parametrize("family", ["siglip", "chinese_clip"])
def test_other_families_are_left_alone(tmp_path: Path, family: str) -> None:
    assert pooled_layers(load_encoder(str(write_family(tmp_path, family)), device="cpu")._network) == []


def test_padding_on_the_left_is_left_alone(tmp_path: Path) -> None:
    folder = write_clip(tmp_path)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "padding_side": "left"}))
    assert pooled_layers(load_encoder(str(folder), device="cpu")._network) == []


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_vectors_of_padded_batches_are_those_of_the_whole_layer(folder: Path, legacy: bool, attention: str) -> None:
    from transformers import AutoTokenizer

    whole, pooled = networks(folder, attention)
    if legacy:  # configs of 2021: the end token is the one with the highest id
        for network in (whole, pooled):
            network.text_model.eos_token_id = 2
    tokens = AutoTokenizer.from_pretrained(folder)(ODD_TEXTS, padding=True, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        expected, got = (vectors_of(network.get_text_features(**tokens)) for network in (whole, pooled))
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    pixels = {"pixel_values": torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))}
    with torch.inference_mode():
        expected, got = (vectors_of(network.get_image_features(**pixels)) for network in (whole, pooled))
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_threads_that_share_an_encoder_do_not_mix_their_rows(folder: Path) -> None:
    encoder = load_encoder(str(folder), device="cpu")
    groups = [ODD_TEXTS[:2], ODD_TEXTS[2:5], ODD_TEXTS[5:], ["red", "blue oak lamp", "a b c d e f"]]
    expected = [encoder.encode_text(group) for group in groups]
    got: dict[int, list[np.ndarray]] = {number: [] for number in range(len(groups))}

    def work(number: int) -> None:
        got[number].extend(encoder.encode_text(groups[number]) for _ in range(20))

    threads = [threading.Thread(target=work, args=(number,)) for number in got]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, found in got.items():
        assert len(found) == 20
        assert all(np.allclose(vectors, expected[number], rtol=1e-4, atol=1e-5) for vectors in found)


def test_images_in_any_batch_have_the_same_vectors(folder: Path) -> None:
    encoder = load_encoder(str(folder), device="cpu")
    images = list(ODD_IMAGES.values())
    alone = np.concatenate([encoder.encode_images(image) for image in images])
    assert np.allclose(encoder.encode_images(images, batch_size=4), alone, rtol=1e-4, atol=1e-5)
