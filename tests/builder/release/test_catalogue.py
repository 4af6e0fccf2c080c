"""The release of a shop's own catalogue: its configs, kept columns, manifest and card."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import DatasetCard
from tiny_catalogue import (
    CLICKS,
    KEPT,
    NAMES,
    NONE,
    NUMBERS,
    PRICES,
    QUERIES,
    REVISION,
    WIDTH,
    catalogue_recipe,
    write_release,
    write_work,
)

from builder.recipe import CardSettings
from builder.release import catalogue_files, manifest, release
from builder.release.card_yaml import read_metadata
from builder.validate import validate
from sqid_lib import schemas
from sqid_lib.errors import IntegrityError, MissingFileError, SchemaError, UsageError
from sqid_lib.files import shard_name

HOSTILE = """Schöne Waren.\r
---
license: mit
---
<!-- with judgments -->
$name ${title} $$ \x1b[31m <!-- an open comment
| a | table |
```
"""
_NOT_STATED = re.compile(r"ESCI\b|Amazon|ASIN|Shopping Queries|arXiv|MIT\b|[Aa]pache|\bE 1\.0|Exact|Al Ghossein")


def rows(release: Path, config: str) -> pa.Table:
    return pq.read_table(release / shard_name(config, "test", 0, 1))


def text(release: Path) -> str:
    return (release / schemas.CARD).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_release(tmp_path_factory.mktemp("named"))


def test_its_files_are_valid(named: Path) -> None:
    assert validate(named) == []
    assert sorted(path.name for path in (named / "data").iterdir()) == sorted(
        [schemas.URLS, schemas.FEATURES, schemas.QUERIES, schemas.JUDGMENTS]
    )
    classic = {schemas.PRODUCT_URLS, schemas.PRODUCT_FEATURES, schemas.QUERY_FEATURES}
    assert {name for name in schemas.CLASSIC_FILES if (named / name).exists()} == classic
    assert (named / schemas.PRODUCT_URLS).read_text().splitlines()[:3] == [
        "product_id,product_locale,image_url",
        "P-0,de,",
        "P-1,de,https://bilder.example/lampe.jpg",
    ]


def test_kept_columns_follow_the_declared_ones(named: Path) -> None:
    for config in schemas.CARRYING:
        table = rows(named, config)
        assert table.schema.equals(schemas.config_schema(config, WIDTH, pa.schema(KEPT))) and not table.schema.metadata
        assert table["price"].to_pylist() == list(PRICES)
    assert "price" not in rows(named, schemas.JUDGMENTS).column_names


def test_a_local_image_has_no_url_and_a_good_status(named: Path) -> None:
    table = rows(named, schemas.FEATURES)
    assert table["image_url"].to_pylist() == [
        *(None, "https://bilder.example/lampe.jpg", None),
        *(None, None, "https://bilder.example/kaputt.jpg"),
    ]
    assert table["image_status"].to_pylist() == ["ok", "ok", "ok", "missing", "not_found", "corrupt"]
    assert table["has_image"].to_pylist() == [True, True, True, False, False, False]


def test_queries_without_a_judgment_are_there(named: Path) -> None:
    assert rows(named, schemas.QUERIES)["query"].to_pylist() == list(QUERIES)
    assert len(set(rows(named, schemas.JUDGMENTS)["query_id"].to_pylist())) == len(QUERIES) - 1


@pytest.mark.parametrize("judgments", [NUMBERS, CLICKS, NONE])
def test_other_kinds_of_judgments_are_valid(tmp_path: Path, judgments: str) -> None:
    made = write_release(tmp_path, judgments)
    assert validate(made) == []
    assert (made / "data" / schemas.JUDGMENTS).exists() == (judgments != NONE)
    assert (made / "data" / schemas.QUERIES).exists()


def test_without_queries_there_are_products_alone(tmp_path: Path) -> None:
    made = write_release(tmp_path, NONE, queries=())
    assert validate(made) == []
    assert sorted(path.name for path in (made / "data").iterdir()) == [schemas.FEATURES, schemas.URLS]
    assert not (made / schemas.QUERY_FEATURES).exists()
    assert "query_features" not in text(made) and "query text" not in text(made)


def test_vectors_of_queries_must_be_there_where_queries_are(tmp_path: Path) -> None:
    work = write_work(tmp_path)
    (work / "embed/queries-00000.parquet").unlink()
    with pytest.raises(MissingFileError, match="stage embed has not run"):
        release(catalogue_recipe(), work, lambda _: None)


@pytest.mark.compat
@pytest.mark.parametrize("config", [schemas.URLS, schemas.FEATURES, schemas.QUERIES, schemas.JUDGMENTS])
@pytest.mark.parametrize("streaming", [False, True])
def test_datasets_loads_every_config(named: Path, tmp_path: Path, config: str, streaming: bool) -> None:
    import datasets

    loaded = datasets.load_dataset(str(named), config, split="test", streaming=streaming, cache_dir=str(tmp_path))
    assert loaded.features == schemas.config_features(config, WIDTH, pa.schema(KEPT))
    assert list(loaded) == rows(named, config).to_pylist()


@pytest.mark.compat
@pytest.mark.parametrize("streaming", [False, True])
def test_sqid_loads_its_rows_as_they_are(named: Path, tmp_path: Path, streaming: bool) -> None:
    import sqid

    for config in (schemas.URLS, schemas.FEATURES, schemas.QUERIES, schemas.JUDGMENTS):
        every = sqid.load(config, artifacts=named, streaming=streaming, cache_dir=str(tmp_path))
        assert list(every) == ["test"]
        assert list(every["test"]) == rows(named, config).to_pylist()
    first = sqid.load("urls", "test[:2]", artifacts=named, cache_dir=str(tmp_path))
    assert first["product_id"] == ["P-0", "P-1"]
    with pytest.raises(UsageError, match=r"the release has no config 'supp'.*expected urls or product_features"):
        sqid.load("supp", artifacts=named)
    with pytest.raises(UsageError, match="a catalogue is joined already"):
        sqid.load("urls", artifacts=named, locale="de")


@pytest.mark.parametrize(
    ("field", "message"),
    [
        (pa.field("image_url", pa.string()), "a release has a column 'image_url' of its own"),
        (pa.field("sizes", pa.list_(pa.int64())), "column 'sizes' cannot be kept"),
    ],
)
def test_a_column_that_cannot_be_kept_is_refused(tmp_path: Path, field: pa.Field, message: str) -> None:
    work = write_work(tmp_path)
    path = work / "sample/products.parquet"
    table = pq.read_table(path)
    pq.write_table(table.append_column(field, pa.nulls(len(table), field.type)), path)
    with pytest.raises(SchemaError, match=message):
        release(catalogue_recipe(), work, lambda _: None)
    assert not (work / schemas.RELEASE_DIR).exists()


# -- manifest -------------------------------------------------------------------------------------------------------


def test_the_manifest_states_the_catalogue_without_its_place(named: Path) -> None:
    stated = manifest.read(named)
    assert stated.of_catalogue and not stated.of_esci
    assert stated.kept == {"price": "float64", "category": "string", "stock": "int64"}
    assert stated.recipe["catalogue"]["products"] == "waren.csv"
    assert stated.recipe["catalogue"]["images"] == "fotos"
    assert stated.recipe["catalogue"]["labels"] == {"gut": 1.0, "mittel": 0.4, "schlecht": 0.0}
    assert (stated.locales, stated.revision) == (("de",), REVISION)
    assert "secret" not in (named / schemas.MANIFEST).read_text() + text(named)


def test_a_catalogue_named_sqid_is_not_the_published_one(tmp_path: Path) -> None:
    made = write_release(tmp_path, recipe=catalogue_recipe(name="sqid"))
    assert validate(made) == []
    assert not manifest.read(made).of_esci
    assert read_metadata(made)["pretty_name"] == "sqid"
    assert not _NOT_STATED.search(text(made))


@pytest.mark.parametrize(
    "change",
    [
        {"kept": {"price": "list"}},
        {"kept": {"image_url": "string"}},
        {"kept": ["price"]},
        {"card": []},
        {"card": {"licence": "mit"}},
        {"card": {"title": 7}},
    ],
)
def test_a_damaged_manifest_is_a_problem(tmp_path: Path, change: dict[str, object]) -> None:
    made = write_release(tmp_path)
    path = made / schemas.MANIFEST
    values = json.loads(path.read_text())
    values["recipe"].update({key: value for key, value in change.items() if key == "card"})
    values |= {key: value for key, value in change.items() if key == "kept"}
    path.write_text(json.dumps(values))
    assert "manifest" in {problem.code for problem in validate(made)}


# -- card -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("judgments", [NAMES, NUMBERS, CLICKS, NONE])
def test_nothing_is_claimed_that_is_not_stated(tmp_path: Path, judgments: str) -> None:
    made = write_release(tmp_path, judgments)
    assert not _NOT_STATED.search(text(made))
    values = read_metadata(made)
    assert {"license", "language", "source_datasets", "multilinguality"}.isdisjoint(values)
    assert "No licence is stated." in text(made) and "## Cite" not in text(made)
    assert not re.search(r"\$|<!--|None|\n\n\n", text(made))
    assert ("text-ranking" in values["task_categories"]) == (judgments != NONE)
    assert ("sqid evaluate" in text(made)) == (judgments != NONE)


@pytest.mark.parametrize(
    ("judgments", "label", "gain"),
    [
        (NAMES, "label, as given: gut, mittel, schlecht", "gut 1.0, mittel 0.4, schlecht 0.0"),
        (NUMBERS, "label, as given: 3, 1.5, 0", "3 3.0, 1.5 1.5, 0 0.0"),
        (CLICKS, "clicks/impressions of the query and the product", "from 0.0 to 1.0"),
    ],
)
def test_the_labels_are_those_of_the_data(tmp_path: Path, judgments: str, label: str, gain: str) -> None:
    made = text(write_release(tmp_path, judgments))
    assert f"| `esci_label` | string | {label} |" in made
    assert f"| `gain` | float32 | {gain} |" in made
    assert ("| different labels | 3 |" in made) == (judgments == CLICKS)


def test_many_numbers_are_described_and_not_listed(tmp_path: Path) -> None:
    work = write_work(tmp_path, NUMBERS)
    path = work / "sample/judgments.parquet"
    rng = np.random.default_rng(1)
    one = pq.read_table(path).to_pylist()[0]
    gains = [round(float(number), 3) for number in rng.random(18)]
    made_up = [
        {**one, "query_id": 2**62 + at // 6, "query": QUERIES[at // 6], "product_id": f"P-{at % 6}", "example_id": at}
        | {"esci_label": str(gain), "gain": gain}
        for at, gain in enumerate(gains)
    ]
    pq.write_table(pa.Table.from_pylist(made_up, schemas.SAMPLED_JUDGMENTS_SCHEMA), path)
    release(catalogue_recipe(NUMBERS), work, lambda _: None)
    made = work / schemas.RELEASE_DIR
    assert validate(made) == []
    assert f"| `gain` | float32 | from {min(gains)} to {max(gains)} |" in text(made)


def test_what_is_stated_is_on_the_card(tmp_path: Path) -> None:
    card = CardSettings(
        title="Warenhaus",
        description="Waren **eines** Ladens.",
        licence=("cc-by-4.0",),
        language=("de", "ja"),
        homepage="https://laden.example/daten",
        citation="@misc{laden, title = {Waren}}",
    )
    made = write_release(tmp_path, recipe=catalogue_recipe(card=card))
    assert validate(made) == []
    values = read_metadata(made)
    assert (values["pretty_name"], values["license"], values["language"]) == ("Warenhaus", ["cc-by-4.0"], ["de", "ja"])
    body = text(made)
    assert "\n# Warenhaus\n\nWaren **eines** Ladens.\n\nHomepage: <https://laden.example/daten>\n" in body
    assert "Licence of the data: `cc-by-4.0`." in body
    assert "## Cite\n\n```bibtex\n@misc{laden, title = {Waren}}\n```" in body


def test_text_of_the_recipe_breaks_neither_yaml_nor_checks(tmp_path: Path) -> None:
    card = CardSettings(
        title="A\n---\nlicense: mit",
        description=HOSTILE,
        licence=("Nur für: uns", "mit"),
        language=("de\n---",),
        citation="@misc{x}\n```\n# escaped",
    )
    made = write_release(tmp_path, recipe=catalogue_recipe(card=card))
    assert validate(made) == []
    values = read_metadata(made)
    assert (values["license"], values["license_name"]) == ("other", "Nur für: uns and mit")
    assert values["pretty_name"] == "A --- license: mit"
    assert DatasetCard.load(made / schemas.CARD).data.to_dict()["license"] == "other"
    body = text(made)
    assert "$name ${title} $$" in body and "\x1b" not in body and "\r" not in body
    assert "<!--" not in body
    assert "````bibtex\n@misc{x}\n```\n# escaped\n````" in body


