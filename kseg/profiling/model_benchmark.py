"""How large a model is and how fast it is in each form it is called in, for `python -m kseg.benchmark model`.

Every form works in a process of its own, so that its memory is its own, and only in its turn; the turns alternate, so
that what else the machine does meets all of them.
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
    """One form's figures: images/s, the median over the rounds; latencies in seconds a call by percentile, over all
    calls; seconds of the first call, with all tracing and compiling; the process's largest resident memory and, where
    there is a GPU, the largest memory of its tensors there, bytes."""

    name: str
    rate: float
    latencies: dict[str, float]
    calls: int
    first_call: float
    peak_memory: int
    device_memory: int | None


@dataclass(frozen=True)
class ModelFigures:
    """What `measure_model` found; `missing` says by form why it could not be measured."""

    config: str
    size: tuple[int, int]
    batch: int
    precision: str
    facts: Facts
    forms: tuple[Form, ...]
    missing: dict[str, str]


def measure_model(job: Job, forms: Sequence[str] = ("eager", "compiled", "exported"), rounds: int = 5,
                  seconds: float = 5.0, report: Callable[[str], None] = print) -> ModelFigures:
    """Measure a model with random weights, `rounds` rounds in which each form works for `seconds`, or one call.

    A picture is the network's input as it is: of config.evaluate only resize_logits counts. Layers compute in
    config.train.precision. A form that fails is reported and left out. Raises ConfigError for sizes or numbers below 1;
    MeasurementError where no form is left.
    """
    for name, value in (("height", job.size[0]), ("width", job.size[1]), ("batch", job.batch), ("rounds", rounds),
                        ("threads", 1 if job.threads is None else job.threads)):
        if value < 1:
            raise ConfigError(f"{name} is {value}; it must be at least 1")
    job = replace(job, config=replace(job.config, evaluate=Evaluate(resize_logits=job.config.evaluate.resize_logits)))
    workers, first, missing, done = {}, {}, {}, {}
    with tempfile.TemporaryDirectory(prefix="kseg-benchmark-") as directory:
        try:
            # They import while the model is counted.
            workers = {name: Worker(serve_form, job, directory, name) for name in forms}
            facts = _ask_facts(job, directory)
            report(f"counted and exported; {facts.device}")
            for name in forms:
                if answer := _ask(workers, missing, name, None, report):
                    first[name] = answer
                    report(f"{name}: first call {answer:.1f} s")
            for number in range(rounds):
                for name in list(workers)[::-1 if number % 2 else 1]:
                    if answer := _ask(workers, missing, name, seconds, report):
                        done.setdefault(name, []).append(answer)
                report(f"round {number + 1} of {rounds}: " + ", ".join(
                    f"{name} {_rate(done[name][-1][0], job.batch):.2f} images/s" for name in forms if name in workers))
        finally:
            for worker in workers.values():
                worker.close()
    if not workers:
        raise MeasurementError("no form could be measured: " + "; ".join(f"{key}: {missing[key]}" for key in missing))
    return ModelFigures(job.config.name, job.size, job.batch, job.config.train.precision, facts,
                        tuple(_form(name, first[name], done[name], job.batch) for name in forms if name in workers),
                        missing)


def _ask_facts(job: Job, directory: str) -> Facts:
    worker = Worker(serve_facts, job, directory)
    try:
        return worker.answer()
    except RuntimeError as error:
        raise MeasurementError(f"the model cannot be built, counted or exported: {error}") from None
    finally:
        worker.close()


def _ask(workers: dict[str, Worker], missing: dict[str, str], name: str, seconds: float | None,
         report: Callable[[str], None]):
    """Return a form's answer to `seconds`; where it fails, tell why, end it and return None."""
    try:
        return workers[name].ask(seconds)
    except RuntimeError as error:
        missing[name] = str(error)
        report(f"{name}: not measured: {error}")
        workers.pop(name).close()


def _rate(calls: list[float], batch: int) -> float:
    return batch * len(calls) / sum(calls)


def _form(name: str, first_call: float, rounds: list[tuple], batch: int) -> Form:
    """Return the figures of one form's rounds, each its calls' seconds and the peaks of memory after it."""
    calls = [seconds for done, _, _ in rounds for seconds in done]
    latencies = {f"p{each}": float(value) for each, value in zip(PERCENTILES, np.percentile(calls, PERCENTILES))}
    rate = statistics.median(_rate(done, batch) for done, _, _ in rounds)
    return Form(name, rate, latencies, len(calls), first_call, rounds[-1][1], rounds[-1][2])


def model_table(figures: ModelFigures) -> str:
    """Return the figures as text, one line a form."""
    facts = figures.facts
    versions = ", ".join(f"{name} {version}" for name, version in facts.versions.items())
    height, width = figures.size
    lines = [
        f"{figures.config}, {figures.batch} x {height}x{width}, {figures.precision}; {facts.device}; {versions}",
        f"parameters     {facts.parameters:,}, of which {facts.trainable:,} trainable; "
        f"the exported model keeps {facts.exported:,} in {facts.exported_bytes / 1e6:.1f} MB",
        f"multiply-adds  {facts.multiply_adds:,} an image: convolutions and matrix products, each multiply-add once",
        f"{'form':10}{'images/s':>10}" + "".join(f"{f'p{each} ms':>10}" for each in PERCENTILES)
        + f"{'calls':>7}{'first call s':>14}{'peak MiB':>10}{'on the GPU':>12}"]
    for form in figures.forms:
        on_gpu = "" if form.device_memory is None else f"{form.device_memory / 2**20:.0f}"
        lines.append(f"{form.name:10}{form.rate:10.2f}"
                     + "".join(f"{1000 * seconds:10.1f}" for seconds in form.latencies.values())
                     + f"{form.calls:7}{form.first_call:14.1f}{form.peak_memory / 2**20:10.0f}{on_gpu:>12}".rstrip())
    return "\n".join([*lines, *(f"{name}: not measured: {reason}" for name, reason in figures.missing.items())])
