"""fetch with images on this machine: files of a folder, and bytes in rows of the products."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import unicodedata
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fetch_fixtures import resolved, statuses
from hostile_server import JPEG, LoopbackServer, hostile, jpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from loopback_hub import LoopbackHub

from builder.catalogue.image_rows import ImageRows
from builder.embed.inputs import IMAGES, read_inputs
from builder.fetch import fetch
from builder.fetch.image_folder import ImageFolder
from builder.fetch.local_images import LocalImages
from builder.fetch.stage import pending
from builder.plan import plan
from builder.recipe import CatalogueSettings, ExpectSettings, FetchSettings, Recipe
from builder.resolve import resolve
from builder.sample import sample
from builder.summary import check_images, summarize
from sqid_lib import schemas, sources
from sqid_lib.errors import CountError, DiskError, IntegrityError, MissingFileError, RecipeError
from sqid_lib.files import File


def catalogue(products: Path | str, images: Path | str | None = None, **limits: Any) -> Recipe:
    shop = CatalogueSettings(products=str(products), images=None if images is None else str(images), locale="de")
    return Recipe(
        name="t", version="1", catalogue=shop, fetch=FetchSettings(**{"max_bytes": 100_000, "retries": 0, **limits})
    )


def references(work: Path, *urls: str, rows: ImageRows | None = None) -> Path:
    """WORK as resolve leaves it for a catalogue."""
    path = resolved(work, *urls) / "resolve" / "urls.parquet"
    if rows is not None:
        pq.write_table(pq.read_table(path).replace_schema_metadata(rows.metadata()), path)
    return work


def outcomes(work: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(work / "fetch" / "outcomes.parquet").to_pylist()
    return rows


def stored(work: Path) -> list[bytes]:
    paths = sorted((work / "fetch").glob("images-*.parquet"))
    return [image for path in paths for image in pq.read_table(path)["image"].to_pylist()]


def contents(work: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (work / "fetch").glob("*.parquet")}


def huge_png() -> bytes:
    """A sound PNG header of 20,000 × 15,000 pixels, and few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 20_000, 15_000, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(b"\0" * 1_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A folder with catalogue.csv, and photos/ with two images."""
    (tmp_path / "shop" / "photos").mkdir(parents=True)
    (tmp_path / "shop" / "catalogue.csv").write_text("sku\n")
    for number in (1, 2):
        (tmp_path / "shop" / "photos" / f"{number}.jpg").write_bytes(jpeg(number))
    return tmp_path / "shop"


# -- files -----------------------------------------------------------------------------------------------------------


def test_files_are_stored_once_and_every_product_has_an_outcome(shop: Path, tmp_path: Path) -> None:
    (shop / "photos" / "copy.jpg").write_bytes(jpeg(1))
    urls = ("file:2.jpg", "file:1.jpg", "file:2.jpg", "file:copy.jpg", "file:./1.jpg")
    work = references(tmp_path / "work", *urls)
    built = catalogue(shop / "catalogue.csv", shop / "photos")
    assert pending(built, work) == "0 of 4 images done, 4 to fetch"
    assert fetch(built, work) == 4
    assert stored(work) == [jpeg(2), jpeg(1)]
    rows = outcomes(work)
    assert [row["image_url"] for row in rows] == list(urls)
    first = {"image_status": "ok", "sha256": hashlib.sha256(jpeg(2)).hexdigest(), "bytes": len(jpeg(2))}
    assert rows[0].items() >= (first | {"width": 40, "height": 30, "http_status": None, "detail": None}).items()
    assert fetch(built, work) == 0
    assert pending(built, work) is None


def test_without_a_folder_paths_are_relative_to_the_products(shop: Path, tmp_path: Path) -> None:
    urls = ("file:photos/1.jpg", "file:1.jpg", "file:../outside.jpg")
    (tmp_path / "outside.jpg").write_bytes(JPEG)
    work = references(tmp_path / "work", *urls)
    for products in (shop / "catalogue.csv", shop):
        fetch(catalogue(products), work)
        assert statuses(work) == ["ok", "not_found", "refused"]
    fetch(catalogue("https://shop.example/products.csv"), references(tmp_path / "other", *urls))
    assert statuses(tmp_path / "other") == ["refused"] * 3
    assert outcomes(tmp_path / "other")[0]["detail"] == "no folder of images: the products are not on this machine"


def make(folder: Path, name: str) -> str:
    """Something at a path below the folder, and the reference to it."""
    path = folder / "x.jpg"
    outside = folder.parent / "outside.jpg"
    outside.write_bytes(JPEG)
    match name:
        case "link out":
            path.symlink_to(outside)
        case "folder that is a link out":
            (folder / "away").symlink_to(folder.parent)
            return "file:away/outside.jpg"
        case "folder that is a link out, and back":
            (folder / "away").symlink_to(folder.parent)
            return f"file:away/{folder.name}/1.jpg"
        case "link in":
            path.symlink_to("1.jpg")
        case "link to nowhere":
            path.symlink_to("nowhere.jpg")
        case "link to itself":
            path.symlink_to("x.jpg")
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "socket":
            with socket.socket(socket.AF_UNIX) as made:
                made.bind(str(path.relative_to(Path.cwd())) if len(str(path)) > 100 else str(path))
        case "device":
            path.symlink_to("/dev/zero")
        case "large":
            path.touch()
            os.truncate(path, 1 << 40)
        case "NFD":
            (folder / unicodedata.normalize("NFD", "Müller.jpg")).write_bytes(JPEG)
            return "file:" + unicodedata.normalize("NFC", "Müller.jpg")
        case "backslashes":
            (folder / "sub").mkdir()
            (folder / "sub" / "x.jpg").write_bytes(JPEG)
            return "file:sub\\x.jpg"
    if isinstance(data := BYTES.get(name), bytes):
        path.write_bytes(data)
    return REFERENCES.get(name, "file:x.jpg").replace("OUTSIDE", str(outside)).replace("FOLDER", str(folder))


BYTES = {
    "0 bytes": b"",
    "html": b"<html>not an image</html>",
    "text behind a jpg's name": b"hello",
    "truncated": JPEG[:-20],
    "damaged": b"\xff\xd8\xff" + b"\0" * 500,
    "300 megapixels": huge_png(),
}
REFERENCES = {
    "missing": "file:nowhere/x.jpg",
    "a file as a folder": "file:1.jpg/x.jpg",
    "long name": f"file:{'x' * 300}.jpg",
    "long path": f"file:{'x/' * 5_000}x.jpg",
    "up": "file:../outside.jpg",
    "up, later": "file:a/b/../../../outside.jpg",
    "up, with backslashes": "file:..\\outside.jpg",
    "absolute": "file:OUTSIDE",
    "password file": "file:/etc/passwd",
    "absolute, inside": "file:FOLDER/1.jpg",
    "through the parent, inside": "file:../photos/1.jpg",
    "null character": "file:1.jpg\0.png",
    "no path": "file:",
    "dot": "file:.",
}
CASES = {
    "link out": ("refused", "outside the folder of the images"),
    "folder that is a link out": ("refused", "outside the folder of the images"),
    "folder that is a link out, and back": ("ok", None),
    "link in": ("ok", None),
    "link to nowhere": ("not_found", "no such file"),
    "link to itself": ("not_image", "a symbolic link that leads nowhere, not a file"),
    "folder": ("not_image", "a folder, not a file"),
    "pipe": ("not_image", "a named pipe, not a file"),
    "socket": ("not_image", "a socket, not a file"),
    "device": ("refused", "outside the folder of the images"),
    "large": ("too_large", "more than 100000 bytes"),
    "NFD": ("ok", None),
    "backslashes": ("ok", None),
    "0 bytes": ("empty", "no bytes"),
    "html": ("not_image", "no JPEG, PNG, GIF or WEBP; starts with b'<html>not an'"),
    "text behind a jpg's name": ("not_image", "no JPEG, PNG, GIF or WEBP; starts with b'hello'"),
    "truncated": ("truncated", None),
    "damaged": ("corrupt", None),
    "300 megapixels": ("too_many_pixels", None),
    "missing": ("not_found", "no such file"),
    "a file as a folder": ("not_found", "no such file"),
    "long name": ("not_found", "no such file"),
    "long path": ("not_found", "no such file"),
    "up": ("refused", "outside the folder of the images"),
    "up, later": ("refused", "outside the folder of the images"),
    "up, with backslashes": ("refused", "outside the folder of the images"),
    "absolute": ("refused", "outside the folder of the images"),
    "password file": ("refused", "outside the folder of the images"),
    "absolute, inside": ("ok", None),
    "through the parent, inside": ("ok", None),
    "null character": ("bad_url", "not a path: embedded null byte"),
    "no path": ("not_image", "a folder, not a file"),
    "dot": ("not_image", "a folder, not a file"),
}


def test_every_kind_of_file_has_its_status(shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One run over all of them, each in a folder of its own that its references do not leave but where they say so."""
    monkeypatch.chdir(tmp_path)
    found = {}
    for number, name in enumerate(CASES):
        folder = tmp_path / str(number) / "photos"
        folder.mkdir(parents=True)
        (folder / "1.jpg").write_bytes(jpeg(1))
        reference = make(folder, name)
        read = ImageFolder(str(folder)).read(reference.removeprefix("file:"), 100_000)
        found[name] = (read.status, read.detail)
        if read.status == "ok":  # what the bytes are is for the decoders
            (shop / "photos" / f"case-{number}").write_bytes(read.data or b"")
    decoded = [name for name in CASES if found[name][0] == "ok"]
    work = references(tmp_path / "work", *(f"file:case-{list(CASES).index(name)}" for name in decoded))
    fetch(catalogue(shop, shop / "photos"), work)
    found |= {n: (r["image_status"], r["detail"]) for n, r in zip(decoded, outcomes(work), strict=True)}
    for name, (status, detail) in CASES.items():
        assert found[name][0] == status, name
        assert detail is None or found[name][1] == detail, name


def test_a_pipe_and_a_socket_do_not_stop_the_stage(shop: Path, tmp_path: Path) -> None:
    make(shop / "photos", "pipe")
    work = references(tmp_path / "work", "file:x.jpg", "file:1.jpg")
    fetch(catalogue(shop, shop / "photos"), work)
    assert statuses(work) == ["not_image", "ok"]


def test_a_file_that_becomes_a_pipe_is_not_waited_for(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look at it and its opening."""
    folder, path = ImageFolder(str(shop / "photos")), shop / "photos" / "1.jpg"
    real = os.access

    def swap(place: str, mode: int) -> bool:
        path.unlink()
        os.mkfifo(path)
        return real(place, mode)

    monkeypatch.setattr(os, "access", swap)
    assert folder.read("1.jpg", 1_000).detail == "a named pipe, not a file"


def test_a_file_that_grows_while_it_is_read(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, size = ImageFolder(str(shop / "photos")), len(jpeg(1))
    real = os.fstat

    def before(file: int) -> os.stat_result:
        state = real(file)
        return os.stat_result((*state[:6], state.st_size - 5, *state[7:]))

    monkeypatch.setattr(os, "fstat", before)
    assert folder.read("1.jpg", size).data == jpeg(1)
    assert folder.read("1.jpg", size - 1).status == "too_large"


def test_a_file_that_must_not_be_read_is_blocked(shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = references(tmp_path / "work", "file:1.jpg", "file:2.jpg")
    built = catalogue(shop, shop / "photos")
    with monkeypatch.context() as limited:  # a user that is root may read everything
        limited.setattr(os, "access", lambda place, _: not place.endswith("/1.jpg"))
        fetch(built, work)
        assert statuses(work) == ["blocked", "ok"]
        assert outcomes(work)[0]["detail"] == "the file must not be read: permission denied"
        assert fetch(built, work) == 0
    assert fetch(built, work) == 1
    assert statuses(work) == ["ok", "ok"]


names = st.sampled_from(["..", ".", "", "1.jpg", "sub", "out", "etc", "passwd", "a\\..\\..", "~", "\0", "ü", "…"])
paths = st.one_of(
    st.lists(names, max_size=6).map("/".join),
    st.lists(names, max_size=6).map("\\".join),
    st.text(max_size=20),
    st.text(alphabet="./\\", max_size=12).map(lambda dots: f"{dots}outside.jpg"),
)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """root/photos with links out of it; beside and above it images that must not be opened."""
    root = tmp_path_factory.mktemp("tree")
    for place in (root, root / "photos", root / "photos" / "sub", root / "photos-2"):
        place.mkdir(exist_ok=True)
        for name in ("1.jpg", "outside.jpg", "passwd"):
            (place / name).write_bytes(JPEG)
    (root / "photos" / "out").symlink_to(root)
    (root / "photos" / "sub" / "etc").symlink_to("/etc")
    return root


@settings(max_examples=200, deadline=None)
@given(path=paths, absolute=st.booleans())
def test_nothing_outside_the_folder_is_ever_opened(tree: Path, path: str, absolute: bool) -> None:
    folder, opened, real = ImageFolder(str(tree / "photos")), list[str](), os.open

    def recording(place: str, *args: Any, **options: Any) -> int:
        descriptor = real(place, *args, **options)
        known = Path(f"/proc/self/fd/{descriptor}")
        opened.append(str(known.readlink() if known.exists() else place))
        return descriptor

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "open", recording)
        found = folder.read(f"{tree}/{path}" if absolute else path, 100_000)
    inside = os.path.realpath(tree / "photos") + "/"
    assert all(place.startswith(inside) for place in opened)
    assert bool(opened) == (found.data is not None)


def test_a_folder_that_is_gone_costs_nothing(shop: Path, tmp_path: Path) -> None:
    work = references(tmp_path / "work", "file:1.jpg")
    built = catalogue(shop, shop / "photos")
    fetch(built, work)
    before = contents(work)
    (shop / "photos").rename(shop / "moved")
    with pytest.raises(MissingFileError, match=r"photos: the folder of the images does not exist"):
        fetch(built, work)
    assert contents(work) == before
    moved = catalogue(shop, shop / "moved")  # the same files: size and time decide, not the place
    assert fetch(moved, work) == 0


def test_a_folder_that_is_elsewhere_is_refused(tmp_path: Path) -> None:
    for images in ("https://shop.example/photos", "hf://datasets/ORG/shop"):
        with pytest.raises(RecipeError, match=r"catalogue\.images: the images must be in a folder of this machine"):
            fetch(catalogue("products.csv", images), references(tmp_path, "file:1.jpg"))


# -- again -----------------------------------------------------------------------------------------------------------


def test_changed_and_missing_files_are_looked_for_by_every_run(
    shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    built, photos = catalogue(shop, shop / "photos"), shop / "photos"
    work = references(tmp_path / "work", "file:1.jpg", "file:2.jpg", "file:3.jpg", "file:4.jpg")
    (photos / "4.jpg").write_bytes(b"<html>")
    assert fetch(built, work) == 4
    assert statuses(work) == ["ok", "ok", "not_found", "not_image"]
    assert fetch(built, work) == 0
    (photos / "1.jpg").write_bytes(jpeg(7))
    (photos / "2.jpg").unlink()
    (photos / "3.jpg").write_bytes(jpeg(8))
    (photos / "4.jpg").write_bytes(jpeg(9))
    assert pending(built, work) == "1 of 4 images done, 3 to fetch, 3 local images changed"
    capsys.readouterr()
    assert fetch(built, work) == 3
    assert "fetch: trying 3 images again: their local files changed" in capsys.readouterr().err
    assert statuses(work) == ["ok"] * 4
    assert stored(work) == [jpeg(7), jpeg(2), jpeg(8), jpeg(9)]  # what is stored is kept when its file is gone
    assert fetch(built, work) == 0


def test_images_that_all_fail_after_earlier_ones_keep_their_outcomes(shop: Path, tmp_path: Path) -> None:
    work = references(tmp_path / "work", "file:1.jpg", "file:2.jpg")
    fetch(catalogue(shop, shop / "photos"), work)
    (shop / "photos" / "1.jpg").write_bytes(b"")
    (shop / "photos" / "2.jpg").write_bytes(b"<html>")
    assert fetch(catalogue(shop, shop / "photos"), work) == 2
    assert statuses(work) == ["empty", "not_image"]
    assert stored(work) == []
    assert fetch(catalogue(shop, shop / "photos"), work) == 0


def test_a_file_of_another_time_with_the_same_bytes_changes_nothing(shop: Path, tmp_path: Path) -> None:
    work = references(tmp_path / "work", "file:1.jpg")
    fetch(catalogue(shop, shop / "photos"), work)
    before = contents(work)
    os.utime(shop / "photos" / "1.jpg", ns=(1, 1))
    assert fetch(catalogue(shop, shop / "photos"), work) == 1
    assert contents(work) == before


def test_a_failure_that_a_setting_caused_is_tried_again_when_it_changes(shop: Path, tmp_path: Path) -> None:
    work = references(tmp_path / "work", "file:1.jpg", "file:9.jpg")
    fetch(catalogue(shop, shop / "photos", max_bytes=10), work)
    assert statuses(work) == ["too_large", "not_found"]
    assert fetch(catalogue(shop, shop / "photos", max_bytes=10, ports=(80,)), work) == 0
    assert fetch(catalogue(shop, shop / "photos"), work) == 1
    assert statuses(work) == ["ok", "not_found"]
    assert fetch(catalogue(shop, shop / "photos"), work, retry=["not_found"]) == 1


def test_a_refused_path_is_tried_again_in_another_folder(shop: Path, tmp_path: Path) -> None:
    work = references(tmp_path / "work", f"file:{shop / 'photos' / '1.jpg'}")
    (shop / "empty").mkdir()
    fetch(catalogue(shop, shop / "empty"), work)
    assert statuses(work) == ["refused"]
    assert fetch(catalogue(shop, shop / "photos"), work) == 1
    assert statuses(work) == ["ok"]


def test_local_images_and_urls_in_one_catalogue(shop: Path, tmp_path: Path) -> None:
    with LoopbackServer(hostile) as server:
        built = catalogue(shop, shop / "photos", allow_hosts=(f"127.0.0.1:{server.port}",))
        work = references(tmp_path / "work", f"{server.origin}/ok", "file:1.jpg", f"{server.origin}/404", "ftp://x/1")
        fetch(built, work)
        assert fetch(built, work) == 0
    assert statuses(work) == ["ok", "ok", "not_found", "bad_url"]
    assert len(stored(work)) == 2


def test_a_local_reference_is_no_url_without_a_catalogue(shop: Path, tmp_path: Path) -> None:
    from fetch_fixtures import recipe

    fetch(recipe({}), resolved(tmp_path / "work", f"file:{shop / 'photos' / '1.jpg'}", "row:0:0"))
    assert statuses(tmp_path / "work") == ["bad_url", "bad_url"]


NO_CLIENT = """
import sys
from pathlib import Path
sys.modules["pycurl"] = sys.modules["yarl"] = None
from builder.fetch import fetch
from builder.recipe import Recipe
from sqid_lib.errors import MissingExtraError
for work in sys.argv[2:]:
    try:
        print(fetch(Recipe.model_validate_json(sys.argv[1]), Path(work)))
    except MissingExtraError as error:
        print(error)
"""


def test_local_images_need_no_http_client(shop: Path, tmp_path: Path) -> None:
    local, mixed = (
        references(tmp_path / "local", "file:1.jpg"),
        references(tmp_path / "mixed", "file:1.jpg", "http://x"),
    )
    built = json.dumps({"name": "t", "version": "1", "catalogue": {"products": str(shop / "photos"), "locale": "de"}})
    command = [sys.executable, "-c", NO_CLIENT, built, str(local), str(mixed)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    assert said[0] == "1" and said[1].startswith("the package 'pycurl' is needed to download images.")


# -- faults of this machine ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.EIO, r"2\.jpg: cannot be read: Input/output error"),
        (errno.EMFILE, r"2\.jpg: cannot be read: Too many open files\. Raise the limit of open files"),
        (errno.ENOMEM, r"2\.jpg: cannot be read: Cannot allocate memory"),
    ],
)
def test_a_fault_of_the_machine_ends_the_stage_and_records_nothing_for_its_image(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, message: str
) -> None:
    work, built = references(tmp_path / "work", "file:1.jpg", "file:2.jpg"), catalogue(shop, shop / "photos")
    real = os.open

    def failing(place: str, *args: Any, **options: Any) -> int:
        if str(place).endswith("2.jpg"):
            raise OSError(number, os.strerror(number), place)
        return real(place, *args, **options)

    with monkeypatch.context() as limited:
        limited.setattr(os, "open", failing)
        with pytest.raises(DiskError, match=message):
            fetch(built, work)
    assert fetch(built, work) in (1, 2)  # the first may have been in progress
    assert statuses(work) == ["ok", "ok"]


def test_a_full_disk_ends_the_stage(shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work, built = references(tmp_path / "work", "file:1.jpg"), catalogue(shop, shop / "photos")

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "no space")

    with monkeypatch.context() as limited:
        limited.setattr(os, "pwrite", full)
        with pytest.raises(DiskError, match="no space left"):
            fetch(built, work)
    fetch(built, work)
    assert statuses(work) == ["ok"]


KILLED = """
import os, signal, sys
from pathlib import Path
from builder.fetch import fetch
from builder.fetch.ledger import Ledger
from builder.recipe import Recipe

real, calls = Ledger.record, []
def record(self, results):
    calls.append(1)
    if len(calls) == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    real(self, results)
Ledger.record = record
fetch(Recipe.model_validate_json(sys.argv[2]), Path(sys.argv[1]))
"""


def test_killed_runs_lose_and_double_nothing(tmp_path: Path) -> None:
    count = 300
    photos, works = tmp_path / "photos", [tmp_path / "killed", tmp_path / "calm"]
    photos.mkdir()
    for number in range(count):
        (photos / f"{number}.jpg").write_bytes(b"<html>" if number % 7 == 6 else jpeg(number))
    rows = image_table(tmp_path / "p.parquet", [jpeg(number) for number in range(count, 2 * count)], group=30)
    urls = [f"file:{number}.jpg" for number in range(count)] + [f"row:0:{number}" for number in range(count)]
    built = catalogue(tmp_path / "p.parquet", photos, shard_rows=100)
    settings = json.dumps(
        {
            "name": "t",
            "version": "1",
            "catalogue": {"products": str(tmp_path / "p.parquet"), "images": str(photos), "locale": "de"},
            "fetch": {"shard_rows": 100},
        }
    )
    for work in works:
        references(work, *urls, rows=rows)
    for commits in ("2", "5"):
        command = [sys.executable, "-c", KILLED, str(works[0]), settings, commits]
        assert subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode == -signal.SIGKILL
    assert 0 < fetch(built, works[0]) < fetch(built, works[1]) == 2 * count
    assert contents(works[0]) == contents(works[1])
    assert statuses(works[0]).count("ok") == 2 * count - len(range(6, count, 7))


# -- rows of the products --------------------------------------------------------------------------------------------


def image_table(
    path: Path, images: Sequence[bytes | None], *, group: int = 10, dtype: str = "struct", name: str = "image"
) -> ImageRows:
    """A parquet file with a column of images, as datasets writes it or as plain bytes."""
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    if dtype == "struct":
        cells: Any = [None if image is None else {"bytes": image, "path": "x.jpg"} for image in images]
        column = pa.array(cells, struct)
    elif dtype == "structs":
        cells = [
            None if image is None else [None, {"path": "x"}, {"bytes": image}, {"bytes": JPEG}] for image in images
        ]
        column = pa.array(cells, pa.large_list(struct))
    elif dtype == "binaries":
        column = pa.array([[] if image is None else [None, image, JPEG] for image in images], pa.list_(pa.binary()))
    else:
        column = pa.array(images, {"binary": pa.binary(), "large": pa.large_binary()}[dtype])
    table = pa.table({"sku": [str(i) for i in range(len(images))], name: column})
    pq.write_table(table, path, row_group_size=group)
    return ImageRows((sources.find_file(path),), name)


@pytest.mark.parametrize("dtype", ["struct", "binary", "large", "structs", "binaries"])
def test_bytes_in_rows(tmp_path: Path, dtype: str) -> None:
    images = [jpeg(0), None, jpeg(2), b"", b"<html>", *map(jpeg, range(5, 45)), huge_png(), JPEG + b"\0" * 100_000]
    rows = image_table(tmp_path / "p.parquet", images, dtype=dtype, name="photo.front")
    numbers = [46, 2, 44, 0, 1, 3, 4, 45, 17]  # in the order of products
    work = references(tmp_path / "work", *(f"row:0:{n}" for n in numbers), "row:0:017", "row:x", "row:0:-1", rows=rows)
    built = catalogue(tmp_path / "p.parquet")
    fetch(built, work)
    assert statuses(work) == [
        *("too_large", "ok", "ok", "ok", "missing", "empty", "not_image", "too_many_pixels", "ok"),
        *["bad_url"] * 3,
    ]
    assert stored(work) == [jpeg(2), jpeg(44), jpeg(0), jpeg(17)]
    assert fetch(built, work) == 0


def test_several_files_and_products_that_share_an_image(tmp_path: Path) -> None:
    one = image_table(tmp_path / "a.parquet", [jpeg(1), jpeg(2)])
    two = image_table(tmp_path / "b.parquet", [jpeg(2), jpeg(3)])
    rows = ImageRows((*one.files, *two.files), "image")
    work = references(tmp_path / "work", "row:1:0", "row:0:1", "row:1:1", "row:0:0", "row:1:1", rows=rows)
    assert fetch(catalogue(tmp_path), work) == 4
    assert stored(work) == [jpeg(2), jpeg(3), jpeg(1)]


def test_rows_of_a_file_that_changed_since_sample_are_refused(tmp_path: Path) -> None:
    rows = image_table(tmp_path / "p.parquet", [jpeg(1), jpeg(2)])
    work = references(tmp_path / "work", "row:0:1", rows=rows)
    changed = image_table(tmp_path / "p.parquet", [jpeg(3), jpeg(4), jpeg(5)])
    built = catalogue(tmp_path / "p.parquet")
    with pytest.raises(IntegrityError, match=r"p\.parquet: not the file that was sampled.*sample and resolve again"):
        fetch(built, work)
    references(work, "row:0:1", rows=changed)
    fetch(built, work)
    assert stored(work) == [jpeg(4)]


def test_a_file_of_another_version_is_read_again(tmp_path: Path) -> None:
    built = catalogue(tmp_path / "p.parquet")
    work = references(tmp_path / "work", "row:0:0", "row:0:1", rows=image_table(tmp_path / "p.parquet", [jpeg(1)] * 2))
    fetch(built, work)
    changed = image_table(tmp_path / "p.parquet", [jpeg(1), jpeg(9)])
    assert fetch(built, references(work, "row:0:0", "row:0:1", rows=changed)) == 2
    assert stored(work) == [jpeg(1), jpeg(9)]


@pytest.mark.parametrize("reference", ["row:0:2", "row:1:0", "row:0:999999999999999999"])
def test_a_reference_to_what_is_not_there_is_refused(tmp_path: Path, reference: str) -> None:
    work = references(tmp_path / "work", reference, rows=image_table(tmp_path / "p.parquet", [jpeg(1), jpeg(2)]))
    with pytest.raises(IntegrityError, match="sample and resolve again"):
        fetch(catalogue(tmp_path / "p.parquet"), work)


def test_row_groups_are_read_a_few_rows_at_a_time(tmp_path: Path) -> None:
    size, count = 5_000, 10_000  # pyarrow writes pages of 1,024 rows at least, which are read as a whole
    images = [os.urandom(size) for n in range(count)]
    rows = image_table(tmp_path / "p.parquet", images, group=count)
    local = LocalImages(None, rows)
    before = pa.total_allocated_bytes()
    peak = 0
    for _, image in local.read([f"row:0:{n}" for n in range(count)], 10 * size):
        assert image.data is not None
        peak = max(peak, pa.total_allocated_bytes() - before)
    assert peak < size * count / 4


def test_lists_are_read_as_many_images_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = pa.array([[jpeg(row)] * 8 for row in range(6)], pa.list_(pa.binary()))
    pq.write_table(pa.table({"image": images}), tmp_path / "p.parquet")
    rows = ImageRows((sources.find_file(tmp_path / "p.parquet"),), "image")
    at_once: list[int] = []
    of_file = pq.ParquetFile.iter_batches

    def iter_batches(self: pq.ParquetFile, batch_size: int, *args: Any, **kwargs: Any) -> Any:
        at_once.append(batch_size)
        return of_file(self, batch_size, *args, **kwargs)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", iter_batches)
    found = dict(LocalImages(None, rows).read(["row:0:5", "row:0:2"], 100_000))
    assert {reference: image.data for reference, image in found.items()} == {"row:0:2": jpeg(2), "row:0:5": jpeg(5)}
    assert at_once == [2]


def test_references_survive_the_way_to_another_process(tmp_path: Path) -> None:
    rows = image_table(tmp_path / "p.parquet", [jpeg(1)])
    local = LocalImages(str(tmp_path), rows)
    assert local.version("file:p.parquet") is not None
    found = dict(pickle.loads(pickle.dumps(local)).read(["row:0:0"], 10_000))
    assert found["row:0:0"].data == jpeg(1)


def test_urls_of_files_are_kept_without_their_password() -> None:
    from builder.catalogue.image_rows import read_image_rows

    address = "https://user:s3cret@shop.example/p.parquet?sig=s3cret"
    hub = File("hf://datasets/ORG/shop@abc/p.parquet", "1")
    rows = ImageRows((File(address, '"etag 1"'), hub), "image")
    assert b"s3cret" not in rows.metadata()[b"sqid.image_rows"]
    assert read_image_rows(rows.metadata(), address, "x") == rows


HUB = """
import sys
from pathlib import Path
from builder.fetch import fetch
from builder.recipe import CatalogueSettings, Recipe
from builder.resolve import resolve
from builder.sample import sample
work, shop = Path(sys.argv[1]), CatalogueSettings(products="hf://datasets/ORG/shop", locale="de")
recipe = Recipe(name="t", version="1", catalogue=shop)
sample(recipe, work)
resolve(recipe, work)
print([fetch(recipe, work) for _ in range(2)])
"""


@pytest.mark.parametrize("several", [False, True])
def test_a_hub_dataset_with_an_image_column(tmp_path: Path, several: bool) -> None:
    import datasets

    image: Any = datasets.List(datasets.Image()) if several else datasets.Image()
    folder = tmp_path / "repo" / "data"
    folder.mkdir(parents=True)
    features = datasets.Features({"sku": datasets.Value("string"), "title": datasets.Value("string"), "image": image})
    for shard in range(2):
        numbers = [5 - 3 * shard - n for n in range(3)]  # sorted by sku they are read backwards
        images: list[Any] = [{"bytes": jpeg(n)} for n in numbers]
        if several:
            images = [[None, image, {"bytes": JPEG}] for image in images]
        cells = {"sku": [f"P{n}" for n in numbers], "title": ["t"] * 3, "image": images}
        table = datasets.Dataset.from_dict(cells, features=features)
        table.to_parquet(folder / f"train-0000{shard}-of-00002.parquet")
    work = tmp_path / "work"
    with LoopbackHub(tmp_path / "hub") as hub:
        hub.add_repo("ORG/shop", tmp_path / "repo")
        assert hub.run(HUB, str(work)) == "[6, 0]\n"
    assert [row["image_url"] for row in outcomes(work)][:2] == ["row:1:2", "row:1:1"]
    assert stored(work) == [jpeg(n) for n in range(6)]
    products = pq.read_table(work / "sample" / "products.parquet")
    assert products.column_names[-1] != "image_count" if not several else products["image_count"].to_pylist() == [2] * 6


# -- the stages around it --------------------------------------------------------------------------------------------


def test_embed_finds_the_images_of_references(shop: Path, tmp_path: Path) -> None:
    rows = image_table(shop / "p.parquet", [jpeg(1), jpeg(5)])
    work = references(tmp_path / "work", "file:1.jpg", "row:0:0", "file:none.jpg", "row:0:1", rows=rows)
    built = catalogue(shop / "p.parquet", shop / "photos")
    fetch(built, work)
    (work / "sample").mkdir()
    keys = pq.read_table(work / "resolve" / "urls.parquet", columns=["product_id", "product_locale"]).to_pylist()
    products = pa.Table.from_pylist([key | {"product_title": "t"} for key in keys], schemas.SAMPLED_PRODUCTS_SCHEMA)
    pq.write_table(products, work / "sample" / "products.parquet")
    pq.write_table(schemas.SAMPLED_QUERIES_SCHEMA.empty_table(), work / "sample" / "queries.parquet")
    inputs = read_inputs(built, work)
    assert inputs.parts[0].image.tolist() == [0, 0, -1, 1]
    sha256s = [hashlib.sha256(jpeg(n)).hexdigest() for n in (1, 5)]
    assert inputs.items[IMAGES].values.slice(0, 9) == sha256s


def test_a_catalogue_with_files_bytes_and_nothing_goes_through_the_stages(shop: Path, tmp_path: Path) -> None:
    photo = pa.array(
        [{"bytes": jpeg(4), "path": None}, {"bytes": None, "path": "2.jpg"}, {"bytes": None, "path": None}, None]
    )
    (shop / "products").mkdir()
    pq.write_table(
        pa.table({"sku": list("abcd"), "title": list("abcd"), "image": photo}), shop / "products" / "p.parquet"
    )
    built, work = catalogue(shop / "products", shop / "photos"), tmp_path / "work"
    sample(built, work)
    resolve(built, work)
    fetch(built, work)
    assert [(row["image_url"], row["image_status"]) for row in outcomes(work)] == [
        *(("row:0:0", "ok"), ("file:2.jpg", "ok"), (None, "missing"), (None, "missing"))
    ]
    found = summarize(built, work, "sqid build r.toml")
    assert found is not None and found.lines()[0] == (
        "images: 4 products, 2 with a local image, 2 with an image (100% of those)"
    )
    too_few = built.model_copy(update={"expect": ExpectSettings(min_images=3)})
    with pytest.raises(CountError, match="expected at least 3, got 2 of 4 products: missing 2, ok 2"):
        check_images(too_few, work, "sqid build r.toml")


def test_a_plan_says_that_local_images_are_read(shop: Path, tmp_path: Path) -> None:
    words = plan(catalogue(shop, shop / "photos"), tmp_path / "none")
    assert words["resolve"] == "would look for image URLs in the products table"
    assert words["fetch"] == "would read local images and download the images, at most 32 at once"
