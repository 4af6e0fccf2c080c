"""builder.fetch.decoders: processes that check, hash and store untrusted images."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from builder.fetch import decoder
from builder.fetch.decoders import Checked, Decoders
from builder.fetch.ledger import Ledger
from sqid_lib.errors import DiskError, StageError


def encoded(image: Image.Image, image_format: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format)
    return buffer.getvalue()


GOOD = encoded(Image.new("RGB", (8, 6)), "JPEG")
OTHER = encoded(Image.new("RGB", (9, 7), "red"), "PNG")
BEGIN = b"\xff\xd8\xff"  # of a JPEG
PATCHED = """
import os, signal, time
from sqid_lib import images

real_check, real_alarm = images.check, signal.alarm

def check(data, max_pixels, **options):
    whole, data = data, data[3:]
    if data == b"abort":
        os.abort()
    if data == b"exit":
        os._exit(3)
    if data == b"leave":
        os._exit(0)
    if data == b"stall":
        time.sleep(60)
    if data == b"print":
        os.write(1, b"noise on standard output")
        raise images.ImageError("corrupt", "as it says")
    if data == b"environment":
        raise images.ImageError("corrupt", " ".join(f"{name}={value}" for name, value in os.environ.items()))
    return real_check(whole, max_pixels, **options)

images.check = check
signal.alarm = lambda seconds: real_alarm(min(seconds, 1))
"""


@pytest.fixture
def ledger(tmp_path: Path) -> Any:
    with Ledger(tmp_path / "fetch") as opened:
        yield opened


@pytest.fixture
def patched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoder processes that misbehave on certain bytes."""
    (tmp_path / "sitecustomize.py").write_text(PATCHED)
    monkeypatch.syspath_prepend(tmp_path)


def checked(ledger: Ledger, *datas: bytes, processes: int = 1, keep_truncated: bool = False) -> list[Checked]:
    async def run() -> list[Checked]:
        async with Decoders(ledger, max_pixels=10_000, keep_truncated=keep_truncated, processes=processes) as decoders:
            return list(await asyncio.gather(*(decoders.check(data) for data in datas)))

    return asyncio.run(run())


def is_stored(ledger: Ledger, data: bytes, found: Checked) -> bool:
    assert found.offset is not None
    stored = os.pread(ledger.spool, len(data), found.offset)
    return (stored, found.sha256) == (data, hashlib.sha256(data).hexdigest())


def test_sizes_and_statuses(ledger: Ledger) -> None:
    good, html, large = checked(ledger, GOOD, b"<html>", encoded(Image.new("RGB", (101, 100)), "PNG"), processes=2)
    assert (good.status, good.width, good.height, good.detail) == ("ok", 8, 6, None)
    assert (html.status, large.status) == ("not_image", "too_many_pixels")
    assert "101 × 100" in str(large.detail)
    assert (html.sha256, html.offset) == (None, None)


