"""The demo: a made-up shop, drawn pictures served on loopback, and a tiny CLIP, through the real build."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

RECIPE = "demo"
TINY_CLIP = Path(__file__).parent / "tiny_clip"


@contextmanager
def prepare(work: Path, seed: int = 0) -> Iterator[list[str]]:
    """Write the shop to `work`/shop, serve its pictures while the context is open, and yield the recipe's overrides.

    The same seed writes the same bytes and leaves files that are right alone, and the urls in the tables name no port:
    only `fetch.mirrors` and `fetch.allow_hosts` differ from run to run, so finished work stays finished.

    Raises:
        MissingExtraError: Pillow is not installed.
    """
    from builder.demo.serve import serve_pictures
    from builder.demo.shop import AMAZON, HOST, write_shop

    shop = write_shop(work.resolve() / "shop", seed)
    with serve_pictures(shop.pictures) as address:
        yield [
            f"esci.path={json.dumps(str(shop.esci))}",
            f"resolve.tables={json.dumps([str(table) for table in shop.tables])}",
            f'fetch.mirrors={{"{HOST}" = "http://{address}/", "{AMAZON}" = "http://{address}/"}}',
            f'fetch.allow_hosts=["{address}"]',
            f"encoder.model={json.dumps(str(TINY_CLIP))}",
        ]
