"""push to a loopback Hub with the real client: faults at every endpoint, and loading back what was pushed."""

from __future__ import annotations

import logging
import re
import shutil
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from loopback_hub import GITATTRIBUTES, READ_TOKEN, WRITE_TOKEN, LoopbackHub
from release_fixtures import recipe_with, write_release
from tiny_catalogue import NONE
from tiny_catalogue import write_release as write_catalogue

from builder.hub import PushResult, calls, push
from builder.hub.calls import Calls
from sqid_lib import schemas
from sqid_lib.errors import AuthError, DiskError, HubError, ReleaseError, TagError, UsageError

# huggingface_hub hands open files to its http client in a way that client deprecates
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

REPO = "ORG/tiny"
ALWAYS = 10_000
ENDPOINTS = (
    *("whoami", "revision", "refs", "tree", "resolve", "validate-yaml"),
    *("preupload", "lfs-batch", "lfs-put", "commit", "tag"),
)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("first") / "tiny"
    return write_release(folder, products=2_100, queries=3, width=8, max_shard_bytes=50_000)


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("second") / "tiny"
    return write_release(folder, seed=1, classic=False, recipe=recipe_with(version="2.0.0"))


@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another content under the version of `first`."""
    return write_release(tmp_path_factory.mktemp("rebuilt") / "tiny", seed=2)


@pytest.fixture
def loopback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    """A Hub with LFS for the client in this process, without real waits between attempts."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with LoopbackHub(tmp_path / "hub") as running:
        yield running


def send(loopback: LoopbackHub, release: Path, tag: str | None = None, **options: object) -> PushResult:
    return push(release, REPO, tag=tag, **{"token": WRITE_TOKEN, "endpoint": loopback.endpoint, **options})  # type: ignore[arg-type]


def content(release: Path) -> dict[str, bytes]:
    return {p.relative_to(release).as_posix(): p.read_bytes() for p in sorted(release.rglob("*")) if p.is_file()}


def commits(loopback: LoopbackHub) -> int:
    return len(loopback.repos[REPO].commits)


# -- without faults ---------------------------------------------------------------------------------------------------


def test_a_push_is_one_commit_with_every_file_and_a_tag_on_it(loopback: LoopbackHub, first: Path) -> None:
    result = send(loopback, first, "v1.0.0")
    assert loopback.files(REPO) == {".gitattributes": GITATTRIBUTES, **content(first)}
    assert commits(loopback) == 2  # the first one of the Hub, and ours
    assert loopback.repos[REPO].tags == {"v1.0.0": loopback.head(REPO)} == {"v1.0.0": result.commit}
    assert {change.kind for change in result.changes} == {"add"}
    assert not loopback.repos[REPO].private


def test_lfs_objects_go_to_the_other_origin_without_the_token(loopback: LoopbackHub, first: Path) -> None:
    send(loopback, first)
    puts = [request for request in loopback.requests if request.endpoint == "lfs-put"]
    assert puts
    assert not any(request.authorized for request in puts)


def test_the_same_content_makes_no_commit(loopback: LoopbackHub, first: Path) -> None:
    send(loopback, first, "v1.0.0")
    loopback.requests.clear()
    result = send(loopback, first, "v1.0.0")
    assert result.changes == ()
    assert result.unchanged == len(content(first))
    assert not {"commit", "preupload", "lfs-put", "tag", "create"} & {r.endpoint for r in loopback.requests}
    assert "nothing to push" in str(result)


def test_a_tag_on_content_that_is_there_already(loopback: LoopbackHub, first: Path) -> None:
    send(loopback, first)
    would = str(send(loopback, first, "v1.0.0", dry_run=True))
    assert "the tag v1.0.0 would be created\n" in would and "(tag" not in would
    assert loopback.repos[REPO].tags == {}
    assert str(send(loopback, first, "v1.0.0")).endswith(f"/tree/{loopback.head(REPO)} (tag v1.0.0)")
    assert loopback.repos[REPO].tags == {"v1.0.0": loopback.head(REPO)}
    assert "the tag v1.0.0 is there already\n" in str(send(loopback, first, "v1.0.0", dry_run=True))
    assert commits(loopback) == 2


