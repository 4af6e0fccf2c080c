"""What a build made: the counts of each stage, and at its end what became of the images, on stderr and in WORK."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from builder.http.mirrors import authority, mirrored
from sqid_lib import schemas
from sqid_lib.errors import CountError
from sqid_lib.files import write_text
from sqid_lib.tables.reader import reporting

if TYPE_CHECKING:
    from builder.recipe import Recipe

FILE = "summary.json"
_HOSTS = 10  # the worst ones, and products, in the file; fewer are printed
_PRINTED = 3
_WITHOUT_URL = (schemas.MISSING, schemas.PLACEHOLDER)  # a placeholder's URL is that of no product's image
_LOCAL = {schemas.FILE_IMAGE: "local files", schemas.ROW_IMAGE: "rows of the products"}  # kinds of local images


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
        return cls(len(names), tuple(names[:_HOSTS]))

    def __str__(self) -> str:
        more = ", …" if self.count > _PRINTED else ""
        return f"{self.count:,} ({', '.join(self.first[:_PRINTED])}{more})"


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
            f"images: {self.products:,} products, {self.with_url:,} with {_a_url(self.local, self.with_url)}, "
            f"{self.images:,} with an image{share}",
            f"image statuses: {_counts(self.statuses)}",
        ]
        for host in self.hosts[:_PRINTED]:
            detail = f" ({host.detail})" if host.detail else ""
            failed = f"{host.failures:,} of {host.products:,} failed, most with {host.reason}{detail}"
            lines.append(f"images of {host.host}: {failed}")
        if len(self.hosts) > _PRINTED:
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
                f"{_a_url(self.local, self.with_url)} got an image ({_counts(self.statuses)})."
            )
        return None


def summarize(recipe: Recipe, work: Path, command: str) -> Summary | None:
    """The images as they are in `work` now; None where there is nothing to count yet.

    Args:
        command: how the user started the build.
    """
    if recipe.artifacts is not None:
        return _of_release(work)
    path = work / "fetch" / "outcomes.parquet"
    if not path.exists():
        return None
    rows = _read(path, ["image_url", "image_status", "http_status", "detail"])
    statuses = _statuses(rows["image_status"])
    images = sum(statuses.get(status, 0) for status in schemas.EMBEDDED_STATUSES)
    with_url = rows.filter(pc.and_(pc.is_valid(rows["image_url"]), pc.invert(_is_in(rows, _WITHOUT_URL))))
    catalogue = recipe.catalogue is not None
    local = pc.and_(_is_local(with_url["image_url"]), catalogue)
    hosts = _hosts(with_url, recipe.fetch.mirrors, _LOCAL if catalogue else {})
    steps = (*_next(with_url.filter(pc.invert(local)), command), *_next_local(with_url.filter(local), command))
    count = pc.sum(local).as_py() or 0
    lost, ended = _unencoded(work, rows), _given_up(rows)
    return Summary(len(rows), len(with_url), images, statuses, hosts, steps, count, catalogue, lost, ended)


def check_images(recipe: Recipe, work: Path, command: str) -> None:
    """Hold [expect] min_images against what was fetched.

    Raises:
        CountError: there are fewer images.
    """
    least = recipe.expect.min_images
    found = summarize(recipe, work, command) if least else None
    if least is None or found is None or found.images >= least:
        return
    worst = ", ".join(f"{host.host} {host.failures:,} ({host.reason})" for host in found.hosts[:_PRINTED])
    raise CountError(
        "too few images; finished work and an earlier release are kept",
        where="expect.min_images",
        expected=f"at least {least:,}",
        got=f"{found.images:,} of {found.products:,} products: {_counts(found.statuses)}"
        + (f"; failures by host: {worst}" if worst else ""),
        fix=f"Mend the cause and run: {found.next[0].command}" if found.next else "Check [resolve], or lower it.",
    )


def made(stage: str, work: Path) -> str:
    """The counts of a finished stage, in words."""
    match stage:
        case "sample":
            names = {"products": "products", "queries": "queries", "judgments": "judgments"}
            counts = [f"{_rows([work / 'sample' / f'{name}.parquet']):,} {word}" for name, word in names.items()]
            return ", ".join([*counts, f"{_rows([work / 'sample' / 'supp.parquet']):,} supplementary products"])
        case "resolve":
            urls = _read(work / "resolve" / "urls.parquet", ["image_url"])["image_url"]
            found = len(urls) - urls.null_count
            what = _a_url(pc.sum(_is_local(urls)).as_py() or 0, found)
            return f"{found:,} of {len(urls):,} products have {what}"
        case "fetch":
            rows = _read(work / "fetch" / "outcomes.parquet", ["image_url", "image_status", "sha256"])
            stored = pc.count_distinct(rows["image_url"].filter(pc.is_valid(rows["sha256"])))
            wanted = pc.and_(pc.is_valid(rows["image_url"]), pc.invert(_is_in(rows, _WITHOUT_URL)))
            return f"{stored.as_py():,} of {pc.count_distinct(rows['image_url'].filter(wanted)).as_py():,} images"
        case "embed":
            parts = {"products": "products", "queries": "queries", "supp": "supplementary products"}
            counted = {word: _rows((work / "embed").glob(f"{part}-*.parquet")) for part, word in parts.items()}
            return "vectors of " + ", ".join(f"{rows:,} {word}" for word, rows in counted.items() if rows)
        case "release":
            files = [path for path in (work / schemas.RELEASE_DIR).rglob("*") if path.is_file()]
            size = sum(path.stat().st_size for path in files)
            return f"{len(files):,} files, {_size(size)}"
        case _:
            return "no problems"


def _of_release(work: Path) -> Summary | None:
    files = sorted((work / schemas.RELEASE_DIR / "data" / schemas.FEATURES).glob("*.parquet"))
    if not files:
        return None
    rows = pa.concat_tables(_read(file, ["image_url", "image_status", "has_image"]) for file in files)
    with_url = pc.and_(pc.is_valid(rows["image_url"]), pc.invert(_is_in(rows, _WITHOUT_URL)))
    images = pc.sum(rows["has_image"]).as_py() or 0
    return Summary(len(rows), pc.sum(with_url).as_py() or 0, images, _statuses(rows["image_status"]))


def _unencoded(work: Path, fetched: pa.Table) -> dict[str, Named]:
    """Images that were fetched and have no vector, by status, but for a model of texts; none before embed has run."""
    files = [path for part in ("products", "supp") for path in sorted((work / "embed").glob(f"{part}-*.parquet"))]
    if not files or _rows(files) != len(fetched):
        return {}
    rows = pa.concat_tables(_read(file, ["product_id", "image_status"]) for file in files)
    had = _is_in(fetched, schemas.EMBEDDED_STATUSES)
    lost = rows.filter(pc.and_(had, pc.invert(_is_in(rows, (*schemas.EMBEDDED_STATUSES, "not_encoded")))))
    found: dict[str, list[str]] = {}
    for product, status in zip(lost["product_id"].to_pylist(), lost["image_status"].to_pylist(), strict=True):
        found.setdefault(status, []).append(product)
    return {status: Named.of(products) for status, products in found.items()}


def _given_up(rows: pa.Table) -> Named:
    from builder.fetch.failures import GIVEN_UP

    urls = rows.filter(pc.fill_null(pc.equal(rows["detail"], GIVEN_UP), False))["image_url"]
    return Named.of(urls.unique().to_pylist())


def _hosts(rows: pa.Table, mirrors: Mapping[str, str], local: Mapping[str, str]) -> tuple[HostFailures, ...]:
    from builder.fetch.failures import NOT_REQUESTED  # recipes, and with them fetch, need an extra

    products: Counter[str] = Counter()
    reasons: dict[str, Counter[tuple[str, str | None]]] = {}
    examples: dict[tuple[str, str, str | None], str] = {}  # a local image for each reason
    for host, url, status, detail in _failures(rows, products, mirrors, local):
        reasons.setdefault(host, Counter())[status, detail] += 1
        examples.setdefault((host, status, detail), url)
    found = []
    for host, counted in reasons.items():
        asked = Counter({why: count for why, count in counted.items() if not (why[1] or "").startswith(NOT_REQUESTED)})
        (status, detail), _ = (asked or counted).most_common(1)[0]
        if host in local.values():
            detail = f"{detail}, such as {examples[host, status, detail].removeprefix(schemas.FILE_IMAGE)}"
        found.append(HostFailures(host, products[host], counted.total(), status, detail))
    found.sort(key=lambda host: (-host.failures, host.host))
    return tuple(found[:_HOSTS])


def _failures(
    rows: pa.Table, products: Counter[str], mirrors: Mapping[str, str], local: Mapping[str, str]
) -> list[tuple[str, str, str, str | None]]:
    """Host, URL, status and detail of each failure; counts all rows by host."""
    failed = []
    for url, status, detail in zip(
        *(rows[c].to_pylist() for c in ("image_url", "image_status", "detail")), strict=True
    ):
        kind = next((words for prefix, words in local.items() if url.startswith(prefix)), None)
        host = kind or authority(mirrored(url, mirrors)) or "(no host)"
        products[host] += 1
        if status not in schemas.EMBEDDED_STATUSES:
            failed.append((host, url, status, detail))
    return failed


def _next(rows: pa.Table, command: str) -> tuple[NextStep, ...]:
    from builder.fetch.failures import may_pass
    from builder.fetch.ledger import Outcome

    failed = rows.filter(pc.invert(_is_in(rows, schemas.EMBEDDED_STATUSES)))
    outcomes = [
        Outcome("", status, code)
        for status, code in zip(failed["image_status"].to_pylist(), failed["http_status"].to_pylist(), strict=True)
    ]
    passing = sum(map(may_pass, outcomes))
    lasting = Counter(o.status for o in outcomes if not may_pass(o) and o.status in schemas.RETRIABLE["fetch"])
    refused = lasting.pop("refused", 0)
    steps = []
    if passing:
        steps.append(NextStep(command, f"to try {passing:,} failures again that may pass"))
    if refused:
        purpose = f"once their hosts or ports are allowed in [fetch], to try {refused:,} refused URLs again"
        steps.append(NextStep(command, purpose))
    if lasting:
        purpose = f"if the servers changed, to try {lasting.total():,} failures again"
        steps.append(NextStep(f"{command} --retry {','.join(sorted(lasting))}", purpose))
    return tuple(steps)


def _next_local(rows: pa.Table, command: str) -> tuple[NextStep, ...]:
    """What local images need: fetch looks at each of them in every run."""
    failed = rows.filter(pc.invert(_is_in(rows, schemas.EMBEDDED_STATUSES)))
    refused = pc.sum(_is_in(failed, ["refused"])).as_py() or 0
    steps = []
    if len(failed) > refused:
        purpose = f"once their files are there and sound, to read {len(failed) - refused:,} local images again"
        steps.append(NextStep(command, purpose))
    if refused:
        purpose = f"once images of [catalogue] is the folder that holds them, to read {refused:,} local images again"
        steps.append(NextStep(command, purpose))
    return tuple(steps)


def _a_url(local: int, among: int) -> str:
    """What products have: URLs, and perhaps local images in their place."""
    if not local:
        return "a URL"
    return "a local image" if local == among else "a URL or a local image"


def _is_local(urls: pa.ChunkedArray) -> pa.ChunkedArray:
    """Whether each is a reference to a local image; false for null."""
    return pc.fill_null(pc.or_(*(pc.starts_with(urls, prefix) for prefix in _LOCAL)), False)


def _is_in(rows: pa.Table, statuses: Sequence[str]) -> pa.ChunkedArray:
    return pc.is_in(rows["image_status"], pa.array(statuses))


def _statuses(column: pa.ChunkedArray) -> dict[str, int]:
    """Status → products, the most frequent first."""
    counted: list[dict[str, Any]] = column.value_counts().to_pylist()
    counted.sort(key=lambda count: (-count["counts"], count["values"]))
    return {count["values"]: count["counts"] for count in counted}


def _counts(statuses: Mapping[str, int]) -> str:
    return ", ".join(f"{status} {count:,}" for status, count in statuses.items()) or "none"


def _read(path: Path, columns: list[str]) -> pa.Table:
    """Some columns of a file of WORK, which may have been damaged since it was checked."""
    with reporting(str(path)):
        return pq.read_table(path, columns=columns)


def _rows(paths: Iterable[Path]) -> int:
    return sum(map(_rows_of, paths))


def _rows_of(path: Path) -> int:
    with reporting(str(path)):
        rows: int = pq.read_metadata(path).num_rows
    return rows


def _size(count: int) -> str:
    size, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 1_000:
            break
        size, unit = size / 1_000, larger
    return f"{size:.1f} {unit}" if unit != "B" else f"{count} B"
