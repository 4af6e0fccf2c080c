"""Stage fetch: image url → bytes and status; every product gets an outcome, every distinct picture is kept once."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from builder.fetch.stage import fetch

__all__ = ["fetch"]


def __getattr__(name: str) -> Any:
    # late, because the process of builder.fetch.keeping is to start quickly and needs none of it
    if name == "fetch":
        return importlib.import_module("builder.fetch.stage").fetch
    raise AttributeError(f"module 'builder.fetch' has no attribute {name!r}")
