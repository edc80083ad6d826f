"""benchmarks.heads, training and counting compare systems within rounds, and report peers that cannot be measured."""

import sys

import pytest

from benchmarks import comparison, counting, heads, training
from benchmarks.measured_process import Round
from kseg import models


class Process:
    """A stand-in for a started system, which returns the given rates in turn."""

    def __init__(self, *rates, **description):
        self.description = {
            "versions": {"a": "1"},
            "parameters": 2_500_000,
            "multiply_adds": 3_000_000_000,
            "first_seconds": 9.0,
        } | description
        self.rates, self.closed = [1.0, *rates], False

    def work(self, warm_up, count):
        rate = self.rates.pop(0)
        # Two cores are busy.
        return Round(rate, 2 / rate, 0)

    def peak(self):
        return 2**30

    def close(self):
        self.closed = True


def test_all_heads_are_measured():
    assert set(heads.HEADS) == set(models.HEADS) == set(heads.parse([]).heads)


def test_ratios_are_taken_within_rounds(monkeypatch, capsys):
    kseg, peer = Process(1, 0.5, 0.25, ids=[256, 512]), Process(0.5, 0.5, 0.0625, ids=[256, 512])
    monkeypatch.setattr(heads, "start_kseg", lambda head, arguments: kseg)

    def start_peer(system, form, head, arguments):
        if (system, form) != ("mmseg", "plain"):
            raise RuntimeError("not installed")
        return peer

    monkeypatch.setattr(heads, "start_peer", start_peer)
    rows = heads.measure_head("encnet", heads.parse(["--rounds", "3", "--quick"]), reported := set())
    assert [(row.system, row.seconds, row.ratio, row.cpu_seconds, row.cpu_ratio) for row in rows] == [
        (heads.KSEG, [1, 2, 4], 1, [2, 4, 8], 1),
        ("MMSegmentation", [2, 2, 16], 2, [4, 4, 32], 2),
    ]
    assert kseg.closed and peer.closed
    # smp has no EncNet, which is not reported.
    assert reported == {"MMSegmentation, best: not measured: not installed"}
    lines = heads.table(rows).splitlines()
    assert lines[2] == f"| encnet | {heads.KSEG} | 2.00 (1.00..4.00) | 1 | 4.00 | 1 | 2.5 | 3.0 | 1024 |"
    assert lines[3] == "| encnet | MMSegmentation | 2.00 (2.00..16.00) | 2.00 | 4.00 | 2.00 | 2.5 | 3.0 | 1024 |"
    lines = training.table(
        [
            comparison.ModelRow("encnet", "peer", [2.0], 2.0, [4.0], 2.0, 2**29, kseg.description),
            comparison.ModelRow("encnet", training.KSEG, [1.0], 1.0, [2.0], 1.0, 2**30, kseg.description),
        ]
    ).splitlines()
    assert lines[2] == "| encnet | peer | 2.00 (2.00..2.00) | 2.00 | 4.00 | 2.00 | 512 | 2.00 | 9.0 |"


def test_ids_of_another_size_are_an_error(monkeypatch):
    process = Process(ids=[32, 64])
    monkeypatch.setattr(heads, "start_kseg", lambda head, arguments: process)
    with pytest.raises(RuntimeError, match=r"\[32, 64\].*\(512, 1024\)"):
        heads.measure_head("fcn", heads.parse([]), set())
    assert process.closed


def test_different_first_losses_are_an_error(monkeypatch):
    losses = {"kseg_training": 3.0, "peer_training": 3.5}
    monkeypatch.setattr(training, "start_step", lambda python, script, *_: Process(loss=losses[script]))
    with pytest.raises(RuntimeError, match="MMSegmentation is 3.500, but kseg's is 3.000"):
        training.measure_head("fcn", training.parse([]), set())


def test_unavailable_peers_are_reported(tmp_path):
    with pytest.raises(RuntimeError, match="no --peer-python"):
        heads.start_peer("mmseg", "plain", "fcn", heads.parse([]))
    with pytest.raises(RuntimeError, match="No such file"):
        heads.start_peer("mmseg", "plain", "fcn", heads.parse(["--peer-python", str(tmp_path / "python")]))


def test_peers_start_in_any_directory(tmp_path, monkeypatch):
    """This Python lacks the peers, but the process has to start before it can report that."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    with pytest.raises(RuntimeError, match="No module named"):
        heads.start_peer("smp", "best", "pspnet", heads.parse(["--smp-python", sys.executable]))
    with pytest.raises(RuntimeError, match="No module named"):
        training.start_step(sys.executable, "peer_training", "fcn", "plain", training.parse([]))
    with pytest.raises(RuntimeError, match="No module named"):
        counting.start_peer(tmp_path / "maps.npz", sys.executable)
