"""Training on several hosts, in real processes: equality with one host, lost hosts, signals and resuming.

The fixtures are successive starts of one job: three hosts, one of which is killed; two hosts, one of which receives
SIGTERM; two hosts that finish. A single host that trains without interruption is the reference.
"""

import json
import re
import signal

import h5py
import numpy as np
import pytest

from kseg import config as configs
from kseg import train
from tests.helpers.running import tiny
from tests.helpers.several_hosts import Hosts
from tests.helpers.small_training import SMALL, build_small_networks

STEPS, KILLED, STOPPED = 30, 8, 16
# A small learning rate limits the growth of float32's rounding differences, and replicas drop other channels than a
# single one does.
SETTINGS = [
    *SMALL,
    "model.dropout=0",
    "augment.crop=32,32",
    "train.global_batch=6",
    f"train.steps={STEPS}",
    "train.learning_rate=0.002",
    f"train.validate_every={STEPS}",
    "train.checkpoint_every=5",
]


@pytest.fixture(scope="module")
def start():
    """Return a function that starts hosts; all of them are killed after the tests."""
    started = []

    def start(*arguments):
        started.append(Hosts(*arguments))
        return started[-1]

    yield start
    for hosts in started:
        hosts.close()


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("hosts")


@pytest.fixture(scope="module")
def arguments(shapes_directory):
    return [*tiny(shapes_directory, *SETTINGS), "--workdir"]


