"""`sqid diff`: what changed between two releases."""

from __future__ import annotations

import argparse
import sys

from builder.cli.terminal import write_data

DESCRIPTION = """Print what changed from release A to release B, as text for a changelog: products and
judgments added, removed and changed, vectors moved, image statuses, nDCG, model and recipe.
Exit status 0 whether they differ or not."""
EXAMPLE = """examples:
  sqid diff OLD/sqid WORK/sqid
  sqid diff ORG/sqid@v1.0.0 WORK/sqid > changes.md
  sqid diff ORG/sqid@v1.0.0 ORG/sqid@v1.1.0 --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `sqid diff` on `parser`."""
    parser.description, parser.epilog = DESCRIPTION, EXAMPLE
    add = parser.add_argument
    add("before", metavar="A", help="a release: a directory, ORG/NAME[@REVISION] on the Hub, hf:// or https://")
    add("after", metavar="B", help="another one")
    add("--cache-dir", help="directory of downloads and converted vectors")
    add("--json", action="store_true", help="print one object")


def run(args: argparse.Namespace) -> int:
    """Print the differences on stdout; returns 0."""
    from builder.diff import diff

    found = diff(args.before, args.after, cache_dir=args.cache_dir)
    if args.json:
        write_data(found.to_json() + "\n")
    else:
        sys.stdout.write(f"{found}\n")
    return 0
