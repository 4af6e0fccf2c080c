"""Streams of torch tensors: an IterableDataset for DataLoader(stream, batch_size=None) and StatefulDataLoader."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from sqid_lib.errors import UsageError
from sqid_lib.streams.batches import Batch, Layout
from sqid_lib.streams.buffers import Buffer, Memory, Recycler, lease, place
from sqid_lib.streams.release import ReleaseStream
from sqid_lib.streams.stream import StoreStream

try:  # how a DataLoader makes batches of what a dataset yields; an extension point of torch
    from torch.utils.data._utils.collate import default_collate_fn_map
except ImportError:  # not a documented place
    default_collate_fn_map = {}

B = TypeVar("B", bound=Batch)


def _collate(batches: list[Batch], *, collate_fn_map: Any = None) -> Batch:  # noqa: ARG001 - torch passes it
    """What a DataLoader without batch_size=None makes of batches: with its default of 1, the batch itself."""
    if len(batches) == 1:
        return batches[0]
    raise UsageError(
        "the stream makes batches itself",
        where="DataLoader",
        expected="batch_size=None",
        got=f"batch_size={len(batches)}",
        fix="Use DataLoader(stream, batch_size=None), and set batch_size where the stream is made.",
    )


default_collate_fn_map[Batch] = _collate


class _Tensors:
    """What differs for tensors: a mixin, named before the stream class among the bases."""

    def __init__(self, *args: Any, pin_memory: bool = False, device: Any = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.device = None if device is None else torch.device(device)
        self.pin_memory = pin_memory or (self.device is not None and self.device.type == "cuda")
        if self.pin_memory and not torch.cuda.is_available():
            raise UsageError("there is no CUDA device", where="stream", got=f"{pin_memory=}, {device=}")
        # in shared memory, so that set_epoch reaches workers that live on
        self._shared_epoch = torch.zeros(1, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]

    @property
    def epoch(self) -> int:
        """The epoch that the next iteration visits."""
        return int(self._shared_epoch.item())

    def _go_to(self, epoch: int, position: int) -> None:
        super()._go_to(epoch, position)  # type: ignore[misc]
        self._shared_epoch.fill_(epoch)

    def _worker(self) -> tuple[int, int, bool]:
        info = get_worker_info()
        return (info.id, info.num_workers, True) if info else (0, 1, False)

    def _memory(self) -> Memory:
        if get_worker_info() is None:
            return _Pinned(self.device) if self.pin_memory else _Heap(self.device)
        if self.pin_memory or self.device is not None:
            fix = "Use DataLoader(pin_memory=True) and batch.to(device), or no workers."
            raise UsageError("pin_memory and device are not for the workers of a DataLoader", where="stream", fix=fix)
        return _Slots()


class TorchStream(_Tensors, StoreStream[B], IterableDataset):  # type: ignore[type-arg]
    """As `StoreStream`, with tensors. Iterate it directly, or give it to a DataLoader with batch_size=None."""


class TorchReleaseStream(_Tensors, ReleaseStream, IterableDataset):  # type: ignore[type-arg]
    """As `ReleaseStream`, with tensors; the workers of a DataLoader share its batches."""


def _views(kind: type[Any], flat: torch.Tensor, layout: Layout) -> Any:
    """A batch whose fields are views of one flat tensor of bytes."""
    fields = {}
    for name, (start, stop, dtype, shape) in place(layout).items():
        torch_dtype = torch.from_numpy(np.empty(0, dtype)).dtype
        fields[name] = flat[start:stop].view(torch_dtype).view(shape)
    return kind(**fields)


class _Heap(Recycler):
    """Ordinary memory, and a copy on another device if one is wanted."""

    def __init__(self, device: torch.device | None) -> None:
        super().__init__()
        self.device = device

    def batch(self, kind: type[Any], buffer: Buffer, layout: Layout) -> Any:
        return _views(kind, torch.from_numpy(buffer.bytes).to(self.device), layout)


class _Pinned:
    """Page-locked memory, which torch's own allocator recycles: it knows which copies to a GPU still read it."""

    def __init__(self, device: torch.device | None) -> None:
        self.device = device
        on_gpu = device is not None and device.type == "cuda"
        # its device is the one copied to: what "cuda" alone stands for differs from thread to thread
        self.copies: Any = torch.cuda.Stream(device) if on_gpu else None  # type: ignore[no-untyped-call]

    def take(self, size: int) -> Buffer:
        flat = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        return Buffer(flat.numpy(), flat)

    def batch(self, kind: type[Any], buffer: Buffer, layout: Layout) -> Any:
        if self.copies is None:
            return _views(kind, buffer.owner.to(self.device), layout)
        with torch.cuda.stream(self.copies):
            flat = buffer.owner.to(self.copies.device, non_blocking=True)
            copied = self.copies.record_event()
        batch = _views(kind, flat, layout)
        batch.__dict__["_copied"] = flat, copied
        return batch

    def hand_over(self, batch: Any) -> Any:
        """Make the user's CUDA stream wait for the copy, and keep the memory until that stream has used it.

        Called in the user's thread: another thread does not know which CUDA stream is current there.
        """
        if self.copies is not None:
            flat, copied = batch.__dict__.pop("_copied")
            user = torch.cuda.current_stream(self.copies.device)
            user.wait_event(copied)
            flat.record_stream(user)
        return batch


