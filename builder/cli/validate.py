"""`sqid validate`: every check on a release."""

from __future__ import annotations

import argparse
import sys

from sqid_lib.errors import UsageError
from sqid_lib.sources.object_copy import release_directory

DESCRIPTION = """Run every check on a release and list all problems, one a line.
Exit status 0 if there are none, 1 if there are some."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `sqid validate` on `parser`."""
    parser.description, parser.epilog = DESCRIPTION, "example: sqid validate WORK/sqid"
    parser.add_argument("release", metavar="DIR", help="directory of a release, or its s3:// or gs:// address")


def run(args: argparse.Namespace) -> int:
    """List the problems on stdout; returns 1 if there are any."""
    from builder.validate import validate

    release = release_directory(args.release)
    if not release.is_dir():
        raise UsageError("no such directory", where=args.release, expected="a release, such as WORK/sqid")
    problems = validate(release)
    if problems:
        sys.stdout.writelines(f"{problem}\n" for problem in problems)
        sys.stderr.write(f"{args.release}: {len(problems)} problem{'s' if len(problems) > 1 else ''}\n")
        return 1
    sys.stdout.write(f"{args.release}: valid\n")
    return 0
