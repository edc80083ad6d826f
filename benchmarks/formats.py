"""Compare the formats of kseg.export in their own runtimes, from an image to class ids.

    python -m benchmarks.formats
    python -m benchmarks.formats --size 256,512 --rounds 3

EncNet with a ResNet-50 at output stride 8, 19 classes, random weights, CPU. docs/performance.md describes the
measurement. A format whose runtime is not installed is reported and left out.
"""

import argparse
import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks import comparison
from benchmarks.comparison import MIB, ModelRow
from benchmarks.heads import HEADS
from benchmarks.measured_process import ROOT, start

# Name in the table -> the format, the version that has it, and the files of the format.
SAVED_MODEL = "SavedModel, device=cpu"
SYSTEMS = {
    SAVED_MODEL: ("savedmodel", 2, ("saved_model.pb", "variables/*")),
    "SavedModel, device=any": ("savedmodel", 1, ("saved_model.pb", "variables/*")),
    "ONNX": ("onnx", 1, ("model.onnx",)),
    "OpenVINO": ("openvino", 1, ("model.xml", "model.bin")),
    "LiteRT": ("litert", 1, ("model.tflite",)),
}
# Modules that write and run each format.
LIBRARIES = {
    "savedmodel": (),
    "onnx": ("tf2onnx", "onnx", "onnxruntime"),
    "openvino": ("openvino",),
    "litert": ("ai_edge_litert",),
}


def main() -> int:
    arguments = parse(sys.argv[1:])
    title = f"{'x'.join(map(str, arguments.size))}, {arguments.images} image(s) a turn"
    return comparison.compare_models(arguments, title, measure_head, table)


def parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.formats", description=__doc__.partition("\n")[0])
    parser.add_argument("--heads", default="encnet", metavar="NAME,...", help=f"some of {', '.join(HEADS)}")
    parser.add_argument("--size", default="512,1024", metavar="HEIGHT,WIDTH", help="of the image (default: 512,1024)")
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count(), help="threads of every runtime (default: the number of cores)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="turns of every format (default 5)")
    parser.add_argument("--images", type=int, default=1, help="images timed per turn (default 1)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the results of all rounds as JSON")
    arguments = parser.parse_args(words)
    arguments.heads = comparison.parse_heads(parser, arguments.heads, HEADS)
    sides = arguments.size.split(",")
    if len(sides) != 2 or not all(side.isascii() and side.isdigit() and int(side) for side in sides):
        parser.error(f"--size takes HEIGHT,WIDTH, such as 512,1024; got {arguments.size!r}")
    arguments.size = tuple(map(int, sides))
    comparison.require_positive(parser, arguments, "threads", "rounds", "images")
    return arguments


def measure_head(head: str, arguments: argparse.Namespace, reported: set[str]) -> list[ModelRow]:
    """Return a row per format of a head; raises RuntimeError if one cannot be measured."""
    systems = {name: system for name, system in SYSTEMS.items() if is_installed(system[0], reported)}
    processes = {}
    with tempfile.TemporaryDirectory() as directory:
        size = tuple(map(str, arguments.size))
        forms = {form for form, _, _ in systems.values()} - {"savedmodel"}
        subprocess.run(
            [sys.executable, "-m", "benchmarks.format_exports", directory, head, *size, *sorted(forms)],
            cwd=ROOT,
            check=True,
        )
        try:
            for name, (form, version, _) in systems.items():
                processes[name] = start(
                    [
                        sys.executable,
                        "-m",
                        "benchmarks.kseg_formats",
                        str(arguments.threads),
                        form,
                        f"{directory}/{version}",
                        f"{directory}/{name}.npy",
                        *size,
                    ],
                    {"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "2"},
                )
            rows = comparison.measure_models(head, processes, arguments.rounds, arguments.images)
        finally:
            for process in processes.values():
                process.close()
        expected = np.load(f"{directory}/{SAVED_MODEL}.npy")
        for row in rows:
            _, version, patterns = systems[row.system]
            row.description["file_bytes"] = sum(
                path.stat().st_size for pattern in patterns for path in Path(directory, str(version)).glob(pattern)
            )
            row.description["different"] = float((np.load(f"{directory}/{row.system}.npy") != expected).mean())
    return rows


def is_installed(form: str, reported: set[str]) -> bool:
    """Return whether a format can be written and run; if not, print the reason once."""
    missing = [library for library in LIBRARIES[form] if importlib.util.find_spec(library) is None]
    if missing and form not in reported:
        print(f"{form}: not measured: no {', '.join(missing)}: pip install 'kseg[{form}]'")
        reported.add(form)
    return not missing


def table(rows: list[ModelRow]) -> str:
    """Return the results as a Markdown table with the versions below."""
    lines = [
        "| head | format | s/image (min..max) | times the SavedModel's | CPU s/image | times the SavedModel's "
        "| loaded in s | peak MiB | files MB | other pixels |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        ratio, cpu_ratio = comparison.ratio_cells(row, SAVED_MODEL)
        lines.append(
            f"| {row.head} | {row.system} | {comparison.spread(row.seconds)} | {ratio} "
            f"| {statistics.median(row.cpu_seconds):.2f} | {cpu_ratio} "
            f"| {row.description['load_seconds']:.1f} | {row.peak / MIB:.0f} "
            f"| {row.description['file_bytes'] / 1e6:.0f} | {100 * row.description['different']:.4f} % |"
        )
    return "\n".join([*lines, "", comparison.versions(rows)])


if __name__ == "__main__":
    sys.exit(main())
