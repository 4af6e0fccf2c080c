"""Failures of fetch: tried again by themselves where they may pass or a setting changed; hosts that stop answering."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fetch_fixtures import HOST, recipe, resolved, statuses
from hostile_server import JPEG, STATIC, LoopbackServer, Request, answer, hostile

from builder.fetch import fetch
from builder.fetch.failures import losses, may_pass, rules_of
from builder.fetch.ledger import Outcome
from builder.fetch.stage import pending
from builder.recipe import FetchSettings
from sqid_lib.errors import FetchError, UsageError

OTHER = "https://other.example"


@pytest.fixture
def strange() -> Iterator[LoopbackServer]:
    with LoopbackServer(hostile) as running:
        yield running


@pytest.fixture
def nobody() -> Iterator[str]:
    """host:port of a port where nothing listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{bound.getsockname()[1]}"


@pytest.mark.parametrize(
    ("status", "code", "passes"),
    [
        *(("connection", None, True), ("connection", 200, True), ("timeout", None, True)),
        *(("http_error", code, True) for code in (408, 425, 429, 500, 503, 599, None)),
        *(("http_error", code, False) for code in (204, 418, 600)),
        *((status, None, False) for status in ("not_found", "blocked", "refused", "bad_url", "corrupt", "ok")),
    ],
)
def test_which_failures_may_pass(status: str, code: int | None, passes: bool) -> None:
    assert may_pass(Outcome("http://h/", status, code)) is passes


def test_failures_that_may_pass_are_tried_again_by_the_next_run_and_others_are_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = True

    async def shop(request: Request, writer: asyncio.StreamWriter) -> None:
        if request.path == "/cut" and broken:
            raise ConnectionResetError
        code = {"/500": 500, "/429": 429}.get(request.path) if broken else None
        gone = {"/404": answer(b"", 404), "/html": STATIC["/html"]}
        writer.write(answer(b"", code) if code else gone.get(request.path) or answer(JPEG))

    paths = ("/cut", "/500", "/429", "/404", "/html", "/ok")
    resolved(tmp_path, *(f"{HOST}{path}" for path in paths))
    with LoopbackServer(shop) as server:
        built = recipe({HOST: server.origin})
        assert fetch(built, tmp_path) == 6
        assert statuses(tmp_path) == ["connection", "http_error", "http_error", "not_found", "not_image", "ok"]
        assert pending(built, tmp_path) == "3 of 6 URLs done, 3 to fetch, of which 3 failed before"
        broken, before = False, len(server.requests)
        capsys.readouterr()
        assert fetch(built, tmp_path) == 3
        assert sorted(r.path for r in server.requests[before:]) == ["/429", "/500", "/cut"]
        assert statuses(tmp_path) == ["ok", "ok", "ok", "not_found", "not_image", "ok"]
        assert capsys.readouterr().err.splitlines() == [
            "fetch: trying 3 URLs again: failures that may pass",
            "fetch: 3 of 6 URLs: 1 ok, 2 failed",
            "fetch: 6 of 6 URLs: 4 ok, 2 failed",
        ]
        before = len(server.requests)
        assert pending(built, tmp_path) is None
        assert fetch(built, tmp_path) == 0
        assert len(server.requests) == before


