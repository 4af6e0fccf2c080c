"""Publish a release: one atomic commit on the Hub, read back and compared, then a tag on exactly that commit."""

from __future__ import annotations

import logging
import re
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from builder.hub.calls import Calls
from builder.hub.repository import Change, Remote, differences, download, list_files, plan_changes, read_remote
from builder.release import manifest
from builder.release.files import may_hold
from builder.validate import validate
from sqid_lib import schemas
from sqid_lib.errors import AuthError, HubError, RefusedError, ReleaseError, SourceError, TagError, UsageError
from sqid_lib.files import sha256

_log = logging.getLogger(__name__)
_STALE = 412  # Precondition Failed: main is no longer the parent of our commit
_CONFLICT = 409


@dataclass(frozen=True)
class PushResult:
    """What a push did, or would do with `dry_run`.

    Attributes:
        url: of the dataset at that commit.
        commit: id of the commit that holds the release; None where a dry run found none.
        tag: on that commit, if one was asked for; with `dry_run`, the one that would be made.
        tag_exists: whether it was on that commit before.
        changes: one per file added, changed or removed; empty when the Hub had all of them.
        unchanged: files the Hub already had.
        warnings: what the user should look at.
    """

    repo: str
    url: str
    commit: str | None
    tag: str | None
    changes: tuple[Change, ...]
    unchanged: int
    dry_run: bool
    warnings: tuple[str, ...] = ()
    tag_exists: bool = False

    def __str__(self) -> str:
        signs = {"add": "+", "change": "~", "remove": "-"}
        lines = [f"{signs[c.kind]} {c.path}  {c.bytes:,} bytes" for c in self.changes]
        sent = sum(c.bytes for c in self.changes if c.kind != "remove")
        counts = ", ".join(f"{sum(c.kind == kind for c in self.changes)} to {kind}" for kind in signs)
        if self.dry_run:
            lines.append(f"dry run: {counts}, {self.unchanged} unchanged; at most {sent:,} bytes to send")
        elif self.changes:
            lines.append(f"pushed {len(self.changes)} changes, {self.unchanged} files unchanged; all files verified")
        else:
            lines.append(f"nothing to push: the Hub already has all {self.unchanged} files, verified")
        if self.dry_run and self.tag:
            lines.append(f"the tag {self.tag} {'is there already' if self.tag_exists else 'would be created'}")
        return "\n".join([*lines, self.url + (f" (tag {self.tag})" if self.tag and not self.dry_run else "")])


def push(
    release: Path,
    repo: str,
    *,
    tag: str | None = None,
    private: bool = False,
    dry_run: bool = False,
    token: str | None = None,
    endpoint: str | None = None,
) -> PushResult:
    """Make `main` of the Hub dataset `repo` hold exactly this release, and tag it.

    Files of an earlier release that this one lacks are removed in the same commit; files that no release put there
    (.gitattributes, images, notes) stay. The same content makes no commit. A push that failed continues when it is
    run again.

    Args:
        repo: "ORG/NAME"; created if it does not exist.
        tag: "v" and the version of the release; put on exactly the commit that holds it, after that was read back.
        private: create the dataset private; refused if it exists and is public.
        dry_run: change nothing, report what would change.
        token: default HF_TOKEN or the one `hf auth login` stored.
        endpoint: default HF_ENDPOINT or huggingface.co.

    Raises:
        UsageError: `repo` is malformed, or `tag` is not that of the release's version.
        ReleaseError: the release does not validate.
        AuthError: no token, a wrong one, or one without write access.
        TagError: the tag exists on another commit; nothing was uploaded.
        HubError: the Hub refused or failed, or holds other files than were sent.
    """
    _check_names(release, repo, tag)
    problems = validate(release)
    if problems:
        raise ReleaseError(
            "the release has a problem" if len(problems) == 1 else f"the release has {len(problems)} problems",
            where=release,
            got=str(problems[0]),
            fix=f"See them all: sqid validate {release}",
        )
    if not sys.stderr.isatty():
        from huggingface_hub.utils.tqdm import disable_progress_bars

        disable_progress_bars()
    local = _files(release)
    with Calls(repo, token, endpoint) as calls:
        return _push(calls, release, local, repo, tag, private, dry_run)


