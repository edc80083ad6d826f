"""benchmarks.counting: all systems count the same pixels, and results are compared within rounds."""

from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import counting, kseg_counting, measured_process
from tests.helpers import slow_metrics


@pytest.mark.parametrize("kind", counting.KINDS.values())
def test_all_maps_are_counted_once_before_timing(tmp_path, kind):
    random = np.random.default_rng(0)
    # Class 2 occurs in neither map.
    labels = random.choice([0, 1, 3, 255], (4, 12, 15)).astype(np.uint8)
    predictions = random.choice([0, 1, 3], labels.shape).astype(np.uint8)
    np.savez(tmp_path / "maps.npz", labels=labels, predictions=predictions, classes=4)
    expected = slow_metrics.confusion(labels, predictions, 4)
    description, step = kseg_counting.build(tmp_path / "maps.npz", kind)
    assert description["hits"] == np.diag(expected).tolist()
    assert description["truth"] == expected.sum(1).tolist() and description["predicted"] == expected.sum(0).tolist()
    assert [step() for _ in range(5)] == [1] * 5


def test_different_counts_are_an_error():
    counts = {"hits": [1, 2], "truth": [3, 3], "predicted": [3, 3]}
    processes = {
        counting.PEER: SimpleNamespace(description=counts | {"predicted": [2, 4]}),
        counting.BASE: SimpleNamespace(description=counts),
    }
    with pytest.raises(RuntimeError, match=r"IoUMetric.*predicted: \[2, 4\], \[3, 3\]"):
        counting.require_equal(processes)


def test_ratios_are_taken_within_rounds():
    def rounds(*milliseconds):
        return [measured_process.Round(1000 / time, time / 500, 0) for time in milliseconds]

    results = counting.summarize({counting.PEER: rounds(50, 100, 60), counting.BASE: rounds(10, 10, 5)})
    assert results[counting.BASE]["milliseconds"] == pytest.approx(10)
    # kseg is 5, 10 and 12 times as fast.
    assert results[counting.BASE]["ratio"] == results[counting.BASE]["cpu_ratio"] == pytest.approx(10)
    assert results[counting.BASE]["cpu_milliseconds"] == pytest.approx(20)
    lines = counting.table(results).splitlines()
    assert lines[2].split() == ["kseg,", "confusion", "10.0", "(5.0..10.0)", "10.00", "20.0", "10.00"]
    assert counting.summarize({counting.BASE: rounds(10)})[counting.BASE]["ratio"] is None
