"""builder.http.machine: faults of this machine end a run; what one URL or one host is to blame for does not."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import time
from typing import Any

import pycurl
import pytest

from builder.http import machine, names
from builder.http.client import Client
from builder.http.transfer import Transfer
from builder.recipe import FetchSettings
from sqid_lib.errors import FetchError

HOSTS = [f"127.0.0.1:{port}" for port in (9, 10)]


def get(*urls: str) -> list[str]:
    """The statuses, in order."""

    async def run() -> list[str]:
        async with Client(FetchSettings(allow_hosts=tuple(HOSTS), timeout=5.0), accept="*/*") as client:
            return [(await client.get(url)).status for url in urls]

    return asyncio.run(run())


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS])
def test_no_resources_for_a_socket_end_the_run(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def exhausted(family: int, kind: int, protocol: int) -> socket.socket:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("builder.http.transfer._socket", exhausted)
    with pytest.raises(FetchError, match=r"127\.0\.0\.1: this machine cannot make more connections; got .*\(E\w+\)"):
        get("http://127.0.0.1:9/")


def test_a_socket_that_curl_cannot_duplicate_is_the_machines_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr("builder.http.transfer.os.dup", full)
    with pytest.raises(FetchError, match=r"Too many open files \(EMFILE\)\. Raise the limit .*nothing is recorded"):
        get("http://127.0.0.1:9/")


def test_a_refused_connection_and_a_family_that_is_not_there_are_not() -> None:
    assert get("http://127.0.0.1:9/") == ["connection"]
    assert machine.fault(errno.EAFNOSUPPORT, "h") is None
    assert machine.fault(0, "h") is None


@pytest.mark.parametrize("number", [errno.ENETUNREACH, errno.EHOSTUNREACH])
def test_no_route_is_the_machines_fault_only_if_there_is_none_at_all(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(machine, "has_route", lambda: True)
    assert machine.fault(number, "h") is None
    monkeypatch.setattr(machine, "has_route", lambda: False)
    assert "this machine has no route to the network" in str(machine.fault(number, "h"))


def test_a_route_is_looked_up_without_sending_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unreachable(socket.socket):
        def connect(self, address: Any) -> None:
            raise OSError(errno.ENETUNREACH, "unreachable")

    monkeypatch.setattr("builder.http.machine.socket.socket", Unreachable)
    assert machine.has_route() is False


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (pycurl.E_OUT_OF_MEMORY, "cannot make more connections"),
        (pycurl.E_SSL_CACERT_BADFILE, "certificates of this machine cannot be read"),
        (pycurl.E_SSL_CONNECT_ERROR, "None"),
        (pycurl.E_COULDNT_CONNECT, "None"),
    ],
)
def test_errors_of_curl_that_are_the_machines(tmp_path: Any, code: int, message: str) -> None:
    transfer = Transfer([], cap=1, proxies=False, may_connect=lambda *_: False, spill=tmp_path)
    transfer.begin("http://h.example", "/", addresses=None, allowed=False, every_body=False)
    assert message in str(transfer.fault(code, "h.example"))


def lookups(monkeypatch: pytest.MonkeyPatch, known: set[str]) -> None:
    """A name service that knows some names and gives no answer for others; "gone.example" does not exist."""

    def look_up(host: str, port: int, *rest: Any, **more: Any) -> Any:
        if host in known:
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]
        number = socket.EAI_NONAME if host == "gone.example" else socket.EAI_AGAIN
        raise socket.gaierror(number, "no")

    monkeypatch.setattr("socket.getaddrinfo", look_up)


def test_no_name_service_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    lookups(monkeypatch, set())
    with pytest.raises(FetchError, match=r"a\.example: the name service does not answer"):
        get("http://a.example/")


def test_one_name_without_an_answer_is_its_own_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    lookups(monkeypatch, {"good.example"})
    assert get("http://good.example/", "http://bad.example/") == ["refused", "connection"]  # refused: it is loopback
    assert get("http://gone.example/") == ["connection"]


def test_a_name_service_that_stops_answering_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"good.example"}
    lookups(monkeypatch, known)

    async def run() -> None:
        async with Client(FetchSettings(timeout=5.0), accept="*/*") as client:
            await client.get("http://good.example/")
            known.clear()
            await client.get("http://bad.example/")

    with pytest.raises(FetchError, match="name service does not answer"):
        asyncio.run(run())


def test_names_that_are_looked_up_at_the_same_time_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    lookups(monkeypatch, {"good.example"})

    async def run() -> list[str]:
        async with Client(FetchSettings(timeout=5.0), accept="*/*") as client:
            urls = ("http://bad.example/", "http://good.example/")
            return [answer.status for answer in await asyncio.gather(*map(client.get, urls))]

    assert asyncio.run(run()) == ["connection", "refused"]


@pytest.mark.parametrize("later", range(5))
def test_a_name_that_is_found_just_after_another_failed_counts(monkeypatch: pytest.MonkeyPatch, later: int) -> None:
    """`later`: rounds of the event loop between the two answers."""

    async def addresses(host: str, port: int) -> str | None:
        if host == "bad.example":
            raise socket.gaierror(socket.EAI_AGAIN, "no")
        for _ in range(later):
            await asyncio.sleep(0)
        return f"+{host}:{port}:127.0.0.1"

    monkeypatch.setattr(names, "_addresses", addresses)

    async def run() -> bool:
        asked, until = names.Names(), time.monotonic() + 5
        found = asyncio.create_task(asked.look_up("good.example", 80, until))
        with pytest.raises(OSError, match="no"):
            await asked.look_up("bad.example", 80, until)
        answers = await asked.answers(until)
        await found
        return answers

    assert asyncio.run(run())


def test_a_lookup_without_a_free_file_is_the_machines_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    lookups(monkeypatch, set())
    monkeypatch.setattr(machine, "check_files", full)
    with pytest.raises(FetchError, match="Too many open files"):
        get("http://gone.example/")
