"""Ranking evaluation: how well embeddings and models order the judged products of a query.

Methods, by name:

- ``random``: the expected value of a random order, in closed form; ``random_draw``: one seeded draw.
- ``clip_text``, ``clip_image``: cosine of the query's CLIP vector and the product's.
- ``A+B``: a·A + (1-a)·B of any two methods, with the weight chosen by cross-validation over queries; ``A+B:0.25``: with
  weight 0.25 of A. Cosines are added as they are; where one is on another scale both are standardised first.
  ``fusion`` and ``fusion:0.1`` are short for ``clip_text+clip_image`` and ``clip_text+clip_image:0.1``.
- ``rrf``: reciprocal rank fusion of clip_text and clip_image.
- ``run:FILE``: a TREC run file; ``features:FILE``: cosine with the product vectors of a parquet file (``FILE#COLUMN``
  where there are several), or of a directory with product_features.parquet and query_features.parquet.
- ``sbert``, ``sbert:MODEL``: a sentence-transformers model on titles; ``cross-encoder:MODEL``: of (query,
  title) pairs.

Conventions: nDCG over each query's whole judged list, gains E 1.0, S 0.1, C 0.01, I 0.0, linear, discount
1/log2(rank + 1), ties by ascending product_id, 0 for a query without gains; a product without image scores 0.
"""

from sqid_lib.evaluation.comparison import PUBLISHED_NDCG, compare, retrieve
from sqid_lib.evaluation.fusion import Sweep
from sqid_lib.evaluation.methods import DEFAULT_METHODS
from sqid_lib.evaluation.metrics import Metric
from sqid_lib.evaluation.report import Comparison

__all__ = ["DEFAULT_METHODS", "PUBLISHED_NDCG", "Comparison", "Metric", "Sweep", "compare", "retrieve"]
