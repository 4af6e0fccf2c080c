from __future__ import annotations

import asyncio
import errno
import gc
import io
import resource
import socket
import ssl
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from hostile_server import JPEG, STATIC, LoopbackServer, Request, answer, hostile
from hypothesis import example, given, settings
from hypothesis import strategies as st

from builder.http.client import ACCEPT_IMAGES, Answer, Client, user_agent
from builder.recipe import FetchSettings
from sqid_lib.errors import DiskError


@pytest.fixture(scope="module")
def server() -> Iterator[LoopbackServer]:
    with LoopbackServer(hostile) as running:
        yield running


@pytest.fixture(scope="module")
def private() -> Iterator[LoopbackServer]:
    """A service on the user's own network, which must never be reached."""

    async def secret(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(JPEG))

    with LoopbackServer(secret) as running:
        yield running


# for answers that end in a timeout; for others there is time enough on a busy machine
SHORT: dict[str, Any] = {"timeout": 1.2, "read_timeout": 0.8}


def limits(*allowed: LoopbackServer, **changes: Any) -> FetchSettings:
    hosts = tuple(f"127.0.0.1:{server.port}" for server in allowed)
    chosen: dict[str, Any] = {"timeout": 20.0, "read_timeout": 10.0, **changes}
    return FetchSettings(allow_hosts=hosts, max_bytes=1_000_000, **chosen)


def get(url: str, fetch: FetchSettings, **options: Any) -> tuple[Answer, bytes | None]:
    async def run() -> tuple[Answer, bytes | None]:
        async with Client(fetch, accept=ACCEPT_IMAGES, contact="me@example.org") as client:
            answered = await client.get(url, **options)
            if answered.body is None:
                return answered, None
            with answered.body as body:
                return answered, body.read()

    return asyncio.run(run())


@pytest.mark.parametrize("path", [p for p in STATIC if p.startswith("/ok")] + ["/cookie"])
def test_bodies_come_whole(server: LoopbackServer, path: str) -> None:
    answered, body = get(server.origin + path, limits(server))
    assert (answered.status, answered.http_status, body) == ("ok", 200, JPEG)


STATUSES = {
    "/empty": "empty",
    "/gzip-bomb": "too_large",
    "/gzip-truncated": "corrupt",
    "/gzip-false": "corrupt",
    "/brotli": "http_error",
    "/404": "not_found",
    "/410": "not_found",
    "/401": "blocked",
    "/403": "blocked",
    "/418": "http_error",
    "/204": "http_error",
    "/206": "http_error",
    "/500": "http_error",
    "/304": "http_error",
    "/redirect-nowhere": "redirects",
    "/redirect-loop": "redirects",
    "/redirect-file": "bad_url",
    "/redirect-script": "bad_url",
    "/redirect-broken": "bad_url",
    "/redirect-brackets": "bad_url",
    "/status-tab": "connection",
    "/status-glued": "connection",
    "/status-long": "connection",
    "/status-small": "connection",
    "/status-trailer": "connection",
    "/words": "connection",
    "/endless-trailers": "connection",
    "/says-too-much": "too_large",
    "/negative-length": "connection",
    "/two-lengths": "connection",
    "/transfer-gzip": "connection",
    "/big-404": "not_found",
    "/cut-404": "not_found",
    "/garbage": "connection",
    "/long-header": "connection",
    "/bad-chunks": "connection",
    "/endless-body": "too_large",
    "/endless-chunks": "too_large",
    "/endless-headers": "connection",
    "/endless-interim": "timeout",
    "/drip": "timeout",
    "/silence": "timeout",
    "/stops": "timeout",
    "/cut": "connection",
    "/reset": "connection",
}


