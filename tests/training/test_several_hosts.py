"""Training on several hosts, real processes: the numbers of one, and what becomes of it when one is lost.

The runs follow one another as a job's do: three hosts of which one is killed, two of which one is told to stop, and
two that finish; beside them one host that trains without a break.
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

STEPS, KILLED, STOPPED = 30, 8, 16
# Rounding errors of float32 grow with each step, the faster the further the weights move.
SETTINGS = ["model.head=fcn", "model.fcn.convolutions=1", "model.auxiliary_channels=0", "model.width=8",
            "augment.crop=32,32", "train.global_batch=6", f"train.steps={STEPS}", "train.learning_rate=0.002",
            f"train.validate_every={STEPS}", "train.checkpoint_every=5"]


@pytest.fixture(scope="module")
def start():
    """What starts hosts, all of which end with the tests."""
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
    """The working directory of one host, this process."""
    assert train.main([*map(str, arguments), str(directory / "alone")]) == 0
    return directory / "alone"


@pytest.fixture(scope="module")
def killed(start, directory, arguments):
    """What became of three hosts, of which the second is killed; each has another working directory."""
    workdirs = [directory / "several", directory / "of the second", directory / "of the third"]
    hosts = start("kseg.train", [[*arguments, workdir] for workdir in workdirs], directory / "output of killed")
    hosts.wait_for(lambda: last_step(workdirs[0]) >= KILLED, f"step {KILLED}")
    hosts.processes[1].kill()
    return *hosts.wait(), workdirs


@pytest.fixture(scope="module")
def stopped(start, directory, arguments, killed):
    """What became of two hosts that continue, when the second is asked to stop."""
    workdir = killed[-1][0]
    before = last_step(workdir)
    hosts = start("kseg.train", [[*arguments, workdir]] * 2, directory / "output of stopped")
    hosts.wait_for(lambda: last_step(workdir) >= STOPPED, f"step {STOPPED}")
    hosts.processes[1].terminate()
    return *hosts.wait(), before, checkpoints(workdir)


@pytest.fixture(scope="module")
def finished(start, directory, arguments, stopped, killed):
    """What became of two hosts that train to the end, and their working directory."""
    workdir = killed[-1][0]
    return *start("recorded_training", [[*arguments, workdir]] * 2, directory / "output of finished").wait(), workdir


def lines(workdir):
    path = workdir / "metrics.jsonl"
    # The last line may be under way.
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]] if path.exists() else []


def last_step(workdir):
    return max((line["step"] for line in lines(workdir)), default=0)


def checkpoints(workdir):
    return sorted(int(path.stem.removeprefix("step-")) for path in (workdir / "checkpoints").glob("step-*.index"))


def losses(workdir):
    found = [line for line in lines(workdir) if "loss" in line]
    assert [line["step"] for line in found] == list(range(1, STEPS + 1))
    return np.array([line["loss"] for line in found])


def weights(workdir):
    found = {}
    with h5py.File(workdir / "final.weights.h5") as file:
        file.visititems(lambda name, value: found.update(
            {name: value[()]} if isinstance(value, h5py.Dataset) and value.size else {}))
    return found


def test_a_killed_host_ends_the_others_with_a_message_and_a_status_of_its_own(killed):
    statuses, outputs, seconds, _ = killed
    assert statuses == [75, -signal.SIGKILL, 75], outputs
    for output in (outputs[0], outputs[2]):
        # The third one may end before the first has noticed anything.
        assert re.match(r"error: (the connection to|no sign of life from) worker [12] \(127.0.0.1:\d+\).* continues "
                        "there$", output.splitlines()[-1]), output
    # The promised bound.
    assert max(seconds) - seconds[1] < 60


def test_the_chief_alone_writes_and_reports(killed):
    _, outputs, _, (workdir, *others) = killed
    assert checkpoints(workdir) and not any(other.exists() for other in others)
    assert "global batch 6 = 3 replicas x 2" in outputs[0] and "step 1/30" in outputs[0]
    assert not any("step 1/30" in output for output in outputs[1:])


def test_another_number_of_hosts_continues_at_the_newest_checkpoint(killed, stopped):
    _, outputs, _, before, _ = stopped
    newest = before - before % 5
    assert newest >= 5
    assert f"continuing at step {newest} of 30" in outputs[0] and "6 = 2 replicas x 3" in outputs[0]


def test_a_signal_to_one_host_stops_all_at_one_step_with_a_checkpoint(stopped):
    statuses, outputs, _, _, kept = stopped
    assert statuses == [143, 143], outputs
    step = int(re.search(r"SIGTERM: saved step (\d+) of 30", outputs[0])[1])
    assert STOPPED <= step < STEPS and kept[-1] == step


def test_the_end_is_that_of_one_host_without_a_break(alone, finished):
    statuses, outputs, _, workdir = finished
    assert statuses == [0, 0], outputs
    np.testing.assert_allclose(losses(workdir), losses(alone), rtol=1e-6)
    expected, found = weights(alone), weights(workdir)
    assert expected.keys() == found.keys() and len(found) > 50
    for name, values in expected.items():
        # What begins at 0 is a sum of 30 rounded gradients, which cancel.
        np.testing.assert_allclose(found[name], values, rtol=1e-6, atol=1e-6 * max(np.abs(values).max(), 1e-2),
                                   err_msg=name)


def test_validation_is_shared_by_the_hosts_and_counts_the_same(alone, finished):
    _, outputs, _, workdir = finished
    assert ["validates 8 of val" in output for output in outputs] == [True, True]
    assert [line["val/mIoU"] for line in lines(workdir) if "val/mIoU" in line] == pytest.approx(
        [line["val/mIoU"] for line in lines(alone) if "val/mIoU" in line], abs=1e-3)


def test_hosts_exchange_what_they_know_and_notice_a_silent_one(start, directory, shapes_directory):
    values = tiny(shapes_directory, *SETTINGS)
    (directory / "config.json").write_text(configs.to_json(configs.load(values[1], values[3:])))
    hosts = start("host_checks", [[directory / "config.json", directory / "refused"]] * 2,
                  directory / "output of checks")
    hosts.wait_for(lambda: "\nerror: " in hosts.outputs[0].read_text(), "end of the host that is left")
    hosts.processes[1].kill()
    statuses, outputs, _ = hosts.wait()
    found = [json.loads(next(line for line in output.splitlines() if line.startswith("{"))) for output in outputs]
    assert [each["place"] for each in found] == [0, 1] and [each["chief"] for each in found] == [True, False]
    assert [each["done"] for each in found] == [0, None]
    places = r"0 on worker 0 \(127.0.0.1:\d+\); 1 on worker 1 \(127.0.0.1:\d+\)"
    for each in found:
        assert (each["count"], each["alike"]) == (2, "")
        assert re.fullmatch(rf"HostsDisagree: the hosts .* nothing was done:\n  b: {places}", each["unlike"])
        # What training asks for is the whole config.
        assert re.fullmatch(rf"HostsDisagree: the hosts .*\n  train.seed: {places}", each["training"])
        assert each["failed"] == "DataError: a file of the chief"
        assert "train.global_batch=3 cannot be shared evenly by 2 replicas" in each["uneven"]
    assert not (directory / "refused").exists()
    assert statuses == [75, -signal.SIGKILL]
    assert "error: no sign of life from worker 1 (" in outputs[0]
