"""Recipes over the tiny ESCI, for tests that build."""

from __future__ import annotations

from pathlib import Path

FROM_ARTIFACTS = '[artifacts]\npath = "artifacts"\npartial = true\n'


def write_recipe(root: Path, text: str = "") -> Path:
    """Write `root`/recipe.toml over `root`/esci; `text` is appended."""
    path = root / "recipe.toml"
    path.write_text('name = "tiny"\nversion = "1"\n[esci]\npath = "esci"\n' + text, encoding="utf-8")
    return path
