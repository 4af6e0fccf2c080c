"""The card: YAML that all generations of datasets read alike, tables from the data, claims that follow the recipe."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from huggingface_hub import DatasetCard
from release_fixtures import RECIPE, recipe_with, seal, write_release

from builder.recipe import ArtifactsSettings, CardSettings, EncoderSettings
from builder.release import card
from builder.release.card_tables import table
from builder.release.card_yaml import read_metadata
from builder.release.stage import describe
from builder.release.stated import licence_entries
from builder.release.statistics import gather_statistics
from builder.validate import validate
from sqid_lib import schemas
from sqid_lib.errors import CorruptFileError, MissingFileError
from sqid_lib.files import shard_name
from sqid_lib.joined.selection import Selection


def text(release: Path) -> str:
    return (release / schemas.CARD).read_text(encoding="utf-8")


@pytest.mark.compat
def test_dataset_info_is_read_as_the_declared_features(good: Path) -> None:
    from datasets import DatasetInfo

    for entry in read_metadata(good)["dataset_info"]:
        info = DatasetInfo._from_yaml_dict(entry)
        config = entry["config_name"]
        assert info.features == schemas.config_features(config, 8)
        split = schemas.SUPP_SPLIT if config == schemas.SUPP else "test"
        assert info.splits[split].num_examples == gather_statistics(good).rows(config)
        files = (good / "data" / config).glob("*.parquet")
        assert info.download_size == sum(path.stat().st_size for path in files)


@pytest.mark.compat
def test_load_dataset_reads_the_folder(good: Path, tmp_path: Path) -> None:
    from datasets import get_dataset_config_names, load_dataset

    assert sorted(get_dataset_config_names(str(good))) == sorted(schemas.CONFIGS)
    assert load_dataset(str(good), split="test", cache_dir=str(tmp_path)).column_names == (
        schemas.config_schema(schemas.URLS).names
    )
    features = load_dataset(str(good), schemas.FEATURES, split="test", cache_dir=str(tmp_path))
    assert features.features == schemas.config_features(schemas.FEATURES, 8)


def test_the_yaml_has_what_the_hub_knows(good: Path) -> None:
    values = read_metadata(good)
    for key in (
        *("license", "pretty_name", "language", "task_categories", "size_categories", "tags"),
        *("annotations_creators", "source_datasets", "configs", "dataset_info"),
    ):
        assert values[key], key
    assert [c["config_name"] for c in values["configs"] if c.get("default")] == [schemas.DEFAULT_CONFIG]
    assert text(good).startswith("---\n")
    assert DatasetCard.load(good / schemas.CARD).data.pretty_name == "tiny"


def test_the_same_inputs_give_the_same_bytes(release: Path) -> None:
    before = text(release)
    seal(release)
    assert text(release) == before


def test_no_name_of_the_template_is_left_over(good: Path) -> None:
    body = text(good)
    assert "$" not in body
    assert "\n\n\n" not in body
    assert "None" not in body


@pytest.mark.parametrize("words", ["arXiv 2405.15190", "2206.06588", "Apache-2.0", "MIT", "belong to their owners"])
def test_sources_and_licences_are_named(good: Path, words: str) -> None:
    assert words in text(good)


def test_columns_and_statuses_are_those_of_the_data(good: Path) -> None:
    body = text(good)
    for config in schemas.CONFIGS:
        for name in schemas.config_schema(config).names:
            assert f"| `{name}` | " in body
    for status in gather_statistics(good).statuses[schemas.URLS]:
        assert f"| `{status}` | {schemas.IMAGE_STATUS[status]} | " in body
    assert "`timeout`" not in body
    assert "float32[8]" in body
    assert "768" not in body


def test_nothing_official_is_claimed_of_another_selection(good: Path) -> None:
    body = text(good)
    assert body.count("This is `tiny`, not the published SQID") == 1
    assert "another selection than that of the published SQID" in body
    assert "These are the counts of the published SQID" not in body
    assert body.split("---\n")[2].split("\n\n")[0].strip() == "# tiny"


def test_the_model_is_the_recipes(release: Path) -> None:
    recipe = recipe_with(encoder=EncoderSettings(model="/somewhere/local/tiny-clip"))
    describe(release, recipe, revision="abcdef123")
    body = text(release)
    assert "openai/clip" not in body
    assert "/somewhere" not in body
    assert "`tiny-clip` at `abcdef123`" in body


def test_the_published_recipe_is_named_and_counted(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schemas, "PUBLISHED_COUNTS", gather_statistics(release).counts)
    seal(release, recipe_with(name="sqid"))
    body = text(release)
    assert "# SQID: Shopping Queries Image Dataset" in body
    assert "not the published SQID" not in body
    assert "These are the counts of the published SQID" in body
    assert 'load_dataset("ORG/sqid"' in body


def test_locales_artifacts_and_supplementary_vectors_show(release: Path) -> None:
    selection = Selection(locales=("us", "jp"), embed_supp=True, version="large")
    seal(release, recipe_with(selection=selection, artifacts=ArtifactsSettings(path="/x")))
    body = text(release)
    assert "taken from existing SQID files" in body
    assert "`large_version == 1`" in body
    assert "no embeddings." not in body
    assert read_metadata(release)["language"] == ["en", "ja"]
    assert read_metadata(release)["multilinguality"] == "multilingual"


GRADES = {"perfect": 2.0, "fair | so so": 0.5, "bad": 0.0}


def test_own_labels_and_gains_show(tmp_path: Path) -> None:
    recipe = recipe_with(selection=Selection(labels=tuple(GRADES.items())))
    body = text(write_release(tmp_path / "r", recipe=recipe))
    assert "| `esci_label` | string | perfect, fair \\| so so, bad |" in body
    assert "| `gain` | float32 | perfect 2.0, fair \\| so so 0.5, bad 0.0 |" in body
    assert "labelled each result as `perfect`, `fair | so so` or `bad`" in body
    assert re.search(r"\| label perfect \| [1-9]\d* \| \d+\.\d\d% \|", body)
    assert not [meaning for meaning in schemas.LABELS.values() if meaning in body]
    assert "ESCI's own weight" not in body


def test_esci_labels_with_other_gains_keep_their_meaning(tmp_path: Path) -> None:
    gains = tuple(schemas.GAINS_ESCI_REPO_SWAPPED.items())
    body = text(write_release(tmp_path / "r", recipe=recipe_with(selection=Selection(labels=gains))))
    assert "| label S: Substitute |" in body
    assert "| `gain` | float32 | E 1.0, S 0.01, C 0.1, I 0.0 |" in body
    assert "ESCI's own weight" not in body


def test_esci_labels_show_as_esci_states_them(good: Path) -> None:
    body = text(good)
    assert "labelled each result as Exact, Substitute, Complement or Irrelevant" in body
    assert "`gain` is ESCI's own weight of each label: E 1.0, S 0.1, C 0.01, I 0.0." in body
    assert "| `esci_label` | string | E exact, S substitute, C complement, I irrelevant |" in body
    assert "| `gain` | float32 | E 1.0, S 0.1, C 0.01, I 0.0 |" in body


@pytest.mark.parametrize(
    ("locales", "language", "multilinguality"),
    [
        (("us",), ["en"], "monolingual"),
        (("us", "es", "jp"), ["en", "es", "ja"], "multilingual"),
        (("de",), None, None),
        (("us", "de"), ["en"], None),
        (("us", "es", "de"), ["en", "es"], "multilingual"),
    ],
)
def test_only_known_languages_are_named(
    good: Path, locales: tuple[str, ...], language: list[str] | None, multilinguality: str | None
) -> None:
    recipe = recipe_with(selection=Selection(locales=locales))
    metadata = card.metadata(gather_statistics(good), recipe).to_dict()
    assert (metadata.get("language"), metadata.get("multilinguality")) == (language, multilinguality)


def test_the_snippet_names_a_file_that_exists(good: Path) -> None:
    (path,) = re.findall(r'hf://datasets/ORG/tiny/([^"]+)"', text(good))
    assert (good / path).is_file()


def test_a_table() -> None:
    assert table(("a", "n"), [("x|y", 1_234), ("two\nlines", 5)], right=(1,)) == (
        "| a | n |\n| --- | ---: |\n| x\\|y | 1,234 |\n| two lines | 5 |"
    )


def test_a_config_without_files_is_reported(release: Path) -> None:
    shutil.rmtree(release / "data" / schemas.DEFAULT_CONFIG)
    before = text(release)
    with pytest.raises(MissingFileError, match="the default config has no rows"):
        seal(release)
    assert text(release) == before


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (schemas.SUPP, "Supplementary products (5)"),
        (schemas.JUDGMENTS, "judgments_shard"),
        (schemas.QUERIES, "The products nearest to a query"),
    ],
)
def test_a_config_without_rows_is_not_on_the_card(release: Path, config: str, words: str) -> None:
    template = (Path(card.__file__).parents[2] / "dataset_card.md").read_text()
    assert words in text(release) + template
    shutil.rmtree(release / "data" / config)
    if config != schemas.SUPP:
        (path,) = (release / "data" / schemas.SUPP).iterdir()
        pq.write_table(pq.read_schema(path).empty_table(), path)
    seal(release)
    values = read_metadata(release)
    gone = {config, schemas.SUPP}
    assert [c["config_name"] for c in values["configs"]] == [c for c in schemas.CONFIGS if c not in gone]
    assert [c["config_name"] for c in values["dataset_info"]] == [c for c in schemas.CONFIGS if c not in gone]
    body = text(release)
    assert words not in body and f'"{config}"' not in body and f"| `{config}`" not in body
    assert "<!--" not in body
    assert body.count("```") % 2 == 0


def test_a_truncated_parquet_is_reported(release: Path) -> None:
    path = release / shard_name(schemas.URLS, "test", 0, 1)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CorruptFileError, match="test-00000-of-00001"):
        seal(release)


def test_size_categories_follow_the_largest_config(good: Path) -> None:
    assert card.metadata(gather_statistics(good), RECIPE).size_categories == ["n<1K"]


def test_a_recipe_in_escis_layout_may_state_its_own_claims(release: Path) -> None:
    stated = CardSettings(
        title="Ours",
        description="Our judgments, $name.\n---\n<!-- with supp -->",
        licence=("cc0-1.0",),
        language=("de",),
        homepage="https://ours.example",
        citation="@misc{ours}",
    )
    seal(release, recipe_with(card=stated))
    assert validate(release) == []
    values = read_metadata(release)
    assert (values["pretty_name"], values["license"], values["language"]) == ("Ours", ["cc0-1.0"], ["de"])
    body = text(release)
    assert "Our judgments, $name." in body and "Homepage: <https://ours.example>" in body
    assert "```bibtex\n@misc{ours}\n```" in body
    assert body.index("@misc{ours}") < body.index("Real shopping queries")


@pytest.mark.parametrize(
    ("licences", "entries"),
    [
        ((), {}),
        (("MIT", "cc-by-4.0"), {"license": ["mit", "cc-by-4.0"]}),
        (("Shop terms\n2026",), {"license": "other", "license_name": "Shop terms 2026"}),
        (("mit", "ours"), {"license": "other", "license_name": "mit and ours"}),
    ],
)
def test_a_licence_that_the_hub_does_not_know_is_another_one(licences: tuple[str, ...], entries: object) -> None:
    assert licence_entries(licences) == entries


def test_the_card_states_the_text_of_a_product_and_the_library(tmp_path: Path) -> None:
    release = write_release(tmp_path / "release")
    plain = (release / schemas.CARD).read_text(encoding="utf-8")
    assert "query text and product title through" in plain and "*not* normalised" in plain
    encoder = EncoderSettings(text="{product_title} {product_brand}", backend="sentence-transformers")
    describe(release, recipe_with(encoder=encoder, artifacts=None), revision=None)
    stated = (release / schemas.CARD).read_text(encoding="utf-8")
    assert "query text and product text (`{product_title} {product_brand}`) through" in stated
    assert "They are those of `SentenceTransformer.encode`, stored as float32." in stated
    assert "float32, sentence-transformers" in stated
