"""What a shop's tables look like to a build, before there is a recipe: columns, rows as they are read, warnings."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from builder.catalogue import columns
from builder.catalogue.cells import ids
from builder.catalogue.judgments import (
    CLICK_LOG,
    REFUSE,
    UNKNOWN,
    gain_of,
    judgment_columns,
    queries_and_judgments,
)
from builder.catalogue.products import Products, read_products
from builder.catalogue.rows import Rows, read_rows
from builder.catalogue.tables import Tables
from sqid_lib import schemas
from sqid_lib.errors import IntegrityError, LabelError, SqidError
from sqid_lib.tables.columns import one_piece

if TYPE_CHECKING:
    from builder.recipe import CatalogueSettings

ROWS = 3  # that are shown
MOST_LABELS = 30  # a column with more different words holds no labels
GAINS = {  # words that labels are made of, as `columns.normalised` has them
    **{"e": 1.0, "s": 0.1, "c": 0.01, "i": 0.0},
    **{"exact": 1.0, "substitute": 0.1, "complement": 0.01, "irrelevant": 0.0},
    **{"relevant": 1.0, "partial": 0.5, "partiallyrelevant": 0.5, "notrelevant": 0.0},
}
_COMMA = re.compile(r"[0-9]+,[0-9]{1,2}")
_LOGGERS = ("builder.catalogue", "sqid_lib.tables")


@dataclass
class Preview:
    """One table as a build would read it.

    Attributes:
        columns: our column → the table's.
        unclear: our column → the columns that could also have been it.
        rows: their number; None where they could not be read.
        samples: up to `ROWS` rows, our column → its text, None where it is blank.
        notes: how the table was read, a line each.
        warnings: what is likely a fault, a line each.
        stops: why a build would end with an error, a line each.
    """

    tables: Tables
    columns: dict[str, str] = field(default_factory=dict)
    unclear: dict[str, list[str]] = field(default_factory=dict)
    rows: int | None = None
    samples: list[dict[str, str | None]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    stops: list[str] = field(default_factory=list)

    @property
    def unused(self) -> list[str]:
        """Columns of the table that are none of ours."""
        return [name for name in self.tables.names if name not in self.columns.values()]


@dataclass
class JudgmentsPreview(Preview):
    """A table of judgments, or of queries alone.

    Attributes:
        queries: their number.
        labels: every label that is no number, with its gain; None where the gain must be filled in.
        counts: rows with each label, the most frequent first.
        unknown_products: what the recipe should say about judgments of unknown products.
    """

    queries: int = 0
    labels: dict[str, float | None] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    unknown_products: str = REFUSE

    @property
    def kind(self) -> str:
        """ "labels", "clicks" or "queries"."""
        if set(self.columns) <= set(columns.QUERIES):
            return "queries"
        return "clicks" if set(self.columns) & set(CLICK_LOG) and "label" not in self.columns else "labels"


def look_at_products(tables: Tables, settings: CatalogueSettings) -> tuple[Preview, Products | None]:
    """The products as they would be read, None where a build could not read them.

    Args:
        settings: [catalogue] as far as it is known.

    Raises:
        SourceError: the table cannot be opened, or its columns cannot be read.
    """
    found = Preview(tables)
    found.columns, found.unclear = guess_columns(tables, columns.PRODUCTS)
    with _log_of(found):
        try:
            products = read_products(tables, settings.model_copy(update={"columns": found.columns}))
        except SqidError as error:
            found.stops.append(str(error))
            return found, None
    found.rows = len(products.ids)
    rows = pc.index_in(_first_ids(tables, found.columns["product_id"]), value_set=products.ids).to_numpy()
    shown, images = (pa.concat_tables(part) for part in (products.slices(rows), products.images(rows)))
    images = pc.replace_substring_regex(images["image"], f"^{schemas.FILE_IMAGE}", "")
    images = pc.replace_substring_regex(images, f"^{schemas.ROW_IMAGE}.*", "(an image in the table)")
    names = [ours for ours in columns.PRODUCTS if ours in found.columns or ours == "image"]
    found.samples = shown.append_column("image", images).select(names).to_pylist()
    return found, products


def guess_columns(tables: Tables, known: Mapping[str, Sequence[str]]) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Our column → the table's, the first of several that it could be; and those several."""
    chosen, unclear = columns.guess(tables.names, known, {})
    for ours, candidates in unclear.items():
        free = [name for name in candidates if name not in chosen.values()]
        if free:
            chosen[ours] = free[0]
    return {ours: chosen[ours] for ours in known if ours in chosen}, unclear


