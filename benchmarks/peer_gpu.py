"""Run a plain PyTorch model of a head for benchmarks.gpu, under the peer's Python.

    PYTHON -m benchmarks.peer_gpu FORM HEAD BATCH HEIGHT WIDTH PRECISION DEVICE ROUNDS STEPS

FORM is eager or compiled (torch.compile). The memory layout is channels-last. Weights and the batch are random and lie
in the memory of the device.
"""

import contextlib
import sys
from collections.abc import Callable

from benchmarks import gpu_process
from benchmarks.gpu_process import GPU, INFERENCE, PRECISIONS, TRAINING, Work
from benchmarks.kseg_training import CLASSES, example


def build(form: str, work: Work) -> tuple[dict, dict[str, Callable[[], dict]]]:
    """Return the description of the model and its tasks."""
    import torch

    from benchmarks import torch_models

    on_gpu = work.device == GPU
    if on_gpu and not torch.cuda.is_available():
        raise RuntimeError("PyTorch sees no GPU")
    layers, tensor_float_32 = PRECISIONS[work.precision]
    torch.set_float32_matmul_precision("high" if tensor_float_32 else "highest")
    torch.backends.cudnn.allow_tf32 = tensor_float_32
    # XLA measures kernels before it chooses one, too.
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    device = torch.device("cuda" if on_gpu else "cpu")
    model = torch_models.build(work.head, CLASSES).to(device, memory_format=torch.channels_last)
    images, labels = (torch.from_numpy(values).to(device) for values in example(work.height, work.width, work.batch))
    images = images.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
    trained = sum(parameter.numel() for parameter in model.parameters())
    description = {
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "parameters": trained,
        "versions": {"PyTorch": torch.__version__},
    }
    if on_gpu:
        description["versions"] |= {"CUDA": torch.version.cuda, "cuDNN": str(torch.backends.cudnn.version())}

    def autocast() -> contextlib.AbstractContextManager:
        return torch.autocast(device.type, torch.bfloat16, enabled=layers == "bfloat16")

    compile_or_not = torch.compile if form == "compiled" else lambda function: function
    return description, {
        INFERENCE: lambda: measure_inference(model, images, autocast, compile_or_not, work),
        TRAINING: lambda: measure_training(model, images, labels, autocast, compile_or_not, work),
    }


def measure_inference(model, images, autocast: Callable, compile_or_not: Callable, work: Work) -> dict:
    """Measure the way from normalized images to class ids of their size."""
    import torch

    from benchmarks.torch_models import resize

    model.eval()

    @compile_or_not
    def predict(images):
        with autocast():
            logits = model.main(images)
        return resize(logits.float(), images.shape[2:]).argmax(1)

    with torch.no_grad():
        count = multiply_adds(model.main, images)
        reset_peak(images)
        results = gpu_process.timed(lambda: predict(images), lambda _: synchronize(images), work)
    return results | {"multiply_adds": count, "peak": peak(images)}


def measure_training(model, images, labels, autocast: Callable, compile_or_not: Callable, work: Work) -> dict:
    """Measure forward pass, losses, gradients and update."""
    import torch

    from benchmarks.torch_models import total_loss

    with torch.no_grad():
        count = multiply_adds(model.eval(), images)
    model.train()
    # These are the settings of MMSegmentation's schedule.
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=0.0005, fused=True)

    @compile_or_not
    def loss_of(images, labels):
        with autocast():
            outputs = model(images)
        return total_loss(outputs, labels)

    computed = []

    def step():
        loss = loss_of(images, labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        computed.append(loss.detach())

    reset_peak(images)
    results = gpu_process.timed(step, lambda _: synchronize(images), work)
    return results | {"multiply_adds": count, "peak": peak(images), "loss": float(computed[0])}


def multiply_adds(forward: Callable, images) -> int:
    """Return PyTorch's count of an image's multiply-adds in convolutions and matrix products."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        forward(images[:1])
    # FlopCounterMode counts a multiply-add as two operations.
    return counter.get_total_flops() // 2


def synchronize(images) -> None:
    """Wait until a GPU has finished."""
    import torch

    if images.is_cuda:
        torch.cuda.synchronize()


def reset_peak(images) -> None:
    """Begin to measure the peak of a GPU's memory anew."""
    import torch

    if images.is_cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak(images) -> int | None:
    """Return the most bytes that were allocated on a GPU, or None on a CPU."""
    import torch

    return torch.cuda.max_memory_allocated() if images.is_cuda else None


if __name__ == "__main__":
    gpu_process.report(lambda: build(sys.argv[1], gpu_process.read_work(sys.argv[2:])))
