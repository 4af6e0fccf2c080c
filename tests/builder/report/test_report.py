"""The report of a release and of a work directory: its numbers, suspects, empty states, and that it is safe to open."""

from __future__ import annotations

import base64
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import report_fixtures as fixtures
from file_server import FileServer
from report_fixtures import Page, Shop

from builder.report import report, suspects, write
from builder.report.projection import project, sample_rows
from builder.validate import validate
from sqid_lib import EmbeddingStore, evaluation, schemas
from sqid_lib.errors import MissingExtraError, MissingFileError, UsageError


@pytest.fixture(scope="module")
def made() -> Shop:
    return fixtures.shop()


@pytest.fixture(scope="module")
def work(made: Shop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fixtures.write_work(tmp_path_factory.mktemp("report") / "work", made)


@pytest.fixture(scope="module")
def text(work: Path) -> str:
    return report(work, method="pca").path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def cosines(one: Any, other: Any) -> Any:
    return (one * other).sum(axis=1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)


def shown_in(made: Shop) -> Any:
    """Which products have an image vector."""
    return made.image.any(axis=1)


def numbers(row: list[str]) -> list[float]:
    return [float(cell.replace("−", "-").replace(",", "")) for cell in row]


# -- numbers --------------------------------------------------------------------------------------------------------


def test_the_funnel_counts_losses_by_reason(page: Page) -> None:
    assert [row[1:] for row in page.tables["funnel-data"][1:]] == [
        ["60", "100.0 %", ""],
        ["57", "95.0 %", "missing 3"],
        ["55", "91.7 %", "placeholder 2"],
        ["50", "83.3 %", "not_found 4, corrupt 1"],
        ["49", "81.7 %", "non_finite 1"],
    ]
    assert "3 supplementary products" in page.texts["funnel"]


def test_coverage_by_status_brand_and_source(page: Page, made: Shop) -> None:
    statuses = Counter(made.products["image_status"])
    assert {row[0]: int(row[2]) for row in page.tables["status-data"][1:]} == statuses
    shown = shown_in(made)
    brands = Counter(brand or "no brand stated" for brand in made.products["product_brand"])
    covered = Counter(
        b or "no brand stated" for b, there in zip(made.products["product_brand"], shown, strict=True) if there
    )
    assert {row[0]: (int(row[1]), int(row[2])) for row in page.tables["brand-data"][1:]} == {
        name: (brands[name], covered[name]) for name in brands
    }
    judged = [shown[int(product[1:])] for product in made.judgments["product_id"]]
    source = [made.queries["source"][query - 100] or "not stated" for query in made.judgments["query_id"]]
    for name, queries, judgments, images, _, _ in page.tables["source-data"][1:]:
        assert int(queries) == [s or "not stated" for s in made.queries["source"]].count(name)
        assert int(judgments) == source.count(name)
        assert int(images) == sum(there for s, there in zip(source, judged, strict=True) if s == name)


def test_histograms_hold_the_norms_and_the_cosines_of_each_label(page: Page, made: Shop) -> None:
    shown = shown_in(made)
    product = np.array([int(name[1:]) for name in made.judgments["product_id"]])
    query = np.array(made.judgments["query_id"]) - 100
    label = np.array(made.judgments["esci_label"])
    norms = {"product text": made.text, "product image": made.image[shown], "query text": made.query}
    check_histogram(page, "norms", {name: np.linalg.norm(values, axis=1) for name, values in norms.items()})
    check_histogram(page, "cosine-title", {"all products": cosines(made.text[shown], made.image[shown])})
    text = cosines(made.query[query], made.text[product])
    check_histogram(page, "cosine-text", {name: text[label == name] for name in fixtures.GAINS})
    kept = shown[product]
    image = cosines(made.query[query[kept]], made.image[product[kept]])
    check_histogram(page, "cosine-image", {name: image[label[kept] == name] for name in fixtures.GAINS})


def check_histogram(page: Page, name: str, values: Mapping[str, Any]) -> None:
    """The table of counts and that of means against numpy."""
    header, *rows = page.tables[f"{name}-data"]
    assert header[2:] == list(values)
    every = np.concatenate(list(values.values()))
    edges = np.linspace(every.min(), every.max(), len(rows) + 1)
    for at, found in enumerate(values.values(), 2):
        counts = [int(row[at]) for row in rows]
        assert sum(counts) == len(found)
        off = np.abs(np.cumsum(counts) - np.searchsorted(np.sort(found), edges[1:]))
        assert off.max() <= 1  # a value that lies on an edge
    for row in page.tables[f"{name}-means"][1:]:
        found = values[row[0]]
        assert numbers(row[1:]) == pytest.approx([len(found), found.mean(), found.std()], abs=6e-5)


def test_the_ranking_table_is_that_of_evaluation(page: Page, work: Path, cache: str) -> None:
    store = EmbeddingStore.open(work / schemas.RELEASE_DIR, cache_dir=cache, progress=False)
    expected = evaluation.compare(store)
    rows = {row[0]: row for row in page.tables["ranking-table"][1:]}
    assert list(rows) == [row["method"] for row in expected.rows]
    for row in expected.rows:
        assert float(rows[row["method"]][1]) == pytest.approx(row["ndcg"], abs=5e-5)
    sweep = expected.sweeps["fusion"]
    curve = np.array([numbers(row) for row in page.tables["fusion-curve"][1:]])
    assert curve == pytest.approx(np.stack([sweep.weights, sweep.ndcg], axis=1), abs=5e-5)


def test_times_model_and_versions_are_shown(page: Page) -> None:
    assert page.tables["times"][1:] == [["sample", "1.5"], ["fetch", "200.0"]]
    assert "3 min 20 s" in page.texts["build"]
    shown = dict(page.tables["versions"][1:])
    assert shown["model"] == "made-up/tiny-clip" and shown["pyarrow"] == pa.__version__


# -- suspects -------------------------------------------------------------------------------------------------------


def test_planted_faults_are_suspects(page: Page, text: str) -> None:
    found = {name: part(text, name) for name in ("duplicates", "near-duplicates", "far")}
    assert all(f"P{row:03d}" in found["duplicates"] for row in fixtures.SAME)
    assert "2 products" in found["duplicates"] and "the same file" in found["duplicates"]
    first = found["near-duplicates"].split("</ul>")[0]
    assert all(f"P{row:03d}" in first for row in fixtures.NEAR)
    far = {int(card[:3]) for card in found["far"].split('class="id">P')[1:5]}
    assert far == {*fixtures.SWAPPED, fixtures.SAME[1], fixtures.NEAR[1]}  # these too have the image of another
    worst = page.tables["contradicted"][1]
    assert worst[0] == f"query {fixtures.INVERTED} ({100 + fixtures.INVERTED})"
    assert worst[1].startswith("perfect: ") and worst[2].startswith("bad: ")
    assert worst[3:5] == ["12", "48"] and float(worst[5].removesuffix(" %")) > 60
    assert "What to do" in page.texts["suspects"] and page.texts["suspects"].count("What to do") == 3


def part(text: str, name: str) -> str:
    """The HTML of a list, by its id, up to the next heading or section."""
    return text.split(f'id="{name}"')[1].split("<h")[0].split("</section>")[0]


def test_kendalls_statistic_and_the_share_of_wrong_pairs() -> None:
    gain, score = np.array([1.0, 1.0, 0.0, 0.0, 0.0]), np.array([0.1, 0.4, 0.2, 0.3, 0.5])
    case = suspects._contradicted(7, 0, gain, score)
    assert case is not None
    assert (case.query, case.judged, case.pairs, case.best, case.worst) == (7, 5, 6, 0, 4)
    assert case.wrong == pytest.approx(4 / 6)
    # variance of S: (5·4·15 − 2·1·9 − 3·2·11) / 18
    assert case.z == pytest.approx((2 - 4) / np.sqrt((300 - 18 - 66) / 18))
    assert suspects._contradicted(0, 0, gain[:3], score[:3]) is None


def test_near_duplicates_are_the_same_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    image = rng.normal(size=(50, 2)).astype(np.float32)
    release: Any = SimpleNamespace(image_features=image, has_image=np.ones(50, bool), statuses=["ok"] * 50, width=2)
    unit = image / np.linalg.norm(image, axis=1, keepdims=True)
    expected = int(np.triu(unit @ unit.T >= suspects.NEAR, 1).sum())
    whole = suspects.near_duplicates(release, [])
    monkeypatch.setattr(suspects, "_BLOCK", 7)
    parts = suspects.near_duplicates(release, [])
    assert whole.found == parts.found == expected > 50
    assert [(p.first, p.second) for p in whole.pairs] == [(p.first, p.second) for p in parts.pairs]
    monkeypatch.setattr(suspects, "COMPARED", 20)
    assert (suspects.near_duplicates(release, []).compared, whole.compared) == (20, 50)


# -- what is not there ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("configs", "reasons"),
    [
        (
            (schemas.URLS,),
            {
                "vectors": "no vectors",
                "map": "no text vectors",
                "suspects": "no vectors",
                "ranking": "no vectors of queries",
            },
        ),
        (
            (schemas.URLS, schemas.FEATURES),
            {"coverage": "no queries", "ranking": "no vectors of queries", "vectors": "no judgments"},
        ),
        (
            (schemas.URLS, schemas.FEATURES, schemas.QUERIES),
            {"coverage": "no judgments", "ranking": "no judgments", "suspects": "no judgments"},
        ),
    ],
)
def test_a_section_says_why_it_is_empty(
    tmp_path: Path, made: Shop, configs: tuple[str, ...], reasons: dict[str, str]
) -> None:
    release = fixtures.write_shop(tmp_path / "release", made, configs)
    page = Page(report(release, tmp_path / "out.html", method="pca").path.read_text(encoding="utf-8"))
    common = {"products": "A release holds no images", "build": "no manifest.json"}
    for section, reason in (common | reasons).items():
        assert reason in page.texts[section], section


