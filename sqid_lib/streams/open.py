"""How streams are opened: their options, and which kind of stream is made. The only module that imports torch."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypedDict, TypeVar, Unpack

import numpy as np

from sqid_lib.errors import UsageError, missing_extra
from sqid_lib.sources import parse_address
from sqid_lib.streams.batches import PairBatch
from sqid_lib.streams.filters import read_filters
from sqid_lib.streams.gather import Gather
from sqid_lib.streams.order import Order, whole_number
from sqid_lib.streams.release import ReleaseStream
from sqid_lib.streams.release_pairs import read_pairs
from sqid_lib.streams.release_reader import open_release
from sqid_lib.streams.stream import StoreStream, Stream
from sqid_lib.streams.texts import QUERY_TEXTS, read_texts

F = TypeVar("F", bound=Callable[..., Any])


class StreamOptions(TypedDict, total=False):
    """What every stream takes.

    Attributes:
        batch_size: default 1024.
        shuffle: default False. seed: default 0. Each epoch has its own permutation, from the seed and the epoch alone.
        rank, world_size: default 0 and 1. Ranks get disjoint rows, which together are all rows, and equal numbers of
            batches, so that no rank waits for another at the end of an epoch.
        drop_last: default False; true keeps full batches only. False leaves no row out: where the rows do not fill
            the batches, the last batches of a rank are shorter.
        prefetch: batches gathered ahead by threads, default 2; 0 for none. Workers of a DataLoader take none.
        format: "torch", "numpy", or "auto" (default): torch where it is installed.
        pin_memory: default False; tensors in page-locked memory.
        device: default None; tensors on this torch device, copied while the batch before is in use.
    """

    batch_size: int
    shuffle: bool
    seed: int
    rank: int
    world_size: int
    drop_last: bool
    prefetch: int
    format: str
    pin_memory: bool
    device: Any


_KINDS: dict[str, Any] = {"format": "auto", "pin_memory": False, "device": None}
_DEFAULTS: dict[str, Any] = {
    **{name: field.default for name, field in Order.__dataclass_fields__.items()},
    "prefetch": 2,
    **_KINDS,
}


def shows_options(**defaults: Any) -> Callable[[F], F]:
    """Let `help` and `inspect.signature` of a function show what `**options: Unpack[StreamOptions]` takes.

    Args:
        defaults: where they differ from those of other streams.
    """

    def decorate(function: F) -> F:
        signature = inspect.signature(function)
        parameters = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        for name, annotation in StreamOptions.__annotations__.items():
            shown = getattr(annotation, "__forward_arg__", annotation)
            default = defaults.get(name, _DEFAULTS[name])
            parameters.append(
                inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=shown)
            )
        function.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        return function

    return decorate


def make_stream(
    gather: Gather,
    name: str,
    verify: Callable[[], None],
    *,
    prefetch: int = 2,
    format: str = "auto",
    pin_memory: bool = False,
    device: Any = None,
    **order: Any,
) -> StoreStream[Any]:
    """A stream of numpy arrays or torch tensors; options as in StreamOptions.

    Args:
        verify: called at the end of every epoch; raises if what was read was damaged.

    Raises:
        UsageError: an option has a wrong value.
        MissingExtraError: format is "torch", and torch is not installed.
    """
    tensors = wants_tensors(format, pin_memory, device)
    prefetch = whole_number("prefetch", prefetch)
    if not tensors:
        return StoreStream(gather, Order(**order), name=name, verify=verify, prefetch=prefetch)
    from sqid_lib.streams.tensors import TorchStream

    settings: dict[str, Any] = {"name": name, "verify": verify, "prefetch": prefetch}
    return TorchStream(gather, Order(**order), **settings, pin_memory=pin_memory, device=device)


def wants_tensors(format: str, pin_memory: bool, device: Any) -> bool:
    """Whether batches are torch tensors; errors as `make_stream`."""
    if format not in ("auto", "torch", "numpy"):
        raise UsageError("unknown format", where="format", expected="auto, torch or numpy", got=format)
    installed = importlib.util.find_spec("torch") is not None
    if format == "numpy" or (format == "auto" and not installed):
        if pin_memory or device is not None:
            raise UsageError("pin_memory and device need tensors", where="format", expected="torch", got="numpy")
        return False
    if not installed:
        raise missing_extra("torch", "train", "to stream tensors")
    return True


@shows_options()
def stream_pairs(
    dir_or_repo: str | Path,
    *,
    revision: str | None = None,
    labels: Iterable[str] | None = None,
    split: str | None = None,
    has_image: bool | None = None,
    queries: Iterable[int] | None = None,
    texts: Iterable[str] = (),
    dtype: str = "float32",
    buffer: int = 4096,
    **options: Unpack[StreamOptions],
) -> Stream[PairBatch]:
    """Stream the judgments of a release row group by row group, with the queries in memory and no copy on disk.

    Every pair is in one batch of one rank and worker. `shuffle` permutes the row groups, and the pairs within as many
    of them as hold `buffer` products. The order depends on the number of workers. `EmbeddingStore.pairs` shuffles
    fully.

    At opening all ids, labels, gains and query vectors are read and checked, and the pairs are counted; local files are
    held against SHA256SUMS if there is one (each file is read once for this; the result is remembered). Product vectors
    are checked as they are read, and local files for a change since.

    Args:
        dir_or_repo: address of a release: a directory, ORG/NAME on the Hub, hf://datasets/ORG/NAME[@REVISION][/PATH],
            or an https URL. On the Hub it is read at the commit that `revision` stands for now.
        labels, split, has_image, queries, texts, dtype, **options: as in `EmbeddingStore.pairs`; `prefetch` counts
            buffers, each read by a thread of its own.
        buffer: products in memory at once, about 6 kB each at width 768; those being read ahead come on top.

    Raises:
        MissingFileError, DownloadError: the release is not there or cannot be reached, also in the middle of an epoch,
            after every range was asked for four times.
        SourceError, ContractError: a file is damaged, or the files contradict each other, as in `EmbeddingStore.open`.
        StoreError: no judgment is left by the filters. UsageError: an option has a wrong value.
    """
    if dtype not in ("float32", "float16"):
        raise UsageError("unknown dtype", where="dtype", expected="float32 or float16", got=dtype)
    filters, names = read_filters(labels, split, has_image, queries), read_texts(texts)
    buffer = whole_number("buffer", buffer, 1)
    prefetch = whole_number("prefetch", options.pop("prefetch", _DEFAULTS["prefetch"]))
    kinds = {name: options.pop(name, default) for name, default in _KINDS.items()}  # type: ignore[misc]
    tensors = wants_tensors(kinds["format"], kinds["pin_memory"], kinds["device"])
    order = Order(**options)  # type: ignore[misc]
    release = open_release(parse_address(dir_or_repo).at(revision), tuple(n for n in names if n not in QUERY_TEXTS))
    settings: dict[str, Any] = {
        "pairs": read_pairs(release, filters, np.dtype(dtype), names),
        "order": order,
        "dtype": np.dtype(dtype),
        "buffer": buffer,
        "prefetch": prefetch,
        "texts": names,
    }
    if not tensors:
        return ReleaseStream(release, **settings)
    from sqid_lib.streams.tensors import TorchReleaseStream

    return TorchReleaseStream(release, **settings, pin_memory=kinds["pin_memory"], device=kinds["device"])
