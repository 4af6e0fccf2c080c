"""`sqid evaluate`: the ranking table of a release, on a terminal, as JSON or as CSV."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sqid_lib.convert import write_atomically
from sqid_lib.evaluation.comparison import SLICES, compare
from sqid_lib.evaluation.judged import MISSING, RELEVANT
from sqid_lib.evaluation.methods import DEFAULT_METHODS, KNOWN
from sqid_lib.evaluation.metrics import DEFAULT_METRICS

HELP = "the ranking table: how well embeddings and models order the judged products"
EXAMPLE = """examples:
  sqid evaluate WORK/sqid
  sqid evaluate ORG/sqid --methods random clip_image fusion:0.1 --baseline clip_image --plot table.png
  sqid evaluate WORK/sqid --slices source --json > table.json
"""
_GAINS = {"esci": "esci", "esci-repo": "esci-repo-swapped", "esci-repo-swapped": "esci-repo-swapped"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `sqid evaluate` on `parser`."""
    parser.description, parser.epilog = f"Print {HELP}.", EXAMPLE
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("dataset", metavar="DIR_OR_REPO", help="a release directory or a Hub dataset")
    add("--revision", help="revision of the Hub dataset")
    add("--cache-dir", help="where the flat vectors are kept")
    add("--methods", nargs="+", metavar="METHOD", help=f"any of {KNOWN}; default: {' '.join(DEFAULT_METHODS)}")
    add("--missing", choices=MISSING, default="zero",
        help="a product without image scores 0, gets its rescaled text score, or leaves the lists")  # fmt: skip
    add("--gains", choices=list(_GAINS), default="esci", help="esci-repo: with S and C swapped, as in the ESCI script")
    add("--relevant", choices=RELEVANT, default="E", help="labels that count for precision, MRR and recall")
    add("--metrics", nargs="+", default=DEFAULT_METRICS.split(), metavar="METRIC",
        help=f"ndcg, ndcg@K, p@K, mrr, mrr@K, recall@K; default: {DEFAULT_METRICS}")  # fmt: skip
    add("--baseline", metavar="METHOD", help="compare the others with this one; default: the first")
    add("--slices", nargs="+", choices=SLICES, default=[], help="also by query source, share of images, list length")
    add("--folds", type=int, default=5, help="folds of queries for fusion weights (default 5)")
    add("--resamples", type=int, default=2_000, help="bootstrap resamples (default 2000)")
    add("--seed", type=int, default=0)
    add("--engine", choices=("fast", "ir-measures"), default="fast", help="ir-measures: trec_eval itself, slower")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print a list of objects, one per method")
    output.add_argument("--csv", action="store_true", help="print CSV")
    add("--per-query", metavar="FILE.csv", help="write every query's values")
    add("--plot", metavar="FILE.png", help="draw the table and the fusion sweeps")


def run(args: argparse.Namespace) -> int:
    """Print the table on stdout; returns 0. Failures are raised as SqidError."""
    from sqid_lib.store import EmbeddingStore

    store = EmbeddingStore.open(args.dataset, revision=args.revision, cache_dir=args.cache_dir)
    methods = [method for word in args.methods for method in word.split(",") if method] if args.methods else None
    comparison = compare(
        store,
        methods,
        gains=_GAINS[args.gains],
        missing=args.missing,
        relevant=args.relevant,
        metrics=args.metrics,
        baseline=args.baseline,
        slices=args.slices,
        folds=args.folds,
        resamples=args.resamples,
        seed=args.seed,
        engine=args.engine,
    )
    text = comparison.to_json() if args.json else comparison.to_csv().rstrip("\n") if args.csv else str(comparison)
    sys.stdout.write(text + "\n")
    if args.per_query:
        write_atomically(Path(args.per_query), comparison.per_query_csv())
        sys.stderr.write(f"wrote {args.per_query}\n")
    if args.plot:
        sys.stderr.write(f"wrote {comparison.plot(args.plot)}\n")
    return 0
