"""MMSegmentation's IoUMetric, for counting.py; runs under the peer's own Python.

    PYTHON -m benchmarks.peer_counting MAPS

As its test loop uses it: `process` once a picture with int64 maps, and the areas added up.
"""

import importlib.machinery
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks import measured_process


def build(path: Path) -> tuple[dict, Callable[[], int]]:
    """Return what this way finds in all maps, and a function that counts one map more and returns 1."""
    from benchmarks.peer_pipeline import CompiledOperators

    stub = CompiledOperators("mmcv._ext")
    stub.__spec__ = importlib.machinery.ModuleSpec("mmcv._ext", None)
    sys.modules["mmcv._ext"] = stub
    import mmseg
    import numpy as np
    import torch
    from mmseg.evaluation.metrics import IoUMetric

    with np.load(path) as file:
        # Its maps are int64 both: argmax makes the one, PackSegInputs the other.
        samples = [{"gt_sem_seg": {"data": torch.from_numpy(label.astype(np.int64))[None]},
                    "pred_sem_seg": {"data": torch.from_numpy(prediction.astype(np.int64))[None]}}
                   for label, prediction in zip(file["labels"], file["predictions"])]
        classes = [str(index) for index in range(int(file["classes"]))]
    metric = IoUMetric(ignore_index=255)
    metric.dataset_meta = {"classes": classes}
    for sample in samples:
        metric.process({}, [sample])
    hits, _, predicted, truth = (sum(areas).to(torch.int64).tolist() for areas in zip(*metric.results))
    turn = iter(range(10 ** 9))

    def step() -> int:
        metric.results.clear()
        metric.process({}, [samples[next(turn) % len(samples)]])
        return 1

    return {"versions": {"mmseg": mmseg.__version__, "torch": torch.__version__},
            "hits": hits, "truth": truth, "predicted": predicted}, step


if __name__ == "__main__":
    measured_process.serve(lambda: build(Path(sys.argv[1])))
