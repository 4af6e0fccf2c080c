"""`sqid evaluate`: the ranking table of a release, on a terminal, as JSON or as CSV."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from builder.cli.engine import add_engine, check_engine, searching
from builder.cli.terminal import write_data
from sqid_lib.errors import MissingFileError, UsageError
from sqid_lib.evaluation.comparison import METRICS_ENGINES, RETRIEVAL_METRICS, compare, retrieve
from sqid_lib.evaluation.judged import MISSING
from sqid_lib.evaluation.labels import GAINS
from sqid_lib.evaluation.methods import DEFAULT_METHODS, described
from sqid_lib.evaluation.metrics import DEFAULT_METRICS, METRICS
from sqid_lib.evaluation.nearest import BACKENDS
from sqid_lib.evaluation.plot import check_format
from sqid_lib.evaluation.report import Comparison
from sqid_lib.evaluation.summary import SLICES
from sqid_lib.files import write_text
from sqid_lib.store import EmbeddingStore

DESCRIPTION = "Print the ranking table: how well embeddings and models order the judged products."
EXAMPLE = """examples:
  sqid evaluate WORK/sqid
  sqid evaluate ORG/sqid --methods random clip_image fusion:0.1 --baseline clip_image --plot table.png
  sqid evaluate WORK/sqid --slices source --json > table.json
  sqid evaluate WORK/sqid --methods clip_image --run mine.run --features mine.parquet
  sqid evaluate WORK/sqid --retrieve --top 100 --export runs/
  sqid evaluate WORK/sqid --retrieve --engine ray --ray-address auto --cache-dir /shared/cache
"""
_GAINS = {"esci": "esci", "esci-repo": "esci-repo-swapped"} | {gains: gains for gains in GAINS}
_SHARED = ("missing", "baseline", "folds", "resamples", "seed")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `sqid evaluate` on `parser`."""
    methods = described()
    width = max(len(form) for form, _ in methods)
    table = "\n".join(f"  {form:{width}}  {summary}" for form, summary in methods)
    parser.description, parser.epilog = DESCRIPTION, f"ranking methods:\n{table}\n\n{EXAMPLE}"
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("dataset", metavar="DIR_OR_REPO", help="a release directory or a Hub dataset")
    add("--revision", help="revision of the Hub dataset")
    add("--cache-dir", help="directory of the converted vectors")
    add("--methods", nargs="+", metavar="METHOD", help=f"any of those below; default: {' '.join(DEFAULT_METHODS)}")
    more: dict[str, Any] = {"action": "append", "default": [], "metavar": "FILE"}
    add("--run", dest="runs", help="also measure a TREC run file (method run:FILE)", **more)
    add("--features", help="also measure your own vectors (method features:FILE)", **more)
    add("--queries", metavar="FILE", help="measure these queries alone: a text file with a query_id in each line")
    _add_measures(parser)
    add("--retrieve", action="store_true", help="rank all products for each query, not only the judged ones")
    add("--top", type=int, default=100, help="with --retrieve: products kept per query (default 100)")
    add("--backend", choices=BACKENDS, default="auto", help="with --retrieve: the library that searches")
    add_engine(parser, "with --retrieve: ")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print a list of objects, one per method")
    output.add_argument("--csv", action="store_true", help="print CSV")
    add("--per-query", metavar="FILE.csv", help="write the values of every query")
    add("--export", metavar="DIR", help="write TREC qrels and runs, and a BEIR folder")
    add("--plot", metavar="FILE.png", help="draw the table and the fusion sweeps")


