"""The command `sqid`: parser, exit statuses, errors. Results go to stdout, everything else to stderr.

Only the module of the command that is run is imported, so that `sqid --help` needs none of the large packages.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, cast

from builder.cli.terminal import log_handler, prepare_output
from sqid_lib.errors import SqidError, UsageError, unknown_name, write_error

_PACKAGES = ("datasets", "huggingface_hub", "pyarrow", "torch", "transformers")

EXAMPLES = """examples:
  sqid build demo --work demo-work
  sqid search demo-work/sqid "red mug"
  sqid diff ORG/sqid@v1.0.0 demo-work/sqid"""


class Command(Protocol):
    """What the module of a command has. `run` returns the exit status; failures are raised as SqidError."""

    def add_arguments(self, parser: argparse.ArgumentParser, /) -> None: ...

    def run(self, args: argparse.Namespace, /) -> int: ...


COMMANDS: Mapping[str, str] = {  # module in this folder → one line for `sqid --help`
    "init": "write a recipe for a shop's own tables",
    "build": "make a release from a recipe",
    "validate": "check a release",
    "push": "publish a release on the Hub",
    "evaluate": "the ranking table: how well embeddings and models order the judged products",
    "search": "find products by text, by image or by both",
    "explore": "look at a release in a browser: queries, orders, searches, neighbours",
    "diff": "what changed between two releases",
    "report": "one HTML file that shows what is in a build or a release, and what looks wrong",
    "recipe": "print the JSON schema of recipes, for editors, or the reference of their keys",
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
    words = sys.argv[1:] if arguments is None else list(arguments)
    command = next((word for word in words if not word.startswith("-")), None)
    if command is not None and command not in COMMANDS:
        sys.stderr.write(f"sqid: {unknown_name('command', command, COMMANDS, 'sqid COMMAND')}\n")
        return 2
    if command == "build":  # before pyarrow is imported, here and by workers: its own allocator keeps what is freed
        os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    parser = _parser([command] if command else [])
    args = parser.parse_args(words)
    if args.version:
        sys.stdout.write(_versions())
        return 0
    if args.command is None:
        parser.print_help()
        return 0
    logging.basicConfig(level=logging.WARNING, handlers=[log_handler()])
    try:
        return _command(args.command).run(args)
    except SqidError as error:
        _report(args.command, error)
        return 2 if isinstance(error, UsageError) else 1
    except MemoryError:
        _report(args.command, SqidError("not enough memory", fix="Run it again with more."))
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        _report(args.command, write_error(error, doing="read or written", again="it"))
        return 1


def _command(name: str) -> Command:
    return cast(Command, importlib.import_module(f"builder.cli.{name}"))


def _parser(with_arguments: Iterable[str] = COMMANDS) -> argparse.ArgumentParser:
    """The parser of all commands; those that are not `with_arguments` have only their names and help."""
    parser = argparse.ArgumentParser(
        prog="sqid",
        description="Build, check, publish and judge SQID, the Shopping Queries Image Dataset.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="print versions, for bug reports")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, words in COMMANDS.items():
        added = commands.add_parser(name, help=words, formatter_class=argparse.RawDescriptionHelpFormatter)
        if name in with_arguments:
            _command(name).add_arguments(added)
    return parser


def _versions() -> str:
    """One package a line; packages that are not installed are left out."""
    import platform
    from importlib import metadata

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
