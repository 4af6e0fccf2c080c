"""A Hub on 127.0.0.1 for the real huggingface_hub and datasets clients: repos with history, LFS or Xet.

    with LoopbackHub(tmp_path / "hub") as hub:
        hub.add_repo("ORG/sqid", release_folder)
        hub.run('from datasets import load_dataset; print(len(load_dataset("ORG/sqid", split="test")))')

HF_ENDPOINT is read when huggingface_hub is imported, so clients that take no `endpoint=` run in a process of their own:
`hub.run`, or anything started with `hub.env()`.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import ThreadingHTTPServer
from pathlib import Path
from types import TracebackType

import warm_python
from loopback_answers import ON_STORAGE, READ_TOKEN, ROUTES, WRITE_TOKEN, Answers
from loopback_http import Answer, Call, Cut, Request, Site, error_answer, serve
from loopback_repos import GITATTRIBUTES, Store, is_lfs

__all__ = ["GITATTRIBUTES", "READ_TOKEN", "WRITE_TOKEN", "LoopbackHub"]


@dataclass
class _Fault:
    times: int
    kind: int | str


class LoopbackHub(Answers):
    """A Hub under `root` (its objects, and the clients' caches). Use as a context manager.

    Large files travel over LFS, or with `xet` over the real Xet client and a store on disk.

    Attributes: `endpoint` and `storage` (the two origins), `repos`, `requests` (the log), `hooks` (endpoint → called
    with the hub before that endpoint answers), `page_size` (entries per page of a tree),
    `retry_after` (header of injected statuses).
    """

    def __init__(self, root: Path, *, xet: bool = False) -> None:
        super().__init__(Store(root), xet=xet)
        self.root = root
        self.requests: list[Request] = []
        self.hooks: dict[str, Callable[[LoopbackHub], None]] = {}
        self.retry_after = ""
        self._faults: dict[str, _Fault] = {}
        self._lock = threading.RLock()
        self._servers: list[ThreadingHTTPServer] = []

    def __enter__(self) -> LoopbackHub:
        origins = []
        for host, names in (("127.0.0.1", set(ROUTES) - set(ON_STORAGE)), ("localhost", set(ON_STORAGE))):
            routes = {name: route for name, route in ROUTES.items() if name in names}
            server = serve(Site(routes, self.answer, self.requests, self._half))
            self._servers.append(server)
            origins.append(f"http://{host}:{server.server_port}")
        self.endpoint, self.storage = origins
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    # -- what tests do with it ------------------------------------------------------------------------------------

    def add_repo(
        self, repo_id: str, folder: Path | None = None, *, tag: str | None = None, private: bool = False
    ) -> str:
        """A new commit on main with exactly the files of `folder`, in a repo made if needed; returns its id."""
        with self._lock:
            if repo_id not in self.repos:
                self.make_repo(repo_id, private)
            repo = self.repos[repo_id]
            tree = dict(repo.commits[repo.branches["main"]].tree)
            if folder is not None:
                files = sorted(p for p in folder.rglob("*") if p.is_file())
                tree = {".gitattributes": tree[".gitattributes"]} if ".gitattributes" in tree else {}
                for path in files:
                    name, data = path.relative_to(folder).as_posix(), path.read_bytes()
                    tree[name] = self.store.put(data, lfs=is_lfs(name, len(data)))
                repo.commit(tree, "add folder")
            if tag:
                repo.tags[tag] = repo.branches["main"]
            return repo.branches["main"]

    def put(self, repo_id: str, files: Mapping[str, bytes | None], title: str = "edit") -> str:
        """A commit on main that writes `files`, None removing one; returns its id."""
        with self._lock:
            repo = self.repos[repo_id]
            tree = dict(repo.commits[repo.branches["main"]].tree)
            for name, data in files.items():
                tree.pop(name, None)
                if data is not None:
                    tree[name] = self.store.put(data, lfs=is_lfs(name, len(data)))
            return repo.commit(tree, title)

    def fail(self, endpoint: str, kind: int | str = 503, times: int = 1) -> None:
        """Make the next `times` answers of an endpoint fail.

        `kind` is a status, "cut" (half the body is read, nothing is done, the connection closes), "lost" (all is done,
        the connection closes without an answer), "html" (503 with a web page) or "slow" (no answer for five seconds).
        """
        if endpoint not in ROUTES:
            raise KeyError(endpoint)
        self._faults[endpoint] = _Fault(times, kind)

    def head(self, repo_id: str, revision: str = "main") -> str:
        commit = self.repos[repo_id].find(revision)
        assert commit is not None
        return commit.oid

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """Path → content at a revision."""
        commit = self.repos[repo_id].find(revision)
        assert commit is not None
        return {path: self.store.read(blob.sha256) for path, blob in sorted(commit.tree.items())}

    def count(self, endpoint: str) -> int:
        return sum(request.endpoint == endpoint for request in self.requests)

    def env(self, token: str | None = WRITE_TOKEN) -> dict[str, str]:
        """Environment for a client process: this endpoint, LFS or Xet, caches of its own, no proxies."""
        keep = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
        home = self.root / "home"
        return {
            **keep,
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "0" if self.xet else "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            **({"HF_TOKEN": token} if token else {}),
        }

    def run(self, code: str, *args: str, token: str | None = WRITE_TOKEN) -> str:
        """Runs Python code as a client of this Hub; returns its stdout, raises with its stderr."""
        done = warm_python.run(code, *args, env=self.env(token))
        if done.returncode:
            raise AssertionError(f"client exited {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done.stdout

    def _half(self, name: str) -> bool:
        fault = self._faults.get(name)
        with self._lock:  # uploads run in parallel, and each fault is for one of them
            if name != "lfs-put" or fault is None or fault.times <= 0 or fault.kind != "cut":
                return False
            fault.times -= 1
            return True

    def answer(self, name: str, match: re.Match[str], call: Call) -> Answer:
        if hook := self.hooks.get(name):
            hook(self)
        fault = self._faults.get(name)
        if fault and fault.times > 0:
            fault.times -= 1
            if fault.kind == "cut":
                raise Cut
            if fault.kind == "html":
                return Answer(503, b"<html>Service Unavailable</html>", {"Content-Type": "text/html"})
            if fault.kind == "slow":
                threading.Event().wait(5)
                raise Cut
            if isinstance(fault.kind, int):
                answer = error_answer(fault.kind, f"injected {fault.kind}")
                answer.headers |= {"Retry-After": self.retry_after} if self.retry_after else {}
                return answer
        else:
            fault = None
        with self._lock:
            answer = super().answer(name, match, call)
        if fault and fault.kind == "lost":
            raise Cut
        return answer
