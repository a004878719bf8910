"""The project's modules and what each imports, read for the rules of test_layout.py."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOMS = ("fast", "maths", "judges", "harness", "analysis", "multi_gpu", "lessons")


@dataclass(frozen=True)
class Tree:
    """The project's modules: their files, and what each imports."""

    files: dict[str, Path]  # name -> file; a package's name is its folder's
    ours: dict[str, set[str]]  # name -> names of our modules
    others: dict[str, set[str]]  # name -> top names of all other modules


def read(root: Path) -> Tree:
    paths = [*root.glob("*.py"), *(path for room in ROOMS for path in (root / room).rglob("*.py"))]
    files = {}
    for path in paths:
        parts = path.relative_to(root).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    ours, others = {}, {}
    for name, path in files.items():
        found = [] if path.name == "__main__.py" else list(imports(ast.parse(path.read_text(encoding="utf-8"))))
        ours[name] = {module for given in found if (module := known(given, files))}
        others[name] = {given.split(".")[0] for given in found if not known(given, files)}
    return Tree(files, ours, others)


def imports(node: ast.AST) -> Iterator[str]:
    """What is imported in this syntax tree, as `a.b` or, of `from a import b`, `a.b` too."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield from (f"{'.' * child.level}{child.module or ''}.{alias.name}" for alias in child.names)
        elif not (isinstance(child, ast.If) and ast.unparse(child.test) == "__name__ == '__main__'"):
            yield from imports(child)


def known(name: str, files: dict[str, Path]) -> str | None:
    """The module of ours that `name` is, or is something in."""
    while name and name not in files:
        name = name.rpartition(".")[0]
    return name or None


def room(name: str) -> str:
    """The folder of a module, or its own name if it is in the root."""
    return name.split(".")[0]
