"""Which units of an epoch make which batch of which rank."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import numpy as np

from sqid_lib.errors import UsageError
from sqid_lib.streams.batches import Rows


def whole_number(name: str, value: Any, least: int = 0) -> int:
    """`value` as a plain int; UsageError if it is not a whole number of at least `least`."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < least:
        raise UsageError(f"has to be a whole number of {least} or more", where=name, got=repr(value)[:80])
    return number


@dataclass(frozen=True)
class Order:
    """Which units make which batch. Every rank has as many batches as the others.

    Attributes:
        batch_size: units of a batch.
        shuffle: a new permutation each epoch, from `seed` and the epoch alone.
        rank, world_size: this process has its share of the units; shares differ by at most one unit.
        drop_last: full batches only. Otherwise every unit is in a batch, and the last batches of a rank may be shorter.
    """

    batch_size: int = 1024
    shuffle: bool = False
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    drop_last: bool = False

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("seed", 0), ("rank", 0), ("world_size", 1)):
            object.__setattr__(self, name, whole_number(name, getattr(self, name), least))
        for name in ("shuffle", "drop_last"):
            object.__setattr__(self, name, bool(getattr(self, name)))
        if self.rank >= self.world_size:
            raise UsageError("no such rank", where="rank", expected=f"0 to {self.world_size - 1}", got=self.rank)

    def check(self, units: int) -> None:
        """UsageError if the units cannot be dealt to the ranks in equal numbers of batches, each unit once."""
        shared, rest = divmod(units, self.world_size)
        if self.drop_last or not rest or (shared and self.batch_size > 1):
            return
        raise UsageError(
            f"{self.world_size} ranks cannot have equal numbers of batches",
            where="world_size",
            expected=f"at least {self.world_size} units and a batch_size of 2 or more",
            got=f"{units} units in batches of {self.batch_size}",
            fix="Use drop_last=True, fewer ranks or a larger batch_size.",
        )

    def permutation(self, epoch: int, count: int) -> Rows:
        """The order of an epoch over all ranks."""
        if not self.shuffle:
            return np.arange(count)
        return np.random.default_rng([self.seed, epoch]).permutation(count)

    def units(self, epoch: int, units: int) -> Rows:
        """This rank's units of an epoch, in order, dealt to the ranks in turn."""
        first, last = self.share(units)
        return self.permutation(epoch, units)[self.rank :: self.world_size][: last - first]

    def batches(self, units: int) -> int:
        """How many batches this rank, as every other, has in an epoch."""
        if self.drop_last:
            return units // (self.world_size * self.batch_size)
        return -(-units // (self.world_size * self.batch_size))

    def share(self, units: int) -> tuple[int, int]:
        """First and last (exclusive) of this rank's units, where the units are dealt in runs, one a rank."""
        if self.drop_last:
            size = self.batches(units) * self.batch_size
            return self.rank * size, (self.rank + 1) * size
        size, rest = divmod(units, self.world_size)
        first = self.rank * size + min(self.rank, rest)
        return first, first + size + (self.rank < rest)

    def starts(self, units: int) -> Rows:
        """[batches + 1]: where each batch of this rank begins among its units, and where the last one ends.

        A batch has `batch_size` units, or fewer where each of the following batches needs a unit.
        """
        first, last = self.share(units)
        numbers = np.arange(self.batches(units) + 1)
        return np.minimum(numbers * self.batch_size, last - first - numbers[::-1])
