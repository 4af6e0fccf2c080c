"""Which module imports which: layers, no circles, what an import costs, and the paths that ARCHITECTURE.md names.

A room is a module or package directly below sqid_lib or builder. Every import counts, also inside functions and under
TYPE_CHECKING.
"""

from __future__ import annotations

import ast
import graphlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# sqid_lib from the bottom up: a room imports itself and the rooms of earlier lines
LIBRARY = (
    ("errors",),
    ("schemas", "files"),
    ("cache", "object_store"),
    ("sources",),
    ("tables", "images", "stored_images"),
    ("product_images",),
    ("joined", "streams", "encoders", "evaluation"),
    ("search",),
    ("store",),
    ("__init__",),
)
# builder: a room imports itself, sqid_lib and the rooms listed here
_SHARED = ("recipe", "progress", "engines", "http", "database", "catalogue")
_STAGES = ("sample", "resolve", "fetch", "embed")
_PIPELINE = (
    *_SHARED,
    *_STAGES,
    "release",
    "validate",
    "packages",
    "summary",
    "stamps",
    "times",
    "stages",
    "plan",
    "mirror",
)
BUILDER: dict[str, tuple[str, ...]] = {
    "__init__": (),
    "database": (),
    "stamps": (),
    "times": (),
    "mirror": ("stamps", "times"),
    "progress": (),
    "recipe": (),
    "packages": ("recipe",),
    "summary": ("recipe", "fetch", "http"),
    "engines": ("recipe", "progress"),
    "http": ("recipe", "progress", "database"),
    "catalogue": ("recipe",),
    **dict.fromkeys(_STAGES, _SHARED),
    "release": ("recipe", "progress", "database"),
    "validate": ("release",),  # it checks what release defines
    "hub": ("release", "validate"),
    "diff": ("release",),
    "explore": (),
    "stages": _PIPELINE,
    "plan": _PIPELINE,
    "pipeline": _PIPELINE,
    "check_work": _PIPELINE,
    "report": ("embed", "stamps", "times", "stages"),
    "demo": (*_PIPELINE, "pipeline"),
    "cli": (*_PIPELINE, "pipeline", "check_work", "demo", "hub", "diff", "explore", "report"),
    "__main__": ("cli",),
}
# one importer for a module that costs much to import or would open a circle
ONLY_IMPORTER = {"sqid_lib.streams.tensors": "sqid_lib.streams.open"}
FOLDERS = (".ci/", "benchmarks/", "builder/", "docs/", "examples/", "sqid_lib/", "tests/", "torture/")
HEAVY = ("torch", "transformers", "pycurl", "PIL", "pydantic", "matplotlib")


def module_name(path: Path, root: Path) -> str:
    """sqid_lib/store/__init__.py → "sqid_lib.store"."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def source_files(root: Path) -> dict[str, Path]:
    """Every module of the project by its name, without tests and scripts."""
    paths = [*root.glob("*.py"), *(root / "sqid_lib").rglob("*.py"), *(root / "builder").rglob("*.py")]
    return {module_name(path, root): path for path in sorted(paths)}


def imported_names(path: Path, module: str) -> list[tuple[int, str]]:
    """(line, dotted name) of everything that a file imports, wherever in it; names of a `from` import are appended."""
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Import():
                found += [(node.lineno, alias.name) for alias in node.names]
            case ast.ImportFrom():
                above = package[: len(package) + 1 - node.level] if node.level else []
                base = [*above, *([node.module] if node.module else [])]
                found += [(node.lineno, ".".join([*base, alias.name])) for alias in node.names]
            case ast.Call(func=ast.Attribute(attr="import_module"), args=[ast.Constant(value=str(name)), *_]):
                found.append((node.lineno, name))
    return found


def imports(files: dict[str, Path]) -> dict[str, dict[str, int]]:
    """Module → the project's modules that it imports, each with its line; a name in a module counts as that module."""
    graph: dict[str, dict[str, int]] = {}
    for module, path in files.items():
        graph[module] = {}
        for line, name in imported_names(path, module):
            owner = name if name in files else name.rpartition(".")[0]
            if owner in files and owner != module:
                graph[module].setdefault(owner, line)
    return graph


