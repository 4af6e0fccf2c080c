"""Models of sentence-transformers: a directory with modules.json, of texts and images or of texts alone.

Preprocessing and network are the library's own, so that vectors are those of `SentenceTransformer.encode`, with the
model's default prompt if it names one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from sqid_lib.encoders.loaded import Loaded, Network
from sqid_lib.encoders.model_files import check_plain_files, check_weights, read_any_json
from sqid_lib.errors import EncoderError

if TYPE_CHECKING:
    from PIL import Image

_MODULES = "modules.json"
_OWN = "sentence_transformers."  # classes of the library; any other is code of the model
_SETTINGS = ("sentence_*_config.json", _MODULES, "config_sentence_transformers.json")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
_LIMIT = 512  # tokens of a model that states no limit, for the sizes of batches
_PER_TOKEN = 4  # characters


def load(directory: Path, model: str, dtype: str) -> Loaded:
    """The model of a directory.

    Raises:
        EncoderError: it is no model of sentence-transformers, needs code of its own, or its weights are no safetensors
            or do not match.
    """
    check_plain_files(directory, model, nested=True)
    _check_modules(directory, model)
    import sentence_transformers

    found = sentence_transformers.SentenceTransformer(
        str(directory),
        device="cpu",
        trust_remote_code=False,
        local_files_only=True,
        model_kwargs={"use_safetensors": True},
    ).to(getattr(torch, dtype))
    prompt = found.prompts.get(found.default_prompt_name) if found.default_prompt_name else None
    limit = int(found.max_seq_length or _LIMIT)
    images = Images(found) if "image" in getattr(found, "modalities", ["text"]) else None
    return Loaded(Sentences(found), Texts(found, prompt, limit), images, limit)


class Sentences(Network):
    """A model of sentence-transformers with the methods of a dual encoder of transformers."""

    def get_text_features(self, **inputs: Any) -> Any:
        return self._network(inputs)["sentence_embedding"]

    get_image_features = get_text_features


class Texts:
    """Texts are tokenized with their batch, as `encode` does."""

    def __init__(self, network: Any, prompt: str | None, limit: int) -> None:
        self._network, self._prompt, self._limit = network, prompt, limit

    def rows(self, texts: Sequence[str]) -> Sequence[str]:
        return texts

    def length(self, row: str) -> int:
        return min(self._limit, 3 + len(row) // _PER_TOKEN)

    def inputs(self, rows: Sequence[str]) -> dict[str, Any]:
        found: dict[str, Any] = self._network.preprocess(list(rows), prompt=self._prompt)
        return found


class Images:
    """Images are preprocessed with their batch, as `encode` does."""

    table: NDArray[np.float32] | None = None

    def __init__(self, network: Any) -> None:
        self._network = network

    @staticmethod  # other processes get it without the network
    def prepare(image: Image.Image, /) -> Image.Image:
        return image.convert("RGB")

    def inputs(self, images: Sequence[Image.Image]) -> dict[str, Any]:
        found: dict[str, Any] = self._network.preprocess(list(images))
        return found


def _check_modules(directory: Path, model: str) -> None:
    """Only the library's own classes, and safetensors wherever there are weights."""
    modules = read_any_json(directory / _MODULES, model)
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise EncoderError(f"{_MODULES} holds no list of modules", where=model)
    for module in modules:
        if not str(module.get("type")).startswith(_OWN):
            raise EncoderError(
                "the model needs code of its own",
                where=f"{model}, {_MODULES}",
                expected=f"{_OWN}…",
                got=str(module.get("type"))[:80],
                fix="Such models are not supported.",
            )
    for pattern in _SETTINGS:
        for path in directory.rglob(pattern):
            if "trust_remote_code" in path.read_text(encoding="utf-8", errors="replace"):
                raise EncoderError("the model asks for code of its own", where=f"{model}, {path.name}")
    for pattern in _PICKLES:
        for path in directory.rglob(pattern):
            if not any(path.parent.glob("*.safetensors")):
                raise EncoderError(
                    "no safetensors weights",
                    where=f"{model}, {path.parent.relative_to(directory)}",
                    got=path.name,
                    fix="Pickled weights are never loaded: save the model again with safe_serialization=True.",
                )
    for module in modules:
        folder = directory / str(module.get("path", ""))
        config = read_any_json(folder / "config.json", model) if (folder / "config.json").is_file() else {}
        if isinstance(config, dict) and "model_type" in config:
            check_weights(folder, config, model)
