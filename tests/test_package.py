"""What importing kseg brings along, and what the project's own files must not name."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Written apart, so that this file does not name them itself.
FORBIDDEN = ["pypi" + ".org", "python" + "hosted.org", "/wo" + "rk/", "/ro" + "ot/", "/ho" + "me/"]


HEAVY = ["tensorflow", "keras", "tfx", "torch", "cv2"]
COMMANDS = (
    "train",
    "evaluate",
    "predict",
    "export",
    "convert",
    "data",
    "benchmark",
    "zoo",
    "compare",
    "launch",
    "explain",
    "__main__",
)


def modules_of(package):
    """Return the names of a package's modules."""
    return [f"kseg.{package}.{path.stem}" for path in sorted((ROOT / "kseg" / package).glob("[a-z]*.py"))]


@pytest.mark.parametrize(
    "statement",
    [
        "import kseg; kseg.Run; kseg.Config",
        "import kseg.cli",
        "import kseg.variants",
        f"import {', '.join(modules_of('config'))}",
        f"import {', '.join(modules_of('system'))}",
        f"import {', '.join(f'kseg.{name}' for name in COMMANDS)}",
        "import serving.server, serving.client, serving.load_test",
        "import pipeline.run_local, pipeline.compile_kubeflow",
        "from kseg.config import zoo; zoo.listing()",
    ],
)
def test_imports_stay_light(statement):
    code = f"import sys; {statement}; print(*sorted(name for name in {HEAVY!r} if name in sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


@pytest.mark.parametrize(
    "module, name, home",
    [
        ("train", "train", "kseg.training.trainer"),
        ("evaluate", "evaluate", "kseg.evaluation.evaluator"),
        ("export", "export", "kseg.exporting.exporter"),
        ("predict", "predict", "kseg.inference.file_prediction"),
    ],
)
def test_commands_offer_their_function(module, name, home):
    command = importlib.import_module(f"kseg.{module}")
    assert getattr(command, name).__module__ == home
    with pytest.raises(AttributeError, match="nothing"):
        command.nothing


def tracked_files():
    result = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True)
    if result.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in result.stdout.decode().split("\0") if name]


def test_no_file_names_a_machine():
    found = []
    for path in tracked_files():
        try:
            text = path.read_text(encoding="utf-8") if path.is_file() else ""
        except UnicodeDecodeError:
            continue
        found += [f"{path.relative_to(ROOT)}: {word}" for word in FORBIDDEN if word in text]
    assert found == []


def test_what_is_installed_has_every_module_and_config(tmp_path):
    built = tmp_path / "built"
    subprocess.run(
        [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", tmp_path, "build_py", "--build-lib", built],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    expected = {
        path.relative_to(ROOT) for package in ("kseg", "pipeline", "serving") for path in (ROOT / package).rglob("*.py")
    } | {Path("kseg") / path.relative_to(ROOT) for path in (ROOT / "configs").glob("*.py")}
    assert {path.relative_to(built) for path in built.rglob("*.py")} == expected
    for data in ("kseg/py.typed", "kseg/evaluation/templates/report.html.jinja", "serving/page"):
        assert (built / data).exists()
