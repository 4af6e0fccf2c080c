"""CLIP's forward pass and preprocessing in NumPy and Pillow alone, from the paper (arXiv 2103.00020) and OpenAI's code.

Reads a folder's config.json, vocab.json, merges.txt, preprocessor_config.json and model.safetensors; shares no line
with transformers or torch.
"""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from encoder_fixtures import END, START, byte_alphabet
from PIL import Image

Array = Any  # float64 arrays; operators of NDArray are Any to mypy anyhow


class NumpyClip:
    """float64 forward of both towers, one input at a time."""

    def __init__(self, folder: Path) -> None:
        from safetensors.numpy import load_file

        self.config = json.loads((folder / "config.json").read_text())
        self.pixels = json.loads((folder / "preprocessor_config.json").read_text())
        self.weights = {name: w.astype(np.float64) for name, w in load_file(folder / "model.safetensors").items()}
        self.vocabulary = json.loads((folder / "vocab.json").read_text())
        lines = (folder / "merges.txt").read_text().splitlines()[1:]
        self.ranks = {tuple(line.split()): rank for rank, line in enumerate(lines) if line}

    def text(self, text: str) -> Array:
        """[D]"""
        ids = self.tokens(text)
        x = self.weights["text_model.embeddings.token_embedding.weight"][ids]
        x = x + self.weights["text_model.embeddings.position_embedding.weight"][: len(ids)]
        future = np.triu(np.full((len(ids), len(ids)), -np.inf), 1)
        x = self.tower("text_model", self.config["text_config"], x, future)
        x = self.norm("text_model.final_layer_norm", x)
        return self.weights["text_projection.weight"] @ x[-1]  # the end token

    def image(self, image: Image.Image) -> Array:
        """[D]"""
        kernel = self.weights["vision_model.embeddings.patch_embedding.weight"]
        out, channels, side, _ = kernel.shape
        pixels = self.preprocess(image)
        rows = pixels.shape[1] // side
        patches = pixels.reshape(channels, rows, side, rows, side).transpose(1, 3, 0, 2, 4).reshape(rows * rows, -1)
        x = patches @ kernel.reshape(out, -1).T
        x = np.concatenate([self.weights["vision_model.embeddings.class_embedding"][None], x])
        x = x + self.weights["vision_model.embeddings.position_embedding.weight"]
        x = self.norm("vision_model.pre_layrnorm", x)
        x = self.tower("vision_model", self.config["vision_config"], x, 0.0)
        return self.weights["visual_projection.weight"] @ self.norm("vision_model.post_layernorm", x[0])

    def tower(self, name: str, config: dict[str, Any], x: Array, mask: Array | float) -> Array:
        heads = config["num_attention_heads"]
        for layer in range(config["num_hidden_layers"]):
            at = f"{name}.encoder.layers.{layer}"
            y = self.norm(f"{at}.layer_norm1", x)
            q, k, v = (self.split(self.linear(f"{at}.self_attn.{p}_proj", y), heads) for p in "qkv")
            scores = q @ k.transpose(0, 2, 1) / np.sqrt(q.shape[-1]) + mask
            scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
            y = (scores / scores.sum(axis=-1, keepdims=True) @ v).transpose(1, 0, 2).reshape(x.shape)
            x = x + self.linear(f"{at}.self_attn.out_proj", y)
            y = self.linear(f"{at}.mlp.fc1", self.norm(f"{at}.layer_norm2", x))
            x = x + self.linear(f"{at}.mlp.fc2", y / (1 + np.exp(-1.702 * y)))  # quick GELU
        return x

    @staticmethod
    def split(x: Array, heads: int) -> Array:
        return x.reshape(len(x), heads, -1).transpose(1, 0, 2)

    def linear(self, name: str, x: Array) -> Array:
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def norm(self, name: str, x: Array) -> Array:
        centred = x - x.mean(axis=-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5)
        return scaled * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def preprocess(self, image: Image.Image) -> Array:
        """Bicubic resize of the short side, centre crop, scale, normalise: float64 [3, H, W]."""
        side = self.pixels["size"]["shortest_edge"]
        short, long = sorted(image.size)
        size = (side, int(side * long / short)) if image.width <= image.height else (int(side * long / short), side)
        image = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        values = np.asarray(image.crop((left, top, left + side, top + side)), np.float64) / 255
        return ((values - self.pixels["image_mean"]) / self.pixels["image_std"]).transpose(2, 0, 1)

    def tokens(self, text: str) -> list[int]:
        """Byte-pair encoding of lower-cased words, cut to the limit."""
        alphabet = byte_alphabet()
        order = [*range(33, 127), *range(161, 173), *range(174, 256)]
        order += [byte for byte in range(256) if byte not in order]
        letter = dict(zip(order, alphabet, strict=True))
        words = re.findall(r"'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|[^\s\w]+|_+", " ".join(text.lower().split()))
        ids = []
        for word in words:
            parts = [letter[byte] for byte in word.encode()]
            parts[-1] += "</w>"
            ids += [self.vocabulary[part] for part in self.merged(parts)]
        limit = self.config["text_config"]["max_position_embeddings"]
        return [self.vocabulary[START], *ids[: limit - 2], self.vocabulary[END]]

    def merged(self, parts: list[str]) -> list[str]:
        while len(parts) > 1:
            pairs = list(itertools.pairwise(parts))
            best = min(pairs, key=lambda pair: self.ranks.get(pair, 1 << 30))
            if best not in self.ranks:
                break
            at = pairs.index(best)
            parts = [*parts[:at], parts[at] + parts[at + 1], *parts[at + 2 :]]
        return parts