def test_a_release_without_images(tmp_path: Path, made: Shop) -> None:
    without = fixtures.shop()
    without.image[:] = 0
    urls = without.products["image_url"]
    without.products["image_status"] = [schemas.OK if url else schemas.MISSING for url in urls]
    release = fixtures.write_shop(tmp_path / "release", without)
    page = Page(report(release, tmp_path / "out.html", method="pca").path.read_text(encoding="utf-8"))
    assert page.tables["funnel-data"][-1][1:] == ["0", "0.0 %", "no vector 57"]
    assert "No product has an image vector." in page.texts["suspects"]
    assert [row[0] for row in page.tables["ranking-table"][1:]] == ["random", "clip_text"]
    assert "A fusion weight needs images" in page.texts["ranking"]


def test_parts_without_rows_are_empty_sections(tmp_path: Path) -> None:
    bare = fixtures.shop()
    bare.queries, bare.judgments = ({name: [] for name in part} for part in (bare.queries, bare.judgments))
    bare.query = bare.query[:0]
    bare.products["product_brand"] = bare.products["product_title"] = [None] * fixtures.PRODUCTS
    configs = tuple(config for config in schemas.CONFIGS if config != schemas.SUPP)
    release = fixtures.write_shop(tmp_path / "release", bare, configs)
    page = Page(report(release, tmp_path / "out.html", method="pca").path.read_text(encoding="utf-8"))
    assert "No product states a brand." in page.texts["coverage"]
    assert "The release has no queries." in page.texts["coverage"]
    assert "The release has no vectors of queries." in page.texts["ranking"]
    assert page.tables["map-label"][1:] == [["not judged", "60"]]
    assert "supplementary" not in page.texts["funnel"]


