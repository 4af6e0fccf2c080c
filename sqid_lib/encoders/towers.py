"""A dual encoder to be trained: its network as transformers has it, what it takes, and saving it as a directory."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from sqid_lib.encoders.texts import Tokens

if TYPE_CHECKING:
    import torch
    from PIL import Image

_COPIED = ("*.json", "*.txt", "*.model")  # of tokenizer and image processor
_WRITTEN = ("config.json", "model*")  # by the network itself


@dataclass(frozen=True)
class Towers:
    """Made by `load_towers`.

    Attributes:
        network: a transformers model with get_text_features and get_image_features, float32, in training mode, on the
            CPU, with gradients for all weights.
        preprocess: RGB image of Pillow → float32 [3, H, W], bit for bit what the encoder makes of it.
        directory: the files it was loaded from.
    """

    network: Any
    preprocess: Callable[[Image.Image], NDArray[Any]]
    directory: Path
    _tokens: Tokens

    def tokens(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """What get_text_features takes for some texts, [B, T] each, truncated and padded as the encoder does."""
        import torch

        return {name: torch.from_numpy(ids) for name, ids in self._tokens.inputs(self._tokens.rows(texts)).items()}

    def save(self, directory: Path) -> None:
        """Write the network's present weights (safetensors) and the files of tokenizer and image processor.

        The directory is what `load_encoder`, `load_towers` and a recipe's `[encoder] model` take.
        """
        directory.mkdir(parents=True, exist_ok=True)
        for path in sorted(self.directory.iterdir()):
            copied = any(map(path.match, _COPIED)) and not any(map(path.match, _WRITTEN))
            if copied and path.parent.resolve() != directory.resolve():
                shutil.copyfile(path, directory / path.name)
        with without_progress_bars():
            self.network.save_pretrained(directory, safe_serialization=True)


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Hide the progress bars of transformers."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
