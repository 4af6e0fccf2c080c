"""Recipes: loaded, checked, overridden; and their JSON schema."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from builder import recipe
from sqid_lib import schemas
from sqid_lib.errors import MissingFileError, RecipeError, UsageError
from sqid_lib.joined.selection import Selection


def write(tmp_path: Path, text: str) -> Path:
    (tmp_path / "esci").mkdir(exist_ok=True)
    path = tmp_path / "r.toml"
    path.write_text('name = "x"\nversion = "1"\n' + text, encoding="utf-8")
    return path


MINIMAL = '[esci]\npath = "esci"\n'


def test_defaults_are_the_published_selection_and_paths_are_relative_to_the_recipe(tmp_path: Path) -> None:
    loaded = recipe.load(write(tmp_path, MINIMAL))
    assert loaded.source == str((tmp_path / "esci").resolve())
    assert (loaded.selection.version, loaded.selection.splits, loaded.selection.locales) == (
        "small",
        ("test",),
        ("us",),
    )
    assert loaded.encoder.model == "openai/clip-vit-large-patch14"
    assert loaded.artifacts is None
    assert loaded.selection == recipe.SelectionSettings().selection() == Selection()


CATALOGUE = '[catalogue]\nproducts = "shop.csv"\nlocale = "de"\n'


def test_a_catalogue_in_place_of_esci(tmp_path: Path) -> None:
    (tmp_path / "shop.csv").write_text("sku\n1\n")
    loaded = recipe.load(write(tmp_path, CATALOGUE + "[catalogue.labels]\ngut = 1\n"))
    assert loaded.catalogue is not None and loaded.source == str((tmp_path / "shop.csv").resolve())
    assert loaded.selection == Selection(locales=("de",), products="all", labels=(("gut", 1.0),))
    assert recipe.load(write(tmp_path, CATALOGUE)).selection.labels == ()
    assert "pages" not in recipe.load(write(tmp_path, CATALOGUE)).to_dict()["resolve"]
    pages = '[resolve.pages]\npermission = true\ncontact = "a@b.example"\nurl = "https://x.example/{product_id}"\n'
    values = recipe.load(write(tmp_path, CATALOGUE + pages)).to_dict()
    assert values["resolve"]["pages"]["url"] == "https://x.example/{product_id}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (MINIMAL + CATALOGUE, r"exactly one of the sections \[esci\] and \[catalogue\]"),
        (CATALOGUE + '[selection]\nsplits = ["train"]\n', r"\[selection\] does not go with \[catalogue\]"),
        (
            CATALOGUE + '[resolve.pages]\npermission = true\ncontact = "a@b.example"\n',
            r"\[resolve.pages\] has no URL of the catalogue's own pages",
        ),
        (CATALOGUE + '[artifacts]\npath = "a"\n', r"\[artifacts\] does not go with \[catalogue\]"),
        (CATALOGUE.replace("de", ""), r"bad value for 'catalogue.locale'; expected text on one line that is not blank"),
        (CATALOGUE.replace("de", "d\\ne"), r"bad value for 'catalogue.locale'; expected text on one line"),
        (CATALOGUE + '[card]\nhomepage = "x.example"\n', r"'card.homepage'; expected a URL that begins with http://"),
        (CATALOGUE + 'judgments = "j.csv"\n', r"catalogue.products, catalogue.judgments do not exist"),
        (CATALOGUE + 'images = "shop/photos"\n', r"catalogue.products, catalogue.images do not exist"),
        (CATALOGUE + '[card]\nhomepage = "ftp://x"\n', r"bad value for 'card.homepage'"),
    ],
)
def test_a_catalogue_that_cannot_be(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises((RecipeError, MissingFileError), match=said):
        recipe.load(write(tmp_path, text))


def test_the_packaged_recipe_states_the_published_counts() -> None:
    loaded = recipe.load("sqid")
    stated = {name: getattr(loaded.expect, name) for name in schemas.PUBLISHED_COUNTS}
    assert stated == schemas.PUBLISHED_COUNTS
    assert loaded.source.startswith("https://media.githubusercontent.com/")
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
        (MINIMAL + '[fetch]\nallow_hosts = ["http://localhost:80"]\n', "fetch.allow_hosts[0]'; expected host:port"),
        (MINIMAL + f"[fetch]\nports = [80, {2**63}]\n", "fetch.ports[1]'; expected a whole number of 64 bits"),
        (MINIMAL + f"[encoder]\nshard_rows = {2**63}\n", "encoder.shard_rows'; expected a whole number of 64 bits"),
        (MINIMAL + "[fetch]\nports = [80, 0]\n", "fetch.ports[1]"),
        (MINIMAL + "[fetch]\nports = [80, 65_536]\n", "fetch.ports[1]"),
        (MINIMAL + "[fetch]\nports = [true]\n", "fetch.ports[0]"),
        (MINIMAL + "[fetch]\nmax_pixels = 178_956_971\n", "fetch.max_pixels"),
        (MINIMAL + "[fetch]\nretries = -1\n", "fetch.retries"),
        (MINIMAL + "[fetch]\nretries = 1.0\n", "fetch.retries"),
        (MINIMAL + "[fetch]\ntimeout = true\n", "fetch.timeout"),
        (MINIMAL + "[fetch]\ntimeout = inf\n", "fetch.timeout"),
        (MINIMAL + "fetch = 3\n", "esci.fetch"),
        ("fetch = 3\n" + MINIMAL, "'fetch'; expected a section, got 3"),
        (MINIMAL + "[fetch.mirrors]\n'https://a/' = 3\n", "fetch.mirrors"),
        (MINIMAL + '[fetch.mirrors]\n"https://a/" = "b"\n', "fetch.mirrors"),
        (MINIMAL + "[resolve.pages]\npermission = true\n", "resolve.pages.contact"),
        (MINIMAL + "[resolve.pages]\npermission = true\ncontact = ' '\n", "resolve.pages.contact"),
        (MINIMAL + "[resolve.pages]\npermission = true\ncontact = 'me'\n", "resolve.pages.contact"),
        (MINIMAL + '[resolve.pages]\npermission = true\ncontact = "a@b.c\\r\\nX: y"\n', "resolve.pages.contact"),
        (MINIMAL + "[resolve.pages]\nurl = 'https://shop.example/'\n", "resolve.pages.url"),
        (MINIMAL + "[resolve.pages]\nurl = 'https://a.example/{product_id}/{asin}'\n", "resolve.pages.url"),
        (MINIMAL + "[resolve.pages]\nurl = 'https://a.example/{product_id}/{'\n", "resolve.pages.url"),
        (MINIMAL + "[resolve.pages]\nurl = 'https://a.example/{product_id.x}{product_id}'\n", "resolve.pages.url"),
        (MINIMAL + "[resolve.pages]\ndelay = 0\n", "resolve.pages.delay"),
        (MINIMAL + "[resolve.pages]\ndelay = -1.0\n", "resolve.pages.delay"),
        (
            MINIMAL + "[selection]\nversion = 'medium'\n",
            "selection.version'; expected 'small' or 'large', got 'medium'",
        ),
        (MINIMAL + "[selection]\nlocales = []\n", "selection.locales"),
        (MINIMAL + "[selection]\nsplits = ['test', 'test']\n", "selection.splits"),
        (MINIMAL + "[selection]\nsupp_min_judgments = 0\n", "selection.supp_min_judgments"),
        (MINIMAL + "[selection]\nlabels = [['E', 1.0]]\n", "selection.labels"),
        (MINIMAL + "[selection.labels]\n", "selection.labels"),
        (MINIMAL + "[selection.labels]\nexact = '1'\n", "selection.labels.exact"),
        (MINIMAL + "[selection.labels]\nexact = -1\n", "selection.labels.exact"),
        (MINIMAL + "[selection.labels]\n'' = 1\n", "selection.labels"),
        (MINIMAL + "[encoder]\n[[encoder.model]]\n", "encoder.model"),
        (MINIMAL + "[engine]\nnum_gpus = -0.5\n", "engine.num_gpus"),
        (MINIMAL + "[engine]\nmin_workers = 4\nmax_workers = 2\n", "engine.max_workers"),
        (MINIMAL + "[selection.labels]\nexact = 1e39\n", "selection.labels.exact"),
        (MINIMAL + "[encoder]\nmodel = ''\n", "encoder.model'; expected text that is not blank"),
        (MINIMAL + "[encoder]\ndevice = ''\n", "encoder.device"),
        (MINIMAL + "[resolve]\ntables = ['']\n", "resolve.tables[0]"),
        ("[esci]\npath = ''\n", "esci.path"),
        (CATALOGUE.replace("shop.csv", ""), "catalogue.products"),
        (CATALOGUE + "images = ''\n", "catalogue.images"),
        ("[esci]\n", "esci.path"),
        ("", "[esci]"),
        ("[esci\n", "not TOML"),
        (MINIMAL + '[expect]\nproducts = "all"\n', "expect.products"),
    ],
)
def test_a_bad_recipe_is_refused_by_the_name_of_its_key(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(RecipeError) as raised:
        recipe.load(write(tmp_path, text))
    assert named in str(raised.value)
    assert "r.toml" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert "problems" not in str(raised.value)


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    text = """
        [fetch]
        concurency = 3
        timeout = "long"
        mirrors = { "https://a/" = "b" }
        [encoder]
        dtype = "int8"
    """
    path = tmp_path / "r.toml"
    path.write_text('name = "x y"\n' + text, encoding="utf-8")
    with pytest.raises(RecipeError) as raised:
        recipe.load(path)
    message = str(raised.value)
    assert message.startswith(f"{path}: 7 problems: (1) ") and "\n" not in message
    for problem in (
        "bad value for 'name'; expected letters, digits, '-', '_' or '.', got 'x y'.",
        "key 'version' is missing.",
        "exactly one of the sections [esci] and [catalogue] is needed. Add [esci] with path = ",
        "wrong type for 'fetch.timeout'; expected a number, got 'long'.",
        "bad value for 'fetch.mirrors.\"https://a/\"'; expected a URL that begins with http:// or https://, got 'b'.",
        "unknown key 'fetch.concurency'; expected one of concurrency, per_host, ",
        "bad value for 'encoder.dtype'; expected 'float32', 'bfloat16' or 'float16', got 'int8'.",
    ):
        assert re.search(r"\(\d\) " + re.escape(problem), message), problem


def test_whole_numbers_may_stand_for_numbers_and_lists_become_tuples(tmp_path: Path) -> None:
    text = MINIMAL + "[fetch]\ntimeout = 5\nports = [443]\n[selection.labels]\nexact = 1\nno = 0\n"
    loaded = recipe.load(write(tmp_path, text))
    assert (loaded.fetch.timeout, type(loaded.fetch.timeout)) == (5.0, float)
    assert loaded.fetch.ports == (443,)
    assert loaded.selection.labels == (("exact", 1.0), ("no", 0.0))


def test_a_recipe_cannot_be_changed(tmp_path: Path) -> None:
    loaded = recipe.load(write(tmp_path, MINIMAL))
    with pytest.raises(ValueError, match="frozen"):
        loaded.fetch.retries = 5


def test_plain_values_for_the_manifest(tmp_path: Path) -> None:
    values = recipe.load(write(tmp_path, MINIMAL + "[selection.labels]\nexact = 1\n")).to_dict()
    assert list(values) == [
        *("name", "version", "esci", "catalogue", "card", "selection"),
        *("artifacts", "resolve", "fetch", "encoder", "engine", "release", "expect"),
    ]
    assert values["selection"] == {
        "version": "small",
        "splits": ("test",),
        "locales": ("us",),
        "supp_min_judgments": 2,
        "embed_supp": False,
        "labels": {"exact": 1.0},
        "products": "judged",
    }
    assert values["artifacts"] is None
    assert list(values["resolve"]["pages"]) == ["permission", "contact", "url", "delay"]


def test_without_pydantic_the_extra_is_named() -> None:
    code = "import sys; sys.modules['pydantic'] = None; from builder import recipe"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith('Install it with: pip install "sqid[build]"')
    assert "'pydantic'" in done.stderr.splitlines()[-1]


def test_a_misspelt_key_is_answered_with_the_likely_one(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="Perhaps 'concurrency'"):
        recipe.load(write(tmp_path, MINIMAL + "[fetch]\nconcurency = 3\n"))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('[esci]\npath = "nowhere"\n', "esci.path"),
        (MINIMAL + '[artifacts]\npath = "nowhere"\n', "artifacts.path"),
        (f'[esci]\npath = "nowhere{"x" * 300}"\n', "esci.path"),  # longer than a file name may be
        (MINIMAL + '[resolve]\ntables = ["nowhere.csv"]\n', "resolve.tables[0]"),
        (
            '[esci]\npath = "nowhere"\n[artifacts]\npath = "esci"\n[resolve]\ntables = ["r.toml", "no.csv"]\n',
            "esci.path, resolve.tables[1] do not exist",
        ),
    ],
)
def test_a_missing_input_is_named(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(MissingFileError) as raised:
        recipe.load(write(tmp_path, text))
    assert named in str(raised.value) and "nowhere" in str(raised.value)


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
            "selection.labels.partly relevant=0.5",
        ],
    )
    assert dict(loaded.selection.labels)["partly relevant"] == 0.5
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


# -- the JSON schema ------------------------------------------------------------------------------------------------

SCHEMA = recipe.json_schema()


def problems(value: Any, node: dict[str, Any], key: str = "") -> Iterator[str]:
    """Where a value differs from the schema in its keys, types or choices."""
    if "$ref" in node:
        node = SCHEMA["$defs"][node["$ref"].removeprefix("#/$defs/")]
    types = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int, "number": (int, float)}
    expected: Any = types[node["type"]]
    if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
        yield f"{key}: {node['type']}"
    elif isinstance(value, dict):
        yield from (f"{key}.{name}: required" for name in node.get("required", ()) if name not in value)
        others = node.get("additionalProperties", True)
        for name, item in value.items():
            patterns = (schema for p, schema in node.get("patternProperties", {}).items() if re.search(p, name))
            schema = node.get("properties", {}).get(name) or next(patterns, others)
            if schema is False:
                yield f"{key}.{name}: unknown"
            elif schema is not True:
                yield from problems(item, schema, f"{key}.{name}")
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from problems(item, node["items"], f"{key}[{number}]")
    elif value not in node.get("enum", [value]) or not re.search(node.get("pattern", ""), str(value)):
        yield f"{key}: value"


def keys() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every key of the schema that is not a section, with what the schema states of it."""
    for section in (SCHEMA, *SCHEMA["$defs"].values()):
        for name, stated in section["properties"].items():
            if "$ref" not in stated:
                yield f"{section['title'].removesuffix('Settings')}.{name}", stated


