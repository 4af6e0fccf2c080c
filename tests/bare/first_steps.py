"""The README's first steps with an installed wheel, from a directory of their own; `make bare` runs it, not pytest.

    python tests/bare/first_steps.py build WORK     # a wheel with the extra build: ends with a release in WORK/sqid
    python tests/bare/first_steps.py load RELEASE   # the wheel alone, on a release

Remote files come from a server on 127.0.0.1. Beside the standard library it uses what the wheel itself depends on, and
the made-up files of tests/support.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

EXTRAS_ONLY = ("PIL", "ir_measures", "matplotlib", "pycurl", "torch", "transformers")
METHODS = ["random", "clip_text", "clip_image", "fusion"]


def command(*arguments: str | Path) -> str:
    """Run `sqid` as installed and return its stdout; AssertionError with its stderr if it fails."""
    program = Path(sys.executable).with_name("sqid")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"sqid {arguments[0]} exits {done.returncode}:\n{done.stdout}{done.stderr}"
    return done.stdout


def the_wheel_is_what_is_imported(extras: bool) -> None:
    for name in ("sqid", "sqid_lib", "builder"):
        found = importlib.util.find_spec(name)
        assert found and found.origin and found.origin.startswith(sys.prefix), f"{name} comes from {found}"
    present = [name for name in EXTRAS_ONLY if importlib.util.find_spec(name)]
    assert extras or not present, f"not the wheel alone: {present}"


def rows_are_loaded(config: str, esci: str, artifacts: str) -> None:
    """Plain and streamed rows are those that went into the files."""
    import numpy as np
    import tiny_esci

    import sqid

    plain = sqid.load(config, split="test", esci=esci, artifacts=artifacts).to_list()
    stream = sqid.load(config, split="test", esci=esci, artifacts=artifacts, streaming=True)
    assert list(stream) == plain
    assert [row["product_id"] for row in plain] == sorted(tiny_esci.MAIN_IDS)
    urls = tiny_esci.image_urls()
    assert {row["product_id"]: row["image_url"] or "" for row in plain} == {
        i: urls.get(i, "") for i in sorted(urls)
    } | {tiny_esci.MAIN_IDS[3]: ""}
    if config == "product_features":
        row = next(row for row in plain if row["product_id"] == "nan")
        assert np.isfinite(row["clip_image_features"]).all() and row["has_image"]
        assert [row["has_image"] for row in plain].count(False) == len(tiny_esci.no_image() | {tiny_esci.MAIN_IDS[3]})


def a_release_is_opened_and_ranked(release: Path) -> None:
    from sqid_lib import EmbeddingStore, evaluation

    store = EmbeddingStore.open(str(release))
    batch = next(iter(store.pairs(batch_size=4, shuffle=True, seed=0)))
    assert batch.image_features.shape == (4, store.image_features.shape[1])
    table = str(evaluation.compare(store, methods=METHODS))
    assert all(method in table for method in METHODS), table


def the_version_is_printed() -> None:
    from importlib.metadata import version

    assert version("sqid") in command("--version")


def a_release_is_evaluated(release: Path) -> None:
    table = json.loads(command("evaluate", release, "--methods", *METHODS, "--json"))
    assert [row["method"] for row in table] == METHODS and all(0 < row["ndcg"] <= 1 for row in table)


def a_release_is_valid(release: Path) -> None:
    command("validate", release)


def urls_are_resolved_from_tables(esci: str, tables: Path) -> None:
    import pyarrow.parquet as pq
    import tiny_esci

    text = f'name = "tiny"\nversion = "1.0.0"\n[esci]\npath = "{esci}"\n[resolve]\ntables = ["{tables}"]\n'
    Path("resolve.toml").write_text(text, encoding="utf-8")
    work = Path(tempfile.mkdtemp(dir="."))
    for stage in ("sample", "resolve"):
        command("build", "resolve.toml", "--work", work, "--only", stage)
    found = pq.read_table(work / "resolve" / "urls.parquet").to_pylist()
    urls = {row["product_id"]: row["image_url"] or "" for row in found if row["part"] == "main"}
    assert sorted(urls) == sorted(tiny_esci.MAIN_IDS)
    assert urls[tiny_esci.MAIN_IDS[7]] == tiny_esci.image_urls()[tiny_esci.MAIN_IDS[7]]


def a_release_is_built_from_existing_files(esci: str, artifacts: str, work: Path) -> None:
    head = f'name = "tiny"\nversion = "1.0.0"\n[esci]\npath = "{esci}"\n'
    text = f'{head}[artifacts]\npath = "{artifacts}"\npartial = true\n'
    Path("artifacts.toml").write_text(text, encoding="utf-8")
    assert command("build", "artifacts.toml", "--work", work).strip() == str(work / "sqid")


def a_catalogue_is_built_and_searched(work: Path) -> None:
    """Two tables and local images, with the demo's model, which is in the wheel."""
    from PIL import Image

    import builder.demo

    Path("photos").mkdir()
    for name, color in (("a", "red"), ("b", "blue")):
        Image.new("RGB", (80, 80), color).save(f"photos/{name}.png")
    Path("shop.csv").write_text("sku,title,image\nA,red mug,a.png\nB,blue mug,b.png\n", encoding="utf-8")
    Path("labels.csv").write_text("query,sku,label\nred mug,A,1\nred mug,B,0.2\n", encoding="utf-8")
    model = str(builder.demo.TINY_CLIP)
    command("init", "shop.csv", "labels.csv", "--images", "photos", "--out", "shop.toml", "--model", model)
    assert command("build", "shop.toml", "--work", work).strip() == str(work / "sqid")
    assert (work / "report.html").stat().st_size > 10_000
    found = json.loads(command("search", work / "sqid", "red mug", "--top", "1", "--json"))
    assert [row["product_id"] for row in found] == ["A"], found
    assert command("report", work).strip() == str(work / "report.html")
    assert json.loads(command("evaluate", work / "sqid", "--methods", "clip_text", "--json"))[0]["ndcg"] > 0


