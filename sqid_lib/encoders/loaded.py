"""What the loaders of other libraries than transformers give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sqid_lib.encoders.encoder import ImageInputs, TextInputs


class Network(nn.Module):
    """A network of another library; its subclasses have the methods of a dual encoder of transformers."""

    config = None

    def __init__(self, network: Any) -> None:
        super().__init__()
        self._network = network

    @property
    def dtype(self) -> torch.dtype:
        return next(self._network.parameters()).dtype  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Loaded:
    """A network and what prepares its inputs, as `Encoder` takes them.

    Attributes:
        pixels: None for a model of texts alone.
        limit: most tokens of a text.
    """

    network: Any
    tokens: TextInputs
    pixels: ImageInputs | None
    limit: int
