"""What the wheel, the sdist and the editable install hold, as the build backend makes them here."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def build(target: str, source: Path, out: Path) -> Path:
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(out)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    [made] = out.iterdir()
    return made


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("sdist", ROOT, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def unpacked(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    [root] = folder.iterdir()
    return root


def test_the_wheel_holds_the_packages_and_their_data_and_nothing_else(wheel: Path) -> None:
    names = set(contents(wheel))
    info = f"sqid-{PROJECT['version']}.dist-info"
    assert {name.split("/")[0] for name in names} == {"sqid.py", "sqid-stubs", "sqid_lib", "builder", info}
    modules = {
        path.relative_to(ROOT).as_posix() for top in ("sqid_lib", "builder") for path in (ROOT / top).rglob("*.py")
    }
    assert {name for name in names if name.endswith(".py")} == modules | {"sqid.py"}
    data = {
        "sqid_lib/py.typed",
        "sqid-stubs/__init__.pyi",
        "builder/dataset_card.md",
        "builder/release/catalogue_card.md",
        f"{info}/licenses/LICENSE",
    }
    recipes = {f"builder/recipes/{name}.toml" for name in ("sqid", "demo")}
    model = {f"builder/demo/tiny_clip/{path.name}" for path in (ROOT / "builder/demo/tiny_clip").iterdir()}
    page = {f"builder/explore/static/{path.name}" for path in (ROOT / "builder/explore/static").iterdir()}
    assert data | recipes | model | page <= names
    assert not [name for name in names if "test" in Path(name).name or "__pycache__" in name]


def test_the_dataset_card_is_a_file_everywhere(wheel: Path, unpacked: Path) -> None:
    card = (ROOT / "dataset_card.md").read_bytes()
    assert contents(wheel)["builder/dataset_card.md"] == card
    for name in ("dataset_card.md", "builder/dataset_card.md"):
        assert not (unpacked / name).is_symlink() and (unpacked / name).read_bytes() == card


def test_the_sdist_makes_the_same_wheel(wheel: Path, unpacked: Path, tmp_path: Path) -> None:
    assert contents(build("wheel", unpacked, tmp_path)) == contents(wheel)


def test_the_sdist_holds_what_git_tracks(sdist: Path) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "ls-files", "-z", "--cached"]
    tracked = set(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")) - {
        ""
    }
    with tarfile.open(sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers()}
    missing = {name for name in tracked - names if (ROOT / name).exists()}
    assert not missing, f"name these in [tool.hatch.build.targets.sdist] of pyproject.toml: {sorted(missing)}"


def test_an_editable_install_is_found_beside_a_folder_named_sqid(tmp_path: Path) -> None:
    with zipfile.ZipFile(build("wheel:editable", ROOT, tmp_path / "built")) as archive:
        archive.extractall(tmp_path / "site")
    [link] = (tmp_path / "site").glob("*.pth")
    assert link.read_text(encoding="utf-8").split() == [str(ROOT)]
    (tmp_path / "work" / "sqid").mkdir(parents=True)
    # -S: no .pth file of the running environment is read; its packages are, from their folder
    packages = f"import site, sys; sys.path.append({sysconfig.get_path('purelib')!r})"
    installed = f"{packages}; site.addsitedir({str(tmp_path / 'site')!r})"
    first_lines = "import builder, sqid, sqid_lib; print(sqid.load and sqid.__file__)"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(code: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-S", "-c", code]
        return subprocess.run(
            command, cwd=tmp_path / "work", env=environment, capture_output=True, text=True, check=False
        )

    assert "no attribute 'load'" in run(f"{packages}; import sqid; sqid.load").stderr  # the folder, without the install
    done = run(f"{installed}; {first_lines}")
    assert done.stdout.strip() == str(ROOT / "sqid.py"), done.stderr


def test_every_extra_is_part_of_dev() -> None:
    extras = PROJECT["optional-dependencies"]
    [whole] = [line for line in extras["dev"] if line.startswith("sqid[")]
    # open-clip needs torchvision, which no index has for every build of torch, and which transformers imports
    assert set(re.findall(r"[\w-]+", whole)) == {"sqid", *extras} - {"dev", "open-clip"}


def test_constraints_are_names_and_versions_and_cover_what_pyproject_names() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines)
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    assert lines == sorted(lines, key=lambda line: line.partition("==")[0].lower()) and len(pins) == len(lines)
    pinned = {re.sub(r"[-_.]+", "-", name).lower() for name in pins}
    needed = [
        *PROJECT["dependencies"],
        *(line for extra in PROJECT["optional-dependencies"].values() for line in extra),
    ]
    names = {re.sub(r"[-_.]+", "-", re.split(r"[\[<>=!~ ]", line)[0]).lower() for line in needed} - {"sqid"}
    assert names - pinned == set()


def test_the_installed_command_and_names() -> None:
    assert PROJECT["scripts"] == {"sqid": "builder.cli:main"}
    assert metadata.version("sqid") == PROJECT["version"]
