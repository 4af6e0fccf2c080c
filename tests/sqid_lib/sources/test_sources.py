"""Sources: local directories, https in both GitHub layouts, the Hub; cached, retried, offline."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from file_server import FileServer
from loopback_answers import Answers
from loopback_http import error_answer
from loopback_hub import WRITE_TOKEN, LoopbackHub
from tiny_esci import write_artifacts, write_esci
from tiny_release import write_release

from sqid_lib import schemas, sources
from sqid_lib.errors import CorruptFileError, DiskError, DownloadError, LfsPointerError, MissingFileError, SourceError
from sqid_lib.sources import retry
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
    with pytest.raises(MissingFileError, match="no such directory"):
        sources.find(tmp_path / "nowhere", "examples")
    with pytest.raises(MissingFileError, match="this is a file, not a directory"):
        sources.find(esci / schemas.ESCI_SOURCES, "examples")
    assert sources.find(esci, "product_status") == ()


@pytest.mark.parametrize("name", ["product_image_urls.tsv", "product_image_urls.csv.gz", "product_image_urls.parquet"])
def test_a_table_of_urls_may_have_another_format(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    (tmp_path / f"._{name}").touch()
    (file,) = sources.find(tmp_path, "product_urls")
    assert Path(file.url).name == name
    (tmp_path / schemas.PRODUCT_URLS).touch()
    (file,) = sources.find(tmp_path, "product_urls")
    assert Path(file.url).name == schemas.PRODUCT_URLS  # the official name comes first


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
def test_all_layouts_are_found_over_https(tmp_path: Path, artifacts: Path, cache: str, table: str) -> None:
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


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that would be waited between attempts, which here follow one another at once."""
    found: list[float] = []
    monkeypatch.setattr("time.sleep", found.append)
    return found


@pytest.mark.usefixtures("waits")
def test_a_download_that_breaks_off_continues_where_it_stopped(big: FileServer, cache: str) -> None:
    big.cuts[BIG_PATH] = [CHUNK + 300_000, CHUNK + 200_000]
    (file,) = sources.find(big.url, "products", cache)
    assert Path(sources.download(file, cache).path).read_bytes() == BIG
    assert ranges(big) == [None, f"bytes={CHUNK}-", f"bytes={2 * CHUNK}-"]


def test_a_later_process_continues_where_an_earlier_one_was_killed(big: FileServer, cache: str) -> None:
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
def test_the_whole_file_arrives_whatever_part_is_there(
    big: FileServer, cache: str, kept: int, with_ranges: bool
) -> None:
    big.ranges = with_ranges
    (file,) = sources.find(big.url, "products", cache)
    path = Path(sources.download(file, cache).path)
    path.unlink()
    Path(f"{path}.part").write_bytes((BIG + b"other")[:kept])
    assert sources.download(file, cache).path == str(path)
    assert path.read_bytes() == BIG


@pytest.mark.usefixtures("waits")
def test_a_file_that_changes_while_it_is_downloaded_is_not_kept(big: FileServer, cache: str) -> None:
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


def test_a_file_that_changes_while_its_ranges_are_read_is_not_mixed(big: FileServer) -> None:
    with sources.open_ranges(big.url + BIG_PATH) as stream:
        assert stream.read(100) == BIG[:100]
        (big.root / schemas.ESCI_PRODUCTS).write_bytes(BIG[::-1])
        stream.seek(10 * CHUNK)
        with pytest.raises(DownloadError, match="changed while it was read"):
            stream.read(100)