def test_labels_and_titles_open_no_comment(tmp_path: Path) -> None:
    labels = {"gut": 1.0, "mittel": 0.4, "schlecht": 0.0, "<!-- | x": 0.7}
    catalogue = catalogue_recipe().to_dict()["catalogue"] | {"labels": labels}
    work = write_work(tmp_path)
    path = work / "sample/judgments.parquet"
    changed = [
        row | ({"esci_label": "<!-- | x", "gain": 0.7} if row["esci_label"] == "mittel" else {})
        for row in pq.read_table(path).to_pylist()
    ]
    pq.write_table(pa.Table.from_pylist(changed, schemas.SAMPLED_JUDGMENTS_SCHEMA), path)
    release(catalogue_recipe(catalogue=catalogue, card=CardSettings(title="<!-- Laden")), work, lambda _: None)
    made = work / schemas.RELEASE_DIR
    assert validate(made) == []
    assert "| label &lt;!-- \\| x | 2 |" in text(made) and "# &lt;!-- Laden" in text(made)
    assert "<!--" not in text(made).replace("`<!-- | x`", "").partition("\n---\n")[2]


def test_a_card_that_contradicts_the_recipe_is_a_problem(tmp_path: Path) -> None:
    made = write_release(tmp_path, recipe=catalogue_recipe(card=CardSettings(licence=("mit",), language=("de",))))
    path = made / schemas.CARD
    path.write_text(path.read_text().replace("- mit\n", "- cc0-1.0\n").replace("- de\n", "- en\n"))
    messages = [problem.message for problem in validate(made) if problem.code == "contradiction"]
    assert [message.split()[0] for message in messages] == ["license", "language"]


@pytest.mark.parametrize("name", ["resolve/urls.parquet", "embed/products-00000.parquet"])
@pytest.mark.parametrize("change", ["another order", "a row less"])
def test_stages_of_other_products_are_refused(tmp_path: Path, name: str, change: str) -> None:
    path = write_work(tmp_path) / name
    table = pq.read_table(path)
    pq.write_table(table.slice(1) if change == "a row less" else table.take([1, 0, 2, 3, 4, 5]), path)
    with pytest.raises(IntegrityError, match=r"the stages have not the same products.*Run the sample"):
        release(catalogue_recipe(), tmp_path, lambda _: None)


def test_blocks_do_not_change_a_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: Path) -> None:
    for block in ("_ROWS", "_TEXT_ROWS"):
        monkeypatch.setattr(catalogue_files, block, 4)
    made = write_release(tmp_path)
    for path in (path for path in named.rglob("*") if path.is_file()):
        assert (made / path.relative_to(named)).read_bytes() == path.read_bytes()
