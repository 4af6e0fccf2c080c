"""`sqid recipe`: the JSON schema of recipes."""

from __future__ import annotations

import argparse
import json
import sys

HELP = "print the JSON schema of recipes, for editors"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `sqid recipe` on `parser`."""
    parser.description = "Print the JSON schema of recipes: with it an editor completes and checks keys."
    parser.epilog = (
        "example: sqid recipe --schema > recipe.schema.json\n"
        "Then begin the recipe with the line:  #:schema ./recipe.schema.json"
    )
    parser.add_argument("--schema", action="store_true", required=True, help="print the JSON schema (draft 2020-12)")


def run(args: argparse.Namespace) -> int:  # noqa: ARG001
    """Print the schema on stdout; returns 0."""
    from builder.recipe import json_schema

    sys.stdout.write(json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n")
    return 0