def test_a_full_disk_is_reported_at_once(big: FileServer, cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_server_that_fails_is_asked_again(tmp_path: Path, esci: Path, cache: str, waits: list[float]) -> None:
    path = f"/esci/{schemas.ESCI_SOURCES}"
    with FileServer(tmp_path) as server:
        server.broken[path] = 2
        (file,) = sources.find(f"{server.url}/esci", "sources", cache)
        server.broken[path] = 1
        assert Path(sources.download(file, cache).path).read_bytes() == (esci / schemas.ESCI_SOURCES).read_bytes()
    assert waits == [0.5, 1.0, 0.5]


@pytest.mark.usefixtures("waits")
@pytest.mark.parametrize(
    ("status", "error"), [(403, "access refused.*who may read it"), (404, "missing"), (500, "HTTP 500")]
)
def test_a_server_that_refuses_is_reported(tmp_path: Path, cache: str, status: int, error: str) -> None:
    with FileServer(tmp_path) as server:
        server.status[f"/{schemas.ESCI_SOURCES}"] = status
        with pytest.raises(SourceError, match=error) as raised:
            sources.find(server.url, "sources", cache)
    assert server.url in str(raised.value)


def test_one_file_by_its_address(tmp_path: Path, esci: Path) -> None:
    path = esci / schemas.ESCI_SOURCES
    assert sources.find_file(path) == sources.find(esci, "sources")[0]
    with FileServer(esci) as server:
        url = f"{server.url}/{schemas.ESCI_SOURCES}"
        assert sources.find_file(url) == sources.find_file(url) and sources.find_file(url).url == url
        for gone in (f"{server.url}/gone.csv", str(tmp_path / "gone.csv"), "ORG/gone.csv"):
            with pytest.raises(MissingFileError, match=r"gone\.csv: no such file"):
                sources.find_file(gone)


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.csv")
    with pytest.raises(SourceError, match=r"a\.csv: a pipe or a device, not a file"):
        sources.find_file(tmp_path / "a.csv")


@pytest.mark.usefixtures("waits")
def test_no_server_at_all(tmp_path: Path, cache: str) -> None:
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


def test_one_file_of_the_hub_by_its_address(tmp_path: Path) -> None:
    layout = hub_layout(write_artifacts(tmp_path / "artifacts"), tmp_path / "layout")
    code = (
        "import sys; from sqid_lib import sources; from sqid_lib.errors import MissingFileError\n"
        "file = sources.download(sources.find_file(sys.argv[1] + '/data/query_features.parquet'))\n"
        "print(open(file.path, 'rb').read(4).decode())\n"
        "try: sources.find_file(sys.argv[1] + '/data/gone.csv')\n"
        "except MissingFileError as error: print(error)"
    )
    with LoopbackHub(tmp_path / "hub") as hub:
        hub.add_repo("ORG/published", layout)
        found = hub.run(code, "hf://datasets/ORG/published").splitlines()
    assert found[0] == "PAR1" and "hf://datasets/ORG/published/data/gone.csv: no such file" in found[1]


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
        hub.put("ORG/published", {"data/query_features.parquet": None})  # main moves on, the commit stays
        newest = HUB_LOAD.replace('("product_features", "query_features")', '("query_features",)')
        with pytest.raises(AssertionError, match="query features file is missing"):
            hub.run(newest, arguments[0], "hf://datasets/ORG/published", arguments[2])


def test_raw_github_gives_pointers_and_the_remedy(tmp_path: Path, esci: Path, cache: str) -> None:
    import sqid

    (esci / schemas.ESCI_EXAMPLES).write_bytes(POINTER)
    with FileServer(tmp_path) as server, pytest.raises(LfsPointerError, match=r"media\.githubusercontent\.com"):
        sqid.load("judgments", esci=f"{server.url}/esci", cache_dir=cache)


HUB_CALLS = """
import sys, time
time.sleep = lambda seconds: None
from pathlib import Path
from sqid_lib.sources import find, listing, parse_address, snapshot
address, cache = parse_address(sys.argv[1]), Path(sys.argv[2])
for call in (
    lambda: sorted(listing(address)),
    lambda: sorted(p.name for p in snapshot(address, ["*.csv"], cache / "hub").iterdir()),
    lambda: [Path(f.url).name for f in find(address, "sources", cache)],
):
    try:
        print(call())
    except Exception as error:
        print(type(error).__name__, error)
"""
SOURCES_ONLY = [f"['{schemas.ESCI_SOURCES}']"] * 3


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LoopbackHub]:
    with LoopbackHub(tmp_path / "hub") as hub:
        hub.add_repo("ORG/d")
        hub.put("ORG/d", {schemas.ESCI_SOURCES: b"query_id,source\n1,other\n", "._x.csv": b"junk"})
        hub.put("ORG/d", {"._x.csv": None})
        yield hub


@pytest.mark.parametrize(
    ("endpoint", "kind"),
    [
        ("tree", 503),
        *(("revision", kind) for kind in (429, "cut")),
        *(pytest.param("revision", kind, marks=pytest.mark.slow) for kind in (500, 502, 503, 504)),
    ],
)
def test_a_hub_that_fails_once_is_asked_again(hub: LoopbackHub, tmp_path: Path, endpoint: str, kind: int | str) -> None:
    hub.fail(endpoint, kind)
    assert hub.run(HUB_CALLS, "ORG/d", str(tmp_path / "cache")).splitlines() == SOURCES_ONLY


