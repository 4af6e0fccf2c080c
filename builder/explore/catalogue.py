"""What the explorer answers: the queries, orders, searches and neighbours of a release, as plain JSON values."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from builder.explore.cards import Cards, Json, key_of, shortened
from builder.explore.orders import Order, Orders
from builder.explore.work_images import WorkImages
from sqid_lib.errors import EncoderError, MissingExtraError, UsageError
from sqid_lib.evaluation.arrays import Bools, Ints
from sqid_lib.search import SearchResult
from sqid_lib.search.searcher import Store as SearchedStore

MAX_TOP = 500  # cards in one answer
Side = Literal["text", "image"]
SIDES: tuple[Side, ...] = ("text", "image")


class Store(SearchedStore, Protocol):
    """What is used of an EmbeddingStore."""

    def search(
        self, query: Any = None, *, image: Any = None, top: int = 10, weight: float = 0.5, encoder: Any = None
    ) -> SearchResult: ...
    def product_index(self, product_id: str, product_locale: str = ...) -> int: ...
    def query_index(self, query_id: int) -> int: ...


class Catalogue:
    """A release that is explored. Its methods may be called from several threads."""

    def __init__(
        self,
        store: Store,
        name: str = "",
        *,
        brands: pa.ChunkedArray | None = None,
        images: WorkImages | None = None,
        methods: Sequence[str] = (),
        run_files: Sequence[Path] = (),
        encoder: Any = None,
    ) -> None:
        """Group the judgments; the errors are those of `Orders`.

        Args:
            brands: string [P]; None where the release has none.
            images: stored images; without them cards have the URLs of the release.
            methods, run_files: see `Orders`.
            encoder: for free text and images; None for the one that the release names.
        """
        self.store, self.name = store, name
        self._images, self._encoder = images, encoder
        self._cards = Cards(store, brands, images)
        self.orders = Orders(store, methods, run_files) if store.judgments.num_rows else None
        self._encoding, self._warming = threading.Lock(), threading.Lock()
        self._warm = False
        self._no_encoder: EncoderError | MissingExtraError | None = None

    def warm(self) -> None:
        """Do beforehand what the first search and the first comparison would wait for."""
        self._searched()
        if self.orders is not None:
            for name in ("clip_text", "clip_image"):
                self.orders.scores(name)

    # -- the release ------------------------------------------------------------------------------------------------

    def release(self) -> Json:
        """Counts, labels (best gain first), ids of the queries, methods and encoder."""
        store, labels = self.store, []
        if self.orders is not None:
            counts = {row["values"]: row["counts"] for row in store.judgments["esci_label"].value_counts().to_pylist()}
            gains = self.orders.lists.labels.gain
            labels = [{"label": name, "gain": gain, "count": counts.get(name, 0)} for name, gain in gains.items()]
        return {
            "name": self.name,
            "products": store.products.num_rows,
            "queries": store.queries.num_rows,
            "judgments": store.judgments.num_rows,
            "images": int(np.count_nonzero(store.has_image)),
            "labels": labels,
            "methods": list(self.orders.methods) if self.orders is not None else [],
            "query_ids": list(map(str, store.queries["query_id"].to_pylist())),  # JavaScript rounds large integers
            "encoder": str(store.model) if store.model is not None else None,
        }

    def queries(self, text: str = "", top: int | None = None, offset: int = 0) -> Json:
        """The queries whose text holds `text`, whatever its case, in the order of the release.

        Those whose text or id is `text` come first: a page that shows the first ones shows these.
        """
        rows = np.arange(self.store.queries.num_rows)
        if text:
            same, holds = self._matches(text)
            rows = np.concatenate([np.flatnonzero(same), np.flatnonzero(holds & ~same)])
        shown = rows[offset : None if top is None else offset + top]
        return {"total": len(rows), "queries": self._queries(shown)}

    def _matches(self, text: str) -> tuple[Bools, Bools]:
        """Which queries have exactly this text or id, and which have it in their text; bool [Q] each."""
        queries = self.store.queries
        same = pc.equal(queries["query_id"].cast(pa.string()), text)
        holds = pa.nulls(len(queries), pa.bool_())
        if "query" in queries.column_names:  # the classic files have no texts
            same = pc.or_kleene(same, pc.equal(queries["query"], text))
            holds = pc.match_substring(queries["query"], text, ignore_case=True)
        return np.asarray(pc.fill_null(same, False), np.bool_), np.asarray(pc.fill_null(holds, False), np.bool_)

    def _queries(self, rows: Ints) -> list[Json]:
        names = [name for name in ("query_id", "query", "source") if name in self.store.queries.column_names]
        values = self.store.queries.select(names).take(pa.array(rows)).to_pylist()
        return [
            {
                "query_id": found["query_id"],
                "id": str(found["query_id"]),
                "query": shortened(found.get("query")) or f"query {found['query_id']}",
                "source": found.get("source"),
                "judged": judged,
            }
            for found, judged in zip(values, self._judged_counts[rows].tolist(), strict=True)
        ]

    def _query(self, row: int) -> Json:
        return self._queries(np.array([row]))[0]

    @cached_property
    def _judged_counts(self) -> Ints:
        index = np.asarray(self.store.judgment_query_index, np.int64)
        return np.bincount(index, minlength=self.store.queries.num_rows)

    # -- one query --------------------------------------------------------------------------------------------------

    def query(self, query_id: int, weight: float) -> Json:
        """The judged products of a query by weight of text, the nDCG of this order, and its curve over all weights.

        Raises:
            KeyError: no such query.
            UsageError: a weight outside 0 to 1.
        """
        row = self.store.query_index(query_id)
        _check_weight(weight)
        return self._measured(row, weight) | self._answer(self._by_weight(row, weight))

    def whole(self, query_id: int, weight: float, top: int) -> Json:
        """The best products of the whole catalogue for a query, judged or not; errors as `query`.

        nDCG is still that of the judged products alone.
        """
        row = self.store.query_index(query_id)
        _check_weight(weight)
        found = self._searched().search(np.asarray(self.store.query_features[row]), top=_checked(top), weight=weight)
        order = self._by_weight(row, weight)
        ndcg = None if order is None else order.ndcg
        answer = self._measured(row, weight) | {"ndcg": ndcg, "notes": list(found.notes)}
        return answer | {"products": self._found(found, {} if order is None else self._labels(order))}

    def compare(self, query_id: int, first: str, second: str) -> Json:
        """The judged products of a query in two orders, and from which rank of the first each one came.

        Raises:
            KeyError: no such query.
            UsageError, MissingExtraError: see `Orders.by_method`.
        """
        row = self.store.query_index(query_id)
        answer: Json = {"query": self._query(row)}
        if self.orders is None:
            return answer | {"first": self._answer(None), "second": self._answer(None)}
        orders = [self.orders.by_method(row, name) for name in (first, second)]
        sides = [self._answer(o) | {"method": m} for o, m in zip(orders, (first, second), strict=True)]
        for side, other in zip(sides, reversed(sides), strict=True):
            ranks = {key_of(card): card["rank"] for card in other["products"]}
            side["products"] = [card | {"other_rank": ranks[key_of(card)]} for card in side["products"]]
        return answer | {"first": sides[0], "second": sides[1]}

    def _by_weight(self, row: int, weight: float) -> Order | None:
        return self.orders.by_weight(row, weight) if self.orders is not None else None

    def _measured(self, row: int, weight: float) -> Json:
        curve = self.orders.curve(row) if self.orders is not None else []
        return {"query": self._query(row), "weight": weight, "curve": curve}

    def _answer(self, order: Order | None) -> Json:
        if order is None:
            return {"ndcg": None, "mean_ndcg": None, "products": []}
        judged = self._labels(order)
        cards = self._cards.of(order.product.tolist())
        for rank, (card, product) in enumerate(zip(cards, order.product.tolist(), strict=True)):
            found = bool(np.isfinite(order.score[rank]))
            card |= judged[product] | {
                "rank": rank + 1 if found else None,  # null where the method does not retrieve it
                "score": float(order.score[rank]) if found else None,
                "text_score": float(order.text[rank]),
                "image_score": float(order.image[rank]),
            }
        return {"ndcg": order.ndcg, "mean_ndcg": order.mean, "products": cards}

    def _labels(self, order: Order) -> dict[int, Json]:
        names = self.store.judgments["esci_label"].take(pa.array(order.row)).to_pylist()
        rows = zip(order.product.tolist(), names, order.gain.tolist(), strict=True)
        return {product: {"label": name, "gain": gain} for product, name, gain in rows}

    # -- the whole catalogue ----------------------------------------------------------------------------------------

    def search(self, text: str | None, image: bytes | None, weight: float, top: int) -> Json:
        """The best products for a text, an image or both, as `EmbeddingStore.search` finds them.

        Raises:
            UsageError: neither is given, or a weight outside 0 to 1.
            SourceError: the image cannot be decoded.
            EncoderError, MissingExtraError: the encoder cannot be loaded.
        """
        store = self._searched()
        with self._encoding:  # one at a time: decoding and encoding take memory, and tokenizers are not thread-safe
            if self._no_encoder is not None:
                raise self._no_encoder
            try:
                found = store.search(text, image=image, top=_checked(top), weight=weight, encoder=self._encoder)
            except (EncoderError, MissingExtraError) as error:
                self._no_encoder = error.with_traceback(None)
                raise
        return {"weight": weight, "notes": list(found.notes), "products": self._found(found, {})}

    def neighbours(self, row: int, by: Side, top: int) -> Json:
        """The products nearest to the product in a row of the store, by its text or its image vector.

        Raises:
            UsageError: the product has no image vector.
        """
        (card,) = self._cards.of([row])
        if by == "image" and not self.store.has_image[row]:
            status = f"image status {card['image_status']}"
            raise UsageError("the product has no image vector", where=card["product_id"], got=status)
        vectors = self.store.text_features if by == "text" else self.store.image_features
        weight = 1.0 if by == "text" else 0.0
        found = self._searched().search(np.asarray(vectors[row]), top=_checked(top) + 1, weight=weight)
        others = SearchResult(tuple(hit for hit in found if (hit.product_id, hit.product_locale) != key_of(card))[:top])
        return {"product": card, "by": by, "products": self._found(others, {})}

    def browse(self, offset: int, top: int) -> Json:
        """Products in the order of the release: what there is to see where there are no queries."""
        rows = range(min(offset, self.store.products.num_rows), self.store.products.num_rows)[: _checked(top)]
        return {"total": self.store.products.num_rows, "products": self._cards.of(list(rows))}

    def product_row(self, product_id: str, locale: str | None) -> int:
        """Row of a product; without a locale the first that has this id. KeyError if there is none."""
        if locale is not None:
            return self.store.product_index(product_id, locale)
        row = pc.index(self.store.products["product_id"], product_id).as_py()
        if row < 0:
            raise KeyError(product_id)
        return int(row)

    def image(self, row: int) -> tuple[bytes, str, str] | None:
        """See `WorkImages.read`."""
        return self._images.read(row) if self._images is not None else None

    def _searched(self) -> Store:
        """The store; its norms are read by one thread, the others wait."""
        if not self._warm:
            with self._warming:
                if not self._warm:
                    self.store.search(np.ones(self.store.width, np.float32), top=1)
                    self.store.product_index(*key_of(self._cards.of([0])[0]))
                    self._warm = True
        return self.store

    def _found(self, found: SearchResult, judged: Mapping[int, Json]) -> list[Json]:
        rows = [self.store.product_index(hit.product_id, hit.product_locale) for hit in found]
        cards = self._cards.of(rows)
        for rank, (card, row, hit) in enumerate(zip(cards, rows, found, strict=True), 1):
            card |= {"rank": rank, "score": hit.score, "text_score": hit.text_score, "image_score": hit.image_score}
            card |= judged.get(row, {})
        return cards


def _check_weight(weight: float) -> None:
    if not 0 <= weight <= 1:
        raise UsageError("bad weight", where="weight", expected="a number from 0 to 1", got=weight)


def _checked(top: int) -> int:
    if not 1 <= top <= MAX_TOP:
        raise UsageError("bad number of products", where="top", expected=f"1 to {MAX_TOP}", got=top)
    return top
