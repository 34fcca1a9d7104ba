"""The shape of the code: few rooms at the top, small modules, unique names, tests that keep to public names."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from statistics import median

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lightning_tracin"
MODULES = sorted(PACKAGE.rglob("*.py"))
TEST_MODULES = sorted((ROOT / "tests").rglob("*.py"))

#: Folders of tests that belong to no package: what the whole promises, what tests share, and the folders beside the package.
OTHER_TESTS = {"guarantees", "support", "benchmarks", "docs", "examples"}


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), path.name)


def repeated(names: list[str]) -> list[str]:
    return sorted(name for name, count in Counter(names).items() if count > 1)


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def private_names(tree: ast.Module) -> Iterator[str]:
    """The private names that a module of the package gives to functions, classes, variables and attributes."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            name = node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            name = node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            name = node.attr
        else:
            continue
        if is_private(name) and name != "_":
            yield name


PRIVATE = {name for path in MODULES for name in private_names(parsed(path))}


def private_uses(tree: ast.Module, private: Collection[str] = frozenset(PRIVATE)) -> Iterator[str]:
    """Where a test imports, reads or patches a private name of the package."""
    own = {name for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for name in private_names(ast.Module([node], []))}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lightning_tracin"):
            yield from (f"{node.lineno}: import {one.name}" for one in node.names if is_private(one.name))
        elif isinstance(node, ast.Attribute) and node.attr in private and node.attr not in own:
            yield f"{node.lineno}: .{node.attr}"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("lightning_tracin."):
            yield from (f"{node.lineno}: {node.value}" for part in node.value.split(".") if is_private(part))


def test_the_top_has_at_most_thirteen_rooms() -> None:
    """Twelve for what the package does, and `losses`, which modules of users import."""
    rooms = {path.name for path in PACKAGE.iterdir() if path.suffix == ".py" or (path.is_dir() and any(path.rglob("*.py")))}
    assert len(rooms - {"__init__.py", "__main__.py"}) <= 13


def test_modules_are_small() -> None:
    lengths = {path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines()) for path in MODULES}
    assert {name: length for name, length in lengths.items() if length > 400} == {}
    assert median(lengths.values()) <= 150


def test_no_file_name_occurs_twice() -> None:
    assert repeated([path.name for path in MODULES if path.name != "__init__.py"]) == []


def test_no_class_name_occurs_twice() -> None:
    assert repeated([node.name for path in MODULES for node in ast.walk(parsed(path)) if isinstance(node, ast.ClassDef)]) == []


def test_the_folders_of_tests_mirror_the_packages() -> None:
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    folders = {path.parent.name for path in (ROOT / "tests").glob("*/__init__.py")}
    assert folders - OTHER_TESTS == packages


@pytest.mark.parametrize("path", TEST_MODULES, ids=lambda path: path.relative_to(ROOT / "tests").as_posix())
def test_tests_keep_to_public_names(path: Path) -> None:
    assert list(private_uses(parsed(path))) == []


@pytest.mark.parametrize(
    "code",
    ["from lightning_tracin.run import _hidden", "run.TracInRun._held", "patch('lightning_tracin.run._hidden', None)"],
)
def test_a_private_name_in_a_test_is_found(code: str) -> None:
    assert list(private_uses(ast.parse(code), {"_held"})) != []


def imported_packages(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (one.name.split(".")[0] for one in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield (node.module or "").split(".")[0]


def test_only_tests_of_benchmarks_import_benchmarks() -> None:
    importing = {
        path.relative_to(ROOT / "tests").parts[0] for path in TEST_MODULES if "benchmarks" in imported_packages(parsed(path))
    }
    assert importing <= {"benchmarks"}
