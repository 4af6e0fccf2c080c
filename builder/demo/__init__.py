"""The demo: a made-up shop, drawn images served on loopback, and a tiny CLIP, through the real build."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from builder import packages

RECIPE = "demo"
TINY_CLIP = Path(__file__).parent / "tiny_clip"


@contextmanager
def prepare(work: Path, seed: int = 0) -> Iterator[list[str]]:
    """Write the shop to `work`/shop, serve its images while the context is open, and yield the recipe's overrides.

    The same seed writes the same bytes and keeps files that are right already, and the URLs in the tables name no
    port: only `fetch.mirrors` and `fetch.allow_hosts` differ from run to run, so finished work stays finished.

    Raises:
        MissingExtraError: packages for the shop, or on the first run for the build, are not installed.
    """
    from builder.demo.serve import serve_images
    from builder.demo.shop import write_shop

    first = not is_drawn(work)  # then the stages will run as well
    packages.require({"shop": ("PIL",)} | ({"fetch": packages.FETCH, "embed": packages.EMBED} if first else {}))
    shop = write_shop(work.resolve() / "shop", seed)
    with serve_images(shop.images) as address:
        yield overrides(work, address)


def overrides(work: Path, address: str | None = None) -> list[str]:
    """What the recipe `demo` is overridden with for the shop in `work`.

    Args:
        address: host:port of its images; default where they are served as a rule.
    """
    from builder.demo.serve import usual_address
    from builder.demo.shop import AMAZON, HOST, Shop

    shop = Shop.in_folder(work.resolve() / "shop")
    address = address or usual_address(shop.images)
    return [
        f'fetch.mirrors={{"{HOST}" = "http://{address}/", "{AMAZON}" = "http://{address}/"}}',
        f'fetch.allow_hosts=["{address}"]',
        f"esci.path={json.dumps(str(shop.esci))}",
        f"resolve.tables={json.dumps([str(table) for table in shop.tables])}",
        f"encoder.model={json.dumps(str(TINY_CLIP))}",
    ]


def is_drawn(work: Path) -> bool:
    """Whether `work` holds the shop's tables."""
    from builder.demo.shop import Shop

    shop = Shop.in_folder(work.resolve() / "shop")
    return all(path.exists() for path in (shop.esci, *shop.tables))
