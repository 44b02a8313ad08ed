"""Who may import whom: by the import statements of each file, and in effect, in fresh processes."""

from __future__ import annotations

import ast
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

import recbole_cafe

PACKAGE = Path(recbole_cafe.__file__).resolve().parent
MODULES = sorted(PACKAGE.rglob("*.py"))
HEAVY = ("torch", "recbole", "pandas", "numpy")

# Room (a folder or a module of the package) -> the rooms it may import from. Read from left to right it is the way of
# the data: prepare -> files -> data -> model -> train -> benchmark, with the maths below.
DIRECTION: dict[str, set[str]] = {
    "errors": set(),
    "layers": {"errors"},
    "ranking": {"errors", "layers"},
    "files": {"errors"},
    "prepare": {"errors", "files"},
    "config": {"errors", "files"},
    "data": {"config", "errors", "files", "layers", "prepare"},
    "model": {"config", "data", "errors", "files", "layers", "ranking"},
    "train": {"config", "data", "errors", "files", "layers", "model", "ranking"},
    "host": {"config", "data", "errors", "files", "model", "train"},
    "environment": {"host"},
    "processes": {"errors"},
    "experiment": {"config", "data", "environment", "errors", "files", "model", "prepare", "processes", "ranking",
                   "train"},
    "recommend": {"config", "data", "errors", "files", "layers", "model", "ranking"},
    "export": {"config", "data", "environment", "errors", "files", "host", "model", "recommend", "train"},
    "benchmark": {
        "config", "data", "environment", "errors", "experiment", "files", "host", "model", "prepare", "ranking",
        "train",
    },
    "cli": {
        "benchmark", "config", "data", "environment", "errors", "experiment", "export", "files", "host", "model",
        "prepare", "processes", "ranking", "recommend", "train",
    },
    "__main__": {"cli"},
}  # fmt: skip

MEETS_RECBOLE = ("config", "data", "model.base", "train", "host", "experiment")
IN_FUNCTIONS_ONLY = ("train.checkpoint",)  # opening a file of plain data must not load RecBole
REPORTS = tuple(f"benchmark.{name}" for name in ("figures", "report", "results", "stats", "store"))
WITHOUT_TORCH = ("files", "prepare", *REPORTS)

# What a fresh process must not have loaded after importing all modules of some rooms
ABSENT: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "files": (("files",), ("torch", "recbole")),
    "prepare": (("prepare",), ("torch", "recbole")),
    "reports": (REPORTS, ("torch", "recbole")),
    "cli": (("cli",), ("torch", "recbole")),
    "environment": (("environment", "errors"), ("torch", "recbole")),
    "layers": (("layers",), ("recbole",)),
    "ranking": (("ranking",), ("recbole",)),
    "recommend": (("recommend",), ("recbole", "pandas")),
}


@dataclass(frozen=True)
class Import:
    module: str  # absolute
    names: tuple[str, ...]  # of `from module import names`
    at_top: bool  # runs when the module is imported


