"""Streams of torch tensors: an IterableDataset for DataLoader(stream, batch_size=None) and StatefulDataLoader."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch.utils.data import IterableDataset, get_worker_info

from sqid_lib.batches import Batch, Gather
from sqid_lib.streaming import Order, Stream

B = TypeVar("B", bound=Batch)


class TorchStream(Stream[B], IterableDataset):  # type: ignore[type-arg]
    """As `Stream`, with tensors. Iterate it directly, or hand it to a DataLoader with batch_size=None."""

    def __init__(
        self,
        gather: Gather,
        order: Order,
        *,
        name: str,
        prefetch: int = 2,
        pin_memory: bool = False,
        device: Any = None,
    ) -> None:
        super().__init__(gather, order, name=name, prefetch=prefetch)
        # in shared memory, so that set_epoch reaches workers that live on
        self._shared_epoch = torch.zeros(1, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
        self.device = None if device is None else torch.device(device)
        self.pin_memory = pin_memory or (self.device is not None and self.device.type == "cuda")

    @property
    def epoch(self) -> int:
        """The epoch that the next iteration visits."""
        return int(self._shared_epoch.item())

    def _go_to(self, epoch: int, batch: int) -> None:
        super()._go_to(epoch, batch)
        self._shared_epoch.fill_(epoch)

    def _worker(self) -> tuple[int, int]:
        info = get_worker_info()
        return (info.id, info.num_workers) if info else (0, 1)

    def _deliver(self, batch: B) -> B:
        return batch._each(torch.from_numpy)
