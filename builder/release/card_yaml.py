"""The YAML block of an untrusted card, read with bounds on size, depth and aliases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from sqid_lib import schemas
from sqid_lib.errors import CorruptFileError, MissingFileError, first_line

SEPARATOR = "---"
_MAX_BYTES = 4_000_000  # of the whole card; real ones have some 20 kilobytes
_MAX_YAML = 64_000  # characters of the block; real ones have some 4,000
_MAX_DEPTH = 20  # real ones have 5


def read_metadata(release: Path) -> dict[str, Any]:
    """The YAML block of README.md as plain values.

    It is the block that huggingface_hub and datasets find: what is read here without harm is read by them alike.

    Raises:
        MissingFileError: there is no README.md.
        CorruptFileError: it has no YAML block, or one that cannot be read, holds an alias, or is too large or too deep.
    """
    path = release / schemas.CARD
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        values = _parse(_block(data))
    except FileNotFoundError as error:
        raise MissingFileError("no such file", where=path, fix="Build the release again.") from error
    except Exception as error:  # damaged text makes yaml raise many kinds of errors
        what = f"its YAML block cannot be read ({first_line(error)})"
        raise CorruptFileError(what, where=path, fix="Build the release again.") from error
    return {key: value for key, value in values.items() if value is not None}


def _block(data: bytes) -> str:
    """The lines between the first line, which is ---, and the next line that is."""
    if len(data) > _MAX_BYTES:
        raise ValueError(f"more than {_MAX_BYTES:,} bytes")
    text = data.decode("utf-8")
    if not text.startswith(SEPARATOR + "\n"):
        raise ValueError("the first line is not ---")
    block, end, _ = text.removeprefix(SEPARATOR + "\n").partition(f"\n{SEPARATOR}\n")
    if not end:
        raise ValueError("no line --- at its end")
    if "\r" in block:  # other readers take it for the end of a line
        raise ValueError("a carriage return in it")
    if len(block) > _MAX_YAML:
        raise ValueError(f"{len(block):,} characters, more than {_MAX_YAML:,}")
    return block


def _parse(block: str) -> dict[str, Any]:
    values = yaml.load(block, _PlainLoader)
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ValueError("not a table of names and values")
    return values


class _PlainLoader(yaml.SafeLoader):  # type: ignore[misc]
    """Plain values without aliases, which make gigabytes of three kilobytes, and no deeper than a card is."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise ValueError("it holds an alias (*name)")
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise ValueError(f"more than {_MAX_DEPTH} levels")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node
