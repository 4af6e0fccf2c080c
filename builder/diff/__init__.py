"""What changed between two releases: rows, columns, vectors, counts, nDCG, and what they were made from."""

from builder.diff.compare import diff
from builder.diff.difference import Difference

__all__ = ["Difference", "diff"]
