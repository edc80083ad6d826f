"""Count pixels with MMSegmentation's IoUMetric for benchmarks.counting, under the peer's Python.

    PYTHON -m benchmarks.peer_counting MAPS

Like MMSegmentation's test loop, it calls `process` once per image with int64 maps and sums the areas.
"""

import itertools
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks import measured_process
from benchmarks.peer_pipeline import stub_compiled_operators


def build(path: Path) -> tuple[dict, Callable[[], int]]:
    """Return the description with the counts of all maps, and a step that counts one map."""
    stub_compiled_operators()
    import mmseg
    import numpy as np
    import torch
    from mmseg.evaluation.metrics import IoUMetric

    with np.load(path) as file:
        # Both maps are int64 in MMSegmentation: argmax returns the prediction, and PackSegInputs the label.
        samples = [
            {
                "gt_sem_seg": {"data": torch.from_numpy(label.astype(np.int64))[None]},
                "pred_sem_seg": {"data": torch.from_numpy(prediction.astype(np.int64))[None]},
            }
            for label, prediction in zip(file["labels"], file["predictions"])
        ]
        classes = [str(index) for index in range(int(file["classes"]))]
    metric = IoUMetric(ignore_index=255)
    metric.dataset_meta = {"classes": classes}
    for sample in samples:
        metric.process({}, [sample])
    hits, _, predicted, truth = (sum(areas).to(torch.int64).tolist() for areas in zip(*metric.results))
    endless = itertools.cycle(samples)

    def step() -> int:
        metric.results.clear()
        metric.process({}, [next(endless)])
        return 1

    return {
        "versions": {"mmseg": mmseg.__version__, "torch": torch.__version__},
        "hits": hits,
        "truth": truth,
        "predicted": predicted,
    }, step


if __name__ == "__main__":
    measured_process.serve(lambda: build(Path(sys.argv[1])))
