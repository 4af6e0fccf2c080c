"""Places: local, https in both GitHub layouts, the Hub; cached, retried, offline."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from file_server import FileServer
from loopback_hub import LoopbackHub
from tiny_esci import write_artifacts, write_esci

from sqid_lib import schemas, sources
from sqid_lib.errors import DiskError, DownloadError, LfsPointerError, MissingFileError, SourceError
from sqid_lib.sources.find import url_of

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def test_a_local_version_changes_with_the_file(esci: Path) -> None:
    (file,) = sources.find(esci, "examples")
    path = Path(file.url)
    assert path == esci / schemas.ESCI_EXAMPLES and file.local
    os.utime(path, ns=(1, 1))
    (touched,) = sources.find(esci, "examples")
    assert touched.version != file.version
    assert sources.fingerprint([touched]) != sources.fingerprint([file])
    assert sources.download(file) == file and file.path == file.url


def test_a_missing_file_or_directory_is_named(tmp_path: Path, esci: Path) -> None:
    with pytest.raises(MissingFileError, match=schemas.PRODUCT_FEATURES):
        sources.find(esci, "product_features")
    with pytest.raises(MissingFileError, match="There is no such directory"):
        sources.find(tmp_path / "nowhere", "examples")
    assert sources.find(esci, "product_status") == ()


def hub_layout(artifacts: Path, root: Path) -> Path:
    """As the published Hub dataset: everything parquet below data/."""
    import pyarrow.csv as pcsv
    import pyarrow.parquet as pq

    (root / "data").mkdir(parents=True)
    for name in schemas.CLASSIC_FILES:
        stem, _, kind = name.partition(".")
        table = pcsv.read_csv(artifacts / name) if kind == "csv" else pq.read_table(artifacts / name)
        pq.write_table(table, root / "data" / f"{stem}.parquet")
    return root


@pytest.mark.parametrize("table", ["product_urls", "product_features", "query_features", "supp_urls"])
def test_all_layouts_are_understood_over_https(tmp_path: Path, artifacts: Path, cache: str, table: str) -> None:
    hub_layout(artifacts, tmp_path / "hub")
    with FileServer(tmp_path) as server:
        (github,) = sources.find(f"{server.url}/artifacts", table, cache)
        (hub,) = sources.find(f"{server.url}/hub/", table, cache)
        assert github.url.startswith(f"{server.url}/artifacts/") and "/hub/data/" in hub.url
        path = sources.download(github, cache).path
        assert Path(path).read_bytes() == (artifacts / github.url.rpartition("/")[2]).read_bytes()


@pytest.mark.parametrize("validator", ["etag", "date", "nothing"])
def test_a_download_is_cached_until_the_file_changes(tmp_path: Path, cache: str, validator: str) -> None:
    (tmp_path / "www").mkdir()
    page = tmp_path / "www" / schemas.ESCI_SOURCES
    page.write_text("one")
    with FileServer(tmp_path / "www") as server:
        server.etags, server.dates = validator == "etag", validator == "date"

        def fetch() -> str:
            (file,) = sources.find(server.url, "sources", cache)
            return Path(sources.download(file, cache).path).read_text()

        assert fetch() == fetch() == "one"
        gets = [r for r in server.requests if r[0] == "GET"]
        assert len(gets) == (2 if validator == "nothing" else 1)
        page.write_text("three")
        os.utime(page, (1, 1))
        assert fetch() == "three"


CHUNK = 1024 * 1024  # what is written at a time
BIG = bytes(range(256)) * 96_000  # 24.6 MB
BIG_PATH = f"/{schemas.ESCI_PRODUCTS}"


@pytest.fixture
def big(tmp_path: Path) -> Iterator[FileServer]:
    (tmp_path / "www").mkdir()
    (tmp_path / "www" / schemas.ESCI_PRODUCTS).write_bytes(BIG)
    with FileServer(tmp_path / "www") as server:
        yield server


def ranges(server: FileServer) -> list[str | None]:
    return [asked for method, _, asked in server.requests if method == "GET"]


def test_a_download_that_breaks_off_goes_on_where_it_stopped(big: FileServer, cache: str) -> None:
    big.cuts[BIG_PATH] = [CHUNK + 300_000, CHUNK + 200_000]
    (file,) = sources.find(big.url, "products", cache)
    assert Path(sources.download(file, cache).path).read_bytes() == BIG
    assert ranges(big) == [None, f"bytes={CHUNK}-", f"bytes={2 * CHUNK}-"]


def test_a_later_process_goes_on_where_an_earlier_one_was_killed(big: FileServer, cache: str) -> None:
    code = "import sys; from sqid_lib import sources; c = sys.argv[2]; "
    code += "(f,) = sources.find(sys.argv[1], 'products', c); print(sources.download(f, c).path)"
    big.cuts[BIG_PATH] = [CHUNK + 300_000]
    with subprocess.Popen([sys.executable, "-c", code, big.url, cache]) as process:
        big.before[BIG_PATH] = lambda: big.before.update({BIG_PATH: process.kill})  # as it asks for the rest
    assert process.returncode == -signal.SIGKILL
    asked = len(ranges(big))
    path = subprocess.run([sys.executable, "-c", code, big.url, cache], capture_output=True, text=True, check=True)
    assert Path(path.stdout.strip()).read_bytes() == BIG
    assert ranges(big)[asked:] == [f"bytes={CHUNK}-"]


@pytest.mark.parametrize("kept", [1, 300_000, len(BIG), len(BIG) + 5])
@pytest.mark.parametrize("with_ranges", [True, False])
def test_whatever_part_is_there_the_whole_file_comes(big: FileServer, cache: str, kept: int, with_ranges: bool) -> None:
    big.ranges = with_ranges
    (file,) = sources.find(big.url, "products", cache)
    path = Path(sources.download(file, cache).path)
    path.unlink()
    Path(f"{path}.part").write_bytes((BIG + b"other")[:kept])
    assert sources.download(file, cache).path == str(path)
    assert path.read_bytes() == BIG


def test_a_file_that_changes_while_it_is_downloaded_is_not_kept(
    big: FileServer, cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (file,) = sources.find(big.url, "products", cache)
    big.cuts[BIG_PATH] = [CHUNK + 300_000]
    other = BIG[::-1]
    big.before[BIG_PATH] = lambda: big.before.update(
        {BIG_PATH: lambda: (big.root / schemas.ESCI_PRODUCTS).write_bytes(other)}
    )
    with pytest.raises(DownloadError, match="changed while"):
        sources.download(file, cache)
    (file,) = sources.find(big.url, "products", cache)
    assert Path(sources.download(file, cache).path).read_bytes() == other


def test_a_full_disk_is_told_at_once(big: FileServer, cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("sqid_lib.sources.http._append", full)
    (file,) = sources.find(big.url, "products", cache)
    with pytest.raises(DiskError, match="no space"):
        sources.download(file, cache)


def test_asked_to_download_again_it_does(big: FileServer, cache: str) -> None:
    (file,) = sources.find(big.url, "products", cache)
    first = sources.download(file, cache)
    assert sources.download(file, cache, force=True) == first
    assert ranges(big) == [None, None]


def test_a_server_that_stumbles_is_asked_again(tmp_path: Path, esci: Path, cache: str) -> None:
    path = f"/esci/{schemas.ESCI_SOURCES}"
    with FileServer(tmp_path) as server:
        server.broken[path] = 2
        (file,) = sources.find(f"{server.url}/esci", "sources", cache)
        server.broken[path] = 1
        assert Path(sources.download(file, cache).path).read_bytes() == (esci / schemas.ESCI_SOURCES).read_bytes()


@pytest.mark.parametrize(("status", "error"), [(403, "access refused"), (404, "missing"), (500, "HTTP 500")])
def test_a_server_that_refuses_is_told(
    tmp_path: Path, cache: str, status: int, error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    with FileServer(tmp_path) as server:
        server.status[f"/{schemas.ESCI_SOURCES}"] = status
        with pytest.raises(SourceError, match=error) as told:
            sources.find(server.url, "sources", cache)
    assert server.url in str(told.value)


def test_no_server_at_all(tmp_path: Path, cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    with FileServer(tmp_path) as server:
        url = server.url
    with pytest.raises(DownloadError, match="cannot be reached"):
        sources.find(url, "sources", cache)


def test_offline_mode_uses_what_was_loaded_before(
    tmp_path: Path, esci: Path, cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FileServer(tmp_path) as server:
        base = f"{server.url}/esci"
        (file,) = sources.find(base, "sources", cache)
        sources.download(file, cache)
        asked = len(server.requests)
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        assert sources.find(base, "sources", cache) == (file,)
        assert Path(sources.download(file, cache).path).exists()
        with pytest.raises(DownloadError, match="offline"):
            sources.find(base, "products", cache)
        assert len(server.requests) == asked


def test_offline_mode_holds_for_streams_too(
    tmp_path: Path, esci: Path, artifacts: Path, cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sqid

    with FileServer(tmp_path) as server:
        places: dict[str, Any] = {
            "esci": f"{server.url}/esci",
            "artifacts": f"{server.url}/artifacts",
            "cache_dir": cache,
        }
        whole = sqid.load("product_features", "test", **places).to_list()
        asked = len(server.requests)
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        assert list(sqid.load("product_features", "test", streaming=True, **places)) == whole
        assert len(server.requests) == asked


def test_github_serves_csv_from_its_raw_host_and_the_rest_from_media() -> None:
    media, raw = "https://media.githubusercontent.com/media/O/R/main/p", "https://raw.githubusercontent.com/O/R/main/p"
    assert url_of(media, "a.csv") == f"{raw}/a.csv"
    assert url_of(media, "a.parquet") == f"{media}/a.parquet"
    assert url_of(raw, "a.parquet") == f"{raw}/a.parquet"


HUB_LOAD = """
import json, sys, warnings
import sqid
esci, artifacts, cache = sys.argv[1:]
out = {}
for config in ("product_features", "query_features"):
    rows = next(iter(sqid.load(config, esci=esci, artifacts=artifacts, cache_dir=cache).values()))
    stream = next(iter(sqid.load(config, esci=esci, artifacts=artifacts, cache_dir=cache, streaming=True).values()))
    assert rows.to_list() == list(stream), config
    out[config] = rows.to_list()
