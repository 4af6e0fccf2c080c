"""Which packages the stages of a build need besides the base ones, checked before anything is run."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from sqid_lib.errors import MissingExtraError

if TYPE_CHECKING:
    from builder.recipe import Recipe

FETCH = ("PIL", "pycurl", "yarl")  # by the names they are imported by
LOCAL = ("PIL",)  # of images on this machine
EMBED = ("PIL", "safetensors", "torch", "transformers")
_PAGES = ("protego", "pycurl", "selectolax", "yarl")
_RAY = ("ray",)
_BACKENDS: Mapping[str, Sequence[str]] = {
    "transformers": EMBED,
    "open_clip": (*EMBED, "open_clip"),
    "sentence-transformers": (*EMBED, "sentence_transformers"),
    "replicate": ("replicate",),
}
_EXTRAS = {
    "replicate": "replicate",
    "open_clip": "open-clip",
    "ray": "ray",
    "sentence_transformers": "sbert",
}  # others: build
_DISTRIBUTIONS = {
    "PIL": "pillow",
    "open_clip": "open_clip_torch",
    "sentence_transformers": "sentence-transformers",
}


def needed(stage: str, recipe: Recipe, engine: str = "local") -> Sequence[str]:
    """What a stage imports that no base install has."""
    engines = _RAY if engine == "ray" else ()
    match stage:
        case "resolve":
            return _PAGES if recipe.resolve.pages.permission else ()
        case "fetch":
            # a URL among the images of a catalogue is an error then
            return (*(FETCH if recipe.catalogue is None else LOCAL), *engines)
        case "embed":
            return (*_BACKENDS[recipe.encoder.backend], *engines)
        case _:
            return ()


def is_installed(package: str) -> bool:
    """Whether a package can be found; it is not imported."""
    return importlib.util.find_spec(package) is not None


def require(needs: Mapping[str, Sequence[str]]) -> None:
    """Check stage → packages.

    Raises:
        MissingExtraError: one error for all that is missing.
    """
    missing = {stage: [name for name in packages if not is_installed(name)] for stage, packages in needs.items()}
    missing = {stage: packages for stage, packages in missing.items() if packages}
    if not missing:
        return
    names = sorted({_DISTRIBUTIONS.get(name, name) for packages in missing.values() for name in packages})
    extras = sorted({_EXTRAS.get(name, "build") for names in missing.values() for name in names})
    raise MissingExtraError(
        f"{' and '.join(missing)} {'needs' if len(missing) == 1 else 'need'} packages that are not installed: "
        f"{', '.join(names)}",
        fix=f'Install them with: pip install "sqid[{",".join(extras)}]"',
    )