@pytest.mark.parametrize("name", recipe.packaged())
def test_packaged_recipes_fit_the_schema(name: str) -> None:
    text = (Path(recipe.__file__).parents[1] / "recipes" / f"{name}.toml").read_text(encoding="utf-8")
    assert list(problems(tomllib.loads(text), SCHEMA)) == []


def test_the_schema_finds_what_loading_finds() -> None:
    text = """
        name = "x y"
        [esci]
        path = 3
        [selection]
        splits = ["test", "dev"]
        labels = { exact = "1" }
        [resolve.pages]
        permision = true
        [fetch]
        ports = [true]
        mirrors = { "http://a/" = "b", "c" = "http://d/" }
        [expect]
        products = 1.5
    """
    assert sorted(problems(tomllib.loads(text), SCHEMA)) == [
        ".esci.path: string",
        ".expect.products: integer",
        ".fetch.mirrors.c: unknown",
        ".fetch.mirrors.http://a/: value",
        ".fetch.ports[0]: integer",
        ".name: value",
        ".resolve.pages.permision: unknown",
        ".selection.labels.exact: number",
        ".selection.splits[1]: value",
        ".version: required",
    ]


def test_the_schema_documents_every_key() -> None:
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert SCHEMA["title"] == "SQID recipe"
    assert all(section["additionalProperties"] is False for section in (SCHEMA, *SCHEMA["$defs"].values()))
    assert all(section["description"] for section in SCHEMA["$defs"].values())
    assert [name for name, stated in keys() if not stated["description"].endswith(".")] == []
    assert {name for name, stated in keys() if "default" not in stated} == {
        *("SQID recipe.name", "SQID recipe.version", "Esci.path", "Artifacts.path"),
        *("Catalogue.products", "Catalogue.locale", "Catalogue.images", "Catalogue.judgments", "Catalogue.queries"),
        *("Expect.products", "Expect.queries", "Expect.judgments", "Expect.supp", "Expect.min_images"),
        "Engine.max_workers",
    }
    fetch = SCHEMA["$defs"]["FetchSettings"]["properties"]
    assert fetch["timeout"]["default"] == 60.0 and "seconds" in fetch["timeout"]["description"]
    assert SCHEMA["$defs"]["SelectionSettings"]["properties"]["labels"]["default"] == schemas.GAINS
    assert '"null"' not in str(SCHEMA)