@pytest.mark.parametrize("path", STATUSES)
def test_every_hostile_answer_has_a_status(server: LoopbackServer, path: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    short = SHORT if STATUSES[path] == "timeout" else {}
    answered, body = get(server.origin + path, limits(server, **short))
    assert (answered.status, body) == (STATUSES[path], None), answered.detail
    assert answered.detail
    assert answered.detail.isprintable()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


@pytest.mark.parametrize("path", ["/500", "/cut", "/reset", "/503-for-a-day"])
def test_what_may_pass_is_marked_for_another_try(server: LoopbackServer, path: str) -> None:
    answered, _ = get(server.origin + path, limits(server))
    assert answered.again
    assert answered.retry_after == (86_400 if path == "/503-for-a-day" else None)


@pytest.mark.parametrize(
    "path",
    ["/404", "/403", "/endless-headers", "/endless-trailers", "/drip", "/silence", "/endless-body", "/redirect-loop"],
)
def test_what_will_not_pass_is_not(server: LoopbackServer, path: str) -> None:
    short = SHORT if STATUSES[path] == "timeout" else {}
    assert not get(server.origin + path, limits(server, **short))[0].again


def test_every_request_has_a_total_time_of_its_own(server: LoopbackServer) -> None:
    async def run() -> None:
        async with Client(limits(server, timeout=2.0), accept=ACCEPT_IMAGES) as client:
            first = asyncio.create_task(client.get(f"{server.origin}/drip"))
            await asyncio.sleep(1.0)
            second = asyncio.create_task(client.get(f"{server.origin}/drip"))
            assert (await first).detail == "not done after 2 s"
            assert not second.done()
            quick = await client.get(f"{server.origin}/ok")
            assert quick.body is not None
            with quick.body as body:
                assert body.read() == JPEG
            assert not second.done()
            assert (await second).detail == "not done after 2 s"
            third = asyncio.create_task(client.get(f"{server.origin}/drip"))
            await asyncio.sleep(0.1)
            third.cancel()
            with pytest.raises(asyncio.CancelledError):  # the caller's wish is no timeout
                await third

    asyncio.run(run())


def test_a_host_that_cannot_be_reached_is_not_tried_again() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        answered, _ = get(f"http://127.0.0.1:{port}/", FetchSettings(allow_hosts=(f"127.0.0.1:{port}",)))
    assert (answered.status, answered.again) == ("connection", False)


@pytest.mark.parametrize(("hops", "status"), [(1, "redirects"), (2, "redirects"), (3, "redirects"), (4, "ok")])
def test_redirects_are_followed_as_often_as_the_recipe_says(server: LoopbackServer, hops: int, status: str) -> None:
    answered, body = get(f"{server.origin}/redirect-3", limits(server, max_redirects=hops))
    assert (answered.status, body is not None) == (status, status == "ok")
    assert get(f"{server.origin}/redirect-2", limits(server))[0].url == f"{server.origin}/ok"


def test_bodies_of_errors_come_when_asked_for(server: LoopbackServer) -> None:
    answered, body = get(f"{server.origin}/404", limits(server), every_body=True)
    assert (answered.status, answered.http_status, body) == ("not_found", 404, b"gone")


def test_redirects_keep_bytes_that_are_no_ascii(server: LoopbackServer) -> None:
    assert get(f"{server.origin}/redirect-utf8", limits(server))[0].url == f"{server.origin}/café|%7C"
    assert server.requests[-1].path == "/caf%C3%A9|%7C"
    get(f"{server.origin}/redirect-raw", limits(server))
    assert server.requests[-1].path == "/caf%E9"


@given(st.lists(st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="#")), max_size=5))
@example(["%a0%7c", "..", ".", "", "?%c3?"])  # curl's own way would be /%A0%7C/…
@settings(max_examples=100, deadline=None)
def test_paths_arrive_byte_for_byte(server: LoopbackServer, parts: list[str]) -> None:
    path = "/x" + "/".join(parts)
    get(server.origin + path, limits(server))
    assert server.requests[-1].path == path


def test_connections_are_used_again_and_made_anew_when_the_server_closed_them(server: LoopbackServer) -> None:
    async def closes(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(JPEG))
        await writer.drain()
        if request.path == "/last":
            raise ConnectionResetError

    async def run(running: LoopbackServer) -> None:
        async with Client(limits(running), accept=ACCEPT_IMAGES) as client:
            for path in ["/a", "/b", "/last", "/c", "/last", "/d"]:
                answered = await client.get(running.origin + path)
                assert answered.body is not None, answered
                with answered.body as body:
                    assert body.read() == JPEG
                await asyncio.sleep(0.02)

    with LoopbackServer(closes) as running:
        asyncio.run(run(running))
        assert running.connections == 3


