"""python -m builder.demo --work DIR: from a made-up shop to a validated release, loaded back and ranked."""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from builder import demo, pipeline, recipe
from sqid_lib import EmbeddingStore, evaluation, schemas
from sqid_lib.errors import SqidError

METHODS = ("random", "clip_text", "clip_image", "fusion")


def run(work: Path, seed: int = 0) -> Path:
    """Build, validate, load and rank the demo under `work`; results go to stdout, everything else to stderr.

    Raises:
        SqidError: whatever a stage finds wrong.
    """
    began = time.monotonic()
    _report(f"a made-up shop in {work / 'shop'}, its images served from 127.0.0.1")
    with demo.prepare(work, seed) as overrides:
        release = pipeline.build(recipe.load(demo.RECIPE, overrides), work, say=_report)
    _print(f"{release} is built and valid. Loaded with datasets.load_dataset:\n")
    loaded = _load(release, work / "cache")
    for config, dataset in loaded.items():
        _print(f"  {config:17} {dataset.num_rows:6,} rows   {schemas.DECLARED[config].summary}")
    statuses = Counter(loaded[schemas.URLS]["image_status"]).most_common()
    _print("\nImages: " + " · ".join(f"{count} {status}" for status, count in statuses))
    store = EmbeddingStore.open(release, cache_dir=work / "cache" / "store", progress=False)
    _print(f"\nRankings of {len(store.queries)} queries that the tiny CLIP was not trained on:\n")
    _print(str(evaluation.compare(store, methods=METHODS)))
    _print(_places(work, release))
    _report(f"done in {time.monotonic() - began:.0f} s")
    return release


def _load(release: Path, cache: Path) -> dict[str, Any]:
    """Every config of the release as a `datasets.Dataset`."""
    import datasets

    datasets.disable_progress_bars()
    splits = {config: schemas.SUPP_SPLIT if config == schemas.SUPP else "test" for config in schemas.CONFIGS}
    return {
        config: datasets.load_dataset(str(release), config, split=split, cache_dir=str(cache))
        for config, split in splits.items()
    }


def _places(work: Path, release: Path) -> str:
    sqid, quoted = _command(), shlex.quote(str(release))
    return f"""
Where everything is:
  {release}
      the release: what `sqid push` would publish. Its card is README.md.
  {work / "shop"}
      the made-up shop: official ESCI files, tables of image URLs, drawn images
  {demo.TINY_CLIP}
      the tiny CLIP, a toy trained on such drawings by builder/demo/train_tiny_clip.py
Continue with:
  {sqid} evaluate {quoted} --methods clip_text clip_image rrf
  {sqid} validate {quoted}"""


def _command() -> str:
    """How a shell in this directory runs the `sqid` of this environment."""
    scripts = Path(sys.executable).parent
    own, found = shutil.which("sqid", path=str(scripts)), shutil.which("sqid")
    if own is None:
        return f"{shlex.quote(_relative(Path(sys.executable)))} -m builder"
    if found is not None and Path(found).samefile(own):
        return "sqid"
    return shlex.quote(_relative(Path(own)))


def _relative(path: Path) -> str:
    """The path as seen from this directory, if it is below it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _report(text: str) -> None:
    sys.stderr.write(f"· {text}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of the demo; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m builder.demo", description=__doc__, epilog="example: python -m builder.demo --work demo-work"
    )
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="directory for everything that is made")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the made-up shop (default 0)")
    args = parser.parse_args(argv)
    try:
        run(args.work, args.seed)
    except (SqidError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("stopped; finished work is kept, run it again to continue\n")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
