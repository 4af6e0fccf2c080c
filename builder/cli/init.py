"""`sqid init`: from a shop's tables to a recipe for them."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard
from urllib.parse import unquote, urlsplit

from sqid_lib import schemas
from sqid_lib.errors import MissingFileError, UsageError
from sqid_lib.files import write_text
from sqid_lib.sources import parse_address

if TYPE_CHECKING:
    from builder.catalogue.preview import JudgmentsPreview, Preview
    from builder.catalogue.products import Products

DESCRIPTION = """Look at a table of products, and at one of judgments, and write a recipe for them.
Columns are recognised by their names; the first rows are shown as a build reads them, with
warnings of what is likely a fault. Nothing but the recipe is written. Prints its path and the
command that builds it. docs/own-catalogue.md leads through all of it."""
EXAMPLE = """examples:
  sqid init catalogue.csv
  sqid init catalogue.csv judgments.csv --images photos --locale de --out shop/sqid.toml
  sqid init catalogue.parquet clicks.csv.gz --model google/siglip2-base-patch16-224
  sqid init hf://datasets/ORG/NAME

CATALOGUE and JUDGMENTS: csv, tsv, JSON or parquet (.gz, .bz2, .zst), a folder of them, https:// or hf://.
JUDGMENTS has a query and a product in each row, and a label, a number, or impressions and clicks;
or queries alone."""
_LOCALE = "en"
_ENGLISH = ("en", "us", "uk", "gb", "au", "ca", "ie", "nz")
_MULTILINGUAL = "google/siglip2-base-patch16-224"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `sqid init` on `parser`."""
    parser.description, parser.epilog = DESCRIPTION, EXAMPLE
    add = parser.add_argument
    add("catalogue", metavar="CATALOGUE", help="the table of products")
    add("judgments", nargs="?", metavar="JUDGMENTS", help="the table of judgments, a click log, or a list of queries")
    add("--out", type=Path, default=Path("sqid.toml"), metavar="FILE", help="the recipe (default sqid.toml)")
    add("--images", type=Path, metavar="DIR", help="folder of local images, to which the image column is relative")
    add("--locale", default=None, help=f"locale of the products, such as de (default {_LOCALE})")
    add("--model", default=None, help="Hub id or directory of the encoder (default: that of the published data)")
    add("--force", action="store_true", help="replace the recipe if it is there")


def run(args: argparse.Namespace) -> int:
    """Write the recipe and print its path and the next command on stdout; returns 0."""
    from builder.catalogue import columns
    from builder.catalogue.preview import look_at_judgments, look_at_products
    from builder.catalogue.tables import open_tables
    from builder.cli.init_text import Draft, recipe_text
    from builder.recipe import CatalogueSettings, EncoderSettings

    _check(args)
    locale = args.locale or _LOCALE
    tables = open_tables(args.catalogue, columns.HINTS)
    folder = args.images or _folder_of(args.catalogue)
    settings = CatalogueSettings(products=args.catalogue, locale=locale, images=str(folder) if folder else None)
    seen, products = look_at_products(tables, settings)
    local = products is not None and any(_is_local(image) for _, image in _images(products))
    if folder is not None and products is not None and local:
        seen.warnings += _image_warnings(products, folder)
    judged = None
    if args.judgments is not None:
        settings = settings.model_copy(update={"columns": seen.columns})
        judged = look_at_judgments(open_tables(args.judgments, columns.HINTS), products, settings)
    work = args.out.parent / "work"
    command = f"sqid build {shlex.quote(str(args.out))} --work {shlex.quote(str(work))}"
    notes = {"locale": f"It was not given to `sqid init`: {locale!r} is assumed."} if args.locale is None else {}
    draft = Draft(
        command=command,
        name=_name(args.catalogue),
        products=_as_in_recipe(args.catalogue, args.out),
        judgments=_as_in_recipe(args.judgments, args.out) if args.judgments else None,
        images=_as_in_recipe(str(folder), args.out) if folder and (args.images or local) else None,
        locale=locale,
        model=_model(args.model or EncoderSettings().model, args.out),
        notes=notes,
        seen=seen,
        judged=judged,
    )
    write_text(args.out, recipe_text(draft))
    _report(seen, judged)
    _report_assumptions(args, draft.model)
    sys.stdout.write(f"{args.out}\n{command}\n")
    return 0


def _check(args: argparse.Namespace) -> None:
    if args.out.exists() and not args.force:
        fix = "Name another file with --out, or replace it with --force."
        raise UsageError("the recipe is there already", where=args.out, fix=fix)
    if args.images is not None and not args.images.is_dir():
        raise MissingFileError("no such folder of images", where=f"--images {args.images}", fix="Check the path.")
    if args.locale is not None and not (args.locale.strip() and args.locale.isprintable()):
        raise UsageError("not a locale", where="--locale", expected="one such as de", got=repr(args.locale[:40]))


