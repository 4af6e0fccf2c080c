"""docs/recipe.md is what the code says; --print-recipe prints TOML that loads to the same recipe."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from builds import FROM_ARTIFACTS, write_recipe
from hypothesis import given, settings
from hypothesis import strategies as st

from builder import recipe
from builder.cli import main
from builder.cli.recipe_text import as_toml, reference
from builder.recipe import EncoderSettings, FetchSettings, Recipe, json_schema
from sqid_lib.joined.selection import Selection

ROOT = Path(__file__).parents[3]


def test_the_reference_in_docs_is_not_stale() -> None:
    stored = (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8")
    assert stored == reference(json_schema()), "write it again: sqid recipe --reference > docs/recipe.md"


def test_the_reference_names_every_key_with_default_and_unit() -> None:
    text = reference(json_schema())
    for section, keys in recipe.Recipe.model_validate(MINIMAL).to_dict().items():
        if isinstance(keys, dict):
            part = text.partition(f"## `[{section}]`\n")[2].partition("\n## `[")[0]
            assert all(f"| `{key}` | " in part for key, value in keys.items() if key != "pages"), section
    assert "| `timeout` | number > 0 | `60.0` | seconds | Longest time of a whole request, in seconds. |" in text
    assert '| `splits` | list of `"train"` or `"test"`, at least one | `["test"]` |' in text
    assert "| `path` | text that is not blank | required |" in text
    assert "| `supp` | whole number ≥ 0 | not set |" in text
    assert "## `[resolve.pages]`" in text


def test_the_command_prints_the_reference(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipe", "--reference"]) == 0
    assert capsys.readouterr().out == reference(json_schema())


MINIMAL: dict[str, Any] = {"name": "x", "version": "1", "esci": {"path": "https://shop.example/esci"}}
FULL = """
[selection]
locales = ["us", "jp"]
splits = ["train", "test"]
[selection.labels]
good = 2
"fair, so \\"so\\"" = 0.5
[resolve]
tables = ["urls.csv", "https://shop.example/urls.csv"]
[resolve.pages]
permission = true
contact = "me@shop.example"
[fetch.mirrors]
"https://a.example/" = "http://127.0.0.1:80/"
[expect]
products = 3
"""


def printed(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    assert main(["build", *map(str, arguments), "--print-recipe"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("text", ["", FROM_ARTIFACTS, FROM_ARTIFACTS + FULL])
def test_what_is_printed_loads_to_the_same_recipe(
    tmp_path: Path, esci: Path, artifacts: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    (tmp_path / "urls.csv").write_text("product_id,image_url\n")
    path = write_recipe(tmp_path, text)
    out = printed(capsys, path, "--set", "fetch.timeout=5")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "again.toml").write_text(out)
    again = recipe.load(tmp_path / "elsewhere" / "again.toml")
    assert again == recipe.load(path, ["fetch.timeout=5"])
    assert again.fetch.timeout == 5
    assert as_toml(again) == out


def test_every_key_is_printed_and_what_has_no_value_is_a_comment(
    tmp_path: Path, esci: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = printed(capsys, write_recipe(tmp_path))
    values = tomllib.loads(out)
    assert values["esci"]["path"] == str(esci)
    assert set(values["fetch"]) == set(FetchSettings.model_fields)
    assert set(values["encoder"]) == set(EncoderSettings.model_fields)
    assert "# artifacts is not set\n" in out and "# products is not set\n" in out


def test_secrets_are_masked_and_their_lines_say_so() -> None:
    made = Recipe.model_validate(
        MINIMAL
        | {
            "esci": {"path": "https://me:geheim@shop.example/esci"},
            "resolve": {"tables": ["https://shop.example/t.csv?X-Amz-Signature=geheim&part=1", "https://x.example/u"]},
            "fetch": {"mirrors": {"https://me:geheim@a.example/": "http://b.example/"}},
        }
    )
    out = as_toml(made)
    assert "geheim" not in out
    masked = [line for line in out.splitlines() if "masked" in line]
    assert [line.partition(" ")[0] for line in masked] == ["path", "tables", '"https://a.example/"']
    assert tomllib.loads(out)["resolve"]["tables"][1] == "https://x.example/u"


def test_the_recipe_of_the_demo_names_files_in_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", "demo", "--print-recipe"]) == 2
    assert "--work WORK" in capsys.readouterr().err
    assert main(["build", "demo", "--work", str(tmp_path), "--print-recipe"]) == 0
    assert str(tmp_path / "shop") in capsys.readouterr().out


def test_work_is_required_to_build(tmp_path: Path, esci: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--work", ""]):
        assert main(["build", str(write_recipe(tmp_path)), *arguments]) == 2
        assert "--work is missing" in capsys.readouterr().err


_texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@settings(max_examples=100, deadline=None)
@given(labels=st.dictionaries(_texts, st.floats(0, 1e30), min_size=1), words=_texts, timeout=st.floats(1e-9, 1e300))
def test_any_text_and_number_survives(labels: dict[str, float], words: str, timeout: float) -> None:
    made = Recipe.model_validate({**MINIMAL, "card": {"description": words}, "fetch": {"timeout": timeout}})
    made = made.model_copy(update={"selection": Selection(labels=tuple(labels.items()))})
    out = as_toml(made)
    if "masked" not in out:
        assert Recipe.model_validate(tomllib.loads(out)) == made
    assert json.loads(json.dumps(tomllib.loads(out)))
