"""The folder of a partition on an object store, where any machine finds what another one finished.

SQLite files cannot be written there, so a worker downloads into a local folder. While it does, outcomes and the bytes
of their images go to the store as log-00000.parquet …, every half minute. At the end the shards, their index and the
closed ledger are stored as whole objects. files.json is written after what it names, so nothing relies on listing.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from builder.fetch.ledger import NAME, Ledger, Outcome
from builder.fetch.shards import recover, shards_of
from builder.progress import note
from sqid_lib.errors import CorruptFileError
from sqid_lib.files import checksum, numbered_name, part_folders, replacing, text_checksum, write_text
from sqid_lib.object_store import ObjectStore, for_each
from sqid_lib.stored_images import FOLDERS, INDEX, INDEX_SCHEMA, as_digests

STATE = "files.json"
_LOG = "log"
_LOG_BYTES = 64 << 20  # of images in one log
_LOG_SECONDS = 30.0
_LOG_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("url", "status")),
        *((name, pa.int64()) for name in ("http_status", "bytes")),
        ("sha256", pa.string()),
        *((name, pa.int64()) for name in ("width", "height")),
        *((name, pa.string()) for name in ("detail", "rules")),
        ("image", pa.binary()),
    ]
)


@dataclass(frozen=True)
class _State:
    """What files.json says.

    Attributes:
        files: name → size in bytes and checksum.
        logs: how many logs were written since.
        urls: checksum of the URLs that the shards are complete for.
    """

    files: dict[str, tuple[int, str]] = field(default_factory=dict)
    logs: int = 0
    urls: str = ""

    def text(self) -> str:
        return json.dumps({"files": self.files, "logs": self.logs, "urls": self.urls}, indent=1) + "\n"


@dataclass(frozen=True)
class FetchStore:
    """Where the partitions of a stage are on an object store.

    Attributes:
        store: of the whole WORK.
        work: its copy on the driver.
        scratch: whether workers are on other machines, and use a temporary folder for each task.
    """

    store: ObjectStore
    work: Path
    scratch: bool

    def announce(self, folders: Sequence[Path]) -> None:
        """Record the folders of all partitions, before there is something in them."""
        names = sorted({*self._folders(), *(self._name(folder) for folder in folders)})
        self.store.write(FOLDERS, json.dumps(names).encode())

    def view(self) -> None:
        """Copy the outcomes of all partitions to the driver, but no image.

        A folder whose shards are not as they were written is copied as a whole, and its images that are lost are
        forgotten.
        """
        names = self._folders()
        for name in names:
            folder, state = self.work / name, self._read(name)
            if self._is_sound(name, state):
                self._copy_outcomes(name, folder, state)
            else:
                self._repair(name, folder, state)
        for folder in part_folders(self.work / "fetch"):
            if self._name(folder) not in names:
                _forget(folder)

    def _repair(self, name: str, folder: Path, state: _State) -> None:
        """Make the objects of a partition agree again after some of them were lost; the logs stay as they are."""
        note(f"fetch: objects in {self.store}/{name} are missing or of another size: what is lost is fetched again")
        self._restore(name, folder, _State(state.files))
        with Ledger(folder, check=True) as ledger:
            recover(folder, ledger)
        self._save(name, folder, state, logs=state.logs)
        self._copy_outcomes(name, folder, self._read(name))

    @contextmanager
    def opened(
        self, partition_folder: Path, urls: str, again: Sequence[str] = (), trial: bool = False
    ) -> Iterator[tuple[Path, OutcomeLog] | None]:
        """A local folder with all that the store has of a partition, and the log for its outcomes.

        It is stored when the block ends, also by an error. None if the store has all of it already.

        Args:
            urls: checksum of the partition's URLs and of what else decides the shards.
            again: URLs whose outcome is forgotten.
            trial: whether only the log is stored, because shards are left as they are.
        """
        name = self._name(partition_folder)
        state = self._read(name)
        if state.urls == urls and not state.logs and not again and self._is_sound(name, state):
            yield None
            return
        with self._folder(partition_folder) as folder:
            self._restore(name, folder, state)
            with Ledger(folder, check=True) as ledger:
                recover(folder, ledger)
                ledger.forget_urls(again)
            log = OutcomeLog(self, name, folder, state)
            try:
                yield folder, log
            finally:
                state = log.close()
            if not trial:
                self._save(name, folder, state, urls=urls)

    @contextmanager
    def _folder(self, folder: Path) -> Iterator[Path]:
        if not self.scratch:
            folder.mkdir(parents=True, exist_ok=True)
            yield folder
            return
        with tempfile.TemporaryDirectory(prefix="sqid-fetch-", ignore_cleanup_errors=True) as temporary:
            yield Path(temporary)

    def _name(self, folder: Path) -> str:
        return folder.relative_to(self.work).as_posix()

    def _folders(self) -> list[str]:
        return [str(name) for name in json.loads(self.store.read(FOLDERS) or b"[]")]

    def _read(self, name: str) -> _State:
        text = self.store.read(f"{name}/{STATE}")
        if text is None:
            return _State()
        try:
            found = json.loads(text)
            files = {str(file): (int(size), str(of)) for file, (size, of) in found["files"].items()}
            return _State(files, int(found["logs"]), str(found["urls"]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CorruptFileError(
                "is damaged", where=f"{self.store}/{name}/{STATE}", fix="Remove it; these images are fetched again."
            ) from error

    def write_state(self, name: str, folder: Path, state: _State) -> None:
        """Write files.json, after what it names, and its local copy, which says what the folder agrees with."""
        self.store.write(f"{name}/{STATE}", state.text().encode())
        write_text(folder / STATE, state.text())

    def _is_sound(self, name: str, state: _State) -> bool:
        """Whether all objects are there with the sizes that they had."""
        sizes = for_each(lambda file: self.store.size(f"{name}/{file}"), state.files)
        return sizes == [size for size, _ in state.files.values()]

    def _copy_outcomes(self, name: str, folder: Path, state: _State) -> None:
        if _mine(folder).startswith(state.text()):
            return
        _forget(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if NAME in state.files:
            self.store.get(f"{name}/{NAME}", folder / NAME)
        with Ledger(folder, check=True) as ledger:
            for log in self._logs(name, state, _LOG_SCHEMA.names[:-1]):
                ledger.record([(outcome, None) for outcome in _outcomes(log)])
        write_text(folder / STATE, state.text() + "outcomes only\n")

    def _restore(self, name: str, folder: Path, state: _State) -> None:
        """Make a local folder hold all that the store has, if it is not what this machine stored or goes on with."""
        if state.files or state.logs:
            if _mine(folder) == state.text():
                return
            _forget(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for_each(lambda file: self._get(f"{name}/{file}", folder / file, state.files[file]), state.files)
        with Ledger(folder) as ledger:
            for log in self._logs(name, state, None):
                results: list[tuple[Outcome, int | None]] = []
                for outcome, image in zip(_outcomes(log), log["image"].to_pylist(), strict=True):
                    results.append((outcome, ledger.write(image) if image else None))
                ledger.record(results)
        write_text(folder / STATE, state.text())

    def _get(self, name: str, path: Path, written: tuple[int, str]) -> None:
        if not path.exists() or (path.stat().st_size, checksum(path)) != written:
            path.unlink(missing_ok=True)
            self.store.get(name, path)

    def _logs(self, name: str, state: _State, columns: list[str] | None) -> Iterator[pa.Table]:
        for number in range(state.logs):
            data = self.store.read(f"{name}/{numbered_name(_LOG, number)}")
            with contextlib.suppress(pa.ArrowException, OSError):  # lost or damaged: its URLs are requested again
                yield pq.read_table(pa.BufferReader(data or b""), columns=columns)

    def _save(self, name: str, folder: Path, before: _State, *, urls: str = "", logs: int = 0) -> None:
        shards = shards_of(folder)
        _write_index(folder / INDEX, shards)
        paths = [*shards.values(), folder / INDEX, folder / NAME]
        files = {path.name: (path.stat().st_size, checksum(path)) for path in paths}
        changed = [file for file, of in files.items() if not self._has(f"{name}/{file}", of, before.files.get(file))]
        for_each(lambda file: self.store.put(folder / file, f"{name}/{file}"), changed)
        self.write_state(name, folder, _State(files, logs, urls))
        gone = [numbered_name(_LOG, number) for number in range(logs, before.logs)]
        for_each(lambda file: self.store.remove(f"{name}/{file}"), [*gone, *(before.files.keys() - files.keys())])

    def _has(self, name: str, file: tuple[int, str], before: tuple[int, str] | None) -> bool:
        return file == before and self.store.size(name) == file[0]


def _mine(folder: Path) -> str:
    """The files.json that a local folder agrees with."""
    try:
        return (folder / STATE).read_text(encoding="utf-8")
    except OSError:
        return ""


def _forget(folder: Path) -> None:
    """Remove what says which images are there; shards stay, and are compared with what is wanted."""
    for path in (*folder.glob(f"{NAME}*"), folder / "spool.bin", folder / STATE):
        path.unlink(missing_ok=True)


def _outcomes(log: pa.Table) -> list[Outcome]:
    columns = [log[name].to_pylist() for name in Outcome._fields]
    return [Outcome(*row) for row in zip(*columns, strict=True)]


def _write_index(path: Path, shards: Mapping[int, Path]) -> None:
    """Which image is in which row group of which shard, so that nobody must open all shards to know."""
    tables = []
    for number, shard in shards.items():
        with pq.ParquetFile(shard) as file:
            for group in range(file.num_row_groups):
                sha256s = file.read_row_group(group, ["sha256"])["sha256"].to_pylist()
                digests = as_digests(bytes.fromhex("".join(sha256s)))
                rows = [pa.array([value] * len(digests), pa.int32()) for value in (number, group)]
                tables.append(pa.table([digests, *rows], schema=INDEX_SCHEMA))
    with replacing(path) as part:
        pq.write_table(pa.concat_tables([INDEX_SCHEMA.empty_table(), *tables]), part)


class OutcomeLog:
    """Outcomes and their images as they are recorded, stored while the next ones are downloaded."""

    def __init__(self, where: FetchStore, name: str, folder: Path, state: _State) -> None:
        self._where, self._name, self._folder, self._state = where, name, folder, state
        self._waiting: list[tuple[Any, ...]] = []
        self._bytes, self._since = 0, time.monotonic()
        self._thread = ThreadPoolExecutor(1)
        self._storing: Future[None] | None = None

    def add(self, ledger: Ledger, results: Sequence[tuple[Outcome, int | None]]) -> None:
        """Take in outcomes that the ledger has just recorded; waits for a store that is slower than the downloads."""
        for outcome, offset in results:
            image = None
            if offset is not None and outcome.bytes:
                image = os.pread(ledger.spool, outcome.bytes, offset)
                self._bytes += len(image)
            self._waiting.append((*outcome, image))
        if self._bytes >= _LOG_BYTES or time.monotonic() >= self._since + _LOG_SECONDS:
            self._store()

    def _store(self) -> None:
        if self._storing is not None:
            self._storing.result()
        rows, self._waiting = self._waiting, []
        self._bytes, self._since = 0, time.monotonic()
        if rows:
            self._storing = self._thread.submit(self._write, rows)

    def _write(self, rows: list[tuple[Any, ...]]) -> None:
        columns = dict(zip(_LOG_SCHEMA.names, zip(*rows, strict=True), strict=True))
        sink = pa.BufferOutputStream()
        table = pa.table({name: list(values) for name, values in columns.items()}, schema=_LOG_SCHEMA)
        pq.write_table(table, sink, compression="none", use_dictionary=False)
        number = self._state.logs
        self._where.store.write(f"{self._name}/{numbered_name(_LOG, number)}", sink.getvalue())
        self._state = _State(self._state.files, number + 1)
        self._where.write_state(self._name, self._folder, self._state)

    def close(self) -> _State:
        """Store what is left; what files.json says then."""
        try:
            self._store()
            if self._storing is not None:
                self._storing.result()
        finally:
            self._thread.shutdown()
        return self._state


def urls_checksum(urls: Sequence[str], shard_rows: int) -> str:
    """What decides the shards of a partition."""
    return text_checksum(json.dumps([shard_rows, *urls]))
