"""Build hook: builder/dataset_card.md, a symbolic link in the repository, is a file in an sdist."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

LINK = "builder/dataset_card.md"


class DatasetCard(BuildHookInterface[Any]):
    """Packs a copy of what the link names. Wheels need no hook: hatchling follows links for them."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        self.folder = tempfile.mkdtemp()
        build_data["force_include"][shutil.copy(Path(self.root, LINK), self.folder)] = LINK

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        shutil.rmtree(self.folder)