def test_the_next_release_replaces_and_removes_in_one_commit(loopback: LoopbackHub, first: Path, second: Path) -> None:
    send(loopback, first, "v1.0.0")
    loopback.put(REPO, {"image.png": b"mine", "LICENSE": b"text"})
    result = send(loopback, second, "v2.0.0")
    files = loopback.files(REPO)
    assert files == {".gitattributes": GITATTRIBUTES, "image.png": b"mine", "LICENSE": b"text", **content(second)}
    removed = {change.path for change in result.changes if change.kind == "remove"}
    assert removed == set(content(first)) - set(content(second))
    assert schemas.PRODUCT_URLS in removed
    assert any(path.startswith("data/product_features/") for path in removed)
    assert commits(loopback) == 4
    assert loopback.files(REPO, "v1.0.0") == {".gitattributes": GITATTRIBUTES, **content(first)}


def test_a_foreign_shard_of_a_config_is_removed_because_it_would_be_loaded(loopback: LoopbackHub, second: Path) -> None:
    loopback.add_repo(REPO)
    loopback.put(REPO, {"data/urls/test-00001-of-00002.parquet": b"PAR1", "data/more.txt": b"x"})
    send(loopback, second)
    assert "data/urls/test-00001-of-00002.parquet" not in loopback.files(REPO)
    assert "data/more.txt" in loopback.files(REPO)


def test_private(loopback: LoopbackHub, second: Path) -> None:
    send(loopback, second, private=True)
    assert loopback.repos[REPO].private
    assert send(loopback, second, private=True).changes == ()


def test_private_is_refused_if_the_dataset_is_public(loopback: LoopbackHub, second: Path) -> None:
    loopback.add_repo(REPO)
    with pytest.raises(HubError, match="exists and is public"):
        send(loopback, second, private=True)
    assert list(loopback.files(REPO)) == [".gitattributes"]


def test_trees_of_several_pages(loopback: LoopbackHub, first: Path, second: Path) -> None:
    loopback.page_size = 3
    send(loopback, first)
    send(loopback, second)
    assert loopback.files(REPO) == {".gitattributes": GITATTRIBUTES, **content(second)}


def test_dry_run_changes_nothing_and_lists_sizes(loopback: LoopbackHub, first: Path, second: Path) -> None:
    result = send(loopback, first, "v1.0.0", dry_run=True, token=None)
    assert loopback.repos == {}
    assert len(result.changes) == len(content(first))
    send(loopback, first)
    before = loopback.head(REPO)
    result = send(loopback, second, dry_run=True)
    assert loopback.head(REPO) == before
    text = str(result)
    size = (second / schemas.CARD).stat().st_size
    assert f"~ {schemas.CARD}  {size:,} bytes" in text
    assert f"- {schemas.PRODUCT_URLS}  {(first / schemas.PRODUCT_URLS).stat().st_size:,} bytes" in text
    assert "dry run" in text


