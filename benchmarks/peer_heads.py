"""Run a peer's head for benchmarks.heads, from an image to class ids, under the peers' Python.

    PYTHON -m benchmarks.peer_heads SYSTEM FORM THREADS HEAD HEIGHT WIDTH

SYSTEM is mmseg or smp. FORM is plain (as users run it) or best (channels-last memory layout and, for mmseg, batch
normalization folded into the convolutions). Weights are random. Multiply-adds are PyTorch's count of convolutions and
matrix products.
"""

import sys
from collections.abc import Callable

from benchmarks import measured_process
from benchmarks.peer_models import build_model

CLASSES = 19
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
# Head -> smp's class for the same paper, with output stride 8 where smp supports it.
SMP = {
    "deeplabv3": ("DeepLabV3", {"encoder_output_stride": 8}),
    "deeplabv3plus": ("DeepLabV3Plus", {"encoder_output_stride": 8}),
    "pspnet": ("PSPNet", {}),
}


def build(system: str, form: str, threads: int, head: str, height: int, width: int) -> tuple[dict, Callable[[], int]]:
    """Return the description of the model and a step that predicts one image."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    versions, parameters, predict = {"mmseg": build_mmseg, "smp": build_smp}[system](head, form == "best", image)

    def step() -> int:
        # Users run it this way. inference_mode would forbid the in-place changes of mmseg's results.
        with torch.no_grad():
            predict()
        return 1

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        ids = predict()
    # FlopCounterMode counts a multiply-add as two operations.
    return {
        "versions": versions | {"torch": torch.__version__},
        "parameters": parameters,
        "multiply_adds": counter.get_total_flops() // 2,
        "ids": list(ids.shape),
    }, step


def build_mmseg(head: str, best: bool, image) -> tuple[dict, int, Callable]:
    """Return versions, the number of parameters without the auxiliary head, and a function that predicts ids."""
    versions, model = build_model(head, CLASSES)
    import torch
    from mmcv.cnn.utils import fuse_conv_bn
    from mmseg.structures import SegDataSample

    model = model.eval()
    parameters = sum(value.numel() for name, value in model.named_parameters() if not name.startswith("auxiliary"))
    if best:
        model = fuse_conv_bn(model).to(memory_format=torch.channels_last)
    shape = tuple(image.shape[1:])
    meta = {"ori_shape": shape, "img_shape": shape, "pad_shape": shape, "padding_size": [0, 0, 0, 0]}

    def predict():
        data = model.data_preprocessor({"inputs": [image], "data_samples": [SegDataSample(metainfo=meta)]}, False)
        if best:
            data["inputs"] = data["inputs"].contiguous(memory_format=torch.channels_last)
        return model(**data, mode="predict")[0].pred_sem_seg.data[0].numpy()

    return versions, parameters, predict


def build_smp(head: str, best: bool, image) -> tuple[dict, int, Callable]:
    """Return versions, the number of parameters, and a function that predicts ids."""
    import segmentation_models_pytorch
    import torch

    name, settings = SMP[head]
    model = getattr(segmentation_models_pytorch, name)("resnet50", encoder_weights=None, classes=CLASSES, **settings)
    model = model.eval()
    if best:
        model = model.to(memory_format=torch.channels_last)
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))

    def predict():
        inputs = ((image.float() - mean) / std)[None]
        if best:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        return model(inputs).argmax(1)[0].numpy()

    return (
        {"segmentation_models_pytorch": segmentation_models_pytorch.__version__},
        sum(value.numel() for value in model.parameters()),
        predict,
    )


if __name__ == "__main__":
    measured_process.serve(lambda: build(*sys.argv[1:3], int(sys.argv[3]), sys.argv[4], *map(int, sys.argv[5:7])))
