"""Predict the speed of training on 1 to 1024 GPUs with a cost model.

    python -m benchmarks.scaling
    python -m benchmarks.scaling --heads encnet --seconds-per-image encnet=0.011 --between-gbytes 12.5

docs/scaling.md explains the model and its assumptions. Nothing is measured. Sizes are in bytes and times in seconds,
unless a name says otherwise.
"""

import argparse
import math
import os
import sys
from dataclasses import dataclass, field, fields, replace

HEADS = ("encnet", "deeplabv3plus")
CLASSES, CROP = 19, (512, 1024)
GPU_COUNTS = tuple(2**power for power in range(11))
FLOAT = 4
# Bytes per channel of a batch normalization's all-reduces: two moments in float64, and two gradients in float32.
NORM_MESSAGES = (16, 8)
# Loss denominators, and losses for the log.
OTHER_MESSAGES = 2
# A training step has three passes: forward, gradients of inputs and gradients of weights. Two of them are backward.
PASSES, BACKWARD = 3, 2 / 3
CHECKPOINT_EVERY, VALIDATE_EVERY = 1_000, 4_000
# Cityscapes' 500 validation images have the pixels of four crops and need only the forward pass.
VALIDATION_IMAGES = 500 * 4 / PASSES


def assumption(default: float, text: str):
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Cluster:
    """Assumptions about GPUs, hosts and their network; every field is a flag."""

    teraflops: float = assumption(250.0, "1e12 operations/s of a GPU in training; a multiply-add has two")
    fixed_ms: float = assumption(2.0, "time of a step without images")
    inside_gbytes: float = assumption(450.0, "GB/s from a GPU to the others of its host")
    inside_us: float = assumption(2.0, "latency of a hop inside a host")
    between_gbytes: float = assumption(400.0, "GB/s from a host to the others")
    between_us: float = assumption(5.0, "latency of a hop between hosts")
    launch_us: float = assumption(20.0, "time to start a collective")
    cores: float = assumption(14.0, "CPU cores per GPU")
    images_per_core: float = assumption(18.8, "images/s read by a core")
    storage_gbytes: float = assumption(1.0, "GB/s of checkpoints")
    overlap: float = assumption(0.0, "fraction of the backward pass during which gradients are sent")
    gpus_per_host: int = assumption(8, "GPUs in a host")


@dataclass(frozen=True)
class Workload:
    """A model: sizes of its gradients and of a checkpoint, channels of its norms, and training time per image."""

    gradients: int
    state: int
    norms: tuple[int, ...]
    image: float
    norm_messages: tuple[int, ...] = NORM_MESSAGES


@dataclass(frozen=True)
class Step:
    """Seconds of the parts of a step. `between` are its parts of checkpoints and validations."""

    compute: float
    norms: float
    gradients: float
    other: float
    reading: float
    between: float

    @property
    def seconds(self) -> float:
        # Batches are read ahead, so only the slower of reading and training counts.
        return max(self.compute + self.norms + self.gradients + self.other, self.reading) + self.between

    @property
    def largest(self) -> str:
        if self.reading > self.compute + self.norms + self.gradients + self.other:
            return "input"
        parts = {"compute": self.compute, "norms": self.norms, "network": self.gradients}
        return max(parts, key=parts.get)


def ring(members: int, size: float, latency_us: float, gbytes: float) -> float:
    """Return the time of a ring all-reduce: every member sends 2 (n - 1) pieces of size / n in turn."""
    return 2 * (members - 1) * (latency_us / 1e6 + size / members / gbytes / 1e9)


def tree(cluster: Cluster, inside: int, hosts: int, size: float) -> float:
    """Return the time of an all-reduce up and down a binary tree of hosts with a chain of GPUs inside each."""
    latency_us = (inside - 1) * cluster.inside_us + math.ceil(math.log2(hosts)) * cluster.between_us
    seconds_per_gb = (inside > 1) / cluster.inside_gbytes + (hosts > 1) / cluster.between_gbytes
    return 2 * (latency_us / 1e6 + size / 1e9 * seconds_per_gb)


def all_reduce(cluster: Cluster, gpus: int, size: float) -> float:
    """Return the time of an all-reduce by rings or by a tree, whichever is faster, as NCCL chooses."""
    inside = min(gpus, cluster.gpus_per_host)
    if gpus % inside:
        raise ValueError(f"{gpus} GPUs do not fill hosts of {cluster.gpus_per_host}")
    if gpus == 1:
        return 0.0
    hosts = gpus // inside
    # Between hosts there is one ring per GPU; together they share the bandwidth of the host.
    rings = ring(inside, size, cluster.inside_us, cluster.inside_gbytes) + ring(
        hosts, size, cluster.between_us, cluster.between_gbytes
    )
    return cluster.launch_us / 1e6 + min(rings, tree(cluster, inside, hosts, size))


def step(work: Workload, cluster: Cluster, gpus: int, images: float) -> Step:
    """Return the parts of a step with `images` images on every GPU."""
    compute = cluster.fixed_ms / 1000 + images * work.image
    # The next layer waits for every norm, so nothing hides these messages.
    norms = sum(all_reduce(cluster, gpus, size * channels) for size in work.norm_messages for channels in work.norms)
    gradients = max(0.0, all_reduce(cluster, gpus, work.gradients) - cluster.overlap * BACKWARD * compute)
    # A checkpoint is written and read back.
    checkpoint = 2 * work.state / cluster.storage_gbytes / 1e9
    validation = VALIDATION_IMAGES / gpus * work.image
    return Step(
        compute,
        norms,
        gradients,
        OTHER_MESSAGES * all_reduce(cluster, gpus, FLOAT),
        images / (cluster.cores * cluster.images_per_core),
        checkpoint / CHECKPOINT_EVERY + validation / VALIDATE_EVERY,
    )