def name_of(path: Path) -> str:
    """Dotted name below recbole_cafe, "" for the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> list[Import]:
    """Every import statement of a file and every import_module("...") of a literal name."""
    package = ["recbole_cafe", *path.relative_to(PACKAGE).parts[:-1]]
    return list(_walk(ast.parse(path.read_text(encoding="utf-8")), package, at_top=True))


def _walk(node: ast.AST, package: list[str], *, at_top: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(alias.name, (), at_top)
        elif isinstance(child, ast.ImportFrom):
            base = package[: len(package) - child.level + 1] if child.level else []
            module = ".".join([*base, *([child.module] if child.module else [])])
            yield Import(module, tuple(alias.name for alias in child.names), at_top)
        elif isinstance(child, ast.Call) and child.args and isinstance(child.args[0], ast.Constant):
            called = child.func.attr if isinstance(child.func, ast.Attribute) else getattr(child.func, "id", "")
            if called in ("import_module", "__import__") and isinstance(child.args[0].value, str):
                yield Import(child.args[0].value, (), at_top)
        inside = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        yield from _walk(child, package, at_top=at_top and not inside)


def top(module: str) -> str:
    return module.partition(".")[0]


def by_area(prefix: str) -> list[Path]:
    return [path for path in MODULES if name_of(path) == prefix or name_of(path).startswith(f"{prefix}.")]


def room_of(dotted: str) -> str:
    """layers.local and layers -> layers."""
    return dotted.partition(".")[0]


def rooms_met(path: Path) -> set[str]:
    """The other rooms of the package that a file imports from, anywhere in it."""
    met = set()
    for one in imports_of(path):
        if one.module == "recbole_cafe":
            met |= {name for name in one.names if name in DIRECTION}
        elif top(one.module) == "recbole_cafe":
            met.add(one.module.split(".")[1])
    return met - {room_of(name_of(path))}


def test_the_walk_sees_imports_of_every_kind(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    (tmp_path / "data").mkdir()
    file = tmp_path / "data" / "x.py"
    file.write_text(
        "import a.b as c\nfrom d import e, f\nfrom . import g\nfrom ..h import i\n"
        "def j():\n    import k\nif True:\n    import l\nimportlib.import_module('m.n')\n"
    )
    observed = {(one.module, one.names, one.at_top) for one in imports_of(file)}
    assert observed == {
        ("a.b", (), True), ("d", ("e", "f"), True), ("recbole_cafe.data", ("g",), True),
        ("recbole_cafe.h", ("i",), True), ("k", (), False), ("l", (), True), ("m.n", (), True),
    }  # fmt: skip


def test_there_is_something_to_check():
    assert len(MODULES) >= 20
    assert len(by_area("layers")) >= 7
    for area in (*MEETS_RECBOLE, *IN_FUNCTIONS_ONLY, *WITHOUT_TORCH):
        assert by_area(area), area


# By the statements ----------------------------------------------------------------------------------------------------


def test_every_room_stands_in_the_direction_and_the_direction_has_no_circle():
    assert {room_of(name_of(path)) for path in MODULES} - {""} <= set(DIRECTION)
    passed: set[str] = set()
    while len(passed) < len(DIRECTION):
        free = {room for room, may in DIRECTION.items() if room not in passed and may <= passed}
        assert free, set(DIRECTION) - passed
        passed |= free


@pytest.mark.parametrize("path", [path for path in MODULES if name_of(path)], ids=name_of)
def test_a_room_imports_only_what_stands_left_of_it(path):
    assert rooms_met(path) <= DIRECTION[room_of(name_of(path))]


@pytest.mark.parametrize("path", by_area("layers"), ids=name_of)
def test_layers_import_torch_and_each_other_only(path):
    for one in imports_of(path):
        inside = one.module.startswith("recbole_cafe.layers") or one.module == "recbole_cafe.errors"
        # typing_extensions, for type checkers only, is PyTorch's own requirement
        assert (
            inside or top(one.module) in ("torch", "typing_extensions") or top(one.module) in sys.stdlib_module_names
        ), one


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_recbole_is_met_at_the_named_places_only(path):
    met = [one for one in imports_of(path) if top(one.module) == "recbole"]
    assert not met or any(path in by_area(area) for area in MEETS_RECBOLE), met
    if name_of(path) in IN_FUNCTIONS_ONLY:
        assert not [one for one in met if one.at_top]


@pytest.mark.parametrize("path", [path for area in WITHOUT_TORCH for path in by_area(area)], ids=name_of)
def test_data_preparation_and_reports_need_neither_torch_nor_recbole(path):
    assert not [one for one in imports_of(path) if top(one.module) in ("torch", "recbole")]


@pytest.mark.parametrize("path", by_area("model"), ids=name_of)
def test_no_model_imports_private_names_of_another(path):
    for one in imports_of(path):
        if top(one.module) == "recbole_cafe":
            assert not [name for name in (*one.names, *one.module.split(".")) if name.startswith("_")], one


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_nothing_imports_the_tests(path):
    assert not [one for one in imports_of(path) if top(one.module) in ("tests", "conftest", "contract", "toy")]


# In effect ------------------------------------------------------------------------------------------------------------


def loaded_after(code: str, arguments: Sequence[str] = ()) -> set[str]:
    """Top names of the modules that a fresh process holds after running some code."""
    report = "\nimport sys\nprint('\\n' + ' '.join({name.partition('.')[0] for name in sys.modules}))"
    environment = os.environ | {"PYTHONPATH": str(PACKAGE.parent), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-c", code + report, *arguments], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("rule", ABSENT)
def test_a_room_does_not_load_what_it_does_not_need(rule):
    areas, absent = ABSENT[rule]
    names = [name_of(path) for area in areas for path in by_area(area)]
    if not names:
        pytest.skip(f"there is no room {rule}")
    if rule == "reports" and importlib.util.find_spec("matplotlib") is None:
        names.remove("benchmark.figures")
    loaded = loaded_after("\n".join(f"import recbole_cafe.{name}" for name in names))
    assert "recbole_cafe" in loaded
    needless = loaded & set(absent)
    assert not needless


def test_importing_the_package_loads_nothing_heavy():
    assert not loaded_after("import recbole_cafe") & set(HEAVY)


@pytest.mark.parametrize("command", [("--help",), ("prepare", "--help")], ids=" ".join)
def test_help_loads_neither_torch_nor_recbole(command):
    code = (
        "import runpy\ntry:\n    runpy.run_module('recbole_cafe', run_name='__main__', alter_sys=True)\n"
        "except SystemExit as end:\n    assert not end.code, end.code"
    )
    assert not loaded_after(code, command) & {"torch", "recbole"}


# Public names ---------------------------------------------------------------------------------------------------------


def test_public_names_are_there_when_asked_for():
    assert set(recbole_cafe.__all__) <= set(dir(recbole_cafe))
    for name in recbole_cafe.__all__:
        assert getattr(recbole_cafe, name).__name__ == name if name != "__version__" else recbole_cafe.__version__
    with pytest.raises(AttributeError, match="module 'recbole_cafe' has no attribute 'nothing'"):
        _ = recbole_cafe.nothing
