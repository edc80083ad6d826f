"""What importing kseg brings along, and what the project's own files must not name."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Written apart, so that this file does not name them itself.
FORBIDDEN = ["pypi" + ".org", "python" + "hosted.org", "/wo" + "rk/", "/ro" + "ot/", "/ho" + "me/"]


@pytest.mark.parametrize("modules, absent", [
    ("kseg", ["tensorflow", "keras", "tfx", "torch"]),
    ("kseg.config", ["tensorflow", "keras", "tfx", "torch"]),
    ("kseg.system.atomic_files, kseg.system.progress, kseg.system.retries, kseg.system.signals",
     ["tensorflow", "keras", "tfx", "torch"]),
    ("kseg.zoo; kseg.config.zoo.listing()", ["tensorflow", "keras", "tfx", "torch"]),
    ("kseg.train, kseg.evaluate, kseg.predict", ["tfx", "torch"]),
])
def test_imports_stay_light(modules, absent):
    code = f"import sys, {modules}; print(*sorted(name for name in {absent!r} if name in sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


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
