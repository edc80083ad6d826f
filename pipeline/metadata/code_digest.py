"""Compute a digest of a component's code, so that the cache notices changes of it."""

import ast
import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path

import kseg

# Root of the project's packages, and their names.
ROOT, PACKAGES = Path(kseg.__file__).resolve().parents[1], ("kseg", "pipeline", "serving")


def code_digest(*names: str) -> str:
    """Return the digest of modules, of all project modules that they import, and of kseg's version.

    The digest covers the syntax of the sources, and ignores comments and layout. Imports inside functions count, those
    for type checkers do not. The packages that contain a module do not count: an __init__.py that imports many modules
    would make every module depend on all of them.
    """
    result = hashlib.sha256(kseg.__version__.encode())
    for name, syntax in sorted(module_syntax(*names).items()):
        result.update(f"{name}\n{syntax}\n".encode())
    return result.hexdigest()[:16]


def module_syntax(*names: str) -> dict[str, str]:
    """Return the syntax of modules and of all project modules that they import, by module name."""
    syntax: dict[str, str] = {}
    pending = list(names)
    while pending:
        name = pending.pop()
        if name not in syntax:
            syntax[name], imported = parse_module(module_file(name).read_text(encoding="utf-8"))
            pending += imported
    return syntax


def module_file(name: str) -> Path | None:
    """Return the file of a project module, None for any other name."""
    path = ROOT.joinpath(*name.split("."))
    files = (path.with_name(f"{path.name}.py"), path / "__init__.py")
    return next((file for file in files if file.is_file()), None) if name.split(".")[0] in PACKAGES else None


@functools.cache
def parse_module(text: str) -> tuple[str, tuple[str, ...]]:
    """Return the syntax of a source, and the names of the project modules that it imports."""
    tree = ast.parse(text)
    return ast.dump(tree), tuple(_imported_modules(tree))


def _imported_modules(tree: ast.Module) -> Iterator[str]:
    for node in _executed_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if module_file(alias.name))
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level and module_file(node.module):
            # An imported name is either a module of the package, or something that the module itself defines.
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from {name if module_file(name) else node.module for name in names}


def _executed_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield a node and all nodes below it, but not what only type checkers read."""
    yield tree
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            for other in child.orelse:
                yield from _executed_nodes(other)
        else:
            yield from _executed_nodes(child)
