"""Learn to weigh the scores of ranking methods: python examples/train_fusion.py WORK/sqid OUT --methods clip_text bm25

The features of a (query, product) pair are the scores that `sqid evaluate` computes for it, with any of its methods:
clip_text, clip_image, bm25, sbert:MODEL, cross-encoder:DIR, features:FILE, run:FILE. The models:

  linear      a weight for each score; loss: softmax cross-entropy over the list (ListNet, Cao et al. 2007)
  logistic    a weight for each score; loss: cross-entropy of each pair alone, with its gain as the probability
  mlp         one hidden layer of 16; loss as linear
  lambdamart  boosted trees on nDCG with the release's gains (Burges 2010; lightgbm, extra "fusion")

Queries are divided into folds with a seed; those of one fold are scored by models trained on the other folds alone.
With --test 0.25 one part is held out instead. What the two sides share is printed; --disjoint-products shares nothing.

OUT gets MODEL.run (scores of the held-out queries: sqid evaluate WORK/sqid --run OUT/mlp.run), fusion.json and
lambdamart.txt (the models, trained on all queries that are not held out with --test). `--apply OUT` scores another
release with them. A model or run file among the methods must not have been trained on the held-out queries: its scores
there would be too good, and this script cannot see it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from sqid_lib import EmbeddingStore, evaluation, fold_queries, split_queries
from sqid_lib.evaluation.arrays import Bools, Floats, Ints
from sqid_lib.evaluation.exports import write_run
from sqid_lib.evaluation.judged import JudgedLists

METHODS = ("clip_text", "clip_image", "bm25")
NORMALISE = ("query", "none", "both")
TREES = "lambdamart"
MODELS = ("linear", "logistic", "mlp", TREES)
Score = Callable[[Floats], Floats]  # features [N, F] → scores [N]


class Pairs(NamedTuple):
    """The judged pairs of a release in the order of `lists`: features [J, F], and a name for each of them."""

    lists: JudgedLists
    features: Floats
    names: list[str]


def read_pairs(compared: evaluation.Comparison, methods: Sequence[str], normalise: str) -> Pairs:
    """The scores of the methods, whether each retrieved the product, and whether the product has an image."""
    lists = compared.lists
    columns: dict[str, Floats | Bools] = {}
    for method in methods:
        scores = filled(compared.scores[method])
        if normalise != "query":
            columns[method] = scores
        if normalise != "none":
            columns[f"{method} in its list"] = standardised(lists, scores)
        columns[f"{method} retrieved"] = ~np.isneginf(compared.scores[method])
    columns["has image"] = np.asarray(compared.store.has_image)[lists.product]
    return Pairs(lists, np.stack([*columns.values()], axis=1).astype(np.float64), [*columns])


def filled(scores: Floats) -> Floats:
    """The scores; pairs that were not retrieved get the lowest of the others."""
    found = ~np.isneginf(scores)
    return np.where(found, scores, scores[found].min(initial=np.inf) if found.any() else 0.0)


def standardised(lists: JudgedLists, scores: Floats) -> Floats:
    """Scores with mean 0 and standard deviation 1 in each list; 0 where all of a list are equal."""
    centred = scores - (lists.sums(scores) / lists.lengths)[lists.query]
    spread = np.sqrt(lists.sums(centred**2) / lists.lengths)[lists.query]
    return np.divide(centred, spread, out=np.zeros_like(centred), where=spread > 1e-9)


# -- linear, logistic, mlp ---------------------------------------------------------------------------------------------


class Network(nn.Module):
    """Features [N, F] → scores [N]; the features are first standardised with mean and spread of the training pairs."""

    def __init__(self, kind: str, width: int) -> None:
        super().__init__()
        self.centre, self.spread = nn.Buffer(torch.zeros(width)), nn.Buffer(torch.ones(width))
        hidden = [nn.Linear(width, 16), nn.Tanh(), nn.Linear(16, 1)]
        self.layers = nn.Sequential(*hidden) if kind == "mlp" else nn.Sequential(nn.Linear(width, 1))

    def forward(self, features: Tensor) -> Tensor:
        scores: Tensor = self.layers((features - self.centre) / self.spread).squeeze(-1)
        return scores

    def score(self, features: Floats) -> Floats:
        """As `forward`, of arrays."""
        with torch.no_grad():
            return np.asarray(self(torch.tensor(features, dtype=torch.float32)).numpy(), np.float64)


def list_loss(scores: Tensor, gain: Tensor, query: Tensor) -> Tensor:
    """Cross-entropy between each product's share of the list's gain and the softmax of the scores within the list."""
    zeros = torch.zeros(int(query.max()) + 1)
    share = gain / zeros.index_add(0, query, gain).clamp(min=1e-9)[query]
    top = torch.full_like(zeros, -torch.inf).scatter_reduce(0, query, scores.detach(), "amax")
    shifted = scores - top[query]
    log_odds = shifted - zeros.index_add(0, query, shifted.exp()).log()[query]
    return -(share * log_odds).sum() / len(zeros)


def train_network(kind: str, pairs: Pairs, chosen: Bools, options: argparse.Namespace) -> Network:
    """Full-batch Adam on the chosen pairs, bool [J]."""
    torch.manual_seed(options.seed)
    model = Network(kind, pairs.features.shape[1])
    features = torch.tensor(pairs.features[chosen], dtype=torch.float32)
    gain = torch.tensor(pairs.lists.gain[chosen] / pairs.lists.gain.max(), dtype=torch.float32)
    query = torch.tensor(np.unique(pairs.lists.query[chosen], return_inverse=True)[1])
    model.centre.copy_(features.mean(0))
    model.spread.copy_(features.std(0))
    constant = model.spread < 1e-6
    model.spread[constant] = torch.inf  # says nothing here, and counts nothing elsewhere
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=options.weight_decay)
    for _ in range(options.steps):
        scores = model(features)
        loss = binary_cross_entropy_with_logits(scores, gain) if kind == "logistic" else list_loss(scores, gain, query)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return model


# -- lambdamart --------------------------------------------------------------------------------------------------------


def train_trees(pairs: Pairs, chosen: Bools, options: argparse.Namespace) -> Any:
    """A lightgbm.Booster trained on the chosen pairs; a grade for each gain, and the gains as they are in nDCG."""
    import lightgbm

    gains, grade = np.unique(pairs.lists.gain, return_inverse=True)
    lengths: Ints = np.unique(pairs.lists.query[chosen], return_counts=True)[1]
    settings = {
        "objective": "lambdarank",
        "label_gain": (gains / gains.max()).tolist(),
        "lambdarank_truncation_level": int(lengths.max()),  # nDCG is of the whole list
        "learning_rate": 0.05,
        "num_leaves": 7,
        "min_data_in_leaf": 20,
        "lambda_l2": 1.0,
        "seed": options.seed,
        "deterministic": True,
        "force_row_wise": True,
        "num_threads": 1,  # enough for lists, and threads that wait for each other cost more on a busy machine
        "verbosity": -1,
    }
    data = lightgbm.Dataset(pairs.features[chosen], grade[chosen], group=lengths)
    return lightgbm.train(settings, data, num_boost_round=options.trees)


# -- both --------------------------------------------------------------------------------------------------------------


def train(kind: str, pairs: Pairs, chosen: Bools, options: argparse.Namespace) -> tuple[Any, Score]:
    """The model and its scores; `chosen` are the pairs to train on, bool [J]."""
    if kind == TREES:
        trees = train_trees(pairs, chosen, options)
        return trees, trees.predict
    network = train_network(kind, pairs, chosen, options)
    return network, network.score


def save(out: Path, models: dict[str, Any], methods: Sequence[str], normalise: str) -> None:
    """fusion.json: methods, and the numbers of the networks; lambdamart.txt in lightgbm's own format."""
    networks = {kind: model.state_dict() for kind, model in models.items() if kind != TREES}
    weights = {kind: {name: value.tolist() for name, value in state.items()} for kind, state in networks.items()}
    saved = {"methods": [*methods], "normalise": normalise, "models": [*models], "weights": weights}
    (out / "fusion.json").write_text(json.dumps(saved, indent=1), encoding="utf-8")
    if TREES in models:
        models[TREES].save_model(str(out / f"{TREES}.txt"))


