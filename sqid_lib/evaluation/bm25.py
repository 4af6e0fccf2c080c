"""Method bm25: the words of a query in product titles, weighted by how rare they are in the catalogue.

The formula is that of Lucene's BM25Similarity, with its defaults k1 = 1.2 and b = 0.75, computed by the package bm25s:

    score(q, d) = Σ idf(w) · tf / (tf + k1 · (1 - b + b · length(d) / mean length))  over the words w of q
    idf(w)      = ln(1 + (N - n + 0.5) / (n + 0.5))

tf counts w in the title of d, and length is that of the title in words. N is the number of all products of the store,
judged or not, and n of those whose title has w; the mean length is over all of them too. A word that occurs twice in a
query counts twice. There are no stop words and no stemming.
"""

from __future__ import annotations

import itertools
import logging
import re
import sys
import unicodedata
from collections.abc import Iterator

import numpy as np
from tqdm import tqdm

from sqid_lib.errors import missing_extra
from sqid_lib.evaluation.arrays import Floats
from sqid_lib.evaluation.scorer import Scorer
from sqid_lib.evaluation.search import Scan

K1, B = 1.2, 0.75
# iteration marks, hiragana, katakana and Han characters: scripts that are written without spaces
_UNSPACED = (
    r"\u3005\u3006\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff"
    r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_WORDS = re.compile(rf"(?P<unspaced>[{_UNSPACED}]+)|[^\W{_UNSPACED}]+")


def words(text: str) -> Iterator[str]:
    """The words of a text: runs of letters and digits of its NFKC form in lower case ("Größe" is "grösse").

    Japanese and Chinese text is not segmented: a run of kana or Han characters gives its overlapping pairs, as with
    Lucene's CJKAnalyzer, or the character where it stands alone.
    """
    for match in _WORDS.finditer(unicodedata.normalize("NFKC", text).casefold()):
        run = match[0]
        if match["unspaced"] and len(run) > 1:
            yield from map("".join, itertools.pairwise(run))
        else:
            yield run


def judged(scorer: Scorer, _argument: str) -> Floats:
    """Score of every judged pair, float64 [J]; 0 where the title has no word of the query, and for no title."""
    index, lists = _Index(scorer), scorer.lists
    scores = np.empty(len(lists.row))
    bounds = zip(lists.query_index.tolist(), lists.starts.tolist(), lists.lengths.tolist(), strict=True)
    for row, start, length in tqdm(bounds, desc="BM25", total=len(lists.starts), unit="query", disable=None):
        of_query = slice(start, start + length)
        scores[of_query] = index.scores(row)[lists.product[of_query]]
    return scores


def searches(scorer: Scorer, _argument: str) -> Scan:
    """All products whose title has a word of the query; the others are not retrieved."""
    index = _Index(scorer)

    def found(row: int) -> Floats:
        scores = index.scores(row)
        return np.where(scores > 0, scores, -np.inf)

    return Scan(scorer.lists.query_index, found)


class _Index:
    """The titles of all products of a store."""

    def __init__(self, scorer: Scorer) -> None:
        try:
            import bm25s
        except ImportError:
            raise missing_extra("bm25s", "eval", "to rank with bm25") from None
        store = scorer.store
        self._queries: list[str | None] = store.queries["query"].to_pylist()
        self._vocabulary: dict[str, int] = {}
        titles: list[str | None] = store.products["product_title"].to_pylist()
        self._products = len(titles)
        numbered = [
            [self._vocabulary.setdefault(word, len(self._vocabulary)) for word in words(title or "")]
            for title in tqdm(titles, desc="Reading titles", unit="title", disable=None)
        ]
        logging.getLogger("bm25s").setLevel(logging.NOTSET)  # it logs at DEBUG whatever the program's level
        self._bm25 = bm25s.BM25(k1=K1, b=B, method="lucene", dtype="float64")
        if self._vocabulary:
            self._bm25.index((numbered, self._vocabulary), create_empty_token=False, show_progress=sys.stderr.isatty())
        else:
            scorer.notes.append("bm25: no product has a title with a word, all of them score 0")

    def scores(self, row: int) -> Floats:
        """Scores of all products for a query, float64 [P]."""
        known = [self._vocabulary[word] for word in words(self._queries[row] or "") if word in self._vocabulary]
        return np.asarray(self._bm25.get_scores_from_ids(known)) if known else np.zeros(self._products)
