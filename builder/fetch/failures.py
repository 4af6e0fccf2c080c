"""Failures of images: which are tried again by themselves, and which hosts do not answer any more."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from builder.fetch.image_folder import ABSENT, FORBIDDEN
from builder.fetch.ledger import Outcome
from builder.http.mirrors import authority, mirrored
from builder.recipe import FetchSettings
from sqid_lib import schemas

NOT_REQUESTED = "not requested: "  # begins the detail of URLs whose host does not answer any more
GIVEN_UP = "it ended the workers that fetched it"  # the detail of a URL that is tried no more
_NO_ANSWER = ("connection", "timeout")
_MAY_PASS = (408, 425, 429)  # and 5xx
_RULES = {  # settings of [fetch] that cause a status; every status of a URL also depends on mirrors and trust_env
    "refused": ("allow_hosts", "ports"),
    "redirects": ("max_redirects",),
    "too_large": ("max_bytes",),
    "too_many_pixels": ("max_pixels",),
    "truncated": ("truncated",),
}
_LOST_SHARE = 0.1  # of all URLs; a stage that lost more to hosts that do not answer is not finished
_MANY = 20  # failures of one host with which it counts as one that does not answer, where most of its URLs failed
_FEW = 5  # failures of one host with which it counts as one that does not answer, where no URL of it succeeded


def may_pass(outcome: Outcome) -> bool:
    """Whether another run may succeed: no answer came, or one of 408, 425, 429 and 5xx, or none was asked for."""
    if outcome.status != "http_error":
        return outcome.status in _NO_ANSWER
    code = outcome.http_status
    return code is None or code in _MAY_PASS or 500 <= code < 600


def rules_of(url: str, status: str, limits: FetchSettings, version: str | None = None) -> str | None:
    """What an outcome of this status depends on: when it changes, the URL is tried again.

    Args:
        version: of a local image, None for a URL.

    Returns:
        A digest of settings, empty for an image; for a local image also a space and the version. None for an image of
        a URL, which depends on nothing.
    """
    settings = "" if status == schemas.OK else _settings(url, status, limits, local=version is not None)
    return (settings or None) if version is None else f"{settings} {version}"


def _settings(url: str, status: str, limits: FetchSettings, *, local: bool) -> str:
    """A digest of the settings that a failure depends on."""
    values: list[Any] = [] if local else [mirrored(url, limits.mirrors), limits.trust_env]
    for name in _RULES.get(status, ()):
        value = getattr(limits, name)
        values.append(sorted(set(value)) if isinstance(value, tuple) else value)
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]


@dataclass
class Earlier:
    """What earlier runs left of the URLs of a recipe.

    Attributes:
        ok: URLs with an image.
        failed: URLs that failed and are not tried again.
        replaced: local images that are others now.
        may_pass: URLs whose failures may pass.
        changed: URLs whose failures depend on settings that were changed since.
        asked: URLs whose status the user asked to retry.
    """

    ok: int = 0
    failed: int = 0
    replaced: list[str] = field(default_factory=list)
    may_pass: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    @property
    def done(self) -> int:
        """URLs that are not tried again."""
        return self.ok + self.failed

    @property
    def again(self) -> list[str]:
        """URLs that are tried again, for whatever reason."""
        return [*self.replaced, *self.may_pass, *self.changed, *self.asked]

    def add(self, other: Earlier) -> None:
        """Take in what was left in another folder."""
        self.ok, self.failed = self.ok + other.ok, self.failed + other.failed
        self.replaced += other.replaced
        self.may_pass += other.may_pass
        self.changed += other.changed
        self.asked += other.asked


def earlier(
    outcomes: Iterable[Outcome | None],
    limits: FetchSettings,
    retry: Sequence[str],
    version_of: Callable[[str], str | None] = lambda _: None,
) -> Earlier:
    """Sort the outcomes that there are by what happens to them now.

    Args:
        version_of: the version that a local image has now, None for a URL.
    """
    found = Earlier()
    for outcome in outcomes:
        if outcome is None:
            continue
        version = version_of(outcome.url)
        if outcome.status in retry:
            found.asked.append(outcome.url)
        elif version is not None and _is_replaced(outcome, version):
            found.replaced.append(outcome.url)
        elif outcome.status == schemas.OK:
            found.ok += 1
        elif may_pass(outcome):
            found.may_pass.append(outcome.url)
        elif outcome.rules not in (None, rules_of(outcome.url, outcome.status, limits, version)):
            found.changed.append(outcome.url)
        else:
            found.failed += 1
    return found


def _is_replaced(outcome: Outcome, version: str) -> bool:
    """Whether there is another local image now; one that is stored is kept when its file cannot be found any more."""
    if outcome.status == schemas.OK and version in (ABSENT, FORBIDDEN):
        return False
    return (outcome.rules or "").partition(" ")[2] != version


@dataclass
class Host:
    """The URLs of one host as they ended.

    Attributes:
        name: host and port as requested, after mirrors.
        urls: how many there are.
        lost: how many failed in a way that may pass.
        given_up: why it was asked no more; None if it was.
        reasons: status and detail of the lost ones that were requested.
    """

    name: str
    urls: int = 0
    lost: int = 0
    given_up: str | None = None
    reasons: Counter[str] = field(default_factory=Counter)

    @property
    def down(self) -> bool:
        """Whether it does not answer any more, or never did; also if all its URLs were on their way when it stopped."""
        if self.given_up is not None or (self.lost == self.urls and self.lost >= _FEW):
            return True
        return self.lost >= _MANY and self.lost > self.urls / 2

    def __str__(self) -> str:
        reasons = [reason for reason, _ in self.reasons.most_common(1)] + [self.given_up]
        why = "; ".join(reason for reason in reasons if reason)
        return f"{self.name} stopped giving images: {self.lost:,} of its {self.urls:,} URLs failed ({why})"


@dataclass(frozen=True)
class Losses:
    """What a run lost to hosts that do not answer, those with the most losses first."""

    urls: int
    hosts: tuple[Host, ...]

    @property
    def lost(self) -> int:
        """URLs without an image because of these hosts."""
        return sum(host.lost for host in self.hosts)

    @property
    def too_many(self) -> bool:
        """Whether the stage cannot count as finished."""
        return self.lost > _LOST_SHARE * self.urls


def losses(outcomes: Iterable[Outcome | None], limits: FetchSettings) -> Losses:
    """The hosts that do not answer any more, and what they cost."""
    hosts: dict[str, Host] = {}
    urls = 0
    for outcome in outcomes:
        if outcome is None:
            continue
        urls += 1
        name = authority(mirrored(outcome.url, limits.mirrors))
        host = hosts.get(name) or hosts.setdefault(name, Host(name))
        host.urls += 1
        if may_pass(outcome):
            host.lost += 1
            detail = outcome.detail or ""
            if detail.startswith(NOT_REQUESTED):
                host.given_up = detail.removeprefix(NOT_REQUESTED)
            else:
                host.reasons[f"{outcome.status}: {detail}"] += 1
    down = sorted((host for host in hosts.values() if host.down), key=lambda host: (-host.lost, host.name))
    return Losses(urls, tuple(down))