def _push(
    calls: Calls, release: Path, local: Mapping[str, str], repo: str, tag: str | None, private: bool, dry_run: bool
) -> PushResult:
    if not dry_run:
        _check_token(calls)
    remote = read_remote(calls, repo)
    if private and remote.head is not None and not remote.private:
        raise HubError("the dataset exists and is public", where=repo, fix="Make it private on the Hub first.")
    changes, unchanged = plan_changes(calls, release, local, repo, remote)
    _check_tag(repo, tag, remote, changes)
    warnings = _warnings(repo, remote, local, changes)
    for warning in warnings:
        _log.warning("%s", warning)
    commit = remote.head
    if not dry_run:
        if commit is None:
            commit = _create(calls, repo, private)
        if changes:
            commit = _commit(calls, release, repo, commit, changes, local, tag)
        assert commit is not None
        _verify(calls, release, repo, commit, local)
        if tag and remote.tags.get(tag) != commit:
            _tag(calls, repo, tag, commit)
    made = commit and not (dry_run and changes)
    url = f"{calls.api.endpoint}/datasets/{repo}" + (f"/tree/{commit}" if made else "")
    exists = bool(tag) and tag in remote.tags  # on another commit it was refused above
    return PushResult(repo, url, commit, tag, tuple(changes), unchanged, dry_run, tuple(warnings), exists)


def _files(release: Path) -> dict[str, str]:
    """Path → sha256 of what is sent: regular files of names that a release may hold, never what a link leads to.

    Raises:
        ReleaseError: SHA256SUMS lists something else.
    """
    files = {**manifest.read_sums(release), schemas.SHA256SUMS: sha256(release / schemas.SHA256SUMS)}
    root = release.resolve()
    wrong = [name for name in files if not may_hold(name) or (root / name).resolve() != root / name]
    wrong += [name for name in files if name not in wrong and not (root / name).is_file()]
    if wrong:
        raise ReleaseError(
            "files that a release must not hold",
            where=release,
            got=", ".join(sorted(wrong)[:3]),
            fix=f"See them all: sqid validate {release}",
        )
    return files


def _check_names(release: Path, repo: str, tag: str | None) -> None:
    part = r"[A-Za-z0-9][A-Za-z0-9._-]*"
    if not re.fullmatch(rf"{part}/{part}", repo):
        raise UsageError("bad dataset name", where="--repo", expected="ORG/NAME", got=repr(repo))
    if tag is None:
        return
    try:
        version = manifest.read(release).version
    except SourceError:
        return  # not a release, which validation reports
    if tag != f"v{version}" or not re.fullmatch(r"v[A-Za-z0-9]+([._-][A-Za-z0-9]+)*", tag):
        raise UsageError(
            "the tag is not that of the release",
            where="--tag",
            expected=f"v{version}, because the version in {schemas.MANIFEST} is {version}",
            got=repr(tag),
            fix="Use that tag, or state another version in the recipe, such as 1.2.0, and build again.",
        )


def _check_token(calls: Calls) -> None:
    if calls.token is None:
        raise AuthError(
            "no token", where=calls.api.endpoint, fix="Log in with `hf auth login`, or set HF_TOKEN to a write token."
        )
    account = calls.run("reading the account of the token", calls.api.whoami)
    if account.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise AuthError(
            "the token is read-only",
            where=calls.api.endpoint,
            fix="Create a token with write access, and log in with it.",
        )


def _check_tag(repo: str, tag: str | None, remote: Remote, changes: list[Change]) -> None:
    there = remote.tags.get(tag) if tag else None
    if there is not None and (changes or there != remote.head):
        raise TagError(
            f"the tag {tag} exists on another commit; nothing was uploaded",
            where=repo,
            got=there[:12],
            fix="Choose another tag; published tags should not move.",
        )