def steps(mode: str, given: Path, local: Path, remote: str) -> Iterator[tuple[str, Callable[[], None]]]:
    esci, artifacts = f"{local}/esci", f"{local}/artifacts"
    yield "the wheel is what is imported", partial(the_wheel_is_what_is_imported, mode == "build")
    if mode == "build":
        tables = local / "artifacts" / "product_image_urls.csv"
        build = a_release_is_built_from_existing_files
        yield "a release is built from local files", partial(build, esci, artifacts, given)
        yield "URLs are resolved, local ESCI", partial(urls_are_resolved_from_tables, esci, tables)
        yield "URLs are resolved, ESCI over http", partial(urls_are_resolved_from_tables, f"{remote}/esci", tables)
        yield "a catalogue is built and searched", partial(a_catalogue_is_built_and_searched, given.parent / "shop")
        return
    for config in ("product_features", "urls"):
        yield f"{config}, local files", partial(rows_are_loaded, config, esci, artifacts)
        yield f"{config}, over http", partial(rows_are_loaded, config, f"{remote}/esci", f"{remote}/artifacts")
    yield "a release is opened and ranked", partial(a_release_is_opened_and_ranked, given)
    yield "sqid --version", the_version_is_printed
    yield "sqid evaluate", partial(a_release_is_evaluated, given)
    yield "sqid validate", partial(a_release_is_valid, given)


def main(mode: str, given: str) -> int:
    target = Path(given).resolve()
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"HF_HOME": f"{folder}/hf", "XDG_CACHE_HOME": f"{folder}/cache"}
        os.chdir(folder)
        import tiny_esci  # after HF_HOME is set: it imports what reads it
        from file_server import FileServer

        tiny_esci.write_esci(Path(folder) / "served" / "esci")
        tiny_esci.write_artifacts(Path(folder) / "served" / "artifacts")
        with FileServer(Path(folder) / "served") as server:
            results = [passes(name, step) for name, step in steps(mode, target, server.root, server.url)]
    print(f"{results.count(True)} passed, {results.count(False)} failed")
    return int(not all(results))


def passes(name: str, step: Callable[[], Any]) -> bool:
    try:
        step()
    except Exception:
        print(f"FAILED {name}\n{traceback.format_exc()}", flush=True)
        return False
    print(f"ok     {name}", flush=True)
    return True


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in ("build", "load"):
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
