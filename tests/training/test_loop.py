"""The training loop: losses that are not finite, several steps in a call, early stopping, parts and averages."""

import json

import h5py
import numpy as np
import pytest
import tensorflow as tf

from kseg import train
from kseg.training import step, working_directory
from kseg.training.step import Steps
from tests.helpers.running import run_here, tiny

BAD = 4


@pytest.fixture
def spoil(monkeypatch):
    """Return a function that makes the loss of some steps, counted from 0, nan whenever they are taken."""
    def spoil(*bad):
        take = Steps.take

        def spoiled(self, iterator, count, notice=False):
            first = int(self.optimizer.iterations)
            taken = take(self, iterator, count, notice)
            rows = taken.losses.numpy()
            rows[[step - first for step in bad if first <= step < first + count]] = np.nan
            return taken._replace(losses=tf.constant(rows))

        monkeypatch.setattr(step.Steps, "take", spoiled)

    return spoil


def weights(workdir):
    found = {}
    with h5py.File(workdir / "final.weights.h5") as file:
        file.visititems(lambda name, item: found.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
    assert len(found) > 50
    return found


def logged(workdir):
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [line["step"] for line in lines if "loss" in line]


def test_a_loss_that_is_not_finite_costs_its_batch(shapes_directory, tmp_path, capsys, spoil):
    command = tiny(shapes_directory, "train.steps=8", "train.steps_per_call=3")
    # What the run is to be like: that batch was never there.
    (tmp_path / "without").mkdir()
    working_directory.write_skipped(tmp_path / "without", [{"step": BAD, "files": [], "losses": {}}])
    run_here(train.main, [*command, "--workdir", tmp_path / "without"], capsys)
    spoil(BAD)
    output = run_here(train.main, [*command, "--workdir", tmp_path / "run"], capsys)
    assert f"not finite at step {BAD + 1} (loss nan" in output
    assert "going back to the checkpoint of step 3 and on without that batch (1 of at most 3" in output
    assert "finished 8 steps" in output and "left out 1 batches whose loss was not finite" in output
    [skipped] = working_directory.read_skipped(tmp_path / "run")
    assert skipped["step"] == BAD and len(skipped["files"]) == 2 and skipped["losses"]["loss"] == "nan"
    assert logged(tmp_path / "run") == [step + 1 for step in range(8) if step != BAD]
    found, expected = weights(tmp_path / "run"), weights(tmp_path / "without")
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)


def test_more_of_them_than_are_allowed_end_the_run(shapes_directory, tmp_path, capsys, spoil):
    spoil(BAD, BAD + 1)
    output = run_here(train.main, [*tiny(shapes_directory, "train.nonfinite_batches=1"), "--workdir", tmp_path],
                      capsys, status=2)
    assert f"not finite at step {BAD + 2} (loss nan" in output and output.count("shapes/train/") >= 2
    assert "1 batches were left out before, as train.nonfinite_batches allows" in output
    assert [each["step"] for each in working_directory.read_skipped(tmp_path)] == [BAD]


def test_it_ends_early_without_a_better_validation_and_stays_ended(shapes_directory, tmp_path, capsys):
    """A learning rate of next to nothing changes no validation; half of what else may be set goes along."""
    command = [*tiny(shapes_directory, "train.steps=40", "train.validate_every=2", "train.patience=2",
                     "train.learning_rate=1e-12", "train.end_learning_rate=0", "train.average_decay=0.9",
                     "train.accumulate=2", "train.optimizer=adamw", "train.decay_all=false",
                     "train.freeze=backbone.stem.*"), "--workdir", tmp_path]
    output = run_here(train.main, command, capsys)
    assert "finished 6 steps, 2 validations after the best one (train.patience)" in output
    assert json.loads((tmp_path / "best.json").read_text())["step"] == 2
    output = run_here(train.main, command, capsys)
    assert "continuing at step 6 of 40" in output and "finished 6 steps, 2 validations" in output
    assert logged(tmp_path) == list(range(1, 7))


@pytest.mark.parametrize("error, said", [
    (tf.errors.InternalError(None, None, "CUDA_ERROR_LAUNCH_FAILED: unspecified\nmore"),
     "a step failed on its device after step 0: CUDA_ERROR_LAUNCH_FAILED: unspecified. What was saved is whole"),
    (tf.errors.ResourceExhaustedError(None, None, "OOM when allocating a tensor of shape[8,512]"),
     "memory is not enough for a step: OOM when allocating a tensor of shape[8,512]; lower train.global_batch")])
def test_a_device_that_fails_ends_the_run_in_words(shapes_directory, tmp_path, capsys, monkeypatch, error, said):
    def take(*arguments):
        raise error

    monkeypatch.setattr(step.Steps, "take", take)
    output = run_here(train.main, [*tiny(shapes_directory), "--workdir", tmp_path], capsys, status=2)
    assert said in output and "Traceback" not in output
