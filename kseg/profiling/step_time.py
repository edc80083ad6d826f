"""Measure where the time of a training step goes: `python -m kseg.train --config NAME --explain`.

The compiled step runs on the config's batches while TensorFlow's profiler records its operations, and
kseg.profiling.time_attribution divides the wall time among them. This has been run on CPUs only: traces of GPUs are
read as well, but no GPU was available to try it on.
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
from kseg.profiling import traces
from kseg.profiling.operation_purpose import EXCHANGE, operation_purpose
from kseg.profiling.time_attribution import BETWEEN, MEASURED, OUTSIDE, WAIT, Trace, attribute_time
from kseg.training import trainer
from kseg.training.step import Steps

# More steps than any measurement takes.
ENDLESS = 10**6
WARM_UP = 2
# (batch, side, channels) of a single 3x3 convolution that shows what a device can reach, and the seconds to measure it.
REFERENCE = {"CPU": (1, 64, 512), "GPU": (32, 64, 512)}
REFERENCE_SECONDS = 1.0


@dataclass(frozen=True)
class StepTime:
    """Hold the results of `explain_step_time`.

    Rates are in GFLOP/s per device and count a multiply-add as two operations.

    config: name of the config.
    device: such as "2 x GPU".
    precision: what layers compute in.
    batch: size of the global batch.
    replicas: number of replicas.
    size: (height, width) of the crops.
    seconds: seconds per step without the profiler, the median over calls.
    images_per_second: of the global batch.
    cores_used, cores: cores that this process kept busy, and cores available to it.
    multiply_adds: multiply-adds of the forward pass of the global batch.
    rate: rate of the step, with its gradients counted as two more forward passes.
    multiplying_rate: rate during convolutions and matrix products; None if the trace names none.
    reference_rate: rate of a single large convolution.
    trace: the step's time by phase and by part of the model.
    advice: one or two sentences, or none.
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
    reference_rate: float
    trace: Trace
    advice: tuple[str, ...]