def test_one_judged_query_has_no_fusion(tmp_path: Path) -> None:
    single = fixtures.shop()
    single.judgments = {name: values[: fixtures.JUDGED] for name, values in single.judgments.items()}
    release = fixtures.write_shop(tmp_path / "release", single)
    page = Page(report(release, tmp_path / "out.html", method="pca").path.read_text(encoding="utf-8"))
    assert [row[0] for row in page.tables["ranking-table"][1:]] == ["random", "clip_text", "clip_image", "rrf"]
    assert "A fusion weight needs images and at least two judged queries." in page.texts["ranking"]


def test_gains_that_cannot_rank_are_explained(tmp_path: Path) -> None:
    wrong = fixtures.shop()
    wrong.judgments["gain"] = [float(n) for n in range(len(wrong.judgments["gain"]))]  # a label has many
    configs = tuple(config for config in schemas.CONFIGS if config != schemas.SUPP)
    release = fixtures.write_shop(tmp_path / "release", wrong, configs)
    page = Page(report(release, tmp_path / "out.html", method="pca").path.read_text(encoding="utf-8"))
    assert "The ranking table cannot be made: a label has two gains." in page.texts["ranking"]


def test_a_release_without_products(tmp_path: Path) -> None:
    empty = fixtures.shop()
    empty.products = {name: [] for name in empty.products}
    release = fixtures.write_shop(tmp_path / "release", empty, (schemas.URLS,))
    page = Page(report(release, tmp_path / "out.html", method="pca").path.read_text(encoding="utf-8"))
    assert "The release has no products." in page.texts["funnel"]


