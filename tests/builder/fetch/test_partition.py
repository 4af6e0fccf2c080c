"""builder.fetch.partition: which URLs are fetched together, and within which limits."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from builder.catalogue.image_rows import ImageRows
from builder.fetch.failures import may_pass
from builder.fetch.ledger import Ledger
from builder.fetch.local_images import LocalImages
from builder.fetch.partition import Partition, complete, partitions, share_out
from builder.recipe import FetchSettings
from sqid_lib import schemas

URLS = [f"https://{host}.example/{n}.jpg" for n in range(30) for host in ("a", "b", "c", "d") if host != "d" or n < 3]


def test_a_host_is_in_one_partition_and_partitions_have_about_as_many() -> None:
    parts = share_out(URLS, FetchSettings(), 3)
    hosts = {(url.split("/")[2], part) for url, part in parts.items()}
    assert sorted(host for host, _ in hosts) == ["a.example", "b.example", "c.example", "d.example"]
    assert sorted(Counter(parts.values()).values()) == [30, 30, 33]
    assert parts == share_out(URLS, FetchSettings(), 3)


def test_names_of_one_mirror_are_one_host() -> None:
    limits = FetchSettings(mirrors={f"https://{host}.example/": f"http://mirror:1/{host}/" for host in "abcd"})
    assert set(share_out(URLS, limits, 3).values()) == {0}


def test_local_images_are_spread_in_blocks() -> None:
    images = LocalImages("/images", ImageRows((), "image"))
    urls = [f"{schemas.FILE_IMAGE}{n}.jpg" for n in range(9_000)]
    parts = share_out(urls, FetchSettings(), 2, images)
    assert sorted(Counter(parts.values()).values()) == [4_096, 4_904]
    assert len({parts[url] for url in urls[:4_096]}) == 1


def test_requests_at_once_are_shared_out_among_the_partitions(tmp_path: Path) -> None:
    tasks, limits = partitions([tmp_path], URLS, {}, FetchSettings(concurrency=32, per_host=16), 3)
    assert (limits.concurrency, limits.per_host) == (10, 16)
    assert [task.folder.name for task in tasks] == [tmp_path.name, "part-00000", "part-00001", "part-00002"]
    assert tasks[0].urls == []
    assert sorted(url for task in tasks for url in task.urls) == sorted(URLS)
    for task in tasks:
        assert task.urls == [url for url in URLS if url in set(task.urls)]  # their order is that of the images


def test_no_more_partitions_than_requests_at_once(tmp_path: Path) -> None:
    tasks, limits = partitions([tmp_path], URLS, {}, FetchSettings(concurrency=2), 3)
    assert (len(tasks), limits.concurrency) == (3, 1)


def test_one_machine_or_one_host_has_the_folder_of_the_stage(tmp_path: Path) -> None:
    for urls, machines in ((URLS, 1), (URLS[::4], 3)):
        urls = [url for url in urls if machines == 1 or "a.example" in url]
        tasks, limits = partitions([tmp_path], urls, {}, FetchSettings(concurrency=32), machines)
        assert [*tasks] == [Partition(tmp_path, urls)]
        assert limits.concurrency == 32


def test_what_is_done_stays_where_it_is(tmp_path: Path) -> None:
    folders = [tmp_path, tmp_path / "part-00000", tmp_path / "part-00001"]
    done = {url: 1 + (n % 2) for n, url in enumerate(URLS[:20])}
    tasks, _ = partitions(folders, URLS, done, FetchSettings(), 1)
    assert [len(task.urls) for task in tasks] == [len(URLS) - 20, 10, 10]
    assert all(done[url] == number for number in (1, 2) for url in tasks[number].urls)
    assert str(tasks[1]) == "part-00000 with 10 URLs"


def test_urls_that_are_given_up_get_a_status_and_a_trial_writes_no_shards(tmp_path: Path) -> None:
    """No URL is requested here: all of them are given up, or have an outcome."""
    ticks: list[tuple[int, int]] = []
    images, whole = LocalImages("/images", ImageRows((), "image")), Partition(tmp_path, URLS[:4])

    def tick(units: int, failed: int = 0) -> None:
        ticks.append((units, failed))

    complete(FetchSettings(), images, whole.without(range(4)).only(range(1, 3)), tick)
    assert not list(tmp_path.glob("images-*"))
    with Ledger(tmp_path) as ledger:
        found = ledger.look_up(URLS[:4])
    assert {outcome.status for outcome in found.values()} == {"error"} and len(found) == 4
    assert ticks == [(1, 1)] * 4
    complete(FetchSettings(), images, whole, tick)  # what has an outcome is not tried again
    assert ticks == [(1, 1)] * 4
    earlier = [found[url] for url in URLS[:4]]
    assert not any(map(may_pass, earlier))


def test_all_done_needs_no_more_folders(tmp_path: Path) -> None:
    tasks, _ = partitions([tmp_path], URLS, dict.fromkeys(URLS, 0), FetchSettings(), 3)
    assert [*tasks] == [Partition(tmp_path, URLS)]
