"""Compare kseg's heads with MMSegmentation's and segmentation_models.pytorch's, from an image to class ids.

    python -m benchmarks.heads --peer-python PEER/bin/python --smp-python SMP/bin/python
    python -m benchmarks.heads --peer-python PEER/bin/python --quick --heads encnet,deeplabv3

ResNet-50, output stride 8, 19 classes, random weights, CPU. docs/performance.md describes the peers' environments
and the measurement. If a peer cannot be measured, the reason is printed.
"""

import argparse
import os
import statistics
import sys
from pathlib import Path

from benchmarks import comparison
from benchmarks.comparison import MIB, ModelRow
from benchmarks.measured_process import MeasuredProcess, start
from benchmarks.peer_heads import SMP

HEADS = ("encnet", "deeplabv3", "deeplabv3plus", "apcnet", "pspnet", "fcn")
KSEG = "kseg, compiled"
# Name in the table -> arguments of peer_heads.
PEERS = {
    "MMSegmentation": ("mmseg", "plain"),
    "MMSegmentation, best": ("mmseg", "best"),
    "smp": ("smp", "plain"),
    "smp, best": ("smp", "best"),
}
SIZE, QUICK_SIZE = (512, 1024), (256, 512)


def main() -> int:
    arguments = parse(sys.argv[1:])
    return comparison.compare_models(arguments, "x".join(map(str, arguments.size)), measure_head, table)


def parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.heads", description=__doc__.partition("\n")[0])
    parser.add_argument("--peer-python", metavar="FILE", help="Python of MMSegmentation's environment")
    parser.add_argument("--smp-python", metavar="FILE", help="Python of segmentation_models.pytorch's environment")
    parser.add_argument("--heads", default=",".join(HEADS), metavar="NAME,...", help=f"some of {', '.join(HEADS)}")
    parser.add_argument("--quick", action="store_true", help="use images of 256x512 instead of 512x1024")
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count(), help="threads of every system (default: the number of cores)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="turns of every system (default 5)")
    parser.add_argument("--images", type=int, default=1, help="images timed per turn (default 1)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the results of all rounds as JSON")
    arguments = parser.parse_args(words)
    arguments.heads = comparison.parse_heads(parser, arguments.heads, HEADS)
    arguments.size = QUICK_SIZE if arguments.quick else SIZE
    comparison.require_positive(parser, arguments, "threads", "rounds", "images")
    return arguments


def measure_head(head: str, arguments: argparse.Namespace, reported: set[str]) -> list[ModelRow]:
    """Return a row per system that has a head; raises RuntimeError if kseg's cannot be measured."""
    processes = {}
    try:
        processes[KSEG] = start_kseg(head, arguments)
        for name, (system, form) in PEERS.items():
            if system == "smp" and head not in SMP:
                continue
            process = comparison.start_or_report(
                name, lambda system=system, form=form: start_peer(system, form, head, arguments), reported
            )
            if process:
                processes[name] = process
        for name, process in processes.items():
            if process.description["ids"] != list(arguments.size):
                raise RuntimeError(
                    f"{name} returns ids of size {process.description['ids']} instead of {arguments.size}"
                )
        return comparison.measure_models(head, processes, arguments.rounds, arguments.images)
    finally:
        for process in processes.values():
            process.close()


def start_kseg(head: str, arguments: argparse.Namespace) -> MeasuredProcess:
    """Start kseg's model; raises RuntimeError if it cannot work."""
    return start(
        [sys.executable, "-m", "benchmarks.kseg_heads", str(arguments.threads), head, *map(str, arguments.size)],
        {"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "2"},
    )


def start_peer(system: str, form: str, head: str, arguments: argparse.Namespace) -> MeasuredProcess:
    """Start a peer's model; raises RuntimeError with the reason if it cannot work."""
    option = "smp_python" if system == "smp" else "peer_python"
    python = getattr(arguments, option)
    if not python:
        raise RuntimeError(f"no --{option.replace('_', '-')}")
    return start(
        [python, "-m", "benchmarks.peer_heads", system, form, str(arguments.threads), head, *map(str, arguments.size)],
        {"CUDA_VISIBLE_DEVICES": "-1", "OMP_NUM_THREADS": str(arguments.threads)},
    )


def table(rows: list[ModelRow]) -> str:
    """Return the results as a Markdown table with the versions below."""
    lines = [
        "| head | system | s/image (min..max) | times kseg's | CPU s/image | times kseg's | parameters, M "
        "| multiply-adds, G | peak MiB |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        ratio, cpu_ratio = comparison.ratio_cells(row, KSEG)
        lines.append(
            f"| {row.head} | {row.system} | {comparison.spread(row.seconds)} | {ratio} "
            f"| {statistics.median(row.cpu_seconds):.2f} | {cpu_ratio} "
            f"| {row.description['parameters'] / 1e6:.1f} | {row.description['multiply_adds'] / 1e9:.1f} "
            f"| {row.peak / MIB:.0f} |"
        )
    return "\n".join([*lines, "", comparison.versions(rows)])


if __name__ == "__main__":
    sys.exit(main())