class _Slots:
    """In a worker of a DataLoader: shared memory that the training process uses without a copy, and returns."""

    def __init__(self) -> None:
        self._slots: list[_Slot] = []

    def take(self, size: int) -> Buffer:
        for slot in self._slots:
            if slot.free and slot.size >= size:
                break
        else:
            for small in [slot for slot in self._slots if slot.free]:
                self._slots.remove(small)
                small.whole[2] = 1
            slot = _Slot(size + size // 4)  # batches of lists differ in size
            self._slots.append(slot)
        return Buffer(slot.lease(size), slot)

    def batch(self, kind: type[Any], buffer: Buffer, layout: Layout) -> Any:
        batch = _views(kind, torch.from_numpy(buffer.bytes), layout)
        batch.__dict__["_send"] = buffer.owner.sender(kind, layout, len(buffer.bytes))
        return batch

    def hand_over(self, batch: Any) -> Any:
        return batch


class _Slot:
    """Shared bytes behind a header of flags.

    Byte 0 is 1 while the training process uses the batch in them. Byte 1 is 1 once that process keeps them mapped:
    then their name is enough, and no file descriptor is exchanged. Byte 2 is 1 once the worker needs them no more.
    """

    HEADER = 64
    _numbers = itertools.count()

    def __init__(self, size: int) -> None:
        self.name = (os.getpid(), next(self._numbers))
        self.size = size
        self.shared = torch.zeros(self.HEADER + size, dtype=torch.uint8).share_memory_()  # type: ignore[no-untyped-call]
        self.whole = self.shared.numpy()
        self.leased = False

    @property
    def free(self) -> bool:
        return not self.leased and self.whole[0] == 0

    def lease(self, size: int) -> Any:
        self.leased = True
        return lease(self.whole[self.HEADER :], size, self._returned)

    def _returned(self) -> None:
        self.leased = False

    def sender(self, kind: type[Any], layout: Layout, size: int) -> Callable[[], tuple[Any, ...]]:
        """A function that pickles a batch in this slot: it sends the memory itself, not its content."""

        def send() -> tuple[Any, ...]:
            self.whole[0] = 1
            return _receive, (self.name, None if self.whole[1] else self.shared, kind, layout, size)

        return send


_mapped: dict[tuple[int, int], Any] = {}  # in the training process: slots of living workers


def _receive(name: tuple[int, int], shared: torch.Tensor | None, kind: type[Any], layout: Layout, size: int) -> Any:
    """In the training process: the batch in a slot, which is returned once no view of the batch is left."""
    if shared is not None:
        _unmap()
        _mapped[name] = shared.numpy()
        _mapped[name][1] = 1
    whole = _mapped[name]

    def ended() -> None:
        whole[0] = 0
        _unmap()

    return _views(kind, torch.from_numpy(lease(whole[_Slot.HEADER :], size, ended)), layout)


def _unmap() -> None:
    """Forget the slots of dead workers, and those that a worker needs no more."""
    names = list(_mapped)  # DataLoader(pin_memory=True) receives in a thread of its own
    dead = {pid for pid in {pid for pid, _ in names} if not _lives(pid)}
    for name in names:
        slot = _mapped.get(name)
        if name[0] in dead or (slot is not None and slot[2]):
            _mapped.pop(name, None)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True