# -- safe, small, the same ------------------------------------------------------------------------------------------


def test_untrusted_texts_are_escaped_and_cut(text: str, page: Page) -> None:
    assert "<script>alert" not in text and "<img src=//evil" not in text and not page.handlers
    assert "<script>alert(1)</script>" in page.texts["map"]  # as text
    assert text.count("long long") < 2_000 and "…" in page.texts["map"]
    [points] = [content for kind, content in page.scripts if kind == "application/json"]
    assert "<" not in points
    titles = [point[0] for point in json.loads(points)["points"]]
    assert titles[1] == fixtures.HOSTILE[1] and len(titles[2]) == 120 and titles[3] == '</script><!-- & "quoted"'
    assert titles[4] == "" and "(no title)" in text and "\x00" not in text


def test_nothing_is_loaded_from_elsewhere(page: Page) -> None:
    assert page.references
    assert {reference.split(";")[0].split("#")[0] for reference in page.references} <= {"", "data:image/jpeg"}
    assert not page.tags & {"link", "iframe", "object", "embed", "base", "video", "audio"}
    assert not [style for style in page.styles if "url(" in style or "@import" in style]
    for anchor in (reference[1:] for reference in page.references if reference.startswith("#")):
        assert anchor in page.ids
    assert len(page.ids) == len(set(page.ids))


def test_the_policy_allows_the_own_script_and_style_alone(page: Page) -> None:
    policy = dict(rule.split(" ", 1) for rule in page.metas["Content-Security-Policy"].split("; "))
    [script] = [content for kind, content in page.scripts if kind == "module"]
    [style] = page.styles
    for name, content in (("script-src", script), ("style-src", style)):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert policy[name] == f"'sha256-{digest}'"
    assert (policy["default-src"], policy["img-src"], policy["base-uri"]) == ("'none'", "data:", "'none'")


def test_headings_are_in_order(page: Page) -> None:
    assert page.headings[0] == 1 and page.headings.count(1) == 1
    assert all(later <= earlier + 1 for earlier, later in zip(page.headings, page.headings[1:], strict=False))


def test_the_same_release_gives_the_same_bytes(tmp_path: Path, work: Path, text: str) -> None:
    assert report(work, tmp_path / "again.html", method="pca").path.read_text(encoding="utf-8") == text


def test_a_large_release_gives_a_small_report(tmp_path: Path) -> None:
    count = 3_200
    large = fixtures.shop()
    rng = np.random.default_rng(0)
    large.text, large.image = rng.normal(size=(2, count, 4)).astype(np.float32)
    large.query = large.query[:, :4]
    large.products = {
        "product_id": [f"P{row:05d}" for row in range(count)],
        "product_locale": ["us"] * count,
        "product_title": ["\U0001f455" * 1_000] * count,
        "product_brand": ["\U0001f455" * 100 + str(row) for row in range(count)],
        "image_url": [f"https://shop.example/{row}" for row in range(count)],
        "image_status": ["ok"] * count,
    }
    large.judgments["product_id"] = [f"P00{name[1:]}" for name in large.judgments["product_id"]]
    made = report(fixtures.write_work(tmp_path / "work", large), method="pca")
    page = Page(made.path.read_text(encoding="utf-8"))
    assert "3,000 of 3,200 products, a sample" in page.texts["map"]
    assert "600 points with a thumbnail" in page.texts["map"]
    assert made.path.stat().st_size < write.LIMIT


# -- images ---------------------------------------------------------------------------------------------------------


def test_images_come_from_the_work_directory(page: Page, text: str, work: Path) -> None:
    assert text.count("data:image/jpeg") > 24
    assert "24 products, evenly spaced among 50 with an image" in page.texts["products"]
    failures = page.tables["failures"][1:]
    assert ["not_found (4)", "product number 50", "https://shop.example/P050.jpg?token=x", "HTTP 404"] in failures
    assert [row[0] for row in failures].count("placeholder (2)") == 2


