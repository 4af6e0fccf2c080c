"""docs/own-catalogue.md holds what it says: its tables, commands, recipes and code run in the order of the page."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from encoder_fixtures import encoded, make_image

from builder import recipe
from builder.cli import main
from builder.cli.main import COMMANDS, _parser
from builder.demo import TINY_CLIP
from sqid_lib import schemas

ROOT = Path(__file__).parent.parent
DOCS = (ROOT / "docs" / "own-catalogue.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^ *```(\w+)\n(.*?)^ *```", DOCS, re.DOTALL | re.MULTILINE)


def blocks(language: str) -> list[str]:
    return [text for kind, text in BLOCKS if kind == language]


def commands(block: str) -> list[list[str]]:
    return [shlex.split(line, comments=True)[1:] for line in block.splitlines()]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The two tables of the page, a photo for each name in them, and a tiny model."""
    folder = tmp_path_factory.mktemp("shop")
    products, judgments = blocks("csv")
    (folder / "catalogue.csv").write_text(products, encoding="utf-8")
    (folder / "judgments.csv").write_text(judgments, encoding="utf-8")
    (folder / "photos").mkdir()
    for seed, name in enumerate(re.findall(r"\w+\.(?:jpg|png)$", products, re.MULTILINE)):
        image = encoded(make_image(seed), "JPEG" if name.endswith("jpg") else "PNG")
        (folder / "photos" / name).write_bytes(image)
    (folder / TINY_CLIP.name).symlink_to(TINY_CLIP)
    return folder


def test_the_commands_and_the_code_run(
    shop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(shop)
    monkeypatch.setenv("XDG_CACHE_HOME", str(shop / "xdg"))
    printed: dict[str, str] = {}
    for command in commands(blocks("bash")[0]):
        own = ["--model", TINY_CLIP.name] if command[0] == "init" else []  # in place of a model of 1.7 GB
        assert main([*command, *own]) == 0
        printed[command[0]] = capsys.readouterr().out
        if command[0] == "init":  # what the page says about keep
            (keep,) = re.findall(r"^keep = .*$", "".join(blocks("toml")), re.MULTILINE)
            written = Path("sqid.toml").read_text(encoding="utf-8")
            Path("sqid.toml").write_text(written.replace("keep = []", keep), encoding="utf-8")
    assert list(printed) == ["init", "build", "validate", "evaluate", "search"]
    assert printed["init"] == "sqid.toml\nsqid build sqid.toml --work work\n"
    assert printed["build"] == "work/sqid\n" and printed["validate"] == "work/sqid: valid\n"
    assert re.search(r"^clip_image ", printed["evaluate"], re.MULTILINE)
    assert "A1" in printed["search"]
    names: dict[str, Any] = {}
    for block in blocks("python"):
        exec(compile(block, "docs/own-catalogue.md", "exec"), names)
    found = capsys.readouterr().out
    assert "B1" in found and "B2" in found and "A1" not in found
    store = names["store"]
    statuses = {row["product_id"]: row["image_status"] for row in store.products.to_pylist()}
    assert statuses == {"A1": schemas.OK, "A2": schemas.OK, "B1": schemas.OK, "B2": schemas.MISSING}


def test_the_other_commands_are_understood() -> None:
    for block in blocks("bash")[1:]:
        for command in commands(block):
            if command[0] in COMMANDS:  # explore needs packages of its own
                _parser().parse_args(command)


def test_each_part_of_a_recipe_loads(shop: Path) -> None:
    named = {"[catalogue]": "", "[catalogue.": '[catalogue]\nproducts = "catalogue.csv"\nlocale = "us"\n'}
    for part in blocks("toml"):
        text = "\n".join(line.strip() for line in part.splitlines())
        head = next(head for start, head in named.items() if text.startswith(start))
        path = shop / "part.toml"
        path.write_text(f'name = "shop"\nversion = "1.0.0"\n{head}{text}', encoding="utf-8")
        assert recipe.load(path).catalogue is not None
    clicks = next(part for part in blocks("toml") if "clicks" in part)
    assert dict(re.findall(r"(\w+) = ([\d.]+)", clicks)) == {
        name: str(value) for name, value in recipe.ClickSettings().model_dump().items()
    }


def test_the_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", DOCS)
    assert links and all((ROOT / "docs" / link).exists() for link in links)
