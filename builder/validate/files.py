"""The files of a release: names, numbering, checksums, and what the manifest lists."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from builder.release import manifest
from builder.release.files import may_hold
from builder.validate.problem import Problem
from sqid_lib import schemas
from sqid_lib.errors import SourceError
from sqid_lib.files import parse_shard_name, sha256

_FROM_TOOLS = re.compile(r"\.gitattributes|\.(cache|git)/.*")  # what downloads and clones add
_ALWAYS = (schemas.CARD, schemas.MANIFEST, schemas.SHA256SUMS)


def check_files(release: Path, stated: manifest.Manifest | None) -> Iterator[Problem]:
    """Names, numbering, checksums: everything that can be checked without reading a table."""
    present = _present(release)
    yield from _names(present)
    for name in _ALWAYS:
        if name not in present:
            yield Problem("missing-file", name, "no such file")
    yield from _numbering(present, _without_rows(stated))
    digests: dict[str, str] = {}
    yield from _sums(release, present, digests)
    yield from _listed(release, present, digests)


def check_kinds(release: Path) -> Iterator[Problem]:
    """Links, which may lead out of the release, and pipes and devices, whose reading could block."""
    for name in _present(release, links=True):
        path = release / name
        if path.is_symlink():
            message = "a symbolic link: a release holds files and folders only; nothing else was checked"
            yield Problem("link", name, message)
        elif not path.is_file():
            yield Problem("not-a-file", name, "not a regular file; nothing else was checked")


def _present(release: Path, *, links: bool = False) -> list[str]:
    """Paths of the files, sorted, without what tools add; with `links` also of links to folders."""
    found = []
    for folder, folders, names in os.walk(release):
        linked = [name for name in folders if links and (Path(folder) / name).is_symlink()]
        for name in (*names, *linked):
            path = (Path(folder) / name).relative_to(release).as_posix()
            if not _FROM_TOOLS.fullmatch(path):
                found.append(path)
    return sorted(found)


def _names(names: Iterable[str]) -> Iterator[Problem]:
    """Files that a release must not hold; those in data/ have codes of their own."""
    for name in names:
        if name.lower().endswith(".py"):
            yield Problem("python-file", name, "a release holds no code: datasets refuses to load such a repository")
        elif not may_hold(name) and not name.startswith("data/"):
            yield Problem("forbidden-file", name, "a release holds no such file")


def _without_rows(stated: manifest.Manifest | None) -> set[str]:
    """The configs that have no rows, and so no files, according to the manifest."""
    counts = stated.counts if stated else {}
    empty = {config for name, config in schemas.COUNTED.items() if counts.get(name) == 0}
    return empty - {schemas.DEFAULT_CONFIG}


def _numbering(present: list[str], without_rows: set[str]) -> Iterator[Problem]:
    """data/<config>/<split>-0000i-of-0000N.parquet, each i of N once."""
    found: dict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)
    for name in present:
        if not name.startswith("data/"):
            continue
        _, config, *rest = name.split("/")
        shard = parse_shard_name(name) if len(rest) == 1 else None
        if config not in schemas.CONFIGS:
            yield Problem("unknown-config", name, f"unknown config; expected {', '.join(schemas.CONFIGS)}")
        elif shard is None:
            yield Problem("shard-name", name, "not named <split>-0000i-of-0000N.parquet")
        else:
            found[config, shard.split].append((shard.shard, shard.shards))
    for (config, split), shards in sorted(found.items()):
        where, totals = f"data/{config}/{split}-*", {total for _, total in shards}
        if len(totals) > 1:
            yield Problem("shard-numbering", where, f"shards of different sets: of {sorted(totals)}")
            continue
        total = totals.pop()
        missing = sorted(set(range(min(total, 100_000))) - {i for i, _ in shards})
        if missing:
            yield Problem("shard-numbering", where, f"{len(missing)} of {total} shards missing, first {missing[0]:05d}")
        beyond = [i for i, _ in shards if i >= total]
        if beyond:
            yield Problem("shard-numbering", where, f"shard {beyond[0]:05d} of {total}")
    for config in schemas.CONFIGS:
        if config not in without_rows and not any(named == config for named, _ in found):
            yield Problem("missing-file", f"data/{config}", "the config has no parquet files")


def _sums(release: Path, present: list[str], digests: dict[str, str]) -> Iterator[Problem]:
    try:
        sums = manifest.read_sums(release)
    except SourceError as error:
        if schemas.SHA256SUMS in present:
            yield Problem("sums", schemas.SHA256SUMS, f"{error.what}; {error.got}" if error.got else error.what)
        return
    yield from _names(name for name in sums if _FROM_TOOLS.fullmatch(name))
    for name in sorted(set(sums) - set(present)):
        yield Problem("missing-file", name, f"listed in {schemas.SHA256SUMS}, but there is no such file")
    for name in sorted(set(present) - set(sums) - {schemas.SHA256SUMS}):
        yield Problem("unlisted-file", name, f"not listed in {schemas.SHA256SUMS}")
    names = sorted(set(present) & set(sums))
    digests.update((name, sha256(release / name)) for name in names)
    for name in names:
        if digests[name] != sums[name]:
            yield Problem("checksum", name, f"sha256 is {digests[name]}, {schemas.SHA256SUMS} states {sums[name]}")


def _listed(release: Path, present: list[str], digests: dict[str, str]) -> Iterator[Problem]:
    try:
        files = manifest.read(release).files
    except SourceError as error:
        if schemas.MANIFEST in present:
            yield Problem("manifest", schemas.MANIFEST, error.what)
        return
    yield from _names(name for name in files if _FROM_TOOLS.fullmatch(name))
    for name in sorted(set(files) - set(present)):
        yield Problem("missing-file", name, f"listed in {schemas.MANIFEST}, but there is no such file")
    for name in sorted(set(present) - set(files) - {schemas.MANIFEST, schemas.SHA256SUMS}):
        yield Problem("unlisted-file", name, f"not listed in {schemas.MANIFEST}")
    for name in sorted(set(present) & set(files)):
        size, digest = (release / name).stat().st_size, digests.get(name) or sha256(release / name)
        if size != files[name].bytes:
            yield Problem("checksum", name, f"{size:,} bytes, {schemas.MANIFEST} states {files[name].bytes:,}")
        elif digest != files[name].sha256:
            yield Problem("checksum", name, f"sha256 is {digest}, {schemas.MANIFEST} states {files[name].sha256}")