def test_local_images_are_counted_and_shown(tmp_path: Path) -> None:
    local = fixtures.shop()
    local.products["image_url"] = [
        None if url is None else f"file:images/P{row:03d}.jpg" for row, url in enumerate(local.products["image_url"])
    ]
    work = fixtures.write_work(tmp_path / "work", local)
    local.products["image_url"] = [None] * fixtures.PRODUCTS  # as a build of [catalogue] publishes it
    fixtures.write_shop(work / schemas.RELEASE_DIR, local)
    page = Page(report(work, method="pca").path.read_text(encoding="utf-8"))
    assert [row[1] for row in page.tables["funnel-data"][1:]] == ["60", "57", "55", "50", "49"]
    assert "24 products, evenly spaced among 50 with an image" in page.texts["products"]
    failures = page.tables["failures"][1:]
    assert ["not_found (4)", "product number 50", "file:images/P050.jpg", "HTTP 404"] in failures


def test_without_pillow_there_are_no_thumbnails(monkeypatch: pytest.MonkeyPatch, work: Path, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    page = Page(report(work, tmp_path / "out.html", method="pca").path.read_text(encoding="utf-8"))
    assert "No thumbnails: the stored images cannot be read" in page.texts["products"]
    assert "data:image/jpeg" not in {reference.split(";")[0] for reference in page.references}


def test_damaged_images_cost_the_thumbnails_alone(tmp_path: Path, made: Shop) -> None:
    broken = fixtures.write_work(tmp_path / "work", made)
    images = broken / "fetch" / "images-00000.parquet"
    images.write_bytes(images.read_bytes()[:-9])
    page = Page(report(broken, method="pca").path.read_text(encoding="utf-8"))
    assert "No thumbnails: the stored images cannot be read" in page.texts["products"]
    assert len(page.tables["failures"]) > 1


# -- the map --------------------------------------------------------------------------------------------------------


def test_the_map_is_the_first_two_principal_axes() -> None:
    vectors = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    found = project(vectors)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    left, values, _ = np.linalg.svd(unit - unit.mean(axis=0), full_matrices=False)
    for axis, points in enumerate((found.x, found.y)):
        assert abs(np.corrcoef(points, left[:, axis])[0, 1]) == pytest.approx(1)
        assert (points.min(), points.max()) == (0, 1)
    assert found.explained == pytest.approx(values[:2] ** 2 / (values**2).sum())


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_map_of_few_products(count: int) -> None:
    found = project(np.ones((count, 3), np.float32))
    assert len(found.x) == count and np.isfinite(found.x).all()


def test_umap_is_used_where_it_is_installed(monkeypatch: pytest.MonkeyPatch, work: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingExtraError, match="umap-learn"):
        monkeypatch.setitem(sys.modules, "umap", None)
        report(work, tmp_path / "out.html", method="umap")

    class Reducer:
        def __init__(self, **settings: Any) -> None:
            assert settings["random_state"] == 0

        def fit_transform(self, vectors: Any) -> Any:
            return vectors[:, :2]

    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=Reducer))
    page = Page(report(work, tmp_path / "out.html", method="umap").path.read_text(encoding="utf-8"))
    assert "By text vectors: UMAP of 60 products" in page.texts["map"]


def test_the_sample_of_a_large_catalogue_has_runs_for_thumbnails() -> None:
    rows, runs = sample_rows(10_000)
    assert len(rows) == len(set(rows.tolist())) == 3_000 and set(runs.tolist()) <= set(rows.tolist())
    assert len(runs) == 600 and (np.diff(runs) == 1).sum() == 12 * 49
    assert all(np.array_equal(a, b) for a, b in zip(sample_rows(10_000), (rows, runs), strict=True))


# -- where it is written --------------------------------------------------------------------------------------------


def test_a_release_gets_no_foreign_file(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = work / schemas.RELEASE_DIR
    with pytest.raises(UsageError, match="no other files"):
        report(release, release / "report.html")
    with pytest.raises(UsageError, match="a directory stands"):
        report(release, tmp_path)
    monkeypatch.chdir(tmp_path)
    assert report(release, method="pca").path == Path("report.html")
    assert Page(Path("report.html").read_text(encoding="utf-8")).tables["funnel-data"][1][1] == "60"
    assert [problem for problem in validate(release) if problem.code == "files"] == []
    assert not list(release.rglob("*.html"))


def test_a_release_over_http(work: Path, tmp_path: Path) -> None:
    with FileServer(work / schemas.RELEASE_DIR) as server:
        made = report(server.url, tmp_path / "out.html", cache_dir=tmp_path / "cache", method="pca")
    page = Page(made.path.read_text(encoding="utf-8"))
    assert page.tables["funnel-data"][-1][1] == "49"


def test_what_is_no_release_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="not a release"):
        report(tmp_path, tmp_path.parent / "out.html")
    assert not (tmp_path.parent / "out.html").exists()
