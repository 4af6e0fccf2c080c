"""A catalogue as the stage sample writes it: products, their images, queries and judgments."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from builder.catalogue import columns
from builder.catalogue.judgments import read_judgments
from builder.catalogue.products import Products, read_products
from builder.catalogue.tables import find_tables, open_tables

if TYPE_CHECKING:
    from builder.recipe import CatalogueSettings


@dataclass(frozen=True)
class Catalogue:
    """What a shop's tables hold.

    Attributes:
        queries: `schemas.SAMPLED_QUERIES_SCHEMA`, sorted by query_id; judgments: `schemas.SAMPLED_JUDGMENTS_SCHEMA`,
            sorted by query and product. Both may have no rows.
    """

    products: Products
    queries: pa.Table
    judgments: pa.Table


def read_catalogue(settings: CatalogueSettings, scratch: Path | None = None) -> Catalogue:
    """All tables of a catalogue.

    Args:
        scratch: folder of a temporary file; by default that of the system.

    Raises:
        SourceError, ContractError, RecipeError: as `read_products` and `read_judgments`.
    """
    opened = addresses_of(settings).items()
    tables = {name: open_tables(address, columns.HINTS) for name, address in opened}
    columns.check_stated(settings.columns, list(tables.values()))
    products = read_products(tables["products"], settings, scratch)
    return Catalogue(products, *read_judgments(tables, products.keys, settings))


def catalogue_state(settings: CatalogueSettings) -> list[object]:
    """What decides the result of `read_catalogue` besides its settings: versions of files, names in `images`.

    Raises:
        SourceError: as `find_tables`.
    """
    found = {
        name: [(f.url, f.version) for f in find_tables(address)] for name, address in addresses_of(settings).items()
    }
    folder = Path(settings.images) if settings.images is not None else None
    names = sorted(os.listdir(folder)) if folder is not None and folder.is_dir() else []  # noqa: PTH208 - names only
    return [found, hashlib.sha256("\0".join(names).encode("utf-8", "surrogateescape")).hexdigest()]


def addresses_of(settings: CatalogueSettings) -> dict[str, str]:
    """Kind of table → its address, of those that the recipe names."""
    addresses = {"products": settings.products, "judgments": settings.judgments, "queries": settings.queries}
    return {name: address for name, address in addresses.items() if address is not None}
