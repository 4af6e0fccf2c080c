"""The labels of a catalogue's judgments, as the data has them: a few names, numbers, or clicks and impressions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from builder.release.statistics import Statistics
from sqid_lib import schemas

NAMES, NUMBERS, CLICKS = "names", "numbers", "clicks"
_LISTED = 12  # labels that are named one by one


@dataclass(frozen=True)
class Labels:
    """What a card says of the labels.

    Attributes:
        kind: NAMES, NUMBERS or CLICKS.
        gains: label → gain, best first; none where there are too many to name, or where a label has no gain of its own.
        shown: the gains in words: "good 1.0, bad 0.0", or "from 0.0 to 3.0".
    """

    kind: str
    gains: Mapping[str, float]
    shown: str


def own_labels(statistics: Statistics) -> Labels:
    """The labels of a release, from its judgments."""
    found = {label: (_shortest(low), _shortest(high)) for label, (low, high) in statistics.gains.items()}
    ends = [gain for pair in found.values() for gain in pair]
    extent = f"from {min(ends)} to {max(ends)}" if ends else "none"
    if found and all(schemas.is_clicks(label) for label in found):
        return Labels(CLICKS, {}, extent)
    if len(found) > _LISTED or any(low != high for low, high in found.values()):
        return Labels(NUMBERS, {}, extent)
    gains = dict(sorted(((label, low) for label, (low, _) in found.items()), key=lambda item: (-item[1], item[0])))
    return Labels(NAMES, gains, ", ".join(f"{label} {gain}" for label, gain in gains.items()))


def _shortest(gain: float) -> float:
    """The shortest decimal of a float32: 0.1, not 0.10000000149."""
    return float(str(np.float32(gain)))
