"""A Hub on 127.0.0.1 for the genuine huggingface_hub and datasets clients: repos with history, LFS on another origin.

    with LoopbackHub(tmp_path / "hub") as hub:
        hub.add_repo("ORG/sqid", release_folder)
        hub.run('from datasets import load_dataset; print(len(load_dataset("ORG/sqid", split="test")))')

HF_ENDPOINT is read when huggingface_hub is imported, so clients that take no `endpoint=` run in a subprocess:
`hub.run`, or anything started with `hub.env()`.
"""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

WRITE_TOKEN = "hf_loopbackWriteTokenNotARealSecret"
READ_TOKEN = "hf_loopbackReadTokenNotARealSecret"
GITATTRIBUTES = b"*.parquet filter=lfs diff=lfs merge=lfs -text\n*.arrow filter=lfs diff=lfs merge=lfs -text\n"
LFS_FROM_BYTES = 10_000_000  # larger files go to LFS whatever their name, as on the Hub


@dataclass(frozen=True)
class Blob:
    """A file of one commit; `oid` is the git id of the blob, or of the pointer for LFS."""

    sha256: str
    size: int
    oid: str
    lfs: bool


@dataclass(frozen=True)
class Commit:
    oid: str
    parent: str | None
    title: str
    tree: Mapping[str, Blob]


@dataclass
class Repo:
    private: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def find(self, revision: str) -> Commit | None:
        revision = revision.removeprefix("refs/heads/").removeprefix("refs/tags/")
        oid = self.branches.get(revision) or self.tags.get(revision) or revision
        return self.commits.get(oid)


@dataclass(frozen=True)
class Request:
    """One line of the log; `endpoint` is a name of ROUTES, `authorized` whether a token came with it."""

    method: str
    endpoint: str
    path: str
    authorized: bool
    received: int  # bytes of body


@dataclass
class _Fault:
    times: int
    kind: int | str


class _Cut(Exception):
    """Close the connection without an answer."""


@dataclass
class Answer:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


def _json(value: object, status: int = 200) -> Answer:
    return Answer(status, json.dumps(value).encode(), {"Content-Type": "application/json"})


