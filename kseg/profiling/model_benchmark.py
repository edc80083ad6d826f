"""Measure the size of a model and its speed in each form of call, for `python -m kseg.benchmark model`.

Each form runs in a separate process, which isolates its memory. The forms take turns in alternating order, so that
other load on the machine affects all of them.
"""

import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from kseg.config.sections import Evaluate
from kseg.errors import ConfigError, UserError
from kseg.profiling.model_forms import Facts, Job, serve_facts, serve_form
from kseg.profiling.worker import Worker

PERCENTILES = (50, 90, 95, 99)


class MeasurementError(UserError):
    """No form of the model could be measured on this machine."""


@dataclass(frozen=True)
class Form:
    """Hold the figures of one form.

    rate: images/s, the median over the rounds.
    latencies: seconds per call by percentile ("p50", ...), over all calls.
    calls: number of calls.
    first_call: seconds of the first call, which includes tracing and compilation.
    peak_memory: largest resident memory of the process, bytes.
    device_memory: largest memory of tensors on the first GPU, bytes; None without a GPU.
    """

    name: str
    rate: float
    latencies: dict[str, float]
    calls: int
    first_call: float
    peak_memory: int
    device_memory: int | None


@dataclass(frozen=True)
class ModelFigures:
    """Hold the results of `measure_model`.

    size: (height, width) of the images.
    missing: the error of each form that could not be measured.
    """

    config: str
    size: tuple[int, int]
    batch: int
    precision: str
    facts: Facts
    forms: tuple[Form, ...]
    missing: dict[str, str]


def measure_model(
    job: Job,
    forms: Sequence[str] = ("eager", "compiled", "exported"),
    rounds: int = 5,
    seconds: float = 5.0,
    report: Callable[[str], None] = print,
) -> ModelFigures:
    """Measure a model with random weights.

    Images are fed to the network at their own size: of config.evaluate only resize_logits is used. Layers compute in
    config.train.precision. A form that fails is reported and skipped.

    Args:
        job: the model, the size of the images and the batch.
        forms: names of `model_forms.FORMS`.
        rounds: number of rounds. In each one every form runs for `seconds`, at least one call.
        seconds: duration of a form's turn.
        report: receives progress lines.

    Raises:
        ConfigError: A size or a number is below 1.
        MeasurementError: No form could be measured.
    """
    for name, value in (
        ("height", job.size[0]),
        ("width", job.size[1]),
        ("batch", job.batch),
        ("rounds", rounds),
        ("threads", 1 if job.threads is None else job.threads),
    ):
        if value < 1:
            raise ConfigError(f"{name} is {value}; it must be at least 1")
    job = replace(job, config=replace(job.config, evaluate=Evaluate(resize_logits=job.config.evaluate.resize_logits)))
    workers, first_calls, missing, results = {}, {}, {}, {}
    with tempfile.TemporaryDirectory(prefix="kseg-benchmark-") as directory:
        try:
            # The workers import TensorFlow while the model's facts are computed.
            workers = {name: Worker(serve_form, job, directory, name) for name in forms}
            facts = _compute_facts(job, directory)
            report(f"parameters counted and model exported; {facts.device}")
            for name in forms:
                if answer := _ask(workers, missing, name, None, report):
                    first_calls[name] = answer
                    report(f"{name}: first call {answer:.1f} s")
            for number in range(rounds):
                for name in list(workers)[:: -1 if number % 2 else 1]:
                    if answer := _ask(workers, missing, name, seconds, report):
                        results.setdefault(name, []).append(answer)
                report(
                    f"round {number + 1} of {rounds}: "
                    + ", ".join(
                        f"{name} {_rate(results[name][-1][0], job.batch):.2f} images/s"
                        for name in forms
                        if name in workers
                    )
                )
        finally:
            for worker in workers.values():
                worker.close()
    if not workers:
        raise MeasurementError("no form could be measured: " + "; ".join(f"{key}: {missing[key]}" for key in missing))
    measured = tuple(_form(name, first_calls[name], results[name], job.batch) for name in forms if name in workers)
    return ModelFigures(job.config.name, job.size, job.batch, job.config.train.precision, facts, measured, missing)


def _compute_facts(job: Job, directory: str) -> Facts:
    worker = Worker(serve_facts, job, directory)
    try:
        return worker.answer()
    except RuntimeError as error:
        raise MeasurementError(f"the model cannot be built, counted or exported: {error}") from None
    finally:
        worker.close()


def _ask(
    workers: dict[str, Worker], missing: dict[str, str], name: str, seconds: float | None, report: Callable[[str], None]
):
    """Return a form's answer to `seconds`; if it fails, report the error, stop the worker and return None."""
    try:
        return workers[name].ask(seconds)
    except RuntimeError as error:
        missing[name] = str(error)
        report(f"{name}: not measured: {error}")
        workers.pop(name).close()


def _rate(calls: list[float], batch: int) -> float:
    return batch * len(calls) / sum(calls)


def _form(name: str, first_call: float, rounds: list[tuple], batch: int) -> Form:
    """Summarize rounds of (seconds of the calls, peak memory, peak device memory)."""
    calls = [seconds for durations, _, _ in rounds for seconds in durations]
    latencies = {
        f"p{percentile}": float(value) for percentile, value in zip(PERCENTILES, np.percentile(calls, PERCENTILES))
    }
    rate = statistics.median(_rate(durations, batch) for durations, _, _ in rounds)
    return Form(name, rate, latencies, len(calls), first_call, rounds[-1][1], rounds[-1][2])


def model_table(figures: ModelFigures) -> str:
    """Format the figures as a table with one line per form."""
    facts = figures.facts
    versions = ", ".join(f"{name} {version}" for name, version in facts.versions.items())
    height, width = figures.size
    lines = [
        f"{figures.config}, {figures.batch} x {height}x{width}, {figures.precision}; {facts.device}; {versions}",
        f"parameters     {facts.parameters:,}, of which {facts.trainable:,} trainable; "
        f"the exported model has {facts.exported:,} in {facts.exported_bytes / 1e6:.1f} MB",
        f"multiply-adds  {facts.multiply_adds:,} per image, of convolutions and matrix products",
        f"{'form':10}{'images/s':>10}"
        + "".join(f"{f'p{percentile} ms':>10}" for percentile in PERCENTILES)
        + f"{'calls':>7}{'first call s':>14}{'peak MiB':>10}{'GPU MiB':>12}",
    ]
    for form in figures.forms:
        on_gpu = "" if form.device_memory is None else f"{form.device_memory / 2**20:.0f}"
        lines.append(
            f"{form.name:10}{form.rate:10.2f}"
            + "".join(f"{1000 * seconds:10.1f}" for seconds in form.latencies.values())
            + f"{form.calls:7}{form.first_call:14.1f}{form.peak_memory / 2**20:10.0f}{on_gpu:>12}".rstrip()
        )
    return "\n".join([*lines, *(f"{name}: not measured: {reason}" for name, reason in figures.missing.items())])
