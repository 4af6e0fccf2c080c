"""builder.packages: one error before anything is run; nothing is needed for what will not run."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from builder import demo, packages, pipeline
from builder.recipe import CatalogueSettings, EncoderSettings, EsciSettings, PagesSettings, Recipe, ResolveSettings
from sqid_lib.errors import MissingExtraError, MissingFileError, SqidError

RECIPE = Recipe(name="t", version="1", esci=EsciSettings(path="/nowhere"))


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the optional packages were not installed."""
    names = {*packages.FETCH, *packages.EMBED, "protego", "selectolax", "replicate", "ray"}
    real = importlib.util.find_spec

    def find(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name in names else real(name, package)

    monkeypatch.setattr("importlib.util.find_spec", find)


@pytest.mark.usefixtures("bare")
def test_all_that_is_missing_is_one_error_before_the_first_stage(tmp_path: Path) -> None:
    with pytest.raises(MissingExtraError) as raised:
        pipeline.build(RECIPE, tmp_path / "work")
    assert str(raised.value) == (
        "fetch and embed need packages that are not installed: pillow, pycurl, safetensors, torch, transformers, yarl. "
        'Install them with: pip install "sqid[build]"'
    )
    assert [path.name for path in (tmp_path / "work").iterdir()] in ([], [".lock"])


@pytest.mark.usefixtures("bare")
def test_the_demo_is_refused_before_anything_is_drawn(tmp_path: Path) -> None:
    with pytest.raises(MissingExtraError, match="shop and fetch and embed need"), demo.prepare(tmp_path / "work"):
        pass
    assert not (tmp_path / "work").exists()


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize(
    ("changes", "only", "message"),
    [
        (
            {"resolve": ResolveSettings(pages=PagesSettings(permission=True, contact="a@b.example"))},
            "resolve",
            "resolve needs .*: protego, pycurl, selectolax, yarl",
        ),
        (
            {"encoder": EncoderSettings(backend="replicate")},
            "embed",
            r'embed needs .*: replicate\. .*pip install "sqid\[replicate\]"',
        ),
    ],
)
def test_what_the_settings_choose_is_needed(
    tmp_path: Path, changes: dict[str, object], only: str, message: str
) -> None:
    with pytest.raises(MissingExtraError, match=message):
        pipeline.build(RECIPE.model_copy(update=changes), tmp_path, only=only)


@pytest.mark.usefixtures("bare")
def test_a_catalogue_needs_no_http_client_before_it_has_urls(tmp_path: Path) -> None:
    shop = CatalogueSettings(products="/nowhere.csv", locale="de")
    with pytest.raises(MissingExtraError, match="fetch needs packages that are not installed: pillow"):
        pipeline.build(Recipe(name="t", version="1", catalogue=shop), tmp_path, only="fetch")


@pytest.mark.usefixtures("bare")
def test_the_engine_ray_is_needed_by_the_stages_that_use_it(tmp_path: Path) -> None:
    with pytest.raises(MissingExtraError, match=r"fetch needs .*: pillow, pycurl, ray, yarl\. .*sqid\[build,ray\]"):
        pipeline.build(RECIPE, tmp_path, only="fetch", engine="ray")
    with pytest.raises(Exception, match="/nowhere"):
        pipeline.build(RECIPE, tmp_path, only="sample", engine="ray")


@pytest.mark.usefixtures("bare")
def test_a_stage_that_is_not_run_needs_nothing(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="/nowhere"):  # it went on to read ESCI
        pipeline.build(RECIPE, tmp_path, only="sample")


def test_fetch_done_before_runs_without_its_packages(tmp_path: Path) -> None:
    """Its modules can be imported, and what is finished is found finished, without pycurl and yarl."""
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('pycurl', 'yarl', 'PIL')))\n"
        "from builder.fetch import fetch; from builder.fetch.stage import pending"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_model_directory_that_is_not_there_is_reported_before_the_first_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "there").mkdir()
    at_home = RECIPE.model_copy(update={"encoder": EncoderSettings(model="~/there")})
    with pytest.raises(SqidError, match="nowhere"):  # the ESCI files, in stage sample
        pipeline.build(at_home, tmp_path / "work")
    recipe = RECIPE.model_copy(update={"encoder": EncoderSettings(model=str(tmp_path / "clip"))})
    with pytest.raises(MissingFileError, match=r"encoder.model: no such model directory; got .*clip"):
        pipeline.build(recipe, tmp_path / "work")
    with pytest.raises(SqidError, match="nowhere"):
        pipeline.build(recipe, tmp_path / "work", only="sample")
