"""The engine of a command: its arguments, and what searches the vectors of a release on it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from builder.engines import ENGINES
from builder.engines import find as find_engine
from builder.engines.mapping import map_on
from sqid_lib.errors import UsageError

if TYPE_CHECKING:
    from sqid_lib.evaluation.retrieval import Map


def add_engine(parser: argparse.ArgumentParser, note: str = "") -> None:
    """Declare --engine and --ray-address; `note` comes before the help of the first."""
    where = f"{note}what searches the vectors of the release (default local); ray: all machines of a cluster"
    parser.add_argument("--engine", choices=tuple(ENGINES), default="local", help=where)
    help_text = "the Ray cluster of --engine ray (default: one on this machine)"
    parser.add_argument("--ray-address", metavar="ADDRESS", help=help_text)


def check_engine(args: argparse.Namespace) -> None:
    """Raise UsageError for an address without its engine."""
    if args.ray_address is not None and args.engine != "ray":
        raise UsageError("--ray-address belongs to --engine ray", got=f"--engine {args.engine}")


@contextmanager
def searching(args: argparse.Namespace, folder: Path) -> Iterator[Map | None]:
    """What runs the search of shards on the engine; None on this machine, where one process uses all cores.

    Args:
        folder: that all machines can reach at this path, for results.
    """
    if args.engine == "local":
        yield None
        return
    from builder.recipe import EngineSettings

    with find_engine(args.engine)(EngineSettings(address=args.ray_address or "")) as engine:
        yield lambda search, shards: map_on(engine, folder, "search", search, shards)
