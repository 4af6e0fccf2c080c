"""The goal of each stage, and how a benchmark states what it measured: as a line of JSON that `bench.py` collects."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Goal:
    """A ratio within one interleaved run.

    Attributes:
        what: what is measured, and against what.
        bound: the least ratio that is good enough; with `at_most` the greatest.
    """

    what: str
    bound: float
    at_most: bool = False

    def is_met(self, ratio: float) -> bool:
        """Whether a ratio, as it is shown, is good enough."""
        shown = round(ratio, 2)
        return shown <= self.bound if self.at_most else shown >= self.bound

    def __str__(self) -> str:
        return f"{'≤' if self.at_most else '≥'} {self.bound:g}"


GOALS = {
    "pooled texts": Goal("CLIP L/14 texts: last layer of the pooled row / whole last layer, forward passes", 1.05),
    "pooled images": Goal("CLIP L/14 images: the same", 1.03),
    "embed texts": Goal("embedding texts end to end / forward passes alone", 0.95),
    "embed images": Goal("embedding images end to end / forward passes alone with the whole last layer", 1.0),
    "fetch": Goal("whole fetch stage / bare Pillow decoding of the same files by as many processes", 0.8),
    "local images": Goal("the same for a folder of images of 224 × 224 pixels", 0.8),
    "retrieval": Goal("top 100 of all products / bare blocked matrix product, seconds", 1.6, at_most=True),
    "load urls": Goal("`sqid.load` of urls, times faster than pandas", 6.0),
    "load product_features": Goal("`sqid.load` of product_features, times faster than pandas", 6.0),
    "load both": Goal("both configs, times faster than pandas", 6.0),
    "load memory": Goal("memory of loading both / that of pandas", 0.2, at_most=True),
    "store": Goal("conversion of a release / copying the same bytes to the disk", 0.6),
    "write vectors": Goal("writing product_features / pyarrow alone with the same settings", 0.7),
    "validate": Goal("`sqid validate` / hashing all files and decoding all columns once, seconds", 1.3, at_most=True),
    "stream": Goal("`stream_pairs`, thousand rows a second", 150),
    "workers": Goal("`store.pairs` in a DataLoader with 2 workers / without", 1.0),
    "import": Goal("`import sqid` / `import datasets`, seconds", 1.1, at_most=True),
    "help": Goal("`sqid --help`, seconds", 0.15, at_most=True),
    "growth": Goal("seconds a product at the largest size / at the next smaller one, worst stage", 1.2, at_most=True),
    "memory": Goal("the greatest peak of a stage, GB, without the model's own", 1.5, at_most=True),
}


def state(name: str, ratios: Sequence[float], note: str = "") -> None:
    """Print what was measured for a goal: the ratios of all rounds, and a note such as the sizes."""
    middle, low, high = statistics.median(ratios), min(ratios), max(ratios)
    found = {"goal": name, "ratio": middle, "low": low, "high": high, "load": os.getloadavg()[0], "note": note}
    assert name in GOALS, name
    print(json.dumps(found), flush=True)
