"""Types of sqid.py: a module that is no package cannot carry py.typed, so they are installed beside it."""

import os
from dataclasses import dataclass
from typing import Any, Literal, overload

from datasets.arrow_dataset import Dataset
from datasets.builder import ArrowBasedBuilder, BuilderConfig
from datasets.dataset_dict import DatasetDict, IterableDatasetDict
from datasets.iterable_dataset import IterableDataset

from sqid_lib.joined.selection import Selection

__version__: str

_Path = str | os.PathLike[str]

@dataclass
class SqidConfig(BuilderConfig):
    esci: _Path | None = None
    artifacts: _Path | None = None
    esci_version: str = "small"
    esci_split: str | list[str] = "test"
    locale: str | list[str] = "us"
    supp_min_judgments: int = 2
    labels: dict[str, float] | None = None
    artifacts_locale: str = "us"

    def selection(self) -> Selection: ...

class Sqid(ArrowBasedBuilder):
    def __init__(
        self,
        cache_dir: str | None = None,
        dataset_name: str | None = None,
        config_name: str | None = None,
        hash: str | None = None,
        **kwargs: Any,
    ) -> None: ...

@overload
def load(
    config: str = "urls",
    split: None = None,
    *,
    esci: _Path | None = None,
    artifacts: _Path | None = None,
    version: str = "small",
    locale: str | list[str] = "us",
    streaming: Literal[False] = False,
    cache_dir: str | None = None,
    num_proc: int | None = None,
    download_mode: str | None = None,
    **options: Any,
) -> DatasetDict: ...
@overload
def load(
    config: str,
    split: str,
    *,
    esci: _Path | None = None,
    artifacts: _Path | None = None,
    version: str = "small",
    locale: str | list[str] = "us",
    streaming: Literal[False] = False,
    cache_dir: str | None = None,
    num_proc: int | None = None,
    download_mode: str | None = None,
    **options: Any,
) -> Dataset: ...
@overload
def load(
    config: str = "urls",
    *,
    split: str,
    esci: _Path | None = None,
    artifacts: _Path | None = None,
    version: str = "small",
    locale: str | list[str] = "us",
    streaming: Literal[False] = False,
    cache_dir: str | None = None,
    num_proc: int | None = None,
    download_mode: str | None = None,
    **options: Any,
) -> Dataset: ...
@overload
def load(
    config: str = "urls",
    split: None = None,
    *,
    esci: _Path | None = None,
    artifacts: _Path | None = None,
    version: str = "small",
    locale: str | list[str] = "us",
    streaming: Literal[True],
    cache_dir: str | None = None,
    num_proc: int | None = None,
    download_mode: str | None = None,
    **options: Any,
) -> IterableDatasetDict: ...
@overload
def load(
    config: str,
    split: str,
    *,
    esci: _Path | None = None,
    artifacts: _Path | None = None,
    version: str = "small",
    locale: str | list[str] = "us",
    streaming: Literal[True],
    cache_dir: str | None = None,
    num_proc: int | None = None,
    download_mode: str | None = None,
    **options: Any,
) -> IterableDataset: ...
@overload
def load(
    config: str = "urls",
    *,
    split: str,
    esci: _Path | None = None,
    artifacts: _Path | None = None,
    version: str = "small",
    locale: str | list[str] = "us",
    streaming: Literal[True],
    cache_dir: str | None = None,
    num_proc: int | None = None,
    download_mode: str | None = None,
    **options: Any,
) -> IterableDataset: ...
@overload
def load(
    config: str = "urls",
    split: str | None = None,
    *,
    esci: _Path | None = None,
    artifacts: _Path | None = None,
    version: str = "small",
    locale: str | list[str] = "us",
    streaming: bool = False,
    cache_dir: str | None = None,
    num_proc: int | None = None,
    download_mode: str | None = None,
    **options: Any,
) -> DatasetDict | Dataset | IterableDatasetDict | IterableDataset: ...
