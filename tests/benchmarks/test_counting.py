"""benchmarks/counting.py: that all ways count the same, what is said of a peer that is missing, how figures add up."""

import io
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import counting, kseg_counting, measured_process
from tests.helpers import slow_metrics


def small_maps(path):
    """Write four small maps, where one class is in neither of them, and return both and the matrix of all."""
    random = np.random.default_rng(0)
    labels = random.choice([0, 1, 3, 255], (4, 12, 15)).astype(np.uint8)
    predictions = random.choice([0, 1, 3], labels.shape).astype(np.uint8)
    np.savez(path, labels=labels, predictions=predictions, classes=4)
    return slow_metrics.confusion(labels, predictions, 4)


@pytest.mark.parametrize("kind", counting.KINDS.values())
def test_every_way_counts_each_map_once_before_it_is_timed(tmp_path, kind):
    expected = small_maps(tmp_path / "maps.npz")
    description, step = kseg_counting.build(tmp_path / "maps.npz", kind)
    assert description["hits"] == np.diag(expected).tolist()
    assert description["truth"] == expected.sum(1).tolist() and description["predicted"] == expected.sum(0).tolist()
    assert [step() for _ in range(5)] == [1] * 5


def test_ways_that_count_differently_are_an_error():
    same = {"hits": [1, 2], "truth": [3, 3], "predicted": [3, 3]}
    processes = {counting.PEER: SimpleNamespace(description=dict(same)),
                 counting.BASE: SimpleNamespace(description=dict(same))}
    counting.require_equal(processes)
    processes[counting.PEER].description["predicted"] = [2, 4]
    with pytest.raises(RuntimeError, match=r"IoUMetric finds other predicted than kseg, confusion: \[2, 4\], \[3, 3\]"):
        counting.require_equal(processes)


def test_a_missing_peer_is_told_and_left_out(monkeypatch, capsys, tmp_path):
    def start(command, environment):
        if command[0] == sys.executable:
            return SimpleNamespace(description={"versions": {"keras": "3"}}, settle=lambda: None)
        return measured_process.start(command, environment)

    monkeypatch.setattr(counting, "start", start)
    for python in (None, str(tmp_path / "python")):
        processes = {}
        counting.start_all(processes, tmp_path / "maps.npz", python)
        assert list(processes) == list(counting.KINDS)
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith(counting.PEER)]
    assert told == [f"{counting.PEER}: not measured: no --peer-python",
                    f"{counting.PEER}: not measured: {tmp_path / 'python'}: No such file or directory"]


def test_figures_compare_within_a_round():
    def rounds(*milliseconds):
        return [measured_process.Round(1000 / each, each / 500, 0) for each in milliseconds]

    found = counting.figures({counting.PEER: rounds(50, 100, 60), counting.BASE: rounds(10, 10, 5)})
    assert found[counting.BASE]["milliseconds"] == pytest.approx(10)
    # 5, 10 and 12 times as fast.
    assert found[counting.BASE]["ratio"] == found[counting.BASE]["cpu_ratio"] == pytest.approx(10)
    assert found[counting.BASE]["cpu_milliseconds"] == pytest.approx(20)
    assert found[counting.PEER]["ratio"] == 1
    lines = counting.table(found).splitlines()
    assert lines[2].split() == ["kseg,", "confusion", "10.0", "(5.0..10.0)", "10.00", "20.0", "10.00"]
    alone = counting.figures({counting.BASE: rounds(10)})
    assert alone[counting.BASE]["ratio"] is None and len(counting.table(alone).splitlines()[1].split()) == 5


def test_drawn_maps_are_of_the_classes_and_void(monkeypatch):
    monkeypatch.setattr(counting.street_pairs, "SIZE", (64, 96))
    file = io.BytesIO()
    counting.write_maps(file, 2)
    maps = np.load(io.BytesIO(file.getvalue()))
    assert maps["labels"].shape == maps["predictions"].shape == (2, 64, 96) and maps["labels"].dtype == np.uint8
    assert set(np.unique(maps["labels"])) <= {*range(19), 255} and maps["predictions"].max() < 19
    assert (maps["labels"][0] != maps["labels"][1]).any()