def test_a_script_in_the_repository_gives_a_warning(
    loopback: LoopbackHub, second: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loopback.add_repo(REPO)
    loopback.put(REPO, {"tiny.py": b"pass"})
    with caplog.at_level(logging.WARNING):
        result = send(loopback, second)
    assert any("tiny.py" in warning and "datasets 4" in warning for warning in result.warnings)
    assert "tiny.py" in caplog.text
    assert "tiny.py" in loopback.files(REPO)


# -- refusals before anything is sent ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["README.md", "data/urls/test-00000-of-00001.parquet", "data/urls", "model.pkl"])
def test_nothing_is_sent_that_a_link_leads_to_or_that_no_build_writes(
    loopback: LoopbackHub, second: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    release = Path(shutil.copytree(second, tmp_path / "tiny"))
    outside = tmp_path / "outside"
    if (release / name).exists():
        (release / name).rename(outside)
        (release / name).symlink_to(outside)
    else:
        (release / name).write_bytes(b"x")
        with (release / schemas.SHA256SUMS).open("a") as sums:
            sums.write(f"{'0' * 64}  {name}\n")
    with pytest.raises(ReleaseError, match=r"\[(link|forbidden-file)\]"):
        send(loopback, release)
    monkeypatch.setitem(push.__globals__, "validate", lambda release: [])  # as if it was changed after the check
    with pytest.raises(ReleaseError, match="files that a release must not hold"):
        send(loopback, release)
    assert loopback.requests == []


def test_an_invalid_release_is_refused(loopback: LoopbackHub, tmp_path: Path) -> None:
    release = write_release(tmp_path / "broken")
    (release / "tiny.py").write_text("pass")
    with pytest.raises(ReleaseError, match=r"release has \d+ problems.*sqid validate"):
        send(loopback, release)
    assert loopback.requests == []


@pytest.mark.parametrize("repo", ["sqid", "a/b/c", "../x", "ORG/", "ORG/a b", "https://huggingface.co/ORG/x"])
def test_a_bad_name_is_wrong_usage(loopback: LoopbackHub, second: Path, repo: str) -> None:
    with pytest.raises(UsageError, match="ORG/NAME"):
        push(second, repo, endpoint=loopback.endpoint)


@pytest.mark.parametrize("tag", ["main", "", "a b", "../v1", "-v1", "2.0.0", "v2", "v1.0.0", "v2.0.1"])
def test_a_tag_that_is_not_the_version_is_wrong_usage(loopback: LoopbackHub, second: Path, tag: str) -> None:
    with pytest.raises(UsageError) as raised:
        send(loopback, second, tag)
    assert (
        f"--tag: the tag is not that of the release; expected v2.0.0, because the version in manifest.json is 2.0.0, "
        f"got {tag!r}. " in str(raised.value)
    )
    assert loopback.requests == []


def test_a_version_that_is_no_tag_is_wrong_usage(loopback: LoopbackHub, tmp_path: Path) -> None:
    release = write_release(tmp_path / "tiny", recipe=recipe_with(version="1 beta"))
    with pytest.raises(UsageError, match="state another version"):
        send(loopback, release, "v1 beta")


@pytest.mark.parametrize("dry_run", [False, True])
def test_without_a_network_it_ends_after_a_few_attempts_and_one_line(
    loopback: LoopbackHub,
    second: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    dry_run: bool,
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    with caplog.at_level(logging.WARNING), pytest.raises(HubError) as raised:
        send(loopback, second, endpoint="http://127.0.0.1:9", dry_run=dry_run)
    assert str(raised.value).startswith("http://127.0.0.1:9: the Hub cannot be reached; got ")
    assert str(raised.value).endswith("Check the network and push again.")
    assert "\n" not in str(raised.value) and caplog.text == ""
    assert waits == [1.0, 2.0]


def test_offline_mode_is_named_at_once(loopback: LoopbackHub, second: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match=r"cannot be reached.*Unset HF_HUB_OFFLINE and push again\."):
        send(loopback, second)
    assert waits == []


def test_a_tag_on_another_commit_stops_before_any_upload(loopback: LoopbackHub, first: Path, rebuilt: Path) -> None:
    send(loopback, first, "v1.0.0")
    before = loopback.head(REPO)
    loopback.requests.clear()
    with pytest.raises(TagError, match=r"v1\.0\.0 exists on another commit; nothing was uploaded"):
        send(loopback, rebuilt, "v1.0.0")
    assert {request.method for request in loopback.requests} <= {"GET", "HEAD"}
    assert loopback.head(REPO) == before


def test_a_tag_created_by_somebody_else_during_the_push(loopback: LoopbackHub, first: Path, second: Path) -> None:
    send(loopback, first)
    old = loopback.head(REPO)
    loopback.hooks["tag"] = lambda running: running.repos[REPO].tags.update({"v2.0.0": old})
    with pytest.raises(TagError, match="was just created on another commit"):
        send(loopback, second, "v2.0.0")


def test_no_token(loopback: LoopbackHub, second: Path) -> None:
    with pytest.raises(AuthError, match=r"no token.*hf auth login"):
        send(loopback, second, token=None)
    assert loopback.requests == []


def test_a_read_only_token(loopback: LoopbackHub, second: Path) -> None:
    with pytest.raises(AuthError, match="read-only"):
        send(loopback, second, token=READ_TOKEN)
    assert [request.endpoint for request in loopback.requests] == ["whoami"]


def test_a_wrong_token(loopback: LoopbackHub, second: Path) -> None:
    with pytest.raises(AuthError, match="does not accept the token"):
        send(loopback, second, token="hf_somethingElse")


# -- faults -----------------------------------------------------------------------------------------------------------


def assert_untouched_or_whole(loopback: LoopbackHub, old: Path, new: Path) -> None:
    """main holds exactly one of two releases."""
    files = loopback.files(REPO)
    files.pop(".gitattributes")
    assert files in (content(old), content(new))


def matrix(*kinds: int | str, quick: tuple[tuple[str, int | str], ...]) -> list[Any]:
    """Every endpoint with every kind of fault; all but the quick ones together take minutes."""
    pairs = [(endpoint, kind) for kind in kinds for endpoint in ENDPOINTS]
    return [pytest.param(*pair, marks=() if pair in quick else pytest.mark.slow) for pair in pairs]


ONCE: tuple[tuple[str, int | str], ...] = (
    *((endpoint, 503) for endpoint in ENDPOINTS),
    ("lfs-put", "cut"),
    ("commit", "cut"),
)
STAYS: tuple[tuple[str, int | str], ...] = (
    *(("whoami", 503), ("preupload", 503), ("lfs-put", 503), ("commit", 503), ("tag", 503)),
    *(("commit", 401), ("preupload", 403), ("commit", 403), ("tag", 403)),
)


@pytest.mark.parametrize(("endpoint", "kind"), matrix(503, "cut", quick=ONCE))
def test_a_push_succeeds_after_a_passing_fault(
    loopback: LoopbackHub, first: Path, second: Path, endpoint: str, kind: int | str
) -> None:
    loopback.add_repo(REPO, first)
    loopback.fail(endpoint, kind, times=2)
    result = send(loopback, second, "v2.0.0")
    assert loopback.files(REPO) == {".gitattributes": GITATTRIBUTES, **content(second)}
    assert loopback.repos[REPO].tags == {"v2.0.0": result.commit}
    assert commits(loopback) == 3


@pytest.mark.parametrize(
    ("endpoint", "kind"),
    [("create", 503), ("create", "lost"), ("validate-yaml", "html"), ("commit", 429), ("commit", 409), ("tag", "lost")],
)
def test_other_passing_faults(loopback: LoopbackHub, second: Path, endpoint: str, kind: int | str) -> None:
    loopback.fail(endpoint, kind)
    send(loopback, second, "v2.0.0")
    assert loopback.files(REPO) == {".gitattributes": GITATTRIBUTES, **content(second)}
    assert loopback.repos[REPO].tags == {"v2.0.0": loopback.head(REPO)}
    assert commits(loopback) == 2


def test_a_commit_whose_answer_is_lost_is_not_made_twice(loopback: LoopbackHub, first: Path, second: Path) -> None:
    loopback.add_repo(REPO, first)
    loopback.fail("commit", "lost")
    result = send(loopback, second, "v2.0.0")
    assert commits(loopback) == 3
    assert result.commit == loopback.head(REPO) == loopback.repos[REPO].tags["v2.0.0"]


def test_no_answer_is_a_timeout_and_is_repeated(
    loopback: LoopbackHub, second: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "TIMEOUT_S", 1.0)
    loopback.fail("commit", "slow")
    send(loopback, second)
    assert loopback.count("commit") == 2
    assert commits(loopback) == 2


@pytest.mark.parametrize(("endpoint", "kind"), matrix(503, 401, 403, quick=STAYS))
def test_a_lasting_fault_is_reported_in_one_line_and_nothing_is_half_done(
    loopback: LoopbackHub, first: Path, second: Path, endpoint: str, kind: int, caplog: pytest.LogCaptureFixture
) -> None:
    loopback.add_repo(REPO, first)
    loopback.fail(endpoint, kind, times=ALWAYS)
    with pytest.raises(HubError) as raised, caplog.at_level(logging.DEBUG):
        send(loopback, second, "v2.0.0")
    assert isinstance(raised.value, AuthError) == (kind != 503)
    message = str(raised.value)
    assert "\n" not in message
    assert REPO in message or endpoint == "whoami"
    assert WRITE_TOKEN not in message + caplog.text
    assert_untouched_or_whole(loopback, first, second)
    assert "v2.0.0" not in loopback.repos[REPO].tags

    loopback.fail(endpoint, kind, times=0)
    send(loopback, second, "v2.0.0")
    assert loopback.files(REPO) == {".gitattributes": GITATTRIBUTES, **content(second)}
    assert loopback.repos[REPO].tags == {"v2.0.0": loopback.head(REPO)}
    assert commits(loopback) == 3


def test_an_interrupted_upload_continues_where_it_stopped(loopback: LoopbackHub, first: Path) -> None:
    loopback.fail("commit", 503, times=ALWAYS)
    with pytest.raises(HubError):
        send(loopback, first)
    sent = {request.path for request in loopback.requests if request.endpoint == "lfs-put"}
    assert sent
    loopback.requests.clear()
    loopback.fail("commit", 503, times=0)
    send(loopback, first)
    assert loopback.count("lfs-put") == 0


def test_somebody_else_commits_during_the_push(loopback: LoopbackHub, first: Path, second: Path) -> None:
    loopback.add_repo(REPO, first)

    def intrude(running: LoopbackHub) -> None:
        running.hooks.clear()
        running.put(REPO, {"README.md": b"# theirs\n"})

    loopback.hooks["commit"] = intrude
    with pytest.raises(HubError, match="somebody else changed the dataset"):
        send(loopback, second, "v2.0.0")
    assert loopback.files(REPO)["README.md"] == b"# theirs\n"
    assert loopback.repos[REPO].tags == {}


def test_412_without_another_commit_is_reported(loopback: LoopbackHub, second: Path) -> None:
    loopback.fail("commit", 412, times=ALWAYS)
    with pytest.raises(HubError, match="somebody else"):
        send(loopback, second)


def test_what_the_hub_holds_is_compared_afterwards(loopback: LoopbackHub, second: Path) -> None:
    def damage(running: LoopbackHub) -> None:
        if REPO in running.repos and schemas.CARD in running.files(REPO):
            running.hooks.clear()
            oid = running.head(REPO)
            running.put(REPO, {"data/urls/test-00000-of-00001.parquet": b"PAR1 something else PAR1"})
            running.repos[REPO].commits[oid] = running.repos[REPO].commits[running.head(REPO)]

    loopback.hooks["tree"] = damage
    with pytest.raises(HubError, match=r"holds other files than were sent.*data/urls"):
        send(loopback, second, "v2.0.0")
    assert loopback.repos[REPO].tags == {}


def test_small_files_are_read_back_byte_by_byte(loopback: LoopbackHub, second: Path) -> None:
    send(loopback, second)
    blob = loopback.repos[REPO].commits[loopback.head(REPO)].tree[schemas.CARD]
    (loopback.root / "objects" / blob.sha256).write_bytes(b"?" * blob.size)
    with pytest.raises(HubError, match=r"1 files differ.*README"):
        send(loopback, second)


def test_retry_after_is_respected(loopback: LoopbackHub, second: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    loopback.retry_after = "7"
    loopback.fail("commit", 429)
    send(loopback, second)
    assert waits == [7.0]


def test_a_file_that_cannot_be_read_is_an_error_of_the_disk(
    loopback: LoopbackHub, second: Path, tmp_path: Path
) -> None:
    with Calls(REPO, WRITE_TOKEN, loopback.endpoint) as running, pytest.raises(DiskError, match=r"gone\.txt"):
        running.run("reading", (tmp_path / "gone.txt").read_bytes)


# -- loading back -----------------------------------------------------------------------------------------------------

LOAD = """
import sys
import datasets
from datasets import load_dataset
repo, tag, configs = sys.argv[1], sys.argv[2], sys.argv[3].split(",")
for config in configs:
    split = "train" if config == "supp" else "test"
    plain = load_dataset(repo, config, revision=tag, split=split)
    streamed = list(load_dataset(repo, config, revision=tag, split=split, streaming=True))
    assert plain.to_list() == streamed, config
    print(config, len(plain), plain.features.arrow_schema.remove_metadata().to_string().replace("\\n", "; "))
print(len(load_dataset(repo, revision=tag)["test"]))
vectors = load_dataset(repo, "product_features", split="test").with_format("numpy")[:4]["clip_image_features"]
print(vectors.dtype, vectors.shape)
"""


def plain(columns: str) -> str:
    """Versions of Arrow and datasets name the numbers of a list differently."""
    return columns.replace("<item:", "<element:").replace(" item:", " element:")


@pytest.mark.compat
def test_what_was_pushed_loads_back_and_the_snippets_of_the_card_run(loopback: LoopbackHub, second: Path) -> None:
    send(loopback, second, "v2.0.0")
    snippets = re.findall(r"```python\n(.*?)```", loopback.files(REPO)[schemas.CARD].decode(), re.S)
    assert len(snippets) >= 3
    code = "\n".join([LOAD, "print('snippets')", *snippets])
    out = loopback.run(code, REPO, "v2.0.0", ",".join(schemas.CONFIGS), token=None)
    loaded, _, shown = out.partition("snippets\n")
    lines = loaded.splitlines()
    for config, line in zip(schemas.CONFIGS, lines, strict=False):
        name, rows, columns = line.split(" ", 2)
        assert name == config
        assert int(rows) > 0
        expected = schemas.config_schema(config, 8).to_string()
        assert plain(columns) == plain(expected.replace("\n", "; "))
    assert lines[-2:] == ["40", "float32 (4, 8)"]
    assert "query 0" in shown
    assert "esci_label" in shown
    gets = [request for request in loopback.requests if request.endpoint == "lfs-get"]
    assert gets
    assert not any(request.authorized for request in gets)


CATALOGUE = """
import sys
import numpy as np
from datasets import load_dataset
import sqid
from sqid_lib import EmbeddingStore, stream_pairs
from sqid_lib.errors import StoreError
repo, tag, cache = sys.argv[1:]
print(load_dataset(repo, revision=tag, split="test")["price"][:2])
address = f"hf://datasets/{repo}@{tag}"
print(sqid.load("product_features", "test", artifacts=address)["category"][:2])
store = EmbeddingStore.open(repo, revision=tag, cache_dir=cache)
print(len(store.search(np.ones(8), where={"price": (None, 50)})), len(store.queries), len(store.judgments))
try:
    stream_pairs(address)
except StoreError as error:
    print(error.what)
"""


def test_a_catalogue_without_judgments_is_pushed_and_used_from_the_hub(loopback: LoopbackHub, tmp_path: Path) -> None:
    release = write_catalogue(tmp_path / "made", NONE)
    result = send(loopback, release, "v1.0.0")
    assert loopback.files(REPO) == {".gitattributes": GITATTRIBUTES, **content(release)}
    assert not result.warnings
    out = loopback.run(CATALOGUE, REPO, "v1.0.0", str(tmp_path / "cache"), token=None)
    assert out.splitlines() == ["[89.9, 120.0]", "['Schuhe', 'Lampen']", "2 3 0", "there are no judgments"]


# -- over Xet ---------------------------------------------------------------------------------------------------------

XET_PUSH = """
import sys
from builder.hub import push
print(push(__import__("pathlib").Path(sys.argv[1]), sys.argv[2], tag=sys.argv[3]))
"""
XET_LOAD = """
import sys
from datasets import load_dataset
print(len(load_dataset(sys.argv[1], "product_features", revision=sys.argv[2], split="test")))
"""


@pytest.mark.skipif(find_spec("hf_xet") is None, reason="hf_xet is not installed")
def test_push_and_load_over_xet(tmp_path: Path, first: Path, second: Path) -> None:
    with LoopbackHub(tmp_path / "hub", xet=True) as loopback:
        loopback.fail("xet-token", 503)
        loopback.run(XET_PUSH, str(first), REPO, "v1.0.0")
        loopback.run(XET_PUSH, str(second), REPO, "v2.0.0")
        assert loopback.count("lfs-batch") == 0
        assert loopback.files(REPO, "v1.0.0") == {".gitattributes": GITATTRIBUTES, **content(first)}
        assert loopback.files(REPO) == {".gitattributes": GITATTRIBUTES, **content(second)}
        loopback.requests.clear()
        assert loopback.run(XET_LOAD, REPO, "v1.0.0", token=None) == "2100\n"
        assert loopback.count("xet-token") > 0
        assert loopback.count("lfs-get") == 0