def _folder_of(address: str) -> Path | None:
    """The folder of a local table: images are likely relative to it."""
    path = parse_address(address, file=True).local
    return None if path is None else path if path.is_dir() else path.parent


def _as_in_recipe(address: str, out: Path) -> str:
    """A local path relative to the recipe, with "/"; any other address as it is."""
    path = parse_address(address, file=True).local
    if path is None:
        return address
    return Path(os.path.relpath(path.absolute(), out.absolute().parent)).as_posix()


def _model(model: str, out: Path) -> str:
    return _as_in_recipe(model, out) if Path(model).is_dir() else model


def _name(address: str) -> str:
    """The name of the table as the name of a dataset: "my-shop" for my shop.csv.gz."""
    place = parse_address(address, file=True)
    path = place.repo or place.path
    last = unquote(urlsplit(path).path if "://" in path else path).rstrip("/").rpartition("/")[2]
    stem = re.sub(r"(\.(csv|tsv|txt|jsonl?|ndjson|parquet|pq|gz|bz2|zst|zstd))+$", "", last, flags=re.IGNORECASE)
    return re.sub(r"[^\w.-]+", "-", stem).strip("-.") or "my-catalogue"


def _images(products: Products) -> Iterator[tuple[str, str | None]]:
    """Id and image of each product."""
    for table in products.images():
        yield from zip(table["product_id"].to_pylist(), table["image"].to_pylist(), strict=True)


def _is_local(image: str | None) -> TypeGuard[str]:
    return image is not None and image.startswith(schemas.FILE_IMAGE)


def _image_warnings(products: Products, folder: Path) -> Iterator[str]:
    """One line for each status of the local images that are not there or would not be read."""
    from builder.fetch.image_folder import ImageFolder

    files, counts = ImageFolder(str(folder)), Counter[str]()
    first: dict[str, str] = {}
    for product, image in _images(products):
        if not _is_local(image):
            continue
        path = image.removeprefix(schemas.FILE_IMAGE)
        found = files.read(path, 0)  # a file with bytes is too large for this and is not read
        detail = "no bytes" if found.data == b"" else found.detail if found.status != "too_large" else None
        if detail is not None:
            counts[detail] += 1
            first.setdefault(detail, f"{path!r} of product {product!r}")
    for detail, count in counts.most_common():
        images = "1 image" if count == 1 else f"{count:,} images"
        yield f"{folder}: {images} cannot be used: {detail}, such as {first[detail]}"


def _report(seen: Preview, judged: JudgmentsPreview | None) -> None:
    write = sys.stderr.write
    rows = f"{seen.rows:,} products" if seen.rows is not None else "a table of products that cannot be read yet"
    _report_table(seen, rows)
    if judged is not None:
        rows = f"{judged.rows:,} rows" if judged.rows is not None else "a table that cannot be read yet"
        what = {"labels": "judgments", "clicks": "a click log", "queries": "queries"}[judged.kind]
        _report_table(judged, f"{what}, {rows}" + (f", {judged.queries:,} queries" if judged.queries else ""))
        for label, count in list(judged.counts.items())[:10]:
            gain = judged.labels.get(label, label)
            rows = "1 row" if count == 1 else f"{count:,} rows"
            write(f"  label {label!r}: {rows}, gain {gain if gain is not None else 'to be filled in'}\n")
    for preview in filter(None, (seen, judged)):
        write("".join(f"warning: {line}\n" for line in preview.warnings))
    for preview in filter(None, (seen, judged)):
        write("".join(f"BEFORE THE BUILD: {line}\n" for line in preview.stops))


def _report_table(seen: Preview, rows: str) -> None:
    from builder.cli.init_text import sample_lines

    write = sys.stderr.write
    write(f"{seen.tables.address}: {rows}\n")
    width = max(map(len, seen.columns), default=0)
    for ours, theirs in seen.columns.items():
        others = [name for name in seen.unclear.get(ours, ()) if name != theirs]
        unsure = f", or is it {' or '.join(map(repr, others))}?" if others else ""
        write(f"  {ours:{width}}  is the column {theirs!r}{unsure}\n")
    if seen.unused:
        write(f"  not used: {', '.join(map(repr, seen.unused))}\n")
    write("".join(f"  {line}\n" for line in sample_lines(seen)))


def _report_assumptions(args: argparse.Namespace, model: str) -> None:
    if args.locale is None:
        sys.stderr.write(f"The locale is taken to be {_LOCALE!r}: name another with --locale, or in the recipe.\n")
    elif args.model is None and args.locale.lower()[:2] not in _ENGLISH:
        sys.stderr.write(
            f"The model {model} has learned from English texts: for {args.locale!r} consider one of many languages, "
            f"such as --model {_MULTILINGUAL}.\n"
        )
