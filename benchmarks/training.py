"""kseg's training step beside MMSegmentation's with the same head, batch and update, in turn, one machine.

    python -m benchmarks.training --peer-python PEER/bin/python
    python -m benchmarks.training --peer-python PEER/bin/python --quick --heads encnet --xla

ResNet-50, output stride 8, auxiliary head, 19 classes, batch 2 of 256x256 (--batch, --quick), float32, random weights,
CPU; README.md beside this file says how to make the peer's environment. A peer that cannot be measured is told and left out.
"""

import argparse
import json
import os
import statistics
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.heads import HEADS, MIB, ROOT, measure, processor
from benchmarks.measured_process import MeasuredProcess, Round, start

DEFAULT_HEADS = "encnet,deeplabv3plus"
KSEG = "kseg"
# What else of kseg is measured where an option asks for it.
OTHERS = {"xla": "kseg, jit_compile", "replicas": "kseg, two replicas"}
PEERS = {"MMSegmentation": "plain", "MMSegmentation, best": "best"}
SIZE, QUICK_SIZE, BATCH = 256, 128, 2
# The first losses of both systems' random weights are those of nearly even odds.
LOSS_TOLERANCE = 0.1


@dataclass(frozen=True)
class Row:
    """One system's figures for one head: seconds a step in each round and of CPU time, and the medians of their ratios
    to kseg's in the same round; the most bytes resident; seconds that the first step took.
    """

    head: str
    system: str
    seconds: list[float]
    ratio: float
    cpu_seconds: list[float]
    cpu_ratio: float
    peak: int
    first_seconds: float
    versions: dict[str, str]


def main() -> int:
    arguments = parse(sys.argv[1:])
    print(f"{processor()}, {arguments.threads} of {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; "
          f"batch {arguments.batch} of {arguments.size}x{arguments.size}")
    rows, told = [], set()
    try:
        for head in arguments.heads:
            rows += measure_head(head, arguments, told)
            if arguments.out:
                arguments.out.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n", encoding="utf-8")
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(table(rows))
    print(f"load at the end {os.getloadavg()[0]:.1f}, of which {arguments.threads} or less are these processes'")
    return 0


def parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measures kseg's training step beside MMSegmentation's.")
    parser.add_argument("--peer-python", metavar="FILE", help="the Python that has the peer; see README.md")
    parser.add_argument("--heads", default=DEFAULT_HEADS, metavar="NAME,...",
                        help=f"some of {', '.join(HEADS)} (default {DEFAULT_HEADS})")
    parser.add_argument("--quick", action="store_true", help=f"pictures of {QUICK_SIZE}x{QUICK_SIZE}")
    parser.add_argument("--batch", type=int, default=BATCH, help=f"pictures in a step (default {BATCH})")
    parser.add_argument("--xla", action="store_true", help="measure kseg's step with train.jit_compile too")
    parser.add_argument("--replicas", action="store_true",
                        help="measure kseg's step on two virtual devices that share the batch too")
    parser.add_argument("--threads", type=int, default=os.cpu_count(),
                        help="of each system (default: one for each core)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds in which each system has its turn (default 5)")
    parser.add_argument("--steps", type=int, default=2, help="steps timed in a round (default 2)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the figures of every round there as JSON too")
    arguments = parser.parse_args(words)
    arguments.heads = arguments.heads.split(",")
    arguments.size = QUICK_SIZE if arguments.quick else SIZE
    for head in arguments.heads:
        if head not in HEADS:
            parser.error(f"--heads: no head {head!r}; choices: {', '.join(HEADS)}")
    for name in ("batch", "threads", "rounds", "steps"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be at least 1")
    return arguments


def measure_head(head: str, arguments: argparse.Namespace, told: set[str]) -> list[Row]:
    """Return a row for each system; raises RuntimeError where kseg's step cannot be measured or the losses differ."""
    processes = {}
    try:
        processes[KSEG] = start_step(sys.executable, "kseg_training", head, "plain", arguments)
        for form, name in OTHERS.items():
            if getattr(arguments, form):
                processes[name] = start_step(sys.executable, "kseg_training", head, form, arguments)
        for name, form in PEERS.items():
            try:
                if not arguments.peer_python:
                    raise RuntimeError("no --peer-python")
                processes[name] = start_step(arguments.peer_python, "peer_training", head, form, arguments)
            except RuntimeError as error:
                if (reason := f"{name}: not measured: {error}") not in told:
                    print(reason)
                told.add(reason)
        for name, process in processes.items():
            own, loss = (each.description["loss"] for each in (processes[KSEG], process))
            if not abs(loss - own) < LOSS_TOLERANCE * own:
                raise RuntimeError(f"{name} begins with a loss of {loss:.3f}, kseg with one of {own:.3f}")
            # The first steps choose kernels and fill caches.
            process.work(1, 1)
        return rows_of(head, measure(head, processes, arguments.rounds, arguments.steps), processes)
    finally:
        for process in processes.values():
            process.close()


def start_step(python: str, script: str, head: str, form: str, arguments: argparse.Namespace) -> MeasuredProcess:
    """Start one system's step; raises RuntimeError with the reason where it cannot work."""
    environment = {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "2",
                   "OMP_NUM_THREADS": str(arguments.threads)}
    return start([python, "-m", f"benchmarks.{script}", str(arguments.threads), head,
                  *map(str, (arguments.size, arguments.size, arguments.batch)), form], environment)


def rows_of(head: str, rounds: dict[str, list[Round]], processes: dict[str, MeasuredProcess]) -> list[Row]:
    """Return the rows of one head; ratios are taken within rounds."""
    seconds = {name: [1 / each.rate for each in done] for name, done in rounds.items()}
    spent = {name: [each.cpu_seconds for each in done] for name, done in rounds.items()}

    def ratio(values: dict[str, list[float]], name: str) -> float:
        return statistics.median(theirs / ours for theirs, ours in zip(values[name], values[KSEG]))

    return [Row(head, name, seconds[name], ratio(seconds, name), spent[name], ratio(spent, name), process.peak(),
                process.description["first_seconds"], process.description["versions"])
            for name, process in processes.items()]


def table(rows: list[Row]) -> str:
    """Return the figures as a table in Markdown, one line a row, and the versions."""
    peaks = {row.head: row.peak for row in rows if row.system == KSEG}
    lines = ["| head | system | s/step (min..max) | times kseg's | CPU s/step | times kseg's | peak MiB | kseg's share "
             "| first step, s |", "|---|---|--:|--:|--:|--:|--:|--:|--:|"]
    for row in rows:
        seconds = f"{statistics.median(row.seconds):.2f} ({min(row.seconds):.2f}..{max(row.seconds):.2f})"
        lines.append(f"| {row.head} | {row.system} | {seconds} | {row.ratio:.2f} "
                     f"| {statistics.median(row.cpu_seconds):.2f} | {row.cpu_ratio:.2f} | {row.peak / MIB:.0f} "
                     f"| {peaks[row.head] / row.peak:.2f} | {row.first_seconds:.1f} |")
    versions = {name: version for row in rows for name, version in row.versions.items()}
    return "\n".join([*lines, "", ", ".join(f"{name} {version}" for name, version in versions.items())])


if __name__ == "__main__":
    sys.exit(main())
