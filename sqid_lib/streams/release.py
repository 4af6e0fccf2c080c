"""Pairs straight from a release, here or on the Hub, without a copy on disk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sqid_lib import schemas
from sqid_lib.streams.batches import Arrays, PairBatch, Rows, pair_layout
from sqid_lib.streams.buffers import Memory, Recycler, carve, size_of
from sqid_lib.streams.gather import take, take_products
from sqid_lib.streams.release_reader import Judgments, Release
from sqid_lib.streams.stream import Order, Stream, ahead
from sqid_lib.tables.keys import key_strings
from sqid_lib.tables.vector_columns import dense, read_vectors


class ReleaseStream(Stream[PairBatch]):
    """What `stream_pairs` gives. It has no length: how many pairs a row group holds is known once it is read."""

    _START = (0, 0)  # a position is a block of row groups, and a pair of it

    def __init__(
        self,
        release: Release,
        *,
        order: Order,
        judged: Judgments,
        has_image: bool | None,
        dtype: np.dtype[Any],
        buffer: int,
        prefetch: int,
    ) -> None:
        name = f"{release.name} {has_image} {dtype} {buffer} {judged.digest}"
        super().__init__(order, name=name, prefetch=prefetch)
        self.release, self.judged, self.dtype, self.buffer, self.wanted = release, judged, dtype, buffer, has_image

    def _settings(self) -> dict[str, Any]:
        # a position is in the row groups of one worker of one rank
        worker, workers, _ = self._worker()
        return {**super()._settings(), "rank": self.order.rank, "worker": worker, "workers": workers}

    def _batches(self, epoch: int, start: Any) -> Iterator[PairBatch]:
        worker, workers, _ = self._worker()
        blocks = self._blocks(epoch, self.order.rank * workers + worker, self.order.world_size * workers)
        memory, block_memory = self._kept_memory(), Recycler()
        block_number, offset = start
        for shard in self.release.features:
            shard.enter_process()

        def read(number: int) -> _Block:
            draw = (self.order.seed, epoch, number, self.order.rank, worker, workers)
            return self._read(blocks[number], draw, block_memory)

        waiting: list[tuple[_Block, Rows]] = []  # pairs that no batch has yet
        count = 0
        for number, block in ahead(read, iter(range(block_number, len(blocks))), self.prefetch):
            rows = np.arange(offset, len(block.judgments))
            offset = 0
            while count + len(rows) >= self.order.batch_size:
                cut = self.order.batch_size - count
                batch = self._batch([*waiting, (block, rows[:cut])], memory)
                rows, waiting, count = rows[cut:], [], 0
                self._at = (epoch, (number, len(block.judgments) - len(rows)))
                yield memory.hand_over(batch)
                del batch  # not held on to while the next one is made
            if len(rows):
                waiting.append(block.only(rows))
                count += len(rows)
            del block  # its memory is for the block after the next
        if count and not self.order.drop_last:
            self._at = (epoch, (len(blocks), 0))
            yield memory.hand_over(self._batch(waiting, memory))

    def _blocks(self, epoch: int, slot: int, slots: int) -> list[list[tuple[int, int]]]:
        """This slot's row groups of an epoch, as (file, group), in blocks of `buffer` products."""
        groups = [(f, g) for f, shard in enumerate(self.release.features) for g in range(shard.metadata.num_row_groups)]
        if self.order.shuffle:
            order = np.random.default_rng([self.order.seed, epoch]).permutation(len(groups))
            groups = [groups[i] for i in order]
        blocks: list[list[tuple[int, int]]] = []
        room = 0
        for f, g in groups[slot::slots]:
            rows = self.release.features[f].metadata.row_group(g).num_rows
            if rows > room or not blocks:
                blocks.append([])
                room = self.buffer
            blocks[-1].append((f, g))
            room -= rows
        return blocks

    def _read(self, groups: list[tuple[int, int]], draw: tuple[int, ...], memory: Recycler) -> _Block:
        room = sum(self.release.features[f].metadata.row_group(g).num_rows for f, g in groups)
        layout = pair_layout(max(room, self.buffer), self.judged.width, self.dtype)
        layout = {name: layout[name] for name in ("text_features", "image_features", "has_image", "product_index")}
        products = carve(memory.take(size_of(layout)).bytes, layout)
        pairs, start = [], 0
        for f, g in groups:
            *found, start = self.release.features[f].read(g, partial(self._take, (f, g), products, start))
            pairs.append(found)
        positions, judgments = (np.concatenate(column) for column in zip(*pairs, strict=True))
        if self.order.shuffle:
            order = np.random.default_rng(draw).permutation(len(positions))
            positions, judgments = positions[order], judgments[order]
        return _Block(**products, products=positions, judgments=judgments)

    def _take(
        self, group: tuple[int, int], products: Arrays, start: int, pieces: Iterator[pa.Table]
    ) -> tuple[Rows, Rows, int]:
        """Write the judged products of a row group from row `start` of `products` on: their pairs, and the next row."""
        shard = self.release.features[group[0]]
        where, first = f"{shard.file}, row group {group[1]}", shard.first_of(group[1])
        positions, judgments = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for table in pieces:
            shown = dense(table["has_image"])
            rows, found = self.judged.of(key_strings(table), shard.split)
            if self.wanted is not None:
                kept = shown[rows] == self.wanted
                rows, found = rows[kept], found[kept]
            some, position = np.unique(rows, return_inverse=True)  # the others need no memory
            here = slice(start, start + len(some))
            for name, column in zip(("text_features", "image_features"), schemas.VECTOR_COLUMNS, strict=True):
                take(read_vectors(table, column, self.judged.width, where)[0], some, products[name][here])
            products["has_image"][here] = shown[some]
            products["product_index"][here] = first + some
            positions.append(position + start)
            judgments.append(found)
            start, first = here.stop, first + len(table)
        return np.concatenate(positions), np.concatenate(judgments), start

    def _batch(self, parts: list[tuple[_Block, Rows]], memory: Memory) -> PairBatch:
        rows = sum(len(chosen) for _, chosen in parts)
        layout = pair_layout(rows, self.judged.width, self.dtype)
        buffer = memory.take(size_of(layout))
        out, start = carve(buffer.bytes, layout), 0
        for block, chosen in parts:
            here = {name: field[start : start + len(chosen)] for name, field in out.items()}
            products, judgments = block.products[chosen], block.judgments[chosen]
            take_products(block, products, here)
            here["product_index"][...] = block.product_index[products]
            queries = self.judged.query_rows[judgments]
            take(self.judged.query_features, queries, here["query_features"])
            here["query_id"][...] = self.judged.query_ids[queries]
            here["gain"][...] = self.judged.gain[judgments]
            start += len(chosen)
        batch: PairBatch = memory.batch(PairBatch, buffer, layout)
        return batch


@dataclass(frozen=True)
class _Block:
    """Products in memory, and the pairs they are in: `products` [N] rows of the former, `judgments` [N]."""

    text_features: npt.NDArray[Any]
    image_features: npt.NDArray[Any]
    has_image: npt.NDArray[np.bool_]
    product_index: Rows
    products: Rows
    judgments: Rows

    def only(self, pairs: Rows) -> tuple[_Block, Rows]:
        """A copy of some pairs, which does not hold on to the memory of the others, and their numbers in it."""
        rows, here = self.products[pairs], np.arange(len(pairs))
        return _Block(
            self.text_features[rows],
            self.image_features[rows],
            self.has_image[rows],
            self.product_index[rows],
            products=here,
            judgments=self.judgments[pairs],
        ), here
