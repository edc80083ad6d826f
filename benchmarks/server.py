"""What the server costs and gains, as ratios of what is measured in turn on one machine.

    python -m benchmarks.server --model served/camvid/1
    python -m benchmarks.server --model served/camvid/1 --parts overhead,forms --quick

    overhead   gRPC Predict beside the same signature called without a server, one client
    threads    answers a second with the shipped settings for CPUs beside TensorFlow's own, 8 clients
    batching   answers a second with batching.config beside none, 32 clients, a small model and a tiny picture
    export     the exported model beside the Keras model it was made of, compiled
    forms      bytes and milliseconds of each signature by gRPC (values and tensor_content) and REST

--model is a version that kseg.export wrote. All but `batching` take a picture of 512x1024.
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

from benchmarks.measured_process import cpu_seconds
from benchmarks.served_process import CPUS, ROOT, SHIPPED, ServedProcess
from benchmarks.server_forms import forms_table, measure_forms
from benchmarks.street_pairs import draw_pair
from serving.clients import load_generator, load_report, load_requests

MODEL = "street"
SIZE, TINY = (512, 1024), (32, 64)
CLIENTS, TINY_CLIENTS = 8, 32
PROCESSES = 2


def main() -> int:
    arguments = parse(sys.argv[1:])
    print(f"{CPUS} CPUs, load {os.getloadavg()[0]:.1f}; {arguments.model}, picture of {SIZE[0]}x{SIZE[1]}")
    figures = {}
    with tempfile.TemporaryDirectory() as directory:
        base = Path(directory, MODEL)
        base.mkdir()
        # The server takes a directory of versions; this one shall be its only one.
        (base / "1").symlink_to(arguments.model.resolve())
        picture = Path(directory, "street.jpg")
        image = draw_pair()[0][:SIZE[0], :SIZE[1]]
        Image.fromarray(image).save(picture, quality=90)
        for part in arguments.parts:
            print(f"\n### {part}\n", flush=True)
            figures[part] = PARTS[part](arguments, base, picture)
            # After each part, since all of them take long.
            if arguments.out:
                arguments.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(f"\nload at the end {os.getloadavg()[0]:.1f}, this measurement's own included")
    return 0


def parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, metavar="DIR/VERSION")
    parser.add_argument("--parts", default=",".join(PARTS), metavar="NAME,...", help="some of them (default: all)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="turns of each setting (default 5)")
    parser.add_argument("--seconds", type=float, default=15.0, metavar="S", help="of a turn with clients (default 15)")
    parser.add_argument("--pairs", type=int, default=60, metavar="N", help="single calls of each kind (default 60)")
    parser.add_argument("--quick", action="store_true", help="2 rounds of 4 s, 8 pairs: only to see that it works")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write all figures there as JSON, too")
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


def direct(*words: object) -> dict[str, list[float]]:
    """Run server_direct.py, and return what it answers."""
    found = subprocess.run([sys.executable, "-m", "benchmarks.server_direct", *map(str, words)], text=True,
                           stdout=subprocess.PIPE, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    return json.loads(found.stdout)


def beside(seconds: dict[str, list[float]], reference: str) -> str:
    """Return a table of calls made in turn, each with the median of its ratios to the reference's in the same round."""
    lines = ["| call | p50 ms | p95 ms | p50 to p50 | median of ratios |", "|---|--:|--:|--:|--:|"]
    for name, values in seconds.items():
        ratio = statistics.median(mine / its for mine, its in zip(values, seconds[reference]))
        median, late = np.percentile(values, (50, 95))
        lines.append(f"| {name} | {1000 * median:.1f} | {1000 * late:.1f} "
                     f"| {median / statistics.median(seconds[reference]):.3f} | {ratio:.3f} |")
    return "\n".join(lines)


def measure_overhead(arguments: argparse.Namespace, base: Path, picture: Path) -> dict:
    """gRPC beside the session that the server itself runs, and beside TensorFlow 2's function."""
    server = ServedProcess(MODEL, base, *SHIPPED)
    try:
        found = direct("overhead", arguments.model, MODEL, server.grpc, picture, arguments.pairs, CPUS)
    finally:
        server.stop()
    print(beside(found, "session"))
    return found


def measure_export(arguments: argparse.Namespace, base: Path, picture: Path) -> dict:
    """The exported model beside the Keras model."""
    found = direct("export", arguments.model, *SIZE, arguments.pairs)
    print(beside(found, "Keras model, compiled"))
    return found


def measure_threads(arguments: argparse.Namespace, base: Path, picture: Path) -> dict:
    """The shipped settings beside TensorFlow's own."""
    request = load_requests.grpc_request(MODEL, "serving_default", "image_bytes", picture.read_bytes())
    return in_turn(arguments, MODEL, base, request, CLIENTS, {
        "TensorFlow's own threads": (), f"intra_op 1, inter_op {CPUS}": SHIPPED})


