"""`sqid search`: products of a release for a text, an image or both."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from builder.cli.engine import add_engine, check_engine, searching
from builder.cli.terminal import write_data
from builder.demo import TINY_CLIP
from sqid_lib.errors import UsageError
from sqid_lib.search import Model
from sqid_lib.store import EmbeddingStore

DESCRIPTION = """Print the products of a release that are nearest to a text, an image or both.
Every product is compared by its text vector and by its image vector; --weight says how
much the text vector counts. The query is encoded with the encoder that the release names."""
EXAMPLE = """examples:
  sqid search WORK/sqid "red shoes"
  sqid search ORG/sqid "red shoes" --weight 0.2 --where has_image=true --top 20
  sqid search SHOP/sqid "red shoes" --where price=..50 --where brand=Acme
  sqid search WORK/sqid --image photo.jpg --encoder openai/clip-vit-large-patch14
  sqid search WORK/sqid "in black" --image photo.jpg --json > found.json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `sqid search` on `parser`."""
    parser.description, parser.epilog = DESCRIPTION, EXAMPLE
    add = parser.add_argument
    add("dataset", metavar="DIR_OR_REPO", help="a release directory or a Hub dataset")
    add("query", nargs="?", metavar="TEXT", help="what to search for")
    add("--image", type=Path, metavar="FILE", help="an image on this machine to search for, alone or with TEXT")
    add("--top", type=int, default=10, metavar="N", help="products to print (default 10)")
    add("--weight", type=float, default=0.5, metavar="A", help="of text vectors, 0 to 1; images the rest (default 0.5)")
    where = (
        "only products with this value, or with a number from LOW to HIGH as LOW..HIGH, either left out for no limit; "
        "again: another column, or another value of the same one"
    )
    add("--where", action="append", default=[], metavar="COLUMN=VALUE", help=where)
    add("--encoder", metavar="DIR_OR_MODEL", help="the model that made the vectors, where it cannot be found by itself")
    add("--revision", help="revision of the Hub dataset")
    add("--cache-dir", help="directory of the converted vectors")
    add("--json", action="store_true", help="print a list of objects, one per product")
    add_engine(parser)
    _accept_options_before_text(parser)


def _accept_options_before_text(parser: argparse.ArgumentParser) -> None:
    """Accept `sqid search DIR --top 5 "red shoes"`: argparse reads an optional TEXT only directly behind DIR."""
    read = parser.parse_known_args

    def read_all(args: Any = None, namespace: Any = None) -> tuple[argparse.Namespace, list[str]]:
        found, rest = read(args, namespace)
        if found.query is None and rest and not rest[0].startswith("-"):
            found.query = rest.pop(0)
        return found, rest

    parser.parse_known_args = read_all  # type: ignore[assignment, method-assign]


def run(args: argparse.Namespace) -> int:
    """Print the products on stdout; returns 0. Failures are raised as SqidError."""
    if args.query is None and args.image is None:
        raise UsageError("nothing to search for", expected="TEXT, --image FILE or both")
    check_engine(args)
    where = _where(args.where)
    store = EmbeddingStore.open(args.dataset, revision=args.revision, cache_dir=args.cache_dir)
    encoder = args.encoder or known_encoder(store.model, args.dataset)
    limits = {"top": args.top, "where": where, "weight": args.weight, "encoder": encoder}
    with searching(args, store.path.parent) as map_shards:
        found = store.search(args.query, image=args.image, **limits, map_shards=map_shards)
    if args.json:
        write_data(found.to_json() + "\n")
    else:
        sys.stdout.writelines(f"{line}\n" for line in found.table())
    sys.stderr.writelines(f"{note}\n" for note in found.notes)
    return 0


def known_encoder(model: Model | None, dataset: str) -> str | None:
    """The directory of the encoder that made a release, if this machine has it: the demo's, or that of a build here.

    Args:
        dataset: address of the release; of WORK/sqid, WORK/embed/encoder.json names the directory.
    """
    from sqid_lib.encoders.loading import content_revision

    if model is None or model.revision is None:
        return None
    if model.name == TINY_CLIP.name and model.revision == content_revision(TINY_CLIP):
        return str(TINY_CLIP)
    try:
        built = json.loads((Path(dataset).resolve().parent / "embed" / "encoder.json").read_text(encoding="utf-8"))
        directory = Path(built["model"])
        return (
            str(directory)
            if directory.is_dir() and content_revision(directory, model.backend) == model.revision
            else None
        )
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _where(conditions: Sequence[str]) -> dict[str, list[str]] | None:
    where: dict[str, list[str]] = {}
    for condition in conditions:
        column, equals, value = condition.partition("=")
        if not equals:
            raise UsageError("not a condition", where="--where", expected="COLUMN=VALUE", got=repr(condition))
        where.setdefault(column, []).append(value)
    return where or None