@pytest.mark.parametrize("kind", [503, *(pytest.param(kind, marks=pytest.mark.slow) for kind in (500, 429))])
def test_a_hub_in_trouble_is_reported_as_that(hub: LoopbackHub, tmp_path: Path, kind: int) -> None:
    hub.fail("revision", kind, times=10_000)
    lines = hub.run(HUB_CALLS, "ORG/d", str(tmp_path / "cache")).splitlines()
    assert len(lines) == 3
    for line in lines:
        assert line.startswith(f"DownloadError hf://datasets/ORG/d: cannot be reached (HTTP {kind})")
        assert "There is no directory ORG/d, so the Hub was asked." in line


def test_no_network_and_offline_with_an_empty_cache_are_reported_as_that(hub: LoopbackHub, tmp_path: Path) -> None:
    offline = "import os; os.environ['HF_HUB_OFFLINE'] = '1'\n" + HUB_CALLS
    for line in hub.run(offline, "ORG/d", str(tmp_path / "cache")).splitlines():
        assert line.startswith("DownloadError hf://datasets/ORG/d: not ") and "offline mode is on" in line
    hub.endpoint = "http://127.0.0.1:9"  # the port for what is thrown away: nobody listens
    for line in hub.run(HUB_CALLS, "ORG/d", str(tmp_path / "cache")).splitlines():
        assert line.startswith("DownloadError hf://datasets/ORG/d: cannot be reached (Connect"), line
    lines = hub.run(HUB_CALLS, "hf://datasets/ORG/d", str(tmp_path / "cache")).splitlines()
    assert len(lines) == 3 and "no directory" not in "".join(lines)


def test_a_dataset_that_is_not_there_is_no_directory_either(hub: LoopbackHub, tmp_path: Path) -> None:
    lines = hub.run(HUB_CALLS, "ORG/other", str(tmp_path / "cache")).splitlines()
    assert len(lines) == 3
    assert all("no such directory (ORG/other), and no such dataset or revision on the Hub" in line for line in lines)


HUB_FILE = """
import sys
from sqid_lib.sources import download, find
(file,) = find(sys.argv[1], sys.argv[2], sys.argv[3])
print(download(file, sys.argv[3]).path)
"""


@pytest.mark.parametrize(
    "name", [pytest.param(schemas.ESCI_SOURCES, marks=pytest.mark.slow), schemas.ESCI_EXAMPLES]
)  # the second is in Git LFS
def test_a_damaged_file_in_the_hubs_cache_is_downloaded_again(hub: LoopbackHub, tmp_path: Path, name: str) -> None:
    data = b"query_id,source\n1,other\n"
    hub.put("ORG/d", {name: data})
    table = "sources" if name == schemas.ESCI_SOURCES else "examples"
    arguments = ("ORG/d", table, str(tmp_path / "cache"))
    path = Path(hub.run(HUB_FILE, *arguments).strip())
    assert path.read_bytes() == data
    asked = len(hub.requests)
    assert Path(hub.run(HUB_FILE, *arguments).strip()) == path
    per_run = len(hub.requests) - asked
    path.resolve().write_bytes(data[:-3] + b"xxx")
    offline = "import os; os.environ['HF_HUB_OFFLINE'] = '1'\n" + HUB_FILE
    with pytest.raises(AssertionError, match="file in the Hub's cache is damaged"):
        hub.run(offline, *arguments)
    asked = len(hub.requests)
    assert Path(hub.run(HUB_FILE, *arguments).strip()).read_bytes() == data
    assert len(hub.requests) > asked + per_run  # downloaded again
    assert Path(hub.run(HUB_FILE, *arguments).strip()).read_bytes() == data


SECRET = "s3cretPassw0rd"