def explain_step_time(
    config: Config, strategy: tf.distribute.Strategy, report: Callable[[str], None] = print, steps: int = 5
) -> StepTime:
    """Measure where the time of a training step goes.

    `steps` steps are timed, and as many are recorded by the profiler. No result of training is kept. All hosts must
    call this function, and each one measures its own steps.

    Raises:
        UserError: The model cannot be built or the data cannot be read.
        TraceError: The profiler recorded no operation.
    """
    config = replace(config, train=replace(config.train, steps=ENDLESS))
    report(devices.device_line())
    report(trainer.batch_line(config.train, strategy.num_replicas_in_sync))
    split = registry.open_split(config.data, config.data.train_split)
    model, optimizer, take_steps = _build_training(config, split, strategy, report)
    steps_per_call = config.train.steps_per_call
    calls = -(-steps // steps_per_call)
    started = time.perf_counter()
    for _ in range(WARM_UP):
        take_steps()
    kind = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
    reference_rate = _reference_rate(kind, model.compute_dtype)
    report(
        f"compiled and warmed up in {time.perf_counter() - started:.0f} s; measuring {2 * calls * steps_per_call} steps"
    )
    seconds, cores_used = _time_calls(take_steps, calls)
    seconds /= steps_per_call
    trace = attribute_time(
        _record_calls(take_steps, calls),
        calls * steps_per_call,
        lambda operation: operation_purpose(operation, optimizer),
    )
    size = tuple(config.augment.crop)
    multiply_adds = count_macs(model, (config.train.global_batch, *size, 3))
    device_count = strategy.num_replicas_in_sync if kind == "GPU" else hosts.num_hosts(strategy)
    gigaflops = 6 * multiply_adds / device_count / 1e9
    result = StepTime(
        config.name,
        devices.devices_line(strategy),
        config.train.precision,
        config.train.global_batch,
        strategy.num_replicas_in_sync,
        size,
        seconds,
        config.train.global_batch / seconds,
        cores_used,
        len(os.sched_getaffinity(0)),
        multiply_adds,
        gigaflops / seconds,
        gigaflops / trace.multiplying_seconds if trace.multiplying_seconds else None,
        # Measured before and after the steps, because other processes may use the machine at either time.
        max(reference_rate, _reference_rate(kind, model.compute_dtype)),
        trace,
        (),
    )
    return replace(result, advice=tuple(step_advice(result, config, split)))


def _build_training(
    config: Config, split: Split, strategy: tf.distribute.Strategy, report: Callable[[str], None]
) -> tuple[keras.Model, str, Callable[[], None]]:
    """Return the model, the name of the optimizer and a function that takes the steps of one call."""
    with strategy.scope():
        model, optimizer, ema = trainer.build_training(config, len(split.dataset.classes), report)
    steps = Steps(model, optimizer, config, strategy, ema)
    reader = BatchReader(config, split, None, strategy, report)
    count = config.train.steps_per_call

    def take_steps() -> None:
        step = int(optimizer.iterations.numpy())
        try:
            steps.take(reader.batches(step, count), count).losses.numpy()
        except tf.errors.OpError as error:
            if "GetNext" not in str(error):
                raise
            reader.handle_failure(int(optimizer.iterations.numpy()), error)
            take_steps()

    return model, optimizer.name, take_steps


def _time_calls(take_steps: Callable[[], None], calls: int) -> tuple[float, float]:
    """Return the median seconds of a call and the number of cores that the process kept busy."""
    cpu, marks = time.process_time(), [time.perf_counter()]
    for _ in range(calls):
        take_steps()
        marks.append(time.perf_counter())
    return (
        statistics.median(after - before for before, after in itertools.pairwise(marks)),
        (time.process_time() - cpu) / (marks[-1] - marks[0]),
    )


def _record_calls(take_steps: Callable[[], None], calls: int) -> xplane_pb2.XSpace:
    """Return the profiler's trace of some calls, which are inside the event MEASURED."""
    with tempfile.TemporaryDirectory(prefix="kseg-trace-") as directory:
        tf.profiler.experimental.start(directory)
        try:
            with tf.profiler.experimental.Trace(MEASURED):
                for _ in range(calls):
                    take_steps()
        finally:
            tf.profiler.experimental.stop()
        return traces.read_trace(Path(directory))


def _reference_rate(kind: str, dtype: str) -> float:
    """Return the GFLOP/s of a large 3x3 convolution on the device, the best of the calls of a second."""
    batch, side, channels = REFERENCE[kind]
    with tf.device(f"{kind}:0"):
        images = tf.random.normal((batch, side, side, channels), dtype=dtype)
        kernel = tf.random.normal((3, 3, channels, channels), dtype=dtype)
    # Reading the sum waits for the convolution and copies a single number.
    convolve = tf.function(lambda: tf.reduce_sum(tf.nn.conv2d(images, kernel, 1, "SAME")))
    convolve().numpy()
    begin, best = time.perf_counter(), float("inf")
    while time.perf_counter() - begin < REFERENCE_SECONDS:
        started = time.perf_counter()
        convolve().numpy()
        best = min(best, time.perf_counter() - started)
    return 2 * batch * side**2 * 9 * channels**2 / best / 1e9


def step_advice(result: StepTime, config: Config, split: Split) -> list[str]:
    """Return the one or two changes that would help most, or none."""
    fractions = {phase.name: phase.fraction for phase in result.trace.phases}
    waiting, outside, between = (fractions[name] for name in (WAIT, OUTSIDE, BETWEEN))
    exchanging = fractions.get(EXCHANGE, 0)
    lines = []
    if waiting >= 0.1:
        lines.append(
            (waiting, f"input: the step waits {waiting:.0%} of its time; " + _input_advice(config.name, split))
        )
    if outside >= 0.03:
        lines.append(
            (
                outside,
                f"Python: {outside:.0%} of the time passes between calls; raise "
                f"train.steps_per_call={config.train.steps_per_call}",
            )
        )
    if exchanging >= 0.1:
        lines.append(
            (
                exchanging,
                f"replicas wait {exchanging:.0%} of the time for each other; a larger batch for each "
                "replica, a faster network, or train.accumulate would reduce that",
            )
        )
    if between >= 0.15:
        lines.append(
            (
                between,
                f"nothing runs in {between:.0%} of the time: operations are too small for this device; "
                "raise train.global_batch" + (", or try train.jit_compile=true" if result.replicas == 1 else ""),
            )
        )
    # Cores are expected to be idle while no operation runs.
    expected = result.cores * (1 - waiting - exchanging - between - outside)
    if "GPU" not in result.device and result.cores_used < 0.7 * expected:
        lines.append(
            (
                1 - result.cores_used / expected,
                f"only {result.cores_used:.1f} of {result.cores} cores are "
                "busy while operations run: other processes use them, or the batch is too small to keep them "
                "busy",
            )
        )
    if result.multiplying_rate and not lines:
        lines.append(
            (
                0,
                f"convolutions and matrix products take "
                f"{result.trace.multiplying_seconds / result.trace.seconds:.0%} of the time, at "
                f"{result.multiplying_rate / result.reference_rate:.0%} of the rate of a single large "
                "convolution; " + _computation_advice(result, config),
            )
        )
    return [line for _, line in sorted(lines, key=lambda weighted: -weighted[0])[:2]]


def _input_advice(config_name: str, split: Split) -> str:
    name = split.dataset.name
    fast = (
        f"; `python -m kseg.data prepare {name} --fast` stores pixels that need no decoding"
        if name in sources.SOURCES and not split.is_pixels
        else ""
    )
    return f"`python -m kseg.benchmark data --config {config_name}` finds the stage that limits it{fast}"


def _computation_advice(result: StepTime, config: Config) -> str:
    if result.multiplying_rate < 0.6 * result.reference_rate:
        return "a larger batch for each device, or a larger augment.crop, would use the device better"
    if "GPU" in result.device and config.train.precision == "float32":
        return "train.precision=mixed_bfloat16 or train.tensor_float_32=true would make them faster"
    return (
        "more devices, or fewer multiply-adds (model.output_stride=16, a smaller augment.crop), would make a step "
        "faster"
    )


def step_time_table(result: StepTime) -> str:
    """Format the results as text."""
    trace, (height, width) = result.trace, result.size
    lines = [
        f"{result.config}, {result.batch} x {height}x{width}, {result.precision}, {result.device}: "
        f"{1000 * result.seconds:.1f} ms a step, {result.images_per_second:.2f} images/s, "
        f"{result.cores_used:.1f} of {result.cores} cores busy",
        f"{1000 * trace.seconds:.1f} ms a step under the profiler, divided below. An instant with several running "
        'operations is divided among them; "summed ms" counts each of them in full.',
        "",
        f"{'':34}{'ms':>10}{'fraction':>10}{'operations':>12}{'summed ms':>11}",
    ]
    lines += [
        f"{phase.name:34}{1000 * phase.seconds:10.1f}{phase.fraction:10.1%}"
        + (f"{phase.operations:12.0f}{1000 * phase.operation_seconds:11.1f}" if phase.operations else "")
        for phase in trace.phases
    ]
    lines += [_sum_line(trace, trace.phases), "", f"{'':34}{'ms':>10}{'fraction':>10}{'forward':>12}{'backward':>11}"]
    lines += [
        f"{part.name:34}{1000 * (part.forward + part.backward + part.other):10.1f}{part.fraction:10.1%}"
        + (f"{1000 * part.forward:12.1f}{1000 * part.backward:11.1f}" if part.forward or part.backward else "")
        for part in trace.parts
    ]
    multiplying = (
        ""
        if result.multiplying_rate is None
        else f"{result.multiplying_rate:.3g} during convolutions and matrix products, "
    )
    lines += [
        _sum_line(trace, trace.parts),
        "",
        f"threads of tf.data work {1000 * trace.prefetch_seconds:.1f} ms a step in parallel, on later batches",
        f"{result.multiply_adds / 1e9:.3g} G multiply-adds forward, three times as many in a step: {result.rate:.3g} "
        f"GFLOP/s per device, {multiplying}{result.reference_rate:.3g} in a single large convolution",
    ]
    return "\n".join([*lines, *result.advice])


def _sum_line(trace: Trace, rows: tuple) -> str:
    total = sum(row.fraction for row in rows)
    return f"{'sum':34}{1000 * total * trace.seconds:10.1f}{total:10.1%}"
