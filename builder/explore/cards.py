"""A card is one product as JSON: its texts, its image, and later its label where it is judged, and its scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

import pyarrow as pa

from builder.explore.work_images import WorkImages
from sqid_lib import schemas
from sqid_lib.evaluation.judged import Store

LONGEST = 500  # characters of a title in an answer
_SHOWN = (*schemas.EMBEDDED_STATUSES, None)  # statuses whose image_url is worth asking for
Json = dict[str, Any]


class Cards:
    """The cards of a store."""

    def __init__(self, store: Store, brands: pa.ChunkedArray | None, images: WorkImages | None) -> None:
        """See `Catalogue`."""
        self._store, self._brands, self._images = store, brands, images

    def of(self, rows: Sequence[int]) -> list[Json]:
        """The products in these rows of the store, without a label and scores."""
        chosen = pa.array(rows, pa.int64())
        brands = self._brands.take(chosen).to_pylist() if self._brands is not None else [None] * len(rows)
        products = self._store.products.take(chosen).to_pylist()
        return [
            {
                "product_id": product["product_id"],
                "product_locale": product["product_locale"],
                "title": shortened(product.get("product_title")),
                "brand": shortened(brand),
                "image": self._image_address(row, product),
                "image_status": product.get("image_status"),
                "has_image": bool(self._store.has_image[row]),
                "label": None,
                "gain": None,
            }
            for row, product, brand in zip(rows, products, brands, strict=True)
        ]

    def _image_address(self, row: int, product: Json) -> str | None:
        """Where the page finds the image: here if it is stored, else at its http(s) URL."""
        if self._images is not None and self._images.present[row]:
            product_id, locale = (quote(product[name], safe="") for name in schemas.PRODUCT_KEY)
            return f"api/product/{product_id}/image?locale={locale}"
        url: str | None = product.get("image_url")
        shown = product.get("image_status") in _SHOWN
        return url if shown and url and url.lower().startswith(("http://", "https://")) else None


def key_of(card: Json) -> tuple[str, str]:
    """product_id and product_locale."""
    return card["product_id"], card["product_locale"]


def shortened(text: str | None) -> str | None:
    """At most `LONGEST` characters."""
    return text if text is None or len(text) <= LONGEST else text[: LONGEST - 1] + "…"
