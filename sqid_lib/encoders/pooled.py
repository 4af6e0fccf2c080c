"""The last layer of CLIP's towers, computed only for the row that becomes the vector.

Both towers pool one row of their last layer: the end token of a text, the class token of an image. Keys and values are
needed of every row, query, projection and MLP of that one alone: five sixths of the layer's arithmetic are saved.
"""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import nn


class PooledLayer(nn.Module):
    """A `CLIPEncoderLayer` that changes one row of each input, [B, T, D] → [B, T, D]; inference only.

    Args:
        in_tuple: whether the output is in a tuple, as transformers 4 wants it.

    Attributes:
        at: `at.rows` are the rows, int64 [B], with causal attention; without them it is row 0, and attention is full.
            They are kept for each thread.
    """

    def __init__(self, layer: Any, *, in_tuple: bool = False) -> None:
        super().__init__()
        self.layer, self.in_tuple = layer, in_tuple
        self.at = threading.local()

    def forward(self, hidden: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor | tuple[torch.Tensor]:
        attention, every = self.layer.self_attn, torch.arange(len(hidden), device=hidden.device)
        rows: torch.Tensor | None = getattr(self.at, "rows", None)
        place = (every, torch.zeros_like(every) if rows is None else rows)
        mask = None if rows is None else torch.arange(hidden.shape[1], device=hidden.device) <= rows[:, None]
        normed = self.layer.layer_norm1(hidden)

        def heads(projected: torch.Tensor) -> torch.Tensor:
            return projected.view(len(hidden), -1, attention.num_heads, attention.head_dim).transpose(1, 2)

        mixed = nn.functional.scaled_dot_product_attention(
            heads(attention.q_proj(normed[place])),
            heads(attention.k_proj(normed)),
            heads(attention.v_proj(normed)),
            attn_mask=None if mask is None else mask[:, None, None],
            scale=attention.scale,
        )
        pooled = hidden[place] + attention.out_proj(mixed.transpose(1, 2).reshape(len(hidden), -1))
        out = hidden.clone()
        out[place] = pooled + self.layer.mlp(self.layer.layer_norm2(pooled))
        return (out,) if self.in_tuple else out


def pool_last_layers(network: Any) -> bool:
    """Use it in both towers of a CLIP; returns whether `network` is one. Padding must be on the right."""
    import transformers

    if type(network) is not transformers.CLIPModel:
        return False
    text, vision = network.text_model, network.vision_model
    in_tuple = int(transformers.__version__.split(".")[0]) < 5
    last = PooledLayer(text.encoder.layers[-1], in_tuple=in_tuple)

    def find_rows(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = args[0] if args else kwargs["input_ids"]
        # as CLIPTextModel does: in configs of 2021 the id is wrong, and the end token is the one with the highest id
        last.at.rows = (ids if text.eos_token_id == 2 else (ids == text.eos_token_id).int()).argmax(dim=-1)

    text.register_forward_pre_hook(find_rows, with_kwargs=True)
    text.encoder.layers[-1] = last
    vision.encoder.layers[-1] = PooledLayer(vision.encoder.layers[-1], in_tuple=in_tuple)
    return True