def test_no_host_gets_more_connections_than_the_recipe_says(server: LoopbackServer) -> None:
    async def run(running: LoopbackServer) -> list[Answer]:
        async with Client(limits(running, per_host=2), accept=ACCEPT_IMAGES) as client:
            return await asyncio.gather(*(client.get(f"{running.origin}/404") for _ in range(20)))

    async def slow(request: Request, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.05)
        writer.write(STATIC["/404"])

    with LoopbackServer(slow) as running:
        assert {a.status for a in asyncio.run(run(running))} == {"not_found"}
        assert (running.connections, len(running.requests)) == (2, 20)


def test_a_cancelled_request_does_not_pass_for_one_that_timed_out(server: LoopbackServer) -> None:
    async def run() -> None:
        async with Client(limits(server), accept=ACCEPT_IMAGES) as client:
            task = asyncio.create_task(client.get(f"{server.origin}/silence"))
            await asyncio.sleep(0.2)
            (request,) = client._requests
            assert request.coming is not None
            request.ended = "late"  # as the watch would, in the same turn of the loop
            request.coming.cancel()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(run())


def test_what_follows_a_compressed_body_is_not_given_to_zlib(
    server: LoopbackServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would copy what it does not read, all of it again with every piece."""

    class Counting:
        eof = property(lambda self: inflate.eof)

        def decompress(self, data: bytes, most: int) -> bytes:
            fed.append(len(data))
            return inflate.decompress(data, most)

    inflate, fed = zlib.decompressobj(47), list[int]()
    monkeypatch.setattr("builder.http.transfer.zlib.decompressobj", lambda bits: Counting())
    fetch = limits(server).model_copy(update={"max_bytes": 20_000_000, "timeout": 30.0})
    assert get(f"{server.origin}/gzip-junk", fetch)[1] == JPEG
    assert 0 < sum(fed) < 1_000_000


def test_waiting_for_a_connection_is_no_silence(server: LoopbackServer) -> None:
    async def slow(request: Request, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.5)
        writer.write(STATIC["/404"])

    async def run(running: LoopbackServer) -> list[Answer]:
        async with Client(limits(running, per_host=1, read_timeout=1.2), accept="*/*") as client:
            return await asyncio.gather(*(client.get(running.origin) for _ in range(4)))  # the last waits for 1.5 s

    with LoopbackServer(slow) as running:
        assert [a.detail for a in asyncio.run(run(running))] == ["HTTP 404"] * 4


def test_requests_end_with_their_client(server: LoopbackServer) -> None:
    async def run() -> None:
        async with Client(limits(server), accept="*/*") as client:
            waiting = asyncio.create_task(client.get(f"{server.origin}/silence"))
            await asyncio.sleep(0.1)
        await asyncio.wait((waiting,), timeout=20)
        assert waiting.cancelled()

    asyncio.run(run())


def test_a_lookup_that_fails_too_late_is_not_printed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def lookup(*args: Any, **kwargs: Any) -> Any:
        time.sleep(0.3)
        raise socket.gaierror(socket.EAI_NONAME, "no")

    async def run() -> None:
        async with Client(FetchSettings(timeout=0.1), accept="*/*") as client:
            assert (await client.get("http://slow.example/")).status == "timeout"
            await asyncio.sleep(0.4)
            client._names._lookups.clear()
            gc.collect()

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    asyncio.run(run())
    assert not caplog.records


@pytest.mark.parametrize("proxy", ["http://me:SECRET@bad host:1", "http://mé:SECRET@127.0.0.1:1", "me:SECRET@[::1"])
def test_the_password_of_a_proxy_is_never_shown(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    monkeypatch.setenv("http_proxy", proxy)
    answered, _ = get("http://h.example/", FetchSettings(trust_env=True))
    assert answered.status in ("connection", "refused")
    assert "SECRET" not in repr(answered)


def test_a_disk_that_fills_up_at_the_end_is_no_fault_of_the_url(
    server: LoopbackServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(io.BytesIO):
        def seek(self, *args: int) -> int:
            raise OSError(errno.ENOSPC, "full")

        def close(self) -> None:
            raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(tempfile, "TemporaryFile", lambda dir: Full())
    with pytest.raises(DiskError, match="no space"):
        get(f"{server.origin}/big-404", limits(server).model_copy(update={"max_bytes": 10**7}), every_body=True)


def test_a_disk_that_refuses_large_bodies_is_no_fault_of_the_url(server: LoopbackServer, tmp_path: Path) -> None:
    async def run() -> None:
        async with Client(
            limits(server).model_copy(update={"max_bytes": 10_000_000}), accept="*/*", spill=tmp_path / "gone"
        ) as client:
            await client.get(f"{server.origin}/endless-body")

    with pytest.raises(DiskError, match="gone"):
        asyncio.run(run())


# every spelling of this machine's own address
SPELLINGS = [
    *("127.0.0.1", "localhost", "127.1", "127.0.1", "2130706433", "017700000001", "0177.0.0.1", "0x7f.1"),
    *("0x7f000001", "0.0.0.0", "0", "[::1]", "[::]", "[::ffff:127.0.0.1]"),
    *("[::ffff:7f00:1]", "[64:ff9b::7f00:1]", "[::127.0.0.1]", "127.0.0.1.", "LOCALHOST", "①②⑦.⓪.⓪.①", "127。0。0。1"),
]


@pytest.mark.parametrize("host", SPELLINGS)
def test_own_network_is_never_reached_by_any_spelling(
    server: LoopbackServer, private: LoopbackServer, host: str
) -> None:
    fetch = limits(server, ports=(80, 443, private.port))
    answered, body = get(f"http://{host}:{private.port}/private", fetch)
    assert (answered.status in ("refused", "connection", "bad_url"), body) == (True, None), answered
    assert private.requests == []


@pytest.mark.parametrize("host", SPELLINGS)
def test_own_network_is_never_reached_by_redirect(server: LoopbackServer, private: LoopbackServer, host: str) -> None:
    fetch = limits(server, ports=(80, 443, private.port))
    answered, body = get(f"{server.origin}/to/{host}:{private.port}", fetch)
    assert (answered.status in ("refused", "connection", "bad_url", "redirects"), body) == (True, None), answered
    assert private.requests == []


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "0x7f.1"])
def test_refusals_say_so(server: LoopbackServer, private: LoopbackServer, host: str) -> None:
    answered, _ = get(f"http://{host}:{private.port}/private", limits(server, ports=(private.port,)))
    assert answered.status == "refused"
    assert "not a public address" in str(answered.detail)


def names(monkeypatch: pytest.MonkeyPatch, answers: dict[str, list[str]]) -> None:
    """Stands in for the name service; each lookup takes the next answer, the last one stays."""
    real = socket.getaddrinfo

    def lookup(host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
        if host in answers:
            host = answers[host].pop(0) if len(answers[host]) > 1 else answers[host][0]
        return real(host, port, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", lookup)


def test_names_of_private_addresses_are_refused(
    server: LoopbackServer, private: LoopbackServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    names(monkeypatch, {"innocent.example": ["127.0.0.1"]})
    fetch = limits(server, private, ports=(80, 443, private.port))
    # the recipe allows 127.0.0.1 by that name; another name for it is not allowed
    assert get(f"http://innocent.example:{private.port}/", fetch)[0].status == "refused"
    assert private.requests == []


def test_a_name_that_changes_its_address_between_hops_is_checked_at_each(
    server: LoopbackServer, private: LoopbackServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    names(monkeypatch, {"rebinding.example": ["127.0.0.1"]})
    fetch = limits(server, ports=(80, 443, private.port)).model_copy(
        update={"allow_hosts": (f"rebinding.example:{server.port}",)}
    )
    answered, _ = get(f"http://rebinding.example:{server.port}/to/rebinding.example:{private.port}", fetch)
    assert answered.status == "refused"
    assert private.requests == []


def test_names_are_looked_up_once_and_not_waited_for_longer_than_a_request(
    server: LoopbackServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    ended = threading.Event()

    def lookup(host: str, *args: Any, **kwargs: Any) -> Any:
        asked.append(host)
        if host == "slow.example":
            assert ended.wait(20)
        return real("127.0.0.1", *args, **kwargs)

    async def run() -> list[Answer]:
        fetch = FetchSettings(allow_hosts=(f"a.example:{server.port}", f"slow.example:{server.port}"), timeout=1.5)
        async with Client(fetch, accept=ACCEPT_IMAGES) as client:
            hosts = ["a.example"] * 3 + ["slow.example"]
            answers = await asyncio.gather(*(client.get(f"http://{h}:{server.port}/404") for h in hosts))
            ended.set()
            return answers

    real = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    assert [a.status for a in asyncio.run(run())] == ["not_found"] * 3 + ["timeout"]
    assert sorted(asked) == ["a.example", "slow.example"]


def test_https_is_verified(server: LoopbackServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))

    async def run(port_of: socket.socket) -> Answer:
        async def page(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer(b"gone", 404, Connection="close"))
            writer.close()

        running = await asyncio.start_server(page, sock=port_of, ssl=context)
        async with running:
            port = port_of.getsockname()[1]
            async with Client(FetchSettings(allow_hosts=(f"localhost:{port}",)), accept="*/*") as client:
                return await client.get(f"https://localhost:{port}/")

    def https() -> Answer:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            return asyncio.run(run(listening))

    untrusted = https()
    assert (untrusted.status, untrusted.again) == ("connection", False)
    assert "certificate" in str(untrusted.detail)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    assert https().status == "not_found"


def test_ports_outside_the_recipe_are_refused_before_any_connection() -> None:
    answered, _ = get("http://8.8.8.8:22/", FetchSettings())
    assert (answered.status, answered.detail) == ("refused", "port 22 is not among the recipe's ports")


def test_environment_proxies_are_ignored_unless_asked(
    server: LoopbackServer, private: LoopbackServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", private.origin)
    assert get(f"{server.origin}/ok", limits(server))[1] == JPEG
    assert private.requests == []
    # a proxy on an own address must be allowed like any other host there
    url = "http://h.example/x"
    assert get(url, limits(server, trust_env=True))[0].status == "refused"
    assert private.requests == []
    behind = limits(server, trust_env=True).model_copy(update={"allow_hosts": ("h.example:80",)})
    assert get(url, behind)[0].status == "refused"
    assert private.requests == []
    assert get(url, limits(private, trust_env=True))[1] == JPEG
    assert private.requests.pop().path == url


def test_a_socks_proxy_passes_requests_through(monkeypatch: pytest.MonkeyPatch) -> None:
    heads: list[bytes] = []

    async def run() -> Answer:
        async def socks5(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            _, methods = await reader.readexactly(2)  # RFC 1928
            await reader.readexactly(methods)
            writer.write(b"\x05\x00")
            _, _, _, _, length = await reader.readexactly(5)
            await reader.readexactly(length + 2)  # a name and a port
            writer.write(b"\x05\x00\x00\x01" + bytes(6))
            heads.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(STATIC["/404"])
            await writer.drain()
            writer.close()

        running = await asyncio.start_server(socks5, "127.0.0.1", 0)
        async with running:
            port = running.sockets[0].getsockname()[1]
            monkeypatch.setenv("all_proxy", f"socks5h://127.0.0.1:{port}")
            fetch = FetchSettings(allow_hosts=(f"127.0.0.1:{port}",), trust_env=True)
            async with Client(fetch, accept="*/*") as client:
                return await client.get("http://h.example/x%7c")

    assert asyncio.run(run()).status == "not_found"
    assert heads[0].startswith(b"GET /x%7c HTTP/1.1\r\n")


def test_requests_name_the_program_and_its_contact(server: LoopbackServer) -> None:
    get(f"{server.origin}/cookie?a=%7C|", limits(server))
    get(f"{server.origin}/ok", limits(server))
    path, headers = server.requests[-2].path, server.requests[-1].headers
    assert path == "/cookie?a=%7C|"
    assert headers["User-Agent"] == user_agent("me@example.org")
    assert headers["User-Agent"].startswith("sqid/")
    assert "Mozilla" not in headers["User-Agent"]
    assert "me@example.org" in headers["User-Agent"]
    assert headers["Accept-Encoding"] == "identity"
    assert "Cookie" not in headers
