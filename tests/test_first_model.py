"""The commands of docs/first-model.md: those of `make demo`, and a prediction of the samples."""

import importlib
import shlex
import subprocess

from PIL import Image

from kseg import __main__ as kseg_main
from tests.helpers import documents, untrained
from tests.helpers.running import ROOT, TINY, run_here

TRAINED, PREDICTED = documents.run_by("test_first_model")


def module_and_arguments(words):
    name, arguments = kseg_main.find_command(words[1:])
    return kseg_main.COMMANDS[name].module, arguments


def test_the_commands_are_those_of_make_demo():
    """Make prints what it would run; test_end_to_end runs it."""
    result = subprocess.run(
        ["make", "--dry-run", "--old-file=.venv/installed", "demo"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    recipe = [words[2:] for words in map(shlex.split, result.stdout.splitlines()) if words[1:2] == ["-m"]]
    documented = [module_and_arguments(words) for words in documents.commands(TRAINED.text)]
    assert [(words[0], words[1:]) for words in recipe] == documented


def test_the_samples_are_predicted(tmp_path, capsys):
    from kseg import config as configs

    run = configs.load("encnet_shapes", TINY)
    untrained.train(run, tmp_path / "demo" / "run", None)
    (command,) = documents.commands(PREDICTED.text)
    module, arguments = module_and_arguments(command)
    arguments = [
        str(ROOT / word) if word.startswith("serving/") else word.replace("demo/", f"{tmp_path}/demo/")
        for word in arguments
    ]
    run_here(importlib.import_module(module).main, arguments, capsys)
    samples = sorted(path.stem for path in (ROOT / "serving" / "page" / "samples").iterdir())
    written = sorted((tmp_path / "demo" / "predicted" / "ids").iterdir())
    assert len(samples) == 3 and [path.stem for path in written] == samples
    assert Image.open(written[0]).size == (256, 128)
