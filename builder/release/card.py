"""The Hub card of a release: prose from dataset_card.md, YAML and tables from the recipe and the data."""

from __future__ import annotations

import re
from collections.abc import Container
from importlib import resources
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from builder.release import card_tables
from builder.release.card_yaml import SEPARATOR
from builder.release.catalogue_values import stated_parts
from builder.release.stated import licence_entries, markdown, one_line
from builder.release.statistics import Statistics
from sqid_lib import schemas
from sqid_lib.files import replacing

if TYPE_CHECKING:
    from builder.recipe import Recipe

TITLE = "SQID: Shopping Queries Image Dataset"
LICENCES = ("apache-2.0", "mit")  # of ESCI's text and judgments, and of what SQID adds
SIZES = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 1_000_000: "100K<n<1M", 10_000_000: "1M<n<10M"}
_PART = re.compile(r"<!-- with (\w+) -->\n(.*?)<!-- end -->\n", re.DOTALL)


def write_card(release: Path, recipe: Recipe, statistics: Statistics, *, revision: str | None) -> Path:
    """Write README.md for the data files now in `release`; the same files, recipe and packages give the same bytes.

    Args:
        statistics: those of the data files.
        revision: resolved commit of the encoder's model.
    """
    from huggingface_hub import DatasetCard

    folder = resources.files("builder")
    path = folder / "release" / "catalogue_card.md" if recipe.catalogue else folder / "dataset_card.md"
    values = card_tables.values(release, statistics, recipe, revision)
    present = {*statistics.splits, *stated_parts(values)}
    template = _with_parts(path.read_text(encoding="utf-8"), present)
    body = Template(template).substitute(values, title=markdown(_title(recipe)))
    body = re.sub(r"\n{3,}", "\n\n", body).strip()  # a name that stands for nothing leaves blank lines
    card = DatasetCard(f"{SEPARATOR}\n{metadata(statistics, recipe).to_yaml()}\n{SEPARATOR}\n\n{body}\n")
    path = release / schemas.CARD
    with replacing(path) as part:
        card.save(part)
    return path


def metadata(statistics: Statistics, recipe: Recipe) -> Any:
    """The YAML block, as `huggingface_hub.DatasetCardData`; it names only languages that are known.

    Of a catalogue it states what [card] states. Of ESCI it states what is known of it, unless [card] states otherwise.
    """
    from huggingface_hub import DatasetCardData

    if recipe.catalogue:
        return DatasetCardData(**_of_catalogue(statistics, recipe))
    locales = recipe.selection.locales
    languages = list(recipe.card.language) or known_languages(locales)
    all_known = all(locale in schemas.ESCI_LOCALES for locale in locales)
    multilinguality = "multilingual" if len(languages) > 1 else "monolingual" if all_known else None
    return DatasetCardData(
        pretty_name=_title(recipe),
        **licence_entries(recipe.card.licence or LICENCES),
        language=languages or None,
        multilinguality=multilinguality,
        annotations_creators=["found"],
        language_creators=["found"],
        source_datasets=["extended|other-shopping-queries-dataset"],
        task_categories=["text-retrieval", "text-ranking", "image-feature-extraction"],
        size_categories=[size_category(statistics)],
        tags=["e-commerce", "product-search", "multimodal", "clip", "embeddings", "image", "text", "esci"],
        configs=[_config(config, statistics) for config in statistics.splits],
        dataset_info=dataset_info(statistics),
    )


def _of_catalogue(statistics: Statistics, recipe: Recipe) -> dict[str, Any]:
    judged = ["text-ranking"] if schemas.JUDGMENTS in statistics.splits else []
    return {
        "pretty_name": _title(recipe),
        **licence_entries(recipe.card.licence),
        "language": list(recipe.card.language) or None,
        "task_categories": ["text-retrieval", *judged, "image-feature-extraction"],
        "size_categories": [size_category(statistics)],
        "tags": ["e-commerce", "product-search", "multimodal", "embeddings", "image", "text"],
        "configs": [_config(config, statistics) for config in statistics.splits],
        "dataset_info": dataset_info(statistics),
    }


def known_languages(locales: tuple[str, ...]) -> list[str]:
    """The languages (ISO 639-1) of the locales whose language is known, each once."""
    return list(dict.fromkeys(schemas.ESCI_LOCALES[name] for name in locales if name in schemas.ESCI_LOCALES))


def size_category(statistics: Statistics) -> str:
    """The Hub's name for the number of rows of the largest config."""
    largest = max(statistics.rows(config) for config in statistics.splits)
    return next((name for limit, name in SIZES.items() if largest < limit), "10M<n<100M")


def dataset_info(statistics: Statistics) -> list[dict[str, Any]]:
    """`dataset_info` of the YAML block: features, splits and sizes of each config.

    A fixed-size list is written `sequence: float32, length: N`: datasets 3.6 and 5 read that alike, while the `list:`
    that datasets 4 and later write loses its length in 3.6. The key `sequence` must come before `length`.
    """
    info = []
    for config, splits in statistics.splits.items():
        sizes = [
            {"name": name, "num_bytes": split.memory, "num_examples": split.rows} for name, split in splits.items()
        ]
        info.append(
            {
                "config_name": config,
                "features": [_feature(field) for field in statistics.columns[config]],
                "splits": sizes,
                "download_size": sum(split.disk for split in splits.values()),
                "dataset_size": sum(split.memory for split in splits.values()),
            }
        )
    return info


def _with_parts(template: str, present: Container[str]) -> str:
    """The template without the parts `<!-- with NAME -->` … `<!-- end -->` of which the name is not in `present`."""
    return _PART.sub(lambda part: part[2] if part[1] in present else "", template)


def _title(recipe: Recipe) -> str:
    published = recipe.name == "sqid" and recipe.catalogue is None
    return one_line(recipe.card.title) or (TITLE if published else recipe.name)


def shard_pattern(config: str, split: str) -> str:
    """The pattern of `data_files` that matches the files of a split."""
    return f"data/{config}/{split}-*.parquet"


def _config(config: str, statistics: Statistics) -> dict[str, Any]:
    files = [{"split": name, "path": shard_pattern(config, name)} for name in statistics.splits[config]]
    default = {"default": True} if config == schemas.DEFAULT_CONFIG else {}
    return {"config_name": config, "data_files": files, **default}


def _feature(field: pa.Field) -> dict[str, Any]:
    if pa.types.is_fixed_size_list(field.type):
        dtype = card_tables.dtype_name(field.type.value_type)
        return {"name": field.name, "sequence": dtype, "length": field.type.list_size}
    return {"name": field.name, "dtype": card_tables.dtype_name(field.type)}
