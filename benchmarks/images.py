"""Images a second of `store.image_pairs` and of a plain DataLoader over a dataset with an Image column, interleaved:

python benchmarks/images.py WORK MODEL [--rounds 3] [--workers 2]

Both give the same pairs in shuffled batches with the pixels that MODEL's own processor makes.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import AutoImageProcessor

from sqid_lib import EmbeddingStore, ProductImages
from sqid_lib.encoders import load_towers


def image_dataset(store: EmbeddingStore, images: ProductImages, folder: str) -> Any:
    """A dataset on disk with an Image column, a row for each product with an image."""
    numbers = images.find(store.products)
    rows = [{"image": {"bytes": images.read_bytes(int(number)), "path": None}} for number in numbers if number >= 0]
    datasets.Dataset.from_list(rows, datasets.Features({"image": datasets.Image()})).save_to_disk(folder)
    return datasets.load_from_disk(folder)


class Pairs(torch.utils.data.Dataset[Any]):
    """Each judged pair's decoded image, as people write it."""

    def __init__(self, dataset: Any, rows: Any) -> None:
        self.dataset, self.rows = dataset, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Any:
        return self.dataset[int(self.rows[number])]["image"].convert("RGB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, help="of each loader; threads of the stream")
    options = parser.parse_args()
    store, images = EmbeddingStore.open(options.work / "sqid", progress=False), ProductImages.open(options.work)
    numbers = images.find(store.products)
    towers, processor = load_towers(options.model), AutoImageProcessor.from_pretrained(options.model, backend="pil")
    kept = numbers[store.judgment_product_index] >= 0
    rows = (np.cumsum(numbers >= 0) - 1)[store.judgment_product_index[kept]]
    with tempfile.TemporaryDirectory() as folder:
        pairs = Pairs(image_dataset(store, images, folder), rows)

        def plain(prepare: Callable[[list[Any]], Any]) -> Iterable[Any]:
            return DataLoader(pairs, batch_size=64, shuffle=True, num_workers=options.workers, collate_fn=prepare)

        def stream(prefetch: int) -> Any:
            return store.image_pairs(images, towers.preprocess, batch_size=64, shuffle=True, prefetch=prefetch)

        ways: dict[str, Callable[[], Iterable[Any]]] = {
            "stream, threads": lambda: stream(options.workers),
            "stream in a DataLoader": lambda: DataLoader(stream(0), batch_size=None, num_workers=options.workers),
            "plain, transformers' processor": lambda: plain(
                lambda batch: processor(batch, return_tensors="pt")["pixel_values"]
            ),
            "plain, towers.preprocess": lambda: plain(
                lambda batch: torch.from_numpy(np.stack([towers.preprocess(image) for image in batch]))
            ),
        }
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(options.rounds):
            for name, way in ways.items():
                started = time.perf_counter()
                for _batch in way():
                    pass
                rates[name].append(len(rows) / (time.perf_counter() - started))
    for name, found in rates.items():
        print(f"{name:32} {statistics.median(found):8,.0f} images/s   ({', '.join(f'{rate:,.0f}' for rate in found)})")


if __name__ == "__main__":
    main()
