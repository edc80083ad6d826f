"""Compare kseg's counting of pixels by label and prediction with MMSegmentation's and Keras'.

    python -m benchmarks.counting --peer-python PEER/bin/python
    python -m benchmarks.counting --rounds 15 --out figures.json

Maps of 1024x2048 with 19 classes. docs/performance.md describes the peer's environment and the measurement. If the
peer cannot be measured, the reason is printed.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks import comparison, street_pairs
from benchmarks.measured_process import MeasuredProcess, Round, start
from kseg.datasets.class_names import CITYSCAPES_LABEL_IDS

CLASSES, VOID = 19, 255
PEER, BASE = "MMSegmentation, IoUMetric", "kseg, confusion"
# Name in the table -> argument of kseg_counting.
KINDS = {"Keras, MeanIoU": "keras", BASE: "confusion", "kseg, counts (with bands)": "counts"}


def main() -> int:
    arguments = parse(sys.argv[1:])
    processes: dict[str, MeasuredProcess] = {}
    with tempfile.TemporaryDirectory(prefix="counting-") as directory:
        maps = Path(directory) / "maps.npz"
        write_maps(maps, arguments.maps)
        print(
            f"{arguments.maps} maps of {'x'.join(map(str, street_pairs.SIZE))}, {CLASSES} classes; "
            f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
        )
        try:
            start_all(processes, maps, arguments.peer_python)
            require_equal(processes)
            rounds = comparison.measure_in_turn(processes, arguments.rounds, 2, arguments.steps)
        except RuntimeError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        finally:
            for process in processes.values():
                process.close()
    results = summarize(rounds)
    print(table(results))
    print(f"load at the end {os.getloadavg()[0]:.1f}")
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return 0


def parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.counting", description=__doc__.partition("\n")[0])
    parser.add_argument("--peer-python", metavar="FILE", help="Python of the peer's environment")
    parser.add_argument("--rounds", type=int, default=7, help="turns of every system (default 7)")
    parser.add_argument("--steps", type=int, default=20, help="maps counted per turn (default 20)")
    parser.add_argument("--maps", type=int, default=4, help="number of different maps (default 4)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the results as JSON")
    arguments = parser.parse_args(words)
    comparison.require_positive(parser, arguments, "rounds", "steps", "maps")
    return arguments


def write_maps(path: Path, count: int) -> None:
    """Write uint8 `labels` and `predictions` (count, 1024, 2048) and the number of `classes` as .npz.

    Labels are drawn streets in train ids and void. A prediction is its label, shifted by some pixels, with random
    classes in 5% of the pixels.
    """
    train_ids = np.full(256, VOID, np.uint8)
    train_ids[list(CITYSCAPES_LABEL_IDS)] = np.arange(CLASSES)
    labels, predictions = [], []
    for seed in range(count):
        random = np.random.default_rng(seed)
        label = train_ids[street_pairs.draw_pair(seed)[1]]
        shifted = np.roll(np.where(label == VOID, 0, label), (3, 5), (0, 1))
        noise = random.random(label.shape) < 0.05
        labels.append(label)
        predictions.append(np.where(noise, random.integers(0, CLASSES, label.shape), shifted).astype(np.uint8))
    np.savez(path, labels=np.stack(labels), predictions=np.stack(predictions), classes=CLASSES)


def start_all(processes: dict[str, MeasuredProcess], maps: Path, peer_python: str | None) -> None:
    """Add the started processes; raises RuntimeError if one of kseg's or Keras' cannot work."""
    peer = comparison.start_or_report(PEER, lambda: start_peer(maps, peer_python), set())
    if peer:
        processes[PEER] = peer
    for name, kind in KINDS.items():
        # The peer counts on the CPU, so no GPU is used.
        processes[name] = start(
            [sys.executable, "-m", "benchmarks.kseg_counting", str(maps), kind],
            {"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "2"},
        )
    for name, process in processes.items():
        process.settle()
        print(f"{name}: {', '.join(' '.join(pair) for pair in process.description['versions'].items())}")


def start_peer(maps: Path, python: str | None) -> MeasuredProcess:
    """Start MMSegmentation's metric; raises RuntimeError with the reason if it cannot work."""
    if not python:
        raise RuntimeError("no --peer-python")
    return start([python, "-m", "benchmarks.peer_counting", str(maps)], {})


def require_equal(processes: dict[str, MeasuredProcess]) -> None:
    """Raise RuntimeError unless all systems count the same hits, labeled pixels and predicted pixels per class."""
    expected = processes[BASE].description
    for name, process in processes.items():
        for key in ("hits", "truth", "predicted"):
            if process.description[key] != expected[key]:
                raise RuntimeError(f"{name} and {BASE} differ in {key}: {process.description[key]}, {expected[key]}")


def summarize(rounds: dict[str, list[Round]]) -> dict:
    """Return {system: medians of its milliseconds per map, and of the ratios of the peer's time to its time}."""
    peer = rounds.get(PEER)
    results = {}
    for name, done in rounds.items():
        times = [1000 / turn.rate for turn in done]
        cpu_times = [1000 * turn.cpu_seconds for turn in done]
        results[name] = {
            "milliseconds": statistics.median(times),
            "fastest": min(times),
            "slowest": max(times),
            "times": times,
            "ratio": comparison.median_ratio([1000 / turn.rate for turn in peer], times) if peer else None,
            "cpu_milliseconds": statistics.median(cpu_times),
            "cpu_ratio": comparison.median_ratio([1000 * turn.cpu_seconds for turn in peer], cpu_times)
            if peer
            else None,
        }
    return results


def table(results: dict) -> str:
    """Return the results as text, one line per system."""
    lines = [f"{'':28}{'ms/map (min..max)':>26}{'x peer':>8}{'CPU ms/map':>12}{'x peer':>8}"]
    for name, row in results.items():
        times = f"{row['milliseconds']:.1f} ({row['fastest']:.1f}..{row['slowest']:.1f})"
        ratio, cpu_ratio = ("" if row[key] is None else f"{row[key]:.2f}" for key in ("ratio", "cpu_ratio"))
        lines.append(f"{name:28}{times:>26}{ratio:>8}{row['cpu_milliseconds']:12.1f}{cpu_ratio:>8}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
