"""`sqid explore`: a local web page to look at a release."""

from __future__ import annotations

import argparse
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from sqid_lib.errors import missing_extra

if TYPE_CHECKING:
    from builder.explore.catalogue import Catalogue

DESCRIPTION = """Serve a web page on this machine that shows the queries of a release with their judged products,
ordered by text, by image or by any weight between the two, with the nDCG of that order; searches all products
for a text or an image, shows the neighbours of a product, and compares two ranking methods or run files.
Prints the URL when it is ready; Ctrl-C ends it."""
EXAMPLE = """examples:
  sqid explore WORK/sqid --images WORK --open
  sqid explore ORG/sqid --port 8000
  sqid explore WORK/sqid --run mine.run --run other.run --methods bm25+clip_image
  sqid explore WORK/sqid --host 0.0.0.0 --allow-host my-machine.example
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `sqid explore` on `parser`."""
    parser.description, parser.epilog = DESCRIPTION, EXAMPLE
    add = parser.add_argument
    add("dataset", metavar="DIR_OR_REPO", help="a release directory or a Hub dataset")
    add("--images", type=Path, metavar="WORK", help="work directory of the build, whose stored images are shown")
    add("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1: this machine only)")
    add("--port", type=int, default=0, help="port to listen on (default 0: any that is free)")
    add("--open", action="store_true", help="open the page in the browser")
    add("--run", dest="runs", type=Path, action="append", default=[], metavar="FILE", help="also offer a TREC run file")
    methods = "also offer these ranking methods, as `sqid evaluate` names them"
    add("--methods", nargs="+", default=[], metavar="METHOD", help=methods)
    add("--encoder", metavar="DIR_OR_MODEL", help="the model that made the vectors, where it cannot be found by itself")
    add("--revision", help="revision of the Hub dataset")
    add("--cache-dir", help="directory of the converted vectors")
    names = "also answer under this host name; needed for other machines and behind a proxy"
    add("--allow-host", action="append", default=[], metavar="NAME", help=names)
    frames = "let pages of this origin show the explorer in a frame, as a Space of the Hub does"
    add("--allow-frame", action="append", default=[], metavar="ORIGIN", help=frames)


def run(args: argparse.Namespace) -> int:
    """Serve until Ctrl-C; returns 0. Failures are raised as SqidError."""
    try:
        from builder.explore import server
        from builder.explore.app import make_app
        from builder.explore.guard import ANY_ADDRESS, allowed_names
    except ImportError as error:
        raise missing_extra(error.name or "starlette", "explore", "to serve a web page") from error
    with server.listen(args.host, args.port) as listening:
        catalogue = _catalogue(args)
        app = make_app(catalogue, allowed_names(args.host, args.allow_host), tuple(args.allow_frame))
        url = server.url_of(listening, args.host)
        if args.host in ANY_ADDRESS and not args.allow_host:
            sys.stderr.write("only requests to localhost are answered; name this machine with --allow-host NAME\n")

        def ready() -> None:
            sys.stdout.write(f"{url}\n")
            sys.stdout.flush()
            threading.Thread(target=catalogue.warm, daemon=True).start()
            if args.open:
                _open(url)

        server.serve(app, listening, ready)
    server.leave_busy_threads()
    return 0


def _open(url: str) -> None:
    import webbrowser

    threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()


def _catalogue(args: argparse.Namespace) -> Catalogue:
    from builder.cli.search import known_encoder
    from builder.explore.catalogue import Catalogue
    from builder.explore.release import read_brands
    from builder.explore.work_images import WorkImages
    from sqid_lib.store import EmbeddingStore

    store = EmbeddingStore.open(args.dataset, revision=args.revision, cache_dir=args.cache_dir)
    local = Path(args.dataset)
    return Catalogue(
        store,
        local.resolve().name if local.is_dir() else args.dataset,
        brands=read_brands(store, args.dataset, args.revision, args.cache_dir),
        images=WorkImages(args.images, store.products) if args.images else None,
        methods=args.methods,
        run_files=args.runs,
        encoder=args.encoder or known_encoder(store.model, args.dataset),
    )
