"""Run MMSegmentation's Cityscapes input pipeline for benchmarks.input_pipeline, under the peer's Python.

    PYTHON -m benchmarks.peer_pipeline TREE WORKERS BATCH

MMSegmentation's transforms run in the persistent workers of a torch DataLoader that shuffles endlessly. The work of its
data preprocessor (RGB, mean and standard deviation, padding) also runs in the workers instead of the training process,
which is an advantage for MMSegmentation.
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
    """A stand-in for mmcv's compiled operators, which mmseg imports but none of these benchmarks calls.

    mmcv-lite lacks them, and no mmcv release has them for recent versions of PyTorch.
    """

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return MagicMock(name=name)


def stub_compiled_operators() -> None:
    """Make mmcv importable without its compiled operators."""
    stub = CompiledOperators("mmcv._ext")
    stub.__spec__ = importlib.machinery.ModuleSpec("mmcv._ext", None)
    sys.modules["mmcv._ext"] = stub


def pipeline(tree: Path):
    """Return MMSegmentation's dataset for a Cityscapes tree with the transforms of its 512x1024 recipes."""
    from mmseg.datasets import CityscapesDataset
    from mmseg.utils import register_all_modules

    register_all_modules()
    return CityscapesDataset(
        data_root=str(tree),
        data_prefix={"img_path": "leftImg8bit/train", "seg_map_path": "gtFine/train"},
        pipeline=[
            {"type": "LoadImageFromFile"},
            {"type": "LoadAnnotations"},
            {"type": "RandomResize", "scale": (2048, 1024), "ratio_range": (0.5, 2.0), "keep_ratio": True},
            {"type": "RandomCrop", "crop_size": CROP, "cat_max_ratio": 0.75},
            {"type": "RandomFlip", "prob": 0.5},
            {"type": "PhotoMetricDistortion"},
            {"type": "PackSegInputs"},
        ],
    )


def build(tree: Path, workers: int, batch: int) -> tuple[dict, Callable[[], int]]:
    """Return the description of the pipeline and a step that takes one batch and returns its number of images."""
    stub_compiled_operators()
    import cv2
    import mmcv
    import mmengine
    import mmseg
    import torch
    from mmengine.dataset import InfiniteSampler, pseudo_collate
    from mmseg.models import SegDataPreProcessor

    dataset = pipeline(tree)
    preprocess = SegDataPreProcessor(
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=CROP,
    )

    def collate(examples):
        batch = preprocess(pseudo_collate(examples), training=True)
        return batch["inputs"], torch.stack([sample.gt_sem_seg.data[0] for sample in batch["data_samples"]])

    # MMSegmentation's recipes also disable OpenCV's threads, which slow down parallel workers.
    loader = torch.utils.data.DataLoader(
        dataset,
        batch_size=batch,
        sampler=InfiniteSampler(dataset, shuffle=True, seed=0),
        num_workers=workers,
        persistent_workers=True,
        collate_fn=collate,
        worker_init_fn=lambda worker: cv2.setNumThreads(0),
    )
    batches = iter(loader)
    image, label = next(batches)

    def step() -> int:
        image, _ = next(batches)
        return len(image)

    return {
        "versions": {
            "mmseg": mmseg.__version__,
            "mmcv": mmcv.__version__,
            "mmengine": mmengine.__version__,
            "torch": torch.__version__,
            "OpenCV": cv2.__version__,
        },
        # The shape is reported with channels last for the comparison with kseg.
        "image": [str(image.dtype).removeprefix("torch."), *image.permute(0, 2, 3, 1).shape],
        "label": list(label.shape),
    }, step


if __name__ == "__main__":
    measured_process.serve(lambda: build(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
