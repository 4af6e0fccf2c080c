"""Small functions on the free CPUs of a Ray cluster, for a worker that is at work there."""

from __future__ import annotations

import os
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from sqid_lib.encoders.batching import in_batches

_TOGETHER = 16  # items of one call of `map_in_tasks`: alone, an image would cost more to send than to decode
_AHEAD = 8  # calls that are under way at least: a batch of a GPU


def map_in_tasks(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """`map(function, items)` within a worker, in order, ahead of its user, on free CPUs of the cluster.

    A call that ends its process twice ends this worker, too: so the item that does it is found as any other.
    """
    import ray

    call = ray.remote(_map_some).options(num_cpus=1, max_retries=1)
    sent = ray.put(function)
    ahead = max(_AHEAD, 2 * int(ray.cluster_resources().get("CPU", 0)))
    waiting: deque[Any] = deque()

    def take() -> Any:
        try:
            return ray.get(waiting[0])
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except ray.exceptions.RayError:
            traceback.print_exc()
            os._exit(1)
        finally:
            waiting.popleft()

    try:
        for some in in_batches(items, _TOGETHER):
            waiting.append(call.remote(sent, some))
            if len(waiting) >= ahead:
                yield from take()
        while waiting:
            yield from take()
    finally:
        for unused in waiting:
            ray.cancel(unused)


def _map_some(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    return [function(item) for item in items]
