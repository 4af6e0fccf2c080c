"""Fine-tune a dual encoder on a release and its images: python examples/finetune_clip.py WORK MODEL --out tuned

WORK is the work directory of `sqid build`; or name a release, and a folder of images with --images. Training pairs are
(query, product image, product title, gain). The queries are split by a seed; those held out are ranked by image alone
before and after, with intervals. tuned/model is a transformers directory for `[encoder] model`, and tuned/held_out.txt
has the ids of the held-out queries. Run it again with the same options after an interruption: it goes on where it was.
On several GPUs: torchrun --nproc-per-node N examples/finetune_clip.py …

Losses (--loss) of the scaled cosines S of a batch: w·L(query, image) + (1 - w)·L(query, title), w is --image-weight
  gcl     cross-entropy of each row and column of S, weighted by the pair's gain: the loss of generalized contrastive
          learning (T. Zhu, M. C. Jung and J. Clark: Generalized Contrastive Learning for Multi-Modal Retrieval and
          Ranking, 2024, arXiv:2404.08535), with the gain as the weight, and of each field alone, not of a mean vector
  clip    the same without weights, of the pairs with the highest gain (Radford et al. 2021, arXiv:2103.00020)
  siglip  pairwise sigmoid loss, of the same pairs (Zhai et al. 2023, arXiv:2303.15343)
A product that is judged for a query is no negative of it, unless its gain is less than that of the pair.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, distributed, nn
from torch.nn.functional import logsigmoid, normalize
from torch.nn.parallel import DistributedDataParallel

from sqid_lib import EmbeddingStore, ProductImages, evaluation, split_queries
from sqid_lib.encoders import Towers, load_towers
from sqid_lib.streams.batches import ImagePairBatch

TEXTS = ("query", "product_title")
FROZEN = {"text": "text_", "vision": "vis"}  # how the names of a tower's weights begin
STATED = ("model", "loss", "image_weight", "epochs", "batch_size", "accumulate", "lr", "weight_decay", "freeze", "lora",
          "augment", "test", "disjoint_products", "seed")  # fmt: skip
CURVE_QUERIES = 200  # held-out queries that are ranked after each epoch


class Model(nn.Module):
    """The network, with a forward pass over a whole batch, as DistributedDataParallel wants it."""

    def __init__(self, network: Any, biased: bool) -> None:
        super().__init__()
        self.network = network
        bias = getattr(network, "logit_bias", None)  # siglip's own; it begins at -10 where the network has none
        self.bias = None if not biased else nn.Parameter(torch.tensor(-10.0)) if bias is None else bias

    def vectors(self, kind: str, **inputs: Tensor) -> Tensor:
        """Unit vectors [B, D]; kind is "text" or "image"."""
        out = getattr(self.network, f"get_{kind}_features")(**inputs)
        return normalize((out if isinstance(out, Tensor) else out.pooler_output).float(), dim=-1)

    def forward(self, query: dict[str, Tensor], title: dict[str, Tensor], pixels: Tensor) -> tuple[Tensor, ...]:
        """Scores [B, B] of queries with images, and with titles."""
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=pixels.is_cuda):
            queries, titles = self.vectors("text", **query), self.vectors("text", **title)
            images = self.vectors("image", pixel_values=pixels)
        scale = getattr(self.network, "logit_scale", None)
        queries = queries * (scale.exp().clamp(max=100) if scale is not None else 1 / self.network.temperature)
        scores = queries @ images.T, queries @ titles.T
        return scores if self.bias is None else tuple(one + self.bias for one in scores)


# -- losses: scores [B, B], weight [B] of each pair, and which scores of rows and of columns count [2, B, B] ----------


def cross_entropy(scores: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    """The pair against its row and against its column."""
    rows, columns = (scores.masked_fill(~mask, -torch.inf) for mask in counts)
    both = rows.logsumexp(1) + columns.logsumexp(0) - 2 * scores.diagonal()
    loss: Tensor = (weight * both).sum() / (2 * weight.sum().clamp(min=1e-9))
    return loss


def sigmoid(scores: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    """Each score apart: the pair is to be above zero, the others of its row below."""
    pair = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    each = -logsigmoid(scores * torch.where(pair, 1, -1)) * counts[0]
    loss: Tensor = (weight[:, None] * each).sum() / weight.sum().clamp(min=1e-9)
    return loss


LOSSES: dict[str, Callable[..., Tensor]] = {"gcl": cross_entropy, "clip": cross_entropy, "siglip": sigmoid}


def what_counts(store: EmbeddingStore, batch: ImagePairBatch) -> Tensor:
    """Pairs and their negatives, bool [2, B, B]: products for the query of a row, queries for that of a column."""
    rows = np.array([store.query_index(query) for query in batch.query_id.tolist()])
    judged = torch.from_numpy(store.judged.has(rows[:, None], batch.product_index.numpy()[None]))
    worse = (batch.query_id[:, None] == batch.query_id) & (batch.gain[:, None] > batch.gain)
    same_product = batch.product_index[:, None] == batch.product_index
    pair = torch.eye(len(rows), dtype=torch.bool)
    return torch.stack([pair | ~judged | (worse & ~same_product), pair | ~judged])


# -- training -------------------------------------------------------------------------------------------------------


class Training:
    """Everything that a checkpoint holds, and one optimizer step after another."""

    def __init__(self, store: EmbeddingStore, images: ProductImages, known: list[int], options: Any) -> None:
        self.store, self.options = store, options
        self.rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.device = torch.device(options.device)
        self.towers = load_towers(options.model)
        self.network = adapted(self.towers, options)
        self.model = Model(self.network, biased=options.loss == "siglip").to(self.device)
        self.wrapped = DistributedDataParallel(self.model, find_unused_parameters=True) if world > 1 else self.model
        self.stream = store.image_pairs(
            images,
            self.towers.preprocess,
            augment=flip_and_crop if options.augment else None,
            queries=known,
            texts=TEXTS,
            batch_size=options.batch_size,
            shuffle=True,
            seed=options.seed,
            rank=self.rank,
            world_size=world,
            drop_last=True,  # a short batch has fewer negatives, and so another loss
            prefetch=options.prefetch,
        )
        if not len(self.stream):
            raise SystemExit(f"{self.stream.units} pairs to train on do not fill a batch: use a smaller --batch-size")
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=options.lr, weight_decay=options.weight_decay)
        self.steps_per_epoch = -(-len(self.stream) // options.accumulate)
        self.steps = options.epochs * self.steps_per_epoch
        self.step, self.losses, self.curve = 0, [], []  # type: ignore[var-annotated]
        self.highest = float(store.gain.max())

    def epoch(self, number: int) -> Iterator[None]:
        """The steps of an epoch, one at each `next`; says how much of the time was spent waiting for data."""
        self.stream.set_epoch(number)
        started = asked = time.perf_counter()
        waited, batches = 0.0, iter(self.stream)
        while group := list(itertools.islice(batches, self.options.accumulate)):
            waited += time.perf_counter() - asked
            self._learn(group)
            yield
            asked = time.perf_counter()
        loss, whole = np.mean(self.losses[-self.steps_per_epoch :]), time.perf_counter() - started
        say(f"epoch {number + 1}: loss {loss:.4f}, {whole:.1f} s, {waited / whole:.1%} of it waiting for data")

    def _learn(self, group: list[ImagePairBatch]) -> None:
        rate = min(1, (self.step + 1) / (0.1 * self.steps)) * 0.5 * (1 + math.cos(math.pi * self.step / self.steps))
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = self.options.lr * rate
        total = 0.0
        for batch in group:
            loss = self._loss(batch) / len(group)
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        self.losses.append(total)

    def _loss(self, batch: ImagePairBatch) -> Tensor:
        loss, share = LOSSES[self.options.loss], self.options.image_weight
        query, title = ({k: v.to(self.device) for k, v in self.towers.tokens(batch.texts[t]).items()} for t in TEXTS)
        weight = batch.gain if self.options.loss == "gcl" else (batch.gain == self.highest).float()
        weight = (weight * batch.has_image).to(self.device)
        counts = what_counts(self.store, batch).to(self.device)
        image, text = self.wrapped(query, title, batch.pixel_values.to(self.device))
        whole: Tensor = share * loss(image, weight, counts) + (1 - share) * loss(text, weight, counts)
        return whole

    def save(self, path: Path) -> None:
        """Write what goes on to the same numbers; it appears whole or not at all."""
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "stream": self.stream.state_dict(),
            "random": torch.get_rng_state(),
            "options": self._stated(),
            **{name: getattr(self, name) for name in ("step", "losses", "curve")},
        }
        if self.rank:
            return
        torch.save(state, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)

    def _stated(self) -> dict[str, str]:
        return {name: str(getattr(self.options, name)) for name in STATED}

    def load(self, path: Path) -> None:
        """Go on from a checkpoint."""
        state = torch.load(path, map_location=self.device, weights_only=True)
        if state["options"] != self._stated():
            changed = [name for name, value in self._stated().items() if state["options"].get(name) != value]
            raise SystemExit(
                f"{path} was made with another {', '.join(changed)}: use the same options, or another --out"
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.stream.load_state_dict(state["stream"])
        torch.set_rng_state(state["random"].cpu())
        for name in ("step", "losses", "curve"):
            setattr(self, name, state[name])
        say(f"goes on after step {self.step} of {self.steps}")


def adapted(towers: Towers, options: Any) -> Any:
    """The network with the weights that are to be trained: all, all but a frozen tower, or LoRA's alone."""
    network = towers.network
    for name, parameter in network.named_parameters():
        if any(name.startswith(FROZEN[kind]) for kind in options.freeze):
            parameter.requires_grad_(False)
    if options.lora:
        try:
            from peft import LoraConfig, get_peft_model
        except ImportError:
            raise SystemExit("--lora needs peft: pip install peft") from None
        names = ["q_proj", "k_proj", "v_proj", "out_proj"]
        network = get_peft_model(network, LoraConfig(r=options.lora, lora_alpha=2 * options.lora, target_modules=names))
    return network


