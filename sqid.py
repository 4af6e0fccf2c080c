"""Loader and loading script of SQID, the Shopping Queries Image Dataset: ESCI joined with image URLs and embeddings.

`sqid.load("product_features", split="test")` gives the joined rows of the published files, or of your own; in datasets
3.x this same file is a loading script: `load_dataset("sqid.py", "urls", trust_remote_code=True)`. Its types, for
editors and type checkers, are in sqid-stubs.
"""

from __future__ import annotations

import inspect
import itertools
import logging
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from importlib import metadata
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

from sqid_lib import schemas, sources
from sqid_lib.cache import damaged_files, note_files
from sqid_lib.errors import (
    DiskError,
    DownloadError,
    MissingFileError,
    SqidError,
    UsageError,
    did_you_mean,
    without_secrets,
)
from sqid_lib.joined import rows as joined
from sqid_lib.joined.selection import Selection
from sqid_lib.sources.retry import MOVE_CACHE, disk_error
from sqid_lib.streams.release_files import is_catalogue, shards

__all__ = ["Sqid", "SqidConfig", "load"]

try:
    __version__ = metadata.version("sqid")
except metadata.PackageNotFoundError:  # run from a checkout
    __version__ = "unknown"

_log = logging.getLogger(__name__)
_CITATION = """\
@article{ghossein2024sqid,
  title = {Shopping Queries Image Dataset (SQID): An Image-Enriched ESCI Dataset for Exploring Multimodal Learning in
           Product Search},
  author = {Al Ghossein, Marie and Chen, Ching-Wei and Tang, Jason},
  journal = {arXiv preprint arXiv:2405.15190},
  year = {2024}
}
@article{reddy2022shopping,
  title = {Shopping Queries Dataset: A Large-Scale {ESCI} Benchmark for Improving Product Search},
  author = {Reddy, Chandan K. and others},
  journal = {arXiv preprint arXiv:2206.06588},
  year = {2022}
}
"""


@dataclass
class SqidConfig(datasets.BuilderConfig):  # type: ignore[misc]
    """What to load.

    Attributes:
        esci: directory, https:// or hf:// URL of the three official ESCI files; default: the official repository.
        artifacts: the same for the SQID files or a release; default: the published Hub dataset.
        esci_version: "small" or "large"; `version="large"` means the same.
        esci_split: ESCI split, or a list of them; each becomes a split of the dataset.
        locale: product locale, or a list of them.
        supp_min_judgments: how many judgments a supplementary product has at least.
        labels: every label of the examples with its gain; default: ESCI's.
        artifacts_locale: locale of artifact rows that do not state one.
    """

    esci: str | os.PathLike[str] | None = None
    artifacts: str | os.PathLike[str] | None = None
    esci_version: str = "small"
    esci_split: str | list[str] = "test"
    locale: str | list[str] = "us"
    supp_min_judgments: int = 2
    labels: dict[str, float] | None = None
    artifacts_locale: str = schemas.CLASSIC_LOCALE

    def __repr__(self) -> str:
        values = (f"{field.name}={getattr(self, field.name)!r}" for field in fields(self))
        return without_secrets(f"{type(self).__name__}({', '.join(values)})")

    def create_config_id(self, config_kwargs: dict[str, Any], *args: Any, **kwargs: Any) -> str:
        """As in datasets, but options appear only as a hash: the id names a file, and a URL may hold a password."""
        hidden = {name: [value] for name, value in config_kwargs.items()}  # datasets writes short options as they are
        return str(super().create_config_id(hidden, *args, **kwargs))

    def selection(self) -> Selection:
        """The selection of ESCI; UsageError for an impossible one."""
        if self.labels is not None and not isinstance(self.labels, Mapping):
            raise UsageError("bad labels", where="labels", expected='such as {"E": 1.0}', got=repr(self.labels))
        return Selection(
            self.esci_version,
            _several(self.esci_split),
            _several(self.locale),
            self.supp_min_judgments,
            labels=tuple((self.labels or schemas.GAINS).items()),
        )