def _warnings(repo: str, remote: Remote, local: Mapping[str, str], changes: list[Change]) -> list[str]:
    removed = {change.path for change in changes if change.kind == "remove"}
    script = f"{repo.partition('/')[2]}.py"
    others = [p for p in remote.files if p not in local and p not in removed and p not in (".gitattributes", script)]
    warnings = []
    if script in remote.files and script not in removed:
        warnings.append(f"{repo} holds {script}: datasets 4 and later refuse to load the repository. Delete it there.")
    if others:
        warnings.append(
            f"{repo} holds {len(others)} files that no release put there; they are kept: {', '.join(others[:3])}"
        )
    return warnings


def _create(calls: Calls, repo: str, private: bool) -> str | None:
    calls.run("creating the dataset", calls.api.create_repo, repo, repo_type="dataset", private=private, exist_ok=True)
    return _head(calls, repo)


def _head(calls: Calls, repo: str) -> str | None:
    head = calls.run("reading the state of the repository", calls.api.dataset_info, repo).sha
    return str(head) if head else None


def _commit(
    calls: Calls,
    release: Path,
    repo: str,
    parent: str | None,
    changes: list[Change],
    local: Mapping[str, str],
    tag: str | None,
) -> str:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    operations = [
        CommitOperationDelete(path_in_repo=change.path)
        if change.kind == "remove"
        else CommitOperationAdd(path_in_repo=change.path, path_or_fileobj=release / change.path)
        for change in changes
    ]
    about = manifest.read(release)
    message = f"{about.name} {about.version}" + (f" ({tag})" if tag else "")
    try:
        done = calls.run(
            "uploading and committing",
            calls.api.create_commit,
            repo,
            operations,
            repo_type="dataset",
            commit_message=message,
            parent_commit=parent,
            also=(_CONFLICT,),
        )
    except RefusedError as error:
        return _after_refusal(calls, release, repo, parent, local, error)
    return str(done.oid)


def _after_refusal(
    calls: Calls, release: Path, repo: str, parent: str | None, local: Mapping[str, str], error: RefusedError
) -> str:
    """The id of main if it holds the release already: our own commit, whose answer was lost; otherwise raises."""
    head = _head(calls, repo)
    if head == parent and error.status != _STALE:
        raise error
    if not differences(release, local, list_files(calls, repo, head)):
        return str(head)
    raise HubError(
        "somebody else changed the dataset during the push; their version is kept",
        where=repo,
        expected=f"main at {parent[:12]}" if parent else None,
        got=str(head)[:12],
        fix="Check their version, then push again.",
    ) from error


def _verify(calls: Calls, release: Path, repo: str, commit: str, local: Mapping[str, str]) -> None:
    """Compare the files of the Hub at `commit`: sha256 and size as it states them, small files by their bytes."""
    there = list_files(calls, repo, commit)
    wrong = differences(release, local, there)
    with tempfile.TemporaryDirectory() as scratch:
        for path in sorted(set(local) - set(wrong)):
            if not there[path].lfs and sha256(download(calls, repo, path, commit, scratch)) != local[path]:
                wrong.append(path)
    if wrong:
        raise HubError(
            f"the Hub holds other files than were sent: {len(wrong)} files differ",
            where=f"{repo}@{commit[:12]}",
            got=", ".join(sorted(wrong)[:3]),
            fix="Push again; no tag was created.",
        )


def _tag(calls: Calls, repo: str, tag: str, commit: str) -> None:
    try:
        calls.run("tagging", calls.api.create_tag, repo, tag=tag, revision=commit, repo_type="dataset")
    except RefusedError as error:
        if error.status != _CONFLICT:
            raise
        refs = calls.run("listing tags", calls.api.list_repo_refs, repo, repo_type="dataset")
        there = next((ref.target_commit for ref in refs.tags if ref.name == tag), None)
        if there != commit:
            raise TagError(
                f"the release is on main, but the tag {tag} was just created on another commit",
                where=repo,
                expected=commit[:12],
                got=there and there[:12],
                fix="Push again with another tag.",
            ) from error
