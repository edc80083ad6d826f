"""MMSegmentation's input pipeline of its Cityscapes recipes, for input_pipeline.py; runs under the peer's own Python.

    PYTHON -m benchmarks.peer_pipeline TREE WORKERS BATCH

Its own transforms in its own order, from a torch DataLoader with persistent workers that shuffles without end. What its
data preprocessor does to a batch (RGB, mean and standard deviation, padding) is done in the workers, not in the one
process that trains, which is to its advantage.
"""

import importlib.machinery
import sys
import types
from collections.abc import Callable
from pathlib import Path
from unittest.mock import MagicMock

from benchmarks import measured_process

CROP = (512, 1024)


class CompiledOperators(types.ModuleType):
    """Stands in for mmcv's compiled operators, which mmseg imports and of which no transform of pictures uses any.

    mmcv-lite comes without them, and for new versions of PyTorch there is no mmcv that has them.
    """

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return MagicMock(name=name)


def pipeline(tree: Path):
    """Return MMSegmentation's data set of a Cityscapes tree with the transforms of its 512x1024 recipes."""
    from mmseg.datasets import CityscapesDataset
    from mmseg.utils import register_all_modules

    register_all_modules()
    return CityscapesDataset(
        data_root=str(tree), data_prefix={"img_path": "leftImg8bit/train", "seg_map_path": "gtFine/train"},
        pipeline=[
            {"type": "LoadImageFromFile"},
            {"type": "LoadAnnotations"},
            {"type": "RandomResize", "scale": (2048, 1024), "ratio_range": (0.5, 2.0), "keep_ratio": True},
            {"type": "RandomCrop", "crop_size": CROP, "cat_max_ratio": 0.75},
            {"type": "RandomFlip", "prob": 0.5},
            {"type": "PhotoMetricDistortion"},
            {"type": "PackSegInputs"}])


def build(tree: Path, workers: int, batch: int) -> tuple[dict, Callable[[], int]]:
    """Return what this pipeline is and a function that takes one batch from it and returns its number of pictures."""
    stub = CompiledOperators("mmcv._ext")
    stub.__spec__ = importlib.machinery.ModuleSpec("mmcv._ext", None)
    sys.modules["mmcv._ext"] = stub
    import cv2
    import mmcv
    import mmengine
    import mmseg
    import torch
    from mmengine.dataset import InfiniteSampler, pseudo_collate
    from mmseg.models import SegDataPreProcessor

    dataset = pipeline(tree)
    preprocess = SegDataPreProcessor(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True,
                                     pad_val=0, seg_pad_val=255, size=CROP)

    def collate(examples):
        done = preprocess(pseudo_collate(examples), training=True)
        return done["inputs"], torch.stack([sample.gt_sem_seg.data[0] for sample in done["data_samples"]])

    # As its recipes have it: processes are the parallelism, and OpenCV's threads within them only get in the way.
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=batch, sampler=InfiniteSampler(dataset, shuffle=True, seed=0), num_workers=workers,
        persistent_workers=True, collate_fn=collate, worker_init_fn=lambda worker: cv2.setNumThreads(0))
    batches = iter(loader)
    image, label = next(batches)

    def step() -> int:
        image, _ = next(batches)
        return len(image)

    return {"versions": {"mmseg": mmseg.__version__, "mmcv": mmcv.__version__, "mmengine": mmengine.__version__,
                         "torch": torch.__version__, "OpenCV": cv2.__version__},
            # Channels last, to compare.
            "image": [str(image.dtype).removeprefix("torch."), *image.permute(0, 2, 3, 1).shape],
            "label": list(label.shape)}, step


if __name__ == "__main__":
    measured_process.serve(lambda: build(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
