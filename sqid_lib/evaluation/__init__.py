"""Ranking evaluation: how well embeddings and models order the judged products of a query.

`methods.METHODS` holds the ranking methods, and `sqid evaluate --help` lists them; the default is `DEFAULT_METHODS`. A
method is named NAME or NAME:ARGUMENT. "A+B" is a·A + (1-a)·B of any two methods, with the weight a chosen by
cross-validation over queries; "A+B:0.25" has weight 0.25 of A. Cosines are added as they are; if one of the two has
other scores, both are standardised first.

nDCG is over the whole judged list of each query, with linear gain and discount 1/log2(rank + 1); ties are broken by
ascending product_id; a query without gains counts 0; a product without an image scores 0. Gains are E 1.0, S 0.1,
C 0.01, I 0.0 if all labels are ESCI's, otherwise those of the release's own gain column.
"""

from sqid_lib.evaluation.comparison import compare, retrieve
from sqid_lib.evaluation.fusion import Sweep
from sqid_lib.evaluation.methods import DEFAULT_METHODS, PUBLISHED_NDCG
from sqid_lib.evaluation.metrics import Metric
from sqid_lib.evaluation.mteb_folder import MtebFolder, write_mteb
from sqid_lib.evaluation.report import Comparison

__all__ = [
    "DEFAULT_METHODS",
    "PUBLISHED_NDCG",
    "Comparison",
    "Metric",
    "MtebFolder",
    "Sweep",
    "compare",
    "retrieve",
    "write_mteb",
]
