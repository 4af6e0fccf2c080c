"""The Hub card of a release: prose from dataset_card.md, YAML and tables from the recipe and the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from builder.release import card_tables as tables
from builder.release import manifest
from builder.release.statistics import Facts, gather
from sqid_lib import schemas
from sqid_lib.errors import CorruptFileError, MissingFileError, UsageError
from sqid_lib.files import replacing

if TYPE_CHECKING:
    from builder.recipe import Recipe

TITLE = "SQID: Shopping Queries Image Dataset"
LANGUAGES = {"us": "en", "es": "es", "jp": "ja"}
SIZES = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 1_000_000: "100K<n<1M", 10_000_000: "1M<n<10M"}
_SEPARATOR = "---"
_BENCHMARKS, _BENCHMARKS_END = "<!-- benchmarks -->", "<!-- end of benchmarks -->"
_MAX_BYTES = 4_000_000


def write_card(
    release: Path, recipe: Recipe, *, revision: str | None, benchmarks: Sequence[Mapping[str, Any]] = ()
) -> Path:
    """Write README.md for the data files now in `release`; the same files, recipe and packages give the same bytes.

    Args:
        revision: resolved commit of the encoder's model.
        benchmarks: measured rankings, as `sqid evaluate --json` prints them: method, ndcg, ndcg_low, ndcg_high.

    Raises:
        CorruptFileError: a parquet file cannot be read.
        MissingFileError: a config has no files.
    """
    from huggingface_hub import DatasetCard

    facts = gather(release)
    absent = [config for config in schemas.CONFIGS if config not in facts.splits]
    if absent:
        raise MissingFileError("configs without parquet files", where=release / "data", got=", ".join(absent))
    template = (resources.files("builder") / "dataset_card.md").read_text(encoding="utf-8")
    values = tables.values(release, facts, recipe, revision, benchmarks)
    body = Template(template).substitute(values, title=_title(recipe))
    # without measured numbers a section is empty: one blank line is enough
    body = "\n".join(line for line, after in _pairs(body.splitlines()) if line or after)
    text = f"{_SEPARATOR}\n{metadata(facts, recipe).to_yaml()}\n{_SEPARATOR}\n\n{body}\n"
    card = DatasetCard(text)
    path = release / schemas.CARD
    with replacing(path) as part:
        card.save(part)
    return path


def write_benchmarks(release: Path, benchmarks: Sequence[Mapping[str, Any]]) -> None:
    """Put measured rankings into README.md of a finished release, in place of earlier ones; manifest and sums follow.

    Args:
        benchmarks: what `sqid evaluate --json` prints for this release; none removes the section.

    Raises:
        UsageError: they were measured with other gains, or with products without an image left out.
        CorruptFileError: README.md has no place for them.
        MissingFileError: there is no README.md or manifest.json.
    """
    for line in benchmarks:
        if (line.get("gains", "esci"), line.get("missing", "zero")) != ("esci", "zero"):
            raise UsageError(
                "the card shows the published convention",
                where=line.get("method"),
                expected='gains "esci" and missing "zero"',
                got=f"{line.get('gains')!r} and {line.get('missing')!r}",
            )
    path = release / schemas.CARD
    if not path.exists():
        raise MissingFileError("not there", where=path, fix="Build the release again.")
    before, begin, rest = path.read_text(encoding="utf-8").partition(_BENCHMARKS)
    _, end, after = rest.partition(_BENCHMARKS_END)
    if not end:
        raise CorruptFileError("no place for benchmarks", where=path, expected=f"{_BENCHMARKS} and {_BENCHMARKS_END}")
    with replacing(path) as part:
        text = f"{before}{begin}\n{tables.benchmarks_section(benchmarks)}\n{end}{after}"
        part.write_text(text, encoding="utf-8")
    manifest.refresh(release, schemas.CARD)


def metadata(facts: Facts, recipe: Recipe) -> Any:
    """The YAML block, as `huggingface_hub.DatasetCardData`."""
    from huggingface_hub import DatasetCardData

    languages = [LANGUAGES[locale] for locale in recipe.selection.locales]
    largest = max(facts.rows(config) for config in schemas.CONFIGS)
    return DatasetCardData(
        pretty_name=_title(recipe),
        license=["apache-2.0", "mit"],
        language=languages,
        multilinguality="monolingual" if len(languages) == 1 else "multilingual",
        annotations_creators=["found"],
        language_creators=["found"],
        source_datasets=["extended|other-shopping-queries-dataset"],
        task_categories=["text-retrieval", "text-ranking", "image-feature-extraction"],
        size_categories=[next((name for limit, name in SIZES.items() if largest < limit), "10M<n<100M")],
        tags=["e-commerce", "product-search", "multimodal", "clip", "embeddings", "image", "text", "esci"],
        configs=[_config(config, facts) for config in schemas.CONFIGS],
        dataset_info=dataset_info(facts),
    )


def dataset_info(facts: Facts) -> list[dict[str, Any]]:
    """`dataset_info` of the YAML block: features, splits and sizes of each config.

    A fixed-size list is written `sequence: float32, length: N`: datasets 3.6 and 5 read that alike, while the `list:`
    that datasets 4 and later write loses its length in 3.6. The key `sequence` must come before `length`.
    """
    info = []
    for config, splits in facts.splits.items():
        sizes = [
            {"name": name, "num_bytes": split.memory, "num_examples": split.rows} for name, split in splits.items()
        ]
        info.append(
            {
                "config_name": config,
                "features": [_feature(field) for field in facts.columns[config]],
                "splits": sizes,
                "download_size": sum(split.disk for split in splits.values()),
                "dataset_size": sum(split.memory for split in splits.values()),
            }
        )
    return info


def read_metadata(release: Path) -> dict[str, Any]:
    """The YAML block of README.md as plain values.

    Raises:
        MissingFileError: there is no README.md.
        CorruptFileError: it has no YAML block, or one that cannot be read.
    """
    from huggingface_hub import DatasetCard

    path = release / schemas.CARD
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_BYTES).decode("utf-8")
        if not text.startswith(_SEPARATOR) or f"\n{_SEPARATOR}\n" not in text:
            raise CorruptFileError("no YAML block", where=path, expected="--- … --- at the start")
        return {key: value for key, value in vars(DatasetCard(text).data).items() if value is not None}
    except FileNotFoundError as error:
        raise MissingFileError("not there", where=path, fix="Build the release again.") from error
    except CorruptFileError:
        raise
    except Exception as error:  # the yaml and card classes raise many kinds on hostile text
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CorruptFileError(f"its YAML block cannot be read ({reason})", where=path) from error


def _title(recipe: Recipe) -> str:
    return TITLE if recipe.name == "sqid" else recipe.name


def _config(config: str, facts: Facts) -> dict[str, Any]:
    files = [
        {"split": name, "path": f"{Path(split.files[0]).parent}/{name}-*.parquet"}
        for name, split in facts.splits[config].items()
    ]
    default = {"default": True} if config == schemas.DEFAULT_CONFIG else {}
    return {"config_name": config, "data_files": files, **default}


def _feature(field: pa.Field) -> dict[str, Any]:
    if pa.types.is_fixed_size_list(field.type):
        return {"name": field.name, "sequence": _dtype(field.type.value_type), "length": field.type.list_size}
    return {"name": field.name, "dtype": _dtype(field.type)}


def _dtype(dtype: pa.DataType) -> str:
    return {"float": "float32", "double": "float64"}.get(str(dtype), str(dtype))


def _pairs(lines: list[str]) -> list[tuple[str, str]]:
    """Each line with the one after it."""
    return list(zip(lines, [*lines[1:], "end"], strict=True))
