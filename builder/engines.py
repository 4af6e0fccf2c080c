"""Execution engines: what runs the independent tasks of a stage."""

from __future__ import annotations

from collections.abc import Mapping

ENGINES: Mapping[str, object] = {"local": None}
