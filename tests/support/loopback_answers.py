"""The answer of each endpoint of the loopback Hub, as the real clients and the public API of the Hub have it."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs, quote, unquote

from loopback_http import Answer, Call, error_answer, json_answer, ranged
from loopback_repos import GITATTRIBUTES, Commit, Repo, Store, is_lfs

WRITE_TOKEN = "hf_loopbackWriteTokenNotARealSecret"
READ_TOKEN = "hf_loopbackReadTokenNotARealSecret"

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
    "xet-token": ("GET", rf"/api/datasets/{_ID}/xet-(?P<kind>read|write)-token/(?P<rev>[^/]+)"),
    "resolve": ("GET", rf"/datasets/{_ID}/resolve/(?P<rev>[^/]+)/(?P<path>.+)"),
    "lfs-put": ("PUT", r"/upload/(?P<oid>[0-9a-f]{64})"),
    "lfs-get": ("GET", r"/objects/(?P<oid>[0-9a-f]{64})"),
}
ON_STORAGE = ("lfs-put", "lfs-get")
_NEEDS_WRITE = ("create", "preupload", "lfs-batch", "commit", "tag")


class Answers:
    """The state of a Hub, and `answer`, which changes it as clients request."""

    def __init__(self, store: Store, *, xet: bool) -> None:
        self.store, self.xet = store, xet
        self.repos: dict[str, Repo] = {}
        self.page_size = 1000
        self.endpoint = self.storage = ""

    def make_repo(self, repo_id: str, private: bool) -> Repo:
        """A new repository with the first commit, which the Hub makes itself."""
        repo = self.repos[repo_id] = Repo(private)
        repo.commit({".gitattributes": self.store.put(GITATTRIBUTES)}, "initial commit")
        return repo

    def answer(self, name: str, match: re.Match[str], call: Call) -> Answer:
        """The answer to one request; a refusal if the token does not allow it or the target does not exist."""
        refusal = self._refusal(name, match, call)
        if refusal is not None:
            return refusal
        found: Answer = getattr(self, "_" + name.replace("-", "_"))(match, call)
        return found

    def _refusal(self, name: str, match: re.Match[str], call: Call) -> Answer | None:
        if name in ON_STORAGE:
            return None
        roles = {None: "anonymous", WRITE_TOKEN: "write", READ_TOKEN: "read"}
        role = roles.get(call.token)
        if role is None:
            return error_answer(401, "Invalid credentials in Authorization header")
        writes = name in _NEEDS_WRITE or (name == "xet-token" and match["kind"] == "write")
        if writes and role != "write":
            if role == "read":
                return error_answer(403, "Forbidden: you don't have the write access needed with this token")
            return error_answer(401, "Invalid username or password.")
        repo_id = match.groupdict().get("id")
        if repo_id is not None:
            repo = self.repos.get(repo_id)
            if repo is None or (repo.private and role == "anonymous"):
                return error_answer(401 if role == "anonymous" else 404, "Repository not found", "RepoNotFound")
            rev = match.groupdict().get("rev")
            if rev is not None and repo.find(unquote(rev)) is None:
                return error_answer(404, f"Invalid rev id: {unquote(rev)}", "RevisionNotFound")
        return None

    def _at(self, match: re.Match[str]) -> tuple[Repo, Commit]:
        repo = self.repos[match["id"]]
        commit = repo.find(unquote(match.groupdict().get("rev") or "main"))
        assert commit is not None
        return repo, commit

    def _create(self, match: re.Match[str], call: Call) -> Answer:
        asked = call.json()
        repo_id = f"{asked['organization'] or 'me'}/{asked['name']}"
        url = f"{self.endpoint}/datasets/{repo_id}"
        if asked.get("type") != "dataset":
            return error_answer(400, "only datasets are supported")
        if repo_id in self.repos:
            return json_answer({"error": "You already created this dataset repo", "url": url}, 409)
        self.make_repo(repo_id, bool(asked.get("private")) or asked.get("visibility") == "private")
        return json_answer({"url": url, "name": repo_id, "id": repo_id})

    def _validate_yaml(self, match: re.Match[str], call: Call) -> Answer:
        from huggingface_hub import DatasetCard

        try:
            metadata = {k: v for k, v in vars(DatasetCard(call.json()["content"]).data).items() if v}
        except Exception as error:
            return json_answer({"errors": [{"message": str(error)}], "warnings": []}, 400)
        if not metadata:
            return json_answer({"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]})
        return json_answer({"errors": [], "warnings": []})

    def _whoami(self, match: re.Match[str], call: Call) -> Answer:
        if call.token is None:
            return error_answer(401, "Invalid username or password.")
        role = "write" if call.token == WRITE_TOKEN else "read"
        return json_answer({"type": "user", "name": "me", "orgs": [], "auth": {"accessToken": {"role": role}}})

    def _preupload(self, match: re.Match[str], call: Call) -> Answer:
        _, commit = self._at(match)
        files = []
        for asked in call.json()["files"]:
            lfs = is_lfs(asked["path"], asked["size"])
            old = commit.tree.get(asked["path"])
            oid = None if old is None else old.sha256 if old.lfs else old.oid
            mode = "lfs" if lfs else "regular"
            files.append({"path": asked["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return json_answer({"files": files, "commitOid": commit.oid})

    def _lfs_batch(self, match: re.Match[str], call: Call) -> Answer:
        objects = []
        for asked in call.json()["objects"]:
            answer: dict[str, Any] = {"oid": asked["oid"], "size": asked["size"]}
            if not self.store.has(asked["oid"]):
                answer["actions"] = {"upload": {"href": f"{self.storage}/upload/{asked['oid']}", "header": {}}}
            objects.append(answer)
        return json_answer({"transfer": "basic", "objects": objects})

    def _lfs_put(self, match: re.Match[str], call: Call) -> Answer:
        if self.store.put(call.body).sha256 != match["oid"]:
            return error_answer(400, "the sha256 of the bytes is not their name")
        return Answer()

    def _xet_token(self, match: re.Match[str], call: Call) -> Answer:
        expires, token = 4_000_000_000, "xet_loopback"
        answer = json_answer({"accessToken": token, "exp": expires, "casUrl": self.store.xet_url})
        answer.headers |= {
            "X-Xet-Cas-Url": self.store.xet_url,
            "X-Xet-Access-Token": token,
            "X-Xet-Token-Expiration": str(expires),
        }
        return answer

    def _commit(self, match: re.Match[str], call: Call) -> Answer:
        repo, _ = self._at(match)
        lines = [json.loads(line) for line in call.body.splitlines() if line]
        header: dict[str, Any] = {}
        tree = dict(repo.commits[repo.branches["main"]].tree)
        for line in lines:
            kind, value = line["key"], line["value"]
            if kind == "header":
                header = value
                if header.get("parentCommit") not in (None, repo.branches["main"]):
                    return error_answer(412, "A commit has happened since. Please refresh and try again.")
            elif kind == "file":
                tree[value["path"]] = self.store.put(base64.b64decode(value["content"]))
            elif kind == "lfsFile":
                if not self.store.has(value["oid"]):
                    return error_answer(400, f"LFS object {value['oid']} was never uploaded")
                tree[value["path"]] = self.store.lfs_blob(value["oid"], value["size"])
            elif kind == "deletedFile":
                if tree.pop(value["path"], None) is None:
                    return error_answer(404, "A file with this name doesn't exist", "EntryNotFound")
            elif kind == "deletedFolder":
                tree = {p: b for p, b in tree.items() if not p.startswith(value["path"].rstrip("/") + "/")}
        oid = repo.commit(tree, header["summary"])
        return json_answer(
            {"success": True, "commitOid": oid, "commitUrl": f"{self.endpoint}/datasets/{match['id']}/commit/{oid}"}
        )

    def _tag(self, match: re.Match[str], call: Call) -> Answer:
        repo, commit = self._at(match)
        tag = call.json()["tag"]
        if tag in repo.tags:
            return error_answer(409, f"Tag reference exists already: {tag}")
        repo.tags[tag] = commit.oid
        return json_answer({"success": True})

    def _refs(self, match: re.Match[str], call: Call) -> Answer:
        repo = self.repos[match["id"]]

        def listed(kind: str, refs: Mapping[str, str]) -> list[dict[str, str]]:
            return [{"name": n, "ref": f"refs/{kind}/{n}", "targetCommit": oid} for n, oid in refs.items()]

        return json_answer(
            {"branches": listed("heads", repo.branches), "tags": listed("tags", repo.tags), "converts": []}
        )

    def _tree(self, match: re.Match[str], call: Call) -> Answer:
        _, commit = self._at(match)
        folder = unquote(match["path"] or "").rstrip("/")
        prefix = f"{folder}/" if folder else ""
        entries = [entry for path, entry in commit.entries().items() if path.startswith(prefix)]
        if folder and not entries:
            return error_answer(404, f"{folder} does not exist", "EntryNotFound")
        if call.query.get("recursive", "false").lower() not in ("true", "1"):
            entries = [entry for entry in entries if "/" not in entry["path"][len(prefix) :]]
        start = int(call.query.get("cursor", "0"))
        answer = json_answer(entries[start : start + self.page_size])
        if start + self.page_size < len(entries):
            query = {**call.query, "cursor": str(start + self.page_size)}
            more = "&".join(f"{k}={quote(v)}" for k, v in query.items())
            answer.headers["Link"] = f'<{self.endpoint}{call.path}?{more}>; rel="next"'
        return answer

    def _paths_info(self, match: re.Match[str], call: Call) -> Answer:
        _, commit = self._at(match)
        if "json" in call.headers.get("Content-Type", ""):
            paths = call.json()["paths"]
        else:
            paths = parse_qs(call.body.decode()).get("paths", [])
        entries = commit.entries()
        return json_answer([entries[path.rstrip("/")] for path in paths if path.rstrip("/") in entries])

    def _revision(self, match: re.Match[str], call: Call) -> Answer:
        repo, commit = self._at(match)
        siblings = [{"rfilename": path} for path in sorted(commit.tree)]
        return json_answer(
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

    def _resolve(self, match: re.Match[str], call: Call) -> Answer:
        _, commit = self._at(match)
        blob = commit.tree.get(unquote(match["path"]))
        if blob is None:
            answer = error_answer(404, "Entry not found", "EntryNotFound")
            answer.headers["X-Repo-Commit"] = commit.oid
            return answer
        headers = {"X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
        if blob.lfs:
            headers |= {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(blob.size)}
            if self.xet and blob.sha256 in (known := self.store.xet_hashes()):
                token = f"{self.endpoint}/api/datasets/{match['id']}/xet-read-token/{commit.oid}"
                headers |= {"X-Xet-Hash": known[blob.sha256][0], "Link": f'<{token}>; rel="xet-auth"'}
            return Answer(302, b"", {**headers, "Location": f"{self.storage}/objects/{blob.sha256}"})
        return ranged(self.store.read(blob.sha256), call, {**headers, "ETag": f'"{blob.oid}"'})

    def _lfs_get(self, match: re.Match[str], call: Call) -> Answer:
        if not self.store.has(match["oid"]):
            return error_answer(404, "no such object")
        return ranged(self.store.read(match["oid"]), call, {"ETag": f'"{match["oid"]}"'})
