"""Python programs that start at once: forks of a process that has imported what takes long to import.

Each has its own environment, as a program of `python -c` has. What reads the environment when it is imported, such as
huggingface_hub and datasets, is therefore imported by the program itself. For proofs about imports, or about the start
and the options of Python, take a new Python.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# imported by datasets and huggingface_hub, some by some versions only
IMPORTED = (
    *("numpy", "pandas", "pyarrow", "pyarrow.compute", "pyarrow.csv", "pyarrow.dataset", "pyarrow.json"),
    *("pyarrow.parquet", "aiohttp", "asyncio", "dill", "filelock", "fsspec", "httpx", "httpx2", "multiprocess.pool"),
    *("requests", "tqdm.auto", "xxhash", "yaml"),
)


def run(code: str, *args: str, env: Mapping[str, str], timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """As `subprocess.run([sys.executable, "-c", code, *args], env=env, …)` with text and captured output."""
    command = [sys.executable, "-c", code, *args]
    with tempfile.TemporaryDirectory() as folder:
        output, errors = Path(folder, "output"), Path(folder, "errors")
        request = {"code": code, "args": args, "env": {**env}, "output": str(output), "errors": str(errors)}
        server = _server()
        assert server.stdin and server.stdout
        server.stdin.write(json.dumps({**request, "directory": str(Path.cwd())}) + "\n")
        server.stdin.flush()
        if not select.select([server.stdout], [], [], timeout)[0]:
            _server.cache_clear()
            _end(server)
            raise subprocess.TimeoutExpired(command, timeout)
        status = int(server.stdout.readline())
        return subprocess.CompletedProcess(command, status, output.read_text(), errors.read_text())


@functools.cache
def _server() -> subprocess.Popen[str]:
    """The process that forks, and leads the group of its programs."""
    command, pipe = [sys.executable, __file__], subprocess.PIPE
    server = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, process_group=0)
    atexit.register(_end, server)
    return server


def _end(server: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.communicate()


def _wait_for_program() -> dict[str, Any]:
    """In the process that forks: returns once in each fork, with what that is to run."""
    for name in IMPORTED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    while line := sys.stdin.readline():
        if not os.fork():
            program: dict[str, Any] = json.loads(line)
            return program
        sys.stdout.write(f"{os.waitstatus_to_exitcode(os.wait()[1])}\n")
        sys.stdout.flush()
    sys.exit()


def _become(program: dict[str, Any]) -> None:
    """Make this process look like a new one with that environment."""
    for descriptor, path in enumerate((os.devnull, program["output"], program["errors"])):
        opened = os.open(path, os.O_RDWR | os.O_CREAT)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.environ.clear()
    os.environ.update(program["env"])
    os.chdir(program["directory"])
    sys.argv = ["-c", *program["args"]]
    sys.path[0] = ""
    sys.modules["__main__"] = types.ModuleType("__main__")


if __name__ == "__main__":
    program = _wait_for_program()
    _become(program)
    exec(program["code"], vars(sys.modules["__main__"]))
