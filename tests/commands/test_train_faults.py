"""Killed, told to stop and left without storage, a run ends as one that nothing disturbed; all real processes."""

import json
import os
import subprocess
import sys

import h5py
import numpy as np
import pytest

from tests.helpers.running import ROOT


@pytest.fixture(scope="module")
def faulty(shapes_directory, tmp_path_factory):
    """The directory of the two runs, and of each start its status and its output by the fault it met."""
    directory = tmp_path_factory.mktemp("faulty runs")
    output = subprocess.run(
        [sys.executable, "-m", "tests.helpers.faulty_runs", shapes_directory, directory], check=True, cwd=ROOT,
        stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}).stdout
    return directory, {name: (status, said) for name, status, said in json.loads(output.splitlines()[-1])}


def test_each_start_ended_as_its_fault_wanted_it(faulty):
    statuses = [status for status, _ in faulty[1].values()]
    assert statuses == [0, 143, -9, 143, -9, 2, -9, -9, -9, -9, 0], faulty[1]


def test_each_start_continued_at_the_newest_whole_checkpoint(faulty):
    began = [next((int(line.split()[3]) for line in said.splitlines() if line.startswith("continuing at step")), 0)
             for _, said in faulty[1].values()]
    assert began == [0, 0, 0, 0, 2, 2, 2, 4, 4, 6, 8]


def arrays(path):
    found = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, item: found.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
    return found


@pytest.mark.parametrize("name", ["final.weights.h5", "best.weights.h5"])
def test_the_weights_are_the_same_to_the_bit(faulty, name):
    expected, found = (arrays(faulty[0] / run / name) for run in ("whole", "faulty"))
    assert expected.keys() == found.keys() and len(found) >= 8
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value, err_msg=key)


def test_the_log_has_each_step_once(faulty):
    losses = {}
    for run in ("whole", "faulty"):
        lines = [json.loads(line) for line in (faulty[0] / run / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6, 7, 8, 8] and "val/mIoU" in lines[-1]
        losses[run] = [line.get("loss", line.get("val/mIoU")) for line in lines]
    assert losses["whole"] == losses["faulty"]


def test_nothing_is_left_but_what_the_undisturbed_run_has(faulty):
    listed = {run: sorted(str(path.relative_to(faulty[0] / run)) for path in (faulty[0] / run).rglob("*")
                          if "tensorboard" not in path.parts) for run in ("whole", "faulty")}
    assert listed["whole"] == listed["faulty"] and "checkpoints/step-00000008.index" in listed["whole"]
    for name in ("best.json", "config.json", "dataset.json"):
        assert (faulty[0] / "faulty" / name).read_bytes() == (faulty[0] / "whole" / name).read_bytes()


def test_a_stop_while_compiling_waits_for_no_step(faulty):
    _, said = faulty[1]["told to stop while compiling"]
    assert "SIGTERM" in said and "step 1/8" not in said


def test_a_stop_while_a_checkpoint_is_written_keeps_it(faulty):
    _, said = faulty[1]["told to stop while a checkpoint is written"]
    assert "SIGTERM: saved step 2 of 8" in said and "step 3/8" not in said


def test_storage_that_fails_twice_is_asked_again(faulty):
    _, said = faulty[1]["left without storage twice, and killed in a line of its log"]
    assert said.count("writing the checkpoint of step 6 failed ([Errno 5] Input/output error)") == 2
    assert "step 7/8" in said


def test_storage_that_goes_on_failing_is_an_error(faulty):
    _, said = faulty[1]["left without storage"]
    assert said.count("writing the checkpoint of step 4 failed ([Errno 5] Input/output error)") == 4
    assert "error: cannot write the checkpoint of step 4 to" in said and "Traceback" not in said
    assert "Input/output error; the checkpoint of step 2 is intact" in said