def _error(status: int, message: str, code: str = "") -> Answer:
    answer = _json({"error": message}, status)
    answer.headers |= {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
    return answer


_ID = r"(?P<id>[^/]+/[^/]+)"
ROUTES = {  # name → method, path; tried in order. The last two are on the other origin
    "create": ("POST", r"/api/repos/create"),
    "validate-yaml": ("POST", r"/api/validate-yaml"),
    "whoami": ("GET", r"/api/whoami-v2"),
    "preupload": ("POST", rf"/api/datasets/{_ID}/preupload/(?P<rev>[^/]+)"),
    "lfs-batch": ("POST", rf"/datasets/{_ID}\.git/info/lfs/objects/batch"),
    "commit": ("POST", rf"/api/datasets/{_ID}/commit/(?P<rev>[^/]+)"),
    "tag": ("POST", rf"/api/datasets/{_ID}/tag/(?P<rev>[^/]+)"),
    "paths-info": ("POST", rf"/api/datasets/{_ID}/paths-info/(?P<rev>[^/]+)"),
    "refs": ("GET", rf"/api/datasets/{_ID}/refs"),
    "tree": ("GET", rf"/api/datasets/{_ID}/tree/(?P<rev>[^/]+)(?:/(?P<path>.*))?"),
    "revision": ("GET", rf"/api/datasets/{_ID}(?:/revision/(?P<rev>[^/]+))?"),
    "resolve": ("GET", rf"/datasets/{_ID}/resolve/(?P<rev>[^/]+)/(?P<path>.+)"),
    "lfs-put": ("PUT", r"/upload/(?P<oid>[0-9a-f]{64})"),
    "lfs-get": ("GET", r"/objects/(?P<oid>[0-9a-f]{64})"),
}
_ON_STORAGE = ("lfs-put", "lfs-get")
_NEEDS_WRITE = ("create", "preupload", "lfs-batch", "commit", "tag")


class LoopbackHub:
    """A Hub under `root` (its objects, and the clients' caches). Use as a context manager.

    Attributes: `endpoint` and `storage` (the two origins), `repos`, `requests` (the log), `hooks` (endpoint → called
    with the hub before that endpoint answers), `page_size` (entries per page of a tree),
    `retry_after` (header of injected statuses).
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.repos: dict[str, Repo] = {}
        self.requests: list[Request] = []
        self.hooks: dict[str, Callable[[LoopbackHub], None]] = {}
        self.page_size = 1000
        self.retry_after = ""
        self.endpoint = self.storage = ""
        self._faults: dict[str, _Fault] = {}
        self._lock = threading.RLock()
        self._servers: list[ThreadingHTTPServer] = []
        (root / "objects").mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> LoopbackHub:
        origins = []
        for host, names in (("127.0.0.1", set(ROUTES) - set(_ON_STORAGE)), ("localhost", set(_ON_STORAGE))):
            server = _Server(("127.0.0.1", 0), _handler(self, names))
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
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
                repo = self.repos[repo_id] = Repo(private)
                self._record(repo, {".gitattributes": self.store(GITATTRIBUTES)}, "initial commit")
            repo = self.repos[repo_id]
            tree = dict(repo.commits[repo.branches["main"]].tree)
            if folder is not None:
                files = sorted(p for p in folder.rglob("*") if p.is_file())
                tree = {".gitattributes": tree[".gitattributes"]} if ".gitattributes" in tree else {}
                for path in files:
                    name, data = path.relative_to(folder).as_posix(), path.read_bytes()
                    tree[name] = self.store(data, lfs=self._is_lfs(name, len(data)))
                self._record(repo, tree, "add folder")
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
                    tree[name] = self.store(data, lfs=self._is_lfs(name, len(data)))
            return self._record(repo, tree, title)

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
        return {path: self.read(blob.sha256) for path, blob in sorted(commit.tree.items())}

    def count(self, endpoint: str) -> int:
        return sum(request.endpoint == endpoint for request in self.requests)

    def env(self, token: str | None = WRITE_TOKEN) -> dict[str, str]:
        """Environment for a client process: this endpoint, LFS instead of Xet, caches of its own, no proxies."""
        keep = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
        home = self.root / "home"
        return {
            **keep,
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            **({"HF_TOKEN": token} if token else {}),
        }

    def run(self, code: str, *args: str, token: str | None = WRITE_TOKEN, python: str = sys.executable) -> str:
        """Runs Python code as a client of this Hub; returns its stdout, raises with its stderr."""
        done = subprocess.run(
            [python, "-c", code, *args], env=self.env(token), capture_output=True, text=True, timeout=120, check=False
        )
        if done.returncode:
            raise AssertionError(f"client exited {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done.stdout

    # -- objects and commits --------------------------------------------------------------------------------------

    def store(self, data: bytes, *, lfs: bool = False) -> Blob:
        sha256 = hashlib.sha256(data).hexdigest()
        path = self.root / "objects" / sha256
        if not path.exists():
            part = path.with_suffix(f".{threading.get_ident()}")
            part.write_bytes(data)
            part.replace(path)
        return self._blob(sha256, len(data), lfs, data)

    def read(self, sha256: str) -> bytes:
        return (self.root / "objects" / sha256).read_bytes()

    def _blob(self, sha256: str, size: int, lfs: bool, data: bytes | None = None) -> Blob:
        if lfs:
            data = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
        assert data is not None
        return Blob(sha256, size, _git_oid(data), lfs)

    def _is_lfs(self, path: str, size: int) -> bool:
        patterns = [line.split()[0] for line in GITATTRIBUTES.decode().splitlines()]
        return size > LFS_FROM_BYTES or any(fnmatch.fnmatch(path, pattern) for pattern in patterns)

    def _record(self, repo: Repo, tree: Mapping[str, Blob], title: str) -> str:
        parent = repo.branches.get("main")
        listing = "".join(f"{path} {blob.oid}\n" for path, blob in sorted(tree.items()))
        oid = hashlib.sha1(f"{parent}\n{title}\n{len(repo.commits)}\n{listing}".encode()).hexdigest()
        repo.commits[oid] = Commit(oid, parent, title, dict(tree))
        repo.branches["main"] = oid
        return oid

    # -- answers --------------------------------------------------------------------------------------------------

    def answer(self, name: str, match: re.Match[str], call: _Call) -> Answer:
        if hook := self.hooks.get(name):
            hook(self)
        fault = self._faults.get(name)
        if fault and fault.times > 0:
            fault.times -= 1
            if fault.kind == "cut":
                raise _Cut
            if fault.kind == "html":
                return Answer(503, b"<html>Service Unavailable</html>", {"Content-Type": "text/html"})
            if fault.kind == "slow":
                threading.Event().wait(5)
                raise _Cut
            if isinstance(fault.kind, int):
                answer = _error(fault.kind, f"injected {fault.kind}")
                answer.headers |= {"Retry-After": self.retry_after} if self.retry_after else {}
                return answer
        else:
            fault = None
        with self._lock:
            answer = self._refusal(name, match, call) or getattr(self, "_" + name.replace("-", "_"))(match, call)
        if fault and fault.kind == "lost":
            raise _Cut
        assert isinstance(answer, Answer)
        return answer

    def _refusal(self, name: str, match: re.Match[str], call: _Call) -> Answer | None:
        if name in _ON_STORAGE:
            return None
        roles = {None: "anonymous", WRITE_TOKEN: "write", READ_TOKEN: "read"}
        role = roles.get(call.token)
        if role is None:
            return _error(401, "Invalid credentials in Authorization header")
        if name in _NEEDS_WRITE and role != "write":
            if role == "read":
                return _error(403, "Forbidden: you don't have the write access needed with this token")
            return _error(401, "Invalid username or password.")
        repo_id = match.groupdict().get("id")
        if repo_id is not None:
            repo = self.repos.get(repo_id)
            if repo is None or (repo.private and role == "anonymous"):
                return _error(401 if role == "anonymous" else 404, "Repository not found", "RepoNotFound")
            rev = match.groupdict().get("rev")
            if rev is not None and repo.find(unquote(rev)) is None:
                return _error(404, f"Invalid rev id: {unquote(rev)}", "RevisionNotFound")
        return None

    def _at(self, match: re.Match[str]) -> tuple[Repo, Commit]:
        repo = self.repos[match["id"]]
        commit = repo.find(unquote(match.groupdict().get("rev") or "main"))
        assert commit is not None
        return repo, commit

    def _create(self, match: re.Match[str], call: _Call) -> Answer:
        asked = call.json()
        repo_id = f"{asked['organization'] or 'me'}/{asked['name']}"
        url = f"{self.endpoint}/datasets/{repo_id}"
        if asked.get("type") != "dataset":
            return _error(400, "only datasets live here")
        if repo_id in self.repos:
            return _json({"error": "You already created this dataset repo", "url": url}, 409)
        self.add_repo(repo_id, private=bool(asked.get("private")) or asked.get("visibility") == "private")
        return _json({"url": url, "name": repo_id, "id": repo_id})

    def _validate_yaml(self, match: re.Match[str], call: _Call) -> Answer:
        from huggingface_hub import DatasetCard

        try:
            metadata = {k: v for k, v in vars(DatasetCard(call.json()["content"]).data).items() if v}
        except Exception as error:
            return _json({"errors": [{"message": str(error)}], "warnings": []}, 400)
        if not metadata:
            return _json({"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]})
        return _json({"errors": [], "warnings": []})

    def _whoami(self, match: re.Match[str], call: _Call) -> Answer:
        if call.token is None:
            return _error(401, "Invalid username or password.")
        role = "write" if call.token == WRITE_TOKEN else "read"
        return _json({"type": "user", "name": "me", "orgs": [], "auth": {"accessToken": {"role": role}}})

    def _preupload(self, match: re.Match[str], call: _Call) -> Answer:
        _, commit = self._at(match)
        files = []
        for asked in call.json()["files"]:
            lfs = self._is_lfs(asked["path"], asked["size"])
            old = commit.tree.get(asked["path"])
            oid = None if old is None else old.sha256 if old.lfs else old.oid
            mode = "lfs" if lfs else "regular"
            files.append({"path": asked["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return _json({"files": files, "commitOid": commit.oid})

    def _lfs_batch(self, match: re.Match[str], call: _Call) -> Answer:
        objects = []
        for asked in call.json()["objects"]:
            answer: dict[str, Any] = {"oid": asked["oid"], "size": asked["size"]}
            if not (self.root / "objects" / asked["oid"]).exists():
                answer["actions"] = {"upload": {"href": f"{self.storage}/upload/{asked['oid']}", "header": {}}}
            objects.append(answer)
        return _json({"transfer": "basic", "objects": objects})

    def _lfs_put(self, match: re.Match[str], call: _Call) -> Answer:
        if hashlib.sha256(call.body).hexdigest() != match["oid"]:
            return _error(400, "the bytes do not hash to their name")
        self.store(call.body)
        return Answer()

    def _commit(self, match: re.Match[str], call: _Call) -> Answer:
        repo, _ = self._at(match)
        lines = [json.loads(line) for line in call.body.splitlines() if line]
        header: dict[str, Any] = {}
        tree = dict(repo.commits[repo.branches["main"]].tree)
        for line in lines:
            kind, value = line["key"], line["value"]
            if kind == "header":
                header = value
                if header.get("parentCommit") not in (None, repo.branches["main"]):
                    return _error(412, "A commit has happened since. Please refresh and try again.")
            elif kind == "file":
                tree[value["path"]] = self.store(base64.b64decode(value["content"]))
            elif kind == "lfsFile":
                if not (self.root / "objects" / value["oid"]).exists():
                    return _error(400, f"LFS object {value['oid']} was never uploaded")
                tree[value["path"]] = self._blob(value["oid"], value["size"], lfs=True)
            elif kind == "deletedFile":
                if tree.pop(value["path"], None) is None:
                    return _error(404, "A file with this name doesn't exist", "EntryNotFound")
            elif kind == "deletedFolder":
                tree = {p: b for p, b in tree.items() if not p.startswith(value["path"].rstrip("/") + "/")}
        oid = self._record(repo, tree, header["summary"])
        return _json(
            {"success": True, "commitOid": oid, "commitUrl": f"{self.endpoint}/datasets/{match['id']}/commit/{oid}"}
        )

    def _tag(self, match: re.Match[str], call: _Call) -> Answer:
        repo, commit = self._at(match)
        tag = call.json()["tag"]
        if tag in repo.tags:
            return _error(409, f"Tag reference exists already: {tag}")
        repo.tags[tag] = commit.oid
        return _json({"success": True})

    def _refs(self, match: re.Match[str], call: _Call) -> Answer:
        repo = self.repos[match["id"]]

        def listed(kind: str, refs: Mapping[str, str]) -> list[dict[str, str]]:
            return [{"name": n, "ref": f"refs/{kind}/{n}", "targetCommit": oid} for n, oid in refs.items()]

        return _json({"branches": listed("heads", repo.branches), "tags": listed("tags", repo.tags), "converts": []})

    def _entries(self, commit: Commit) -> dict[str, dict[str, Any]]:
        entries: dict[str, dict[str, Any]] = {}
        for path, blob in sorted(commit.tree.items()):
            parts = path.split("/")
            for depth in range(1, len(parts)):
                folder = "/".join(parts[:depth])
                entries[folder] = {"type": "directory", "oid": _git_oid(folder.encode()), "size": 0, "path": folder}
            entries[path] = {"type": "file", "oid": blob.oid, "size": blob.size, "path": path}
            if blob.lfs:
                entries[path]["lfs"] = {"oid": blob.sha256, "size": blob.size, "pointerSize": 134}
        last = {"id": commit.oid, "title": commit.title, "date": "2024-01-01T00:00:00.000Z"}
        return {path: {**entry, "lastCommit": last} for path, entry in entries.items()}

    def _tree(self, match: re.Match[str], call: _Call) -> Answer:
        _, commit = self._at(match)
        folder = unquote(match["path"] or "").rstrip("/")
        prefix = f"{folder}/" if folder else ""
        entries = [entry for path, entry in self._entries(commit).items() if path.startswith(prefix)]
        if folder and not entries:
            return _error(404, f"{folder} does not exist", "EntryNotFound")
        if call.query.get("recursive", "false").lower() not in ("true", "1"):
            entries = [entry for entry in entries if "/" not in entry["path"][len(prefix) :]]
        start = int(call.query.get("cursor", "0"))
        answer = _json(entries[start : start + self.page_size])
        if start + self.page_size < len(entries):
            query = {**call.query, "cursor": str(start + self.page_size)}
            more = "&".join(f"{k}={quote(v)}" for k, v in query.items())
            answer.headers["Link"] = f'<{self.endpoint}{call.path}?{more}>; rel="next"'
        return answer

    def _paths_info(self, match: re.Match[str], call: _Call) -> Answer:
        _, commit = self._at(match)
        if "json" in call.headers.get("Content-Type", ""):
            paths = call.json()["paths"]
        else:
            paths = parse_qs(call.body.decode()).get("paths", [])
        entries = self._entries(commit)
        return _json([entries[path.rstrip("/")] for path in paths if path.rstrip("/") in entries])

    def _revision(self, match: re.Match[str], call: _Call) -> Answer:
        repo, commit = self._at(match)
        siblings = [{"rfilename": path} for path in sorted(commit.tree)]
        return _json(
            {
                "_id": "0" * 24,
                "id": match["id"],
                "author": match["id"].split("/")[0],
                "sha": commit.oid,
                "private": repo.private,
                "gated": False,
                "disabled": False,
                "tags": [],
                "siblings": siblings,
                "lastModified": "2024-01-01T00:00:00.000Z",
                "createdAt": "2024-01-01T00:00:00.000Z",
            }
        )

    def _resolve(self, match: re.Match[str], call: _Call) -> Answer:
        _, commit = self._at(match)
        blob = commit.tree.get(unquote(match["path"]))
        if blob is None:
            answer = _error(404, "Entry not found", "EntryNotFound")
            answer.headers["X-Repo-Commit"] = commit.oid
            return answer
        headers = {"X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
        if blob.lfs:
            headers |= {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(blob.size)}
            return Answer(302, b"", {**headers, "Location": f"{self.storage}/objects/{blob.sha256}"})
        return _ranged(self.read(blob.sha256), call, {**headers, "ETag": f'"{blob.oid}"'})

    def _lfs_get(self, match: re.Match[str], call: _Call) -> Answer:
        path = self.root / "objects" / match["oid"]
        if not path.exists():
            return _error(404, "no such object")
        return _ranged(path.read_bytes(), call, {"ETag": f'"{match["oid"]}"'})


def _git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _ranged(data: bytes, call: _Call, headers: dict[str, str]) -> Answer:
    asked = re.fullmatch(r"bytes=(\d*)-(\d*)", call.headers.get("Range", ""))
    if not asked:
        return Answer(200, data, headers)
    first, last = asked.groups()
    start = int(first) if first else max(0, len(data) - int(last))
    stop = min(int(last) + 1, len(data)) if first and last else len(data)
    if start >= len(data):
        return Answer(416, b"", {"Content-Range": f"bytes */{len(data)}"})
    return Answer(206, data[start:stop], {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"})


@dataclass
class _Call:
    path: str
    query: dict[str, str]
    headers: Message
    body: bytes

    @property
    def token(self) -> str | None:
        return self.headers.get("Authorization", "").removeprefix("Bearer ") or None

    def json(self) -> Any:
        return json.loads(self.body)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is nothing to report."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def _handler(hub: LoopbackHub, names: set[str]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
                chunks = []
                while size := int(self.rfile.readline(), 16):
                    chunks.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(chunks)
            length = int(self.headers.get("Content-Length") or 0)
            fault = hub._faults.get("lfs-put")
            if self.command == "PUT" and fault and fault.times > 0 and fault.kind == "cut":
                length //= 2
            return self.rfile.read(length)

        def _serve(self) -> None:
            url = urlsplit(self.path)
            query = {k: v[0] for k, v in parse_qs(url.query).items()}
            method = "GET" if self.command == "HEAD" else self.command
            for name, (wanted, pattern) in ROUTES.items():
                match = re.fullmatch(pattern, url.path)
                if match and wanted == method and name in names:
                    break
            else:
                self._body()
                hub.requests.append(Request(self.command, "unknown", url.path, False, 0))
                self._send(_error(404, f"this Hub does not know {self.command} {url.path}"))
                return
            body = self._body()
            authorized = "Authorization" in self.headers
            hub.requests.append(Request(self.command, name, url.path, authorized, len(body)))
            try:
                self._send(hub.answer(name, match, _Call(url.path, query, self.headers, body)))
            except _Cut:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)

        def _send(self, answer: Answer) -> None:
            self.send_response(answer.status)
            for key, value in answer.headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer.body)

        do_GET = do_HEAD = do_POST = do_PUT = _serve

    return Handler
