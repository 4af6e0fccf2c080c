"""CLIP's activation, QuickGELU, in place on a CPU: the same floats without arrays of its own.

transformers writes x · sigmoid(1.702 x) as three whole arrays of 4 × hidden floats per token. On a CPU, arrays of that
size are asked of the system and given back each time, and their page faults cost more than the arithmetic.
"""

from __future__ import annotations

import torch
from torch import nn

_PIECE = 1 << 17  # floats in a temporary: stays in the cache, and small enough that malloc keeps it


class InPlaceQuickGELU(nn.Module):
    """QuickGELU that overwrites its input, which must be contiguous and of no other use; inference only."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        for piece in torch.split(inputs.view(-1), _PIECE):
            piece.mul_((1.702 * piece).sigmoid_())
        return inputs


def replace_quick_gelu(network: nn.Module) -> None:
    """Put it, in place, where a CPU's `network` hands QuickGELU what a linear layer has just made."""
    from transformers.activations import QuickGELUActivation

    if next(network.parameters()).device.type != "cpu":
        return
    for module in network.modules():
        # fc1 → activation_fn → fc2, as in CLIPMLP and its copies; elsewhere the input may be read again
        activation = getattr(module, "activation_fn", None)
        if type(activation) is QuickGELUActivation and hasattr(module, "fc1") and hasattr(module, "fc2"):
            module.activation_fn = InPlaceQuickGELU()
