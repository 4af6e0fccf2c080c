"""Images a second of `store.image_pairs` and of a plain DataLoader over a dataset with an Image column, interleaved:

python benchmarks/images.py WORK MODEL [--rounds 3] [--workers 2] [--batches N] [--train]

Both give the same pairs in shuffled batches with the pixels that MODEL's own processor makes. With --train each batch
is a training step of MODEL's image tower (forward, backward, AdamW, on a GPU if there is one), and the share of the
time that is spent waiting for the next batch is printed too; the wait for the first one is part of it.
"""

from __future__ import annotations

import argparse
import itertools
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


def train_step(towers: Any) -> Callable[[torch.Tensor], None]:
    """A step on a batch of pixels; it waits until the device is done."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = towers.network.to(device).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-6)

    def step(pixels: torch.Tensor) -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            found = network.get_image_features(pixel_values=pixels.to(device))
        vectors = torch.nn.functional.normalize((found if torch.is_tensor(found) else found.pooler_output).float())
        loss = (vectors @ vectors.T).logsumexp(1).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


def measure(
    loader: Iterable[Any], batches: int | None, step: Callable[[torch.Tensor], None] | None
) -> tuple[float, float]:
    """Images a second, and the share of the time spent waiting for batches; the start of workers counts."""
    images, waited, started = 0, 0.0, time.perf_counter()
    asked = started
    for batch in itertools.islice(loader, batches):
        waited += time.perf_counter() - asked
        pixels = batch if torch.is_tensor(batch) else batch.pixel_values
        images += len(pixels)
        if step is not None:
            step(pixels)
        asked = time.perf_counter()
    whole = time.perf_counter() - started
    return images / whole, waited / whole


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
    parser.add_argument("--batches", type=int, help="of each round; default: a whole epoch")
    parser.add_argument("--train", action="store_true", help="with a training step on each batch")
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
        step = train_step(towers) if options.train else None
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for _ in range(options.rounds):
            for name, way in ways.items():
                found[name].append(measure(way(), options.batches, step))
    for name, measured in found.items():
        rates, shares = zip(*measured, strict=True)
        line = f"{name:32} {statistics.median(rates):8,.0f} images/s   ({', '.join(f'{rate:,.0f}' for rate in rates)})"
        print(line + (f"   {statistics.median(shares):.1%} waiting" if options.train else ""))


if __name__ == "__main__":
    main()
