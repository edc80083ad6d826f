"""Where a training step's time goes on this machine: `python -m kseg.train --config NAME --explain`.

The compiled step works on the config's own batches while TensorFlow's profiler writes down which operation ran when.
kseg.profiling.trace_shares puts the wall time down to them. Tried on CPUs; the profiler's form for GPUs is read as well, but no
GPU was at hand to try it.
"""

import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import keras
import tensorflow as tf
from tensorflow.tsl.profiler.protobuf import xplane_pb2

from kseg.config import Config
from kseg.datasets import registry, sources
from kseg.datasets.registry import Split
from kseg.distributed import devices, hosts
from kseg.input_pipeline.batch_reader import BatchReader
from kseg.models.macs import count_macs
from kseg.models.norms import BatchNormalization
from kseg.profiling import operation_kinds, traces
from kseg.profiling.operation_kinds import EXCHANGE, MULTIPLYING
from kseg.profiling.trace_shares import BETWEEN, MEASURED, OUTSIDE, WAIT, Trace, attribute_time
from kseg.training import trainer
from kseg.training.step import Steps

# As many steps as any measurement may take.
ENDLESS = 10**6
WARM_UP = 2
# (batch, side, channels) of the plain 3x3 convolution that shows what a device reaches, and seconds to find out.
PLAIN = {"CPU": (1, 64, 512), "GPU": (32, 64, 512)}
PLAIN_SECONDS = 1.0


@dataclass(frozen=True)
class Explanation:
    """What `explain` found.

    `device` is such as "2 x GPU"; `seconds` are a step's without the profiler, the median over calls; `cores_used` of
    the `cores` this process kept busy meanwhile. `multiply_adds` are the forward pass's over the global
    batch. Rates are in GFLOP/s of a device, two for a multiply-add: `rate` of the step, its gradients counted as two
    more forward passes; `multiplying_rate` of the time in which convolutions and products run, None where the trace
    names none; `plain_rate` of a large convolution on its own.
    """

    config: str
    device: str
    precision: str
    batch: int
    replicas: int
    size: tuple[int, int]
    seconds: float
    images_per_second: float
    cores_used: float
    cores: int
    multiply_adds: int
    rate: float
    multiplying_rate: float | None
    plain_rate: float
    trace: Trace
    advice: tuple[str, ...]


