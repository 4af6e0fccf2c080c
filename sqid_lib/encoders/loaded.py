"""What the loaders of other libraries than transformers give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqid_lib.encoders.encoder import ImageInputs, TextInputs


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
