"""Measure the cost and gain of the server's parts as ratios of measurements in turn.

    python -m benchmarks.server --model served/camvid/1
    python -m benchmarks.server --model served/camvid/1 --parts overhead,forms --quick

    overhead   gRPC Predict compared with a call of the same signature without a server, one client
    threads    answers/s with the documented settings for CPUs compared with TensorFlow's defaults, 8 clients
    batching   answers/s with batching.config compared with no batching, 32 clients, a small model and tiny images
    export     the exported model compared with the compiled Keras model
    forms      bytes and milliseconds of all signatures over gRPC (values and tensor_content) and REST

--model is a version that kseg.export wrote. All parts but `batching` use an image of 512x1024.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.comparison import median_ratio
from benchmarks.measured_process import ROOT, cpu_seconds
from benchmarks.served_process import CPUS, SHIPPED, ServedProcess
from benchmarks.server_forms import forms_table, measure_forms
from benchmarks.street_pairs import draw_pair
from serving.clients import load_generator, load_report, load_requests

MODEL = "street"
SIZE, TINY = (512, 1024), (32, 64)
CLIENTS, TINY_CLIENTS = 8, 32
PROCESSES = 2


def main() -> int:
    arguments = parse(sys.argv[1:])
    print(f"{CPUS} CPUs, load {os.getloadavg()[0]:.1f}; {arguments.model}, image of {SIZE[0]}x{SIZE[1]}")
    results = {}
    with tempfile.TemporaryDirectory() as directory:
        base = Path(directory, MODEL)
        base.mkdir()
        # The server takes a directory of versions, which contains only this one.
        (base / "1").symlink_to(arguments.model.resolve())
        image = Path(directory, "street.jpg")
        Image.fromarray(draw_pair()[0][: SIZE[0], : SIZE[1]]).save(image, quality=90)
        for part in arguments.parts:
            print(f"\n### {part}\n", flush=True)
            results[part] = PARTS[part](arguments, base, image)
            # The file is written after every part, because all of them take long.
            if arguments.out:
                arguments.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"\nload at the end {os.getloadavg()[0]:.1f}, including this measurement")
    return 0


def parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.server", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, metavar="DIR/VERSION")
    parser.add_argument("--parts", default=",".join(PARTS), metavar="NAME,...", help="parts to measure (default: all)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="turns of every setting (default 5)")
    parser.add_argument(
        "--seconds", type=float, default=15.0, metavar="S", help="duration of a turn with clients (default 15)"
    )
    parser.add_argument("--pairs", type=int, default=60, metavar="N", help="single calls of every kind (default 60)")
    parser.add_argument("--quick", action="store_true", help="2 rounds of 4 s and 8 pairs, only to check that it works")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write all results as JSON")
    arguments = parser.parse_args(words)
    arguments.parts = arguments.parts.split(",")
    for part in arguments.parts:
        if part not in PARTS:
            parser.error(f"--parts: no part {part!r}; choices: {', '.join(PARTS)}")
    if not (arguments.model / "saved_model.pb").is_file():
        parser.error(f"--model: no saved_model.pb in {arguments.model}")
    if arguments.quick:
        arguments.rounds, arguments.seconds, arguments.pairs = 2, 4.0, 8
    return arguments


def run_direct(*words: object) -> dict[str, list[float]]:
    """Run benchmarks.server_direct and return its results."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.server_direct", *map(str, words)],
        text=True,
        stdout=subprocess.PIPE,
        check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    return json.loads(done.stdout)


def calls_table(seconds: dict[str, list[float]], reference: str) -> str:
    """Return a Markdown table of calls made in turn, with their ratios to the reference within rounds."""
    lines = ["| call | p50 ms | p95 ms | p50 to p50 | median of ratios |", "|---|--:|--:|--:|--:|"]
    for name, values in seconds.items():
        ratio = median_ratio(values, seconds[reference])
        median, late = np.percentile(values, (50, 95))
        lines.append(
            f"| {name} | {1000 * median:.1f} | {1000 * late:.1f} "
            f"| {median / statistics.median(seconds[reference]):.3f} | {ratio:.3f} |"
        )
    return "\n".join(lines)


def measure_overhead(arguments: argparse.Namespace, base: Path, image: Path) -> dict:
    """Compare gRPC with the session that the server runs, and with TensorFlow 2's function."""
    server = ServedProcess(MODEL, base, *SHIPPED)
    try:
        seconds = run_direct("overhead", arguments.model, MODEL, server.grpc, image, arguments.pairs, CPUS)
    finally:
        server.stop()
    print(calls_table(seconds, "session"))
    return seconds


def measure_export(arguments: argparse.Namespace, base: Path, image: Path) -> dict:
    """Compare the exported model with the Keras model."""
    seconds = run_direct("export", arguments.model, *SIZE, arguments.pairs)
    print(calls_table(seconds, "Keras model, compiled"))
    return seconds