def room(module: str) -> tuple[str, str]:
    """ "sqid_lib.store.convert" → ("sqid_lib", "store"); a package itself is its "__init__"."""
    top, _, rest = module.partition(".")
    return top, rest.partition(".")[0] or "__init__"


def allowed(module: str) -> dict[str, tuple[str, ...]] | None:
    """Top-level name → its rooms that `module` may import; None if its room is not declared above."""
    top, own = room(module)
    if module == "sqid":
        return {"sqid_lib": tuple(name for layer in LIBRARY for name in layer)}
    if top == "sqid_lib":
        for number, layer in enumerate(LIBRARY):
            if own in layer:
                return {"sqid_lib": (own, *(name for below in LIBRARY[:number] for name in below))}
    if top == "builder" and own in BUILDER:
        return {"builder": (own, *BUILDER[own]), "sqid_lib": tuple(name for layer in LIBRARY for name in layer)}
    return None


def undeclared(files: dict[str, Path]) -> list[str]:
    table = {"sqid_lib": "LIBRARY", "builder": "BUILDER"}
    return [
        f"{module} is in no declared room: add {room(module)[1]!r} to {table[room(module)[0]]} in "
        "tests/test_architecture.py, and say in ARCHITECTURE.md what is in it"
        if room(module)[0] in table
        else f"{module}: the only module at the top is sqid.py; move it into sqid_lib or builder"
        for module in files
        if allowed(module) is None
    ]


def violations(files: dict[str, Path]) -> list[str]:
    """Every import that the tables above do not allow, with its place and what is allowed there."""
    found = []
    for module, targets in imports(files).items():
        may = allowed(module) or {}
        for target, line in targets.items():
            top, name = room(target)
            if name not in may.get(top, ()):
                rooms = [f"{key}.{value}" for key, values in may.items() if key == room(module)[0] for value in values]
                also = "sqid_lib" if "sqid_lib" in may and room(module)[0] != "sqid_lib" else ""
                found.append(f"{module}:{line} imports {target}; allowed: {', '.join(filter(None, [also, *rooms]))}")
    return found


def circle(files: dict[str, Path]) -> list[str]:
    """A circle of imports between modules, its first module twice; empty if there is none."""
    try:
        graphlib.TopologicalSorter(imports(files)).prepare()
    except graphlib.CycleError as error:
        return list(reversed(error.args[1]))
    return []


FILES = source_files(ROOT)


def test_every_module_is_in_a_declared_room() -> None:
    found = undeclared(FILES)
    assert not found, "\n".join(found)


def test_every_declared_room_exists() -> None:
    there = {room(module) for module in FILES}
    declared = [("sqid_lib", name) for layer in LIBRARY for name in layer] + [("builder", name) for name in BUILDER]
    missing = [f"{top}.{name}" for top, name in declared if (top, name) not in there]
    assert not missing, f"declared in tests/test_architecture.py, but not there: {', '.join(missing)}"


def test_imports_follow_the_layers() -> None:
    found = violations(FILES)
    assert not found, "\n".join(found)


def test_no_circle_of_imports() -> None:
    found = circle(FILES)
    assert not found, " → ".join(found)


@pytest.mark.parametrize("module", ONLY_IMPORTER)
def test_one_module_alone_imports(module: str) -> None:
    assert [name for name, targets in imports(FILES).items() if module in targets] == [ONLY_IMPORTER[module]]


