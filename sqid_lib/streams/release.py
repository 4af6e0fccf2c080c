"""Pairs straight from a release, here or on the Hub, without a copy on disk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sqid_lib import schemas
from sqid_lib.errors import CorruptFileError
from sqid_lib.streams.arrow import select_rows
from sqid_lib.streams.batches import Arrays, PairBatch, Rows, pair_layout
from sqid_lib.streams.buffers import Memory, Recycler, carve, size_of
from sqid_lib.streams.checks import checked_has_image, checked_images, checked_texts
from sqid_lib.streams.gather import take, take_products
from sqid_lib.streams.order import Order
from sqid_lib.streams.release_pairs import Pairs
from sqid_lib.streams.release_reader import Release
from sqid_lib.streams.stream import Stream, ahead
from sqid_lib.streams.texts import QUERY_TEXTS, long_texts, strings


class Part(NamedTuple):
    """Some pairs of a row group."""

    group: int
    start: int  # rows of Pairs
    stop: int


class ReleaseStream(Stream[PairBatch]):
    """What `stream_pairs` returns.

    The pairs of an epoch stand in one line, row group by row group. Each rank has a run of it, and each worker of a
    rank a run of the rank's batches; a row group at the end of a run is read by both neighbours.
    """

    def __init__(
        self,
        release: Release,
        pairs: Pairs,
        *,
        order: Order,
        dtype: np.dtype[Any],
        buffer: int,
        prefetch: int,
        texts: tuple[str, ...] = (),
    ) -> None:
        name = f"pairs {release.content[:16]} {pairs.digest[:16]}"
        super().__init__(order, len(pairs.products), name=name, prefetch=prefetch)
        self.release, self.pairs, self.dtype, self.buffer, self.texts = release, pairs, dtype, buffer, texts
        self.groups, self._first_rows = release.groups()
        new = np.diff(pairs.products, prepend=-1) > 0
        self._products_before = np.concatenate([[0], np.cumsum(new)])  # [J + 1]: how many products begin before a pair

    def _kind(self) -> type[Any]:
        return PairBatch

    def _settings(self) -> dict[str, Any]:
        # a position is in the run of one worker
        worker, workers, _ = self._worker()
        return {**super()._settings(), "buffer": self.buffer, "worker": worker, "workers": workers}

    def _end(self) -> int:
        return len(self._starts()) - 1

    def _starts(self) -> Rows:
        """[batches + 1]: where each batch of this worker begins in the line of an epoch, and where the last ends."""
        worker, workers, _ = self._worker()
        starts = self.order.starts(self.units) + self.order.share(self.units)[0]
        count = len(starts) - 1
        return starts[worker * count // workers : (worker + 1) * count // workers + 1]

    def _batches(self, epoch: int, start: int) -> Iterator[PairBatch]:
        starts = self._starts().tolist()
        blocks = self._blocks(epoch, starts[0], starts[-1])
        ends = starts[0] + np.cumsum([sum(part.stop - part.start for part in block) for block in blocks])
        first = int(np.searchsorted(ends, starts[start], side="right"))
        offset = starts[start] - (int(ends[first - 1]) if first else starts[0])  # pairs of that block to pass over
        memory, block_memory = self._kept_memory()
        for file in self.release.features:
            file.enter_process()
        worker, workers, _ = self._worker()

        def read(number: int) -> _Block:
            return self._read(
                blocks[number], (self.order.seed, epoch, number, self.order.rank, worker, workers), block_memory
            )

        sizes = iter(np.diff(starts[start:]).tolist())
        size = next(sizes, 0)
        waiting: list[tuple[_Block, Rows]] = []  # pairs that no batch has yet
        count = 0
        for _, block in ahead(read, iter(range(first, len(blocks))), self.prefetch):
            rows = np.arange(offset, len(block.pairs))
            offset = 0
            while len(rows) and count + len(rows) >= size:
                batch = self._batch([*waiting, (block, rows[: size - count])], memory)
                rows, waiting, count = rows[size - count :], [], 0
                start, size = start + 1, next(sizes, 0)
                self._at = (epoch, start)
                yield memory.hand_over(batch)
                del batch  # its memory is free while the next one is made
            if len(rows):
                waiting.append(block.only(rows))
                count += len(rows)
            del block  # its memory is for the block after the next
        if start < len(starts) - 1:
            raise CorruptFileError(
                "the epoch ended early",
                where=self.release.name,
                expected=f"{starts[-1] - starts[0]:,} pairs",
                got=f"{starts[start] - starts[0] + count:,}",
                fix="Download or build the release again.",
            )

    def _blocks(self, epoch: int, start: int, stop: int) -> list[list[Part]]:
        """The pairs from `start` to `stop` in the line of an epoch, in blocks of at most `buffer` products.

        A block has one row group or a part of it at least, however large that is.
        """
        line = self.order.permutation(epoch, len(self.groups))
        first, last = self.pairs.group_starts[line], self.pairs.group_starts[line + 1]
        ends = np.cumsum(last - first)
        begins = ends - (last - first)
        blocks: list[list[Part]] = []
        room = 0
        for at in np.flatnonzero((ends > start) & (begins < stop) & (ends > begins)):
            low, high = max(start - begins[at], 0), min(stop, ends[at]) - begins[at]
            part = Part(int(line[at]), int(first[at] + low), int(first[at] + high))
            products = int(self._count_products(part))
            if products > room or not blocks:
                blocks.append([])
                room = self.buffer
            blocks[-1].append(part)
            room -= products
        return blocks

    def _count_products(self, part: Part) -> int:
        # the product of the first pair may begin before it
        return int(self._products_before[part.stop] - self._products_before[part.start + 1]) + 1

    def _read(self, block: list[Part], draw: tuple[int, ...], memory: Recycler) -> _Block:
        room = max(self.buffer, sum(map(self._count_products, block)))
        layout = pair_layout(room, self.release.width, self.dtype)
        layout = {name: layout[name] for name in ("text_features", "image_features", "has_image")}
        products = carve(memory.take(size_of(layout)).bytes, layout)
        rows, texts, start = [], [], 0
        for part in block:
            wanted, found = np.unique(self.pairs.products[part.start : part.stop], return_inverse=True)
            rows.append(found + start)
            texts.append(
                self._read_products(
                    part.group, wanted, {n: a[start : start + len(wanted)] for n, a in products.items()}
                )
            )
            start += len(wanted)
        pairs = np.concatenate([np.arange(part.start, part.stop) for part in block])
        row = np.concatenate(rows)
        if self.order.shuffle:
            order = np.random.default_rng(draw).permutation(len(pairs))
            pairs, row = pairs[order], row[order]
        columns = {name: pa.chunked_array([t[name] for t in texts]).combine_chunks() for name in texts[0]}
        return _Block(**products, rows=row, pairs=pairs, texts=columns)

    def _read_products(self, group: int, wanted: Rows, out: Arrays) -> dict[str, pa.Array]:
        """Write the vectors of products, rows of the release in one row group, into `out`; return their texts."""
        file, number = self.groups[group]
        names = [name for name in self.texts if name not in QUERY_TEXTS]
        rows = wanted - self._first_rows[group]
        vectors = (out["text_features"], out["image_features"])
        filled = file.fill(number, rows, dict(zip(schemas.VECTOR_COLUMNS, vectors, strict=True)))
        columns = ["has_image", *names] if filled else ["has_image", *schemas.VECTOR_COLUMNS, *names]

        def use(pieces: Iterator[pa.Table]) -> dict[str, pa.Array]:
            texts: dict[str, list[pa.Array]] = {name: [pa.nulls(0, pa.large_string())] for name in names}
            first = 0
            for table in pieces:
                low, high = np.searchsorted(rows, (first, first + len(table)))
                if low < high:
                    where, some = f"{file.file}, row group {number}, rows from {first}", rows[low:high] - first
                    here = {name: field[low:high] for name, field in out.items()}
                    self._take(table, where, some, here, filled)
                    for name, found in texts.items():
                        found.append(select_rows(long_texts(table[name]), some).combine_chunks())
                first += len(table)
            return {name: pa.concat_arrays(found) for name, found in texts.items()}

        return file.read(number, int(rows[-1]) + 1, use, columns)

    def _take(self, table: pa.Table, where: str, rows: Rows, out: Arrays, filled: bool) -> None:
        """Write some rows of a piece into `out`, which may have the vectors already."""
        text, image = schemas.VECTOR_COLUMNS
        width = self.release.width
        if filled:
            shown = checked_has_image(table, where)
        else:
            take(checked_texts(table, text, width, self.dtype, where), rows, out["text_features"])
            images, shown = checked_images(table, image, width, self.dtype, where)
            take(images, rows, out["image_features"])
        np.take(shown, rows, out=out["has_image"], mode="clip")

    def _batch(self, parts: list[tuple[_Block, Rows]], memory: Memory) -> PairBatch:
        layout = pair_layout(sum(len(chosen) for _, chosen in parts), self.release.width, self.dtype)
        buffer = memory.take(size_of(layout))
        out, start = carve(buffer.bytes, layout), 0
        texts: dict[str, list[str]] = {name: [] for name in self.texts}
        for block, chosen in parts:
            here = {name: column[start : start + len(chosen)] for name, column in out.items()}
            products, pairs = block.rows[chosen], block.pairs[chosen]
            queries = self.pairs.queries[pairs]
            take_products(block, products, here)
            take(self.pairs.query_features, queries, here["query_features"])
            here["product_index"][...] = self.pairs.product_index[pairs]
            here["query_id"][...] = self.pairs.query_ids[queries]
            here["gain"][...] = self.pairs.gain[pairs]
            for name, found in texts.items():
                of_query = name in QUERY_TEXTS
                column, rows = (self.pairs.query_texts[name], queries) if of_query else (block.texts[name], products)
                found += strings(column, rows)
            start += len(chosen)
        batch: PairBatch = memory.batch(PairBatch, buffer, layout)
        if texts:
            batch.__dict__["_texts"] = texts
        return batch


@dataclass(frozen=True)
class _Block:
    """Products in memory, and the pairs they are in: `rows` [N] of the former, `pairs` [N]."""

    text_features: npt.NDArray[Any]
    image_features: npt.NDArray[Any]
    has_image: npt.NDArray[np.bool_]
    rows: Rows
    pairs: Rows
    texts: dict[str, pa.Array] = field(default_factory=dict)

    def only(self, chosen: Rows) -> tuple[_Block, Rows]:
        """A copy of some pairs, which keeps no memory of the others, and their numbers in it."""
        rows, here = self.rows[chosen], np.arange(len(chosen))
        texts = {name: select_rows(column, rows) for name, column in self.texts.items()}
        vectors = (self.text_features[rows], self.image_features[rows], self.has_image[rows])
        return _Block(*vectors, rows=here, pairs=self.pairs[chosen], texts=texts), here
