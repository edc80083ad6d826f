"""benchmarks/soak.py and server.py: that a wrong answer, a wrong version and growth are seen, how ratios are made."""

import base64
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import server, soak, soak_clients
from benchmarks.small_exports import Case, equal


def test_which_versions_may_answer(monkeypatch):
    now = SimpleNamespace(monotonic=lambda: clock)
    monkeypatch.setattr(soak_clients, "time", now)
    clock = 0.0
    timeline = soak_clients.Timeline(1)
    for clock, versions in ((10.0, {1, 2}), (12.0, {2}), (20.0, {2, 1}), (21.0, {1})):
        timeline.change(versions)
    assert timeline.allowed(3, 9) == {1}
    assert timeline.allowed(3, 11) == {1, 2}
    assert timeline.allowed(12.5, 19) == {2}
    # Begun while both were there.
    assert timeline.allowed(11, 13) == {1, 2}
    assert timeline.allowed(13, 25) == {1, 2}
    assert timeline.allowed(22, 23) == {1}


def outputs():
    return {"png_bytes": np.array([b"ab", b"\x00"], object), "size": np.array([[3, 4], [5, 6]], np.int32)}


@pytest.mark.parametrize("change", [
    lambda found: found.pop("size"), lambda found: found.update(more=found["size"]),
    lambda found: found.update(size=found["size"].astype(np.int64)),
    lambda found: found.update(size=found["size"].reshape(4)),
    lambda found: found["size"].__setitem__((1, 1), 7), lambda found: found["png_bytes"].__setitem__(1, b"\x01")])
def test_any_difference_is_seen(change):
    found = outputs()
    assert equal(found, outputs())
    change(found)
    assert not equal(found, outputs())


def test_answers_of_rest():
    rows = [{"b64": base64.b64encode(data).decode()} for data in (b"ab", b"\x00")]
    good = {"png_bytes": rows, "size": [[3, 4], [5, 6]]}
    assert soak_clients._matches(good, outputs())
    assert not soak_clients._matches(good | {"size": [[3, 4], [5, 7]]}, outputs())
    assert not soak_clients._matches(good | {"png_bytes": rows[::-1]}, outputs())
    assert not soak_clients._matches({"size": [[3, 4], [5, 6]]}, outputs())
    # The only output of a signature has no name.
    ids = {"class_map": np.array([[[1, 2]]], np.uint8)}
    assert soak_clients._matches([[[1, 2]]], ids) and not soak_clients._matches([[[1, 3]]], ids)


def test_bad_requests_are_those_they_are_called():
    case = Case("serving_default", {"image_bytes": np.array([b"a picture"], object)})
    pixels = Case("predict_tensor", {"image": np.zeros((1, 2, 2, 3), np.uint8)})
    known = soak_clients.Known("street", [case, case, pixels], [])
    bad = {name: (request, code) for name, request, _, code in soak_clients.bad_messages(known)}
    assert bad["unknown model"][0].model_spec.name != "street" == bad["half a picture"][0].model_spec.name
    assert bad["half a picture"][0].inputs["image_bytes"].string_val[0] == b"a pi"
    assert bad["unknown version"][0].model_spec.version.value == 999_999
    assert len(bad["wrong rank"][0].inputs["image"].tensor_shape.dim) == 3
    assert all(path.startswith("/v1/models/") and 400 <= status < 500
               for _, path, _, status in soak_clients.bad_bodies(known))


def memory(sizes):
    found = soak.Memory(SimpleNamespace(resident=lambda: 0))
    found.samples = [(float(second), int(size * soak.MIB)) for second, size in enumerate(sizes)]
    return found


def test_growth_is_that_of_the_second_half():
    # 100 MiB in the first 5 minutes, then none, then 6 MiB a minute.
    settled = memory([500 + min(second, 300) / 3 for second in range(601)])
    growing = memory([500 + second / 10 for second in range(601)])
    assert settled.slope() == pytest.approx(0, abs=1e-6) and growing.slope() == pytest.approx(6)
    assert settled.at(60) == 520
    # Two versions at a time, for longer and longer, but not to the end of any minute.
    loading = memory([500 + 80 * (second % 60 < second / 12) for second in range(601)])
    assert loading.slope() == pytest.approx(0, abs=1e-6) and loading.rests() == [500] * 10


@pytest.mark.parametrize("change, complaint", [
    ({}, None), ({"wrong": 1}, "wrong answers"), ({"failed": 1}, "failed requests"),
    ({"growing": True}, "memory grows"), ({"status": 137}, "the server did not end well"),
    ({"missing": ["from 1 to 2"]}, "a version was not exchanged"), ({"good": 0}, "no answers")])
def test_the_exit_status(capsys, change, complaint):
    tally = soak_clients.Tally(wrong=change.get("wrong", 0), failed=change.get("failed", 0))
    tally.good["gRPC serving_default"] = change.get("good", 5)
    versions = soak.Versions(Path(), [], failures=change.get("missing", []), changes=[(1.5, "rollback")])
    seen = memory([500 + (second / 10 if change.get("growing") else 0) for second in range(601)])
    status = soak.report(soak.parse([]), tally, versions, seen, change.get("status", 0))
    assert status == bool(complaint)
    assert capsys.readouterr().out.splitlines()[-1] == (f"FAILED: {complaint}" if complaint else "passed")


def test_ratios_are_taken_within_rounds():
    def rounds(*rates):
        return [{"requests_per_second": rate, "p50": 0.1, "p99": 0.2, "cpu_seconds": 0.03, "clients_busy": 0.5}
                for rate in rates]

    # Other work halved the second round's rates, and doubled the second pair's seconds.
    table = server.rates_table({"plain": rounds(100, 50, 100), "shipped": rounds(150, 75, 160)})
    assert table.splitlines()[3] == "| shipped | 150.0 (75.0..160.0) | 1.50 | 100.0 | 200.0 | 30.00 | 50% |"
    table = server.beside({"session": [0.1, 0.2, 0.1], "gRPC": [0.105, 0.21, 0.104]}, "session")
    assert table.splitlines()[3] == "| gRPC | 105.0 | 199.5 | 1.050 | 1.050 |"


def test_calls_take_turns():
    from benchmarks import server_direct

    order = []
    found = server_direct.in_turn({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2)
    assert "".join(order) == "abba" * 2 + "ab" and {name: len(seconds) for name, seconds in found.items()} == {
        "a": 2, "b": 2}