def look_at_judgments(tables: Tables, products: Products | None, settings: CatalogueSettings) -> JudgmentsPreview:
    """The judgments, click log or queries as they would be read.

    Args:
        products: None where they could not be read: then nothing is said of judged products.
        settings: [catalogue] as far as it is known; its columns are those of the products.

    Raises:
        SourceError: the table cannot be opened, or its columns cannot be read.
    """
    found = JudgmentsPreview(tables)
    guessed, found.unclear = guess_columns(tables, columns.JUDGMENTS)
    guessed.pop("split", None)
    with _log_of(found):
        try:
            if set(guessed) <= {"query", "query_id"} and "query" in guessed:
                found.columns = columns.recognise(tables, columns.QUERIES, settings.columns, ("query",))
            else:
                stated = {ours: name for ours, name in guessed.items() if ours not in settings.columns}
                found.columns = judgment_columns(tables, {**settings.columns, **stated})
            rows = read_rows(tables, found.columns)
        except SqidError as error:
            found.columns = found.columns or guessed
            found.stops.append(str(error))
            return found
        found.rows = rows.table.num_rows
        found.samples = rows.table.slice(0, ROWS).to_pylist()
        if found.kind == "labels":
            _look_at_labels(found, rows)
        if found.kind == "queries" and found.unused:
            found.warnings.append(
                f"{tables.address}: read as a list of queries. If it holds judgments, move it to judgments = … and "
                "name its columns in [catalogue.columns]."
            )
        _try(found, rows, products, settings)
    return found


def _look_at_labels(found: JudgmentsPreview, rows: Rows) -> None:
    counts = Counter(label for label in rows.values("label") if label is not None)
    found.counts = dict(counts.most_common())
    for label in found.counts:
        if isinstance(gain_of(label, {}), float):
            continue
        if _COMMA.fullmatch(label):
            found.labels[label] = float(label.replace(",", "."))
        else:
            found.labels[label] = GAINS.get(columns.normalised(label))
    if all(isinstance(gain_of(label, {}), LabelError) for label in found.counts):
        order = {label: -gain if gain is not None else 1.0 for label, gain in found.labels.items()}
        found.labels = dict(sorted(found.labels.items(), key=lambda item: order[item[0]]))
    unknown = [label for label, gain in found.labels.items() if gain is None]
    if len(unknown) > MOST_LABELS:
        found.stops.append(
            f"{rows.name}: the column {found.columns['label']!r} has {len(unknown)} different words, such as "
            f"{unknown[0]!r}, without a gain: is it the column of labels?"
        )
    elif unknown:
        found.stops.append(
            f"{rows.name}: {'the label' if len(unknown) == 1 else 'labels'} {', '.join(map(repr, unknown))} without a "
            "gain: fill in [catalogue.labels]"
        )


def _try(found: JudgmentsPreview, rows: Rows, products: Products | None, settings: CatalogueSettings) -> None:
    """Read the rows as a build would, with any gain for labels that have none yet, and report the first error."""
    keys = products.keys if products else _judged_keys(rows, settings)
    labels = {label: gain or 0.0 for label, gain in found.labels.items()}
    judged, listed = (rows, None) if found.kind != "queries" else (None, rows)
    for unknown in UNKNOWN:
        tried = settings.model_copy(update={"labels": labels, "unknown_products": unknown})
        try:
            queries, _ = queries_and_judgments(judged, listed, keys, tried)
            found.queries, found.unknown_products = queries.num_rows, unknown
            return
        except IntegrityError as error:
            missing = pc.sum(pc.invert(pc.is_in(rows.column("product_id"), value_set=_ids(keys)))).as_py()
            if missing * 2 >= rows.table.num_rows:
                found.stops.append(str(error))
                return
            found.warnings.append(f'{error} The recipe says unknown_products = "drop" for now.')
        except SqidError as error:
            found.stops.append(str(error))
            return


def _judged_keys(rows: Rows, settings: CatalogueSettings) -> pa.Table:
    judged = pa.array([], pa.string())
    if "product_id" in rows.table.column_names:
        judged = rows.column("product_id").unique().sort()
    return pa.table({"product_id": judged, "product_locale": pa.array([settings.locale] * len(judged), pa.string())})


def _ids(keys: pa.Table) -> pa.Array:
    return one_piece(keys.column("product_id"))


def _first_ids(tables: Tables, column: str) -> pa.Array:
    for batch in tables.read([column]):
        found = ids(batch, column).unique()
        if len(found):
            return found.slice(0, ROWS)
    return pa.array([], pa.string())


@contextmanager
def _log_of(found: Preview) -> Iterator[None]:
    """Put what the readers log into the notes and warnings of a preview, and nowhere else."""
    handler = _Lines(found)
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [(logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
    try:
        yield
    finally:
        for logger, (level, propagate) in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagate


class _Lines(logging.Handler):
    def __init__(self, found: Preview) -> None:
        super().__init__()
        self._found = found

    def emit(self, record: logging.LogRecord) -> None:
        lines = self._found.warnings if record.levelno >= logging.WARNING else self._found.notes
        line = record.getMessage()
        if line not in lines:
            lines.append(line)
