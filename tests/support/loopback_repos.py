"""The repositories of the loopback Hub: commits, refs, and the store of their contents, over LFS or Xet."""

from __future__ import annotations

import fnmatch
import hashlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

GITATTRIBUTES = b"*.parquet filter=lfs diff=lfs merge=lfs -text\n*.arrow filter=lfs diff=lfs merge=lfs -text\n"
LFS_FROM_BYTES = 10_000_000  # larger files are kept in LFS whatever their name, as on the Hub


@dataclass(frozen=True)
class Blob:
    """A file of one commit; `oid` is the git id of its bytes, or of the pointer for LFS."""

    sha256: str
    size: int
    oid: str
    lfs: bool


@dataclass(frozen=True)
class Commit:
    oid: str
    parent: str | None
    title: str
    tree: Mapping[str, Blob]

    def entries(self) -> dict[str, dict[str, Any]]:
        """Path → file or directory, as the Hub lists them."""
        entries: dict[str, dict[str, Any]] = {}
        for path, blob in sorted(self.tree.items()):
            parts = path.split("/")
            for depth in range(1, len(parts)):
                folder = "/".join(parts[:depth])
                entries[folder] = {"type": "directory", "oid": git_oid(folder.encode()), "size": 0, "path": folder}
            entries[path] = {"type": "file", "oid": blob.oid, "size": blob.size, "path": path}
            if blob.lfs:
                entries[path]["lfs"] = {"oid": blob.sha256, "size": blob.size, "pointerSize": 134}
        last = {"id": self.oid, "title": self.title, "date": "2024-01-01T00:00:00.000Z"}
        return {path: {**entry, "lastCommit": last} for path, entry in entries.items()}


@dataclass
class Repo:
    private: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def find(self, revision: str) -> Commit | None:
        revision = revision.removeprefix("refs/heads/").removeprefix("refs/tags/")
        return self.commits.get(self.branches.get(revision) or self.tags.get(revision) or revision)

    def commit(self, tree: Mapping[str, Blob], title: str) -> str:
        """A new commit on main; returns its id."""
        parent = self.branches.get("main")
        listing = "".join(f"{path} {blob.oid}\n" for path, blob in sorted(tree.items()))
        oid = hashlib.sha1(f"{parent}\n{title}\n{len(self.commits)}\n{listing}".encode()).hexdigest()
        self.commits[oid] = Commit(oid, parent, title, dict(tree))
        self.branches["main"] = oid
        return oid


class Store:
    """Contents by sha256 under `root`; what was sent over Xet is in the local store of hf_xet."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "objects").mkdir(parents=True, exist_ok=True)
        (root / "xet").mkdir(exist_ok=True)

    @property
    def xet_url(self) -> str:
        """The address by which hf_xet uses a directory in place of a server."""
        return f"local://{self.root / 'xet'}"

    def put(self, data: bytes, *, lfs: bool = False) -> Blob:
        sha256 = hashlib.sha256(data).hexdigest()
        path = self.root / "objects" / sha256
        if not path.exists():
            part = path.with_suffix(f".{threading.get_ident()}")
            part.write_bytes(data)
            part.replace(path)
        return self.lfs_blob(sha256, len(data)) if lfs else Blob(sha256, len(data), git_oid(data), False)

    def lfs_blob(self, sha256: str, size: int) -> Blob:
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
        return Blob(sha256, size, git_oid(pointer.encode()), True)

    def has(self, sha256: str) -> bool:
        return (self.root / "objects" / sha256).exists() or sha256 in self.xet_hashes()

    def read(self, sha256: str) -> bytes:
        path = self.root / "objects" / sha256
        if not path.exists():
            self._fetch_from_xet(sha256, path)
        return path.read_bytes()

    def xet_hashes(self) -> dict[str, tuple[str, int]]:
        """sha256 → (Xet hash, bytes) of every file uploaded over Xet, from the shards the client wrote."""
        found: dict[str, tuple[str, int]] = {}
        for shard in sorted((self.root / "xet").rglob("shards/*.mdb")):
            found |= _files_of_shard(shard.read_bytes())
        return found

    def _fetch_from_xet(self, sha256: str, path: Path) -> None:
        import hf_xet  # type: ignore[import-untyped]

        digest, size = self.xet_hashes()[sha256]
        with hf_xet.XetSession().new_file_download_group(endpoint=self.xet_url) as group:
            group.start_download_file(hf_xet.XetFileInfo(digest, size), str(path))


def is_lfs(path: str, size: int) -> bool:
    """Whether the Hub would keep a file in LFS: by its name or because it is large."""
    patterns = [line.split()[0] for line in GITATTRIBUTES.decode().splitlines()]
    return size > LFS_FROM_BYTES or any(fnmatch.fnmatch(path, pattern) for pattern in patterns)


def git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _files_of_shard(data: bytes) -> dict[str, tuple[str, int]]:
    """The file section of a Xet metadata shard: records of 48 bytes, ended by one that starts with 32 times 0xff.

    A file is a header (hash, flags, number of terms), its terms (each with its bytes at offset 36), as many
    verification records if flag 31 is set, and one that starts with the sha256 if flag 30 is set.
    """
    found: dict[str, tuple[str, int]] = {}
    at = 48
    while data[at : at + 32] != b"\xff" * 32:
        flags, terms = (int.from_bytes(data[at + 32 + i : at + 36 + i], "little") for i in (0, 4))
        digest, start = _hex(data[at : at + 32]), at + 48
        size = sum(int.from_bytes(data[o + 36 : o + 40], "little") for o in range(start, start + 48 * terms, 48))
        at = start + 48 * terms * (2 if flags >> 31 & 1 else 1)
        if flags >> 30 & 1:
            found[_hex(data[at : at + 32])] = (digest, size)
            at += 48
    return found


def _hex(digest: bytes) -> str:
    """Xet writes hashes as four little-endian numbers."""
    return "".join(f"{int.from_bytes(digest[i : i + 8], 'little'):016x}" for i in range(0, 32, 8))
