"""What a ranking method is, and the scores of the judged lists by method name, each computed once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from sqid_lib.errors import EvaluationError, UsageError, did_you_mean
from sqid_lib.evaluation import fusion
from sqid_lib.evaluation.arrays import Floats
from sqid_lib.evaluation.judged import JudgedLists, Store
from sqid_lib.evaluation.runs import Ranking
from sqid_lib.evaluation.search import RankFusion, Scan, Search

FUSION_FORM = "A+B[:WEIGHT]"


@dataclass(frozen=True)
class Method:
    """A way to rank products, named NAME or NAME:ARGUMENT.

    Attributes:
        name: the part before the colon.
        summary: one line, for help and README.
        judged: (scorer, argument) → scores of the judged pairs, float64 [J], -inf where a product is not retrieved.
            None: the method has no scores, and its measures are those expected of a random order.
        searches: (scorer, argument) → how every judged query is ranked against the whole catalogue: searches by
            vectors that together hold each query once, a scan, the fusion of other methods' rankings, or a finished
            ranking. None: the method ranks judged lists only.
        argument: "" (the method takes none), "optional" or "required".
        metavar: the argument's name in help, such as MODEL.
        cosines: whether the scores are cosines; fusions add cosines as they are and standardise other scores.
        published: nDCG in Table 2 of arXiv 2405.15190.
    """

    name: str
    summary: str
    judged: Callable[[Scorer, str], Floats] | None
    searches: Callable[[Scorer, str], list[Search] | Scan | RankFusion | Ranking] | None = None
    argument: Literal["", "optional", "required"] = ""
    metavar: str = ""
    cosines: bool = False
    published: float | None = None

    @property
    def form(self) -> str:
        """How the method is written: NAME, NAME[:METAVAR] or NAME:METAVAR."""
        return self.name + {"": "", "optional": f"[:{self.metavar}]", "required": f":{self.metavar}"}[self.argument]

    def takes(self, argument: str, colon: str) -> bool:
        """Whether "NAME" + colon + argument is well formed."""
        return {"": not colon, "optional": True, "required": bool(argument)}[self.argument]


def find_method(
    methods: Mapping[str, Method], name: str, problem: str = "unknown method", also: Sequence[str] = ()
) -> tuple[Method, str]:
    """The method and the argument of "NAME" or "NAME:ARGUMENT".

    Raises:
        UsageError: `problem`; lists all methods and `also`, and names the method that is nearest.
    """
    head, colon, argument = name.partition(":")
    if head in methods and methods[head].takes(argument, colon):
        return methods[head], argument
    heads = [part.partition(":")[0] for part in name.split("+")]
    unknown = [part for part in heads if part not in methods] or [head]
    forms = {key: method.form for key, method in methods.items()}
    raise UsageError(
        problem,
        expected=", ".join([*forms.values(), *also]),
        got=repr(name),
        fix=next(filter(None, (did_you_mean(part, methods, forms) for part in unknown)), None),
    )


@dataclass
class Scorer:
    """Scores of the judged lists by method name.

    Attributes:
        methods: by name.
        missing: "zero", "text" or "drop": what a product without an image scores.
        folds, seed: for fusion weights and random draws.
        given: scores by name that the caller brings, float64 [J] as in `lists`.
        sweeps: filled as fusions choose their weights.
        notes: lines to print below the results, filled by methods.
        known: scores by name, filled as they are computed.
    """

    store: Store
    lists: JudgedLists
    methods: Mapping[str, Method]
    missing: str = "zero"
    folds: int = 5
    seed: int = 0
    given: dict[str, Floats] = field(default_factory=dict)
    sweeps: dict[str, fusion.Sweep] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    known: dict[str, Floats] = field(default_factory=dict)

    def scores(self, name: str) -> Floats:
        """float64 [J]; raises UsageError for an unknown method, EvaluationError for scores that are not numbers."""
        if name not in self.known:
            scores = self.given[name] if name in self.given else self._compute(name)
            bad = np.flatnonzero(np.isnan(scores) | np.isposinf(scores))
            if len(bad):
                raise EvaluationError(
                    "scores must be finite",
                    where=f"{name}, {self._pair(int(bad[0]))}",
                    expected="a number",
                    got=scores[bad[0]],
                )
            self.known[name] = scores
        return self.known[name]

    def check(self, name: str) -> bool:
        """Whether the method has scores; raises UsageError for an unknown method. Nothing is computed."""
        return name in self.given or self._fused(name) is not None or self._find(name)[0].judged is not None

    def fuse(self, name: str, first: str, second: str, weight: str) -> Floats:
        """weight · first + (1 - weight) · second, float64 [J]; "" chooses the weight on other queries (`sweeps[name]`).

        Raises:
            UsageError: an unknown method, or a weight outside 0 to 1.
            EvaluationError: too few queries to choose a weight.
        """
        a, b = self.scores(first), self.scores(second)
        if not (self._has_cosines(first) and self._has_cosines(second)):
            a, b = fusion.standardised(a), fusion.standardised(b)
        if weight:
            return fusion.weighted(a, b, fusion.parse_weight(weight, name))
        scores, self.sweeps[name] = fusion.cross_validated(self.lists, a, b, (first, second), self.folds, self.seed)
        return scores

    def _compute(self, name: str) -> Floats:
        if parts := self._fused(name):
            return self.fuse(name, *parts)
        method, argument = self._find(name)
        if method.judged is None:
            raise UsageError("the method has no scores to add", got=repr(name), fix="Fuse another method.")
        return method.judged(self, argument)

    def _fused(self, name: str) -> tuple[str, str, str] | None:
        """Read "A+B" or "A+B:WEIGHT" as (A, B, WEIGHT); None for anything else."""
        first, _, second = name.partition("+")
        if not second or not self._is_known(first):
            return None
        unweighted, _, weight = second.rpartition(":")
        if fusion.is_number(weight) and self._is_known(unweighted):
            return first, unweighted, weight
        return (first, second, "") if self._is_known(second) else None

    def _is_known(self, name: str) -> bool:
        return name in self.given or name.partition(":")[0] in self.methods

    def _has_cosines(self, name: str) -> bool:
        method = self.methods.get(name.partition(":")[0])
        return name not in self.given and method is not None and method.cosines

    def _find(self, name: str) -> tuple[Method, str]:
        return find_method(self.methods, name, also=[FUSION_FORM])

    def _pair(self, judgment: int) -> str:
        query = self.store.queries["query_id"][int(self.lists.query_index[self.lists.query[judgment]])]
        return f"query_id {query}, product_id {self.store.products['product_id'][int(self.lists.product[judgment])]}"
