"""Methods on the release's own vectors: clip_text, clip_image, and the search for their fusions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sqid_lib.evaluation.arrays import Bools, Float32s, Floats, Ints, Matrix
from sqid_lib.evaluation.cosine import judged_cosine, unit
from sqid_lib.evaluation.fusion import parse_weight
from sqid_lib.evaluation.judged import Store
from sqid_lib.evaluation.mapped import MappedFile, drop_pages, mapped_file
from sqid_lib.evaluation.scorer import Scorer
from sqid_lib.evaluation.search import Search

TEXT, IMAGE = "clip_text", "clip_image"


def text_scores(scorer: Scorer, _argument: str) -> Floats:
    """Cosine of query and product text, float64 [J]."""
    return judged_cosine(scorer.lists, scorer.store.query_features, scorer.store.text_features)


def image_scores(scorer: Scorer, _argument: str) -> Floats:
    """Cosine of query and product image, float64 [J]; without an image 0, or the rescaled text score if asked for."""
    scores = judged_cosine(scorer.lists, scorer.store.query_features, scorer.store.image_features)
    has_image = np.asarray(scorer.store.has_image)[scorer.lists.product]
    _note_no_image(scorer, has_image)
    if scorer.missing != "text" or has_image.all() or not has_image.any():
        return np.where(has_image, scores, 0.0)
    return np.where(has_image, scores, rescaled(scorer.scores(TEXT), scores, has_image))


def rescaled(scores: Floats, like: Floats, where: Bools) -> Floats:
    """`scores` shifted and scaled to the mean and standard deviation that `like` has on the pairs `where`.

    Text–text cosines are far above text–image ones: unscaled, products without an image would all rank first.
    """
    mean, spread = scores[where].mean(), scores[where].std()
    standard = (scores - mean) / spread if spread > 0 else np.zeros_like(scores)
    return np.asarray(like[where].mean() + standard * like[where].std())


def fusion_scores(scorer: Scorer, weight: str) -> Floats:
    """As clip_text+clip_image[:WEIGHT], float64 [J]."""
    return scorer.fuse(f"fusion:{weight}" if weight else "fusion", TEXT, IMAGE, weight)


def text_searches(scorer: Scorer, _argument: str) -> list[Search]:
    """One search by text vectors."""
    return [_search(scorer.store, scorer.lists.query_index, 1.0)]


def image_searches(scorer: Scorer, _argument: str) -> list[Search]:
    """One search by image vectors."""
    _note_no_image(scorer, scorer.store.has_image)
    return [_search(scorer.store, scorer.lists.query_index, 0.0)]


def fusion_searches(scorer: Scorer, weight: str) -> list[Search]:
    """One search for each weight: the given one, or those chosen on the judged lists of other queries."""
    rows = scorer.lists.query_index
    _note_no_image(scorer, scorer.store.has_image)
    if weight:
        return [_search(scorer.store, rows, parse_weight(weight, f"fusion:{weight}"))]
    scorer.scores("fusion")
    weights = scorer.sweeps["fusion"].by_query
    return [_search(scorer.store, rows[weights == w], float(w)) for w in np.unique(weights)]


def _note_no_image(scorer: Scorer, has_image: Bools) -> None:
    note = f"{IMAGE}: no product has an image vector, all of them score 0; so do the image parts of fusions"
    if not np.any(has_image) and note not in scorer.notes:
        scorer.notes.append(note)


def _search(store: Store, rows: Ints, weight: float) -> Search:
    vectors = StoreVectors(store.text_features, store.image_features, store.has_image, weight)
    return Search(rows, unit(store.query_features[rows]), vectors, vectors.is_mapped)


@dataclass(frozen=True)
class StoreVectors:
    """Product rows [m] → vectors, float32 [m, D], whose dot product with a unit query is the weighted cosine.

    a·cos(q, t) + (1-a)·cos(q, i) is q̂ · (a·t̂ + (1-a)·î): one vector for each product, whatever the weight a of text.
    Pickles as the names of files where the arrays are mapped from files.
    """

    text: Matrix
    image: Matrix
    has_image: Bools
    weight: float

    def __call__(self, rows: Ints) -> Float32s:
        if self.weight == 0:
            return self._images(rows)
        mixed = unit(self.text[rows])
        drop_pages(self.text)
        mixed *= np.float32(self.weight)
        if self.weight < 1:
            mixed += np.float32(1 - self.weight) * self._images(rows)
        return mixed

    def _images(self, rows: Ints) -> Float32s:
        images = unit(self.image[rows])
        drop_pages(self.image)
        images[~np.asarray(self.has_image)[rows]] = 0
        return images

    @property
    def is_mapped(self) -> bool:
        """Whether another process can read the vectors from the same files."""
        return all(mapped_file(vectors) for vectors in (self.text, self.image))

    def __reduce__(self) -> tuple[Any, ...]:
        arrays = (self.text, self.image, self.has_image)
        return _opened_vectors, (*(mapped_file(array) or array for array in arrays), self.weight)


def _opened_vectors(text: Any, image: Any, has_image: Any, weight: float) -> StoreVectors:
    return StoreVectors(_open(text), _open(image), _open(has_image), weight)


def _open(array: Any) -> Any:
    return array.open() if isinstance(array, MappedFile) else array
