"""The Dockerfiles, which no test can build: what they copy exists, and comes before what needs it."""

import configparser
import re

import pytest

from tests.helpers.running import ROOT

FILES = ["Dockerfile", "pipeline/Dockerfile"]


def instructions(name):
    """Return (instruction, arguments) of a Dockerfile, with continued lines joined and comments dropped."""
    lines = [line for line in (ROOT / name).read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [tuple(line.split(None, 1)) for line in joined.splitlines() if line]


def copied(name, before=None):
    """Return the sources that a Dockerfile copies, all or those before the first instruction with a text."""
    found = []
    for instruction, arguments in instructions(name):
        if before and before in arguments:
            break
        if instruction == "COPY":
            found += arguments.split()[:-1]
    return found


@pytest.mark.parametrize("name", FILES)
def test_what_is_copied_exists(name):
    assert len(copied(name)) > 4
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    for source in copied(name):
        assert (ROOT / source).exists() and source not in ignored, source


@pytest.mark.parametrize("name", FILES)
def test_files_are_copied_before_they_are_used(name):
    runs = [arguments for instruction, arguments in instructions(name) if instruction == "RUN"]
    for lock in re.findall(r"-r (\S+)", " ".join(runs)):
        assert lock in copied(name, f"-r {lock}")
    assert any("--require-hashes" in run for run in runs)
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    packages = config["importlinter"]["root_packages"].split()
    licenses = config["metadata"]["license_files"].split()
    readme = config["metadata"]["long_description"].removeprefix("file: ")
    needed = {"setup.cfg", "setup.py", "pyproject.toml", "configs", readme, *packages, *licenses}
    assert needed <= set(copied(name, "--no-build-isolation ."))


def test_the_entry_point_of_training_is_an_installed_command():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    scripts = [line.split(" = ")[0] for line in config["options.entry_points"]["console_scripts"].split("\n") if line]
    assert instructions("Dockerfile")[-1] == ("ENTRYPOINT", '["kseg"]') and "kseg" in scripts


def test_the_extra_of_the_documented_build_exists():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    page = (ROOT / "docs" / "installation.md").read_text(encoding="utf-8")
    arguments = {
        arguments.split("=")[0] for instruction, arguments in instructions("Dockerfile") if instruction == "ARG"
    }
    given = re.findall(r"--build-arg (\w+)=(\w+)", page)
    assert given and {name for name, _ in given} <= arguments
    assert {value for name, value in given if name == "EXTRA"} <= set(config["options.extras_require"])
    # The table of the page explains each extra.
    rows = re.findall(r"^\| (`.*?) \| ", page, re.MULTILINE)
    assert {extra for row in rows for extra in re.findall(r"`(\w+)`", row)} == set(config["options.extras_require"])