@pytest.mark.parametrize("keep", [False, True])
def test_a_truncated_image_is_kept_where_it_is_asked_for(ledger: Ledger, keep: bool) -> None:
    grainy = encoded(Image.effect_noise((90, 60), 80), "JPEG")
    little, much = GOOD[:-2], grainy[: -len(grainy) // 2]
    kept, refused, whole = checked(ledger, little, much, GOOD, keep_truncated=keep)
    assert (refused.status, refused.sha256) == ("truncated", None)
    assert (whole.status, whole.detail) == ("ok", None)
    assert kept.status == ("ok" if keep else "truncated")
    if keep:
        assert is_stored(ledger, little, kept)
        assert (kept.width, kept.height) == (8, 6)
        assert str(kept.detail).startswith("truncated, kept: JPEG: image file is truncated")


def test_images_are_stored_each_at_its_own_place(ledger: Ledger) -> None:
    datas = [GOOD, OTHER, b"<html>", GOOD, OTHER]
    found = checked(ledger, *datas, processes=2)
    images = [(data, each) for data, each in zip(datas, found, strict=True) if each.status == "ok"]
    assert all(is_stored(ledger, data, each) for data, each in images)
    assert len({each.offset for _, each in images}) == 4


@pytest.mark.usefixtures("patched")
@pytest.mark.parametrize(
    ("data", "detail"), [(b"abort", "SIGABRT"), (b"exit", "exit status 3"), (b"stall", "not done after")]
)
def test_an_image_that_ends_its_decoder_costs_one_image(ledger: Ledger, data: bytes, detail: str) -> None:
    before, bad, after = checked(ledger, GOOD, BEGIN + data, GOOD)
    assert is_stored(ledger, GOOD, before)
    assert is_stored(ledger, GOOD, after)
    assert bad.status == "corrupt"
    assert detail in str(bad.detail)


@pytest.mark.usefixtures("patched")
def test_each_image_that_ends_its_decoder_is_named_and_no_other(ledger: Ledger) -> None:
    datas = [GOOD, BEGIN + b"abort", OTHER, b"<html>", BEGIN + b"exit", GOOD, BEGIN + b"abort"] + [GOOD] * 70
    found = checked(ledger, *datas, processes=2)
    statuses = ["ok", "corrupt", "ok", "not_image", "corrupt", "ok", "corrupt"] + ["ok"] * 70
    assert [each.status for each in found] == statuses
    reasons = [str(found[number].detail).split("(")[1] for number in (1, 4, 6)]
    assert reasons == ["SIGABRT)", "exit status 3)", "SIGABRT)"]
    assert all(is_stored(ledger, data, each) for data, each in zip(datas, found, strict=True) if each.status == "ok")


def test_what_is_no_image_takes_no_room_in_the_spool(ledger: Ledger) -> None:
    (page,) = checked(ledger, b"<html>" * 1_000)
    assert (page.status, page.detail) == ("not_image", "no JPEG, PNG, GIF or WEBP; starts with b'<html><html>'")
    assert ledger.reserve(1) == 0


@pytest.mark.usefixtures("patched")
def test_the_pool_ends_at_once_while_a_process_is_busy(ledger: Ledger) -> None:
    async def run() -> list[int | None]:
        async with Decoders(ledger, max_pixels=10_000, processes=1) as decoders:
            await decoders.check(GOOD)
            processes = list(decoders.running)
            asked = decoders.check(BEGIN + b"stall")
            await asyncio.sleep(0.05)
            asked.cancel()
        return [process.returncode for process in processes]

    assert asyncio.run(run()) == [-signal.SIGKILL]


def test_images_that_are_cancelled_before_their_turn_are_not_checked(ledger: Ledger) -> None:
    async def run() -> list[Checked]:
        async with Decoders(ledger, max_pixels=10_000, processes=2) as decoders:
            checks = [decoders.check(data) for data in (GOOD, OTHER) * 60]
            for check in checks[::3]:
                check.cancel()
            return [await check for check in checks if not check.cancelled()]

    assert [each.status for each in asyncio.run(run())] == ["ok"] * 80


@pytest.mark.usefixtures("patched")
def test_a_lost_pipe_is_no_damaged_image(ledger: Ledger) -> None:
    with pytest.raises(StageError, match="a decoder process lost its pipe"):
        checked(ledger, GOOD, BEGIN + b"leave", GOOD)


@pytest.mark.usefixtures("patched")
def test_what_a_decoder_prints_is_not_a_reply(ledger: Ledger) -> None:
    assert [c.status for c in checked(ledger, BEGIN + b"print", GOOD)] == ["corrupt", "ok"]


@pytest.mark.usefixtures("patched")
def test_decoders_do_not_see_secrets(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "REPLICATE_API_TOKEN", "AWS_SECRET_ACCESS_KEY", "https_proxy"):
        monkeypatch.setenv(name, "SECRET")
    (found,) = checked(ledger, BEGIN + b"environment")
    assert "PYTHONPATH=" in str(found.detail)
    assert "SECRET" not in str(found.detail)


def test_a_decoder_killed_from_outside_is_replaced_and_its_image_tried_again(ledger: Ledger) -> None:
    async def run() -> list[Checked]:
        async with Decoders(ledger, max_pixels=10_000, processes=1) as decoders:
            first = await decoders.check(GOOD)
            for process in decoders.running:
                process.kill()
            return [first, await decoders.check(GOOD), await decoders.check(GOOD)]

    found = asyncio.run(run())
    assert [each.status for each in found] == ["ok"] * 3
    assert all(is_stored(ledger, GOOD, each) for each in found)


def test_a_decoder_that_cannot_start_is_not_a_damaged_image(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "PIL").mkdir()
    (tmp_path / "PIL" / "__init__.py").write_text("raise ImportError('broken installation')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(StageError, match="decoder process does not start"):
        checked(ledger, GOOD)


def test_a_disk_error_of_a_decoder_is_reported_with_the_file(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    read_only = os.open(ledger.spool_path, os.O_RDONLY)
    monkeypatch.setattr(ledger, "spool", read_only)
    with pytest.raises(DiskError, match=r"spool\.bin: cannot be written.*finished work is kept"):
        checked(ledger, GOOD)
    monkeypatch.undo()
    os.close(read_only)


def test_a_request_that_a_dead_build_did_not_finish_is_not_answered(ledger: Ledger) -> None:
    places = [(ledger.write(data), len(data)) for data in (GOOD, OTHER)]
    one, two = (decoder.COUNT.pack(count) + decoder.IMAGE.pack(*places[0]) for count in (1, 2))
    replies = io.BytesIO()
    decoder.serve(io.BytesIO(one + two + decoder.IMAGE.pack(*places[1])[:-1]), replies, ledger.spool, 10_000)
    (reply,) = replies.getvalue().splitlines()
    assert json.loads(reply)[0]["sha256"] == hashlib.sha256(GOOD).hexdigest()