def table(work: Workload, cluster: Cluster, images_per_gpu: dict[int, float]) -> str:
    """Return a Markdown table by number of GPUs; efficiency compares images/s per GPU with the first row."""
    lines = [
        "| GPUs | global batch | computing, ms | norms | gradients | reading | steps/s | images/s | efficiency "
        "| largest part |",
        "|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|",
    ]
    first = None
    for gpus, images in images_per_gpu.items():
        parts = step(work, cluster, gpus, images)
        rate = gpus * images / parts.seconds
        first = first or rate / gpus
        cells = (f"{1000 * part:.1f}" for part in (parts.compute, parts.norms, parts.gradients, parts.reading))
        lines.append(
            f"| {gpus} | {gpus * images:.0f} | {' | '.join(cells)} | {1 / parts.seconds:.2f} | {rate:,.0f} "
            f"| {100 * rate / gpus / first:.0f} % | {parts.largest} |"
        )
    return "\n".join(lines)


def sensitivity(work: Workload, cluster: Cluster) -> str:
    """Return a Markdown table of images/s at 2 images per GPU with one assumption changed per row."""
    changes = {
        "as assumed": (work, cluster),
        "GPUs twice as fast": (replace(work, image=work.image / 2), cluster),
        "one 100 Gbit/s Ethernet port a host, six times the latency": (
            work,
            replace(cluster, between_us=6 * cluster.between_us, between_gbytes=12.5),
        ),
        "a collective's launch twice as long": (work, replace(cluster, launch_us=2 * cluster.launch_us)),
        "four all-reduces a norm instead of two": (replace(work, norm_messages=4 * (FLOAT,)), cluster),
        "norms not synchronized": (replace(work, norm_messages=()), cluster),
        "gradients sent during the whole backward pass": (work, replace(cluster, overlap=1.0)),
        "a quarter of the cores": (work, replace(cluster, cores=cluster.cores / 4)),
    }
    counts = (1, 8, 64, 1024)
    lines = [
        "| | " + " | ".join(f"{gpus} GPU{'s' * (gpus > 1)}" for gpus in counts) + " |",
        "|---|" + "--:|" * len(counts),
    ]
    for name, (changed_work, changed_cluster) in changes.items():
        rates = (2 * gpus / step(changed_work, changed_cluster, gpus, 2).seconds for gpus in counts)
        lines.append(f"| {name} | {' | '.join(f'{rate:,.0f}' for rate in rates)} |")
    return "\n".join(lines)


def workload(network, teraflops: float, image: float | None = None) -> tuple[Workload, int]:
    """Return the workload of a Keras model with known shapes, and its multiply-adds per image.

    `image` is the training time per image; by default it follows from `teraflops`.
    """
    from kseg.models.norms import BatchNormalization

    trainable, fixed = (
        FLOAT * sum(math.prod(weight.shape) for weight in weights)
        for weights in (network.trainable_variables, network.non_trainable_variables)
    )
    norms = tuple(layer.gamma.shape[0] for layer in network.layers if isinstance(layer, BatchNormalization))
    multiply_adds = sum(
        math.prod(layer.kernel.shape) * math.prod(layer.output.shape[1:-1])
        for layer in network.layers
        if hasattr(layer, "kernel")
    )
    if image is None:
        image = 2 * PASSES * multiply_adds / teraflops / 1e12
    # A checkpoint also contains the momentum of every trainable weight.
    return Workload(trainable, 2 * trainable + fixed, norms, image), multiply_adds


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__.partition("\n")[0])
    parser.add_argument("--heads", default=",".join(HEADS), metavar="NAME,...", help=f"default {','.join(HEADS)}")
    parser.add_argument(
        "--seconds-per-image",
        default="",
        metavar="HEAD=S,...",
        help="training time per image on one GPU by head; other heads follow --teraflops",
    )
    for item in fields(Cluster):
        parser.add_argument(
            f"--{item.name.replace('_', '-')}",
            type=item.type,
            default=item.default,
            metavar="X",
            help=f"{item.metadata['help']} (default {item.default:g})",
        )
    arguments = parser.parse_args(words)
    cluster = Cluster(**{item.name: getattr(arguments, item.name) for item in fields(Cluster)})
    try:
        seconds_per_image = {
            head: float(value)
            for head, value in (pair.split("=") for pair in arguments.seconds_per_image.split(",") if pair)
        }
    except ValueError:
        parser.error(f"--seconds-per-image takes HEAD=SECONDS,...; got {arguments.seconds_per_image}")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from kseg import models
    from kseg.config.sections import Model

    for head in arguments.heads.split(","):
        work, multiply_adds = workload(
            models.build(Model(head=head), CLASSES, CROP), cluster.teraflops, seconds_per_image.get(head)
        )
        print(
            f"{head}: {work.gradients / 1e6:.1f} MB of gradients, {len(work.norms)} batch normalizations, "
            f"checkpoints of {work.state / 1e6:.0f} MB, {multiply_adds / 1e9:.1f} G multiply-adds and "
            f"{1000 * work.image:.2f} ms per image"
        )
        print(f"\n2 images per GPU:\n\n{table(work, cluster, dict.fromkeys(GPU_COUNTS, 2.0))}")
        for batch in (8, 16):
            images_per_gpu = {gpus: batch / gpus for gpus in GPU_COUNTS if gpus <= batch}
            print(f"\nGlobal batch {batch}:\n\n{table(work, cluster, images_per_gpu)}")
        print(f"\nImages/s at 2 images per GPU, one assumption changed:\n\n{sensitivity(work, cluster)}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
