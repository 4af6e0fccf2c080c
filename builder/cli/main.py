"""The command `sqid`: parser, exit statuses, errors. Results go to stdout, everything else to stderr."""

from __future__ import annotations

import argparse
import logging
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Protocol

from builder.cli import build, diff, evaluate, explore, init, push, recipe, report, search, validate
from builder.cli.terminal import prepare_output
from sqid_lib.errors import SqidError, UsageError, unknown_name, write_error

_PACKAGES = ("datasets", "huggingface_hub", "pyarrow", "torch", "transformers")

EXAMPLES = """examples:
  sqid build demo --work demo-work
  sqid search demo-work/sqid "red mug"
  sqid diff ORG/sqid@v1.0.0 demo-work/sqid"""


class Command(Protocol):
    """What the module of a command has. `run` returns the exit status; failures are raised as SqidError."""

    HELP: str

    def add_arguments(self, parser: argparse.ArgumentParser, /) -> None: ...

    def run(self, args: argparse.Namespace, /) -> int: ...


COMMANDS: Mapping[str, Command] = {
    "init": init,
    "build": build,
    "validate": validate,
    "push": push,
    "evaluate": evaluate,
    "search": search,
    "explore": explore,
    "diff": diff,
    "report": report,
    "recipe": recipe,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; 0: success, 1: a failure reported in one line on stderr, 2: wrong usage, 130: Ctrl-C."""
    try:
        return _main(arguments)
    except KeyboardInterrupt:
        sys.stderr.write("stopped; finished work is kept, run it again to continue\n")
        return 130


def _main(arguments: Sequence[str] | None) -> int:
    prepare_output()
    parser = _parser()
    words = sys.argv[1:] if arguments is None else list(arguments)
    command = next((word for word in words if not word.startswith("-")), None)
    if command is not None and command not in COMMANDS:
        sys.stderr.write(f"sqid: {unknown_name('command', command, COMMANDS, 'sqid COMMAND')}\n")
        return 2
    args = parser.parse_args(words)
    if args.version:
        sys.stdout.write(_versions())
        return 0
    if args.command is None:
        parser.print_help()
        return 0
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", stream=sys.stderr)
    try:
        return COMMANDS[args.command].run(args)
    except SqidError as error:
        _report(args.command, error)
        return 2 if isinstance(error, UsageError) else 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        _report(args.command, write_error(error, doing="read or written", again="it"))
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sqid",
        description="Build, check, publish and judge SQID, the Shopping Queries Image Dataset.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="print versions, for bug reports")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, command in COMMANDS.items():
        command.add_arguments(
            commands.add_parser(name, help=command.HELP, formatter_class=argparse.RawDescriptionHelpFormatter)
        )
    return parser


def _versions() -> str:
    """One package a line; packages that are not installed are left out."""
    lines = [f"Python {platform.python_version()}", f"platform {platform.platform()}"]
    installed = {}
    for package in ("sqid", *_PACKAGES):
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    first = f"sqid {installed.pop('sqid', '(not installed)')}"
    return "\n".join([first, *lines, *(f"{package} {version}" for package, version in installed.items())]) + "\n"


def _report(command: str, error: SqidError) -> None:
    sys.stderr.write(f"sqid {command}: {error}\n")
