"""`sqid report`: what is in a build or a release, as one HTML file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

DESCRIPTION = """Write a report that needs nothing but a browser: the funnel from catalogue to vectors,
coverage, distributions of the vectors, a map of products, samples and failures, suspects,
the ranking table, times and versions. Images are shown for the work directory of a build; a
release holds none. Prints the path of the file. docs/report.md says how to read it."""
EXAMPLE = """examples:
  sqid report WORK
  sqid report ORG/sqid --out sqid.html
"""
_METHODS = ("pca", "umap")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `sqid report` on `parser`."""
    parser.description, parser.epilog = DESCRIPTION, EXAMPLE
    add = parser.add_argument
    add(
        "dataset", metavar="WORK_OR_RELEASE", help="the work directory of a build, a release directory or a Hub dataset"
    )
    default = "default report.html in WORK, or here for a release"
    add("--out", type=Path, metavar="FILE", help=f"where to write it ({default})")
    add("--revision", help="revision of the Hub dataset")
    add("--cache-dir", help="directory that a remote release is downloaded to")
    add("--map", choices=_METHODS, help="how the map is made; default umap if umap-learn is installed, otherwise pca")


def run(args: argparse.Namespace) -> int:
    """Print the path of the report on stdout; returns 0. Failures are raised as SqidError."""
    from builder.report import report

    made = report(args.dataset, args.out, revision=args.revision, cache_dir=args.cache_dir, method=args.map)
    sys.stdout.write(f"{made.path}\n")
    sys.stderr.write(f"{made.path.stat().st_size / 1e6:.1f} MB in {made.seconds:.1f} s\n")
    return 0