print(json.dumps(out))
"""


def test_the_hub_with_the_genuine_clients_at_a_revision_and_offline(tmp_path: Path) -> None:
    esci = write_esci(tmp_path / "esci")
    layout = hub_layout(write_artifacts(tmp_path / "artifacts"), tmp_path / "layout")
    with LoopbackHub(tmp_path / "hub") as hub:
        hub.add_repo("ORG/published", layout)
        hub.add_repo("ORG/esci", esci)
        first = hub.head("ORG/published")
        place = f"hf://datasets/ORG/published@{first}"
        arguments = ("hf://datasets/ORG/esci", place, str(tmp_path / "cache"))
        online = json.loads(hub.run(HUB_LOAD, *arguments).splitlines()[-1])
        assert len(online["product_features"]) == 36 and len(online["product_features"][0]["clip_text_features"]) == 6
        hub.put("ORG/published", {"data/product_image_urls.parquet": None})
        offline = HUB_LOAD.replace("streaming=True", "streaming=False")
        asked = len(hub.requests)
        code = "import os; os.environ['HF_HUB_OFFLINE'] = '1'\n" + offline
        assert json.loads(hub.run(code, *arguments).splitlines()[-1]) == online
        assert len(hub.requests) == asked
        newest = HUB_LOAD.replace('("product_features", "query_features")', '("urls",)')
        with pytest.raises(AssertionError, match="product urls file is missing"):
            hub.run(newest, arguments[0], "hf://datasets/ORG/published", arguments[2])


def test_raw_github_gives_pointers_and_the_remedy(tmp_path: Path, esci: Path, cache: str) -> None:
    import sqid

    (esci / schemas.ESCI_EXAMPLES).write_bytes(POINTER)
    with FileServer(tmp_path) as server, pytest.raises(LfsPointerError, match=r"media\.githubusercontent\.com"):
        sqid.load("judgments", esci=f"{server.url}/esci", cache_dir=cache)
