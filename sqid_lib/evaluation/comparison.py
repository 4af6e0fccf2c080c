"""The ranking table: methods side by side over the judged lists, or over the whole catalogue."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sqid_lib import schemas
from sqid_lib.errors import EvaluationError, UsageError, first_line
from sqid_lib.evaluation import metrics as measures
from sqid_lib.evaluation import nearest, retrieval, runs
from sqid_lib.evaluation.arrays import Floats
from sqid_lib.evaluation.judged import JudgedLists, Store, judged_lists
from sqid_lib.evaluation.methods import DEFAULT_METHODS, METHODS, PUBLISHED_NDCG, is_method
from sqid_lib.evaluation.report import Comparison
from sqid_lib.evaluation.scorer import Scorer
from sqid_lib.evaluation.summary import Summary, check_slices, slice_notes

RETRIEVAL_METHODS = ("clip_text", "clip_image", "fusion")
RETRIEVAL_METRICS = "ndcg ndcg@10 mrr recall@10 recall@100"
METRICS_ENGINES = ("fast", "ir-measures")


def compare(
    store: Store,
    methods: Sequence[str] | None = None,
    *,
    scores: Mapping[str, npt.ArrayLike] | None = None,
    gains: str | None = None,
    missing: str = "zero",
    relevant: str | Sequence[str] | None = None,
    queries: Iterable[int] | None = None,
    metrics: str | Sequence[str] = measures.DEFAULT_METRICS,
    baseline: str | None = None,
    slices: Sequence[str] = (),
    folds: int = 5,
    resamples: int = 2_000,
    seed: int = 0,
    metrics_engine: str = "fast",
) -> Comparison:
    """Rank every query's judged products with every method and measure the rankings.

    Args:
        store: an EmbeddingStore.
        methods: see `sqid_lib.evaluation`; None means random, clip_text, clip_image, fusion and rrf, or only `scores`
            if they are given.
        scores: your own rankings, name → [J] scores in the order of `store.judgments`, -inf where a product is not
            retrieved; they come after `methods`.
        gains: "esci"; "esci-repo-swapped" (S and C exchanged, as in the ESCI repository's script); "release", the gain
            column of the release. None means "esci" if all labels are ESCI's, otherwise "release", and "release" for a
            shop's own catalogue.
        missing: a product without an image scores 0 ("zero"), gets its rescaled text score ("text"), or is left out
            ("drop").
        relevant: labels that count as relevant for the binary measures. With ESCI's gains "E" (None), "ES" or "ESC";
            with the release's gains a label or a list of labels, None means those with the highest gain. Where
            judgments are clicks or many numbers, the least gain, such as "0.5"; None means half of the highest.
        queries: ids of the queries to measure, such as `split_queries(store).test`; None means all.
        metrics: such as "ndcg ndcg@10 p@1 mrr recall@10 ap"; nDCG of the whole list always comes first.
        baseline: the method that the others are compared with; None means the first.
        slices: any of "source", "images" (share of the list with an image) and "length" (of the list). The slices of
            one kind do not overlap and hold every query; slices without a query are named in a note.
        folds: of queries, for choosing fusion weights.
        resamples: of the bootstrap; the randomisation test uses five times as many. Its p-value is for one comparison:
            correct it if you compare many methods.
        seed: of the random draw, the folds, the bootstrap and the test.
        metrics_engine: "fast", or "ir-measures" for trec_eval itself.

    Raises:
        UsageError: an unknown method, metric, slice or option; nothing has been ranked then.
        EvaluationError: data or scores that cannot be used.
        MissingExtraError: a method or the metrics engine needs a package that is not installed.
    """
    if metrics_engine not in METRICS_ENGINES:
        raise UsageError("unknown metrics engine", expected=" or ".join(METRICS_ENGINES), got=repr(metrics_engine))
    wanted, kinds = _headline_first(metrics), check_slices(slices)
    _check_listed(methods)
    lists = judged_lists(store, gains, missing, relevant, queries)
    given = {name: _given_scores(name, values, lists, store) for name, values in (scores or {}).items()}
    names = list(dict.fromkeys([*(DEFAULT_METHODS if methods is None and not given else methods or ()), *given]))
    _check(names, baseline, resamples, folds, seed)
    clash = [name for name in given if is_method(name)]
    if clash:
        raise UsageError("scores have the name of a method", got=repr(clash[0]), fix="Rename them.")
    scorer = Scorer(store, lists, METHODS, missing, folds, seed, given)
    scored = [name for name in names if scorer.check(name)]
    judge = measures.per_query if metrics_engine == "fast" else measures.per_query_trec_eval
    per_query = {
        name: judge(lists, scorer.scores(name), wanted) if name in scored else measures.expected_random(lists, wanted)
        for name in names
    }
    ranked = {name: scorer.scores(name) for name in scored}
    rankings = {name: runs.judged_ranking(lists, values) for name, values in ranked.items()}
    summary = Summary(wanted, per_query, baseline or names[0], resamples, seed)
    official = lists.labels.gains == "esci" and missing == "zero" and _is_official(store, lists)
    return _conclude(scorer, summary, rankings, ranked, kinds, {}, official)


def retrieve(
    store: Store,
    methods: Sequence[str] | None = None,
    *,
    top: int = 100,
    backend: str = "auto",
    gains: str | None = None,
    missing: str = "zero",
    relevant: str | Sequence[str] | None = None,
    queries: Iterable[int] | None = None,
    metrics: str | Sequence[str] = RETRIEVAL_METRICS,
    baseline: str | None = None,
    slices: Sequence[str] = (),
    folds: int = 5,
    resamples: int = 2_000,
    seed: int = 0,
    map_shards: retrieval.Map | None = None,
) -> Comparison:
    """Rank all products for every judged query by exact search; products not judged have gain 0, as in trec_eval.

    Args:
        methods: those that can search (see `sqid_lib.evaluation`); a fusion without a weight uses the weights chosen on
            the judged lists, rrf fuses the best `top` of each of its methods (100 if that is more), and bm25 retrieves
            the products whose title has a word of the query. None means clip_text, clip_image and fusion.
        top: how many products a ranking keeps.
        backend: "auto", "torch", "numpy" or "faiss".
        missing: "zero" or "drop".
        map_shards: as the built-in `map`, but runs its function in other processes or on other machines: it searches
            the store's vectors in shards, with the same result. None: in this process.

    The other arguments and the errors are those of `compare`.
    """
    if missing == "text":
        raise UsageError("retrieval has no text score for a missing image", expected="missing zero or drop", got="text")
    wanted, kinds = _headline_first(metrics), check_slices(slices)
    _check_listed(methods)
    deepest = max(metric.cutoff or 1 for metric in wanted)
    if top < deepest:
        raise UsageError("a metric needs longer rankings", where="top", expected=f">= {deepest}", got=top)
    names = list(dict.fromkeys(RETRIEVAL_METHODS if methods is None else methods))
    _check(names, baseline, resamples, folds, seed)
    lists = judged_lists(store, gains, missing, relevant, queries)
    for name in names:
        retrieval.searching_method(METHODS, name)
    nearest.find_backend(backend)
    scorer = Scorer(store, lists, METHODS, missing, folds, seed)
    rankings = {name: retrieval.rank_all(scorer, name, top, backend, map_shards) for name in names}
    per_query = {
        name: measures.measure(lists, retrieval.ranks_of_judged(scorer, found), wanted)
        for name, found in rankings.items()
    }
    summary = Summary(wanted, per_query, baseline or names[0], resamples, seed)
    return _conclude(scorer, summary, rankings, {}, kinds, {"top": top}, official=False)


def _headline_first(metrics: str | Sequence[str]) -> list[measures.Metric]:
    return list(dict.fromkeys([measures.NDCG, *measures.parse_metrics(metrics)]))


def _check_listed(methods: Sequence[str] | None) -> None:
    if isinstance(methods, str):  # it would be read as its letters
        raise UsageError("not a list of methods", expected='names in a list, such as ["clip_text"]', got=repr(methods))


def _check(names: list[str], baseline: str | None, resamples: int, folds: int, seed: int) -> None:
    if not names:
        raise UsageError("no method to compare", expected="at least one")
    if baseline is not None and baseline not in names:
        raise UsageError("the baseline is not among the methods", expected=" or ".join(names), got=repr(baseline))
    for name, value, least in (("resamples", resamples, 100), ("folds", folds, 2), ("seed", seed, 0)):
        if value < least:
            raise UsageError("number too small", where=name, expected=f">= {least}", got=value)


def _given_scores(name: str, values: npt.ArrayLike, lists: JudgedLists, store: Store) -> Floats:
    try:
        scores = np.asarray(values, np.float64)
    except (ValueError, TypeError, RuntimeError) as error:  # a tensor that needs a gradient raises RuntimeError
        raise EvaluationError("scores are not numbers", where=name, got=first_line(error)) from error
    if scores.shape != (store.judgments.num_rows,):
        raise EvaluationError(
            "scores do not fit the judgments",
            where=name,
            expected=f"shape ({store.judgments.num_rows},)",
            got=f"shape {scores.shape}",
        )
    return scores[lists.row]


def _is_official(store: Store, lists: JudgedLists) -> bool:
    counts = {"products": store.products.num_rows, "queries": store.queries.num_rows, "judgments": len(lists.row)}
    return all(schemas.PUBLISHED_COUNTS[name] == count for name, count in counts.items())


def _conclude(
    scorer: Scorer,
    summary: Summary,
    rankings: dict[str, runs.Ranking],
    scores: dict[str, Floats],
    slices: Sequence[str],
    more: dict[str, Any],
    official: bool,
) -> Comparison:
    store, lists = scorer.store, scorer.lists
    labels = lists.labels
    context = {"gains": labels.gains, "missing": scorer.missing, "relevant": labels.relevant_value, **more}
    rows = [row | context for row in summary.rows()]
    for row in rows:
        if row["method"] in scorer.sweeps:
            row["weights"] = list(scorer.sweeps[row["method"]].chosen)
        if official:
            row["published"] = PUBLISHED_NDCG.get(row["method"])
    return Comparison(
        rows=rows,
        metrics=summary.metrics,
        query_ids=store.queries["query_id"].to_numpy()[lists.query_index],
        per_query=summary.per_query,
        scores=scores,
        rankings=rankings,
        store=store,
        lists=lists,
        slices=[row | context for row in summary.slices(store, lists, slices)],
        sweeps=scorer.sweeps,
        notes=_notes(scorer, context, official) + slice_notes(store, lists, slices),
    )


def _notes(scorer: Scorer, context: dict[str, Any], official: bool) -> list[str]:
    lists = scorer.lists
    without = int((~np.asarray(scorer.store.has_image)[lists.product]).sum())
    notes = [
        f"{len(lists.starts):,} queries, {len(lists.row):,} judgments, {without:,} of them without image "
        f"(missing: {context['missing']}); binary measures count {' and '.join(context['relevant'])}"
    ]
    if "top" in context:
        notes.append(f"best {context['top']} of {scorer.store.products.num_rows:,} products; one not judged has gain 0")
    notes += lists.labels.notes
    for method, sweep in scorer.sweeps.items():
        chosen = " ".join(f"{weight:.2f}" for weight in sweep.chosen)
        notes.append(f"{method}: weight of {sweep.first} chosen on the other folds: {chosen}")
    for method, scores in scorer.known.items():
        if lost := int(np.isneginf(scores).sum()):
            notes.append(f"{method}: {lost:,} judged pairs are not retrieved and gain nothing")
    notes += scorer.notes
    if official:
        notes.append("published: Table 2 of arXiv 2405.15190 (its fine-tuned cross-encoder: 0.8562)")
    return notes
