"""What a component's program is, so that the cache sees where it has changed."""

import ast
import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path

import kseg

# Where the packages of this project lie, and which they are.
ROOT, PACKAGES = Path(kseg.__file__).resolve().parents[1], ("kseg", "pipeline", "serving")


def digest(*names: str) -> str:
    """Return what stands for the program of some modules: them, all that they import of this project, its version.

    Of their sources the syntax counts, not comments and layout. Imports within functions count; packages around a
    module do not, for one that gathers others would make all depend on all.
    """
    result = hashlib.sha256(kseg.__version__.encode())
    for name, syntax in sorted(modules(*names).items()):
        result.update(f"{name}\n{syntax}\n".encode())
    return result.hexdigest()[:16]


def modules(*names: str) -> dict[str, str]:
    """Return {name: syntax} of some modules and of all that they import of this project."""
    found: dict[str, str] = {}
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found[name], imported = parsed(source(name).read_text(encoding="utf-8"))
            waiting += imported
    return found


def source(name: str) -> Path | None:
    """Return the file of a module of this project; None where it is none."""
    place = ROOT.joinpath(*name.split("."))
    files = (place.with_name(f"{place.name}.py"), place / "__init__.py")
    return next((path for path in files if path.is_file()), None) if name.split(".")[0] in PACKAGES else None


@functools.cache
def parsed(text: str) -> tuple[str, tuple[str, ...]]:
    """Return the syntax of a source, and the names of this project's modules that it imports."""
    tree = ast.parse(text)
    return ast.dump(tree), tuple(_imported(tree))


def _imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if source(alias.name))
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level and source(node.module):
            # Of a package its modules; of a module its names, which it is imported for.
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from {name if source(name) else node.module for name in inner}