def measure_batching(arguments: argparse.Namespace, base: Path, picture: Path) -> dict:
    """The file for accelerators on a tiny picture."""
    from benchmarks import small_exports

    # Batches cannot be full where fewer requests may run.
    room = (*SHIPPED, f"--max_running_requests={2 * TINY_CLIENTS}")
    with tempfile.TemporaryDirectory() as directory:
        small_exports.export(Path(directory), (1,))
        image = np.random.default_rng(0).integers(0, 256, (*TINY, 3), np.uint8)
        request = load_requests.grpc_request(MODEL, "predict_tensor", "image", image)
        return in_turn(arguments, MODEL, Path(directory), request, TINY_CLIENTS, {
            "no batching": room,
            "batching.config": (*room, "--enable_batching",
                                f"--batching_parameters_file={ROOT / 'serving' / 'batching.config'}")})


def in_turn(arguments: argparse.Namespace, name: str, base: Path, request: bytes, clients: int,
            settings: dict[str, tuple[str, ...]]) -> dict[str, list[dict]]:
    """Measure servers of several settings, of which only one is asked at a time; print and return their rounds.

    The first setting is what the others' answers a second are compared with.
    """
    servers, pools, found = {}, {}, {name: [] for name in settings}
    try:
        for label, flags in settings.items():
            servers[label] = ServedProcess(name, base, *flags)
            pools[label] = load_generator.Clients(load_generator.Target(servers[label].grpc, "", 300.0), [request],
                                                PROCESSES)
        for number in range(arguments.rounds):
            for label in list(settings)[::-1 if number % 2 else 1]:
                spent = Spent(servers[label].process.pid)
                load = pools[label].run(clients, arguments.seconds, 2.0, spent)
                if load.failures:
                    raise RuntimeError(f"{label}: {dict(load.failures)} {load.messages}")
                found[label].append(load_report.as_json(load) | {"cpu_seconds": spent.an_answer()})
            print(f"round {number + 1} of {arguments.rounds}: " + ", ".join(
                f"{label} {rounds[-1]['requests_per_second']:.1f}/s" for label, rounds in found.items()), flush=True)
    finally:
        for pool in pools.values():
            pool.close()
        for server in servers.values():
            server.stop()
    print("\n" + rates_table(found))
    return found


class Spent:
    """Notes the CPU seconds of a process beside the number of answers, whenever clients tell it."""

    def __init__(self, pid: int):
        self.pid, self.notes = pid, []

    def __call__(self, passed: float, answers: int, failures: int) -> None:
        self.notes.append((answers, cpu_seconds(self.pid)))

    def an_answer(self) -> float:
        """Return the CPU seconds an answer took; nan where too few came."""
        (first, before), (last, after) = self.notes[0], self.notes[-1]
        return (after - before) / (last - first) if last > first else float("nan")


def rates_table(found: dict[str, list[dict]]) -> str:
    """Return medians over the rounds, and of the ratios to the first setting's rate in the same round."""
    reference = next(iter(found.values()))
    lines = ["| setting | answers/s (min..max) | times the first | p50 ms | p99 ms | CPU ms an answer | clients busy |",
             "|---|--:|--:|--:|--:|--:|--:|"]
    for label, rounds in found.items():
        rates = [each["requests_per_second"] for each in rounds]
        ratio = statistics.median(mine / its["requests_per_second"] for mine, its in zip(rates, reference))
        p50, p99, spent, busy = (statistics.median(each[key] for each in rounds)
                                 for key in ("p50", "p99", "cpu_seconds", "clients_busy"))
        lines.append(f"| {label} | {statistics.median(rates):.1f} ({min(rates):.1f}..{max(rates):.1f}) | {ratio:.2f} "
                     f"| {1000 * p50:.1f} | {1000 * p99:.1f} | {1000 * spent:.2f} | {busy:.0%} |")
    return "\n".join(lines)


def measure_every_form(arguments: argparse.Namespace, base: Path, picture: Path) -> dict:
    """Each signature by each way."""
    values = ServedProcess(MODEL, base, *SHIPPED)
    try:
        content = ServedProcess(MODEL, base, *SHIPPED, "--enable_serialization_as_tensor_content")
        try:
            found = measure_forms(MODEL, arguments.model, picture, {"values": values, "content": content},
                                  max(3, arguments.pairs // 4))
        finally:
            content.stop()
    finally:
        values.stop()
    print(forms_table(found))
    return found


PARTS: dict[str, Callable] = {"overhead": measure_overhead, "threads": measure_threads, "batching": measure_batching,
                              "export": measure_export, "forms": measure_every_form}

if __name__ == "__main__":
    sys.exit(main())
