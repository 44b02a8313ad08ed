"""Who may import whom: the maths know no framework, and RecBole is met at a few named places only."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import recbole_cafe

PACKAGE = Path(recbole_cafe.__file__).resolve().parent
MODULES = sorted(PACKAGE.rglob("*.py"))
MEETS_RECBOLE = {
    "config", "quick_start", "trainer", "registry", "compat", "checkpoint", "data.dataset", "data.candidates",
    "data.reader", "data.rows", "data.samplers", "model.base",
}  # fmt: skip
IN_FUNCTIONS_ONLY = {"checkpoint"}  # opening a file of plain data must not load RecBole
WITHOUT_TORCH = (
    "data.prepare", "data.atomic", "data.simulate",
    "benchmark.store", "benchmark.stats", "benchmark.report", "benchmark.figures",
)  # fmt: skip


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


def test_the_walk_sees_imports_of_every_kind(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    (tmp_path / "data").mkdir()
    file = tmp_path / "data" / "x.py"
    file.write_text(
        "import a.b as c\nfrom d import e, f\nfrom . import g\nfrom ..h import i\n"
        "def j():\n    import k\nif True:\n    import l\nimportlib.import_module('m.n')\n"
    )
    found = {(one.module, one.names, one.at_top) for one in imports_of(file)}
    assert found == {
        ("a.b", (), True), ("d", ("e", "f"), True), ("recbole_cafe.data", ("g",), True),
        ("recbole_cafe.h", ("i",), True), ("k", (), False), ("l", (), True), ("m.n", (), True),
    }  # fmt: skip


def test_there_is_something_to_check():
    assert len(MODULES) >= 20
    assert len(by_area("layers")) >= 7
    assert {name_of(path) for path in MODULES} >= MEETS_RECBOLE


@pytest.mark.parametrize("path", by_area("layers"), ids=name_of)
def test_layers_import_torch_and_each_other_only(path):
    for one in imports_of(path):
        inside = one.module.startswith("recbole_cafe.layers")
        assert inside or top(one.module) == "torch" or top(one.module) in sys.stdlib_module_names, one


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_recbole_is_met_at_the_named_places_only(path):
    met = [one for one in imports_of(path) if top(one.module) == "recbole"]
    assert not met or name_of(path) in MEETS_RECBOLE, met
    if name_of(path) in IN_FUNCTIONS_ONLY:
        assert not [one for one in met if one.at_top]


@pytest.mark.parametrize("path", [p for area in WITHOUT_TORCH for p in by_area(area)], ids=name_of)
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
