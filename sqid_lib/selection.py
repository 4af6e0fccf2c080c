"""Which judgments, queries and products of ESCI belong to a cut; shared by the builder and the loader."""

from __future__ import annotations

from dataclasses import dataclass

from sqid_lib import schemas
from sqid_lib.errors import UsageError


@dataclass(frozen=True)
class Selection:
    """A cut of ESCI. The defaults are the published one.

    Attributes:
        version: "small" (Task 1) or "large".
        splits: ESCI splits whose judgments make the main part.
        locales: product locales.
        supp_min_judgments: a supplementary product is outside the main part and in at least so many judgments
            of the same version and locales, in any split.
        embed_supp: give supplementary products vectors too (the published ones have none).
    """

    version: str = "small"
    splits: tuple[str, ...] = ("test",)
    locales: tuple[str, ...] = (schemas.CLASSIC_LOCALE,)
    supp_min_judgments: int = 2
    embed_supp: bool = False

    def __post_init__(self) -> None:
        for name, values, known in (
            ("version", (self.version,), schemas.VERSIONS),
            ("splits", self.splits, schemas.SPLITS),
            ("locales", self.locales, schemas.LOCALES),
        ):
            unknown = [value for value in values if value not in known]
            if unknown or not values:
                raise UsageError(
                    f"unknown {name}", where=f"selection.{name}", expected=" or ".join(known), got=unknown or "nothing"
                )
            if len(set(values)) < len(values):
                raise UsageError(f"{name} named twice", where=f"selection.{name}", got=list(values))
        if self.supp_min_judgments < 1:
            raise UsageError(
                "too few judgments", where="selection.supp_min_judgments", expected=">= 1", got=self.supp_min_judgments
            )
