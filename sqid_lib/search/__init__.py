"""Search in all products of a store by text, by image or by both.

Every product has two sides, its text vector and its image vector, and a query has one vector or two: that of its text,
that of its image, or both. Encoders put texts and images into one space, so each vector is compared with both sides:

    text_score  = mean over the vectors of the query of their cosine with the product's text vector
    image_score = mean over the vectors of the query of their cosine with the product's image vector
    score       = weight · text_score + (1 - weight) · image_score

A product without an image has image_score 0, as in `sqid_lib.evaluation`. Search is exact: all products are scored,
those near the last place again in float64, and ties are broken by ascending product_id.
"""

from sqid_lib.search.encoder import Model, QueryEncoder, read_model
from sqid_lib.search.query import Image
from sqid_lib.search.result import Hit, SearchResult
from sqid_lib.search.searcher import Searcher
from sqid_lib.search.where import Where

__all__ = ["Hit", "Image", "Model", "QueryEncoder", "SearchResult", "Searcher", "Where", "read_model"]
