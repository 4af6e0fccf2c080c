"""The table of ranking methods: a method added to METHODS is in the help, in error messages, and can be ranked with.

Every method ranks the judged lists; one with `searches` can also rank the whole catalogue. "A+B[:WEIGHT]", the weighted
sum of any two methods, is not in the table: `scorer.Scorer` reads it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sqid_lib.evaluation import bm25, clip, features, runs, sentence_models
from sqid_lib.evaluation.arrays import Floats
from sqid_lib.evaluation.fusion import reciprocal_ranks
from sqid_lib.evaluation.scorer import FUSION_FORM, Method, Scorer
from sqid_lib.evaluation.search import RankFusion

_RRF_METHODS = (clip.TEXT, clip.IMAGE)


def _random_draw(scorer: Scorer, _argument: str) -> Floats:
    return np.random.default_rng(scorer.seed).random(len(scorer.lists.row))


def _reciprocal_rank_fusion(scorer: Scorer, _argument: str) -> Floats:
    return reciprocal_ranks(scorer.lists, *map(scorer.scores, _RRF_METHODS))


def _rank_fusion(_scorer: Scorer, _argument: str) -> RankFusion:
    return RankFusion(_RRF_METHODS)


def _run_scores(scorer: Scorer, path: str) -> Floats:
    scores, notes = runs.judged_scores(Path(path), scorer.store, scorer.lists)
    scorer.notes += [f"run:{path}: {note}" for note in notes]
    return scores


def _run_ranking(scorer: Scorer, path: str) -> runs.Ranking:
    found, notes = runs.read_run(Path(path), scorer.store)
    scorer.notes += [f"run:{path}: {note}" for note in notes]
    return found


_TABLE = (
    Method(
        name="bm25",
        summary="BM25 of the query in the product titles, with the whole catalogue as corpus",
        judged=bm25.judged,
        searches=bm25.searches,
    ),
    Method(
        name="random",
        summary="expected value of a random order, in closed form",
        judged=None,
        published=0.7483,
    ),
    Method(
        name="random_draw",
        summary="one random order, drawn with the seed",
        judged=_random_draw,
    ),
    Method(
        name=clip.TEXT,
        summary="cosine of the CLIP vectors of query and product text",
        judged=clip.text_scores,
        searches=clip.text_searches,
        cosines=True,
        published=0.8107,
    ),
    Method(
        name=clip.IMAGE,
        summary="cosine of the CLIP vectors of query and product image",
        judged=clip.image_scores,
        searches=clip.image_searches,
        cosines=True,
        published=0.8225,
    ),
    Method(
        name="fusion",
        argument="optional",
        metavar="WEIGHT",
        summary="short for clip_text+clip_image[:WEIGHT]",
        judged=clip.fusion_scores,
        searches=clip.fusion_searches,
    ),
    Method(
        name="rrf",
        summary="reciprocal rank fusion of clip_text and clip_image",
        judged=_reciprocal_rank_fusion,
        searches=_rank_fusion,
    ),
    Method(
        name="sbert",
        argument="optional",
        metavar="MODEL",
        summary="cosine of a sentence-transformers model's vectors of query and title",
        judged=sentence_models.sbert_scores,
        searches=sentence_models.sbert_searches,
        cosines=True,
        published=0.8292,
    ),
    Method(
        name="cross-encoder",
        argument="optional",
        metavar="MODEL",
        summary="score of a sentence-transformers cross-encoder for query and title",
        judged=sentence_models.cross_encoder_scores,
    ),
    Method(
        name="run",
        argument="required",
        metavar="FILE",
        summary="a TREC run file",
        judged=_run_scores,
        searches=_run_ranking,
    ),
    Method(
        name="features",
        argument="required",
        metavar="FILE",
        summary="cosine with your own vectors: a parquet file, FILE#COLUMN to name the column, or a directory",
        judged=features.scores,
        searches=features.searches,
        cosines=True,
    ),
)
METHODS = {method.name: method for method in _TABLE}
DEFAULT_METHODS = ("random", "clip_text", "clip_image", "fusion", "rrf")
# its ESCI_baseline, a fine-tuned cross-encoder, has 0.8562
PUBLISHED_NDCG = {method.name: method.published for method in _TABLE if method.published is not None}


def is_method(name: str) -> bool:
    """Whether the name, or the part before its colon, is one of a method."""
    return name.partition(":")[0] in METHODS


def described() -> list[tuple[str, str]]:
    """How each method is written, and its summary; the weighted sum of two methods comes last."""
    fusion = "a·A + (1-a)·B of any two methods, with weight a, or one chosen by cross-validation over queries"
    return [*((method.form, method.summary) for method in METHODS.values()), (FUSION_FORM, fusion)]
