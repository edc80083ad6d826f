"""What a step of data-parallel training takes, part by part: the arithmetic of scaling.py. Seconds and bytes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

# All-reduces of one batch normalisation, in bytes for each channel: the two moments in float64, the two gradients.
NORM_MESSAGES = (16, 8)
# Of a step: the counts of the loss terms, and the losses for the log.
OTHER_MESSAGES = 2
FLOAT = 4
# Of a step's computing, the part in which gradients are found.
BACKWARD = 2 / 3


@dataclass(frozen=True)
class Link:
    """A way between neighbours: seconds for the first byte, and bytes/s in one direction."""

    latency: float
    bandwidth: float


@dataclass(frozen=True)
class Cluster:
    """Hosts of GPUs. `inside` joins the GPUs of a host, `between` is what a whole host has to the others.

    `launch` is spent on each collective, however small; `input_rate` images/s are read for each GPU; `storage` bytes/s
    are written and read by the chief.
    """

    inside: Link
    between: Link
    gpus_per_host: int
    launch: float
    input_rate: float
    storage: float


@dataclass(frozen=True)
class Workload:
    """A model in training: `norms` are the channels of its batch normalisations, `state` the bytes of a checkpoint.

    `image` and `fixed` are the seconds of computing a step takes for each image of a GPU's share, and besides.
    `overlap` is the part of the backward pass in which gradients are already on their way, `norm_messages` the bytes
    of each normalisation's all-reduces, for each channel.
    """

    gradients: int
    norms: tuple[int, ...]
    state: int
    image: float
    fixed: float
    overlap: float = 0.0
    norm_messages: tuple[int, ...] = NORM_MESSAGES


@dataclass(frozen=True)
class Rhythm:
    """What comes between steps: one checkpoint and one validation each so many steps, of so many images' computing."""

    checkpoint_every: int
    validate_every: int
    validation_images: float


@dataclass(frozen=True)
class Step:
    """Seconds of one step's parts; `gradients` only as far as computing does not hide them, `between` is a step's
    part of checkpoints and validations."""

    compute: float
    norms: float
    gradients: float
    other: float
    reading: float
    between: float

    @property
    def working(self) -> float:
        return self.compute + self.norms + self.gradients + self.other

    @property
    def seconds(self) -> float:
        """Batches are read ahead: the slower of reading and working counts."""
        return max(self.working, self.reading) + self.between

    @property
    def limit(self) -> str:
        """What takes most of a step."""
        if self.reading > self.working:
            return "input"
        parts = {"compute": self.compute, "norms": self.norms, "network": self.gradients}
        return max(parts, key=parts.get)


def ring(members: int, size: float, link: Link) -> float:
    """Return the seconds of a ring all-reduce: each member sends 2 (n - 1) pieces of size / n, one after the other."""
    return 2 * (members - 1) * (link.latency + size / members / link.bandwidth)


def hierarchical_ring(cluster: Cluster, gpus: int, size: float) -> float:
    """Rings inside the hosts, and between them one for each GPU's piece, which share the host's bandwidth."""
    inside, hosts = shape(cluster, gpus)
    return ring(inside, size, cluster.inside) + ring(hosts, size, cluster.between)


def tree(cluster: Cluster, gpus: int, size: float) -> float:
    """A chain inside each host and a binary tree of hosts, up and down again: fewer hops, but all bytes on each."""
    inside, hosts = shape(cluster, gpus)
    return 2 * ((inside - 1) * cluster.inside.latency + math.ceil(math.log2(hosts)) * cluster.between.latency
                + size * (inside > 1) / cluster.inside.bandwidth + size * (hosts > 1) / cluster.between.bandwidth)


def shape(cluster: Cluster, gpus: int) -> tuple[int, int]:
    """Return (GPUs in a host, hosts); raises ValueError where hosts would not be full."""
    inside = min(gpus, cluster.gpus_per_host)
    if gpus < 1 or gpus % inside:
        raise ValueError(f"{gpus} GPUs do not fill hosts of {cluster.gpus_per_host}")
    return inside, gpus // inside


def all_reduce(cluster: Cluster, gpus: int, size: float) -> float:
    """Return the seconds of one all-reduce by the better way of the two, as NCCL chooses it; one GPU needs none."""
    if gpus == 1:
        return 0.0
    return cluster.launch + min(hierarchical_ring(cluster, gpus, size), tree(cluster, gpus, size))


def step(work: Workload, cluster: Cluster, rhythm: Rhythm, gpus: int, share: float) -> Step:
    """Return what a step of `share` images on each GPU takes."""
    compute = work.fixed + share * work.image
    # Each is waited for by the layer that comes next: none hides behind another.
    norms = sum(all_reduce(cluster, gpus, size * channels) for size in work.norm_messages for channels in work.norms)
    gradients = max(0.0, all_reduce(cluster, gpus, work.gradients) - work.overlap * BACKWARD * compute)
    other = OTHER_MESSAGES * all_reduce(cluster, gpus, FLOAT)
    # A checkpoint is read again after it is written.
    checkpoint = 2 * work.state / cluster.storage
    validation = rhythm.validation_images / gpus * work.image
    between = checkpoint / rhythm.checkpoint_every + validation / rhythm.validate_every
    return Step(compute, norms, gradients, other, share / cluster.input_rate, between)


def shared_compute(wall: float, cpu: float, processes: int, cores: int) -> float:
    """Return the seconds of a step's computing in processes that share cores.

    One of them alone takes `wall` seconds and `cpu` of all cores; together they take at least what the cores have to
    do, and at least what one of them takes.
    """
    return max(wall, processes * cpu / cores)


def fit(sizes: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """Return (constant, seconds a byte), neither negative, that miss the measured seconds least, in relative terms."""
    # Least squares of (constant + slope * size) / seconds - 1.
    ones, slopes = [1 / each for each in seconds], [size / each for size, each in zip(sizes, seconds, strict=True)]
    aa, ab, bb = (sum(x * y for x, y in zip(*pair)) for pair in ((ones, ones), (ones, slopes), (slopes, slopes)))
    a, b = sum(ones), sum(slopes)
    determinant = aa * bb - ab * ab
    if determinant <= 0:
        return a / aa, 0.0
    constant, slope = (a * bb - b * ab) / determinant, (b * aa - a * ab) / determinant
    return (constant, slope) if min(constant, slope) >= 0 else (0.0, b / bb) if constant < 0 else (a / aa, 0.0)


def between(sizes: Sequence[float], seconds: Sequence[float], size: float) -> float:
    """Return the seconds of a message as large as `size`, on straight lines between the measured ones, in order.

    Smaller ones take as long as the smallest; larger ones continue the last line.
    """
    points = list(zip(sizes, seconds, strict=True))
    if size <= sizes[0]:
        return seconds[0]
    (left, before), (right, after) = next(
        (pair for pair in zip(points, points[1:]) if size <= pair[1][0]), points[-2:])
    return before + (after - before) * (size - left) / (right - left)
