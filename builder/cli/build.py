"""`sqid build`: from a recipe to a release."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from builder import demo, pipeline
from builder.engines import ENGINES
from sqid_lib.errors import UsageError

HELP = "make a release from a recipe"
DESCRIPTION = f"""Run the stages {" → ".join(pipeline.STAGES)}.
Finished work is kept: after an interruption, run it again and it continues.
Prints the directory of the release."""
EXAMPLE = """examples:
  sqid build demo --work demo-work
  sqid build recipe.toml --work WORK --dry-run
  sqid build recipe.toml --print-recipe
  sqid build recipe.toml --work WORK --set encoder.model=openai/clip-vit-base-patch32
  sqid build recipe.toml --work WORK --only fetch --retry timeout --retry http_error
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `sqid build` on `parser`."""
    parser.description, parser.epilog = DESCRIPTION, EXAMPLE
    add = parser.add_argument
    add("recipe", metavar="RECIPE", help="a TOML file, or the name of a packaged recipe: sqid, demo")
    add("--work", type=Path, metavar="WORK", help="directory for everything that is made (required)")
    add("--only", metavar="STAGE", choices=pipeline.STAGES, help=f"run one stage: {', '.join(pipeline.STAGES)}")
    add("--engine", default="local", choices=list(ENGINES), help="what runs the tasks of a stage (default local)")
    add("--set", dest="overrides", metavar="KEY=VALUE", action="append", default=[], help="override section.key=value")
    add(
        "--retry",
        metavar="STATUS",
        action="append",
        default=[],
        help="fetch images of this status again; with --only resolve: visit pages of this status again",
    )
    add("--dry-run", action="store_true", help="list the stages and what each would do, and change nothing")
    add("--print-recipe", action="store_true", help="print all keys of the recipe as they are used, as TOML")


def run(args: argparse.Namespace) -> int:
    """Print the directory of the release, or what would be done, on stdout; returns 0."""
    from builder import recipe

    if args.print_recipe:
        return _print_recipe(args)
    if args.work is None:
        raise UsageError("--work is missing", expected="--work WORK, the directory for everything that is made")
    if args.retry and args.only not in (None, "fetch", "resolve"):
        raise UsageError(
            "--retry belongs to the stages fetch and resolve",
            fix="Use it with --only fetch, with --only resolve, or, for images, without --only.",
        )
    if args.dry_run:
        sys.stdout.writelines(f"{stage}: {words}\n" for stage, words in _plan(args).items())
        return 0
    with _demo_shop(args) as overrides:
        loaded = recipe.load(args.recipe, [*overrides, *args.overrides])
        release = pipeline.build(
            loaded, args.work, only=args.only, engine=args.engine, retry=args.retry, say=_report_stage
        )
    sys.stdout.write(f"{release}\n")
    return 0


def _print_recipe(args: argparse.Namespace) -> int:
    from builder import recipe
    from builder.cli.recipe_text import as_toml

    overrides: list[str] = []
    if _is_demo(args):
        if args.work is None or not demo.is_drawn(args.work):
            raise UsageError(
                "the demo's recipe names files that are not there yet",
                where=args.work or "--work is missing",
                fix="Run it first: sqid build demo --work WORK.",
            )
        overrides = demo.overrides(args.work)
    sys.stdout.write(as_toml(recipe.load(args.recipe, [*overrides, *args.overrides])))
    return 0


def _plan(args: argparse.Namespace) -> Mapping[str, str]:
    from builder import recipe

    overrides: list[str] = []
    if _is_demo(args):
        if not demo.is_drawn(args.work):
            stages = pipeline.STAGES if args.only is None else (args.only,)
            return {"shop": f"would be drawn in {args.work / 'shop'}", **dict.fromkeys(stages, "would run")}
        overrides = demo.overrides(args.work)
    return pipeline.plan(
        recipe.load(args.recipe, [*overrides, *args.overrides]), args.work, only=args.only, retry=args.retry
    )


@contextlib.contextmanager
def _demo_shop(args: argparse.Namespace) -> Iterator[list[str]]:
    """The packaged recipe `demo` needs its shop: drawn in WORK/shop, with the images served from 127.0.0.1."""
    if not _is_demo(args):
        yield []
        return
    with demo.prepare(args.work) as overrides:
        yield overrides


def _is_demo(args: argparse.Namespace) -> bool:
    return args.recipe == demo.RECIPE and not Path(args.recipe).is_file()


def _report_stage(line: str) -> None:
    sys.stderr.write(f"· {line}\n")