def _add_measures(parser: argparse.ArgumentParser) -> None:
    """What is measured, and how."""
    add = parser.add_argument
    missing = "a product without an image scores 0, gets its rescaled text score, or is left out"
    add("--missing", choices=MISSING, default="zero", help=missing)
    gains = (
        "esci: E 1.0, S 0.1, C 0.01, I 0.0; esci-repo: with S and C swapped, as in the ESCI script; release: the gain "
        "column of the release. Default: esci if all labels are ESCI's and the data is no shop's own, otherwise release"
    )
    add("--gains", choices=list(_GAINS), help=gains)
    relevant = (
        "labels that count for precision, MRR and recall: E (default), ES or ESC; with the gains of the release one "
        "label, repeated for several, default those with the highest gain; of clicks and numbers the least gain, "
        "default half of the highest"
    )
    add("--relevant", action="append", metavar="LABELS", help=relevant)
    metrics = f"{METRICS}; default: {DEFAULT_METRICS}"
    add("--metrics", nargs="+", metavar="METRIC", help=metrics)
    add("--baseline", metavar="METHOD", help="method that the others are compared with; default: the first")
    slices = (
        f"also by part of the queries: {', '.join(SLICES)} (query source, share of products with an image, list length)"
    )
    add("--slices", nargs="+", metavar="SLICE", default=[], help=slices)
    add("--folds", type=int, default=5, help="folds of queries for fusion weights (default 5)")
    add("--resamples", type=int, default=2_000, help="bootstrap resamples (default 2000)")
    add("--seed", type=int, default=0, help="of random draws, folds and resamples (default 0)")
    engine = "what computes the metrics; ir-measures: trec_eval itself, slower"
    add("--metrics-engine", choices=METRICS_ENGINES, default="fast", help=engine)


def run(args: argparse.Namespace) -> int:
    """Print the table on stdout; returns 0. Failures are raised as SqidError."""
    check_engine(args)
    if args.engine != "local" and not args.retrieve:
        raise UsageError("--engine belongs to --retrieve", got=f"--engine {args.engine}")
    if args.plot:
        check_format(Path(args.plot))
    store = EmbeddingStore.open(args.dataset, revision=args.revision, cache_dir=args.cache_dir, verify=True)
    comparison = _compare(store, args)
    if args.json:
        write_data(comparison.to_json() + "\n")
    elif args.csv:
        write_data(comparison.to_csv())
    else:
        sys.stdout.write(f"{comparison}\n")
    written = []
    if args.per_query:
        values = comparison.per_query_csv().encode("utf-8", "backslashreplace")  # a path may not be UTF-8
        write_text(Path(args.per_query), values.decode("utf-8"))
        written.append(args.per_query)
    if args.export:
        written.append(str(comparison.export(args.export)))
    if args.plot:
        written.append(str(comparison.plot(args.plot)))
    sys.stderr.writelines(f"wrote {path}\n" for path in written)
    return 0


def _compare(store: EmbeddingStore, args: argparse.Namespace) -> Comparison:
    named = _words(args.methods)
    named += [f"run:{path}" for path in args.runs] + [f"features:{path}" for path in args.features]
    shared: dict[str, Any] = {
        "methods": named or None,
        "gains": _GAINS.get(args.gains),
        "relevant": args.relevant and (args.relevant[0] if len(args.relevant) == 1 else args.relevant),
        "slices": _words(args.slices),
        "queries": None if args.queries is None else _query_ids(Path(args.queries)),
        **{name: getattr(args, name) for name in _SHARED},
    }
    if args.retrieve:
        metrics = args.metrics or RETRIEVAL_METRICS
        with searching(args, store.path.parent) as map_shards:
            return retrieve(store, **shared, metrics=metrics, top=args.top, backend=args.backend, map_shards=map_shards)
    return compare(store, **shared, metrics=args.metrics or DEFAULT_METRICS, metrics_engine=args.metrics_engine)


def _query_ids(path: Path) -> list[int]:
    """The lines of a file as query ids; empty lines are passed over."""
    try:
        return [int(line) for line in path.read_text(encoding="utf-8-sig").split()]
    except OSError as error:
        raise MissingFileError(f"cannot be read: {error.strerror}", where=path) from error
    except ValueError as error:
        raise UsageError("not query ids", where=path, expected="an integer in each line", got=error) from error


def _words(values: Sequence[str] | None) -> list[str]:
    """The values of an option that takes several, separated by spaces or commas."""
    return [word for value in values or () for word in value.split(",") if word]