def load(folder: Path) -> tuple[dict[str, Score], list[str], str]:
    """What `save` wrote: the models' scores, the methods, and how these are normalised."""
    saved = json.loads((folder / "fusion.json").read_text(encoding="utf-8"))
    models: dict[str, Score] = {}
    for kind in saved["models"]:
        if kind == TREES:
            import lightgbm

            models[kind] = lightgbm.Booster(model_file=str(folder / f"{TREES}.txt")).predict
            continue
        weights = {name: torch.tensor(value) for name, value in saved["weights"][kind].items()}
        network = Network(kind, len(weights["centre"]))
        network.load_state_dict(weights)
        models[kind] = network.score
    return models, saved["methods"], saved["normalise"]


def held_out_scores(
    store: EmbeddingStore, pairs: Pairs, options: argparse.Namespace
) -> tuple[dict[str, Floats], list[int]]:
    """Scores [J] of each model for the held-out queries, -inf for others; and these queries. Saves the models."""
    together: dict[str, Any] = {"seed": options.seed, "disjoint_products": options.disjoint_products}
    one = options.test is not None
    splits = (
        [split_queries(store, test=options.test, **together)]
        if one
        else fold_queries(store, folds=options.folds, **together)
    )
    scores = {kind: np.full(len(pairs.features), -np.inf) for kind in options.models}
    query_id = store.query_ids[pairs.lists.query_index[pairs.lists.query]]
    models: dict[str, Any] = {}
    for number, split in enumerate(splits, 1):
        print(f"split {number}: {split}", flush=True)
        held_out = np.isin(query_id, split.test)
        for kind in options.models:
            models[kind], score = train(kind, pairs, ~held_out, options)
            scores[kind][held_out] = score(pairs.features[held_out])
    if not one:  # the models to keep are trained on all queries
        models = {kind: train(kind, pairs, np.ones(len(query_id), np.bool_), options)[0] for kind in options.models}
    save(options.out, models, options.methods, options.normalise)
    return scores, [query for split in splits for query in split.test]


