"""CLIP's last layer for the pooled row alone, against the whole layer: python benchmarks/pooled.py --help.

Forward passes of seeded weights, interleaved; ratios within one round, median (lowest to highest).
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from typing import Any

import numpy as np
import torch
import transformers
from goals import state

from sqid_lib.encoders.activation import replace_quick_gelu
from sqid_lib.encoders.pooled import pool_last_layers

ARCHITECTURES = {
    "B/32": ((512, 2048, 12, 8), (768, 3072, 12, 12), 32, 512),
    "L/14": ((768, 3072, 12, 12), (1024, 4096, 24, 16), 14, 768),
}
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
END = 49_407


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", choices=ARCHITECTURES, default="L/14")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: seconds of all threads, where others run")
    parser.add_argument("--batches", type=int, default=4, help="batches of texts in a round")
    parser.add_argument("--threads", type=int, help="one, with --clock cpu, is what other load disturbs least")
    parser.add_argument("--images", type=int, default=4, help="images in a batch")
    parser.add_argument("--quick", action="store_true", help="three rounds of two batches")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.batches = 3, 2
    torch.set_num_threads(args.threads or torch.get_num_threads())
    whole = make_clip(args.arch)
    replace_quick_gelu(whole)
    networks = {"whole": whole, "pooled": copy.deepcopy(whole)}
    assert pool_last_layers(networks["pooled"])
    with torch.inference_mode():
        for name, rounds in (("texts", texts(args.rounds, args.batches)), ("images", images(args.rounds, args.images))):
            runs = {label: getattr(network, f"get_{name[:-1]}_features") for label, network in networks.items()}
            compare(name, runs, rounds, args.clock)


def make_clip(arch: str) -> transformers.CLIPModel:
    (text, vision, patch, width) = ARCHITECTURES[arch]
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    ids = {"bos_token_id": END - 1, "eos_token_id": END, "pad_token_id": END}
    torch.manual_seed(0)
    config = transformers.CLIPConfig(
        text_config={**dict(zip(names, text, strict=True)), **ids, "projection_dim": width},
        vision_config={**dict(zip(names, vision, strict=True)), "patch_size": patch, "projection_dim": width},
        projection_dim=width,
    )
    return transformers.CLIPModel(config).eval().requires_grad_(False)


def texts(rounds: int, count: int) -> list[list[dict[str, torch.Tensor]]]:
    """Batches of about 512 tokens; lengths as in real titles, similar within a batch."""
    rng, made = np.random.default_rng(0), []
    for _ in range(rounds):
        batches = []
        for length in np.clip(rng.normal(30, 13, count), 6, 77).astype(int):
            rows = max(1, 512 // length)
            ids = torch.from_numpy(rng.integers(0, END - 1, (rows, length)))
            mask = torch.ones_like(ids)
            ends = torch.from_numpy(rng.integers(max(2, length - 3), length, rows))
            for row, end in enumerate(ends):
                ids[row, end:], mask[row, end + 1 :] = END, 0
            batches.append({"input_ids": ids, "attention_mask": mask})
        made.append(batches)
    return made


def images(rounds: int, count: int) -> list[list[dict[str, torch.Tensor]]]:
    return [[{"pixel_values": torch.randn(count, 3, 224, 224)}] for _ in range(rounds)]


def compare(name: str, runs: dict[str, Any], rounds: list[list[dict[str, torch.Tensor]]], clock: str) -> None:
    """Print the ratio of the two runs, each round in the other order; the first round is run twice, to warm up."""
    ratios, farthest = [], 0.0
    for number, batches in enumerate([rounds[0], *rounds]):
        seconds, outputs = {}, {}
        for label in list(runs)[:: 1 if number % 2 else -1]:
            start = CLOCKS[clock]()
            outputs[label] = torch.cat([runs[label](**batch).pooler_output for batch in batches])
            seconds[label] = CLOCKS[clock]() - start
        difference = (outputs["pooled"] - outputs["whole"]).norm(dim=1) / outputs["whole"].norm(dim=1)
        farthest = max(farthest, float(difference.max()))
        if number:
            ratios.append(seconds["whole"] / seconds["pooled"])
    shown = f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
    print(f"{name}: pooled row alone {shown} × the whole layer; farthest {farthest:.1e}", flush=True)
    state(f"pooled {name}", ratios, f"farthest vector {farthest:.0e}")


if __name__ == "__main__":
    main()
