"""Write the page of every error with its remedy, from the source: `python -m docs.scripts.errors_page`.

A message is what is given to an error class of the package: a text, or a text with values in it. Which values these are is known
only when it is raised, so the page shows their names in braces.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "lightning_tracin"
PAGE = ROOT / "docs" / "errors.md"

#: What is added to the message about a loss that is not made of its samples' own losses.
REASONS = PACKAGE / "attribution" / "reasons.py"

_TOP = """# Errors and their remedies

Written by `python -m docs.scripts.errors_page` from the source; change the code, not this page. Words in braces stand for names
and values. Every error is a `TracInError`, which can be caught as one: `from lightning_tracin import TracInError`.
Search this page for three words of your message.
"""

_TITLES = {
    "analysis": "Scores and tables",
    "attribution": "A pass over the samples: data, loss, memory, methods",
    "callbacks": "Callbacks",
    "cli": "The command line",
    "config": "Options",
    "errors": "Packages and files of settings",
    "gradients": "Gradients",
    "losses": "`per_sample`",
    "reasons": "Why a loss is not made of its samples' own losses",
    "reporting": "Tables, figures, loggers",
    "run": "Reading a run",
    "storage": "A run on disk",
    "studies": "Studies and their data",
    "trainer": "Around the Trainer: fits, checkpoints, refits",
}


@dataclass(frozen=True, order=True)
class Message:
    """One error of the source."""

    package: str
    module: str
    text: str

    @property
    def halves(self) -> tuple[str, str]:
        """What is wrong, and what to do: a message names both, parted by a semicolon, a colon or a full stop."""
        at = _first_mark(self.text)
        if at is None:
            return self.text, "In the message."
        remedy = self.text[at + 2 :].strip()
        first = remedy.split(" ", 2)[:2]
        is_command = first[1:] == ["install"] or "/" in first[0]
        return self.text[:at].strip(), remedy if is_command else remedy[:1].upper() + remedy[1:]


def _first_mark(text: str) -> int | None:
    """Where a semicolon, colon or full stop stands first, before a space and outside braces, brackets and backticks."""
    inside = ""
    for at, letter in enumerate(text):
        if inside:
            inside = "" if letter == inside else inside
        elif letter in "{(`":
            inside = {"{": "}", "(": ")"}.get(letter, letter)
        elif letter in ";:." and text[at + 1 : at + 2] == " ":
            return at
    return None


def error_classes(trees: list[ast.Module]) -> set[str]:
    """The names of `TracInError` and of the classes that derive from it."""
    found = {"TracInError"}
    classes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    while new := {one.name for one in classes if {getattr(base, "id", "") for base in one.bases} & found} - found:
        found |= new
    return found


def shown(node: ast.expr) -> str | None:
    """A message as the page shows it; None where it is not written in one place.

    Example:
        >>> shown(ast.parse('f"No probe {probe.index}; there are " f"{len(probes)}."', mode="eval").body)
        'No probe {index}; there are {probes}.'
    """
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(_value(one.value) if isinstance(one, ast.FormattedValue) else shown(one) or "" for one in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        parts = shown(node.left), shown(node.right)
        return None if parts == (None, None) else "".join("{…}" if part is None else part for part in parts)
    return None


def _value(node: ast.expr) -> str:
    """The name of a value in a message."""
    while True:
        if isinstance(node, ast.Name):
            return f"{{{node.id.strip('_')}}}"
        if isinstance(node, ast.Attribute):
            return f"{{{node.attr.strip('_')}}}"
        if isinstance(node, ast.Constant):
            return str(node.value)
        if isinstance(node, ast.Call):
            node = node.args[0] if _names_nothing(node.func) and node.args else node.func
        elif isinstance(node, (ast.Subscript, ast.Starred)):
            node = node.value
        else:
            return "{…}"


def _names_nothing(function: ast.expr) -> bool:
    """Whether a function only changes how its argument is written."""
    name = getattr(function, "attr", getattr(function, "id", ""))
    return name in {
        "len",
        "map",
        "min",
        "max",
        "set",
        "sorted",
        "list",
        "join",
        "type",
        "str",
        "repr",
        "described",
        "one_line",
        "printable",
        "naturalsize",
        "dict",
    }


def messages(package: Path = PACKAGE) -> list[Message]:
    """Every message of the package, sorted by package and module."""
    paths = sorted(package.rglob("*.py"))
    trees = {path: ast.parse(path.read_text(), path.name) for path in paths}
    classes = error_classes(list(trees.values()))
    found = set()
    for path, tree in trees.items():
        module = path.relative_to(package).with_suffix("").as_posix()
        for text in _texts(tree, classes):
            found.add(Message(module.partition("/")[0], module, " ".join(text.split())))
    return sorted(found)


def _texts(tree: ast.Module, classes: set[str]) -> Iterator[str]:
    functions = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in classes and node.args:
            for one in _alternatives(node.args[0], functions):
                text = shown(one)
                if text is not None and re.sub(r"{[^}]*}", "", text).strip(" ."):
                    yield text


def _alternatives(node: ast.expr, functions: dict[str, ast.FunctionDef]) -> list[ast.expr]:
    """What an expression may be: both sides of a condition, or what a function of the module returns."""
    if isinstance(node, ast.IfExp):
        return [node.body, node.orelse]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in functions:
        returned = (one.value for one in ast.walk(functions[node.func.id]) if isinstance(one, ast.Return))
        return [one for one in returned if one is not None]
    return [node]


def reasons(module: Path = REASONS) -> list[Message]:
    """Why a loss may not be made of its samples' own losses: the constants of a module."""
    values = (node.value for node in ast.parse(module.read_text()).body if isinstance(node, ast.Assign))
    texts = (text if (text := shown(value)) is None else re.sub(r"{(\w+):[^}]*}", r"{\1}", text) for value in values)
    return [Message("reasons", "attribution/reasons", text[:1].upper() + text[1:]) for text in texts if text is not None]


def _cell(text: str) -> str:
    parts = text.replace("|", "\\|").split("`")
    return "`".join(part if code % 2 else part.replace("<", "&lt;").replace("*", "\\*") for code, part in enumerate(parts))


def page(found: list[Message]) -> str:
    """The page's text."""
    lines = [_TOP]
    for package in sorted({one.package for one in found}, key=lambda one: list(_TITLES).index(one)):
        lines += [f"## {_TITLES[package]}", "", "| it says | what to do | module |", "|---|---|---|"]
        for one in found:
            if one.package == package:
                wrong, remedy = map(_cell, one.halves)
                lines.append(f"| {wrong} | {remedy} | {one.module} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Write the page."""
    PAGE.write_text(page([*messages(), *reasons()]))


if __name__ == "__main__":
    main()
