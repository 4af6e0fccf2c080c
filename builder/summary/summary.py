"""What became of the images of a build: in words, and as WORK/summary.json."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sqid_lib.files import write_text

if TYPE_CHECKING:
    from builder.recipe import Recipe

FILE = "summary.json"
SHOWN = 10  # the worst hosts, and products, in the file; fewer are printed
PRINTED = 3


@dataclass(frozen=True)
class HostFailures:
    """A host whose images failed: host and port as requested, products by result, and the main reason.

    The images of local files, and those in rows of the products, count as a host each.
    """

    host: str
    products: int
    failures: int
    reason: str
    detail: str | None


@dataclass(frozen=True)
class NextStep:
    """A command that may bring more images, and what for."""

    command: str
    purpose: str


@dataclass(frozen=True)
class Named:
    """How many there are, and the names of the first of them."""

    count: int
    first: tuple[str, ...]

    @classmethod
    def of(cls, names: Sequence[str]) -> Named:
        return cls(len(names), tuple(names[:SHOWN]))

    def __str__(self) -> str:
        more = ", …" if self.count > PRINTED else ""
        return f"{self.count:,} ({', '.join(self.first[:PRINTED])}{more})"


@dataclass(frozen=True)
class Summary:
    """What became of the images of the products that can have one.

    Attributes:
        products: how many there are.
        with_url: of these, how many have the URL of an image.
        images: of these, how many have the image.
        statuses: products by image_status.
        hosts: those with the most failures first.
        next: what to run to get more images.
        local: of those with a URL, how many have a reference to a local image in its place.
        catalogue: whether the images are those of a shop's own tables.
        without_vector: status → product_id of those whose image was fetched and has no vector.
        given_up: URLs that ended the workers that fetched them.
    """

    products: int
    with_url: int
    images: int
    statuses: Mapping[str, int]
    hosts: tuple[HostFailures, ...] = ()
    next: tuple[NextStep, ...] = ()
    local: int = 0
    catalogue: bool = False
    without_vector: Mapping[str, Named] = field(default_factory=dict)
    given_up: Named = Named(0, ())

    def write(self, work: Path, recipe: Recipe) -> Path:
        """Write WORK/summary.json; returns its path."""
        values = {"recipe": recipe.name, "version": recipe.version, **asdict(self)}
        path = work / FILE
        write_text(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")
        return path

    def lines(self) -> list[str]:
        """The same for people."""
        share = f" ({self.images / self.with_url:.0%} of those)" if self.with_url else ""
        lines = [
            f"images: {self.products:,} products, {self.with_url:,} with {a_url(self.local, self.with_url)}, "
            f"{self.images:,} with an image{share}",
            f"image statuses: {in_words(self.statuses)}",
        ]
        for host in self.hosts[:PRINTED]:
            detail = f" ({host.detail})" if host.detail else ""
            failed = f"{host.failures:,} of {host.products:,} failed, most with {host.reason}{detail}"
            lines.append(f"images of {host.host}: {failed}")
        if len(self.hosts) > PRINTED:
            lines.append(f"images of more hosts: see {FILE}")
        if self.given_up.count:
            lines.append(f"URLs that ended the workers that fetched them: {self.given_up}")
        if self.without_vector:
            counted = (f"{status} {found}" for status, found in sorted(self.without_vector.items()))
            lines.append(f"images without a vector: {', '.join(counted)}")
        return lines + [f"next, {step.purpose}: {step.command}" for step in self.next]

    def warning(self) -> str | None:
        """What is said aloud: nothing has a URL, or most of what has one got no image."""
        if self.products and not self.with_url and not self.images:
            what, where = ("an image", "[catalogue]") if self.catalogue else ("a URL", "[resolve]")
            return f"NO IMAGES: none of the {self.products:,} products has {what}. Check {where} of the recipe."
        if self.images < self.with_url / 2:
            return (
                f"FEW IMAGES: only {self.images:,} of the {self.with_url:,} products that have "
                f"{a_url(self.local, self.with_url)} got an image ({in_words(self.statuses)})."
            )
        return None


def a_url(local: int, among: int) -> str:
    """What products have: URLs, and perhaps local images in their place."""
    if not local:
        return "a URL"
    return "a local image" if local == among else "a URL or a local image"


def in_words(statuses: Mapping[str, int]) -> str:
    return ", ".join(f"{status} {count:,}" for status, count in statuses.items()) or "none"
