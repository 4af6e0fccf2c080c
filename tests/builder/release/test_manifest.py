"""manifest.json and SHA256SUMS: what they state, what they leave out, and how they are read back."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from release_fixtures import RECIPE, recipe_with, seal

from builder.recipe import EncoderSettings, EsciSettings, FetchSettings, PagesSettings, ResolveSettings
from builder.release import manifest
from builder.release.statistics import gather_statistics
from sqid_lib import schemas
from sqid_lib.errors import CorruptFileError, MissingFileError
from sqid_lib.joined.selection import Selection


def test_every_file_with_its_sha256_bytes_and_rows(good: Path) -> None:
    found = manifest.read(good)
    on_disk = {p.relative_to(good).as_posix(): p for p in good.rglob("*") if p.is_file()}
    assert set(found.files) == set(on_disk) - {schemas.MANIFEST, schemas.SHA256SUMS}
    for name, file in found.files.items():
        data = on_disk[name].read_bytes()
        assert (file.bytes, file.sha256) == (len(data), hashlib.sha256(data).hexdigest())
        rows = pq.read_metadata(on_disk[name]).num_rows if name.endswith(".parquet") else None
        assert file.rows == {schemas.PRODUCT_URLS: 40, schemas.SUPP_URLS: 5}.get(name, rows)
    judgments = pq.read_metadata(on_disk["data/judgments/test-00000-of-00001.parquet"]).num_rows
    assert found.counts == {"products": 40, "queries": 6, "judgments": judgments, "supp": 5}
    assert (found.name, found.version, found.width, found.revision) == ("tiny", "1.0.0", 8, None)
    assert {"sqid", "pyarrow", "numpy"} <= set(found.versions)


def test_written_is_read_back(release: Path) -> None:
    written = manifest.write(release, RECIPE, gather_statistics(release), revision="0123456789abcdef")
    assert manifest.read(release) == written
    assert written.revision == "0123456789abcdef"


def test_the_same_files_give_the_same_bytes(release: Path) -> None:
    before = [(release / name).read_bytes() for name in (schemas.MANIFEST, schemas.SHA256SUMS)]
    manifest.write(release, RECIPE, gather_statistics(release), revision=None)
    assert [(release / name).read_bytes() for name in (schemas.MANIFEST, schemas.SHA256SUMS)] == before


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="no sha256sum here")
def test_sha256sum_reads_the_sums(release: Path) -> None:
    command = ["sha256sum", "--strict", "-c", schemas.SHA256SUMS]
    assert subprocess.run(command, cwd=release, capture_output=True, check=False).returncode == 0
    (release / schemas.CARD).write_text("changed")
    done = subprocess.run(command, cwd=release, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"{schemas.CARD}: FAILED" in done.stdout


def test_sums_list_everything_but_themselves(good: Path) -> None:
    assert set(manifest.read_sums(good)) == {*manifest.read(good).files, schemas.MANIFEST}


def test_nothing_private_to_a_machine_or_a_person_is_kept(release: Path) -> None:
    recipe = recipe_with(
        esci=EsciSettings(path="/home/somebody/private/esci"),
        encoder=EncoderSettings(model="/home/somebody/models/tiny-clip", device="cuda:3"),
        resolve=ResolveSettings(
            tables=("C:\\Users\\somebody\\urls.csv", "https://user:secret@host.example/t.csv?signature=abc"),
            pages=PagesSettings(permission=True, contact="somebody@mail.example"),
        ),
        fetch=FetchSettings(mirrors={"https://m.example/": "http://127.0.0.1:8123/"}, allow_hosts=("127.0.0.1:8123",)),
    )
    seal(release, recipe)
    text = (release / schemas.MANIFEST).read_text()
    for secret in ("somebody", "secret", "signature", "127.0.0.1", "8123", "cuda", "private"):
        assert secret not in text
    kept = manifest.read(release)
    assert kept.recipe["esci"] == {"path": "esci"}
    assert "engine" not in kept.recipe  # addresses of machines, which change nothing of a release
    assert kept.recipe["resolve"]["tables"] == ["urls.csv", "https://host.example/t.csv"]
    assert kept.model == "tiny-clip"


@settings(max_examples=100, deadline=None)
@given(value=st.text())
def test_public_never_fails_and_is_stable(value: str) -> None:
    once = manifest.public(value)
    assert manifest.public(once) == once


def corrupt(release: Path, change: Any) -> None:
    path = release / schemas.MANIFEST
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.pop("format"),
        lambda m: m.update(format=99),
        lambda m: m.pop("files"),
        lambda m: m.update(more=1),
        lambda m: m.update(width="8"),
        lambda m: m.update(name=None),
        lambda m: m.update(counts=[1]),
        lambda m: m["counts"].update(products="40"),
        lambda m: m.update(files=["README.md"]),
        lambda m: m["files"].update({"x": 3}),
        lambda m: m["files"].update({"../x": {"bytes": 1, "sha256": "0", "rows": None}}),
        lambda m: m["files"].update({"/etc/passwd": {"bytes": 1, "sha256": "0", "rows": None}}),
        lambda m: m["files"].update({"a\x00b": {"bytes": 1, "sha256": "0", "rows": None}}),
        lambda m: m["files"].update({"x": {"bytes": "1", "sha256": "0", "rows": None}}),
        lambda m: m.update(recipe=[]),
        lambda m: m["recipe"].update(selection=1),
        lambda m: m["recipe"]["selection"].update(locales="us"),
        lambda m: m["recipe"]["selection"].update(locales=[1]),
        lambda m: m["recipe"]["selection"].update(labels=["E"]),
        lambda m: m["recipe"]["selection"].update(labels={"E": "1"}),
        lambda m: m["recipe"]["selection"].update(labels={"E": True}),
        lambda m: m["recipe"]["selection"].update(labels={"E": -1}),
        lambda m: m["recipe"]["selection"].update(labels={"E": float("nan")}),
        lambda m: m["recipe"]["selection"].update(labels={"E": 10**400}),
    ],
)
def test_a_manifest_of_another_shape_is_reported(release: Path, change: Any) -> None:
    corrupt(release, change)
    with pytest.raises(CorruptFileError, match=r"manifest\.json: not a manifest of a release"):
        manifest.read(release)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"format": 1}'])
def test_a_manifest_of_any_bytes_is_reported(release: Path, data: bytes) -> None:
    (release / schemas.MANIFEST).write_bytes(data)
    with pytest.raises(CorruptFileError):
        manifest.read(release)


@pytest.mark.parametrize(
    "line", ["hello", "0" * 63 + "  a", "0" * 64 + " a", "0" * 64 + "  ../a", "0" * 64 + "  /a", "G" * 64 + "  a"]
)
def test_a_bad_line_of_sums_is_reported_with_its_number(release: Path, line: str) -> None:
    (release / schemas.SHA256SUMS).write_text(f"{'0' * 64}  b\n{line}\n")
    with pytest.raises(CorruptFileError, match="SHA256SUMS:2: bad line"):
        manifest.read_sums(release)


def test_a_name_listed_twice_is_reported(release: Path) -> None:
    (release / schemas.SHA256SUMS).write_text(f"{'0' * 64}  b\n" * 2)
    with pytest.raises(CorruptFileError, match="SHA256SUMS:2"):
        manifest.read_sums(release)


def test_missing_files_are_reported(tmp_path: Path) -> None:
    for read in (manifest.read, manifest.read_sums):
        with pytest.raises(MissingFileError, match="Is this a release"):
            read(tmp_path)


def test_gains_and_locales_are_those_of_the_recipe_or_the_published_ones(release: Path) -> None:
    assert manifest.read(release).gains == schemas.GAINS
    labels = (("device", 2.0), ("good", 1.0), ("no", 0.0))  # a setting named device is private, a label is not
    seal(release, recipe_with(selection=Selection(locales=("de", "us"), labels=labels)))
    assert json.loads((release / schemas.MANIFEST).read_text())["recipe"]["selection"]["labels"] == dict(labels)
    assert list(manifest.read(release).gains.items()) == list(labels)
    assert manifest.read(release).locales == ("de", "us")
    corrupt(release, lambda m: m["recipe"].pop("selection"))
    assert (manifest.read(release).gains, manifest.read(release).locales) == (schemas.GAINS, ("us",))


def test_a_config_without_files_cannot_be_listed(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError):
        seal(tmp_path)
    assert list(tmp_path.iterdir()) == []
