"""The shell blocks of the documentation, run as they stand there on small stand-ins for the data and the weights."""

import contextlib
import importlib
import json
import re
import subprocess
import threading

import keras
import numpy as np
import PIL.Image
import pytest

from kseg import __main__ as kseg_main
from kseg import config as configs
from kseg import models
from kseg.datasets import registry
from kseg.weights import loading
from tests.helpers import documents
from tests.helpers.running import ROOT, run_here, start

SMALL = [
    "model.width=4",
    "model.channels=8",
    "model.auxiliary_channels=4",
    "augment.crop=48,64",
    "train.global_batch=2",
    "train.steps=3",
    "train.log_every=1",
]


def documented_commands():
    """The commands of the blocks without a marker in the order of the pages, each once."""
    lines = []
    for block in documents.run_by("test_end_to_end"):
        lines += [" ".join(words).removeprefix(".venv/bin/") for words in documents.commands(block.text)]
    return list(dict.fromkeys(lines))


def module_and_arguments(words):
    """Return the module and the arguments of `kseg NAME ...` or `python -m MODULE ...`."""
    if words[0] == "kseg":
        name, arguments = kseg_main.find_command(words[1:])
        return kseg_main.COMMANDS[name].module, arguments
    assert words[:2] == ["python", "-m"] and words[2].startswith(("kseg.", "serving.")), words
    return words[2], words[3:]


@pytest.fixture(scope="module")
def own_images(tmp_path_factory):
    """A few images of one's own, with CamVid's label values and classes."""
    directory = tmp_path_factory.mktemp("data") / "own images"
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for part in ("images", "labels"):
            (directory / split / part).mkdir(parents=True)
        for index in range(3):
            label = generator.integers(0, 12, (9, 12)).repeat(10, 0).repeat(10, 1).astype(np.uint8)
            image = (label[..., None] * 20 + generator.integers(0, 30, (*label.shape, 3))).astype(np.uint8)
            PIL.Image.fromarray(image).save(directory / split / "images" / f"{index}.jpg")
            PIL.Image.fromarray(label).save(directory / split / "labels" / f"{index}.png")
    (directory / "classes.txt").write_text("\n".join([*registry.DATASETS["camvid"].classes, "11 ignore"]))
    return directory


@pytest.fixture(scope="module")
def resnet18(tmp_path_factory):
    """Backbone weights of the config, in torchvision's names and with its classifier."""
    config = configs.load("encnet", SMALL)
    keras.utils.set_random_seed(9)
    names = loading.mmseg_names(models.build(config.model, 11))
    state = {"fc.weight": np.zeros((10, 32), np.float32), "fc.bias": np.zeros(10, np.float32)}
    for name, variable in names.items():
        prefix, _, rest = name.partition(".")
        if prefix == "backbone":
            value = variable.numpy()
            state[rest] = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value
    path = tmp_path_factory.mktemp("weights") / "resnet18.npz"
    np.savez(path, **state)
    return path


@contextlib.contextmanager
def serving(arguments, directory):
    """Run the documented server while the commands after it run, and yield its gRPC port."""
    arguments = [word.replace("=8501", "=-1") for word in arguments]
    server = start("serving.server", *arguments, directory=directory)
    try:
        lines = []
        while not (found := re.match(r"gRPC at .*:(\d+)", lines[-1] if lines else "")):
            lines.append(server.stdout.readline())
            assert lines[-1], "".join(lines)
        # So that it never waits for somebody to read what it logs.
        threading.Thread(target=server.stdout.read, daemon=True).start()
        yield found[1]
        server.terminate()
        assert server.wait(60) == 0
    finally:
        server.kill()


def test_every_documented_command_is_known():
    commands = documented_commands()
    assert commands[:2] == ["make demo", "make test"]
    assert {"demo", "test"} <= set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert all(module_and_arguments(command.split()) for command in commands[2:])


def test_documented_commands_in_order(own_images, resnet18, tmp_path, monkeypatch, capsys):
    """Each command but the two of make, in the order of the pages, from an empty directory."""
    photos = tmp_path / "photos"
    photos.mkdir()
    PIL.Image.open(own_images / "val" / "images" / "0.jpg").resize((75, 41)).save(photos / "street.png")
    monkeypatch.chdir(tmp_path)
    with contextlib.ExitStack() as stack:
        for command in documented_commands()[2:]:
            words = [
                word.replace("DATA", str(own_images)).replace("=resnet18", f"={resnet18}") for word in command.split()
            ]
            module, arguments = module_and_arguments(words)
            if module == "serving.server":
                # Others may use the machine's usual ports.
                port = stack.enter_context(serving([*arguments, "--port=-1", "--drain_seconds=0"], tmp_path))
                continue
            if "kseg.train" in module:
                arguments += SMALL
            elif "--config" in arguments:
                arguments += ["--set", *SMALL]
            elif module == "serving.client":
                arguments = [word.replace(":8500", f":{port}") for word in arguments]
            # Most of a command's time would be the start of its process.
            output = run_here(importlib.import_module(module).main, arguments, capsys)
            if module == "kseg.evaluate":
                assert "3 of 3 images of own images val" in output and "mIoU" in output
    assert (tmp_path / "samples.png").is_file()
    results = json.loads((tmp_path / "runs" / "mine" / "val" / "metrics.json").read_text())
    assert results["images"] == 3 and list(results["classes"]) == list(registry.DATASETS["camvid"].classes)
    assert PIL.Image.open(tmp_path / "predicted" / "ids" / "street.png").size == (75, 41)
    assert PIL.Image.open(tmp_path / "predicted" / "overlay" / "street.png").size == (75, 41)
    assert (tmp_path / "predicted" / "legend.png").is_file()
    served = np.asarray(PIL.Image.open(tmp_path / "masks" / "ids" / "street.png"))
    predicted = np.asarray(PIL.Image.open(tmp_path / "predicted" / "ids" / "street.png"))
    # Norms are folded in what is served: a close call may fall otherwise.
    assert served.shape == (41, 75) and (served == predicted).mean() > 0.99


@pytest.mark.skipif(not (ROOT / ".venv" / "installed").exists(), reason="no .venv: these tests were not run by make")
def test_make_demo(tmp_path):
    """README.md's first command on fewer steps, smaller crops and a narrower network, in another directory."""
    shorter = "train.steps=50 train.validate_every=50 augment.crop=64,128 model.width=24"
    result = subprocess.run(
        ["make", "demo", f"DEMO={tmp_path / 'a demo'}", f"DEMO_SET={shorter}"],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=1800,
    )
    assert result.returncode == 0, result.stdout
    assert "finished 50 steps" in result.stdout
    results = json.loads((tmp_path / "a demo" / "metrics.json").read_text())
    assert results["images"] == 16
    # It came to 0.65; a model that says background everywhere has 0.1.
    assert results["mIoU"] >= 0.5
    assert PIL.Image.open(tmp_path / "a demo" / "predictions.png").size[0] > 3 * 256
