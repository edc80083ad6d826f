"""Every command answers --help and rejects wrong arguments before it imports TensorFlow."""

import json
import subprocess
import sys

import pytest

from tests.helpers.running import ROOT

TYPO = ["--config", "encnet_shapes", "--set", "train.stepz=1"]
UNKNOWN = ["--config", "encnet_shape"]
KEY, NAME, MISSING = "Did you mean train.steps", "Did you mean encnet_shapes", "--config is needed"
MODEL = [
    ([*TYPO, "--weights", "x.pth"], KEY),
    ([*UNKNOWN, "--weights", "x.pth"], NAME),
    ([], "name a model"),
    (["--workdir", "no/such/run"], "no/such/run is not a working directory"),
]

# Arguments and a part of the message with which the command stops.
COMMANDS = {
    "kseg.train": [
        (TYPO, KEY),
        (UNKNOWN, NAME),
        ([], MISSING),
        (["--config", "encnet_shapes", "--profile", "5:1"], "FIRST must not exceed LAST"),
        (["--list", "no such row"], "no such row"),
    ],
    "kseg.evaluate": MODEL,
    "kseg.predict": [(["LICENSE", "--out", "x", *arguments], part) for arguments, part in MODEL]
    + [(["LICENSE", "--out", "x", "--save", "id"], "Did you mean ids")],
    "kseg.export": [(["--out", "x", *arguments], part) for arguments, part in MODEL]
    + [(["--out", "x", "--config", "encnet_shapes", "--weights", "x", "--format", "litert", "--tta"], "omit --tta")],
    "kseg.convert": [
        (["x.pth", "--out", "x.weights.h5", *TYPO], KEY),
        (["x.pth", "--out", "x.weights.h5"], MISSING),
        (["--verify", "kseg", *UNKNOWN], NAME),
        ([], "--out NAME.weights.h5 is needed"),
    ],
    "kseg.data": [
        (["check", "shape"], "Did you mean shapes"),
        (["prepare", "shapes", "--source", "x"], "unknown dataset"),
        (["convert", "coc", "x", "--out", "y"], "Did you mean coco"),
        (["suggest", "folder", "--head", "encnt"], "Did you mean encnet"),
        (["suggest", "folder", "--memory", "0"], "--memory must be above 0"),
        (["show", "shapes", "--out", "x.png", *TYPO], KEY),
        (["show", "shapes", "--out", "x.png", "--set", "train.stepz=1"], KEY),
        (["show", "camvid", "--out", "x.png", "--config", "encnet_shapes"], "is for shapes, not for camvid"),
    ],
    "kseg.benchmark": [
        (["data", *TYPO], KEY),
        (["model", *UNKNOWN], NAME),
        (["model"], MISSING),
        (["model", "--config", "encnet_shapes", "--size", "5"], "HEIGHT,WIDTH"),
    ],
    "kseg.explain": [(["train.stepz"], KEY), (UNKNOWN, NAME)],
    "kseg.zoo": [(["no such row"], "no such row")],
    "kseg.compare": [(["no/a.json", "no/b.json"], "no/a.json")],
    "kseg.launch": [(["--local", "2"], "--local 2 -- -m kseg.train")],
    "serving.server": [
        (["--model_base_pat=x"], "model_base_path and server_options.model_config_file are empty"),
        (["--model_config_file=no/such/file"], "no/such/file"),
    ],
    "serving.client": [(["no.jpg", "--server", "localhost:1", "--out", "x"], "no.jpg")],
    "serving.load_test": [(["no.jpg", "--server", "localhost:1"], "no.jpg")],
    "pipeline.run_local": [(["--root", "x", *TYPO], KEY), (["--root", "x"], MISSING)],
    "pipeline.compile_kubeflow": [(TYPO, KEY), ([], MISSING), (["--config", "encnet_shapes"], "--out, --image")],
    "pipeline.history": [(["--root", "no/such/root"], "no/such/root")],
}

# Calls main with each list of arguments, prints the outcomes and whether TensorFlow was imported.
PROGRAM = """
import contextlib, importlib, io, json, sys
main = importlib.import_module(sys.argv[1]).main
from kseg.errors import UserError
outcomes = []
for arguments in json.loads(sys.argv[2]):
    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output):
            outcome = main(arguments)
    except SystemExit as error:
        outcome = error.code
    except UserError as error:
        outcome = str(error)
    outcomes.append((outcome, output.getvalue()))
print(json.dumps([outcomes, sorted({"tensorflow", "keras", "tfx", "apache_beam"} & set(sys.modules))]))
"""


@pytest.mark.parametrize("module", COMMANDS)
def test_arguments_are_read_before_tensorflow_is_imported(module):
    if module == "pipeline.history":
        pytest.importorskip("ml_metadata")
    wrong = COMMANDS[module]
    calls = [["--help"]] + [arguments for arguments, _ in wrong]
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, module, json.dumps(calls)], cwd=ROOT, check=True, capture_output=True, text=True
    )
    [(status, usage), *outcomes], heavy = json.loads(result.stdout)
    assert status == 0 and module in usage.replace("/", ".") and heavy == []
    for (outcome, printed), (arguments, part) in zip(outcomes, wrong, strict=True):
        assert part in f"{outcome} {printed}", arguments


def test_lists_are_printed_without_tensorflow():
    for module, arguments in (("kseg.train", ["--list"]), ("kseg.zoo", [])):
        result = subprocess.run(
            [sys.executable, "-c", PROGRAM, module, json.dumps([arguments])],
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        )
        [[status, listing]], heavy = json.loads(result.stdout)
        assert status == 0 and "encnet_cityscapes:r50-d8-512x1024-40k" in listing and heavy == []
