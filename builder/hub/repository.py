"""The files of a dataset on the Hub, and how they differ from those of a release."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builder.hub.calls import Calls
from builder.release import manifest
from sqid_lib import schemas
from sqid_lib.errors import RefusedError, SourceError


@dataclass(frozen=True)
class Change:
    """One file of a push: `kind` is "add", "change" or "remove"; `bytes` its size, the old one when removed."""

    kind: str
    path: str
    bytes: int


@dataclass(frozen=True)
class Remote:
    """The repository before the push; `head` is None while it does not exist."""

    head: str | None
    private: bool
    files: Mapping[str, Any]  # path → huggingface_hub RepoFile
    tags: Mapping[str, str]


def read_remote(calls: Calls, repo: str) -> Remote:
    """The repository as it is now; one that does not exist has no files."""
    try:
        info = calls.run("reading the state of the repository", calls.api.dataset_info, repo)
    except RefusedError as error:
        if error.missing:
            return Remote(None, False, {}, {})
        raise
    refs = calls.run("listing tags", calls.api.list_repo_refs, repo, repo_type="dataset")
    return Remote(
        info.sha,
        bool(info.private),
        list_files(calls, repo, info.sha),
        {ref.name: ref.target_commit for ref in refs.tags},
    )


def list_files(calls: Calls, repo: str, commit: str | None) -> dict[str, Any]:
    """Path → huggingface_hub RepoFile of every file at a commit."""

    def listed() -> list[Any]:
        return list(calls.api.list_repo_tree(repo, repo_type="dataset", revision=commit, recursive=True))

    return {entry.path: entry for entry in calls.run("listing files", listed) if hasattr(entry, "blob_id")}


def plan_changes(
    calls: Calls, release: Path, local: Mapping[str, str], repo: str, remote: Remote
) -> tuple[list[Change], int]:
    """The changes that a commit has to make, and how many files the Hub already has.

    Args:
        local: path → sha256 of every file of the release.
    """
    changes = []
    for path, digest in sorted(local.items()):
        there = remote.files.get(path)
        if there is None or not _same(release / path, digest, there):
            changes.append(Change("add" if there is None else "change", path, (release / path).stat().st_size))
    unchanged = len(local) - len(changes)
    earlier = _earlier_release(calls, repo, remote)
    for path, there in sorted(remote.files.items()):
        ours = path in earlier or any(path.startswith(f"data/{config}/") for config in schemas.CONFIGS)
        if ours and path not in local:
            changes.append(Change("remove", path, there.size))
    return changes, unchanged


def _same(path: Path, digest: str, there: Any) -> bool:
    if there.size != path.stat().st_size:
        return False
    return bool(there.lfs.sha256 == digest if there.lfs else there.blob_id == _git_id(path))


def _git_id(path: Path) -> str:
    """The id git gives to the content of a file: sha1 of "blob <size>\\0<content>"."""
    sha1 = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            sha1.update(block)
    return sha1.hexdigest()


def _earlier_release(calls: Calls, repo: str, remote: Remote) -> set[str]:
    """Files listed by the release now on the Hub: only what a release put there may be removed."""
    if remote.head is None or schemas.SHA256SUMS not in remote.files:
        return set()
    with tempfile.TemporaryDirectory() as scratch:
        download(calls, repo, schemas.SHA256SUMS, remote.head, scratch)
        try:
            return set(manifest.read_sums(Path(scratch)))
        except SourceError:
            return set()


def differences(release: Path, local: Mapping[str, str], there: Mapping[str, Any]) -> list[str]:
    """Files of the release that a tree lacks or holds with another size or content."""
    return [path for path in local if path not in there or not _same(release / path, local[path], there[path])]


def download(calls: Calls, repo: str, path: str, commit: str, folder: str) -> Path:
    """Download one file at a commit into `folder`; returns its path."""
    return Path(
        calls.run(
            f"reading back {path}",
            calls.api.hf_hub_download,
            repo,
            path,
            repo_type="dataset",
            revision=commit,
            local_dir=folder,
        )
    )
