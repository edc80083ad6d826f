"""Compare kseg's training step with MMSegmentation's for the same head, batch and update.

    python -m benchmarks.training --peer-python PEER/bin/python
    python -m benchmarks.training --peer-python PEER/bin/python --quick --heads encnet --xla

ResNet-50, output stride 8, auxiliary head, 19 classes, batch 2 of 256x256 (--batch, --quick), float32, random weights,
CPU. docs/performance.md describes the peer's environment and the measurement. If a peer cannot be measured, the reason
is printed.
"""

import argparse
import os
import statistics
import sys
from pathlib import Path

from benchmarks import comparison
from benchmarks.comparison import MIB, ModelRow
from benchmarks.heads import HEADS
from benchmarks.measured_process import MeasuredProcess, start

DEFAULT_HEADS = "encnet,deeplabv3plus"
KSEG = "kseg"
# Option -> name in the table of another form of kseg's step.
OPTIONAL_FORMS = {"xla": "kseg, jit_compile", "replicas": "kseg, two replicas"}
# Name in the table -> form of peer_training.
PEERS = {"MMSegmentation": "plain", "MMSegmentation, best": "best"}
SIZE, QUICK_SIZE, BATCH = 256, 128, 2
# With random weights, both systems' first losses are those of almost uniform probabilities.
LOSS_TOLERANCE = 0.1


def main() -> int:
    arguments = parse(sys.argv[1:])
    title = f"batch {arguments.batch} of {arguments.size}x{arguments.size}"
    return comparison.compare_models(arguments, title, measure_head, table)


def parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__.partition("\n")[0])
    parser.add_argument("--peer-python", metavar="FILE", help="Python of the peer's environment")
    parser.add_argument(
        "--heads",
        default=DEFAULT_HEADS,
        metavar="NAME,...",
        help=f"some of {', '.join(HEADS)} (default {DEFAULT_HEADS})",
    )
    parser.add_argument("--quick", action="store_true", help=f"use images of {QUICK_SIZE}x{QUICK_SIZE}")
    parser.add_argument("--batch", type=int, default=BATCH, help=f"images per step (default {BATCH})")
    parser.add_argument("--xla", action="store_true", help="also measure kseg's step with train.jit_compile")
    parser.add_argument(
        "--replicas", action="store_true", help="also measure kseg's step on two virtual devices that share the batch"
    )
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count(), help="threads of every system (default: the number of cores)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="turns of every system (default 5)")
    parser.add_argument("--steps", type=int, default=2, help="steps timed per turn (default 2)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the results of all rounds as JSON")
    arguments = parser.parse_args(words)
    arguments.heads = comparison.parse_heads(parser, arguments.heads, HEADS)
    arguments.size = QUICK_SIZE if arguments.quick else SIZE
    comparison.require_positive(parser, arguments, "batch", "threads", "rounds", "steps")
    return arguments


def measure_head(head: str, arguments: argparse.Namespace, reported: set[str]) -> list[ModelRow]:
    """Return a row per system; raises RuntimeError if kseg's step cannot be measured or the losses differ."""
    processes = {}
    try:
        processes[KSEG] = start_step(sys.executable, "kseg_training", head, "plain", arguments)
        for form, name in OPTIONAL_FORMS.items():
            if getattr(arguments, form):
                processes[name] = start_step(sys.executable, "kseg_training", head, form, arguments)
        for name, form in PEERS.items():
            process = comparison.start_or_report(
                name,
                lambda form=form: start_step(arguments.peer_python, "peer_training", head, form, arguments),
                reported,
            )
            if process:
                processes[name] = process
        kseg_loss = processes[KSEG].description["loss"]
        for name, process in processes.items():
            loss = process.description["loss"]
            if not abs(loss - kseg_loss) < LOSS_TOLERANCE * kseg_loss:
                raise RuntimeError(f"the first loss of {name} is {loss:.3f}, but kseg's is {kseg_loss:.3f}")
        return comparison.measure_models(head, processes, arguments.rounds, arguments.steps)
    finally:
        for process in processes.values():
            process.close()


def start_step(python: str | None, script: str, head: str, form: str, arguments: argparse.Namespace) -> MeasuredProcess:
    """Start a system's step; raises RuntimeError with the reason if it cannot work."""
    if not python:
        raise RuntimeError("no --peer-python")
    environment = {"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "2", "OMP_NUM_THREADS": str(arguments.threads)}
    return start(
        [
            python,
            "-m",
            f"benchmarks.{script}",
            str(arguments.threads),
            head,
            *map(str, (arguments.size, arguments.size, arguments.batch)),
            form,
        ],
        environment,
    )


def table(rows: list[ModelRow]) -> str:
    """Return the results as a Markdown table with the versions below."""
    peaks = {row.head: row.peak for row in rows if row.system == KSEG}
    lines = [
        "| head | system | s/step (min..max) | times kseg's | CPU s/step | times kseg's | peak MiB "
        "| kseg's peak / this | first step, s |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        ratio, cpu_ratio = comparison.ratio_cells(row, KSEG)
        lines.append(
            f"| {row.head} | {row.system} | {comparison.spread(row.seconds)} | {ratio} "
            f"| {statistics.median(row.cpu_seconds):.2f} | {cpu_ratio} | {row.peak / MIB:.0f} "
            f"| {peaks[row.head] / row.peak:.2f} | {row.description['first_seconds']:.1f} |"
        )
    return "\n".join([*lines, "", comparison.versions(rows)])


if __name__ == "__main__":
    sys.exit(main())
