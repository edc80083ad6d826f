"""Check docs/architecture.md against the code: every name exists, every package is described, the layers agree."""

import ast
import configparser
import re

import pytest

from tests.helpers.running import ROOT

PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
NAMES = sorted(set(re.findall(r"`((?:kseg|serving|pipeline)(?:\.\w+)+)`", PAGE)))


def members(tree):
    """Return the names that a module or class body binds, imports included."""
    found = {}
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found[node.name] = node
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id: node for target in targets if isinstance(target, ast.Name)}
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            found |= {alias.asname or alias.name: node for alias in node.names}
    return found


def exists(name):
    """Return whether a dotted name is a module, or a name that its module or class binds."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        path = ROOT.joinpath(*parts[:length])
        file = path.with_suffix(".py") if path.with_suffix(".py").is_file() else path / "__init__.py"
        if not file.is_file():
            continue
        node = ast.parse(file.read_text(encoding="utf-8"))
        for part in parts[length:]:
            node = members(node).get(part) if isinstance(node, (ast.Module, ast.ClassDef)) else None
        return node is not None
    return False


@pytest.mark.parametrize("name", NAMES)
def test_a_name_of_the_page_exists(name):
    assert exists(name)


def test_a_name_that_is_gone_would_be_noticed():
    assert not exists("kseg.training.losses.no_such_loss") and not exists("kseg.no_such_module")


def test_every_question_names_a_function():
    rows = [line for line in PAGE.splitlines() if line.startswith("|") and "? |" in line]
    assert len(rows) == 8
    assert all(re.search(r"`(kseg|serving|pipeline)\.|`python -m ", row) for row in rows)


def test_every_package_is_on_the_map():
    packages = {path.parent for top in ("kseg", "serving", "pipeline") for path in (ROOT / top).glob("*/__init__.py")}
    for package in packages:
        name = package.name if package.parent.name == "kseg" else f"{package.parent.name}/{package.name}"
        assert re.search(rf"^\| .*`{name}`.* \|", PAGE, re.MULTILINE), name


def test_the_table_of_layers_shows_those_of_the_contract():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    layers = config["importlinter:contract:kseg"]["layers"].split("\n")
    expected = [{part.strip() for part in line.split("|")} for line in layers if line.strip()]
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", PAGE, re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, len(expected) + 1))
    assert [set(re.findall(r"`(\w+)`", packages)) for _, packages in rows] == expected
