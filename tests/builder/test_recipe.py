"""Recipes: loaded, checked, overridden."""

from __future__ import annotations

from pathlib import Path

import pytest

from builder import recipe
from sqid_lib import schemas
from sqid_lib.errors import MissingFileError, RecipeError, UsageError


def write(tmp_path: Path, text: str) -> Path:
    (tmp_path / "esci").mkdir(exist_ok=True)
    path = tmp_path / "r.toml"
    path.write_text('name = "x"\nversion = "1"\n' + text, encoding="utf-8")
    return path


MINIMAL = '[esci]\npath = "esci"\n'


def test_defaults_are_the_published_cut_and_paths_are_relative_to_the_recipe(tmp_path: Path) -> None:
    loaded = recipe.load(write(tmp_path, MINIMAL))
    assert loaded.esci.path == str((tmp_path / "esci").resolve())
    assert (loaded.selection.version, loaded.selection.splits, loaded.selection.locales) == (
        "small",
        ("test",),
        ("us",),
    )
    assert loaded.encoder.model == "openai/clip-vit-large-patch14"
    assert loaded.artifacts is None


def test_the_packaged_recipe_states_the_published_counts() -> None:
    loaded = recipe.load("sqid")
    stated = {name: getattr(loaded.expect, name) for name in schemas.PUBLISHED_COUNTS}
    assert stated == schemas.PUBLISHED_COUNTS
    assert loaded.esci.path.startswith("https://media.githubusercontent.com/")
    assert "sqid" in recipe.packaged()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (MINIMAL + "[fetch]\nconcurency = 3\n", "fetch.concurency"),
        (MINIMAL + "[selektion]\n", "selektion"),
        (MINIMAL + "[resolve.pages]\npermision = true\n", "resolve.pages.permision"),
        (MINIMAL + '[fetch]\nconcurrency = "many"\n', "fetch.concurrency"),
        (MINIMAL + "[fetch]\nconcurrency = true\n", "fetch.concurrency"),
        (MINIMAL + "[fetch]\nconcurrency = 0\n", "fetch.concurrency"),
        (MINIMAL + "[fetch]\ntimeout = nan\n", "fetch.timeout"),
        (MINIMAL + '[selection]\nsplits = "test"\n', "selection.splits"),
        (MINIMAL + '[selection]\nsplits = ["test", 3]\n', "selection.splits[1]"),
        (MINIMAL + '[selection]\nlocales = [" "]\n', "selection.locales"),
        (MINIMAL + "[encoder]\nbackend = 'magic'\n", "encoder.backend"),
        (MINIMAL + '[fetch]\nallow_hosts = ["localhost"]\n', "fetch.allow_hosts"),
        (MINIMAL + '[fetch]\nallow_hosts = ["localhost:65536"]\n', "fetch.allow_hosts"),
        (MINIMAL + "[fetch]\nports = [80, 0]\n", "fetch.ports"),
        (MINIMAL + "[fetch.mirrors]\na = 3\n", "fetch.mirrors"),
        (MINIMAL + '[fetch.mirrors]\n"https://a/" = "b"\n', "fetch.mirrors"),
        (MINIMAL + "[resolve.pages]\npermission = true\n", "resolve.pages.contact"),
        (MINIMAL + "[encoder]\n[[encoder.model]]\n", "encoder.model"),
        ("[esci]\n", "esci.path"),
        ("", "[esci]"),
        ("[esci\n", "not TOML"),
        (MINIMAL + '[expect]\nproducts = "all"\n', "expect.products"),
    ],
)
def test_a_bad_recipe_is_refused_by_the_name_of_its_key(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(RecipeError) as told:
        recipe.load(write(tmp_path, text))
    assert named in str(told.value)
    assert "r.toml" in str(told.value)
    assert "\n" not in str(told.value)


def test_a_misspelt_key_is_answered_with_the_likely_one(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="Perhaps 'concurrency'"):
        recipe.load(write(tmp_path, MINIMAL + "[fetch]\nconcurency = 3\n"))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('[esci]\npath = "nowhere"\n', "esci.path"),
        (MINIMAL + '[artifacts]\npath = "nowhere"\n', "artifacts.path"),
        (MINIMAL + '[resolve]\ntables = ["nowhere.csv"]\n', "resolve.tables[0]"),
    ],
)
def test_a_missing_input_is_named(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(MissingFileError) as told:
        recipe.load(write(tmp_path, text))
    assert named in str(told.value) and "nowhere" in str(told.value)


def test_no_such_recipe_names_the_packaged_ones() -> None:
    with pytest.raises(MissingFileError, match="sqid"):
        recipe.load("no-such-recipe")


def test_overrides_take_toml_or_plain_text(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL)
    loaded = recipe.load(
        path,
        [
            "fetch.concurrency=4",
            "encoder.model=openai/clip-vit-base-patch32",
            'selection.locales=["us", "es"]',
            'fetch.mirrors={"https://a/" = "http://127.0.0.1:1/"}',
            'fetch.mirrors."https://b.example/"="http://127.0.0.1:2/"',
            "fetch.timeout=5",
        ],
    )
    assert loaded.fetch.concurrency == 4
    assert loaded.encoder.model == "openai/clip-vit-base-patch32"
    assert loaded.selection.locales == ("us", "es")
    assert loaded.fetch.mirrors == {"https://a/": "http://127.0.0.1:1/", "https://b.example/": "http://127.0.0.1:2/"}
    assert loaded.fetch.timeout == 5.0


@pytest.mark.parametrize(
    "override", ["fetch.concurrency", "=3", "fetch..x=1", "name.first=3", "fetch.retries=1\nname='z'"]
)
def test_a_malformed_override_is_wrong_usage(tmp_path: Path, override: str) -> None:
    with pytest.raises(UsageError, match="override"):
        recipe.load(write(tmp_path, MINIMAL), [override])


def test_an_override_is_checked_like_the_file(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"fetch\.speed"):
        recipe.load(write(tmp_path, MINIMAL), ["fetch.speed=3"])
