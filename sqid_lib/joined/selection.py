"""Which judgments, queries and products of ESCI a selection has; used by the builder and the loader."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sqid_lib import schemas
from sqid_lib.errors import EmptyFileError, LabelError, SchemaError, UsageError
from sqid_lib.files import File
from sqid_lib.tables.columns import filterable
from sqid_lib.tables.keys import check_unique, trimmed
from sqid_lib.tables.reader import conform, open_parquet, read_table, reporting

_BATCH_ROWS = 131_072
_CODED = ("product_locale", "esci_label", "split")  # columns with few values, read as dictionaries


PRODUCTS = (JUDGED, ALL) = ("judged", "all")  # which products a selection has


@dataclass(frozen=True)
class Selection:
    """Which part of ESCI is used. The defaults are the published selection.

    Attributes:
        version: "small" (Task 1) or "large".
        splits: ESCI splits whose judgments make the main part.
        locales: product locales; any that the examples file has.
        supp_min_judgments: a supplementary product is outside the main part and in at least so many judgments
            of the same version and locales, in any split.
        embed_supp: give supplementary products vectors too (the published ones have none).
        labels: every label that may occur, with its gain; none where a catalogue's judgments state gains as numbers.
        products: "judged", those of the main part's judgments, or "all", every product of the locales in the products
            file; then no product is supplementary.
    """

    version: str = "small"
    splits: tuple[str, ...] = ("test",)
    locales: tuple[str, ...] = (schemas.CLASSIC_LOCALE,)
    supp_min_judgments: int = 2
    embed_supp: bool = False
    labels: tuple[tuple[str, float], ...] = tuple(schemas.GAINS.items())
    products: str = JUDGED

    def __post_init__(self) -> None:
        for name, values, known in (
            ("version", (self.version,), schemas.VERSIONS),
            ("splits", self.splits, schemas.SPLITS),
            ("products", (self.products,), PRODUCTS),
            ("locales", self.locales, None),
        ):
            unknown = [value for value in values if (value not in known if known else not value.strip())]
            if unknown or not values:
                expected = " or ".join(known) if known else "a locale of the examples file, such as us"
                raise UsageError(
                    f"unknown {name}", where=f"selection.{name}", expected=expected, got=unknown or "nothing"
                )
            if len(set(values)) < len(values):
                raise UsageError(f"{name} named twice", where=f"selection.{name}", got=list(values))
        wrong = [
            label
            for label, gain in self.labels
            if not (label and isinstance(gain, numbers.Real) and math.isfinite(gain) and gain >= 0)
        ]
        if wrong:
            raise UsageError("bad labels", where="selection.labels", expected="label = gain, gains >= 0", got=wrong)
        if self.supp_min_judgments < 1:
            raise UsageError(
                "too few judgments", where="selection.supp_min_judgments", expected=">= 1", got=self.supp_min_judgments
            )

    @property
    def gains(self) -> dict[str, float]:
        """The gain of each label."""
        return dict(self.labels)


def read_examples(file: File, selection: Selection, columns: Sequence[str]) -> pa.Table:
    """Rows of the examples file of the selection's version and locales, in every split.

    Args:
        columns: columns of `schemas.EXAMPLES_SCHEMA` to return, in that order.

    Raises:
        LabelError: any row of the file has a label that the selection does not name.
        UsageError: the file has no row of one of the locales.
        SchemaError: a null where a key should be.
        SourceError: as `tables.open_parquet`.
    """
    where = file.url
    flag = f"{selection.version}_version"
    wanted = pa.schema([f for f in schemas.EXAMPLES_SCHEMA if f.name in {*columns, *_CODED, flag}])
    locales = pa.array(selection.locales)
    kept: list[pa.Table] = []
    found: set[str] = set()
    with open_parquet(file, wanted, dictionary=_CODED) as parquet, reporting(where):
        if not parquet.metadata.num_rows:
            raise EmptyFileError("the examples file has no rows", where=where, fix="Fetch it again.")
        for batch in parquet.iter_batches(_BATCH_ROWS, columns=wanted.names):
            table = _coded(filterable(batch), where)
            _check_labels(table, selection.gains, where)
            found.update(str(locale) for locale in pc.unique(table.column("product_locale")).to_pylist())
            _check_no_nulls(table, [flag, "product_locale", "split"], where)
            mask = pc.and_(
                pc.equal(conform(table.select([flag]), pa.schema([wanted.field(flag)]), where).column(0), 1),
                _among(table.column("product_locale"), locales),
            )
            kept.append(trimmed(conform(table.filter(mask).select(wanted.names), wanted, where), where))
    absent = [locale for locale in selection.locales if locale not in found]
    if absent:
        known = " or ".join(sorted(found))
        raise UsageError("no judgments of this locale", where=where, expected=known, got=", ".join(absent))
    table = pa.concat_tables(kept).select(list(columns))
    _check_no_nulls(table, columns, where)
    return table


def _coded(table: pa.Table, where: str) -> pa.Table:
    """The columns with few values as dictionaries of text, whatever kind of text the file has."""
    for name in _CODED:
        chunks = []
        for chunk in table.column(name).chunks:
            if not pa.types.is_dictionary(chunk.type):
                chunk = chunk.cast(pa.string()).dictionary_encode()
            if chunk.dictionary.type != pa.string():
                texts = pa.table({name: chunk.dictionary})
                texts = conform(texts, pa.schema([(name, pa.string())]), where).column(0).combine_chunks()
                chunk = pa.DictionaryArray.from_arrays(chunk.indices, texts)
            chunks.append(chunk)
        table = table.set_column(table.column_names.index(name), name, pa.chunked_array(chunks))
    return table


def _check_no_nulls(table: pa.Table, columns: Sequence[str], where: str) -> None:
    for name in columns:
        if table.column(name).null_count:
            raise SchemaError(f"column {name!r} has nulls", where=where, got=f"{table.column(name).null_count} of them")


def _among(column: pa.ChunkedArray, values: pa.Array) -> pa.ChunkedArray:
    """`pc.is_in` on a dictionary column, asked once per distinct value."""
    masks = [pc.is_in(chunk.dictionary, value_set=values).take(chunk.indices) for chunk in column.chunks]
    return pa.chunked_array(masks, pa.bool_())


def _check_labels(table: pa.Table, known: Mapping[str, float], where: str) -> None:
    distinct = pc.unique(table.column("esci_label")).to_pylist()
    unknown = sorted(str(v) for v in distinct if v not in known)
    if unknown:
        raise LabelError(
            f"unknown esci_label {unknown[0]!r}",
            where=where,
            expected=" or ".join(known),
            fix="Correct or remove those rows, or give the label a gain in selection.labels.",
        )


def in_splits(examples: pa.Table, splits: Sequence[str]) -> pa.Table:
    """The rows of the main part."""
    return examples.filter(pc.is_in(examples.column("split"), value_set=pa.array(splits)))


def judgments(examples: pa.Table, selection: Selection) -> pa.Table:
    """The judgments of the main part (`schemas.SAMPLED_JUDGMENTS_SCHEMA`: the judgments config and the split), sorted.

    Raises:
        DuplicateKeyError: a product is judged twice for a query.
    """
    table = in_splits(examples, selection.splits)
    table = table.sort_by([(name, "ascending") for name in schemas.DECLARED[schemas.JUDGMENTS].key])
    check_unique(table, schemas.DECLARED[schemas.JUDGMENTS].key, "judgment", schemas.ESCI_EXAMPLES)
    labels = table.column("esci_label").combine_chunks().dictionary_encode()
    gains = np.array([selection.gains[label] for label in labels.dictionary.to_pylist()], np.float32)
    gain = pa.array(gains[labels.indices.to_numpy(zero_copy_only=False)] if len(labels) else gains, pa.float32())
    return conform(table.append_column("gain", gain), schemas.SAMPLED_JUDGMENTS_SCHEMA, schemas.ESCI_EXAMPLES)


def queries(examples: pa.Table, selection: Selection, sources: pa.Table) -> pa.Table:
    """The queries of the main part: query_id, query, source (null where `sources` has none), sorted by query_id.

    Raises:
        DuplicateKeyError: a query_id stands for two texts, or twice in `sources`.
    """
    main = in_splits(examples, selection.splits)
    declared = schemas.DECLARED[schemas.QUERIES]
    table = main.group_by(list(declared.of_origin(schemas.EXAMPLES))).aggregate([]).sort_by("query_id")
    check_unique(table, declared.key, "query", schemas.ESCI_EXAMPLES)
    check_unique(sources, declared.key, "query", schemas.ESCI_SOURCES)
    rows = pc.index_in(table.column("query_id"), value_set=sources.column("query_id").combine_chunks())
    for name in declared.of_origin(schemas.SOURCES):
        table = table.append_column(name, sources.column(name).take(rows))
    return conform(table, schemas.SAMPLED_QUERIES_SCHEMA, schemas.ESCI_EXAMPLES)


def product_keys(examples: pa.Table, selection: Selection, part: str) -> pa.Table:
    """Keys (product_id, product_locale) of the judged products of the main part or of the supplementary ones, sorted.

    Args:
        part: `schemas.MAIN` or `schemas.SUPPLEMENTARY`.
    """
    names = list(schemas.PRODUCT_KEY)
    if part == schemas.MAIN:
        table = in_splits(examples, selection.splits).group_by(names).aggregate([])
    else:
        main = pc.is_in(examples.column("split"), value_set=pa.array(selection.splits))
        keys = examples.select(names).append_column("main", main)
        counted = keys.group_by(names).aggregate([("main", "any"), ("main", "count")])
        enough = pc.greater_equal(counted.column("main_count"), selection.supp_min_judgments)
        table = counted.filter(pc.and_(pc.invert(counted.column("main_any")), enough)).select(names)
        if selection.products == ALL:
            table = table.slice(0, 0)
    return table.sort_by([(name, "ascending") for name in names]).combine_chunks()


def catalogue_keys(products: File, locales: Sequence[str]) -> pa.Table:
    """Keys (product_id, product_locale) of every product of the locales in the products file, sorted.

    Raises:
        SourceError: as `tables.open_parquet`.
        SchemaError: a null where a key should be.
    """
    names = list(schemas.PRODUCT_KEY)
    schema = pa.schema([schemas.PRODUCTS_SCHEMA.field(name) for name in names])
    kept = [schema.empty_table()]
    with open_parquet(products, schema) as parquet, reporting(products.url):
        for batch in parquet.iter_batches(_BATCH_ROWS, columns=names):
            table = trimmed(conform(pa.Table.from_batches([batch]), schema, products.url), products.url)
            _check_no_nulls(table, names, products.url)
            kept.append(table.filter(pc.is_in(table.column("product_locale"), value_set=pa.array(locales))))
    table = pa.concat_tables(kept).group_by(names).aggregate([])  # a key that occurs twice is reported with the texts
    return table.select(names).sort_by([(name, "ascending") for name in names]).combine_chunks()


def read_sources(file: File) -> pa.Table:
    """The sources file: query_id int64, source; csv, or JSON by its name."""
    return read_table(file, schemas.SOURCES_SCHEMA)
