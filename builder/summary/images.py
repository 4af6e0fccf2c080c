"""What became of the images of a build, and what may bring more, read from WORK."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from builder.http.mirrors import authority, mirrored
from builder.summary.rows import LOCAL, WITHOUT_URL, count_rows, is_in, is_local, read
from builder.summary.summary import PRINTED, SHOWN, HostFailures, Named, NextStep, Summary, in_words
from sqid_lib import schemas
from sqid_lib.errors import CountError

if TYPE_CHECKING:
    from builder.recipe import Recipe


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
    rows = read(path, ["image_url", "image_status", "http_status", "detail"])
    statuses = _statuses(rows["image_status"])
    images = sum(statuses.get(status, 0) for status in schemas.EMBEDDED_STATUSES)
    with_url = rows.filter(pc.and_(pc.is_valid(rows["image_url"]), pc.invert(is_in(rows, WITHOUT_URL))))
    catalogue = recipe.catalogue is not None
    local = pc.and_(is_local(with_url["image_url"]), catalogue)
    hosts = _hosts(with_url, recipe.fetch.mirrors, LOCAL if catalogue else {})
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
    worst = ", ".join(f"{host.host} {host.failures:,} ({host.reason})" for host in found.hosts[:PRINTED])
    raise CountError(
        "too few images; finished work and an earlier release are kept",
        where="expect.min_images",
        expected=f"at least {least:,}",
        got=f"{found.images:,} of {found.products:,} products: {in_words(found.statuses)}"
        + (f"; failures by host: {worst}" if worst else ""),
        fix=f"Mend the cause and run: {found.next[0].command}" if found.next else "Check [resolve], or lower it.",
    )


def _of_release(work: Path) -> Summary | None:
    files = sorted((work / schemas.RELEASE_DIR / "data" / schemas.FEATURES).glob("*.parquet"))
    if not files:
        return None
    rows = pa.concat_tables(read(file, ["image_url", "image_status", "has_image"]) for file in files)
    with_url = pc.and_(pc.is_valid(rows["image_url"]), pc.invert(is_in(rows, WITHOUT_URL)))
    images = pc.sum(rows["has_image"]).as_py() or 0
    return Summary(len(rows), pc.sum(with_url).as_py() or 0, images, _statuses(rows["image_status"]))


def _unencoded(work: Path, fetched: pa.Table) -> dict[str, Named]:
    """Images that were fetched and have no vector, by status, but for a model of texts; none before embed has run."""
    files = [path for part in ("products", "supp") for path in sorted((work / "embed").glob(f"{part}-*.parquet"))]
    if not files or count_rows(files) != len(fetched):
        return {}
    rows = pa.concat_tables(read(file, ["product_id", "image_status"]) for file in files)
    had = is_in(fetched, schemas.EMBEDDED_STATUSES)
    lost = rows.filter(pc.and_(had, pc.invert(is_in(rows, (*schemas.EMBEDDED_STATUSES, "not_encoded")))))
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
    return tuple(found[:SHOWN])


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

    failed = rows.filter(pc.invert(is_in(rows, schemas.EMBEDDED_STATUSES)))
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
    failed = rows.filter(pc.invert(is_in(rows, schemas.EMBEDDED_STATUSES)))
    refused = pc.sum(is_in(failed, ["refused"])).as_py() or 0
    steps = []
    if len(failed) > refused:
        purpose = f"once their files are there and sound, to read {len(failed) - refused:,} local images again"
        steps.append(NextStep(command, purpose))
    if refused:
        purpose = f"once images of [catalogue] is the folder that holds them, to read {refused:,} local images again"
        steps.append(NextStep(command, purpose))
    return tuple(steps)


def _statuses(column: pa.ChunkedArray) -> dict[str, int]:
    """Status → products, the most frequent first."""
    counted: list[dict[str, Any]] = column.value_counts().to_pylist()
    counted.sort(key=lambda count: (-count["counts"], count["values"]))
    return {count["values"]: count["counts"] for count in counted}
