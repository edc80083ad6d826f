"""A run that is killed, signaled and deprived of storage ends like an undisturbed one; all real processes."""

import json
import os
import re
import subprocess
import sys

import h5py
import numpy as np
import pytest

from tests.helpers.running import ROOT


@pytest.fixture(scope="module")
def faulty(shapes_directory, tmp_path_factory):
    """Return the directory of the two runs, and {fault: (exit status, output)} of the starts."""
    directory = tmp_path_factory.mktemp("faulty runs")
    output = subprocess.run(
        [sys.executable, "-m", "tests.helpers.faulty_runs", shapes_directory, directory],
        check=True,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    ).stdout
    return directory, {name: (status, text) for name, status, text in json.loads(output.splitlines()[-1])}


def test_exit_status_of_each_start(faulty):
    statuses = [status for status, _ in faulty[1].values()]
    assert statuses == [0, 143, -9, 143, -9, 2, -9, -9, -9, -9, 0], faulty[1]


def test_each_start_resumes_from_the_newest_intact_checkpoint(faulty):
    resumed = [re.search(r"^resuming after step (\d+)", output, re.MULTILINE) for _, output in faulty[1].values()]
    assert [int(match[1]) if match else 0 for match in resumed] == [0, 0, 0, 0, 2, 2, 2, 4, 4, 6, 8]


def arrays_of(path):
    arrays = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, item: arrays.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
    return arrays


@pytest.mark.parametrize("name", ["final.weights.h5", "best.weights.h5"])
def test_weights_are_bitwise_equal(faulty, name):
    expected, actual = (arrays_of(faulty[0] / run / name) for run in ("whole", "faulty"))
    assert expected.keys() == actual.keys() and len(actual) >= 7
    for key, value in expected.items():
        np.testing.assert_array_equal(actual[key], value, err_msg=key)


def test_log_has_each_step_once(faulty):
    losses = {}
    for run in ("whole", "faulty"):
        lines = [json.loads(line) for line in (faulty[0] / run / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6, 7, 8, 8] and "val/mIoU" in lines[-1]
        losses[run] = [line.get("loss", line.get("val/mIoU")) for line in lines]
    assert losses["whole"] == losses["faulty"]


def test_both_runs_leave_the_same_files(faulty):
    files = {
        run: sorted(
            str(path.relative_to(faulty[0] / run))
            for path in (faulty[0] / run).rglob("*")
            if "tensorboard" not in path.parts
        )
        for run in ("whole", "faulty")
    }
    assert files["whole"] == files["faulty"] and "checkpoints/step-00000008.index" in files["whole"]
    for name in ("best.json", "config.json", "dataset.json"):
        assert (faulty[0] / "faulty" / name).read_bytes() == (faulty[0] / "whole" / name).read_bytes()


def test_signal_during_compilation_stops_before_the_first_step(faulty):
    _, output = faulty[1]["SIGTERM during compilation"]
    assert "SIGTERM" in output and "step 1/8" not in output


def test_signal_during_a_save_keeps_the_checkpoint(faulty):
    _, output = faulty[1]["SIGTERM while writing a checkpoint"]
    assert "SIGTERM: saved step 2 of 8" in output and "step 3/8" not in output


def test_two_storage_failures_are_retried(faulty):
    _, output = faulty[1]["two storage failures, and killed in a line of the log"]
    assert output.count("checkpoint of step 6 failed") == 2 and "step 7/8" in output


def test_permanent_storage_failure_is_an_error(faulty):
    _, output = faulty[1]["permanent storage failure"]
    assert output.count("checkpoint of step 4 failed") == 4 and "Traceback" not in output
    assert re.search(
        "^error: .*checkpoint of step 4 .*Input/output error; the checkpoint of step 2 is intact", output, re.MULTILINE
    )
