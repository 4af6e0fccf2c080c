"""`sqid push`: a release on the Hub."""

from __future__ import annotations

import argparse
import sys

from sqid_lib.sources.object_copy import release_directory

DESCRIPTION = """Publish a validated release as one atomic commit and a tag, then read it back
and compare. The token comes from HF_TOKEN or `hf auth login`."""
EXAMPLE = """examples:
  sqid push WORK/sqid --repo ORG/sqid --tag v1.0.0
  sqid push WORK/sqid --repo ORG/sqid --dry-run
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `sqid push` on `parser`."""
    parser.description, parser.epilog = DESCRIPTION, EXAMPLE
    add = parser.add_argument
    add("release", metavar="DIR", help="directory of a release, or its s3:// or gs:// address")
    add("--repo", required=True, metavar="ORG/NAME", help="Hub dataset; created if it does not exist")
    add("--tag", metavar="vX.Y.Z", help="tag on exactly this commit: v and the version of the release")
    add("--private", action="store_true", help="create the dataset private")
    add("--dry-run", action="store_true", help="list what would change, with sizes, and change nothing")


def run(args: argparse.Namespace) -> int:
    """Print what was published on stdout; returns 0."""
    from builder import hub

    release = release_directory(args.release)
    result = hub.push(release, args.repo, tag=args.tag, private=args.private, dry_run=args.dry_run)
    sys.stdout.write(f"{result}\n")
    return 0
