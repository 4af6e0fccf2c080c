"""Small random dual encoders with files of their own, and images of every kind."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SENTENCE = "red running shoes women lamp desk oak steel kettle blue cotton shirt for and with size large pack of"
WORDS = SENTENCE.split()
START, END = "<|startoftext|>", "<|endoftext|>"


def byte_alphabet() -> list[str]:
    """The 256 visible characters of byte-level BPE (GPT-2's table)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    extra = [byte for byte in range(256) if byte not in plain]
    return [chr(byte) for byte in plain] + [chr(256 + number) for number in range(len(extra))]


def write_clip_tokenizer(folder: Path, limit: int = 77) -> int:
    """vocab.json, merges.txt and their config; returns the size of the vocabulary."""
    alphabet = byte_alphabet()
    tokens = [*alphabet, *(char + "</w>" for char in alphabet)]
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            if (parts[0], parts[1]) not in merges:
                merges.append((parts[0], parts[1]))
            parts[:2] = [parts[0] + parts[1]]
            if parts[0] not in tokens:
                tokens.append(parts[0])
    tokens += [START, END]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    lines = "\n".join(f"{a} {b}" for a, b in merges)
    (folder / "merges.txt").write_text(f"#version: 0.2\n{lines}\n")
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": limit,
        **dict.fromkeys(("bos_token",), START),
        **dict.fromkeys(("eos_token", "pad_token", "unk_token"), END),
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return len(tokens)


def write_image_processor(folder: Path, side: int, kind: str = "CLIPImageProcessor") -> None:
    config: dict[str, Any] = {
        "image_processor_type": kind,
        "do_resize": True,
        "do_center_crop": True,
        "do_rescale": True,
        "do_normalize": True,
        "do_convert_rgb": True,
        "size": {"shortest_edge": side},
        "crop_size": {"height": side, "width": side},
        "resample": 3,
        "rescale_factor": 1 / 255,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(config))


def write_clip(folder: Path, *, seed: int = 0, width: int = 32, hidden: int = 64, side: int = 32) -> Path:
    """A random CLIP of two layers per tower, with tokenizer and processor; float32 safetensors."""
    import torch
    import transformers

    vocabulary = write_clip_tokenizer(folder)
    write_image_processor(folder, side)
    tower = {"hidden_size": hidden, "intermediate_size": 2 * hidden, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1, "pad_token_id": vocabulary - 1}
    config = transformers.CLIPConfig(
        text_config={**tower, **ids, "vocab_size": vocabulary, "max_position_embeddings": 77, "projection_dim": width},
        vision_config={**tower, "image_size": side, "patch_size": 8, "projection_dim": width},
        projection_dim=width,
    )
    torch.manual_seed(seed)
    model = transformers.CLIPModel(config)
    with torch.no_grad():  # varied enough that every token and pixel counts
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder, safe_serialization=True)
    return folder


def make_image(seed: int, size: tuple[int, int] = (40, 30), mode: str = "RGB") -> Image.Image:
    """Seeded noise over a gradient."""
    width, height = size
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 120, (height, width, 3))
    ramp = np.linspace(0, 135, width)[None, :, None]
    image = Image.fromarray((noise + ramp).astype(np.uint8))
    if mode in ("RGBA", "LA"):
        image = image.convert(mode)
        image.putalpha(Image.linear_gradient("L").resize(size))
    return image.convert(mode)


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind)
    return sink.getvalue()


ODD_IMAGES = {
    "tall": make_image(1, (9, 130)),
    "wide": make_image(2, (150, 11)),
    "tiny": make_image(3, (1, 1)),
    "grey": make_image(4, mode="L"),
    "palette": make_image(5, mode="P"),
    "cmyk": make_image(6, mode="CMYK"),
    "alpha": make_image(7, mode="RGBA"),
    "large": make_image(8, (640, 480)),
    "exact": make_image(9, (32, 32)),
}
ODD_TEXTS = [
    "red running shoes",
    "",
    "a",
    "red running shoes",
    "oak desk lamp with steel kettle " * 30,
    "naïve café 靴 👟 <|endoftext|> &amp;",
    "  spaces   and\nlines\t",
    "LAMP",
]
