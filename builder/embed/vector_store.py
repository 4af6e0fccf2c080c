"""The vectors of a build on an object store: embed/vectors/<encoder>/{encoder.json,texts-*,images-*}.

embed/vectors/encoders.json says how many files of each kind an encoder may have, and is written before they are made.
So every name is known, and nothing relies on listing. A file carries its own checksum.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from builder.embed import record, shards
from builder.embed.inputs import IMAGES, TEXTS
from sqid_lib.errors import CorruptFileError
from sqid_lib.files import numbered_name, parse_numbered_name
from sqid_lib.object_store import ObjectStore, for_each

_FOLDER = "embed/vectors"
_ENCODERS = f"{_FOLDER}/encoders.json"


@dataclass(frozen=True)
class VectorStore:
    """Where vectors are kept.

    Attributes:
        store: of the whole WORK.
        work: its copy on the driver.
        scratch: whether workers are on other machines, and use a temporary folder for each file.
    """

    store: ObjectStore
    work: Path
    scratch: bool

    def pull_records(self) -> None:
        """Copy the record of each encoder to the driver."""
        names = [f"{_FOLDER}/{key}/{record.NAME}" for key in self._encoders()]
        for_each(lambda name: (self.work / name).exists() or self.store.get(name, self.work / name), names)

    def announce(self, key: str, paths: Iterable[Path]) -> None:
        """Record the names of files of an encoder, before there is something in them."""
        encoders = self._encoders()
        counts = encoders.setdefault(key, {})
        for path in paths:
            kind, number = parse_numbered_name(path) or ("", 0)
            counts[kind] = max(counts.get(kind, 0), number + 1)
        name = f"{_FOLDER}/{key}/{record.NAME}"
        self.store.put(self.work / name, name)
        self.store.write(_ENCODERS, json.dumps(encoders, indent=1).encode())

    def pull(self, key: str) -> None:
        """Make the folder of an encoder on the driver, and the objects of the store, hold the same files."""
        counts = self._encoders().get(key, {})
        names = [numbered_name(kind, number) for kind in (TEXTS, IMAGES) for number in range(counts.get(kind, 0))]
        for_each(self._level, [f"{_FOLDER}/{key}/{name}" for name in names])

    def _level(self, name: str) -> None:
        path, size = self.work / name, self.store.size(name)
        if path.exists() and (path.stat().st_size == size or _is_whole(path)):
            if path.stat().st_size != size:
                self.store.put(path, name)
        elif size is not None:
            self.store.get(name, path)

    def remove(self, names: Iterable[str], key: str) -> None:
        """Remove damaged files of an encoder."""
        for_each(self.store.remove, [f"{_FOLDER}/{key}/{name}" for name in names])

    @contextmanager
    def placed(self, path: Path) -> Iterator[Path]:
        """A local path for a file of vectors, which is stored when the block ends; what the store has is there."""
        name = path.relative_to(self.work).as_posix()
        if not self.scratch:
            yield path
            self.store.put(path, name)
            return
        with tempfile.TemporaryDirectory(prefix="sqid-embed-") as folder:
            here = Path(folder, path.name)
            self.store.get(name, here)  # of a worker that ended behind this
            before = here.stat() if here.exists() else None
            yield here
            if here.stat() != before:
                self.store.put(here, name)

    def _encoders(self) -> dict[str, dict[str, int]]:
        try:
            found = json.loads(self.store.read(_ENCODERS) or b"{}")
            return {str(key): {str(kind): int(n) for kind, n in counts.items()} for key, counts in found.items()}
        except (ValueError, TypeError, AttributeError) as error:
            raise CorruptFileError(
                "is damaged", where=f"{self.store}/{_ENCODERS}", fix="Remove it: all vectors are made again."
            ) from error


def _is_whole(path: Path) -> bool:
    try:
        shards.read(path, [])
    except CorruptFileError:
        return False
    return True