def _several(value: str | list[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


class Sqid(datasets.ArrowBasedBuilder):  # type: ignore[misc]
    """The builder of the joined configs; `load` is the short way to use it.

    The cache key covers every option and the version of every file (ETag, commit, or size and time).

    Raises:
        UsageError: an unknown config, version, split or locale.
        SourceError, ContractError: from `download_and_prepare` and `as_streaming_dataset`.
    """

    VERSION = datasets.Version("1.0.0")
    BUILDER_CONFIG_CLASS = SqidConfig
    BUILDER_CONFIGS = [  # noqa: RUF012 - datasets names and reads it
        SqidConfig(name=name, version=datasets.Version("1.0.0"), description=schemas.DECLARED[name].summary)
        for name in schemas.CONFIGS
    ]
    DEFAULT_CONFIG_NAME = schemas.DEFAULT_CONFIG

    def __init__(
        self,
        cache_dir: str | None = None,
        dataset_name: str | None = None,
        config_name: str | None = None,
        hash: str | None = None,
        **kwargs: Any,
    ) -> None:
        if config_name is not None and config_name not in schemas.CONFIGS:
            raise UsageError(
                f"unknown config {config_name!r}", expected=" or ".join(schemas.CONFIGS), fix="Name one of these."
            )
        known = [*(field.name for field in fields(SqidConfig)), *inspect.signature(datasets.DatasetBuilder).parameters]
        if unknown := [name for name in kwargs if name not in known]:
            fix = did_you_mean(unknown[0], known)
            raise UsageError("unknown option", expected="those of SqidConfig", got=repr(unknown[0]), fix=fix)
        if kwargs.get("version") in schemas.VERSIONS:
            kwargs["esci_version"] = kwargs.pop("version")
        for option in ("esci", "artifacts"):
            if kwargs.get(option) is not None:
                kwargs[option] = str(sources.parse_address(kwargs[option]))
        self._files, self._error = self._find(config_name or schemas.DEFAULT_CONFIG, kwargs, cache_dir)
        key = "-".join(filter(None, [hash, joined.fingerprint(self._files)]))
        options = {"cache_dir": cache_dir, "dataset_name": dataset_name or "sqid", "config_name": config_name, **kwargs}
        try:
            super().__init__(hash=key, **options)
        except OSError as error:
            raise _cache_error(error, str(cache_dir or datasets.config.HF_DATASETS_CACHE)) from error
        except (ValueError, TypeError, KeyError, AttributeError):  # wrong options, or a damaged cache
            if not damaged_files(self._note):
                raise
            (self._note.parent / datasets.config.DATASET_INFO_FILENAME).unlink(missing_ok=True)
            super().__init__(hash=key, **options)

    @property
    def _note(self) -> Path:
        """What the files of the prepared rows held when they were written."""
        return Path(getattr(self, "_cache_dir", ""), "sqid.note")

    @staticmethod
    def _find(
        config: str, options: dict[str, Any], cache_dir: str | None
    ) -> tuple[dict[str, tuple[sources.File, ...]], SqidError | None]:
        esci = sources.parse_address(options.get("esci") or sources.ESCI_URL)
        artifacts = sources.parse_address(options.get("artifacts") or sources.SQID_URL)
        try:
            return joined.find_files(config, esci, artifacts, cache_dir), None
        except SqidError as error:  # raised when rows are asked for: without files a builder still has a description
            return {}, error

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(
            description=f"SQID {self.config.name}: {schemas.DECLARED[self.config.name].summary}.",
            features=schemas.config_features(self.config.name),
            homepage="https://github.com/Crossing-Minds/shopping-queries-image-dataset",
            citation=_CITATION,
            license="MIT (SQID), Apache-2.0 (ESCI)",
        )

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        if self._error is not None:
            raise self._error
        config: SqidConfig = self.config
        streaming = bool(dl_manager.is_streaming)
        force = bool(getattr(dl_manager.download_config, "force_download", False))
        files = joined.download(self._files, self._cache_dir_root, streaming=streaming, force=force)
        memory = 0 if streaming else joined.MEMORY
        scratch = os.path.join(self._cache_dir_root, "sqid-scratch")  # noqa: PTH118
        plans = {
            split: joined.Plan(config.name, chosen, files, config.artifacts_locale, scratch, memory)
            for split, chosen in joined.splits(config.name, config.selection()).items()
        }
        width = joined.width(next(iter(plans.values())))
        self.info.features = schemas.config_features(config.name, width)
        shards = list(range(joined.SHARDS))  # datasets divides a list among workers and nodes
        return [
            datasets.SplitGenerator(name=split, gen_kwargs={"shards": shards, "plan": plan})
            for split, plan in plans.items()
        ]

    def _generate_tables(self, shards: list[int], plan: joined.Plan) -> Iterator[tuple[str, pa.Table]]:
        for i, table in enumerate(joined.tables(plan, list(shards))):
            yield f"{shards[0]}-{i}", table

    def _as_dataset(self, split: Any = "train", in_memory: bool = False) -> datasets.Dataset:
        rows = self.info.splits.get(str(split)) if self.info.splits else None
        if rows is not None and not rows.num_examples:  # datasets refuses a split without rows, which may be right
            empty = self.info.features.arrow_schema.empty_table()
            return datasets.Dataset(empty, info=self.info.copy(), split=datasets.NamedSplit(str(split)))
        return super()._as_dataset(split=split, in_memory=in_memory)

    def _prepare_split_single(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        """As in datasets, but errors of ours, warnings that are errors, and a full disk are not wrapped."""
        try:
            yield from super()._prepare_split_single(*args, **kwargs)
        except datasets.exceptions.DatasetGenerationError as error:
            if isinstance(error.__cause__, SqidError | Warning):
                raise error.__cause__ from None
            if isinstance(error.__cause__, OSError):
                raise _cache_error(error.__cause__, self._cache_dir_root) from error
            raise

    def download_and_prepare(self, *args: Any, **kwargs: Any) -> None:
        """As in datasets; damaged rows in the cache are prepared again. DiskError where it cannot be written."""
        if damaged := damaged_files(self._note):
            _log.warning("%s: the rows in the cache are damaged; they are prepared again", damaged[0])
            kwargs["download_mode"] = kwargs.get("download_mode") or datasets.DownloadMode.REUSE_CACHE_IF_EXISTS
        try:
            super().download_and_prepare(*args, **kwargs)
        except OSError as error:
            raise _cache_error(error, self._cache_dir_root) from error
        if not self._note.exists():
            note_files(self._note, [p for p in self._note.parent.glob("*") if p.suffix in (".arrow", ".json")])


def _cache_error(error: OSError, cache: str) -> Exception:
    if isinstance(error, SqidError):
        return error
    found = disk_error(error, cache)
    return found or DiskError(error.strerror or str(error), where=error.filename or cache, fix=MOVE_CACHE)


def _dataset_split(config: str, split: str, streaming: bool) -> list[str]:
    """The ESCI splits that a split names: "train+test[:10%]" → ["train", "test"]; UsageError for others."""
    names = list(dict.fromkeys(re.findall(r"[A-Za-z_]+", re.sub(r"\[[^\]]*\]", "", str(split)))))
    known = (schemas.SUPP_SPLIT,) if config == schemas.SUPP else schemas.SPLITS
    if not names or any(name not in known for name in names):
        raise UsageError("unknown split", where=config, expected=" or ".join(known), got=repr(split))
    if streaming and "[" in str(split):
        raise UsageError("a stream has no slices", where=config, got=repr(split), fix="Use .take(n) and .skip(n).")
    return names


def _check_slices(split: str, rows: Mapping[str, Any]) -> None:
    """Raise UsageError for slices that cannot be read, or that overlap: datasets would give their rows twice."""
    try:
        parts = datasets.ReadInstruction.from_spec(split).to_absolute({n: s.num_examples for n, s in rows.items()})
    except (ValueError, AssertionError) as error:
        raise UsageError(
            f"not a split: {error}", got=repr(split), expected="such as test[:10%] or train+test"
        ) from error
    spans = sorted((part.splitname, part.from_, part.to) for part in parts if part.from_ < part.to)
    for (name, _, stop), (other, start, _) in itertools.pairwise(spans):
        if name == other and start < stop:
            raise UsageError(
                f"the slices overlap: rows {start} to {stop} of {name} would come twice",
                got=repr(split),
                fix="Name each row once.",
            )


def _catalogue_files(address: str | os.PathLike[str], config: str) -> dict[str, list[str]] | None:
    """Split → files of a config, if the address is that of a release of a shop's own catalogue; otherwise None."""
    place = sources.parse_address(address)
    try:
        files = sources.listing(place)
    except (MissingFileError, DownloadError):  # no place, or offline: what needs its files says so
        return None
    manifest = files.get(schemas.MANIFEST)
    if manifest is None or not is_catalogue(Path(sources.download(manifest).path)):
        return None
    found: dict[str, list[str]] = {}
    for split, name in shards(files, config, place):
        found.setdefault(split, []).append(files[name].url)
    if not found:
        known = [name for name in schemas.CONFIGS if shards(files, name, place)]
        raise UsageError(f"the release has no config {config!r}", where=address, expected=" or ".join(known))
    return found


def load(
    config: str = schemas.DEFAULT_CONFIG,
    split: str | None = None,
    *,
    esci: str | os.PathLike[str] | None = None,
    artifacts: str | os.PathLike[str] | None = None,
    version: str = "small",
    locale: str | list[str] = "us",
    streaming: bool = False,
    cache_dir: str | None = None,
    num_proc: int | None = None,
    download_mode: str | None = None,
    **options: Any,
) -> Any:
    """A joined config, made from the published files or from yours.

    Args:
        config: urls, product_features, query_features, supp or judgments.
        split: "test", "train", "train+test", "test[:10%]"; None for a dict of the splits, by default of "test" alone.
            supp has the one split "train".
        esci: directory, https:// URL, ORG/NAME or hf://datasets/ORG/NAME[@REVISION] of the official ESCI files.
        artifacts: the same for the four SQID files or a release. Products and queries that they lack come back as
            missing: image_status "missing", has_image false, zero vectors. The release of a shop's own catalogue,
            without `esci`, is returned as it is: it is joined already.
        version: "small" or "large".
        locale: "us", "es", "jp" or a list of them.
        streaming: rows are made while they are read, and nothing is prepared on disk.
        cache_dir: directory of prepared rows and downloads; default: that of datasets.
        num_proc: number of processes that prepare the rows.
        download_mode: as in `datasets.load_dataset`.
        options: further fields of `SqidConfig`.

    Returns:
        Dataset or DatasetDict; when streaming IterableDataset or IterableDatasetDict. Vectors are fixed lists of
        float32, never null: zeros with `has_image` false where there is no image.

    Warns:
        UserWarning: artifacts cover under half of the selection, hold rows that ESCI does not know, or nothing is
            selected.

    Raises:
        UsageError: an unknown config, split, version or locale, or slices that overlap.
        SourceError: a file is missing, unreadable, or not what it should be.
        ContractError: duplicated keys, unknown labels, judged products without a row, vectors with NaN beside numbers.
        DiskError: the cache is full or cannot be written.
    """
    if esci is None and artifacts is not None and (files := _catalogue_files(artifacts, config)) is not None:
        if options or version != "small" or locale != "us":
            raise UsageError("a catalogue is joined already", where=artifacts, fix="Leave the options of ESCI out.")
        own = {"cache_dir": cache_dir, "num_proc": num_proc, "download_mode": download_mode}
        return datasets.load_dataset("parquet", data_files=files, split=split, streaming=streaming, **own)
    if split is not None and config in schemas.CONFIGS:
        names = _dataset_split(config, split, streaming)
        if config != schemas.SUPP:
            options.setdefault("esci_split", names)
    builder = Sqid(
        cache_dir=cache_dir,
        config_name=config,
        esci=esci,
        artifacts=artifacts,
        esci_version=version,
        locale=locale,
        **options,
    )
    builder.config.selection()
    if streaming:
        return builder.as_streaming_dataset(split=split)
    builder.download_and_prepare(download_mode=download_mode, num_proc=num_proc)
    if split is not None:
        _check_slices(str(split), builder.info.splits)
    return builder.as_dataset(split=split)
