"""The generated sentences and tables of the card, one value per `$name` of dataset_card.md."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from builder.release import manifest
from builder.release.statistics import Facts
from sqid_lib import schemas

if TYPE_CHECKING:
    from builder.recipe import Recipe

_THINGS = {"supp": "supplementary products"}


def values(
    release: Path,
    facts: Facts,
    recipe: Recipe,
    revision: str | None,
    benchmarks: Sequence[Mapping[str, Any]],
) -> dict[str, str]:
    """What the template's names stand for; nothing is claimed that the data or the recipe does not show."""
    selection = recipe.selection
    main = facts.splits[schemas.DEFAULT_CONFIG]
    classic = [name for name in schemas.CLASSIC_FILES if (release / name).exists()]
    return {
        "name": recipe.name,
        "version": recipe.version,
        "notice": _notice(recipe),
        "model": manifest.public(recipe.encoder.model),
        "width": str(facts.width),
        "split": next(iter(main)),
        "judgments_shard": next(iter(facts.splits[schemas.JUDGMENTS].values())).files[0],
        "locales": ", ".join(selection.locales),
        "esci_version": selection.version,
        "supp_rows": f"{facts.rows(schemas.SUPP):,}",
        "supp_min_judgments": str(selection.supp_min_judgments),
        "supp_vectors": "" if selection.embed_supp else ", and no embeddings",
        "selection_sentence": _selection(recipe),
        "published_sentence": _published(facts),
        "urls_sentence": _urls(recipe),
        "generic_sentence": _generic(facts),
        "encoder_biases": _encoder_biases(recipe),
        "classic_files": _classic(classic),
        **{f"{name}_table": text for name, text in data_tables(facts).items()},
        "versions_table": _versions(recipe, revision),
        "benchmarks": benchmarks_section(benchmarks),
    }


def data_tables(facts: Facts) -> dict[str, str]:
    """The tables that the data alone decides."""
    return {
        "configs": _configs(facts),
        "counts": _counts(facts),
        "columns": _columns(facts),
        "coverage": _coverage(facts),
    }


