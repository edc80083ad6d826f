"""Hold the packages to their order: the contracts of setup.cfg pass, and each kind of forbidden import breaks one."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.running import ROOT

pytest.importorskip("importlinter", reason="import-linter is not installed")


def lint(directory):
    """Run import-linter in a directory and return (exit status, names of the broken contracts, output)."""
    command = Path(sys.executable).with_name("lint-imports")
    result = subprocess.run([command, "--no-cache"], cwd=directory, text=True, capture_output=True)
    broken = {line.removesuffix(" BROKEN") for line in result.stdout.splitlines() if line.endswith(" BROKEN")}
    return result.returncode, broken, result.stdout + result.stderr


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """Copy the three packages and their contracts."""
    directory = tmp_path_factory.mktemp("a copy")
    for package in ("kseg", "serving", "pipeline"):
        shutil.copytree(ROOT / package, directory / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(ROOT / "setup.cfg", directory / "setup.cfg")
    return directory


def test_the_packages_keep_their_order(copy):
    status, broken, output = lint(copy)
    assert (status, broken) == (0, set()), output


KSEG = "A package of kseg imports only the packages below it"
SERVING = "A package of serving imports only the packages below it"
PIPELINE = "A package of pipeline imports only the packages below it"


@pytest.mark.parametrize(
    "file, line, contract",
    [
        ("kseg/models/layers.py", "from kseg.training import losses", KSEG),
        ("kseg/training/step.py", "import kseg.train", KSEG),
        ("kseg/stray.py", "", KSEG),
        (
            "kseg/inference/prediction.py",
            "def f():\n    from serving import errors",
            "kseg imports neither serving nor pipeline",
        ),
        ("serving/core/loading.py", "from kseg.training import step", "The server needs no training"),
        ("serving/stray.py", "", SERVING),
        ("pipeline/artifacts.py", "from pipeline import definition", PIPELINE),
        ("pipeline/components/trainer.py", "import kseg.train", "Nobody imports a command"),
    ],
)
def test_a_forbidden_import_breaks_its_contract(copy, file, line, contract):
    path = copy / file
    before = path.read_text() if path.exists() else None
    path.write_text((before or "") + line + "\n")
    try:
        status, broken, output = lint(copy)
    finally:
        if before is None:
            path.unlink()
        else:
            path.write_text(before)
    assert status == 1 and contract in broken, output
