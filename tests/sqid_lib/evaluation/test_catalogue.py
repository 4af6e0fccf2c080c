"""Evaluation of a shop's own catalogue: its labels and gains, and nothing of ESCI in what is printed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_catalogue import CLICKS, NAMES, NONE, NUMBERS, catalogue_recipe, write_release, write_work

from builder.cli.main import main
from builder.release import release
from sqid_lib import EmbeddingStore, evaluation, schemas
from sqid_lib.errors import EvaluationError, UsageError
from sqid_lib.evaluation.judged import judged_lists

_OF_ESCI = re.compile(r"esci|amazon|exact|\bE\b|\bES\b|substitute", re.IGNORECASE)


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: write_release(tmp_path_factory.mktemp(kind), kind) for kind in (NAMES, NUMBERS, CLICKS, NONE)}


def opened(release: Path, cache: Path) -> EmbeddingStore:
    return EmbeddingStore.open(release, cache_dir=cache)


@pytest.mark.parametrize(
    ("kind", "relevant", "gains"),
    [
        (NAMES, ["gut"], "gains of the release: gut 1, mittel 0.4, schlecht 0"),
        (NUMBERS, ["3"], "gains of the release: 3, 1.5, 0"),
        (CLICKS, ["gain >= 0.5"], "gains of the release: numbers from 0 to 1"),
    ],
)
def test_labels_and_gains_are_those_of_the_release(
    releases: dict[str, Path], tmp_path: Path, kind: str, relevant: list[str], gains: str
) -> None:
    result = evaluation.compare(opened(releases[kind], tmp_path), metrics="ndcg mrr p@1", resamples=100)
    assert gains in result.notes
    rows = json.loads(result.to_json())
    assert {(row["gains"], tuple(row["relevant"])) for row in rows} == {("release", tuple(relevant))}
    files = [result.export(tmp_path / "out"), result.plot(tmp_path / "plot.svg")]
    written = [path.read_text() for place in files for path in ([place] if place.is_file() else place.rglob("*.*"))]
    for text in (
        str(result),
        result._repr_html_(),
        result.to_json(),
        result.to_csv(),
        result.per_query_csv(),
        *written,
    ):
        assert not _OF_ESCI.search(
            re.sub(r"<style.*?</style>|<metadata>.*?</metadata>|d=\"[^\"]*\"", "", text, flags=re.S)
        )


def test_everything_printed_is_the_releases_own(
    releases: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = [str(releases[NAMES]), "--cache-dir", str(tmp_path), "--resamples", "100"]
    for more in (["--slices", "source", "images"], ["--json"], ["--csv"], ["--retrieve"]):
        assert main(["evaluate", *common, *more]) == 0
        said = capsys.readouterr()
        assert said.out and not _OF_ESCI.search(said.out + said.err)


def test_relevant_numbers_are_those_from_a_gain_on(releases: dict[str, Path], tmp_path: Path) -> None:
    store = opened(releases[CLICKS], tmp_path)
    assert judged_lists(store).relevant.tolist() == [True, False, False, True, False]
    assert judged_lists(store, relevant="0.1").relevant.sum() == 3
    assert judged_lists(store, relevant="0").relevant.sum() == 3  # no gain, not relevant
    for wrong in ("gut", ["0.1", "0.2"], []):
        with pytest.raises(UsageError, match=r"expected the least gain, such as 0\.5"):
            judged_lists(store, relevant=wrong)


def test_qrels_of_clicks_are_rounded(releases: dict[str, Path], tmp_path: Path) -> None:
    result = evaluation.compare(opened(releases[CLICKS], tmp_path), ["clip_text"], resamples=100)
    assert "qrels: gains times 1,000,000, rounded, for trec_eval reads whole numbers only" in result.notes
    lines = (result.export(tmp_path / "out") / "qrels.trec").read_text().splitlines()
    assert sorted(int(line.split()[-1]) for line in lines) == [0, 0, 142857, 1_000_000, 1_000_000]


def test_own_labels_with_escis_names_have_their_own_gains(tmp_path: Path) -> None:
    work = write_work(tmp_path / "work", NAMES)
    path = work / "sample/judgments.parquet"
    names = {"gut": ("E", 3.0), "mittel": ("S", 2.0), "schlecht": ("I", 0.5)}
    changed = [
        row | dict(zip(("esci_label", "gain"), names[row["esci_label"]], strict=True))
        for row in pq.read_table(path).to_pylist()
    ]
    pq.write_table(pa.Table.from_pylist(changed, schemas.SAMPLED_JUDGMENTS_SCHEMA), path)
    catalogue = catalogue_recipe().to_dict()["catalogue"] | {"labels": dict(names.values())}
    release(catalogue_recipe(catalogue=catalogue), work, lambda _: None)
    lists = judged_lists(opened(work / schemas.RELEASE_DIR, tmp_path / "cache"))
    assert lists.labels.gain == {"E": 3.0, "S": 2.0, "I": 0.5}
    assert lists.labels.relevant_value == ["E"]


def test_without_judgments_there_is_one_clear_line(
    releases: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(EvaluationError, match=r"nothing to judge.*got a release without judgments"):
        evaluation.compare(opened(releases[NONE], tmp_path))
    assert main(["evaluate", str(releases[NONE]), "--cache-dir", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert said.out == "" and len(said.err.splitlines()) == 1 and "without judgments" in said.err


def test_german_and_japanese_titles_are_found_by_their_words(releases: dict[str, Path], tmp_path: Path) -> None:
    store = opened(releases[NAMES], tmp_path)
    found = evaluation.retrieve(store, ["bm25"], resamples=100).rankings["bm25"]
    titles = store.products["product_title"].take(pa.array(found.product)).to_pylist()
    queries = store.queries["query"].take(pa.array(found.query)).to_pylist()
    assert list(zip(queries, titles, strict=True)) == [
        ("roter wanderschuh", "Größe 42: roter Wanderschuh"),
        ("赤い靴", "赤いランニングシューズ"),
    ]
