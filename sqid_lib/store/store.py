"""Embeddings as flat memory-mapped matrices, with their products, queries and judgments."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sqid_lib import schemas
from sqid_lib.cache import cache_places, download_cache
from sqid_lib.errors import StoreError, UsageError
from sqid_lib.evaluation.retrieval import Map
from sqid_lib.joined.selection import Selection
from sqid_lib.product_images import ProductImages
from sqid_lib.search import Image, Model, QueryEncoder, Searcher, SearchResult, Where
from sqid_lib.sources import parse_address
from sqid_lib.store import checksums, convert, mining
from sqid_lib.store.source import find
from sqid_lib.streams.batches import ImagePairBatch, ListBatch, NegativeBatch, PairBatch
from sqid_lib.streams.filters import read_filters
from sqid_lib.streams.gather import HardNegatives, HardProducts, JudgedProducts, Lists, Negatives, Pairs
from sqid_lib.streams.open import StreamOptions, make_stream, shows_options
from sqid_lib.streams.order import whole_number
from sqid_lib.streams.pixels import Augment, ImagePairs, Preprocess, open_pixels
from sqid_lib.streams.stream import StoreStream
from sqid_lib.streams.texts import Texts, choose, read_texts

Floats = npt.NDArray[np.floating[Any]]
DTYPES = ("float32", "float16")

_POSITIVE = ("E",)  # where the labels are ESCI's


class EmbeddingStore:
    """P products, Q queries and J judgments; matrices are read-only views of mapped files, and a row is never copied.

    Attributes:
        width: D, the length of a vector.
        text_features, image_features: [P, D] in `dtype`; an image row is zero where has_image is false.
        has_image: [P] bool.
        query_features: [Q, D].
        products: product_id, product_locale, product_title, image_url, image_status, and the columns that a catalogue
            keeps, such as price; a row for each matrix row.
        queries: query_id, query, source, a row for each row of query_features.
        judgments: example_id, query_id, product_id, product_locale, esci_label, gain, split; no rows in a store made
            from the classic files without ESCI, or from a catalogue that has none.
        judgment_query_index, judgment_product_index: [J] int64, rows of the matrices.
        gain: [J] float32.
        path: the converted directory. A store pickles as this path, and processes share its pages.
        model: the encoder that made the vectors, as the release's manifest.json names it; None where it names none.
        of_catalogue: whether the release is a shop's own catalogue, whose labels and gains are its own.
    """

    def __init__(self, path: Path, model: Model | None = None, of_catalogue: bool = False) -> None:
        """Use a converted directory; `open` is the usual way in.

        Raises:
            StoreError: it is not whole, or damaged.
        """
        self._use(checksums.check(path), model, of_catalogue)

    def _use(self, converted: checksums.Converted, model: Model | None, of_catalogue: bool) -> None:
        self.path, self.model, self.of_catalogue = converted.path, model, of_catalogue
        path = converted.path
        self.width = converted.stated.width
        self.text_features, self.image_features, self.query_features = (
            _map_vectors(path / f"{name}.bin", converted.stated.dtype, self.width) for name in convert.MATRICES
        )
        self.has_image: npt.NDArray[np.bool_] = _map(path / "has_image.npy")
        self.judgment_query_index: npt.NDArray[np.int64] = _map(path / "judgment_query_index.npy")
        self.judgment_product_index: npt.NDArray[np.int64] = _map(path / "judgment_product_index.npy")
        self.gain: npt.NDArray[np.float32] = _map(path / "gain.npy")
        self.products = _table(path / "products.arrow")
        self.queries = _table(path / "queries.arrow")
        self.judgments = _table(path / "judgments.arrow")
        self._watch = checksums.Watch(converted)
        self._mined: dict[tuple[str, int, str], HardProducts] = {}

    @classmethod
    def open(
        cls,
        dir_or_repo: str | os.PathLike[str],
        *,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        dtype: str = "float32",
        esci: str | os.PathLike[str] | None = None,
        selection: Selection | None = None,
        progress: bool = True,
        verify: bool = False,
    ) -> EmbeddingStore:
        """Open a release: a directory, or a Hub dataset repo at `revision`. It is converted once, then only mapped.

        The files of the conversion are compared with checksums made while it was written: small ones now, those above
        64 MB in the background (see `verify`) or, with `verify=True`, now. A damaged conversion is made again.

        Args:
            dir_or_repo: address of a release or of the classic files: a directory, ORG/NAME on the Hub,
                hf://datasets/ORG/NAME[@REVISION][/PATH], or the https URL of a release.
            revision: branch, tag or commit on the Hub; pinned to its commit before anything is read.
            cache_dir: where conversions are kept; default $SQID_CACHE, else $HF_HOME/sqid or ~/.cache/sqid. Where that
                default cannot be written, a temporary folder is used, and a warning logged.
            dtype: "float32", or "float16" for half the disk and memory.
            esci: address of the official ESCI files, to join the classic files with; without it they make a store
                of vectors alone, without titles, query texts, image status and judgments.
            selection: the part of ESCI to join; default the published one.
            progress: show a bar on a terminal while converting.
            verify: compare the large matrices too before they are used; 0.1 s for 1 GB that is in memory.

        Raises:
            MissingFileError, DownloadError: the release is not there or cannot be fetched.
            SourceError, ContractError: a file is damaged, or the files contradict each other.
            DiskError: there is not room for the conversion, or its place cannot be written.
            UsageError: `dtype` is unknown, `revision` goes with a directory, `esci` with a release, or `cache_dir` is a
                file.
        """
        if dtype not in DTYPES:
            raise UsageError("unknown dtype", where="dtype", expected=" or ".join(DTYPES), got=dtype)
        places = cache_places(cache_dir)
        address = parse_address(dir_or_repo).at(revision)
        downloads = None if address.local else download_cache(cache_dir)
        source = find(address, downloads, None if esci is None else parse_address(esci), selection)
        store = cls.__new__(cls)
        store._use(convert.convert(source, places, dtype, progress, verify), source.model, source.of_catalogue)
        return store

    def verify(self) -> None:
        """Wait until the large matrices have been compared with their checksums; a stream does it when an epoch ends.

        Raises:
            StoreError: a file is damaged. This is also logged at once.
        """
        self._watch.wait()

    def __reduce__(self) -> tuple[Any, ...]:
        return (EmbeddingStore, (self.path, self.model, self.of_catalogue))

    def __repr__(self) -> str:
        counts = f"{len(self.products):,} products, {len(self.queries):,} queries, {len(self.judgments):,} judgments"
        return f"EmbeddingStore({counts}, {self.width} x {self.text_features.dtype}, {str(self.path)!r})"

    def product_index(self, product_id: str, product_locale: str = schemas.CLASSIC_LOCALE) -> int:
        """Row of a product; KeyError if it is not in the store."""
        return self._product_rows[product_id, product_locale]

    def query_index(self, query_id: int) -> int:
        """Row of a query; KeyError if it is not in the store."""
        return self._query_rows[query_id]

    @shows_options()
    def pairs(
        self,
        *,
        labels: Iterable[str] | None = None,
        split: str | None = None,
        has_image: bool | None = None,
        queries: Iterable[int] | None = None,
        texts: Iterable[str] = (),
        dtype: str | None = None,
        **options: Unpack[StreamOptions],
    ) -> StoreStream[PairBatch]:
        """A stream of judgments in batches of `PairBatch`.

        Args:
            labels: keep these labels, such as ["E", "S"]. split: keep this ESCI split. has_image: keep products with,
                or without, an image. queries: keep judgments of these query ids; ids that nobody judged are passed
                over. Default: all.
            texts: columns that `batch.texts` holds, such as ["query", "product_title"]; default none. Numbers that a
                catalogue keeps, such as its prices, become texts.
            dtype: of the vectors, "float32" or "float16"; default the store's.
            **options: see `StreamOptions`.

        Raises:
            StoreError: the store has no judgments, or none is left.
            UsageError: an option or filter has a wrong value; the ranks cannot have equal numbers of batches, because
                there are fewer rows than ranks, or batches of one row that do not come out even.
        """
        judgments = self._select(labels, split, has_image, queries)
        gather = Pairs(self, judgments, self._dtype(dtype), self._texts(texts))
        return make_stream(gather, self._name("pairs", judgments), self.verify, **options)

    @shows_options(batch_size=64, prefetch=4)
    def image_pairs(
        self,
        images: ProductImages,
        preprocess: Preprocess,
        *,
        augment: Augment | None = None,
        labels: Iterable[str] | None = None,
        split: str | None = None,
        has_image: bool | None = True,
        queries: Iterable[int] | None = None,
        texts: Iterable[str] = (),
        dtype: str | None = None,
        **options: Unpack[StreamOptions],
    ) -> StoreStream[ImagePairBatch]:
        """A stream of judgments with the decoded, preprocessed images of their products; as `pairs` otherwise.

        Each of `prefetch` batches made ahead is read, decoded and preprocessed by a thread of its own. A batch takes
        4 · 3 · H · W bytes a row, 0.6 MB at 224 × 224 pixels.

        Args:
            images: where they are: `ProductImages.open(WORK or folder)`, or `ProductImages.from_dataset(dataset)`.
            preprocess: RGB image of Pillow → float32 [3, H, W], always of one shape, such as
                `sqid_lib.encoders.load_towers(model).preprocess`.
            augment: called with each image and a `numpy.random.Generator` before `preprocess`; returns an image. The
                generator depends on seed, epoch, rank and place alone, so that a resumed stream draws the same.
            has_image: True (default) leaves products without an image in `images` out; None keeps them, as zeros with
                `has_image` false. An image that cannot be decoded is such zeros too, and is logged.
            batch_size, prefetch: default 64 and 4.

        Raises:
            StoreError, UsageError: as `pairs`; or what `preprocess` returns is not pixels of one shape.
            CorruptFileError: a stored image is not what the build stored, in the middle of an epoch.
            MissingExtraError: Pillow (extra "build") is not installed.
        """
        numbers = images.find(self.products)
        judgments = self._select(labels, split, has_image, queries, numbers >= 0)
        pixels = open_pixels(images, numbers, preprocess, augment)
        gather = ImagePairs(Pairs(self, judgments, self._dtype(dtype), self._texts(texts)), pixels)
        shown: StreamOptions = {"batch_size": 64, "prefetch": 4, **options}
        return make_stream(gather, self._name("image pairs", judgments), self.verify, **shown)

    @shows_options()
    def lists(
        self,
        *,
        labels: Iterable[str] | None = None,
        split: str | None = None,
        has_image: bool | None = None,
        queries: Iterable[int] | None = None,
        texts: Iterable[str] = (),
        dtype: str | None = None,
        **options: Unpack[StreamOptions],
    ) -> StoreStream[ListBatch]:
        """A stream of queries, each with all its judged products, in batches of `ListBatch`; as `pairs` otherwise."""
        judgments = self._select(labels, split, has_image, queries)
        by_query = self.judgment_query_index[judgments]
        order = np.argsort(by_query, kind="stable")
        starts = np.append(np.flatnonzero(np.diff(by_query[order], prepend=-1)), len(judgments))
        gather = Lists(self, judgments[order], starts, self._dtype(dtype), self._texts(texts))
        return make_stream(gather, self._name("lists", judgments), self.verify, **options)

    @shows_options()
    def negatives(
        self,
        count: int = 8,
        *,
        mined: bool = False,
        by: mining.By = "text",
        margin: float | None = None,
        top: int = 100,
        labels: Iterable[str] | None = _POSITIVE,
        split: str | None = None,
        has_image: bool | None = None,
        queries: Iterable[int] | None = None,
        texts: Iterable[str] = (),
        dtype: str | None = None,
        **options: Unpack[StreamOptions],
    ) -> StoreStream[NegativeBatch]:
        """A stream of positives, each with `count` products not judged for its query, in batches of `NegativeBatch`.

        They are drawn evenly from all products, or with `mined=True` from the hard ones, seeded by `seed`, epoch and
        batch. The other products of the batch are negatives where `in_batch_mask` says so. As `pairs` otherwise.

        Args:
            labels: of the positives; None for all. Default: "E"; of a shop's own catalogue, whose labels are its own,
                the judgments with at least half of the highest gain.
            mined: draw from the `top` products of the whole store that score best for the query and are not judged for
                it, without replacement. They are found once, when the first such stream is made, by exact search.
            by: vectors whose cosine is the score: "text", "image" (products with an image), "features:FILE" as in
                `sqid evaluate`, or two arrays, of all queries [Q, D] and of all products [P, D].
            margin: keep negatives whose score plus the margin is at most the score of the positive, as
                `absolute_margin` of sentence-transformers' `mine_hard_negatives` does; 0 keeps those that score no
                better than the positive. None: keep all. Positives with fewer than `count` negatives are left out, and
                a warning is logged.
            top: how many products of each query are hard.

        Raises:
            StoreError: a query has every product judged, or no positive has enough negatives.
            UsageError: `by` does not fit the store, `count` is above `top`, or an option of mining without `mined`.
        """
        count = whole_number("count", count)
        judgments = self._positives(labels, split, has_image, queries)
        if not mined:
            if margin is not None or by != "text":
                raise UsageError("needs mined=True", where="by" if margin is None else "margin")
            if count and (np.diff(self.judged.starts) >= len(self.products)).any():
                raise StoreError("a query has every product judged", where=self.path, fix="Use count=0.")
            drawn = Negatives(Pairs(self, judgments, self._dtype(dtype), self._texts(texts)), count)
            return make_stream(drawn, self._name(f"negatives {count}", judgments), self.verify, **options)
        top, margin, sides = (
            whole_number("top", top, max(count, 1)),
            mining.read_margin(margin),
            mining.read_sides(self, by),
        )
        hard = self._hard(sides, np.unique(self.judgment_query_index[judgments]), top)
        judgments, most = mining.hard_pairs(self, sides, hard, judgments, count, margin)
        pairs = Pairs(self, judgments, self._dtype(dtype), self._texts(texts))
        name = self._name(f"negatives {count} of {top} by {sides.name} margin {margin}", judgments)
        return make_stream(HardNegatives(pairs, count, hard=hard, most=most), name, self.verify, **options)

    def search(
        self,
        query: str | npt.NDArray[Any] | None = None,
        *,
        image: Image | None = None,
        top: int = 10,
        where: Where | None = None,
        weight: float = 0.5,
        encoder: QueryEncoder | str | os.PathLike[str] | None = None,
        map_shards: Map | None = None,
    ) -> SearchResult:
        """The best products for a text, an image or both, among all products; `sqid_lib.search` defines the scores.

        The first call reads all vectors once, and loads the encoder; what is computed from them is kept.

        Args:
            query: a text, or a vector [D] in place of one. image: the path of a local file, its bytes, a PIL image, or
                a vector [D]. At least one of the two.
            top: how many products; fewer are found if fewer are there.
            where: keep products with these values, such as {"product_locale": "us", "has_image": True}; a list keeps
                any of its values, and a pair (low, high) the numbers between the two, either None for no limit, as
                in {"price": (None, 50)}. The columns are those of `products`, and has_image.
            weight: of the products' text vectors, from 0 to 1; their image vectors have the rest.
            encoder: what makes vectors of the query: a directory, a Hub id, or a loaded encoder. Default: `model`.
            map_shards: as the built-in `map`, in other processes, which read shards of the store's mapped vectors.

        Raises:
            UsageError: no query, or an argument with a wrong value.
            EncoderError: the encoder cannot be loaded, or did not make the vectors of this store.
            SourceError: the image cannot be read or decoded.
            MissingExtraError: torch, transformers or pillow (extra "build") is not installed.
        """
        return self._searcher.search(query, image, whole_number("top", top, 1), where, weight, encoder, map_shards)

    @cached_property
    def _searcher(self) -> Searcher:
        return Searcher(self)

    @cached_property
    def query_ids(self) -> npt.NDArray[np.int64]:
        """[Q] int64, as in `queries`."""
        return np.ascontiguousarray(self.queries["query_id"].to_numpy())

    @cached_property
    def judged(self) -> JudgedProducts:
        """Which products are judged for which query."""
        return JudgedProducts(
            self.judgment_query_index, self.judgment_product_index, len(self.queries), len(self.products)
        )

    def _select(
        self,
        labels: Iterable[str] | None,
        split: str | None,
        has_image: bool | None,
        queries: Iterable[int] | None,
        images: npt.NDArray[np.bool_] | None = None,
    ) -> npt.NDArray[np.int64]:
        """Rows of the judgments that the filters keep; `images` [P] replaces the store's own has_image."""
        filters = read_filters(labels, split, has_image, queries)
        has = self.has_image if images is None else images
        return filters.keep(self.judgments, self.path, has[self.judgment_product_index])

    def _hard(self, sides: mining.Sides, queries: npt.NDArray[np.int64], top: int) -> HardProducts:
        """The hard products of some queries, mined once."""
        key = (sides.name, top, hashlib.sha256(queries.tobytes()).hexdigest())
        if key not in self._mined:
            self._mined[key] = mining.mine(self, sides, queries, top)
        return self._mined[key]

    def _positives(
        self,
        labels: Iterable[str] | None,
        split: str | None,
        has_image: bool | None,
        queries: Iterable[int] | None,
    ) -> npt.NDArray[np.int64]:
        """As `_select`; by default labels that count as positive."""
        if labels is not _POSITIVE or not self.of_catalogue:
            return self._select(labels, split, has_image, queries)
        judgments = self._select(None, split, has_image, queries)
        positive: npt.NDArray[np.int64] = judgments[self.gain[judgments] >= self.gain.max() / 2]
        if not len(positive):
            raise StoreError("no judgment is left", where=self.path, fix="Loosen the filters, or name labels.")
        return positive

    def _texts(self, names: Iterable[str]) -> Texts | None:
        return choose(read_texts(names), self.queries, self.products)

    def _dtype(self, name: str | None) -> np.dtype[Any]:
        if name is not None and name not in DTYPES:
            raise UsageError("unknown dtype", where="dtype", expected=" or ".join(DTYPES), got=name)
        return np.dtype(name) if name else self.text_features.dtype

    def _name(self, kind: str, judgments: npt.NDArray[np.int64]) -> str:
        return f"{kind} {self.path.name} {hashlib.sha256(judgments.tobytes()).hexdigest()[:16]}"

    @cached_property
    def _product_rows(self) -> dict[tuple[str, str], int]:
        keys = zip(*(self.products[name].to_pylist() for name in schemas.PRODUCT_KEY), strict=True)
        return {key: row for row, key in enumerate(keys)}

    @cached_property
    def _query_rows(self) -> dict[int, int]:
        return {query_id: row for row, query_id in enumerate(self.queries["query_id"].to_pylist())}


def _map(path: Path) -> Any:
    # a plain view: slicing a memmap subclass costs more than reading the row
    return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))


def _map_vectors(path: Path, dtype: str, width: int) -> Floats:
    if not path.stat().st_size:  # an empty file cannot be mapped
        return np.empty((0, width), dtype)
    return np.asarray(np.memmap(path, dtype=dtype, mode="r")).reshape(-1, width)


def _table(path: Path) -> pa.Table:
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all()