@pytest.mark.parametrize("module", ["sqid", "sqid_lib"])
def test_an_import_loads_only_base_packages(module: str) -> None:
    code = f"import json, sys, {module}; print(json.dumps([name for name in {HEAVY} if name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def named_paths(text: str) -> list[tuple[str, list[str]]]:
    """Paths in backticks: below a folder of the project, or a Python or Markdown file. Code blocks are left out.

    With each, where it may be: a file name alone may also be in a folder that the same line names.
    """
    found = []
    for line in re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE).splitlines():
        inline = [name for name in re.findall(r"`([^`\n]+)`", line) if re.fullmatch(r"[\w.*/-]+", name)]
        folders = [name for name in inline if name.startswith(FOLDERS) and name.endswith("/")]
        for name in inline:
            if name.startswith(FOLDERS) or Path(name).suffix in (".py", ".md"):
                found.append((name, [name, *(folder + name for folder in folders if "/" not in name)]))
    return found


def test_paths_that_architecture_names_exist() -> None:
    paths = named_paths((ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8"))
    assert len(paths) > 10
    missing = [name for name, places in paths if not any(any(ROOT.glob(p.rstrip("/"))) for p in places)]
    assert not missing, f"ARCHITECTURE.md names what is not there: {', '.join(missing)}"


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    """A project of two library rooms and a builder stage that keeps every rule."""
    for name, text in {
        "sqid.py": "import sqid_lib",
        "sqid_lib/__init__.py": "",
        "sqid_lib/errors.py": "",
        "sqid_lib/tables/__init__.py": "from .reader import read",
        "sqid_lib/tables/reader.py": "from sqid_lib.errors import SqidError\ndef read(): ...",
        "builder/fetch/__init__.py": "import importlib\nimportlib.import_module('sqid_lib.tables.reader')",
        "builder/embed/__init__.py": "",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def test_the_scratch_project_keeps_the_rules(scratch: Path) -> None:
    files = source_files(scratch)
    assert imports(files)["sqid_lib.tables"] == {"sqid_lib.tables.reader": 1}
    assert imports(files)["builder.fetch"] == {"sqid_lib.tables.reader": 2}
    assert undeclared(files) == violations(files) == circle(files) == []


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("sqid_lib/errors.py", "def f():\n    import sqid_lib.tables.reader", "sqid_lib.errors:2 imports"),
        ("sqid_lib/errors.py", "if TYPE_CHECKING:\n    from . import tables", "sqid_lib.errors:2 imports"),
        ("sqid_lib/tables/reader.py", "from builder import fetch", "sqid_lib.tables.reader:1 imports builder.fetch"),
        ("sqid_lib/tables/reader.py", "import sqid", "sqid_lib.tables.reader:1 imports sqid"),
        ("builder/embed/__init__.py", "from builder.fetch import fetch", "builder.embed:1 imports builder.fetch"),
        ("builder/embed/__init__.py", "from ..fetch import fetch", "builder.embed:1 imports builder.fetch"),
        ("builder/embed/__init__.py", "import sqid", "builder.embed:1 imports sqid"),
        ("sqid.py", "from builder import embed", "sqid:1 imports builder.embed"),
    ],
)
def test_a_broken_rule_is_reported(scratch: Path, file: str, text: str, message: str) -> None:
    (scratch / file).write_text(text, encoding="utf-8")
    found = violations(source_files(scratch))
    assert len(found) == 1 and found[0].startswith(message), found


@pytest.mark.parametrize("name", ["sqid_lib/caching.py", "builder/tidy/__init__.py", "helpers.py"])
def test_an_undeclared_module_is_reported_with_what_to_do(scratch: Path, name: str) -> None:
    (scratch / name).parent.mkdir(exist_ok=True)
    (scratch / name).touch()
    [message] = undeclared(source_files(scratch))
    assert "tests/test_architecture.py" in message or "sqid_lib or builder" in message


def test_a_circle_is_reported(scratch: Path) -> None:
    (scratch / "sqid_lib/tables/reader.py").write_text("def f():\n    from sqid_lib.tables import keys\n")
    (scratch / "sqid_lib/tables/keys.py").write_text("from sqid_lib.tables.reader import f")
    assert set(circle(source_files(scratch))) == {"sqid_lib.tables.reader", "sqid_lib.tables.keys"}
