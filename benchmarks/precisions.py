"""Compare the precisions of kseg.export on this machine's CPU, from an image to class ids.

    python -m benchmarks.precisions
    python -m benchmarks.precisions --heads encnet,deeplabv3plus --precisions float32,bfloat16,int8 --quick

ResNet-50, output stride 8, 19 classes, random weights, device=cpu, one process per precision, in turn.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import comparison
from benchmarks.comparison import MIB, ModelRow
from benchmarks.heads import HEADS, QUICK_SIZE, SIZE
from benchmarks.measured_process import ROOT, start

PRECISIONS = ("float32", "bfloat16", "dynamic-range", "int8")
# All precisions use oneDNN, which int8 needs and which TensorFlow enables by itself only on some processors.
ENVIRONMENT = {"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "2", "TF_ENABLE_ONEDNN_OPTS": "1"}


def main() -> int:
    arguments = parse(sys.argv[1:])
    return comparison.compare_models(arguments, "x".join(map(str, arguments.size)), measure_head, table)


def parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.precisions", description=__doc__.partition("\n")[0])
    parser.add_argument("--heads", default="encnet", metavar="NAME,...", help=f"some of {', '.join(HEADS)}")
    parser.add_argument(
        "--precisions",
        default="float32,int8",
        metavar="NAME,...",
        help=f"some of {', '.join(PRECISIONS)}; ratios are to the first one",
    )
    parser.add_argument("--quick", action="store_true", help="use images of 256x512 instead of 512x1024")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads (default: the number of cores)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of every precision (default 5)")
    parser.add_argument("--images", type=int, default=1, help="images timed per turn (default 1)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the results of all rounds as JSON")
    arguments = parser.parse_args(words)
    arguments.heads = comparison.parse_heads(parser, arguments.heads, HEADS)
    arguments.precisions = arguments.precisions.split(",")
    for precision in arguments.precisions:
        if precision not in PRECISIONS:
            parser.error(f"--precisions: no precision {precision!r}; choices: {', '.join(PRECISIONS)}")
    arguments.size = QUICK_SIZE if arguments.quick else SIZE
    comparison.require_positive(parser, arguments, "threads", "rounds", "images")
    return arguments


def measure_head(head: str, arguments: argparse.Namespace, reported: set[str]) -> list[ModelRow]:
    """Return a row per precision of a head; raises RuntimeError if one cannot be measured."""
    processes = {}
    with tempfile.TemporaryDirectory() as directory:
        # The memory of making the exports is not part of a server's.
        made = subprocess.run(
            [sys.executable, "-m", "benchmarks.precision_exports", directory, head, *arguments.precisions],
            env=os.environ | ENVIRONMENT,
            cwd=ROOT,
            check=False,
        )
        if made.returncode:
            raise RuntimeError(f"the exports of {head} were not made")
        try:
            for precision in arguments.precisions:
                processes[precision] = start(
                    [
                        sys.executable,
                        "-m",
                        "benchmarks.kseg_formats",
                        str(arguments.threads),
                        "savedmodel",
                        f"{directory}/{precision}",
                        f"{directory}/{precision}.npy",
                        *map(str, arguments.size),
                    ],
                    ENVIRONMENT,
                )
                processes[precision].description["bytes"] = sum(
                    path.stat().st_size for path in Path(directory, precision).rglob("*") if path.is_file()
                )
            return comparison.measure_models(head, processes, arguments.rounds, arguments.images)
        finally:
            for process in processes.values():
                process.close()


def table(rows: list[ModelRow]) -> str:
    """Return the rows as a Markdown table."""
    lines = [
        "| head | precision | s/image | times | CPU s | times | MB on disk | peak MiB |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        lines.append(
            f"| {row.head} | {row.system} | {comparison.spread(row.seconds)} | {row.ratio:.2f} | "
            f"{statistics.median(row.cpu_seconds):.2f} | {row.cpu_ratio:.2f} | {row.description['bytes'] / 1e6:.0f} | "
            f"{row.peak / MIB:.0f} |"
        )
    return "\n".join([*lines, "", comparison.versions(rows)])


if __name__ == "__main__":
    sys.exit(main())
