"""The folder of a partition on an object store, where any machine finds what another one finished.

SQLite files cannot be written there, so a worker downloads into a local folder. While it does, outcomes and the bytes
of their images go to the store as log-00000.parquet …, every half minute. At the end the shards, their index and the
closed ledger are stored as whole objects. files.json is written after what it names, so nothing relies on listing.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from builder.fetch.ledger import NAME, Ledger
from builder.fetch.outcome_log import OutcomeLog, log_name, read_logs
from builder.fetch.shards import recover, shards_of
from builder.progress import note
from sqid_lib.errors import CorruptFileError
from sqid_lib.files import checksum, part_folders, replacing, text_checksum, write_text
from sqid_lib.object_store import ObjectStore, for_each
from sqid_lib.stored_images import FOLDERS, INDEX, INDEX_SCHEMA, as_digests

STATE = "files.json"


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
            log = OutcomeLog(self.store, name, state.logs, partial(self._count_logs, name, folder, state.files))
            try:
                yield folder, log
            finally:
                state = replace(state, logs=log.close())
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

    def _count_logs(self, name: str, folder: Path, files: dict[str, tuple[int, str]], logs: int) -> None:
        self._write(name, folder, _State(files, logs))

    def _write(self, name: str, folder: Path, state: _State) -> None:
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
            for outcomes, _ in read_logs(self.store, name, state.logs, images=False):
                ledger.record([(outcome, None) for outcome in outcomes])
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
            for outcomes, images in read_logs(self.store, name, state.logs):
                offsets = [ledger.write(image) if image else None for image in images]
                ledger.record(list(zip(outcomes, offsets, strict=True)))
        write_text(folder / STATE, state.text())

    def _get(self, name: str, path: Path, written: tuple[int, str]) -> None:
        if not path.exists() or (path.stat().st_size, checksum(path)) != written:
            path.unlink(missing_ok=True)
            self.store.get(name, path)

    def _save(self, name: str, folder: Path, before: _State, *, urls: str = "", logs: int = 0) -> None:
        shards = shards_of(folder)
        _write_index(folder / INDEX, shards)
        paths = [*shards.values(), folder / INDEX, folder / NAME]
        files = {path.name: (path.stat().st_size, checksum(path)) for path in paths}
        changed = [file for file, of in files.items() if not self._has(f"{name}/{file}", of, before.files.get(file))]
        for_each(lambda file: self.store.put(folder / file, f"{name}/{file}"), changed)
        self._write(name, folder, _State(files, logs, urls))
        gone = [log_name(number) for number in range(logs, before.logs)]
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


def urls_checksum(urls: Sequence[str], shard_rows: int) -> str:
    """What decides the shards of a partition."""
    return text_checksum(json.dumps([shard_rows, *urls]))