def measure_threads(arguments: argparse.Namespace, base: Path, image: Path) -> dict:
    """Compare the documented settings with TensorFlow's defaults."""
    request = load_requests.grpc_request(MODEL, "serving_default", "image_bytes", image.read_bytes())
    return measure_settings(
        arguments,
        MODEL,
        base,
        request,
        CLIENTS,
        {"TensorFlow's own threads": (), f"intra_op 1, inter_op {CPUS}": SHIPPED},
    )


def measure_batching(arguments: argparse.Namespace, base: Path, image: Path) -> dict:
    """Compare the batching configuration for accelerators with no batching, on tiny images."""
    from benchmarks import small_exports

    # Batches cannot fill if fewer requests may run at once.
    flags = (*SHIPPED, f"--max_running_requests={2 * TINY_CLIENTS}")
    with tempfile.TemporaryDirectory() as directory:
        small_exports.export(Path(directory), (1,))
        pixels = np.random.default_rng(0).integers(0, 256, (*TINY, 3), np.uint8)
        request = load_requests.grpc_request(MODEL, "predict_tensor", "image", pixels)
        return measure_settings(
            arguments,
            MODEL,
            Path(directory),
            request,
            TINY_CLIENTS,
            {
                "no batching": flags,
                "batching.config": (
                    *flags,
                    "--enable_batching",
                    f"--batching_parameters_file={ROOT / 'serving' / 'batching.config'}",
                ),
            },
        )


def measure_settings(
    arguments: argparse.Namespace,
    name: str,
    base: Path,
    request: bytes,
    clients: int,
    settings: dict[str, tuple[str, ...]],
) -> dict[str, list[dict]]:
    """Measure servers with different flags in turn, print a table and return their rounds.

    Only one server has clients at a time. The table compares answers/s with those of the first setting.
    """
    servers, pools, results = {}, {}, {label: [] for label in settings}
    try:
        for label, flags in settings.items():
            servers[label] = ServedProcess(name, base, *flags)
            pools[label] = load_generator.Clients(
                load_generator.Target(servers[label].grpc, "", 300.0), [request], PROCESSES
            )
        for number in range(arguments.rounds):
            for label in list(settings)[:: -1 if number % 2 else 1]:
                cpu = CpuPerAnswer(servers[label].process.pid)
                load = pools[label].run(clients, arguments.seconds, 2.0, cpu)
                if load.failures:
                    raise RuntimeError(f"{label}: {dict(load.failures)} {load.messages}")
                results[label].append(load_report.report_json(load) | {"cpu_seconds": cpu.seconds()})
            print(
                f"round {number + 1} of {arguments.rounds}: "
                + ", ".join(f"{label} {rounds[-1]['requests_per_second']:.1f}/s" for label, rounds in results.items()),
                flush=True,
            )
    finally:
        for pool in pools.values():
            pool.close()
        for server in servers.values():
            server.stop()
    print("\n" + rates_table(results))
    return results


class CpuPerAnswer:
    """Samples the CPU seconds of a process with the number of answers, whenever clients report it."""

    def __init__(self, pid: int):
        self.pid, self.samples = pid, []

    def __call__(self, passed: float, answers: int, failures: int) -> None:
        self.samples.append((answers, cpu_seconds(self.pid)))

    def seconds(self) -> float:
        """Return the CPU seconds per answer, or nan without new answers."""
        (first, start), (last, end) = self.samples[0], self.samples[-1]
        return (end - start) / (last - first) if last > first else float("nan")


def rates_table(results: dict[str, list[dict]]) -> str:
    """Return a Markdown table of medians, with ratios to the first setting's rate within rounds."""
    reference = [turn["requests_per_second"] for turn in next(iter(results.values()))]
    lines = [
        "| setting | answers/s (min..max) | times the first | p50 ms | p99 ms | CPU ms per answer | clients busy |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for label, rounds in results.items():
        rates = [turn["requests_per_second"] for turn in rounds]
        ratio = median_ratio(rates, reference)
        p50, p99, cpu, busy = (
            statistics.median(turn[key] for turn in rounds) for key in ("p50", "p99", "cpu_seconds", "clients_busy")
        )
        lines.append(
            f"| {label} | {statistics.median(rates):.1f} ({min(rates):.1f}..{max(rates):.1f}) | {ratio:.2f} "
            f"| {1000 * p50:.1f} | {1000 * p99:.1f} | {1000 * cpu:.2f} | {busy:.0%} |"
        )
    return "\n".join(lines)


def measure_all_forms(arguments: argparse.Namespace, base: Path, image: Path) -> dict:
    """Measure all signatures over all protocols."""
    values = ServedProcess(MODEL, base, *SHIPPED)
    try:
        content = ServedProcess(MODEL, base, *SHIPPED, "--enable_serialization_as_tensor_content")
        try:
            results = measure_forms(
                MODEL, arguments.model, image, {"values": values, "content": content}, max(3, arguments.pairs // 4)
            )
        finally:
            content.stop()
    finally:
        values.stop()
    print(forms_table(results))
    return results


PARTS: dict[str, Callable] = {
    "overhead": measure_overhead,
    "threads": measure_threads,
    "batching": measure_batching,
    "export": measure_export,
    "forms": measure_all_forms,
}

if __name__ == "__main__":
    sys.exit(main())