@pytest.mark.parametrize(
    ("path", "status", "changes"),
    [
        ("/to/127.0.0.1:1", "refused", {"ports": (80, 443, 1)}),
        ("/redirect-3", "redirects", {"max_redirects": 4}),
        ("/large", "too_large", {"max_bytes": 2_000_000}),
        ("/large", "too_many_pixels", {"max_bytes": 2_000_000, "max_pixels": 1_000_000}),
        ("/404", "not_found", {"trust_env": True}),
    ],
)
def test_failures_that_a_setting_caused_are_tried_again_when_it_changes(
    strange: LoopbackServer,
    tmp_path: Path,
    path: str,
    status: str,
    changes: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    narrow = {"max_redirects": 2, "max_bytes": 10_000}
    if status == "too_many_pixels":
        narrow |= {"max_bytes": 2_000_000, "max_pixels": 1_000}
    resolved(tmp_path, f"{HOST}{path}", f"{HOST}/403")
    fetch(recipe({HOST: strange.origin}, **narrow), tmp_path)
    assert statuses(tmp_path) == [status, "blocked"]
    assert fetch(recipe({HOST: strange.origin}, **narrow, concurrency=3, timeout=6.0), tmp_path) == 0
    capsys.readouterr()
    count = 2 if "trust_env" in changes else 1
    assert fetch(recipe({HOST: strange.origin}, **(narrow | changes)), tmp_path) == count
    line = f"fetch: trying {count} URLs again: failures that depend on settings of [fetch] which changed"
    assert capsys.readouterr().err.splitlines()[0] == line


def test_another_mirror_or_an_allowed_host_is_tried_by_itself(strange: LoopbackServer, tmp_path: Path) -> None:
    resolved(tmp_path, f"{HOST}/ok", f"{OTHER}/404")
    mirrors = {HOST: strange.origin, OTHER: strange.origin}
    fetch(recipe(mirrors, allow_hosts=()), tmp_path)
    assert statuses(tmp_path) == ["refused", "refused"]
    assert fetch(recipe(mirrors), tmp_path) == 2
    assert statuses(tmp_path) == ["ok", "not_found"]
    with LoopbackServer(hostile) as other:
        moved = {HOST: strange.origin, f"{OTHER}/404": f"{other.origin}/ok?"}
        allowed = (f"127.0.0.1:{strange.port}", f"127.0.0.1:{other.port}")
        assert fetch(recipe(moved, allow_hosts=allowed), resolved(tmp_path, f"{HOST}/ok", f"{OTHER}/404/")) == 1
        assert fetch(recipe(moved, allow_hosts=(*reversed(allowed), allowed[0])), tmp_path) == 0


def test_a_ledger_of_an_earlier_version_keeps_its_outcomes(strange: LoopbackServer, tmp_path: Path) -> None:
    built = recipe({HOST: strange.origin})
    resolved(tmp_path, f"{HOST}/ok", f"{HOST}/404")
    fetch(built, tmp_path)
    with contextlib.closing(sqlite3.connect(tmp_path / "fetch" / "ledger.sqlite")) as ledger, ledger:
        for column in ("checksum", "rules"):
            ledger.execute(f"ALTER TABLE outcomes DROP COLUMN {column}")
    assert pending(built, tmp_path) is None
    assert fetch(built, tmp_path) == 0
    assert fetch(built, tmp_path, retry=["not_found"]) == 1
    assert len(strange.requests) == 3


# -- hosts that stop answering --------------------------------------------------------------------------------------


def dying(after: int) -> Any:
    """A handler that answers so many requests and then closes every connection; `alive` can be set again."""

    async def handle(request: Request, writer: asyncio.StreamWriter) -> None:
        handle.asked += 1  # type: ignore[attr-defined]
        if handle.asked > after and not handle.alive:  # type: ignore[attr-defined]
            raise ConnectionResetError
        writer.write(answer(JPEG))

    handle.asked, handle.alive = 0, False  # type: ignore[attr-defined]
    return handle


def test_a_small_shop_whose_host_dies_ends_the_stage_and_the_next_run_makes_it_whole(tmp_path: Path) -> None:
    handler = dying(after=10)
    resolved(tmp_path, *(f"{HOST}/{n}" for n in range(50)))
    with LoopbackServer(handler) as server:
        built = recipe({HOST: server.origin}, per_host=4)
        message = (
            rf"fetch: 127\.0\.0\.1:{server.port} stopped giving images: 40 of its 50 URLs failed "
            r"\(connection: .*\)\. Run the build again when images come"
        )
        with pytest.raises(FetchError, match=message) as raised:
            fetch(built, tmp_path)
        assert "\n" not in str(raised.value)
        assert len(server.requests) < 10 + 2 * 24  # curl asks once more when a connection used before breaks
        assert statuses(tmp_path).count("connection") == 40
        assert pending(built, tmp_path) == "10 of 50 URLs done, 40 to fetch, of which 40 failed before"
        handler.alive = True
        assert fetch(built, tmp_path) == 40
    assert statuses(tmp_path) == ["ok"] * 50


def test_a_host_that_never_answers_ends_the_stage_of_five_images(nobody: str, tmp_path: Path) -> None:
    built = recipe({HOST: f"http://{nobody}"})
    with pytest.raises(FetchError, match=rf"{nobody} stopped giving images: 5 of its 5 URLs failed"):
        fetch(built, resolved(tmp_path, *(f"{HOST}/{n}" for n in range(5))))


def test_with_a_stated_number_of_images_it_is_a_warning(
    nobody: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    built = recipe({HOST: f"http://{nobody}"}, min_images=0)
    with caplog.at_level(logging.WARNING):
        fetch(built, resolved(tmp_path, *(f"{HOST}/{n}" for n in range(30))))
    assert f"{nobody} stopped giving images: 30 of its 30 URLs failed" in caplog.text
    assert statuses(tmp_path) == ["connection"] * 30


def test_a_host_that_costs_few_images_is_a_warning_and_does_not_stop_the_others(
    strange: LoopbackServer, nobody: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    urls = [f"{OTHER}/{n}" for n in range(6)] + [f"{HOST}/ok?{n}" for n in range(60)]
    with caplog.at_level(logging.WARNING):
        fetch(recipe({HOST: strange.origin, OTHER: f"http://{nobody}"}), resolved(tmp_path, *urls))
    assert [record.message for record in caplog.records] == [
        f"fetch: {nobody} stopped giving images: 6 of its 6 URLs failed (connection: no connection). "
        "Run the build again when images come: what failed so is tried again."
    ]
    assert statuses(tmp_path)[:6] == ["connection"] * 6


def test_scattered_failures_are_no_dead_host(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def flaky(request: Request, writer: asyncio.StreamWriter) -> None:
        if int(request.path[1:]) % 2:
            raise ConnectionResetError
        writer.write(answer(JPEG))

    with LoopbackServer(flaky) as server:
        fetch(recipe({HOST: server.origin}, per_host=2), resolved(tmp_path, *(f"{HOST}/{n}" for n in range(60))))
    assert statuses(tmp_path).count("connection") == 30
    assert caplog.records == []


def test_the_worst_hosts_come_first_and_the_rest_is_counted() -> None:
    limits = FetchSettings()
    ended = [Outcome(f"http://h{n}.example/{i}", "timeout") for n in range(5) for i in range(5 + n)]
    found = losses([*ended, Outcome("http://ok.example/", "ok"), None], limits)
    assert [host.name for host in found.hosts] == [f"h{n}.example" for n in (4, 3, 2, 1, 0)]
    assert (found.lost, found.urls, found.too_many) == (35, 36, True)


def test_rules_of_a_success_are_not_kept() -> None:
    assert rules_of("http://h/", "ok", FetchSettings()) is None


def test_a_mistyped_status_is_answered_with_a_question(strange: LoopbackServer, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"got 'not_fund'\. Did you mean not_found\?"):
        fetch(recipe({HOST: strange.origin}), resolved(tmp_path, f"{HOST}/ok"), ["not_fund"])
