"""Linear layers on oneDNN's packed kernels, where they are clearly faster and give the same numbers.

torch's own float32 path on a CPU is MKL, which does not use AVX-512 on AMD and is then half as fast; elsewhere the two
are within a tenth of each other. The operators are those that torch's own compiler emits for frozen weights. Only a
clear gain counts: a choice that depends on noise would give other last bits in the next run.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
from torch import nn

PACKED, PLAIN = "packed", "plain"
_PARITY = 1e-5  # largest difference allowed, relative to the largest output
_ROWS = 128  # tokens in the probe
_SMALL = 256  # below this many features nothing is gained
_CLEARLY = 1.3  # times faster


class PackedLinear(nn.Module):
    """`nn.Linear` with its weight in oneDNN's blocked layout; float32, inference only."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self._packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())
        self.bias = linear.bias

    @property
    def weight(self) -> torch.Tensor:
        """The plain weight, for models that read it."""
        dense: torch.Tensor = self._packed.to_dense()
        return dense

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(inputs, self._packed, self.bias, "none", [], "")
        return out


def choose(network: nn.Module, wanted: str = "auto") -> str:
    """Give `network` the fastest linear layers that are exact, in place; returns "packed" or "plain".

    Args:
        network: in eval mode, on its device.
        wanted: "auto" measures; "packed" skips the timing but not the parity check; "plain" changes nothing.
    """
    if wanted == PLAIN or not _possible(network):
        return PLAIN
    samples = {(linear.in_features, linear.out_features): linear for _, _, linear in _linears(network)}
    if not samples or (wanted == "auto" and max(max(shape) for shape in samples) < _SMALL):
        return PLAIN
    with torch.inference_mode():
        if not all(_agrees(linear) for linear in samples.values()):
            return PLAIN
        if wanted == "auto" and _gain(list(samples.values())) < _CLEARLY:
            return PLAIN
        for parent, name, linear in list(_linears(network)):
            setattr(parent, name, PackedLinear(linear))
    return PACKED


def _possible(network: nn.Module) -> bool:
    parameter = next(network.parameters())
    return (
        parameter.device.type == "cpu"
        and parameter.dtype == torch.float32
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    )


def _linears(network: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    for parent in network.modules():
        for name, child in parent.named_children():
            if type(child) is nn.Linear:  # not a subclass, such as the output of nn.MultiheadAttention
                yield parent, name, child


def _agrees(linear: nn.Linear) -> bool:
    inputs = _inputs(linear)
    try:
        expected, got = linear(inputs), PackedLinear(linear)(inputs)
    except (RuntimeError, AttributeError):  # other builds of torch have other signatures
        return False
    return bool((got - expected).abs().max() <= _PARITY * expected.abs().max())


def _gain(linears: list[nn.Linear]) -> float:
    """How many times faster packed layers are, in CPU time of one thread, so that other load does not count."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        plain = sum(_seconds(linear, _inputs(linear)) for linear in linears)
        packed = sum(_seconds(PackedLinear(linear), _inputs(linear)) for linear in linears)
    finally:
        torch.set_num_threads(threads)
    return plain / packed


def _seconds(module: nn.Module, inputs: torch.Tensor) -> float:
    best = float("inf")
    for _ in range(7):
        start = time.thread_time()
        module(inputs)
        best = min(best, time.thread_time() - start)
    return best


def _inputs(linear: nn.Linear) -> torch.Tensor:
    return torch.randn(_ROWS, linear.in_features, generator=torch.Generator().manual_seed(0))
