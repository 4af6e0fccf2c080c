"""fetch on a machine at its limits: one error, nothing recorded; and Ctrl-C while decoders start."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from fetch_fixtures import HOST, recipe, resolved, statuses
from hostile_server import LoopbackServer, Request, answer, jpeg

from builder.database import query_copy
from builder.fetch import fetch, open_files
from builder.fetch.decoders import Decoders
from builder.fetch.ledger import Ledger
from builder.fetch.open_files import fit_open_files
from builder.recipe import FetchSettings
from sqid_lib.errors import FetchError, StageError


async def shop(request: Request, writer: asyncio.StreamWriter) -> None:
    writer.write(answer(jpeg(int(request.path[1:]))))


@pytest.fixture
def server() -> Iterator[LoopbackServer]:
    with LoopbackServer(shop) as running:
        yield running


def test_a_fault_of_the_machine_records_nothing_for_its_urls(
    server: LoopbackServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    real = os.dup

    def few(descriptor: int) -> int:
        made.append(descriptor)
        if len(made) > 2:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return real(descriptor)

    built = recipe({HOST: server.origin}, per_host=8)
    resolved(tmp_path, *(f"{HOST}/{n}" for n in range(20)))
    with monkeypatch.context() as limited:
        limited.setattr("builder.http.transfer.os.dup", few)
        with pytest.raises(FetchError, match=r"cannot make more connections.*EMFILE"):
            fetch(built, tmp_path)
    recorded = query_copy(tmp_path / "fetch" / "ledger.sqlite", "SELECT status FROM outcomes")
    assert {status for (status,) in recorded} <= {"ok"}
    fetch(built, tmp_path)
    assert statuses(tmp_path) == ["ok"] * 20


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets how many files may be open, with 20 open now and 2 decoders."""

    def set_to(allowed: int) -> None:
        monkeypatch.setattr(resource, "getrlimit", lambda _: (allowed, allowed))

    monkeypatch.setattr(open_files, "_open_now", lambda: 20)
    monkeypatch.setattr(open_files, "cpus", lambda: 2)
    return set_to


@pytest.mark.parametrize(
    ("allowed", "concurrency"), [(resource.RLIM_INFINITY, 32), (1_024, 32), (106, 32), (105, 31), (44, 1)]
)
def test_no_more_connections_than_open_files_allow(
    limit: Any, allowed: int, concurrency: int, caplog: pytest.LogCaptureFixture
) -> None:
    limit(allowed)
    with caplog.at_level(logging.WARNING):
        assert fit_open_files(FetchSettings()) == FetchSettings(concurrency=concurrency)
    lines = [record.message for record in caplog.records]
    lowered = (
        f"fetch: at most {concurrency} requests at once and not 32: this process may open {allowed} files "
        "(raise it with ulimit -n)"
    )
    assert lines == ([] if concurrency == 32 else [lowered])


def test_without_room_for_one_connection_the_stage_is_refused(limit: Any) -> None:
    limit(43)
    with pytest.raises(
        StageError, match=r"ulimit -n: too few open files are allowed; expected at least 106 .*got 43\."
    ):
        fit_open_files(FetchSettings())


def test_decoders_that_cannot_be_started_are_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refused(*_: Any, **__: Any) -> Any:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    async def run(ledger: Ledger) -> None:
        async with Decoders(ledger, max_pixels=10_000, processes=1) as decoders:
            await decoders.check(b"\xff\xd8\xffx")

    monkeypatch.setattr(asyncio, "create_subprocess_exec", refused)
    with (
        Ledger(tmp_path) as ledger,
        pytest.raises(StageError, match=r"decoder processes cannot be started; got .*ulimit"),
    ):
        asyncio.run(run(ledger))


RUN = """
import json, os, signal, sys
from pathlib import Path
from builder.fetch import fetch
from builder.recipe import EsciSettings, FetchSettings, Recipe
limits = FetchSettings(**json.loads(sys.argv[2]))
try:
    fetch(Recipe(name="t", version="1", esci=EsciSettings(path="."), fetch=limits), Path(sys.argv[1]))
except KeyboardInterrupt:
    sys.stderr.write("stopped")
    sys.exit(130)
"""


@pytest.mark.parametrize("wait", [0.0, 0.02, 0.05, 0.1])
def test_ctrl_c_while_decoders_start_prints_no_traceback(server: LoopbackServer, tmp_path: Path, wait: float) -> None:
    """Ctrl-C on a terminal reaches every process of the group."""
    built = recipe({HOST: server.origin}, concurrency=2)
    resolved(tmp_path, *(f"{HOST}/{n}" for n in range(5_000)))
    command = [sys.executable, "-c", RUN, str(tmp_path), json.dumps(built.fetch.model_dump())]
    started = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert started.stderr is not None
    with closing(started.stderr) as errors:
        while not server.requests and started.poll() is None:
            time.sleep(0.001)
        time.sleep(wait)
        os.killpg(started.pid, signal.SIGINT)
        said = errors.read()
        assert started.wait() == 130, said
    assert "Traceback" not in said and said.endswith("stopped")
