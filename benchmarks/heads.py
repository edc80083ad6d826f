"""kseg's heads beside MMSegmentation's and segmentation_models.pytorch's: a picture to class ids, in turn, one machine.

    python -m benchmarks.heads --peer-python PEER/bin/python
    python -m benchmarks.heads --peer-python PEER/bin/python --quick --heads encnet,deeplabv3

ResNet-50, output stride 8, 19 classes, random weights, CPU; README.md beside this file says how to make the peers'
environment. A peer that cannot be measured is told and left out.
"""

import argparse
import json
import os
import statistics
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.measured_process import MeasuredProcess, Round, start
from benchmarks.peer_heads import SMP

ROOT = Path(__file__).resolve().parents[1]
HEADS = ("encnet", "deeplabv3", "deeplabv3plus", "apcnet", "pspnet", "fcn")
KSEG = "kseg, compiled"
PEERS = {"MMSegmentation": ("mmseg", "plain"), "MMSegmentation, best": ("mmseg", "best"),
         "smp": ("smp", "plain"), "smp, best": ("smp", "best")}
SIZE, QUICK_SIZE = (512, 1024), (256, 512)
MIB = 2 ** 20


@dataclass(frozen=True)
class Row:
    """One system's figures for one head: seconds a picture in each round and of CPU time, and the medians of their
    ratios to kseg's in the same round; parameters and multiply-adds without an auxiliary head; the most bytes resident.
    """

    head: str
    system: str
    seconds: list[float]
    ratio: float | None
    cpu_seconds: list[float]
    cpu_ratio: float | None
    parameters: int
    multiply_adds: int
    peak: int
    versions: dict[str, str]


def main() -> int:
    arguments = parse(sys.argv[1:])
    print(f"{processor()}, {arguments.threads} of {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; "
          f"{arguments.size[0]}x{arguments.size[1]}")
    rows, told = [], set()
    try:
        for head in arguments.heads:
            rows += measure_head(head, arguments, told)
            # After each head, since all of them take long.
            if arguments.out:
                arguments.out.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n", encoding="utf-8")
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(table(rows))
    print(f"load at the end {os.getloadavg()[0]:.1f}, of which {arguments.threads} or less are these processes'")
    return 0


def parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measures kseg's heads beside those of two other systems.")
    parser.add_argument("--peer-python", metavar="FILE", help="the Python that has the peers; see README.md")
    parser.add_argument("--heads", default=",".join(HEADS), metavar="NAME,...", help=f"some of {', '.join(HEADS)}")
    parser.add_argument("--quick", action="store_true", help="pictures of 256x512 instead of 512x1024")
    parser.add_argument("--threads", type=int, default=os.cpu_count(),
                        help="of each system (default: one for each core)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds in which each system has its turn (default 5)")
    parser.add_argument("--images", type=int, default=1, help="pictures timed in a round (default 1)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the figures of every round there as JSON too")
    arguments = parser.parse_args(words)
    arguments.heads = arguments.heads.split(",")
    arguments.size = QUICK_SIZE if arguments.quick else SIZE
    for head in arguments.heads:
        if head not in HEADS:
            parser.error(f"--heads: no head {head!r}; choices: {', '.join(HEADS)}")
    for name in ("threads", "rounds", "images"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be at least 1")
    return arguments


def measure_head(head: str, arguments: argparse.Namespace, told: set[str]) -> list[Row]:
    """Return a row for each system that has a head; raises RuntimeError where kseg's cannot be measured."""
    processes = {}
    try:
        processes[KSEG] = start_kseg(head, arguments)
        for name, (system, form) in PEERS.items():
            if system == "smp" and head not in SMP:
                continue
            try:
                processes[name] = start_peer(system, form, head, arguments)
            except RuntimeError as error:
                reason = f"{name}: not measured: {error}"
                if reason not in told:
                    print(reason)
                told.add(reason)
        for name, process in processes.items():
            if process.description["ids"] != list(arguments.size):
                raise RuntimeError(f"{name} gives ids of {process.description['ids']}, not of {arguments.size}")
            # The first pictures choose kernels and fill caches.
            process.work(1, 1)
        rounds = measure(head, processes, arguments.rounds, arguments.images)
        return rows_of(head, rounds, {name: process.peak() for name, process in processes.items()},
                       {name: process.description for name, process in processes.items()})
    finally:
        for process in processes.values():
            process.close()


def measure(head: str, processes: dict, rounds: int, images: int) -> dict[str, list[Round]]:
    """Return each system's rounds; one works at a time, in an order that turns round each time."""
    found: dict[str, list[Round]] = {name: [] for name in processes}
    for number in range(rounds):
        for name in list(processes)[::-1 if number % 2 else 1]:
            found[name].append(processes[name].work(0, images))
        print(f"{head}, round {number + 1} of {rounds}: "
              + ", ".join(f"{name} {1 / done[-1].rate:.2f} s" for name, done in found.items()), flush=True)
    return found


def rows_of(head: str, rounds: dict[str, list[Round]], peaks: dict[str, int],
            descriptions: dict[str, dict]) -> list[Row]:
    """Return the rows of one head; ratios are taken within rounds."""
    seconds = {name: [1 / each.rate for each in done] for name, done in rounds.items()}
    spent = {name: [each.cpu_seconds for each in done] for name, done in rounds.items()}

    def ratio(values: dict[str, list[float]], name: str) -> float | None:
        if name == KSEG:
            return None
        return statistics.median(theirs / ours for theirs, ours in zip(values[name], values[KSEG]))

    return [Row(head, name, seconds[name], ratio(seconds, name), spent[name], ratio(spent, name),
                descriptions[name]["parameters"], descriptions[name]["multiply_adds"], peaks[name],
                descriptions[name]["versions"]) for name in rounds]


def start_kseg(head: str, arguments: argparse.Namespace) -> MeasuredProcess:
    """Start kseg's model; raises RuntimeError where it cannot work."""
    environment = {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "2"}
    return start([sys.executable, "-m", "benchmarks.kseg_heads", str(arguments.threads), head,
                  *map(str, arguments.size)], environment)


def start_peer(system: str, form: str, head: str, arguments: argparse.Namespace) -> MeasuredProcess:
    """Start a peer's model; raises RuntimeError with the reason where it cannot work."""
    if not arguments.peer_python:
        raise RuntimeError("no --peer-python")
    environment = {"CUDA_VISIBLE_DEVICES": "-1", "OMP_NUM_THREADS": str(arguments.threads)}
    return start([arguments.peer_python, "-m", "benchmarks.peer_heads", system, form,
                  str(arguments.threads), head, *map(str, arguments.size)], environment)


def processor() -> str:
    """Return the processor's name."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return ([line.partition(":")[2].strip() for line in lines if line.startswith("model name")] or ["processor"])[0]


def table(rows: list[Row]) -> str:
    """Return the figures as a table in Markdown, one line a row, and the versions."""
    lines = ["| head | system | s/image (min..max) | times kseg's | CPU s/image | times kseg's | parameters, M "
             "| multiply-adds, G | peak MiB |", "|---|---|--:|--:|--:|--:|--:|--:|--:|"]
    for row in rows:
        seconds = f"{statistics.median(row.seconds):.2f} ({min(row.seconds):.2f}..{max(row.seconds):.2f})"
        ratio, cpu_ratio = ("1" if value is None else f"{value:.2f}" for value in (row.ratio, row.cpu_ratio))
        lines.append(f"| {row.head} | {row.system} | {seconds} | {ratio} | {statistics.median(row.cpu_seconds):.2f} "
                     f"| {cpu_ratio} | {row.parameters / 1e6:.1f} | {row.multiply_adds / 1e9:.1f} "
                     f"| {row.peak / MIB:.0f} |")
    versions = {name: version for row in rows for name, version in row.versions.items()}
    return "\n".join([*lines, "", ", ".join(f"{name} {version}" for name, version in versions.items())])


if __name__ == "__main__":
    sys.exit(main())
