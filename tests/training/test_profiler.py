"""Profiles of a range of steps for TensorBoard, and the memory figures of the log."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from kseg.distributed import memory
from kseg.profiling import traces
from kseg.training.profiler import Profile


def recorded_steps(directory: Path) -> list[list[int]]:
    """Return the step numbers in each trace of a directory, oldest trace first."""
    steps = []
    for path in sorted(directory.glob("tensorboard/plugins/profile/*/*.xplane.pb")):
        space = traces.xplane_pb2.XSpace.FromString(path.read_bytes())
        [host] = [plane for plane in space.planes if plane.name == traces.HOST]
        names = {key: value.name for key, value in host.stat_metadata.items()}
        events = [
            {names[stat.metadata_id]: stat.str_value or stat.int64_value or stat.uint64_value for stat in event.stats}
            for line in host.lines
            for event in line.events
            if host.event_metadata[event.metadata_id].name == "train"
        ]
        steps.append(sorted(int(event["step_num"]) for event in events))
    return steps


def run(profile: Profile, steps: int, per_call: int = 1, first: int = 0) -> list[tuple[int, int]]:
    """Imitate the training loop and return the (step, count) of its calls."""
    step, calls = first, []
    with profile:
        while step < steps:
            count = min(per_call, profile.boundary(step) - step, steps - step)
            profile.step(step)
            calls.append((step, count))
            tf.reduce_sum(tf.ones(8)).numpy()
            step += count
    return calls


def test_steps_of_the_range_are_recorded(tmp_path):
    reports = []
    calls = run(Profile((3, 6), tmp_path, reports.append), 9, per_call=3)
    # Calls end where recording starts and stops: before step 3 and after step 6.
    assert calls == [(0, 2), (2, 3), (5, 1), (6, 3)]
    assert recorded_steps(tmp_path) == [[3, 6]]
    [line] = reports
    assert f"`tensorboard --logdir {tmp_path / 'tensorboard'}`" in line


def test_recording_stops_with_the_run(tmp_path):
    profile = Profile((2, 100), tmp_path)
    assert run(profile, 3) == [(0, 1), (1, 1), (2, 1)]
    assert recorded_steps(tmp_path) == [[2, 3]]
    with pytest.raises(KeyboardInterrupt), Profile((1, 100), tmp_path / "stopped") as stopped:
        stopped.step(0)
        raise KeyboardInterrupt
    assert recorded_steps(tmp_path / "stopped") == [[1]]
    # The profiler is available again.
    tf.profiler.experimental.start(str(tmp_path / "other"))
    tf.profiler.experimental.stop()


def test_run_resumed_inside_the_range_records_the_rest(tmp_path):
    run(Profile((3, 6), tmp_path), 9, first=4)
    assert recorded_steps(tmp_path) == [[5, 6]]


@pytest.mark.parametrize("profiled, first", [(None, 0), ((3, 6), 6)])
def test_nothing_is_recorded_without_a_range_or_after_it(tmp_path, profiled, first):
    reports = []
    assert run(Profile(profiled, tmp_path, reports.append), 9, per_call=9, first=first) == [(first, 9 - first)]
    assert not reports
    assert not list(tmp_path.iterdir())


def test_host_without_a_directory_records_nothing(tmp_path):
    assert run(Profile((3, 6), None), 9, per_call=9) == [(0, 9)]


def test_memory_of_the_process_follows_its_allocations():
    before = memory.memory_in_use()
    allocation = np.ones((100, 2**20), np.uint8)
    during = memory.memory_in_use()
    assert during["memory_mib"] - before["memory_mib"] == pytest.approx(100, abs=20)
    del allocation
    after = memory.memory_in_use()
    assert during["memory_mib"] - after["memory_mib"] == pytest.approx(100, abs=20)
    assert after["memory_peak_mib"] >= during["memory_mib"] - 1


def test_memory_is_read_from_the_status_file(tmp_path, monkeypatch):
    status = tmp_path / "status"
    status.write_text("Name:\tpython VmRSS: 9 kB\nVmHWM:\t    3072 kB\nVmRSS:\t    2560 kB\nThreads:\t7\n")
    monkeypatch.setattr(memory, "STATUS", status)
    assert memory.memory_in_use() == {"memory_mib": 2.5, "memory_peak_mib": 3.0}
    monkeypatch.setattr(memory, "STATUS", tmp_path / "none")
    assert memory.memory_in_use() == {}


def test_memory_of_gpus(tmp_path, monkeypatch):
    reset = []
    monkeypatch.setattr(memory, "STATUS", tmp_path / "none")
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: ["first", "second"])
    monkeypatch.setattr(
        tf.config.experimental,
        "get_memory_info",
        {"GPU:0": {"current": 2**20, "peak": 3 * 2**20}, "GPU:1": {"current": 2**19, "peak": 2**20}}.get,
    )
    monkeypatch.setattr(tf.config.experimental, "reset_memory_stats", reset.append)
    assert memory.memory_in_use() == {
        "gpu0_memory_mib": 1,
        "gpu0_memory_peak_mib": 3,
        "gpu1_memory_mib": 0.5,
        "gpu1_memory_peak_mib": 1,
    }
    memory.reset_peak_memory()
    assert reset == ["GPU:0", "GPU:1"]