def compare(
    store: EmbeddingStore, compared: evaluation.Comparison, scores: dict[str, Floats], queries: Sequence[int], out: Path
) -> evaluation.Comparison:
    """Each method alone, all with equal weights, and the models, against the best of the first; writes the runs."""
    lists, measured = compared.lists, np.isin(compared.query_ids, queries)
    ndcg = {method: values[measured, 0].mean() for method, values in compared.per_query.items()}
    columns = {f"only {method}": values for method, values in compared.scores.items()}
    columns["equal weights"] = np.sum([standardised(lists, filled(values)) for values in columns.values()], axis=0)
    by_judgment = {}
    for name, values in (columns | scores).items():
        by_judgment[name] = np.full(store.judgments.num_rows, -np.inf)
        by_judgment[name][lists.row] = values
    best = f"only {max(ndcg, key=lambda method: float(ndcg[method]))}"
    result = evaluation.compare(store, scores=by_judgment, queries=queries, baseline=best)
    for kind in scores:
        write_run(out / f"{kind}.run", store, result.rankings[kind], kind)
    return result


def main(arguments: Sequence[str] | None = None) -> evaluation.Comparison:
    """Train or apply the models, and print the table of the held-out queries."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("release", help="a release directory or ORG/name on the Hub")
    add("out", type=Path, help="directory for scores and models")
    add("--methods", nargs="+", default=METHODS, metavar="METHOD", help=f"default: {' '.join(METHODS)}")
    add("--models", nargs="+", choices=MODELS, default=MODELS)
    add("--normalise", choices=NORMALISE, default="both", help="scores per query, as they are, or both")
    add("--folds", type=int, default=5)
    add("--test", type=float, help="hold out this share of the queries once, instead of folds")
    add("--disjoint-products", action="store_true", help="no product is on both sides of a split")
    add("--seed", type=int, default=0, help="of splits, weights and trees")
    add("--steps", type=int, default=200, help="of linear, logistic and mlp")
    add("--weight-decay", type=float, default=0.01, help="of linear, logistic and mlp")
    add("--trees", type=int, default=100, help="of lambdamart")
    add("--apply", type=Path, metavar="OUT", help="score all queries with the models of another run")
    add("--cache-dir", help="directory of the converted vectors")
    options = parser.parse_args(arguments)

    store = EmbeddingStore.open(options.release, cache_dir=options.cache_dir)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.apply:
        models, options.methods, options.normalise = load(options.apply)
    compared = evaluation.compare(store, options.methods, resamples=100)
    if compared.sweeps or len(compared.scores) < len(options.methods):
        parser.error("a fusion among the methods needs its weight, such as rrf or fusion:0.5; random has no scores")
    pairs = read_pairs(compared, options.methods, options.normalise)
    if options.apply:
        scores, queries = {kind: score(pairs.features) for kind, score in models.items()}, compared.query_ids.tolist()
    else:
        scores, queries = held_out_scores(store, pairs, options)
    result = compare(store, compared, scores, queries, options.out)
    print(result)
    return result


if __name__ == "__main__":
    main()
