"""Learn to fuse CLIP's text and image scores from judged lists: python examples/train_fusion.py WORK/sqid

Each query comes with all its judged products (`store.lists`). Before training the score is the zero-shot cosine fusion;
training learns a weight for each dimension, and a small correction that depends on whether a product has an image. The
queries are split into three folds; each fold is held out once, and the mean nDCG of all held-out queries is printed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, log_softmax

from sqid_lib import EmbeddingStore
from sqid_lib.streams.batches import ListBatch


class Fusion(nn.Module):
    """a · cos(query, text) + (1 - a) · cos(query, image) + correction, with a learned weight for each dimension."""

    def __init__(self, width: int, text_weight: float) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.tensor([text_weight, 1 - text_weight]))
        self.stretch = nn.Parameter(torch.zeros(2, width))  # log of the weight of each dimension: text, image
        self.correct = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1))
        for parameter in self.correct[2].parameters():
            nn.init.zeros_(parameter)

    def forward(self, batch: ListBatch) -> Tensor:
        """Scores [B, L]."""
        query = batch.query_features[:, None]
        text = cosine_similarity(query * self.stretch[0].exp(), batch.text_features, dim=-1)
        image = cosine_similarity(query * self.stretch[1].exp(), batch.image_features, dim=-1)
        features = [text, image, batch.has_image, text - mean(text, batch.mask), image - mean(image, batch.has_image)]
        correction = self.correct(5 * torch.stack(features, dim=-1)).squeeze(-1)
        scores: Tensor = self.weights[0] * text + self.weights[1] * image + 0.1 * correction
        return scores


def mean(scores: Tensor, mask: Tensor) -> Tensor:
    """Mean of each list [B, 1] where `mask` is true."""
    return (scores * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)


def list_loss(scores: Tensor, batch: ListBatch, temperature: float = 0.15) -> Tensor:
    """Cross-entropy between each product's share of the list's gain and the softmax of the scores (ListNet, 2007)."""
    share = batch.gain / batch.gain.sum(1, keepdim=True).clamp(min=1e-9)
    log_odds = log_softmax((scores / temperature).masked_fill(~batch.mask, -torch.inf), dim=1)
    loss: Tensor = -(share * log_odds.masked_fill(~batch.mask, 0)).sum(1).mean()
    return loss


def ndcg(model: nn.Module, store: EmbeddingStore, queries: Sequence[int]) -> float:
    """Mean nDCG over the judged lists of `queries`, with the release's gains; ties stay in the order of product_id."""
    values = []
    for batch in store.lists(queries=queries, batch_size=256):
        with torch.no_grad():
            scores = model(batch).masked_fill(~batch.mask, -torch.inf)
        discount = 1 / torch.log2(torch.arange(batch.gain.shape[1]) + 2.0)
        ranked = batch.gain.gather(1, scores.argsort(dim=1, descending=True, stable=True))
        best = (batch.gain.sort(dim=1, descending=True).values * discount).sum(1)
        values.append((ranked * discount).sum(1) / best.clamp(min=1e-9))
    return torch.cat(values).mean().item()


def zero_shot(store: EmbeddingStore, known: Sequence[int]) -> Fusion:
    """The untrained fusion, with the text weight that is best for `known` queries."""
    fusions = [Fusion(store.width, weight / 20) for weight in range(1, 20)]
    return max(fusions, key=lambda fusion: ndcg(fusion, store, known))


def train(store: EmbeddingStore, known: Sequence[int], held_out: Sequence[int], options: argparse.Namespace) -> float:
    """nDCG of the held-out queries after training on the known ones."""
    model = zero_shot(store, known)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    stream = store.lists(queries=known, batch_size=16, shuffle=True, seed=options.seed)
    for epoch in range(options.epochs):
        stream.set_epoch(epoch)
        total = 0.0
        for batch in stream:
            loss = list_loss(model(batch), batch)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += loss.item() / len(stream)
        if (epoch + 1) % 10 == 0:
            print(f"  epoch {epoch + 1:2}: loss {total:.4f}, held-out nDCG {ndcg(model, store, held_out):.4f}")
    return ndcg(model, store, held_out)


def compare(
    arguments: Sequence[str] | None, description: str | None, epochs: int, zero_shot: Untrained, train: Train
) -> tuple[float, float]:
    """Three-fold cross-validation over queries: mean nDCG of all held-out queries, untrained and trained."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("release", help="a release directory or ORG/name on the Hub")
    parser.add_argument("--cache-dir", help="directory of the converted vectors")
    parser.add_argument("--epochs", type=int, default=epochs)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)

    torch.manual_seed(options.seed)
    store = EmbeddingStore.open(options.release, cache_dir=options.cache_dir)
    shuffled = np.random.default_rng(options.seed).permutation(store.query_ids)
    folds = [fold.tolist() for fold in np.array_split(shuffled, 3)]
    before, after = 0.0, 0.0
    for fold, held_out in enumerate(folds):
        known = [query for other in folds if other is not held_out for query in other]
        share = len(held_out) / len(store.query_ids)
        untrained = ndcg(zero_shot(store, known), store, held_out)
        print(f"fold {fold + 1}: held-out nDCG of the zero-shot fusion {untrained:.4f}")
        before += share * untrained
        after += share * train(store, known, held_out, options)
    print(f"mean nDCG over {len(store.query_ids)} held-out queries: zero-shot {before:.4f}, trained {after:.4f}")
    return before, after


Untrained = Callable[[EmbeddingStore, Sequence[int]], nn.Module]
Train = Callable[[EmbeddingStore, Sequence[int], Sequence[int], argparse.Namespace], float]

if __name__ == "__main__":
    compare(None, __doc__, 40, zero_shot, train)
