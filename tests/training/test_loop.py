"""The training loop: non-finite losses, several steps in a call, early stopping, device errors."""

import json

import h5py
import numpy as np
import pytest
import tensorflow as tf

from kseg import train
from kseg.training import step, working_directory
from kseg.training.step import Steps
from tests.helpers.running import run_here, tiny
from tests.helpers.small_training import SMALL, build_small_networks

BAD = 4


@pytest.fixture
def small_networks(monkeypatch):
    """Make training build the small network, because the loop does not depend on the model."""
    build_small_networks(monkeypatch)


@pytest.fixture
def spoil(monkeypatch):
    """Return a function that makes the losses of some steps, counted from 0, nan whenever they are taken."""

    def spoil(*bad):
        take = Steps.take

        def take_spoiled(self, iterator, count, stop_requested=False):
            first = int(self.optimizer.iterations)
            results = take(self, iterator, count, stop_requested)
            rows = results.losses.numpy()
            rows[[step - first for step in bad if first <= step < first + count]] = np.nan
            return results._replace(losses=tf.constant(rows))

        monkeypatch.setattr(step.Steps, "take", take_spoiled)

    return spoil


def final_weights(workdir):
    arrays = {}
    with h5py.File(workdir / "final.weights.h5") as file:
        file.visititems(lambda name, item: arrays.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
    assert len(arrays) > 6
    return arrays


def logged(workdir):
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if "loss" in line]


def logged_steps(workdir):
    return [line["step"] for line in logged(workdir)]


def test_batch_with_nonfinite_loss_is_skipped(small_networks, shapes_directory, tmp_path, capsys, spoil):
    command = tiny(shapes_directory, *SMALL, "train.steps=8", "train.steps_per_call=3")
    # The expected run skips that batch from the start.
    (tmp_path / "without").mkdir()
    working_directory.write_skipped_steps(tmp_path / "without", [{"step": BAD, "files": [], "losses": {}}])
    run_here(train.main, [*command, "--workdir", tmp_path / "without"], capsys)
    spoil(BAD)
    output = run_here(train.main, [*command, "--workdir", tmp_path / "run"], capsys)
    assert f"not finite at step {BAD + 1} (loss nan" in output and "checkpoint of step 3" in output
    assert "finished 8 steps" in output and "1 batches" in output
    [skipped] = working_directory.read_skipped_steps(tmp_path / "run")
    assert skipped["step"] == BAD and len(skipped["files"]) == 2 and skipped["losses"]["loss"] == "nan"
    assert logged_steps(tmp_path / "run") == [step + 1 for step in range(8) if step != BAD]
    weights, expected = final_weights(tmp_path / "run"), final_weights(tmp_path / "without")
    assert weights.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(weights[name], values)


def test_too_many_nonfinite_losses_are_an_error(small_networks, shapes_directory, tmp_path, capsys, spoil):
    spoil(BAD, BAD + 1)
    command = tiny(shapes_directory, *SMALL, "train.nonfinite_batches=1")
    output = run_here(train.main, [*command, "--workdir", tmp_path], capsys, status=2)
    assert f"not finite at step {BAD + 2} (loss nan" in output and output.count("shapes/train/") >= 2
    assert "train.nonfinite_batches=1" in output
    assert [skipped["step"] for skipped in working_directory.read_skipped_steps(tmp_path)] == [BAD]


def test_early_stopping_without_a_better_validation(small_networks, shapes_directory, tmp_path, capsys):
    """A tiny learning rate changes no validation. The run combines many other settings."""
    command = [
        *tiny(
            shapes_directory,
            *SMALL,
            "train.steps=40",
            "train.validate_every=2",
            "train.patience=2",
            "train.learning_rate=1e-12",
            "train.end_learning_rate=0",
            "train.average_decay=0.9",
            "train.accumulate=2",
            "train.optimizer=adamw",
            "train.decay_all=false",
            "train.freeze=first,norm",
            "train.precision=mixed_float16",
            "train.loss_scale=512",
        ),
        "--workdir",
        tmp_path,
    ]
    output = run_here(train.main, command, capsys)
    assert "finished 6 steps" in output and "train.patience" in output
    # With float16 the log says whether a step was skipped.
    assert [line["skipped"] for line in logged(tmp_path)] == [0] * 6
    assert json.loads((tmp_path / "best.json").read_text())["step"] == 2
    output = run_here(train.main, command, capsys)
    assert "step 6 of 40" in output and "finished 6 steps" in output
    assert logged_steps(tmp_path) == list(range(1, 7))


@pytest.mark.parametrize(
    "error, fragments",
    [
        (
            tf.errors.InternalError(None, None, "CUDA_ERROR_LAUNCH_FAILED: unspecified\nmore"),
            ["after step 0: CUDA_ERROR_LAUNCH_FAILED: unspecified. "],
        ),
        (
            tf.errors.ResourceExhaustedError(None, None, "OOM when allocating a tensor of shape[8,512]"),
            ["OOM when allocating a tensor of shape[8,512];", "train.global_batch"],
        ),
    ],
)
def test_device_errors_are_explained(small_networks, shapes_directory, tmp_path, capsys, monkeypatch, error, fragments):
    def take(*arguments):
        raise error

    monkeypatch.setattr(step.Steps, "take", take)
    output = run_here(train.main, [*tiny(shapes_directory, *SMALL), "--workdir", tmp_path], capsys, status=2)
    assert all(fragment in output for fragment in fragments) and "Traceback" not in output
