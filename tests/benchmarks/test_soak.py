"""benchmarks.soak detects wrong answers, wrong versions and growth; benchmarks.server compares within rounds."""

import base64
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import server, soak, soak_clients
from benchmarks.small_exports import equal


def test_allowed_versions(monkeypatch):
    monkeypatch.setattr(soak_clients, "time", SimpleNamespace(monotonic=lambda: now))
    now = 0.0
    timeline = soak_clients.Timeline(1)
    for now, versions in ((10.0, {1, 2}), (12.0, {2})):
        timeline.change(versions)
    assert timeline.allowed(3, 9) == {1}
    assert timeline.allowed(3, 11) == timeline.allowed(11, 13) == {1, 2}
    assert timeline.allowed(12.5, 19) == {2}


def outputs():
    return {"png_bytes": np.array([b"ab", b"\x00"], object), "size": np.array([[3, 4], [5, 6]], np.int32)}


@pytest.mark.parametrize(
    "change",
    [
        lambda actual: actual.pop("size"),
        lambda actual: actual.update(size=actual["size"].astype(np.int64)),
        lambda actual: actual["size"].__setitem__((1, 1), 7),
        lambda actual: actual["png_bytes"].__setitem__(1, b"\x01"),
    ],
)
def test_any_difference_is_detected(change):
    actual = outputs()
    assert equal(actual, outputs())
    change(actual)
    assert not equal(actual, outputs())


def test_rest_answers():
    rows = [{"b64": base64.b64encode(data).decode()} for data in (b"ab", b"\x00")]
    good = {"png_bytes": rows, "size": [[3, 4], [5, 6]]}
    assert soak_clients._matches(good, outputs())
    assert not soak_clients._matches(good | {"size": [[3, 4], [5, 7]]}, outputs())
    assert not soak_clients._matches(good | {"png_bytes": rows[::-1]}, outputs())
    # The only output of a signature has no name in JSON.
    ids = {"class_map": np.array([[[1, 2]]], np.uint8)}
    assert soak_clients._matches([[[1, 2]]], ids) and not soak_clients._matches([[[1, 3]]], ids)


def memory_of(sizes):
    memory = soak.Memory(SimpleNamespace(resident=lambda: 0))
    memory.samples = [(float(second), int(size * soak.MIB)) for second, size in enumerate(sizes)]
    return memory


def test_growth_is_that_of_the_minima_in_the_second_half():
    settled = memory_of([500 + min(second, 300) / 3 for second in range(601)])
    growing = memory_of([500 + second / 10 for second in range(601)])
    assert settled.slope() == pytest.approx(0, abs=1e-6) and growing.slope() == pytest.approx(6)
    # A second version is loaded for longer and longer, but never for a whole minute.
    loading = memory_of([500 + 80 * (second % 60 < second / 12) for second in range(601)])
    assert loading.slope() == pytest.approx(0, abs=1e-6) and loading.minima() == [500] * 10


@pytest.mark.parametrize(
    "change, complaint",
    [
        ({}, None),
        ({"wrong": 1}, "wrong answers"),
        ({"failed": 1}, "failed requests"),
        ({"growing": True}, "memory grows"),
        ({"status": 137}, "the server did not stop cleanly"),
        ({"failures": ["from 1 to 2"]}, "a version was not switched"),
        ({"good": 0}, "no answers"),
    ],
)
def test_the_exit_status(capsys, change, complaint):
    tally = soak_clients.Tally(wrong=change.get("wrong", 0), failed=change.get("failed", 0))
    tally.good["gRPC serving_default"] = change.get("good", 5)
    versions = soak.Versions(Path(), [], failures=change.get("failures", []), changes=[(1.5, "rollback")])
    memory = memory_of([500 + (second / 10 if change.get("growing") else 0) for second in range(601)])
    status = soak.report(soak.parse([]), tally, versions, memory, change.get("status", 0))
    assert status == bool(complaint)
    assert capsys.readouterr().out.splitlines()[-1] == (f"FAILED: {complaint}" if complaint else "passed")


def test_ratios_are_taken_within_rounds():
    def rounds(*rates):
        return [
            {"requests_per_second": rate, "p50": 0.1, "p99": 0.2, "cpu_seconds": 0.03, "clients_busy": 0.5}
            for rate in rates
        ]

    # Other work halved all rates in the second round, and doubled the seconds of both calls in theirs.
    table = server.rates_table({"default": rounds(100, 50, 100), "documented": rounds(150, 75, 160)})
    assert table.splitlines()[3] == "| documented | 150.0 (75.0..160.0) | 1.50 | 100.0 | 200.0 | 30.00 | 50% |"
    table = server.calls_table({"session": [0.1, 0.2, 0.1], "gRPC": [0.105, 0.21, 0.104]}, "session")
    assert table.splitlines()[3] == "| gRPC | 105.0 | 199.5 | 1.050 | 1.050 |"
