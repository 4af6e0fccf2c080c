"""`sqid explore`: ready, Ctrl-C, and failures in one line."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import pytest
from tiny_release import write_release

import builder.explore
from builder.cli import main


def test_it_prints_its_url_answers_and_ends_with_ctrl_c(tmp_path: Path) -> None:
    release = write_release(tmp_path / "release")
    command = [sys.executable, "-m", "builder", "explore", str(release), "--cache-dir", str(tmp_path / "cache")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        late = threading.Timer(60, process.kill)
        late.start()
        assert process.stdout is not None and process.stderr is not None
        url = process.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(url, timeout=20) as page:
            assert b"<!doctype html>" in page.read().lower()
        process.send_signal(signal.SIGINT)
        assert (process.wait(), process.stdout.read(), process.stderr.read()) == (0, "", "")
        late.cancel()


def test_failures_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    release = write_release(tmp_path / "release")
    common = ["--cache-dir", str(tmp_path / "cache")]

    def explore(*arguments: str) -> tuple[int, str]:
        status = main(["explore", *arguments, *common])
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1, err
        return status, err

    with socket.create_server(("127.0.0.1", 0)) as taken:
        status, err = explore(str(release), "--port", str(taken.getsockname()[1]))
    assert status == 1 and "the port is in use" in err
    for arguments, expected, message in (
        ([str(release), "--port", "70000"], 2, "0 to 65535"),
        ([str(release), "--host", "no.such.host.invalid"], 2, "unknown host"),
        ([str(release), "--methods", "clip_txt"], 2, "Did you mean clip_text?"),
        ([str(release), "--methods", "random"], 2, "no order to show"),
        ([str(release), "--run", str(tmp_path / "nowhere.run")], 1, "no such run file"),
        ([str(release), "--images", str(tmp_path)], 1, "no fetched images"),
        ([str(tmp_path / "nowhere")], 1, "nowhere"),
        ([str(tmp_path)], 1, "neither a release nor the classic files"),
    ):
        status, err = explore(*arguments)
        assert status == expected and message in err, err


def test_without_its_extra_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "builder.explore.server", raising=False)
    monkeypatch.delattr(builder.explore, "server", raising=False)
    assert main(["explore", str(tmp_path)]) == 1
    assert 'pip install "sqid[explore]"' in capsys.readouterr().err
