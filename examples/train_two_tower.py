"""Train a query tower and a product tower with negatives: python examples/train_two_tower.py WORK/sqid

Each positive comes with products that are not judged for its query (`store.negatives`): some drawn at random, others
from the same batch. Each tower gives one vector, so a catalogue can be indexed; before training their dot product is
the zero-shot cosine fusion. The queries are split into three folds; each fold is held out once, and the mean nDCG of
all held-out queries is printed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from sqid_lib import EmbeddingStore, fold_queries
from sqid_lib.streams.batches import ListBatch, NegativeBatch


class Towers(nn.Module):
    """Both towers weight CLIP's dimensions; the product tower adds text and image, and more text without an image."""

    def __init__(self, width: int, text_weight: float) -> None:
        super().__init__()
        self.stretch = nn.Parameter(torch.zeros(3, width))  # log of the weight of each dimension: query, text, image
        self.weights = nn.Parameter(torch.tensor([text_weight, 1 - text_weight, 0.0]))

    def query(self, features: Tensor) -> Tensor:
        """[…, D] → […, D]."""
        vector: Tensor = normalize(features * self.stretch[0].exp(), dim=-1)
        return vector

    def product(self, text: Tensor, image: Tensor, has_image: Tensor) -> Tensor:
        """[…, D], […, D], […] → […, D]."""
        text = normalize(text * self.stretch[1].exp(), dim=-1)
        image = normalize(image * self.stretch[2].exp(), dim=-1)
        instead = self.weights[2] * ~has_image
        return (self.weights[0] + instead)[..., None] * text + self.weights[1] * image

    def forward(self, batch: ListBatch) -> Tensor:
        """Scores [B, L] of judged lists."""
        products = self.product(batch.text_features, batch.image_features, batch.has_image)
        return (self.query(batch.query_features)[:, None] * products).sum(-1)


def contrastive_loss(towers: Towers, batch: NegativeBatch, temperature: float = 0.2) -> Tensor:
    """The positive against its negatives (InfoNCE, van den Oord et al. 2018), weighted by gain.

    Negatives are the random ones, products of the batch that are not judged for the query, and those with less gain.
    """
    query = towers.query(batch.query_features)
    product = towers.product(batch.text_features, batch.image_features, batch.has_image)
    random = towers.product(batch.negative_text_features, batch.negative_image_features, batch.negative_has_image)
    worse = (batch.query_id[:, None] == batch.query_id) & (batch.gain[:, None] > batch.gain)
    scores = torch.cat(
        [
            (query * product).sum(-1, keepdim=True),
            (query @ product.T).masked_fill(~(batch.in_batch_mask | worse), -torch.inf),
            (query[:, None] * random).sum(-1),
        ],
        dim=1,
    )
    losses = cross_entropy(scores / temperature, torch.zeros(len(query), dtype=torch.int64), reduction="none")
    loss: Tensor = (batch.gain * losses).mean()
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


def zero_shot(store: EmbeddingStore, known: Sequence[int]) -> Towers:
    """Untrained towers, with the text weight that is best for `known` queries."""
    towers = [Towers(store.width, weight / 20) for weight in range(1, 20)]
    return max(towers, key=lambda tower: ndcg(tower, store, known))


def train(store: EmbeddingStore, known: Sequence[int], held_out: Sequence[int], options: argparse.Namespace) -> float:
    """nDCG of the held-out queries after training on the known ones."""
    towers = zero_shot(store, known)
    optimizer = torch.optim.Adam(towers.parameters(), lr=0.01)
    stream = store.negatives(8, labels=None, queries=known, batch_size=64, shuffle=True, seed=options.seed)
    for epoch in range(options.epochs):
        stream.set_epoch(epoch)
        total = 0.0
        for batch in stream:
            loss = contrastive_loss(towers, batch)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += loss.item() / len(stream)
        if (epoch + 1) % 4 == 0:
            print(f"  epoch {epoch + 1:2}: loss {total:.4f}, held-out nDCG {ndcg(towers, store, held_out):.4f}")
    return ndcg(towers, store, held_out)


def main(arguments: Sequence[str] | None = None) -> tuple[float, float]:
    """Three-fold cross-validation over queries: mean nDCG of all held-out queries, untrained and trained."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("release", help="a release directory or ORG/name on the Hub")
    parser.add_argument("--cache-dir", help="directory of the converted vectors")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)

    torch.manual_seed(options.seed)
    store = EmbeddingStore.open(options.release, cache_dir=options.cache_dir)
    before, after, splits = 0.0, 0.0, fold_queries(store, folds=3, seed=options.seed)
    queries = sum(len(split.test) for split in splits)
    for fold, split in enumerate(splits, 1):
        share = len(split.test) / queries
        untrained = ndcg(zero_shot(store, split.train), store, split.test)
        print(f"fold {fold}: {split}\n  held-out nDCG of the zero-shot fusion {untrained:.4f}")
        before += share * untrained
        after += share * train(store, split.train, split.test, options)
    print(f"mean nDCG over {queries} held-out queries: zero-shot {before:.4f}, trained {after:.4f}")
    return before, after


if __name__ == "__main__":
    main()