def flip_and_crop(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Mirrored half of the time; 80 to 100 % of each side."""
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    width, height = (max(1, round(side * rng.uniform(0.8, 1))) for side in image.size)
    left, top = (int(rng.integers(0, full - side + 1)) for full, side in zip(image.size, (width, height), strict=True))
    return image.crop((left, top, left + width, top + height))


def judged_for(store: EmbeddingStore, queries: Sequence[int]) -> np.ndarray[Any, Any]:
    """The rows of the judgments of some queries."""
    return np.flatnonzero(np.isin(store.query_ids[store.judgment_query_index], queries))


def image_scores(training: Training, images: ProductImages, queries: Sequence[int]) -> np.ndarray[Any, Any]:
    """[J] cosine of query and image; 0 without an image and for other queries."""
    store, towers, model, found = training.store, training.towers, training.model.eval(), []
    stream = store.image_pairs(
        images, towers.preprocess, queries=queries, has_image=None, texts=["query"], batch_size=256
    )
    for batch in stream:  # in the order of the judgments
        with torch.inference_mode():
            tokens = {name: ids.to(training.device) for name, ids in towers.tokens(batch.texts["query"]).items()}
            pixels = batch.pixel_values.to(training.device)
            cosines = (model.vectors("text", **tokens) * model.vectors("image", pixel_values=pixels)).sum(1)
        found.append(np.where(batch.has_image, cosines.cpu(), 0))
    scores = np.zeros(len(store.judgments))
    scores[judged_for(store, queries)] = np.concatenate(found)
    training.model.train()
    return scores


def ndcg(store: EmbeddingStore, scores: np.ndarray[Any, Any], queries: list[int]) -> float:
    """nDCG of some queries."""
    return float(evaluation.compare(store, scores={"now": scores}, queries=queries, resamples=100).rows[0]["ndcg"])


def draw(training: Training, path: Path) -> None:
    """Loss by step, and held-out nDCG by epoch, if matplotlib is installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    figure = Figure(figsize=(7, 2.6), dpi=80, layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(range(1, len(training.losses) + 1), training.losses, linewidth=0.8)
    left.set(xlabel="step", ylabel="loss")
    right.plot(range(len(training.curve)), training.curve, marker=".")
    right.set(xlabel="epoch", ylabel="held-out nDCG, image alone")
    figure.savefig(path)


def say(line: str) -> None:
    """Print a line once, whatever the number of processes."""
    if int(os.environ.get("RANK", 0)) == 0:
        print(line, flush=True)


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("release", help="the work directory of a build; or a release directory or ORG/name, with --images")
    add("model", help="the dual encoder to start from: a directory or a Hub id, such as that of the recipe")
    add("--images", help="a folder of images named by product id, or a work directory; default: that of the release")
    add("--out", type=Path, required=True, help="folder of what is written")
    add("--loss", choices=LOSSES, default="gcl")
    add("--image-weight", type=float, default=0.5, help="share of the loss of images; that of titles is the rest")
    add("--epochs", type=int, default=3)
    add("--batch-size", type=int, default=64, help="pairs among which negatives are found, for each process")
    add("--accumulate", type=int, default=1, help="batches for each optimizer step; they add no negatives")
    add("--lr", type=float, default=1e-5)
    add("--weight-decay", type=float, default=0.1)
    add("--freeze", choices=FROZEN, nargs="*", default=[], help="towers that are not trained")
    add("--lora", type=int, default=0, metavar="RANK", help="train low-rank adapters alone (needs peft)")
    add("--augment", action="store_true", help="mirror and crop training images at random")
    add("--test", type=float, default=0.25, help="share of the queries that is held out")
    add("--disjoint-products", action="store_true", help="train on no product that is judged for a held-out query")
    add("--seed", type=int, default=0, help="of the split and the order")
    add("--prefetch", type=int, default=os.cpu_count() or 1, help="batches made ahead, each by a thread")
    add("--stop-after", type=int, default=0, metavar="STEPS", help="save a checkpoint after so many steps, and stop")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--cache-dir", help="directory of the converted vectors")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> evaluation.Comparison | None:
    """Train, evaluate and write; the comparison of before and after, or None after --stop-after."""
    options = read_options(arguments)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:  # torchrun sets it
        distributed.init_process_group("nccl" if options.device == "cuda" else "gloo")
        if options.device == "cuda":
            options.device = f"cuda:{os.environ['LOCAL_RANK']}"
            torch.cuda.set_device(options.device)
    torch.manual_seed(options.seed)
    is_work = (Path(options.release) / "sqid").is_dir()
    store = EmbeddingStore.open(f"{options.release}/sqid" if is_work else options.release, cache_dir=options.cache_dir)
    images = ProductImages.open(options.images or options.release)
    split = split_queries(store, test=options.test, seed=options.seed)
    say(str(split))
    known = images
    if options.disjoint_products:
        products = np.unique(store.judgment_product_index[judged_for(store, split.test)])
        known = images.without(store.products.take(products))
    options.out.mkdir(parents=True, exist_ok=True)
    training, checkpoint = Training(store, known, split.train, options), options.out / "checkpoint.pt"
    say(f"{training.stream.units:,} pairs with an image to train on")
    shown = split.test[:CURVE_QUERIES]
    before = image_scores(training, images, split.test)  # of the encoder as it was, also where training goes on
    if checkpoint.exists():
        training.load(checkpoint)
    else:
        training.curve.append(ndcg(store, before, shown))
    for number in range(training.step // training.steps_per_epoch, options.epochs):
        for _ in training.epoch(number):
            if training.step == options.stop_after:
                training.save(checkpoint)
                return None
        training.curve.append(ndcg(store, image_scores(training, images, shown), shown))
        say(f"  held-out nDCG, image alone: {training.curve[-1]:.4f}")
        training.save(checkpoint)
    return finish(training, images, split.test, before) if training.rank == 0 else None


def finish(
    training: Training, images: ProductImages, held_out: list[int], before: np.ndarray[Any, Any]
) -> evaluation.Comparison:
    """Compare before and after on the held-out queries, and write model, query ids and curves."""
    scores = {"before": before, "after": image_scores(training, images, held_out)}
    found = evaluation.compare(training.store, scores=scores, queries=held_out, metrics="ndcg recall@10")
    say(f"held-out queries, by image alone:\n{found}")
    if training.options.lora:
        training.network.merge_and_unload()  # into the network of `towers`
    out = training.options.out
    training.towers.save(out / "model")
    (out / "held_out.txt").write_text("".join(f"{query}\n" for query in held_out), encoding="utf-8")
    draw(training, out / "curve.png")
    features = "before#clip_image_features"
    say(
        f"wrote {out / 'model'}, held_out.txt and curve.png. To compare releases (whole catalogue: --retrieve):"
        f"\ncp -r WORK/sqid before; sqid build RECIPE --work WORK --set encoder.model={out / 'model'}"
        f"\nsqid evaluate WORK/sqid --queries {out / 'held_out.txt'} --features {features} --methods clip_image "
        f"--baseline features:{features}"
    )
    return found


if __name__ == "__main__":
    main()
