"""`sqid recipe`: the keys of recipes, as JSON schema and as a reference."""

from __future__ import annotations

import argparse
import json
import sys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `sqid recipe` on `parser`."""
    parser.description = "Print every key of a recipe: as JSON schema, with which an editor completes, or as Markdown."
    parser.epilog = (
        "example: sqid recipe --schema > recipe.schema.json\n"
        "Then begin the recipe with the line:  #:schema ./recipe.schema.json"
    )
    choice = parser.add_mutually_exclusive_group(required=True)
    choice.add_argument("--schema", action="store_true", help="print the JSON schema (draft 2020-12)")
    choice.add_argument("--reference", action="store_true", help="print type, default, unit and meaning of every key")


def run(args: argparse.Namespace) -> int:
    """Print the schema or the reference on stdout; returns 0."""
    from builder.cli.recipe_text import reference
    from builder.recipe import json_schema

    schema = json_schema()
    text = reference(schema) if args.reference else json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
    sys.stdout.write(text)
    return 0
