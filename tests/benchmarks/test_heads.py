"""benchmarks/heads.py: how figures are added up, and what is said of a peer that cannot be measured."""

import sys

import pytest

from benchmarks import heads
from benchmarks.measured_process import Round
from kseg import models


class Process:
    """Stands in for a started system: gives rates one after the other."""

    def __init__(self, ids, *rates):
        self.description = {"ids": ids, "parameters": 2_500_000, "multiply_adds": 3_000_000_000, "versions": {"a": "1"}}
        self.rates, self.closed = [1.0, *rates], False

    def work(self, warm_up, count):
        rate = self.rates.pop(0)
        # Busy on two cores.
        return Round(rate, 2 / rate, 0)

    def peak(self):
        return 2**30

    def close(self):
        self.closed = True


def arguments(*words):
    return heads.parse(["--rounds", "3", *words])


def test_all_heads_are_measured():
    assert set(heads.HEADS) == set(models.HEADS)
    assert arguments().heads == list(heads.HEADS) and arguments().size == (512, 1024)
    assert arguments("--quick", "--heads", "fcn,encnet").heads == ["fcn", "encnet"]
    assert arguments("--quick").size == (256, 512)


@pytest.mark.parametrize("words", [["--heads", "encnett"], ["--rounds", "0"], ["--threads", "0"], ["--images", "0"]])
def test_wrong_words_are_refused(words, capsys):
    with pytest.raises(SystemExit):
        arguments(*words)
    assert f"error: {words[0]}" in capsys.readouterr().err


def test_ratios_are_taken_within_rounds(monkeypatch, capsys):
    ours, theirs = Process([256, 512], 1, 0.5, 0.25), Process([256, 512], 0.5, 0.5, 0.0625)
    monkeypatch.setattr(heads, "start_kseg", lambda head, arguments: ours)

    def start_peer(system, form, head, arguments):
        if (system, form) != ("mmseg", "plain"):
            raise RuntimeError("no such thing")
        return theirs

    monkeypatch.setattr(heads, "start_peer", start_peer)
    rows = heads.measure_head("encnet", arguments("--quick"), told := set())
    assert [(row.system, row.seconds, row.ratio, row.cpu_seconds, row.cpu_ratio) for row in rows] == [
        (heads.KSEG, [1, 2, 4], None, [2, 4, 8], None), ("MMSegmentation", [2, 2, 16], 2, [4, 4, 32], 2)]
    assert ours.closed and theirs.closed
    # smp has no EncNet, and that is no failure.
    assert told == {"MMSegmentation, best: not measured: no such thing"}
    lines = heads.table(rows).splitlines()
    assert lines[2] == f"| encnet | {heads.KSEG} | 2.00 (1.00..4.00) | 1 | 4.00 | 1 | 2.5 | 3.0 | 1024 |"
    assert lines[3] == "| encnet | MMSegmentation | 2.00 (2.00..16.00) | 2.00 | 4.00 | 2.00 | 2.5 | 3.0 | 1024 |"
    assert lines[-1] == "a 1"


def test_ids_of_another_size_are_an_error(monkeypatch):
    process = Process([32, 64])
    monkeypatch.setattr(heads, "start_kseg", lambda head, arguments: process)
    with pytest.raises(RuntimeError, match=r"kseg, compiled gives ids of \[32, 64\], not of \(512, 1024\)"):
        heads.measure_head("fcn", arguments(), set())
    assert process.closed


def test_missing_peers_are_told(tmp_path):
    with pytest.raises(RuntimeError, match="no --peer-python"):
        heads.start_peer("mmseg", "plain", "fcn", arguments())
    with pytest.raises(RuntimeError, match="No such file"):
        heads.start_peer("mmseg", "plain", "fcn", arguments("--peer-python", str(tmp_path / "python")))
    # This Python lacks it.
    with pytest.raises(RuntimeError, match="No module named"):
        heads.start_peer("smp", "best", "pspnet", arguments("--peer-python", sys.executable))
