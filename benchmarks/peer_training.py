"""Run MMSegmentation's training step for benchmarks.training, under the peers' Python.

    PYTHON -m benchmarks.peer_training THREADS HEAD HEIGHT WIDTH BATCH FORM

FORM is plain (as users run it) or best (channels-last memory layout and PyTorch's fused update). Weights and the batch
are random.
"""

import sys
import time
from collections.abc import Callable

from benchmarks import measured_process
from benchmarks.kseg_training import CLASSES, example
from benchmarks.peer_models import build_model


def build(threads: int, head: str, height: int, width: int, batch: int, form: str) -> tuple[dict, Callable[[], int]]:
    """Return the description of the step and the step, after a first one."""
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    versions, model = build_model(head, CLASSES)
    model.train()
    images, labels = (torch.from_numpy(values) for values in example(height, width, batch))
    images = images.permute(0, 3, 1, 2).contiguous()
    best = form == "best"
    if best:
        model, images = (value.to(memory_format=torch.channels_last) for value in (model, images))
    # These are the settings of MMSegmentation's schedule.
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=0.0005, fused=best or None)
    samples = data_samples(labels)

    def take() -> float:
        # The order is that of mmengine's `train_step` and `OptimWrapper.update_params`.
        loss, _ = model.parse_losses(model(images, samples, mode="loss"))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(loss)

    begin = time.perf_counter()
    loss = take()

    def step() -> int:
        take()
        return 1

    return {
        "versions": versions | {"torch": torch.__version__},
        "loss": loss,
        "first_seconds": time.perf_counter() - begin,
    }, step


def data_samples(labels) -> list:
    """Return uint8 labels (N, H, W) as MMSegmentation's data samples, int64 as in its pipeline."""
    import torch
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    samples = []
    for label in labels:
        sample = SegDataSample(metainfo={"img_shape": tuple(label.shape), "ori_shape": tuple(label.shape)})
        sample.gt_sem_seg = PixelData(data=label[None].to(torch.int64))
        samples.append(sample)
    return samples


if __name__ == "__main__":
    measured_process.serve(lambda: build(int(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:6]), sys.argv[6]))
