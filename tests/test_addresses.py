"""One table of addresses for every entry point: sqid.load, EmbeddingStore, stream_pairs, `sqid evaluate`, recipes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from file_server import FileServer
from loopback_hub import LoopbackHub
from tiny_esci import write_esci
from tiny_release import write_release

pytest.importorskip("pydantic")  # recipes

# Each place holds a release of another width, so that the width tells which one was read.
WIDTHS = {
    "main": 4,
    "v1": 6,
    "refs/pr/1": 8,
    "refs/convert/parquet": 10,
    "sub": 12,
    "folder": 14,
    "http": 16,
    "org": 18,
}
CASES = {
    "ORG/sqid": "main",
    "ORG/sqid/": "main",
    "ORG/sqid@v1": "v1",
    "ORG/sqid@refs/pr/1": "refs/pr/1",
    "hf://datasets/ORG/sqid": "main",
    "hf://datasets/ORG/sqid/": "main",
    "hf://datasets/ORG/sqid@v1": "v1",
    "hf://datasets/ORG/sqid@refs/pr/1": "refs/pr/1",
    "hf://datasets/ORG/sqid@refs%2Fpr%2F1": "refs/pr/1",
    "hf://datasets/ORG/sqid@refs/convert/parquet/": "refs/convert/parquet",
    "hf://datasets/ORG/sqid/sub/folder": "sub",
    "hf://datasets/ORG/sqid@main/sub/folder/": "sub",
    "folder": "folder",
    "./folder/": "folder",
    "LOCAL/sqid": "org",  # a folder of that name wins over the dataset on the Hub
    "HTTP/release": "http",
    "HTTP/release/": "http",
}
CODE = """
import contextlib, io, json, sys, warnings
from pathlib import Path
import sqid
from builder import recipe
from builder.cli import main
from builder.release.artifacts import artifact_files
from sqid_lib import EmbeddingStore, stream_pairs
from sqid_lib.sources import download
from sqid_lib.tables.vector_columns import vector_width

def load(address):
    row = sqid.load("product_features", "test", esci="esci", artifacts=address, cache_dir="cache/load")[0]
    return len(row["clip_text_features"])

def opened(address):
    return EmbeddingStore.open(address, cache_dir="cache/store", progress=False).width

def streamed(address):
    return next(iter(stream_pairs(address, format="numpy"))).text_features.shape[1]

def evaluated(address):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = main(["evaluate", address, "--cache-dir", "cache/store", "--methods", "clip_text", "--json"])
    return json.loads(printed.getvalue())[0]["queries"] if code == 0 else f"exit {code}"

def in_recipe(address):
    text = 'name = "x"\\nversion = "1"\\n[esci]\\npath = "esci"\\n[artifacts]\\npath = "ADDRESS"\\n'
    Path("r.toml").write_text(text.replace("ADDRESS", address))
    files = artifact_files(recipe.load("r.toml"))["product_features"]
    return vector_width([download(file) for file in files])

warnings.simplefilter("ignore")
entries = {"load": load, "open": opened, "stream": streamed, "evaluate": evaluated, "recipe": in_recipe}
found = {}
for address in json.loads(sys.argv[1]):
    for name, entry in entries.items():
        try:
            found[f"{name} {address}"] = entry(address)
        except Exception as error:
            found[f"{name} {address}"] = f"{type(error).__name__}: {error}"
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("releases")
    for n, (name, width) in enumerate(WIDTHS.items()):
        write_release(root / name.replace("/", "-"), width=width, products=20, queries=10 + n, per_query=3)
    return root


def test_every_entry_point_reads_every_address_alike(
    releases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_esci(tmp_path / "esci")
    (tmp_path / "folder").symlink_to(releases / "folder")
    (tmp_path / "LOCAL").mkdir()
    (tmp_path / "LOCAL" / "sqid").symlink_to(releases / "org")
    with LoopbackHub(tmp_path / "hub") as hub, FileServer(releases) as server:
        hub.add_repo("ORG/sqid", releases / "v1", tag="v1")
        for ref in ("refs/pr/1", "refs/convert/parquet"):
            hub.repos["ORG/sqid"].branches[ref] = hub.add_repo("ORG/sqid", releases / ref.replace("/", "-"))
        hub.add_repo("ORG/sqid", releases / "main")
        names = [p.relative_to(releases / "sub").as_posix() for p in (releases / "sub").rglob("*") if p.is_file()]
        hub.put("ORG/sqid", {f"sub/folder/{name}": (releases / "sub" / name).read_bytes() for name in names})
        hub.add_repo("LOCAL/sqid", releases / "main")
        (releases / "release").symlink_to(releases / "http")
        addresses = {case.replace("HTTP", server.url): place for case, place in CASES.items()}
        found: dict[str, Any] = json.loads(hub.run(CODE, json.dumps(list(addresses))).splitlines()[-1])
    queries = {name: 10 + n for n, name in enumerate(WIDTHS)}
    expected = {
        f"{entry} {address}": queries[place] if entry == "evaluate" else WIDTHS[place]
        for address, place in addresses.items()
        for entry in ("load", "open", "stream", "evaluate", "recipe")
    }
    assert found == expected


BAD = ["hf://ORG/sqid", "hf://datasets/ORG/sqid@nowhere", "NO/such", "nowhere", "HTTP/nowhere", "ftp://host/x"]


def test_every_entry_point_refuses_alike(releases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_esci(tmp_path / "esci")
    with LoopbackHub(tmp_path / "hub") as hub, FileServer(releases) as server:
        hub.add_repo("ORG/sqid", releases / "main")
        addresses = [case.replace("HTTP", server.url) for case in BAD]
        found = json.loads(hub.run(CODE, json.dumps(addresses)).splitlines()[-1])
    for address in addresses:
        for entry in ("load", "open", "stream", "evaluate", "recipe"):
            result = found[f"{entry} {address}"]
            error = "exit 1" if entry == "evaluate" else ("MissingFileError", "SourceError")
            assert str(result).startswith(error), (entry, address, result)
    assert "no such directory (NO/such), and no such dataset" in found["open NO/such"]
