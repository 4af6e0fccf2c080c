"""`sqid build`: from a recipe to a release."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from builder import demo, pipeline
from builder.cli.engine import check_engine
from builder.engines import ENGINES
from builder.mirror import Mirror, place_of
from sqid_lib.errors import SqidError, UsageError, first_line, without_secrets
from sqid_lib.object_store import ObjectStore

DESCRIPTION = f"""Run the stages {" → ".join(pipeline.STAGES)}.
Finished work is kept: after an interruption, run it again and it continues.
Failures of images that may pass, and those that a changed setting caused, are tried again by
themselves. Prints the directory of the release; with --only, what that stage made. A whole
build also writes WORK/report.html, which shows what is in the release."""
EXAMPLE = """examples:
  sqid build demo --work demo-work
  sqid build recipe.toml --work WORK --dry-run
  sqid build recipe.toml --print-recipe
  sqid build recipe.toml --work WORK --set encoder.model=openai/clip-vit-base-patch32
  sqid build recipe.toml --work /shared/WORK --engine ray --ray-address auto
  sqid build recipe.toml --work s3://BUCKET/run1 --engine ray --ray-address auto
  sqid build recipe.toml --work WORK --only fetch --retry not_found,blocked
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `sqid build` on `parser`."""
    parser.description, parser.epilog = DESCRIPTION, EXAMPLE
    add = parser.add_argument
    add("recipe", metavar="RECIPE", help="a TOML file, or the name of a packaged recipe: sqid, demo")
    add(
        "--work",
        metavar="WORK",
        help="directory, or s3:// or gs:// address, for everything that is made (required)",
    )
    add("--only", metavar="STAGE", help=f"run one stage: {', '.join(pipeline.STAGES)}")
    engines = "{" + ",".join(ENGINES) + "}"
    add("--engine", default="local", metavar=engines, help="what runs the tasks of fetch and embed (default local)")
    add("--ray-address", metavar="ADDRESS", help="the Ray cluster of --engine ray (default: one on this machine)")
    add("--set", dest="overrides", metavar="KEY=VALUE", action="append", default=[], help="override section.key=value")
    add(
        "--retry",
        metavar="STATUS",
        action="append",
        default=[],
        help="fetch images of this status again (several with commas); with --only resolve: visit pages of this "
        "status again",
    )
    add("--dry-run", action="store_true", help="list the stages and what each would do, and change nothing")
    add("--check", action="store_true", help="compare every file of WORK with its checksum, and change nothing")
    add("--print-recipe", action="store_true", help="print all keys of the recipe as they are used, as TOML")


def run(args: argparse.Namespace) -> int:
    """Print what was made, or what would be done, on stdout; returns 0, or 1 if a check finds damage."""
    from builder import recipe

    if args.print_recipe:
        return _print_recipe(args)
    if not args.work:
        raise UsageError("--work is missing", expected="--work WORK, the directory for everything that is made")
    local, store = place_of(args.work)
    if args.check:
        if store is not None:
            raise UsageError("--check reads a directory", got=args.work, fix="A build checks what it uses by itself.")
        return _check(local)
    check_engine(args)
    if args.ray_address is not None:
        args.overrides.append(f"engine.address={json.dumps(args.ray_address)}")
    args.retry = [status for value in args.retry for status in value.split(",") if status]
    pipeline.check_names(only=args.only, engine=args.engine, retry=args.retry)
    if args.dry_run:
        sys.stdout.writelines(f"{stage}: {words}\n" for stage, words in _plan(args, local, store).items())
        return 0
    for name in ("sqid_lib.tables", "sqid_lib.joined", "builder.catalogue"):  # how files were read
        logging.getLogger(name).setLevel(logging.INFO)
    with _demo_shop(args, local) as overrides:
        loaded = recipe.load(args.recipe, [*overrides, *args.overrides])
        made = pipeline.build(
            loaded,
            args.work,
            only=args.only,
            engine=args.engine,
            retry=args.retry,
            say=_report_stage,
            command=_command(args),
        )
        if args.only is None:
            _write_report(local)
            if store is not None:
                Mirror(local, store).push_summary()
    sys.stdout.write(f"{made if store is None else f'{store}/{made.relative_to(local).as_posix()}'}\n")
    return 0


def _write_report(work: Path) -> None:
    """Write WORK/report.html; a release that is valid stays so without it, whatever happens here."""
    from builder.report import report_of_build

    try:
        made = report_of_build(work)
    except Exception as error:
        reason = str(error) if isinstance(error, SqidError) else f"{type(error).__name__}: {first_line(error)}"
        _report_stage(f"report: not written ({reason}); the release is complete")
        return
    took = f", {made.seconds:.1f} s" if made.seconds else ", done before"
    _report_stage(f"report: {made.path}{took}")


def _check(work: Path) -> int:
    from builder.check_work import check_work

    found = check_work(work)
    sys.stdout.writelines(f"{name} {words}\n" for name, words in found.damaged.items())
    if found.damaged:
        count = len(found.damaged)
        files = "1 file is" if count == 1 else f"{count:,} files are"
        sys.stderr.write(f"{files} not as written. Run the build without --check: what is damaged is made again.\n")
        return 1
    counts = ", ".join(f"{stage} {count:,}" for stage, count in found.sound.items())
    sys.stdout.write(f"{sum(found.sound.values()):,} files are as they were written: {counts}\n")
    return 0


def _print_recipe(args: argparse.Namespace) -> int:
    from builder import recipe
    from builder.cli.recipe_text import as_toml

    overrides: list[str] = []
    drawn = True
    if _is_demo(args):
        if args.work is None:
            raise UsageError("the demo's recipe names files in WORK", expected="--work WORK")
        local, _ = place_of(args.work)
        overrides, drawn = demo.overrides(local), demo.is_drawn(local)
    sys.stdout.write(as_toml(recipe.load(args.recipe, [*overrides, *args.overrides], check_inputs=drawn)))
    return 0


def _plan(args: argparse.Namespace, work: Path, store: ObjectStore | None) -> Mapping[str, str]:
    from builder import recipe

    if store is not None:
        Mirror(work, store).pull()
    first, overrides = {}, []
    if _is_demo(args):
        overrides = demo.overrides(work)
        if not demo.is_drawn(work):
            first = {"shop": f"would be drawn in {work / 'shop'}"}
    loaded = recipe.load(args.recipe, [*overrides, *args.overrides], check_inputs=not first)
    return first | pipeline.plan(loaded, work, only=args.only, retry=args.retry)


def _command(args: argparse.Namespace) -> str:
    """What to type to run the whole build again, without secrets: it is printed and stored."""
    words = ["sqid", "build", args.recipe, "--work", args.work]
    if args.engine != "local":
        words += ["--engine", args.engine]
    for override in args.overrides:
        words += ["--set", override]
    return without_secrets(shlex.join(words))


@contextlib.contextmanager
def _demo_shop(args: argparse.Namespace, work: Path) -> Iterator[list[str]]:
    """The packaged recipe `demo` needs its shop: drawn in WORK/shop, with the images served from 127.0.0.1."""
    if not _is_demo(args):
        yield []
        return
    with demo.prepare(work) as overrides:
        yield overrides


def _is_demo(args: argparse.Namespace) -> bool:
    return args.recipe == demo.RECIPE and not Path(args.recipe).is_file()


def _report_stage(line: str) -> None:
    sys.stderr.write(f"· {line}\n")
