"""The command `sqid`: thin over the library. Results on stdout, the rest on stderr."""

from __future__ import annotations

import argparse
import contextlib
import errno
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from builder.cli import evaluate as evaluate_command
from sqid_lib.errors import DiskError, SqidError, UsageError

_RAW = argparse.RawDescriptionHelpFormatter


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; 0 for success, 1 for a failure told in one line on stderr, 2 for wrong usage."""
    args = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", stream=sys.stderr)
    try:
        return int(args.run(args))
    except UsageError as error:
        _say(f"sqid {args.command}: {error}")
        return 2
    except SqidError as error:
        _say(f"sqid {args.command}: {error}")
        return 1
    except KeyboardInterrupt:
        _say("stopped; finished work is kept, run it again to go on")
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        _say(f"sqid {args.command}: {_disk_error(error)}")
        return 1


def _disk_error(error: OSError) -> DiskError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return DiskError(
        error.strerror or str(error),
        where=error.filename,
        fix="Free some space and run it again; finished work is kept."
        if full
        else "Check the path and its permissions.",
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sqid",
        description="Build, check, publish and judge SQID, the Shopping Queries Image Dataset.",
        epilog="example: sqid build demo --work demo-work",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_build(commands)
    _add_validate(commands)
    _add_push(commands)
    evaluate = commands.add_parser("evaluate", help=evaluate_command.HELP)
    evaluate_command.add_arguments(evaluate)
    evaluate.set_defaults(run=evaluate_command.run)
    return parser


def _add_build(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    build = commands.add_parser(
        "build",
        help="make a release from a recipe",
        description="Run sample → resolve → fetch → embed → release → validate. Finished work is kept: run it again "
        "and it goes on where it stopped. Prints the directory of the release.",
        epilog="examples:\n  sqid build demo --work demo-work\n"
        "  sqid build recipe.toml --work WORK --set encoder.model=openai/clip-vit-base-patch32\n"
        "  sqid build recipe.toml --work WORK --only fetch --retry timeout --retry http_error",
        formatter_class=_RAW,
    )
    build.add_argument("recipe", metavar="RECIPE", help="a TOML file, or the name of a packaged recipe: sqid, demo")
    build.add_argument("--work", required=True, type=Path, metavar="WORK", help="directory for everything that is made")
    build.add_argument(
        "--only", metavar="STAGE", help="run one stage: sample, resolve, fetch, embed, release, validate"
    )
    build.add_argument("--engine", default="local", metavar="ENGINE", help="what runs the embed stage: local")
    build.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", help="override section.key=value"
    )
    build.add_argument(
        "--retry",
        action="append",
        default=[],
        metavar="STATUS",
        help="with --only fetch: try pictures of this status again; with --only resolve: visit such pages again",
    )
    build.set_defaults(run=_build)


def _build(args: argparse.Namespace) -> int:
    from builder import pipeline, recipe

    if args.retry and args.only not in (None, "fetch", "resolve"):
        raise UsageError(
            "--retry belongs to the stages fetch and resolve",
            fix="Use it with --only fetch, with --only resolve, or, for pictures, without --only.",
        )
    with _demo_shop(args) as overrides:
        loaded = recipe.load(args.recipe, [*overrides, *args.overrides])
        out = pipeline.build(
            loaded, args.work, only=args.only, engine=args.engine, retry=args.retry, say=lambda line: _say(f"· {line}")
        )
    sys.stdout.write(f"{out}\n")
    return 0


@contextlib.contextmanager
def _demo_shop(args: argparse.Namespace) -> Iterator[list[str]]:
    """The packaged recipe `demo` needs a shop: it is drawn into WORK/shop and its pictures served from loopback."""
    if args.recipe != "demo" or Path(args.recipe).is_file():
        yield []
        return
    from builder import demo

    with demo.prepare(args.work) as overrides:
        yield overrides


def _add_validate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    validate = commands.add_parser(
        "validate",
        help="check a release",
        description="Run every check on a release and list all problems, one a line. Exit status 0 if there are none.",
        epilog="example: sqid validate WORK/sqid",
    )
    validate.add_argument("release", type=Path, metavar="DIR", help="directory of a release")
    validate.set_defaults(run=_validate)


def _validate(args: argparse.Namespace) -> int:
    from builder.validate import validate

    if not args.release.is_dir():
        raise UsageError("no such directory", where=args.release, expected="a release, such as WORK/sqid")
    problems = validate(args.release)
    for problem in problems:
        sys.stdout.write(f"{problem}\n")
    if problems:
        _say(f"{args.release}: {len(problems)} problem{'s' if len(problems) > 1 else ''}")
        return 1
    sys.stdout.write(f"{args.release}: valid\n")
    return 0


def _add_push(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    push = commands.add_parser(
        "push",
        help="publish a release on the Hub",
        description="Publish a validated release as one atomic commit and a tag, then read it back and compare. The "
        "token comes from HF_TOKEN or `hf auth login`.",
        epilog="examples:\n  sqid push WORK/sqid --repo ORG/sqid --tag v1.2.0\n"
        "  sqid push WORK/sqid --repo ORG/sqid --dry-run",
        formatter_class=_RAW,
    )
    push.add_argument("release", type=Path, metavar="DIR", help="directory of a release")
    push.add_argument("--repo", required=True, metavar="ORG/NAME", help="Hub dataset; created if it does not exist")
    push.add_argument("--tag", metavar="vX.Y.Z", help="tag on exactly this commit")
    push.add_argument("--private", action="store_true", help="create the dataset private")
    push.add_argument("--dry-run", action="store_true", help="list what would change, with sizes, and change nothing")
    push.set_defaults(run=_push)


def _push(args: argparse.Namespace) -> int:
    from builder import hub

    result = hub.push(args.release, args.repo, tag=args.tag, private=args.private, dry_run=args.dry_run)
    sys.stdout.write(f"{result}\n")
    return 0


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
