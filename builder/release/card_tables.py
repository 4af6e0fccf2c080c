"""The generated sentences and tables of the card, one value per `$name` of dataset_card.md."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from builder.release import catalogue_values, manifest
from builder.release.card_labels import CLICKS, NUMBERS, Labels, own_labels
from builder.release.stated import additions, one_line
from builder.release.statistics import Statistics
from sqid_lib import schemas
from sqid_lib.joined.selection import ALL

if TYPE_CHECKING:
    from builder.recipe import Recipe

# what differs for a shop's own catalogue, whose images may be files
_OWN_MEANINGS = {"image_count": "how many images the catalogue has of the product; the first is used"}
_OWN_STATUSES = {
    schemas.MISSING: "the catalogue names no image",
    "not_found": "there is no such file, or the server answered 404 or 410",
    "refused": "the address, or the place of the file, is not allowed",
}
dtype_name = schemas.type_name
_COUNTED = {"supp": "supplementary products"}  # where the name of a count is not plain enough


def values(release: Path, statistics: Statistics, recipe: Recipe, revision: str | None) -> dict[str, str]:
    """What the template's names stand for; nothing is claimed that the data or the recipe does not show."""
    main = statistics.splits[schemas.DEFAULT_CONFIG]
    classic = [name for name in schemas.CLASSIC_FILES if (release / name).exists()]
    own = own_labels(statistics) if recipe.catalogue else None
    tables = data_tables(statistics, own or recipe.selection.gains)
    common = {
        "name": recipe.name,
        "version": recipe.version,
        "model": manifest.public(recipe.encoder.model),
        "width": str(statistics.width),
        "product_text": catalogue_values.product_text(recipe),
        "vectors_sentence": _vectors(recipe, statistics),
        "split": next(iter(main)),
        "classic_files": _classic(classic, own=own is not None),
        **{f"{name}_table": text for name, text in tables.items()},
        "versions_table": _versions(recipe, revision),
    }
    return common | (catalogue_values.values(recipe, statistics, own) if own else _of_esci_values(recipe, statistics))


def _vectors(recipe: Recipe, statistics: Statistics) -> str:
    if recipe.artifacts is not None or recipe.encoder.backend != "sentence-transformers":
        return "Both are taken after the projection into the shared space and stored as float32, *not* normalised."
    of_texts = any("not_encoded" in found for found in statistics.statuses.values())
    alone = " The model takes texts only, so no image has a vector." if of_texts else ""
    return f"They are those of `SentenceTransformer.encode`, stored as float32.{alone}"


def _of_esci_values(recipe: Recipe, statistics: Statistics) -> dict[str, str]:
    selection = recipe.selection
    return {
        "notice": _notice(recipe),
        "stated": additions(recipe.card),
        "judgments_shard": _first_file(statistics, schemas.JUDGMENTS),
        "locales": ", ".join(selection.locales),
        "supp_sentence": _supp(recipe, statistics),
        "selection_sentence": _selection(recipe),
        "published_sentence": _published(statistics),
        "labels_sentence": _labels(selection.gains),
        "urls_sentence": _urls(recipe),
        "generic_sentence": _generic(statistics),
        "encoder_biases": _encoder_biases(recipe),
    }


def data_tables(statistics: Statistics, labels: Mapping[str, float] | Labels) -> dict[str, str]:
    """The tables that follow from the data and from its labels.

    Args:
        labels: the gain of each label of ESCI or of a recipe in its layout; the own `Labels` of a catalogue.
    """
    if isinstance(labels, Labels):
        return {
            "configs": _configs(statistics, own=True),
            "counts": _own_counts(statistics, labels),
            "columns": _own_columns(statistics, labels),
            "coverage": _own_coverage(statistics),
        }
    return {
        "configs": _configs(statistics),
        "counts": _counts(statistics, labels),
        "columns": _columns(statistics, labels),
        "coverage": _coverage(statistics),
    }


