"""Models of open_clip: a directory with open_clip_config.json and open_clip*.safetensors, nothing else of it is loaded.

Tokens, preprocessing and network are open_clip's own, so that vectors are those of `encode_text` and `encode_image`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from sqid_lib.encoders.loaded import Loaded, Network
from sqid_lib.encoders.model_files import check_plain_files, check_sizes, read_json, shapes_of
from sqid_lib.errors import EncoderError

if TYPE_CHECKING:
    from PIL import Image

CONFIG = "open_clip_config.json"
_PRECISION = {"float32": "fp32", "bfloat16": "pure_bf16", "float16": "pure_fp16"}
# names by which a part of the model would be loaded from somewhere else, at no known revision
_ELSEWHERE = (("text_cfg", "hf_model_name"), ("vision_cfg", "hf_model_name"))


def load(directory: Path, model: str, dtype: str) -> Loaded:
    """The model of a directory.

    Raises:
        EncoderError: it is no model of open_clip, its weights are no safetensors or do not match, or it needs files
            from elsewhere.
    """
    check_plain_files(directory, model)
    config = _read_config(directory, model)
    weights = _weights(directory, model)
    check_sizes(config, shapes_of(weights, model), model)
    import open_clip
    from open_clip.transform import PreprocessCfg, image_transform_v2

    source = f"local-dir:{directory}"
    with _quiet():  # it warns that no weights are loaded
        network = open_clip.create_model(source, precision=_PRECISION[dtype], load_weights=False)
    preprocess = image_transform_v2(PreprocessCfg(**network.visual.preprocess_cfg), is_train=False)
    # its own choice of file prefers pickles to some names of safetensors
    open_clip.factory.load_checkpoint(network, str(weights), strict=True)
    tokenizer = open_clip.get_tokenizer(source)
    limit = int(config["text_cfg"].get("context_length", tokenizer.context_length))
    return Loaded(OpenClip(network), Texts(tokenizer, limit), Images(preprocess), limit)


class OpenClip(Network):
    """A model of open_clip with the methods of a dual encoder of transformers."""

    def get_text_features(self, input_ids: torch.Tensor) -> Any:
        return self._network.encode_text(input_ids)

    def get_image_features(self, pixel_values: torch.Tensor) -> Any:
        return self._network.encode_image(pixel_values)


class Texts:
    """open_clip's tokenizer; every text is padded to the limit."""

    def __init__(self, tokenizer: Any, limit: int) -> None:
        self._tokenizer, self._limit = tokenizer, limit

    def rows(self, texts: Sequence[str]) -> list[Any]:
        return list(self._tokenizer(list(texts))) if texts else []

    def length(self, row: Any) -> int:
        return len(row)

    def inputs(self, rows: Sequence[Any]) -> dict[str, Any]:
        return {"input_ids": torch.stack(list(rows))}


class Images:
    """open_clip's preprocessing, an image at a time."""

    table: NDArray[np.float32] | None = None

    def __init__(self, preprocess: Any) -> None:
        self._preprocess = preprocess

    def prepare(self, image: Image.Image) -> Any:
        return self._preprocess(image)

    def inputs(self, images: Sequence[Any]) -> dict[str, Any]:
        return {"pixel_values": torch.stack(list(images))}


@contextmanager
def _quiet() -> Iterator[None]:
    """Nothing that is logged by the root logger itself, which open_clip uses."""

    def refuse(_: logging.LogRecord) -> bool:
        return False

    logging.root.addFilter(refuse)
    try:
        yield
    finally:
        logging.root.removeFilter(refuse)


def _read_config(directory: Path, model: str) -> dict[str, Any]:
    config = read_json(directory / CONFIG, model).get("model_cfg")
    parts = config if isinstance(config, dict) else {}
    if not all(isinstance(parts.get(name), dict) for name in ("text_cfg", "vision_cfg")):
        raise EncoderError(f"{CONFIG} has no model_cfg with text_cfg and vision_cfg", where=model)
    for part, name in _ELSEWHERE:
        if name in parts[part]:
            raise EncoderError(
                "a part of the model would be loaded from another repo",
                where=f"{model}, {part}.{name}",
                got=repr(parts[part][name])[:80],
                fix="Such models are not supported.",
            )
    vision = str(parts["vision_cfg"].get("timm_model_name", ""))
    if ":" in vision or "/" in vision or "trust_remote_code" in parts["text_cfg"].get("tokenizer_kwargs", {}):
        raise EncoderError("the model would load code or files from elsewhere", where=f"{model}, {CONFIG}")
    return parts


def _weights(directory: Path, model: str) -> Path:
    found = sorted(directory.glob("open_clip*.safetensors"))
    if len(found) != 1:
        pickled = sorted(path.name for suffix in ("bin", "pt", "pth") for path in directory.glob(f"*.{suffix}"))
        raise EncoderError(
            "no safetensors weights" if not found else "several files of weights",
            where=model,
            expected="open_clip_model.safetensors",
            got=", ".join([path.name for path in found] or pickled) or "none",
            fix="Pickled weights are never loaded: convert them with safetensors.torch.save_file.",
        )
    return found[0]
