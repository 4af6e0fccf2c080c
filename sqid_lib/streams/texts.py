"""Texts of a batch, for models that read texts, such as cross-encoders."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from sqid_lib import schemas
from sqid_lib.errors import UsageError
from sqid_lib.streams.arrow import select_rows
from sqid_lib.streams.batches import Rows


def _of(config: str) -> tuple[str, ...]:
    return tuple(column.name for column in schemas.DECLARED[config].columns if column.type == pa.string())


QUERY_TEXTS, PRODUCT_TEXTS = _of(schemas.QUERIES), _of(schemas.FEATURES)


def read_texts(texts: Iterable[str]) -> tuple[str, ...]:
    """The names of texts as a user gives them, those of queries first, each once; `check_texts` checks them.

    Raises:
        UsageError: not a list of names.
    """
    names = (texts,) if isinstance(texts, str) or not isinstance(texts, Iterable) else tuple(texts)
    wrong = names if isinstance(texts, str) else [name for name in names if not isinstance(name, str)]
    if wrong:
        raise _unknown(wrong[0], ())
    declared = (*QUERY_TEXTS, *PRODUCT_TEXTS)
    return tuple(dict.fromkeys([*(name for name in declared if name in names), *names]))


def check_texts(names: Iterable[str], kept: schemas.Kept) -> None:
    """Raise UsageError for a name that is neither a declared text nor one of the `kept` columns of a catalogue."""
    known = {*QUERY_TEXTS, *PRODUCT_TEXTS, *(field.name for field in kept)}
    for name in names:
        if name not in known:
            raise _unknown(name, kept)


def _unknown(name: object, kept: schemas.Kept) -> UsageError:
    known = (*QUERY_TEXTS, *PRODUCT_TEXTS, *(field.name for field in kept))
    return UsageError("no such texts", where="texts", expected=f"a list of {', '.join(known)}", got=repr(name))


@dataclass(frozen=True)
class Texts:
    """Columns of text: a row for each query, and for each product."""

    queries: Mapping[str, Any]  # name → pa.Array or pa.ChunkedArray
    products: Mapping[str, Any]

    def of_queries(self, rows: Rows) -> dict[str, list[str]]:
        """The asked texts of some queries; "" for null."""
        return {name: strings(column, rows) for name, column in self.queries.items()}

    def of_products(self, rows: Rows) -> dict[str, list[str]]:
        """The asked texts of some products; "" for null."""
        return {name: strings(column, rows) for name, column in self.products.items()}


def choose(names: Iterable[str], queries: pa.Table, products: pa.Table) -> Texts | None:
    """The named columns of two tables; None where no text is asked for.

    Raises:
        UsageError: a name that neither table has.
    """
    asked = tuple(names)
    check_texts(asked, schemas.kept_columns(schemas.FEATURES, products.schema))
    if not asked:
        return None
    return Texts(
        {name: long_texts(queries[name]).combine_chunks() for name in asked if name in QUERY_TEXTS},
        {name: long_texts(products[name]).combine_chunks() for name in asked if name not in QUERY_TEXTS},
    )


def long_texts(column: Any) -> Any:
    """The same texts in a type that can hold more than 2 GB of them; they are not copied. Numbers become texts."""
    return column.cast(pa.large_string())


def strings(column: Any, rows: Rows) -> list[str]:
    """The texts in some rows; "" for null."""
    return [text or "" for text in select_rows(column, rows).to_pylist()]
