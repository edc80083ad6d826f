"""Counting of label and prediction beside MMSegmentation's and Keras': the same maps, in turn on one machine.

    python -m benchmarks.counting --peer-python PEER/bin/python
    python -m benchmarks.counting --rounds 15 --out figures.json

Maps of 1024x2048 with 19 classes; README.md beside this file says how to make the peer's environment. Without it the
others are measured alone.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks import street_pairs
from benchmarks.measured_process import MeasuredProcess, Round, start
from kseg.datasets.class_names import CITYSCAPES_LABEL_IDS

ROOT = Path(__file__).resolve().parents[1]
CLASSES, VOID = 19, 255
PEER, BASE = "MMSegmentation, IoUMetric", "kseg, confusion"
# What kseg_counting.py calls them.
KINDS = {"Keras, MeanIoU": "keras", BASE: "confusion", "kseg, counts (with bands)": "counts"}


def main() -> int:
    arguments = parse(sys.argv[1:])
    processes: dict[str, MeasuredProcess] = {}
    with tempfile.TemporaryDirectory(prefix="counting-") as directory:
        maps = Path(directory) / "maps.npz"
        write_maps(maps, arguments.maps)
        print(f"{arguments.maps} maps of {'x'.join(map(str, street_pairs.SIZE))}, {CLASSES} classes; "
              f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
        try:
            start_all(processes, maps, arguments.peer_python)
            require_equal(processes)
            rounds = measure(processes, arguments.rounds, arguments.steps)
        except RuntimeError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        finally:
            for process in processes.values():
                process.close()
    print(table(figures(rounds)))
    print(f"load at the end {os.getloadavg()[0]:.1f}")
    if arguments.out:
        arguments.out.write_text(json.dumps(figures(rounds), indent=2) + "\n", encoding="utf-8")
    return 0


def parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measures kseg's counting beside MMSegmentation's and Keras'.")
    parser.add_argument("--peer-python", metavar="FILE", help="the Python that has MMSegmentation; see README.md")
    parser.add_argument("--rounds", type=int, default=7, help="rounds in which each has its turn (default 7)")
    parser.add_argument("--steps", type=int, default=20, help="maps counted in a turn (default 20)")
    parser.add_argument("--maps", type=int, default=4, help="different maps (default 4)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the figures there as JSON too")
    arguments = parser.parse_args(words)
    for name in ("rounds", "steps", "maps"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be at least 1")
    return arguments


def write_maps(path: Path, count: int) -> None:
    """Write `labels` and `predictions`, uint8 (count, 1024, 2048), and `classes` as .npz.

    Labels are drawn streets in train ids, void included; a prediction is its label some pixels aside, where one pixel
    in twenty is of any class.
    """
    train_ids = np.full(256, VOID, np.uint8)
    train_ids[list(CITYSCAPES_LABEL_IDS)] = np.arange(CLASSES)
    labels, predictions = [], []
    for seed in range(count):
        random = np.random.default_rng(seed)
        ids = street_pairs.draw_pair(seed)[1]
        label = train_ids[ids]
        guess = np.roll(np.where(label == VOID, 0, label), (3, 5), (0, 1))
        anything = random.random(label.shape) < 0.05
        labels.append(label)
        predictions.append(np.where(anything, random.integers(0, CLASSES, label.shape), guess).astype(np.uint8))
    np.savez(path, labels=np.stack(labels), predictions=np.stack(predictions), classes=CLASSES)


def start_all(processes: dict[str, MeasuredProcess], maps: Path, peer_python: str | None) -> None:
    """Add a process for each way; a peer that cannot be measured is told and left out.

    Raises RuntimeError where another cannot.
    """
    try:
        if not peer_python:
            raise RuntimeError("no --peer-python")
        processes[PEER] = start([peer_python, "-m", "benchmarks.peer_counting", str(maps)], {"PYTHONPATH": str(ROOT)})
    except RuntimeError as error:
        print(f"{PEER}: not measured: {error}")
    # Found wherever this file's checkout lies, installed or not; no GPU, since the peer counts on the processor.
    environment = {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "2"}
    for name, kind in KINDS.items():
        processes[name] = start([sys.executable, "-m", "benchmarks.kseg_counting", str(maps), kind], environment)
    for name, process in processes.items():
        process.settle()
        print(f"{name}: {', '.join(' '.join(pair) for pair in process.description['versions'].items())}")


def require_equal(processes: dict[str, MeasuredProcess]) -> None:
    """Raise RuntimeError where two ways find different numbers of pixels, hit, true or predicted, in a class."""
    expected = processes[BASE].description
    for name, process in processes.items():
        for key in ("hits", "truth", "predicted"):
            if process.description[key] != expected[key]:
                raise RuntimeError(f"{name} finds other {key} than {BASE}: {process.description[key]}, {expected[key]}")


def measure(processes: dict[str, MeasuredProcess], rounds: int, steps: int) -> dict[str, list[Round]]:
    """Return each way's rounds; one works at a time, in an order that turns round each time."""
    found: dict[str, list[Round]] = {name: [] for name in processes}
    for number in range(rounds):
        for name in list(processes)[::-1 if number % 2 else 1]:
            found[name].append(processes[name].work(2, steps))
    return found


def figures(rounds: dict[str, list[Round]]) -> dict:
    """Return by way the median and range of its milliseconds a map.

    So are the ratios of the peer's time in the same round to it, of wall and of CPU time.
    """
    peer = rounds.get(PEER)
    result = {}
    for name, done in rounds.items():
        times = [1000 / each.rate for each in done]
        ratios = [each.rate / other.rate for each, other in zip(done, peer)] if peer else None
        savings = [other.cpu_seconds / each.cpu_seconds for each, other in zip(done, peer)] if peer else None
        result[name] = {
            "milliseconds": statistics.median(times), "fastest": min(times), "slowest": max(times), "times": times,
            "ratio": statistics.median(ratios) if ratios else None,
            "cpu_milliseconds": 1000 * statistics.median(each.cpu_seconds for each in done),
            "cpu_ratio": statistics.median(savings) if savings else None}
    return result


def table(values: dict) -> str:
    """Return the figures as text, one line a way."""
    lines = [f"{'':28}{'ms/map (min..max)':>26}{'x peer':>8}{'CPU ms/map':>12}{'x peer':>8}"]
    for name, row in values.items():
        times = f"{row['milliseconds']:.1f} ({row['fastest']:.1f}..{row['slowest']:.1f})"
        ratio, saving = ("" if row[key] is None else f"{row[key]:.2f}" for key in ("ratio", "cpu_ratio"))
        lines.append(f"{name:28}{times:>26}{ratio:>8}{row['cpu_milliseconds']:12.1f}{saving:>8}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