@pytest.fixture(scope="module")
def alone(directory, arguments):
    """Return the working directory of a run on one host, in this process."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        build_small_networks(monkeypatch)
        assert train.main([*map(str, arguments), str(directory / "alone")]) == 0
    return directory / "alone"


@pytest.fixture(scope="module")
def killed(start, directory, arguments):
    """Kill the second of three hosts with separate working directories; return the outcome and the directories."""
    workdirs = [directory / "chief", directory / "second", directory / "third"]
    hosts = start(
        "tests.helpers.small_training", [[*arguments, workdir] for workdir in workdirs], directory / "output of killed"
    )
    hosts.wait_for(lambda: last_step(workdirs[0]) >= KILLED, f"step {KILLED}")
    hosts.processes[1].kill()
    return *hosts.wait(), workdirs


@pytest.fixture(scope="module")
def stopped(start, directory, arguments, killed):
    """Resume on two hosts and send SIGTERM to the second one; return the outcome and the steps before and after."""
    workdir = killed[-1][0]
    before = last_step(workdir)
    hosts = start("tests.helpers.small_training", [[*arguments, workdir]] * 2, directory / "output of stopped")
    hosts.wait_for(lambda: last_step(workdir) >= STOPPED, f"step {STOPPED}")
    hosts.processes[1].terminate()
    return *hosts.wait(), before, checkpoint_steps(workdir)


@pytest.fixture(scope="module")
def finished(start, directory, arguments, stopped, killed):
    """Train to the end on two hosts; return the outcome and the working directory."""
    workdir = killed[-1][0]
    hosts = start("tests.helpers.recorded_training", [[*arguments, workdir]] * 2, directory / "output of finished")
    return *hosts.wait(), workdir


def metrics(workdir):
    path = workdir / "metrics.jsonl"
    # The last line may be incomplete.
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]] if path.exists() else []


def last_step(workdir):
    return max((line["step"] for line in metrics(workdir)), default=0)


def checkpoint_steps(workdir):
    return sorted(int(path.stem.removeprefix("step-")) for path in (workdir / "checkpoints").glob("step-*.index"))


def losses(workdir):
    lines = [line for line in metrics(workdir) if "loss" in line]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    return np.array([line["loss"] for line in lines])


def final_weights(workdir):
    arrays = {}
    with h5py.File(workdir / "final.weights.h5") as file:
        file.visititems(
            lambda name, value: arrays.update(
                {name: value[()]} if isinstance(value, h5py.Dataset) and value.size else {}
            )
        )
    return arrays


def test_other_hosts_exit_with_status_75_when_one_is_killed(killed):
    statuses, outputs, seconds, _ = killed
    assert statuses == [75, -signal.SIGKILL, 75], outputs
    for output in (outputs[0], outputs[2]):
        # The third host may exit before the first one notices the loss of the second.
        assert re.match(r"error: .* worker [12] \(127.0.0.1:\d+\)", output.splitlines()[-1]), output
    # The heartbeat's timeout is 20 s; 60 s leave room for a loaded machine.
    assert max(seconds) - seconds[1] < 60


def test_only_the_chief_writes_and_reports(killed):
    _, outputs, _, (workdir, *others) = killed
    assert checkpoint_steps(workdir) and not any(other.exists() for other in others)
    assert "3 replicas x 2" in outputs[0] and "step 1/30" in outputs[0]
    assert not any("step 1/30" in output for output in outputs[1:])


def test_another_number_of_hosts_resumes_from_the_newest_checkpoint(killed, stopped):
    _, outputs, _, before, _ = stopped
    newest = before - before % 5
    assert newest >= 5
    assert f"step {newest} of 30" in outputs[0] and "2 replicas x 3" in outputs[0]


def test_signal_to_one_host_stops_all_at_the_same_step(stopped):
    statuses, outputs, _, _, saved = stopped
    assert statuses == [143, 143], outputs
    step = int(re.search(r"SIGTERM: saved step (\d+) of 30", outputs[0])[1])
    assert STOPPED <= step < STEPS and saved[-1] == step


def test_result_equals_that_of_one_uninterrupted_host(alone, finished):
    statuses, outputs, _, workdir = finished
    assert statuses == [0, 0], outputs
    np.testing.assert_allclose(losses(workdir), losses(alone), rtol=1e-6)
    expected, weights = final_weights(alone), final_weights(workdir)
    assert expected.keys() == weights.keys() and len(weights) == 7
    for name, values in expected.items():
        # A weight that starts at 0 is a sum of 30 rounded gradients, which partly cancel.
        np.testing.assert_allclose(
            weights[name], values, rtol=1e-6, atol=1e-6 * max(np.abs(values).max(), 1e-2), err_msg=name
        )


def test_hosts_divide_the_validation_with_the_same_result(alone, finished):
    _, outputs, _, workdir = finished
    assert ["validates 8 of val" in output for output in outputs] == [True, True]
    assert [line["val/mIoU"] for line in metrics(workdir) if "val/mIoU" in line] == pytest.approx(
        [line["val/mIoU"] for line in metrics(alone) if "val/mIoU" in line], abs=1e-3
    )


def test_hosts_compare_facts_and_detect_a_silent_host(start, directory, shapes_directory):
    values = tiny(shapes_directory, *SETTINGS)
    (directory / "config.json").write_text(configs.to_json(configs.load(values[1], values[3:])))
    hosts = start(
        "tests.helpers.host_checks",
        [[directory / "config.json", directory / "refused"]] * 2,
        directory / "output of checks",
    )
    hosts.wait_for(lambda: "\nerror: " in hosts.outputs[0].read_text(), "exit of the remaining host")
    hosts.processes[1].kill()
    statuses, outputs, _ = hosts.wait()
    results = [json.loads(next(line for line in output.splitlines() if line.startswith("{"))) for output in outputs]
    assert [result["index"] for result in results] == [0, 1]
    assert [result["chief"] for result in results] == [True, False]
    assert [result["done"] for result in results] == [0, None]
    values_by_host = r"0 on worker 0 \(127.0.0.1:\d+\); 1 on worker 1 \(127.0.0.1:\d+\)"
    for result in results:
        assert (result["count"], result["equal facts"]) == (2, "")
        assert re.fullmatch(rf"HostsDisagree: [^\n]*\n  b: {values_by_host}", result["different facts"])
        # Training compares the whole config.
        assert re.fullmatch(rf"HostsDisagree: [^\n]*\n  train.seed: {values_by_host}", result["training"])
        assert result["failed"] == "DataError: a file of the chief"
        assert "train.global_batch=3" in result["indivisible"] and "2 replicas" in result["indivisible"]
    assert not (directory / "refused").exists()
    assert statuses == [75, -signal.SIGKILL]
    assert re.search("error: .*worker 1 ", outputs[0])
