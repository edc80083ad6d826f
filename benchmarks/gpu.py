"""Compare kseg's model code on JAX with plain PyTorch models of the same layers on a GPU.

    python -m benchmarks.gpu --out gpu.json --budget 540
    python -m benchmarks.gpu --device cpu --quick --heads fcn --peer-python PEER/bin/python

ResNet-50, output stride 8, auxiliary head, 19 classes, random weights. kseg's side needs JAX and Keras but no
TensorFlow, which it cannot even import; the peer's side needs PyTorch. A machine without Keras and without a package
index gets it as a folder, made elsewhere for the machine's version of Python:

    pip install --target PACKAGES --no-deps --only-binary=:all: --python-version 3.12 keras==3.15.1 namex optree
    PYTHONPATH=PACKAGES python -m benchmarks.gpu --out gpu.json --budget 540

Keras and namex are pure Python, optree is compiled. Their other dependencies (absl-py, h5py, ml-dtypes, numpy,
packaging, rich, typing-extensions) may have to come along. docs/performance.md describes the measurement.
"""

import argparse
import contextlib
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks import comparison
from benchmarks.gpu_process import CPU, GPU, PRECISIONS, TASKS, Work
from benchmarks.gpu_rows import KSEG, Row, checked, key, table, write
from benchmarks.heads import HEADS
from benchmarks.measured_process import ROOT

# System -> the module and the first arguments of its process.
PROCESSES = {
    KSEG: ["benchmarks.kseg_gpu"],
    "eager": ["benchmarks.peer_gpu", "eager"],
    "compiled": ["benchmarks.peer_gpu", "compiled"],
}
SIZES, QUICK_SIZES = "8x512x1024,16x512x512", "2x128x128"


def main() -> int:
    arguments = parse(sys.argv[1:])
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as caches:
        for row in measure(arguments, caches, time.monotonic()):
            rows.append(row)
            if arguments.out:
                write(arguments.out, rows, arguments.peak_tflops)
            outcome = row.reason or f"{statistics.median(row.rates()):.1f} images/s"
            print(f"{' '.join(key(row))}: {outcome}", file=sys.stderr, flush=True)
    print(table(rows, arguments.peak_tflops))
    return 0 if any(not row.reason for row in rows) else 1


def parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--peer-python", default=sys.executable, metavar="FILE", help="Python that has PyTorch (default: this one)"
    )
    parser.add_argument("--heads", default=",".join(HEADS), metavar="NAME,...", help=f"some of {', '.join(HEADS)}")
    parser.add_argument(
        "--systems",
        default=",".join(PROCESSES),
        metavar="NAME,...",
        help=f"some of {', '.join(PROCESSES)}; the last two are PyTorch's",
    )
    parser.add_argument(
        "--precisions",
        default="bfloat16,tf32",
        metavar="NAME,...",
        help=f"some of {', '.join(PRECISIONS)}; tf32 and float32 are float32 with and without "
        "TensorFloat-32 (default bfloat16,tf32)",
    )
    parser.add_argument("--sizes", metavar="NxHxW,...", help=f"batches (default {SIZES})")
    parser.add_argument("--device", choices=(GPU, CPU), default=GPU, help="cpu: only to try the script")
    parser.add_argument("--rounds", type=int, help="timed rounds (default 3)")
    parser.add_argument("--steps", type=int, help="steps of a round (default 10)")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_SIZES}, one round of one step")
    parser.add_argument(
        "--budget",
        type=float,
        default=math.inf,
        metavar="SECONDS",
        help="start no process that would not end in time, and end one that does not",
    )
    parser.add_argument(
        "--peak-tflops",
        default="",
        metavar="PRECISION=N,...",
        help="peak of the device in TFLOP/s, if it is not one of the known ones",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the results as JSON after every row")
    arguments = parser.parse_args(words)
    for name, choices in (("heads", HEADS), ("systems", PROCESSES), ("precisions", PRECISIONS)):
        setattr(arguments, name, parse_names(parser, name, getattr(arguments, name), choices))
    sizes = arguments.sizes or (QUICK_SIZES if arguments.quick else SIZES)
    arguments.sizes = [parse_size(parser, size) for size in sizes.split(",")]
    arguments.rounds = arguments.rounds if arguments.rounds is not None else 1 if arguments.quick else 3
    arguments.steps = arguments.steps if arguments.steps is not None else 1 if arguments.quick else 10
    comparison.require_positive(parser, arguments, "rounds", "steps")
    if not arguments.budget > 0:
        parser.error("--budget must be above 0")
    arguments.peak_tflops = parse_peaks(parser, arguments.peak_tflops)
    return arguments


def parse_names(parser: argparse.ArgumentParser, option: str, text: str, choices) -> list[str]:
    """Return the names in a comma-separated list; exits with a usage error for an unknown one."""
    names = text.split(",")
    for name in names:
        if name not in choices:
            parser.error(f"--{option}: no {name!r}; choices: {', '.join(choices)}")
    return names


def parse_size(parser: argparse.ArgumentParser, text: str) -> tuple[int, int, int]:
    """Return (N, H, W); exits with a usage error unless all three are positive and H and W are multiples of 8."""
    numbers = text.split("x")
    if len(numbers) != 3 or not all(number.isdecimal() and int(number) > 0 for number in numbers):
        parser.error(f"--sizes takes NxHxW, such as 8x512x1024; got {text!r}")
    batch, height, width = map(int, numbers)
    if height % 8 or width % 8:
        parser.error(f"--sizes: the height and the width of {text!r} must be multiples of 8")
    return batch, height, width


def parse_peaks(parser: argparse.ArgumentParser, text: str) -> dict[str, float]:
    """Return TFLOP/s by precision; exits with a usage error for an unknown precision or another value."""
    peaks = {}
    for part in text.split(",") if text else ():
        name, _, number = part.partition("=")
        with contextlib.suppress(ValueError):
            peaks[name] = float(number)
        if name not in PRECISIONS or not peaks.get(name, 0) > 0:
            parser.error(f"--peak-tflops takes PRECISION=N with a precision of {', '.join(PRECISIONS)}; got {part!r}")
    return peaks


def measure(arguments: argparse.Namespace, caches: str, begin: float) -> Iterator[Row]:
    """Yield all rows, one system of a head after the other.

    Precisions and sizes change last, so that a run that is cut off has compared all heads at one of them.
    """
    longest: dict[str, float] = {}
    for precision, size, head in itertools.product(arguments.precisions, arguments.sizes, arguments.heads):
        work = Work(head, *size, precision, arguments.device, arguments.rounds, arguments.steps)
        references: dict[str, Row] = {}
        for system in arguments.systems:
            started = time.monotonic()
            limit = begin + arguments.budget - started
            # The first process of a system is taken to need as long as the longest of another one.
            expected = longest.get(system, max(longest.values(), default=0.0))
            if limit <= expected:
                yield from (
                    Row(
                        work,
                        system,
                        task,
                        {},
                        f"missing: it may take {expected:.0f} s, and {max(limit, 0):.0f} s of --budget are left",
                    )
                    for task in TASKS
                )
                continue
            for row in measure_system(work, system, arguments.peer_python, caches, limit):
                if system == KSEG:
                    references[row.task] = row
                yield checked(row, references.get(row.task))
            longest[system] = max(longest.get(system, 0.0), time.monotonic() - started)


def measure_system(work: Work, system: str, peer_python: str, caches: str, limit: float) -> Iterator[Row]:
    """Yield a row per task of a system in a process, which ends after `limit` seconds."""
    module, *first = PROCESSES[system]
    python = sys.executable if system == KSEG else peer_python
    # Compiled packages brought for this version of Python would fail under another one.
    brought = os.environ.get("PYTHONPATH") if python == sys.executable else None
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), brought))),
        "KERAS_BACKEND": "jax",
        # Otherwise JAX would take most of the memory before it is needed.
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        # Compiled functions that initialize weights serve all processes of this run.
        "JAX_COMPILATION_CACHE_DIR": f"{caches}/jax",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "TORCHINDUCTOR_CACHE_DIR": f"{caches}/torch",
    }
    if work.device == CPU:
        environment |= {"CUDA_VISIBLE_DEVICES": "-1", "JAX_PLATFORMS": "cpu"}
    left = list(TASKS)
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        try:
            process = subprocess.Popen(
                [python, "-m", module, *first, *work.words()],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment,
            )
        except OSError as error:
            yield from (Row(work, system, task, {}, f"{python}: {error.strerror}") for task in left)
            return
        late = threading.Event()

        def stop() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(min(limit, threading.TIMEOUT_MAX), stop)
        timer.start()
        try:
            for line in process.stdout:
                results = json.loads(line)
                reason = results.pop("error", "")
                # An answer without a task is about all of them.
                for task in [results["task"]] if "task" in results else list(left):
                    left.remove(task)
                    yield Row(work, system, task, results, reason)
            process.wait()
        finally:
            timer.cancel()
            process.kill()
            process.wait()
            process.stdout.close()
        errors.seek(0)
        last_line = "".join([line.strip() for line in errors if line.strip()][-1:])
    reason = (
        "missing: ended by --budget" if late.is_set() else f"exited with status {process.returncode}: {last_line[:200]}"
    )
    yield from (Row(work, system, task, {}, reason) for task in left)


if __name__ == "__main__":
    sys.exit(main())
