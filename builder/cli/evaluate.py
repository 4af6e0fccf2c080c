"""`sqid evaluate`: the ranking table of a release, on a terminal, as JSON or as CSV."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from sqid_lib.evaluation.comparison import ENGINES, RETRIEVAL_METRICS, compare, retrieve
from sqid_lib.evaluation.judged import MISSING, RELEVANT
from sqid_lib.evaluation.methods import DEFAULT_METHODS, KNOWN
from sqid_lib.evaluation.metrics import DEFAULT_METRICS
from sqid_lib.evaluation.report import Comparison
from sqid_lib.evaluation.retrieval import BACKENDS
from sqid_lib.evaluation.summary import SLICES
from sqid_lib.files import write_text
from sqid_lib.store import EmbeddingStore

HELP = "the ranking table: how well embeddings and models order the judged products"
EXAMPLE = """examples:
  sqid evaluate WORK/sqid
  sqid evaluate ORG/sqid --methods random clip_image fusion:0.1 --baseline clip_image --plot table.png
  sqid evaluate WORK/sqid --slices source --json > table.json
  sqid evaluate WORK/sqid --methods clip_image --run mine.run --features mine.parquet
  sqid evaluate WORK/sqid --retrieve --top 100 --export runs/
"""
_GAINS = {"esci": "esci", "esci-repo": "esci-repo-swapped", "esci-repo-swapped": "esci-repo-swapped"}
_SHARED = ("missing", "relevant", "baseline", "slices", "folds", "resamples", "seed")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `sqid evaluate` on `parser`."""
    parser.description, parser.epilog = f"Print {HELP}.", EXAMPLE
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("dataset", metavar="DIR_OR_REPO", help="a release directory or a Hub dataset")
    add("--revision", help="revision of the Hub dataset")
    add("--cache-dir", help="where the flat vectors are kept")
    add("--methods", nargs="+", metavar="METHOD", help=f"any of {KNOWN}; default: {' '.join(DEFAULT_METHODS)}")
    more: dict[str, Any] = {"action": "append", "default": [], "metavar": "FILE"}
    add("--run", dest="runs", help="also judge a TREC run file (method run:FILE)", **more)
    add("--features", help="also judge product vectors in parquet, FILE#COLUMN if several (features:FILE)", **more)
    add(
        "--missing",
        choices=MISSING,
        default="zero",
        help="a product without image scores 0, gets its rescaled text score, or leaves the lists",
    )
    add("--gains", choices=list(_GAINS), default="esci", help="esci-repo: with S and C swapped, as in the ESCI script")
    add("--relevant", choices=RELEVANT, default="E", help="labels that count for precision, MRR and recall")
    add(
        "--metrics",
        nargs="+",
        metavar="METRIC",
        help=f"ndcg, ndcg@K, p@K, mrr, mrr@K, recall@K; default: {DEFAULT_METRICS}",
    )
    add("--baseline", metavar="METHOD", help="compare the others with this one; default: the first")
    add("--slices", nargs="+", choices=SLICES, default=[], help="also by query source, share of images, list length")
    add("--folds", type=int, default=5, help="folds of queries for fusion weights (default 5)")
    add("--resamples", type=int, default=2_000, help="bootstrap resamples (default 2000)")
    add("--seed", type=int, default=0)
    add("--engine", choices=ENGINES, default="fast", help="ir-measures: trec_eval itself, slower")
    add("--retrieve", action="store_true", help="rank all products for each query, not only the judged ones")
    add("--top", type=int, default=100, help="with --retrieve: products kept per query (default 100)")
    add("--backend", choices=BACKENDS, default="auto", help="with --retrieve: what searches")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print a list of objects, one per method")
    output.add_argument("--csv", action="store_true", help="print CSV")
    add("--per-query", metavar="FILE.csv", help="write every query's values")
    add("--export", metavar="DIR", help="write TREC qrels and runs, and a BEIR folder")
    add("--plot", metavar="FILE.png", help="draw the table and the fusion sweeps")


def run(args: argparse.Namespace) -> int:
    """Print the table on stdout; returns 0. Failures are raised as SqidError."""
    store = EmbeddingStore.open(args.dataset, revision=args.revision, cache_dir=args.cache_dir)
    comparison = _compare(store, args)
    text = comparison.to_json() if args.json else comparison.to_csv().rstrip("\n") if args.csv else str(comparison)
    sys.stdout.write(text + "\n")
    written = []
    if args.per_query:
        write_text(Path(args.per_query), comparison.per_query_csv())
        written.append(args.per_query)
    if args.export:
        written.append(str(comparison.export(args.export)))
    if args.plot:
        written.append(str(comparison.plot(args.plot)))
    sys.stderr.writelines(f"wrote {path}\n" for path in written)
    return 0


def _compare(store: EmbeddingStore, args: argparse.Namespace) -> Comparison:
    named = [method for word in args.methods or [] for method in word.split(",") if method]
    named += [f"run:{path}" for path in args.runs] + [f"features:{path}" for path in args.features]
    shared: dict[str, Any] = {
        "methods": named or None,
        "gains": _GAINS[args.gains],
        **{name: getattr(args, name) for name in _SHARED},
    }
    if args.retrieve:
        metrics = args.metrics or RETRIEVAL_METRICS
        return retrieve(store, **shared, metrics=metrics, top=args.top, backend=args.backend)
    return compare(store, **shared, metrics=args.metrics or DEFAULT_METRICS, engine=args.engine)