def table(head: Sequence[str], rows: Iterable[Sequence[object]], *, right: Sequence[int] = ()) -> str:
    """A markdown table; `right` are the columns of numbers."""
    rule = ["---:" if i in right else "---" for i in range(len(head))]
    lines = [head, rule, *([_cell(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: object) -> str:
    text = f"{value:,}" if isinstance(value, int) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def _notice(recipe: Recipe) -> str:
    if recipe.name == "sqid":
        return ""
    source = manifest.public(recipe.esci.path)
    return (
        f"> **This is `{recipe.name}`, not the published SQID.** It was built from files in ESCI's layout at "
        f"`{source}`. What is said below of ESCI and Amazon holds as far as those files are ESCI's.\n"
    )


def _selection(recipe: Recipe) -> str:
    chosen = recipe.selection
    task = "`small_version == 1` (Task 1)" if chosen.version == "small" else "`large_version == 1`"
    splits = " or ".join(f"`{split}`" for split in chosen.splits)
    locales = " or ".join(f"`{locale}`" for locale in chosen.locales)
    return (
        f"All judgments of ESCI with {task}, split {splits} and product locale {locales}, "
        "with their queries and products."
    )


def _published(facts: Facts) -> str:
    published = schemas.PUBLISHED_COUNTS
    if facts.counts == published:
        return "These are the counts of the published SQID."
    stated = ", ".join(f"{number:,} {_THINGS.get(name, name)}" for name, number in published.items())
    return f"This is another cut than the published SQID, which has {stated}."


def _urls(recipe: Recipe) -> str:
    if recipe.artifacts is not None:
        return "Urls and embeddings were taken over from existing SQID files and joined with ESCI."
    pages = " and product pages" if recipe.resolve.pages.permission else ""
    return (
        f"Urls come from tables of product id and url{pages}; the pictures of judged products were then downloaded "
        "once and decoded."
    )


def _generic(facts: Facts) -> str:
    count = facts.statuses.get(schemas.FEATURES, {}).get(schemas.GENERIC, 0)
    if not count:
        return ""
    return (
        f" {count:,} products share one default picture (status `generic`); it is embedded, as in the published SQID."
    )


def _encoder_biases(recipe: Recipe) -> str:
    if recipe.encoder.model.startswith("openai/clip-"):
        return (
            "It was trained on pictures and captions from the web, knows English best, reads text in pictures, and "
            "associates people's looks with words in ways that should not be relied on."
        )
    return f"Whatever `{manifest.public(recipe.encoder.model)}` was trained on shows in the vectors."


def _classic(names: Sequence[str]) -> str:
    if not names:
        return ""
    listed = ", ".join(f"`{name}`" for name in names)
    return f"{listed} hold the same under the names and columns of the published files, null where there is no image."


def _configs(facts: Facts) -> str:
    rows = []
    for config, splits in facts.splits.items():
        for name, split in splits.items():
            label = f"`{config}`" + (" (default)" if config == schemas.DEFAULT_CONFIG else "")
            rows.append((label, name, split.rows, _bytes(split.disk), schemas.DECLARED[config].summary))
    return table(("config", "split", "rows", "size", "what"), rows, right=(2, 3))


def _counts(facts: Facts) -> str:
    judgments = sum(facts.labels.values())
    rows: list[tuple[str, int, str]] = [(_THINGS.get(name, name), count, "") for name, count in facts.counts.items()]
    for label, count in facts.labels.items():
        rows.append((f"label {label}: {schemas.LABELS[label]}", count, _share(count, judgments)))
    return table(("", "rows", "of all judgments"), rows, right=(1, 2))


def _columns(facts: Facts) -> str:
    alike: dict[str, list[str]] = {}  # configs with the same columns share a table
    for config, schema in facts.columns.items():
        rows = []
        for field in schema:
            is_list = pa.types.is_fixed_size_list(field.type)
            dtype = f"{field.type.value_type}[{field.type.list_size}]" if is_list else str(field.type)
            rows.append((f"`{field.name}`", dtype.replace("float", "float32"), schemas.column_meaning(field.name)))
        alike.setdefault(table(("column", "type", "meaning"), rows), []).append(f"`{config}`")
    return "\n\n".join(f"**{', '.join(configs)}**\n\n{text}" for text, configs in alike.items())


def _coverage(facts: Facts) -> str:
    main, supp = (facts.statuses.get(config, {}) for config in (schemas.DEFAULT_CONFIG, schemas.SUPP))
    total = sum(main.values())
    rows = [
        (f"`{status}`", meaning, main.get(status, 0), _share(main.get(status, 0), total), supp.get(status, 0))
        for status, meaning in schemas.IMAGE_STATUS.items()
        if status in main or status in supp
    ]
    return table(("image_status", "meaning", "products", "share", "supplementary"), rows, right=(2, 3, 4))


def _versions(recipe: Recipe, revision: str | None) -> str:
    encoder = recipe.encoder
    weights = f"`{manifest.public(encoder.model)}`" + (f" at `{revision}`" if revision else "")
    rows: list[tuple[str, str]] = [("release", f"{recipe.name} {recipe.version}"), ("encoder", weights)]
    if recipe.artifacts is None:
        rows.append(("computed in", f"{encoder.dtype}, {encoder.backend}"))
    rows += manifest.versions().items()
    return table(("what", "version"), rows)


def benchmarks_section(benchmarks: Sequence[Mapping[str, Any]]) -> str:
    """The measured rankings as `sqid evaluate --json` gives them; nothing where nothing was measured."""
    if not benchmarks:
        return ""
    rows = []
    for line in benchmarks:
        low, high = line.get("ndcg_low"), line.get("ndcg_high")
        interval = "not measured" if low is None or high is None else f"{low:.4f} to {high:.4f}"
        rows.append((line["method"], f"{line['ndcg']:.4f}", interval))
    text = (
        "The judged products of each query, ranked; measured on this release by `sqid evaluate`: mean nDCG over the "
        "full lists with linear gain, ties broken by product id, a product without an image scored 0."
    )
    head = ("method", "nDCG", "95 % bootstrap interval")
    return f"## Benchmarks\n\n{text}\n\n{table(head, rows, right=(1, 2))}"


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.2%}" if whole else ""


def _bytes(number: int) -> str:
    size, unit = float(number), "B"
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