def test_passwords_and_signatures_of_urls_stay_out_of_messages_and_files(
    tmp_path: Path, esci: Path, artifacts: Path, cache: str, caplog: pytest.LogCaptureFixture
) -> None:
    import sqid

    urls = (artifacts / schemas.PRODUCT_URLS).read_text() + "Z1,http://z\n"
    (artifacts / schemas.PRODUCT_URLS).write_text(urls.replace(",", " ,"))
    with FileServer(tmp_path) as server, caplog.at_level(logging.DEBUG, logger="sqid_lib"):
        base = server.url.replace("://", f"://user:{SECRET}@")
        places = {"esci": f"{base}/esci?sig={SECRET}", "artifacts": f"{base}/artifacts?X-Amz-Signature={SECRET}"}
        for streaming in (False, True):
            with pytest.warns(UserWarning, match="1 rows are of no product") as warned:
                options: dict[str, Any] = {**places, "cache_dir": cache, "streaming": streaming}
                rows = list(sqid.load("product_features", "test", **options))
            assert len(rows) == 36 and SECRET not in "".join(str(w.message) for w in warned)
        sqid.Sqid(config_name="judgments", cache_dir=cache, esci=f"{base}/esci").download_and_prepare()
        (esci / schemas.ESCI_EXAMPLES).unlink()
        server.status[f"/esci/{schemas.ESCI_SOURCES}"] = 403
        for table in ("examples", "sources"):
            with pytest.raises(SourceError) as raised:
                sources.find(places["esci"], table, cache)
            assert SECRET not in "".join(traceback.format_exception(raised.value))
    assert "spaces around" in caplog.text and SECRET not in caplog.text
    written = list(Path(cache).rglob("*"))
    assert len(written) > 10
    for path in written:
        assert SECRET not in str(path)
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path


def test_a_cause_with_a_secret_becomes_one_line_without_it() -> None:
    def call() -> None:
        try:
            raise ValueError(f"Authorization: Bearer hf_{'x' * 30}")
        except ValueError as error:
            raise ConnectionError("the Hub echoed the request") from error

    with pytest.raises(DownloadError) as raised:
        retry.retrying(call, lambda error: retry.explain(error, "https://host/x"), waits=())
    text = "".join(traceback.format_exception(raised.value))
    assert "hf_xxxx" not in text and "ConnectionError: the Hub echoed the request" in text


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/home/x/.cache"), "cannot be written: Permission denied"),
        (OSError(errno.EROFS, "Read-only file system", "/home/x"), "cannot be written: Read-only file system"),
        (OSError(errno.ENOSPC, "No space left on device"), "no space in the cache"),
    ],
)
def test_a_cache_that_cannot_be_written_names_the_settings_that_move_it(error: OSError, said: str) -> None:
    found = retry.explain(error, "https://host/x")
    assert isinstance(found.error, DiskError) and not found.again
    assert said in str(found.error)
    assert all(name in str(found.error) for name in ("cache_dir", "HF_HOME", "HF_DATASETS_CACHE", "HF_HUB_CACHE"))


def test_a_refused_connection_is_no_fault_of_the_disk() -> None:
    found = retry.explain(PermissionError(errno.EACCES, "Permission denied"), "https://host/x")
    assert isinstance(found.error, DownloadError) and found.again