def table(head: Sequence[str], rows: Iterable[Sequence[object]], *, right: Sequence[int] = ()) -> str:
    """A markdown table; `right` are the columns of numbers."""
    rule = ["---:" if i in right else "---" for i in range(len(head))]
    lines = [head, rule, *([_cell(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: object) -> str:
    text = f"{value:,}" if isinstance(value, int) else str(value)
    return text.replace("|", "\\|").replace("\n", " ").replace("<!--", "&lt;!--")


def _notice(recipe: Recipe) -> str:
    if recipe.name == "sqid":
        return ""
    source = manifest.public(recipe.source)
    return (
        f"> **This is `{recipe.name}`, not the published SQID.** It was built from files in ESCI's layout at "
        f"`{source}`. What is said below about ESCI and Amazon is true only if those files are ESCI's.\n"
    )


def _selection(recipe: Recipe) -> str:
    chosen = recipe.selection
    task = "`small_version == 1` (Task 1)" if chosen.version == "small" else "`large_version == 1`"
    splits = " or ".join(f"`{split}`" for split in chosen.splits)
    locales = " or ".join(f"`{locale}`" for locale in chosen.locales)
    everything = " Products without a judgment are here too: every product of ESCI with that locale."
    everything = everything if chosen.products == ALL else ""
    return (
        f"All judgments of ESCI with {task}, split {splits} and product locale {locales}, "
        f"with their queries and products.{everything}"
    )


def _supp(recipe: Recipe, statistics: Statistics) -> str:
    chosen, rows = recipe.selection, statistics.rows(schemas.SUPP)
    rule = (
        "are not among these products, are of the same locales, and occur in at least "
        f"{chosen.supp_min_judgments} judgments of ESCI's {chosen.version} version."
    )
    if not rows:
        return f"Supplementary products {rule} This selection has none, so there is no config `{schemas.SUPP}`."
    vectors = "" if chosen.embed_supp else ", and no embeddings"
    return f"Supplementary products ({rows:,}) {rule} They have URLs and text{vectors}."


def _first_file(statistics: Statistics, config: str) -> str:
    return next((split.files[0] for split in statistics.splits.get(config, {}).values()), "")


def _published(statistics: Statistics) -> str:
    published = schemas.PUBLISHED_COUNTS
    if statistics.counts == published:
        return "These are the counts of the published SQID."
    stated = ", ".join(f"{number:,} {_COUNTED.get(name, name)}" for name, number in published.items())
    return f"This is another selection than that of the published SQID, which has {stated}."


def _labels(gains: Mapping[str, float]) -> str:
    """What the labels and gains of the judgments mean."""
    names = [schemas.LABELS[label] if _of_esci(gains) else f"`{label}`" for label in gains]
    listed = " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))
    whose = (
        "ESCI's own weight of each label" if gains == schemas.GAINS else "the weight that this release gives each label"
    )
    return f"People labelled each result as {listed}. `gain` is {whose}: {_gains(gains)}."


def _urls(recipe: Recipe) -> str:
    if recipe.artifacts is not None:
        return "URLs and embeddings were taken from existing SQID files and joined with ESCI."
    pages = " and from product pages" if recipe.resolve.pages.permission else ""
    which = "all products" if recipe.selection.products == ALL else "judged products"
    return (
        f"URLs come from tables of product ids and URLs{pages}. The images of {which} were then downloaded "
        "once and decoded."
    )


def _generic(statistics: Statistics) -> str:
    count = statistics.statuses.get(schemas.FEATURES, {}).get(schemas.GENERIC, 0)
    if not count:
        return ""
    return f" {count:,} products share one default image (status `generic`); it is embedded, as in the published SQID."


def _encoder_biases(recipe: Recipe) -> str:
    if recipe.encoder.model.startswith("openai/clip-"):
        return (
            "It was trained on images and captions from the web, understands English best, reads text in images, and "
            "associates the appearance of people with words in ways that should not be relied on."
        )
    return f"The vectors reflect the training data of `{manifest.public(recipe.encoder.model)}`."


def _classic(names: Sequence[str], *, own: bool) -> str:
    if not names:
        return ""
    listed = ", ".join(f"`{name}`" for name in names)
    if own:
        return f"{listed} hold the same values in fewer columns, with null where there is no image."
    return (
        f"{listed} hold the same values under the names and columns of the published files, "
        "with null where there is no image."
    )


def _configs(statistics: Statistics, *, own: bool = False) -> str:
    rows = []
    for config, splits in statistics.splits.items():
        for name, split in splits.items():
            label = f"`{config}`" + (" (default)" if config == schemas.DEFAULT_CONFIG else "")
            declared = schemas.DECLARED[config]
            what = declared.own if own and declared.own else declared.summary
            rows.append((label, name, split.rows, _bytes(split.disk), what))
    return table(("config", "split", "rows", "size", "what"), rows, right=(2, 3))


def _counts(statistics: Statistics, gains: Mapping[str, float]) -> str:
    judgments = sum(statistics.labels.values())
    rows: list[tuple[str, int, str]] = [(_COUNTED.get(n, n), count, "") for n, count in statistics.counts.items()]
    for label in (*gains, *sorted(set(statistics.labels) - set(gains))):
        count = statistics.labels.get(label, 0)
        meaning = f": {schemas.LABELS[label]}" if _of_esci(gains) and label in schemas.LABELS else ""
        rows.append((f"label {label}{meaning}", count, _share(count, judgments)))
    return table(("", "rows", "of all judgments"), rows, right=(1, 2))


def _columns(statistics: Statistics, gains: Mapping[str, float]) -> str:
    labels = [f"{label} {schemas.LABELS[label].lower()}" if _of_esci(gains) else label for label in gains]
    of_labels = {"esci_label": ", ".join(labels), "gain": _gains(gains)}
    meanings = {
        config: {column.name: column.meaning for column in declared.columns} | of_labels
        for config, declared in schemas.DECLARED.items()
    }
    return _columns_tables(statistics, meanings)


def _own_columns(statistics: Statistics, labels: Labels) -> str:
    named = ", ".join(labels.gains)
    kind = {CLICKS: "clicks/impressions of the query and the product", NUMBERS: "label, as given"}.get(labels.kind)
    of_labels = {"esci_label": kind or f"label, as given: {named}", "gain": labels.shown}
    meanings = {
        config: {c.name: one_line(c.own or c.meaning) for c in declared.columns} | of_labels
        for config, declared in schemas.DECLARED.items()
    }
    for config in schemas.CARRYING:
        kept = schemas.kept_columns(config, statistics.columns.get(config, pa.schema([])))
        meanings[config] |= {field.name: _OWN_MEANINGS.get(field.name, "column of the catalogue") for field in kept}
    return _columns_tables(statistics, meanings)


def _columns_tables(statistics: Statistics, meanings: Mapping[str, Mapping[str, str]]) -> str:
    """A table of the columns of each config; configs with the same columns share one."""
    alike: dict[str, list[str]] = {}
    for config, schema in statistics.columns.items():
        rows = []
        for field in schema:
            is_list = pa.types.is_fixed_size_list(field.type)
            length = f"[{field.type.list_size}]" if is_list else ""
            dtype = dtype_name(field.type.value_type if is_list else field.type)
            rows.append((f"`{field.name}`", dtype + length, meanings[config].get(field.name, "")))
        alike.setdefault(table(("column", "type", "meaning"), rows), []).append(f"`{config}`")
    return "\n\n".join(f"**{', '.join(configs)}**\n\n{text}" for text, configs in alike.items())


def _coverage(statistics: Statistics) -> str:
    main, supp = (statistics.statuses.get(config, {}) for config in (schemas.DEFAULT_CONFIG, schemas.SUPP))
    total = sum(main.values())
    rows = [
        (f"`{status}`", meaning, main.get(status, 0), _share(main.get(status, 0), total), supp.get(status, 0))
        for status, meaning in schemas.IMAGE_STATUS.items()
        if status in main or status in supp
    ]
    return table(("image_status", "meaning", "products", "share", "supplementary"), rows, right=(2, 3, 4))


def _own_counts(statistics: Statistics, labels: Labels) -> str:
    judgments = sum(statistics.labels.values())
    rows: list[tuple[str, int, str]] = [(name, count, "") for name, count in statistics.counts.items() if count]
    for label in labels.gains:
        count = statistics.labels.get(label, 0)
        rows.append((f"label {label}", count, _share(count, judgments)))
    if judgments and not labels.gains:
        rows.append(("different labels", len(statistics.labels), ""))
    return table(("", "rows", "of all judgments"), rows, right=(1, 2))


def _own_coverage(statistics: Statistics) -> str:
    found = statistics.statuses.get(schemas.DEFAULT_CONFIG, {})
    total = sum(found.values())
    rows = [
        (f"`{status}`", _OWN_STATUSES.get(status, meaning), found[status], _share(found[status], total))
        for status, meaning in schemas.IMAGE_STATUS.items()
        if status in found
    ]
    return table(("image_status", "meaning", "products", "share"), rows, right=(2, 3))


def _versions(recipe: Recipe, revision: str | None) -> str:
    encoder = recipe.encoder
    weights = f"`{manifest.public(encoder.model)}`" + (f" at `{revision}`" if revision else "")
    rows: list[tuple[str, str]] = [("release", f"{recipe.name} {recipe.version}"), ("encoder", weights)]
    if recipe.artifacts is None:
        rows.append(("computed in", f"{encoder.dtype}, {encoder.backend}"))
    rows += manifest.versions().items()
    return table(("what", "version"), rows)


def _of_esci(gains: Mapping[str, float]) -> bool:
    """Whether the labels are ESCI's, whose meaning is known."""
    return set(gains) <= set(schemas.LABELS)


def _gains(gains: Mapping[str, float]) -> str:
    return ", ".join(f"{label} {float(gain)}" for label, gain in gains.items())


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.2%}" if whole else ""


def _bytes(number: int) -> str:
    size, unit = float(number), "B"
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
