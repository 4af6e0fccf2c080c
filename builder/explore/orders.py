"""Orders of the judged products of one query: by a weight of text, or by any ranking method, each with its nDCG.

Scores and nDCG are those of `sqid_lib.evaluation`; nothing is measured here a second time.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sqid_lib.errors import UsageError, unknown_name
from sqid_lib.evaluation import runs
from sqid_lib.evaluation.arrays import Floats, Ints
from sqid_lib.evaluation.clip import IMAGE, TEXT
from sqid_lib.evaluation.fusion import WEIGHTS, weighted
from sqid_lib.evaluation.judged import JudgedLists, Store, judged_lists
from sqid_lib.evaluation.methods import METHODS
from sqid_lib.evaluation.metrics import NDCG, per_query
from sqid_lib.evaluation.scorer import Scorer

OFFERED = (TEXT, IMAGE, "fusion", "rrf", "bm25")
# a path in a method's name would let a web page read files: other methods are named on the command line
_WEIGHTED = re.compile(r"fusion:[0-9]*\.?[0-9]+")


@dataclass(frozen=True)
class Order:
    """The judged products of a query, best first; those that a method does not retrieve come last.

    Attributes:
        product: int64 [n], rows of the store.
        row: int64 [n], rows of the judgments.
        gain, score: float64 [n]; the score is -inf where a product is not retrieved.
        text, image: float64 [n], the cosines with the query.
        ndcg: of this order.
        mean: nDCG of the method over all queries; None for an order by weight.
    """

    product: Ints
    row: Ints
    gain: Floats
    score: Floats
    text: Floats
    image: Floats
    ndcg: float
    mean: float | None = None


class Orders:
    """The judged lists of a store, and the methods that can order them."""

    def __init__(self, store: Store, methods: Sequence[str] = (), run_files: Sequence[Path] = ()) -> None:
        """Group the judgments by query and read the run files.

        Args:
            methods: further methods that may be asked for, beside `OFFERED`.

        Raises:
            UsageError: an unknown method.
            EvaluationError, SourceError: judgments or a run file that cannot be used.
        """
        self._store = store
        self.lists = judged_lists(store)
        self._number = {row: number for number, row in enumerate(self.lists.query_index.tolist())}
        self._scorer = Scorer(store, self.lists, METHODS)
        self._lock = threading.Lock()  # a method's scores are computed once, by whoever asks first
        self._ndcg: dict[str, Floats] = {}
        for path in run_files:
            self._scorer.given[self._run_name(path)], _ = runs.judged_scores(path, store, self.lists)
        for name in methods:
            if not self._scorer.check(name):
                raise UsageError("the method has no order to show", where="--methods", got=repr(name))
        self.methods = tuple(dict.fromkeys([*OFFERED, *methods, *self._scorer.given]))

    def _run_name(self, path: Path) -> str:
        """run:NAME with the name of the file, and a number where two files have the same name."""
        names = [f"run:{path.name}", *(f"run:{path.name} ({n})" for n in range(2, 100))]
        return next(name for name in names if name not in self._scorer.given)

    def judged_of(self, query: int) -> JudgedLists | None:
        """The judged list of one query, given as a row of the store; None where nothing is judged."""
        if query not in self._number:
            return None
        lists, number = self.lists, self._number[query]
        part = self._slice(number)
        return JudgedLists(
            query_index=lists.query_index[number : number + 1],
            starts=np.zeros(1, np.int64),
            row=lists.row[part],
            query=np.zeros(part.stop - part.start, np.int64),
            product=lists.product[part],
            gain=lists.gain[part],
            relevant=lists.relevant[part],
            labels=lists.labels,
        )

    def by_weight(self, query: int, weight: float) -> Order | None:
        """The order by weight · text cosine + (1 - weight) · image cosine."""
        lists = self.judged_of(query)
        if lists is None:
            return None
        text, image = self._cosines(lists)
        scores = weighted(text, image, weight)
        return _ordered(lists, scores, text, image, float(per_query(lists, scores, [NDCG])[0, 0]))

    def curve(self, query: int) -> list[tuple[float, float]]:
        """(weight, nDCG) of the orders by weight, for weights from 0 to 1."""
        lists = self.judged_of(query)
        if lists is None:
            return []
        text, image = self._cosines(lists)
        values = (per_query(lists, weighted(text, image, float(w)), [NDCG])[0, 0] for w in WEIGHTS)
        return [(round(float(w), 4), float(value)) for w, value in zip(WEIGHTS, values, strict=True)]

    def by_method(self, query: int, name: str) -> Order | None:
        """The order by a method of `methods`, or by fusion:WEIGHT; the first use of a method computes all its scores.

        Raises:
            UsageError: another method.
            MissingExtraError: the method needs a package that is not installed.
        """
        if name not in self.methods and not _WEIGHTED.fullmatch(name):
            raise unknown_name("method", name, [*self.methods, "fusion:WEIGHT"], "method")
        lists = self.judged_of(query)
        if lists is None:
            return None
        if name not in self.methods:  # any number of weights: not kept
            scores, ndcg = Scorer(self._store, lists, METHODS).scores(name), None
        else:
            scores, ndcg = self.scores(name)
            scores = scores[self._slice(self._number[query])]
        value = per_query(lists, scores, [NDCG])[0, 0]
        mean = None if ndcg is None else float(ndcg.mean())
        return _ordered(lists, scores, *self._cosines(lists), float(value), mean)

    def scores(self, name: str) -> tuple[Floats, Floats]:
        """Scores of all judged pairs by a method, float64 [J], and nDCG of each query, float64 [Q]."""
        if name not in self._ndcg:
            with self._lock:
                self._ndcg[name] = per_query(self.lists, self._scorer.scores(name), [NDCG])[:, 0]
        return self._scorer.known[name], self._ndcg[name]

    def _cosines(self, lists: JudgedLists) -> tuple[Floats, Floats]:
        scorer = Scorer(self._store, lists, METHODS)
        return scorer.scores(TEXT), scorer.scores(IMAGE)

    def _slice(self, number: int) -> slice:
        start = int(self.lists.starts[number])
        return slice(start, start + int(self.lists.lengths[number]))


def _ordered(
    lists: JudgedLists, scores: Floats, text: Floats, image: Floats, ndcg: float, mean: float | None = None
) -> Order:
    best = lists.order(scores)
    return Order(
        lists.product[best], lists.row[best], lists.gain[best], scores[best], text[best], image[best], ndcg, mean
    )