def test_a_cache_in_a_place_that_is_a_file(big: FileServer, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (file,) = sources.find(big.url, "products", tmp_path / "file")
    with pytest.raises(DiskError, match="HF_HOME"):
        sources.download(file, tmp_path / "file")


@pytest.mark.parametrize("bit", [0, 8_000_000])
def test_a_damaged_download_in_the_cache_is_made_again(
    big: FileServer, cache: str, bit: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (file,) = sources.find(big.url, "products", cache)
    path = Path(sources.download(file, cache).path)
    data = bytearray(BIG)
    data[bit // 8] ^= 1
    path.write_bytes(data)
    with monkeypatch.context() as context:
        context.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        with pytest.raises(CorruptFileError, match="the download in the cache is damaged"):
            sources.download(file, cache)
    caplog.clear()
    assert sources.download(file, cache).path == str(path)
    assert path.read_bytes() == BIG
    assert sources.download(file, cache).path == str(path)
    (message,) = (record.getMessage() for record in caplog.records)
    assert message == f"{path}: the download in the cache is damaged; it is made again"


def test_a_damaged_note_of_what_was_found_is_reported(tmp_path: Path, esci: Path, cache: str) -> None:
    with FileServer(tmp_path) as server:
        base = f"{server.url}/esci"
        (file,) = sources.find(base, "sources", cache)
        (note,) = (Path(cache) / "sqid-sources").glob("*.json")
        whole = note.read_bytes()
        note.write_bytes(whole.replace(b"sources", b"sourcex"))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
            with pytest.raises(DownloadError, match="not loaded before, and offline mode is on"):
                sources.find(base, "sources", cache)
        assert sources.find(base, "sources", cache) == (file,)
        assert note.read_bytes() == whole


SNAPSHOT = """
import sys
from pathlib import Path
from sqid_lib.sources import parse_address, snapshot
print(snapshot(parse_address(sys.argv[1]), ["*.csv", "*.parquet"], Path(sys.argv[2])))
"""


def test_a_damaged_file_of_a_snapshot_is_downloaded_again(hub: LoopbackHub, tmp_path: Path) -> None:
    data = {schemas.ESCI_SOURCES: b"query_id,source\n1,other\n", schemas.ESCI_EXAMPLES: bytes(1000)}
    hub.put("ORG/d", data)
    with FileServer(tmp_path / "www") as server:
        (tmp_path / "www").mkdir()
        files = {name: {"sha256": hashlib.sha256(content).hexdigest()} for name, content in data.items()}
        (tmp_path / "www" / schemas.MANIFEST).write_text(json.dumps({"files": files}))
        for name, content in data.items():
            (tmp_path / "www" / name).write_bytes(content)
        for address in ("ORG/d", f"ORG/d@{hub.head('ORG/d')}", server.url):
            arguments = (address, str(tmp_path / "cache"))
            directory = Path(hub.run(SNAPSHOT, *arguments).strip())
            for name, content in data.items():
                (directory / name).resolve().write_bytes(content[:-4] + b"xxxx")
            assert Path(hub.run(SNAPSHOT, *arguments).strip()) == directory
            assert {name: (directory / name).read_bytes() for name in data} == data


DOORS = """
import sys, time
time.sleep = lambda seconds: None
import sqid
from sqid_lib import EmbeddingStore, stream_pairs
esci, cache = sys.argv[1:]
for call in (
    lambda: sqid.load("query_features", "test", esci=esci, artifacts="ORG/d", cache_dir=cache).num_rows,
    lambda: len(EmbeddingStore.open("ORG/d", cache_dir=cache, progress=False).judgments),
    lambda: sum(len(batch.gain) for batch in stream_pairs("ORG/d", format="numpy")),
):
    try:
        print(call())
    except Exception as error:
        print(type(error).__name__, error)
"""


@pytest.mark.parametrize("kind", [503, pytest.param(429, marks=pytest.mark.slow), "offline"])
def test_trouble_of_the_hub_at_every_door(hub: LoopbackHub, tmp_path: Path, esci: Path, kind: int | str) -> None:
    hub.add_repo("ORG/d", write_release(tmp_path / "release", classic=True))
    code, expected = DOORS, f"cannot be reached (HTTP {kind})"
    if kind == "offline":
        code, expected = "import os; os.environ['HF_HUB_OFFLINE'] = '1'\n" + DOORS, "offline mode is on"
    else:
        hub.fail("revision", kind, times=10_000)
    lines = hub.run(code, str(esci), str(tmp_path / "cache")).splitlines()
    assert len(lines) == 3
    assert all(line.startswith("DownloadError hf://datasets/ORG/d: ") and expected in line for line in lines), lines
    hub.fail("revision", 503, times=1)
    lines = hub.run(DOORS, str(esci), str(tmp_path / "cache")).splitlines()
    assert lines == ["5", "84", "84"]


@pytest.mark.parametrize("endpoint", ["revision", pytest.param("tree", marks=pytest.mark.slow), "resolve"])
def test_a_hub_that_echoes_the_token_does_not_bring_it_into_tracebacks(
    hub: LoopbackHub, tmp_path: Path, esci: Path, monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    def echo(self: Answers, name: str, match: Any, call: Any) -> Any:
        if name == endpoint:
            return error_answer(403, f"you sent Authorization: {call.headers['Authorization']} ({call.token})")
        return answer(self, name, match, call)

    hub.add_repo("ORG/d", write_release(tmp_path / "release", classic=True))
    answer = Answers.answer
    monkeypatch.setattr(Answers, "answer", echo)
    code = DOORS.replace("print(type(error).__name__, error)", "traceback.print_exception(error, file=sys.stdout)")
    text = hub.run("import traceback\n" + code, str(esci), str(tmp_path / "cache"))
    assert text.count("DownloadError: hf://datasets/ORG/d") == 3
    assert "access refused (HTTP 403)" in text
    assert WRITE_TOKEN not in text
