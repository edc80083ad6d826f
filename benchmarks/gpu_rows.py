"""Hold the results of benchmarks.gpu: check that systems did the same work, and write tables; no dependencies."""

import datetime
import json
import os
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks import comparison
from benchmarks.comparison import MIB
from benchmarks.gpu_process import TASKS, TRAINING, Work

KSEG = "kseg"
# System -> its name in the table.
NAMES = {KSEG: "kseg on JAX", "eager": "PyTorch", "compiled": "PyTorch, compiled"}
# Name that drivers report -> precision -> dense TFLOP/s in the vendor's data sheet.
_H100_SXM = {"bfloat16": 989.4, "tf32": 494.7, "float32": 66.9}
_A100 = {"bfloat16": 312.0, "tf32": 156.0, "float32": 19.5}
PEAK_TFLOPS = {
    "NVIDIA H200": _H100_SXM,
    "NVIDIA H100 80GB HBM3": _H100_SXM,
    "NVIDIA H100 PCIe": {"bfloat16": 756.0, "tf32": 378.0, "float32": 51.0},
    "NVIDIA A100-SXM4-40GB": _A100,
    "NVIDIA A100-SXM4-80GB": _A100,
    "NVIDIA A100-PCIE-40GB": _A100,
    "NVIDIA A100 80GB PCIe": _A100,
    "NVIDIA L4": {"bfloat16": 121.0, "tf32": 60.0, "float32": 30.3},
    "NVIDIA A10": {"bfloat16": 125.0, "tf32": 62.5, "float32": 31.2},
}
# The backward pass computes two products, with the gradients of inputs and of kernels, for each of the forward pass.
PASSES = {task: 3 if task == TRAINING else 1 for task in TASKS}
LOSS_TOLERANCE, MULTIPLY_ADDS_TOLERANCE = 0.1, 0.01


@dataclass(frozen=True)
class Row:
    """Results of a task of a system. `results` are its process's; `reason` is empty if it was measured."""

    work: Work
    system: str
    task: str
    results: dict
    reason: str = ""

    def rates(self) -> list[float]:
        """Return the images/s of every round."""
        return [self.work.batch / seconds for seconds in self.results["seconds"]]

    def flops(self) -> float:
        """Return the FLOP/s in the median round."""
        operations = 2 * PASSES[self.task] * self.results["multiply_adds"]
        return operations * statistics.median(self.rates())


def checked(row: Row, reference: Row | None) -> Row:
    """Return the row, or a failed one if it did other work than kseg's.

    Parameters, multiply-adds, the device and the first loss are compared, if kseg was measured.
    """
    if row.reason or reference is None or reference.reason:
        return row
    mine, its = row.results, reference.results
    reason = ""
    if mine["device"] != its["device"]:
        reason = f"computed on {mine['device']}, but kseg on {its['device']}"
    elif mine["parameters"] != its["parameters"]:
        reason = f"has {mine['parameters']:,} parameters, but kseg {its['parameters']:,}"
    elif not abs(mine["multiply_adds"] / its["multiply_adds"] - 1) < MULTIPLY_ADDS_TOLERANCE:
        reason = f"has {mine['multiply_adds']:,} multiply-adds, but kseg {its['multiply_adds']:,}"
    # With random weights, both first losses are those of almost uniform probabilities.
    elif "loss" in its and not abs(mine["loss"] - its["loss"]) < LOSS_TOLERANCE * its["loss"]:
        reason = f"has the first loss {mine['loss']:.3f}, but kseg {its['loss']:.3f}"
    return Row(row.work, row.system, row.task, mine, reason)


def key(row: Row) -> tuple[str, str, str, str, str]:
    """Return what identifies a row in the table."""
    work = row.work
    return (work.head, f"{work.batch}x{work.height}x{work.width}", work.precision, row.task, NAMES[row.system])


def peak_of(row: Row, peaks: dict[str, float]) -> float | None:
    """Return the device's peak TFLOP/s at a row's precision, or None if it is unknown."""
    known = PEAK_TFLOPS.get(row.results["device"], {})
    return peaks.get(row.work.precision, known.get(row.work.precision))


def table(rows: list[Row], peaks: dict[str, float]) -> str:
    """Return the results as a Markdown table below the devices, the date and the versions."""
    measured = [row for row in rows if not row.reason]
    versions = {name: version for row in measured for name, version in row.results["versions"].items()}
    lines = [
        f"{', '.join(dict.fromkeys(row.results['device'] for row in measured)) or 'no device'}, "
        f"{datetime.date.today().isoformat()}, "
        + (", ".join(f"{name} {version}" for name, version in versions.items()) or "nothing measured"),
        "",
        "| head | batch | precision | task | system | images/s (min..max) | TFLOP/s | share of peak | peak MiB "
        "| first step, s |",
        "|---|---|---|---|---|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        cells = [*key(row), f"not measured: {row.reason}", "", "", "", ""]
        if not row.reason:
            peak, memory = peak_of(row, peaks), row.results["peak"]
            teraflops = row.flops() / 1e12
            cells = [
                *key(row),
                comparison.spread(row.rates()),
                f"{teraflops:.2f}",
                f"{100 * teraflops / peak:.1f} %" if peak else "",
                f"{memory / MIB:.0f}" if memory is not None else "",
                f"{row.results['first_seconds']:.1f}",
            ]
        lines.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
    lines += ["", "TensorFloat-32, on both sides: off at float32, otherwise on for products of float32 values."]
    used = {(row.results["device"], row.work.precision): peak_of(row, peaks) for row in measured}
    for (device, precision), peak in used.items():
        lines.append(
            f"Peak of {device} at {precision}: " + (f"{peak:g} TFLOP/s" if peak else "unknown; --peak-tflops sets it")
        )
    missing = [" ".join(key(row)) for row in rows if row.reason]
    lines.append(f"{len(measured)} of {len(rows)} rows measured" + (f"; not: {'; '.join(missing)}" if missing else ""))
    return "\n".join(lines)


def write(path: Path, rows: list[Row], peaks: dict[str, float]) -> None:
    """Write all results as JSON."""
    values = [asdict(row) | {"peak_tflops": None if row.reason else peak_of(row, peaks)} for row in rows]
    # A run that is killed while it writes keeps the previous rows.
    new = path.with_name(f"{path.name}.new")
    new.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    os.replace(new, path)