def explain_step_time(config: Config, strategy: tf.distribute.Strategy, report: Callable[[str], None] = print,
                      steps: int = 5) -> Explanation:
    """Take `steps` training steps and as many under the profiler, and return where their time goes.

    On several hosts all take part, and each explains its own. Nothing is kept. Raises the UserErrors of building and
    reading, and TraceError where the profiler saw no operation.
    """
    config = replace(config, train=replace(config.train, steps=ENDLESS))
    report(devices.device_line())
    report(trainer.batch_line(config.train, strategy.num_replicas_in_sync))
    split = registry.open_split(config.data, config.data.train_split)
    model, optimizer, take = _training(config, split, strategy, report)
    each = config.train.steps_per_call
    calls = -(-steps // each)
    started = time.perf_counter()
    for _ in range(WARM_UP):
        take()
    kind = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
    plain_rate = _plain_rate(kind, model.compute_dtype)
    report(f"compiled and warmed up in {time.perf_counter() - started:.0f} s; measuring {2 * calls * each} steps")
    seconds, cores_used = _timed(take, calls)
    seconds /= each
    space = _traced(take, calls)
    norms = {layer.name for layer in model.layers if isinstance(layer, BatchNormalization)}
    trace = attribute_time(space, calls * each, lambda operation: operation_kinds.purpose(operation, optimizer, norms))
    size = tuple(config.augment.crop)
    adds = count_macs(model, (config.train.global_batch, *size, 3))
    device_count = strategy.num_replicas_in_sync if kind == "GPU" else hosts.num_hosts(strategy)
    work = 6 * adds / device_count / 1e9
    multiplying = sum(row.seconds for row in trace.kinds if row.name in MULTIPLYING)
    found = Explanation(
        config.name, devices.devices_line(strategy), config.train.precision, config.train.global_batch,
        strategy.num_replicas_in_sync, size, seconds, config.train.global_batch / seconds, cores_used,
        len(os.sched_getaffinity(0)), adds, work / seconds, work / multiplying if multiplying else None,
        # Before and after, since others may be at work on this machine.
        max(plain_rate, _plain_rate(kind, model.compute_dtype)), trace, ())
    return replace(found, advice=tuple(step_advice(found, config, split)))


def _training(config: Config, split: Split, strategy: tf.distribute.Strategy,
              report: Callable[[str], None]) -> tuple[keras.Model, str, Callable[[], None]]:
    """Return a config's model, its optimizer's name and a function that takes the steps of one call as a run does."""
    # It builds on this module.
    from kseg.training.trainer import build_training

    with strategy.scope():
        model, optimizer, average = build_training(config, len(split.dataset.classes), report)
    steps = Steps(model, optimizer, config, strategy, average)
    reader = BatchReader(config, split, None, strategy, report)
    count = config.train.steps_per_call

    def take() -> None:
        step = int(optimizer.iterations.numpy())
        try:
            steps.take(reader.batches(step, count), count).losses.numpy()
        except tf.errors.OpError as error:
            if "GetNext" not in str(error):
                raise
            reader.note(int(optimizer.iterations.numpy()), error)
            take()

    return model, optimizer.name, take


def _timed(take: Callable[[], None], calls: int) -> tuple[float, float]:
    """Return the seconds of a call, the median, and how many cores the process kept busy meanwhile."""
    cpu, marks = time.process_time(), [time.perf_counter()]
    for _ in range(calls):
        take()
        marks.append(time.perf_counter())
    return (statistics.median(after - before for before, after in itertools.pairwise(marks)),
            (time.process_time() - cpu) / (marks[-1] - marks[0]))


def _traced(take: Callable[[], None], calls: int) -> xplane_pb2.XSpace:
    """Return the profiler's trace of some calls, which stand in its event MEASURED."""
    with tempfile.TemporaryDirectory(prefix="kseg-trace-") as directory:
        tf.profiler.experimental.start(directory)
        try:
            with tf.profiler.experimental.Trace(MEASURED):
                for _ in range(calls):
                    take()
        finally:
            tf.profiler.experimental.stop()
        return traces.read_trace(Path(directory))


def _plain_rate(kind: str, dtype: str) -> float:
    """Return the GFLOP/s that a large 3x3 convolution reaches on a device, the best of a second's calls."""
    batch, side, channels = PLAIN[kind]
    with tf.device(f"{kind}:0"):
        images = tf.random.normal((batch, side, side, channels), dtype=dtype)
        kernel = tf.random.normal((3, 3, channels, channels), dtype=dtype)
    # A sum, so that there is nothing to copy back, and its number is there when the convolution has ended.
    convolve = tf.function(lambda: tf.reduce_sum(tf.nn.conv2d(images, kernel, 1, "SAME")))
    convolve().numpy()
    begun, best = time.perf_counter(), float("inf")
    while time.perf_counter() - begun < PLAIN_SECONDS:
        started = time.perf_counter()
        convolve().numpy()
        best = min(best, time.perf_counter() - started)
    return 2 * batch * side**2 * 9 * channels**2 / best / 1e9


def step_advice(found: Explanation, config: Config, split: Split) -> list[str]:
    """Return what would help most, one or two lines."""
    shares = {row.name: row.share for row in found.trace.phases}
    lines = []
    if shares[WAIT] >= 0.1:
        lines.append((shares[WAIT], f"input: the step waits {shares[WAIT]:.0%} of its time; {_about_input(config.name, split)}"))
    if shares[OUTSIDE] >= 0.03:
        lines.append((shares[OUTSIDE], f"Python: {shares[OUTSIDE]:.0%} of the time passes between calls; raise "
                                       f"train.steps_per_call={config.train.steps_per_call}"))
    if shares.get(EXCHANGE, 0) >= 0.1:
        lines.append((shares[EXCHANGE], f"replicas wait {shares[EXCHANGE]:.0%} of the time for each other: larger "
                      "shares of the batch, a faster network, or train.accumulate make that rarer"))
    if shares[BETWEEN] >= 0.15:
        lines.append((shares[BETWEEN], f"in {shares[BETWEEN]:.0%} of the time nothing runs: operations are too small "
                                       "for this device; raise train.global_batch, or try train.jit_compile=true"))
    # While nothing runs, cores have nothing to do.
    expected = found.cores * (1 - sum(shares.get(name, 0) for name in (WAIT, EXCHANGE, BETWEEN, OUTSIDE)))
    if "GPU" not in found.device and found.cores_used < 0.7 * expected:
        lines.append((1 - found.cores_used / expected, f"only {found.cores_used:.1f} of {found.cores} cores are at "
                      "work while operations run: something else takes them, or the batch is too small to keep them "
                      "busy"))
    rate = found.multiplying_rate
    if rate and not lines:
        share = sum(row.share for row in found.trace.kinds if row.name in MULTIPLYING)
        lines.append((0, f"convolutions and products take {share:.0%} of the time, at {rate / found.plain_rate:.0%} of "
                         "what a large convolution reaches here; " + _about_work(found, config, rate)))
    return [line for _, line in sorted(lines, key=lambda each: -each[0])[:2]]


def _about_input(config_name: str, split: Split) -> str:
    """Return what may make the input of a config faster."""
    name = split.dataset.name
    fast = f"; `python -m kseg.data prepare {name} --fast` stores pixels, which decode at once" \
        if name in sources.SOURCES and not split.is_pixels else ""
    return f"`python -m kseg.benchmark data --config {config_name}` tells which of its stages limits it{fast}"


def _about_work(found: Explanation, config: Config, rate: float) -> str:
    """Return what may make the convolutions themselves faster."""
    if rate < 0.6 * found.plain_rate:
        return "a larger share of the batch for each device, or a larger augment.crop, would use it better"
    if "GPU" in found.device and config.train.precision == "float32":
        return "train.precision=mixed_bfloat16, or train.tensor_float_32=true, make them faster"
    return "more devices, or fewer multiply-adds (model.output_stride=16, a smaller augment.crop) make a step faster"


def step_time_table(found: Explanation) -> str:
    """Return the figures as text."""
    trace, (height, width) = found.trace, found.size
    lines = [
        f"{found.config}, {found.batch} x {height}x{width}, {found.precision}, {found.device}: "
        f"{1000 * found.seconds:.1f} ms a step, {found.images_per_second:.2f} images/s, "
        f"{found.cores_used:.1f} of {found.cores} cores busy",
        f"{1000 * trace.seconds:.1f} ms a step under the profiler, shared out below: an instant in which several "
        "operations run is divided among them; summed, each counts it in full",
        "", f"{'':34}{'ms':>10}{'share':>8}{'operations':>12}{'summed ms':>11}"]
    for rows in (trace.phases, trace.kinds):
        lines += [f"{row.name:34}{1000 * row.seconds:10.1f}{row.share:8.1%}"
                  + (f"{row.operations:12.0f}{1000 * row.operation_seconds:11.1f}" if row.operations else "")
                  for row in rows]
        lines += [f"{'sum':34}{1000 * sum(row.seconds for row in rows):10.1f}{sum(row.share for row in rows):8.1%}", ""]
    lines.append(f"{'':34}{'ms':>10}{'share':>8}{'forward':>12}{'backward':>11}")
    for part in trace.parts:
        seconds = part.forward + part.backward + part.other
        lines.append(f"{part.name:34}{1000 * seconds:10.1f}{part.share:8.1%}" + (
            f"{1000 * part.forward:12.1f}{1000 * part.backward:11.1f}" if part.forward or part.backward else ""))
    lines.append(f"{'sum':34}{1000 * sum(part.share for part in trace.parts) * trace.seconds:10.1f}"
                 f"{sum(part.share for part in trace.parts):8.1%}")
    multiplying = "" if found.multiplying_rate is None else \
        f"{found.multiplying_rate:.3g} while convolutions and products run; "
    lines += [
        "", f"tf.data's threads work {1000 * trace.ahead_seconds:.1f} ms a step beside it, on later batches",
        f"{found.multiply_adds / 1e9:.3g} G multiply-adds forward, three times as many a step: {found.rate:.3g} "
        f"GFLOP/s of a device; {multiplying}a large convolution alone reaches {found.plain_rate:.3g}"]
    return "\n".join([*lines, *found.advice])
