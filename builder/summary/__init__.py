"""What a build made: the counts of each stage, and at its end what became of the images, on stderr and in WORK."""

from builder.summary.images import check_images, summarize
from builder.summary.made import made

__all__ = ["check_images", "made", "summarize"]
