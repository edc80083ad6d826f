"""Compare kseg's input pipeline with MMSegmentation's on the same pairs and steps.

    python -m benchmarks.input_pipeline --peer-python PEER/bin/python
    python -m benchmarks.input_pipeline --image street.png --label street_labelIds.png --out figures.json

Both read pairs of 1024x2048 and make batches of 8 with the augmentation of the 512x1024 recipes. docs/performance.md
describes the peer's environment and the measurement. If the peer cannot be measured, the reason is printed.
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

from benchmarks import comparison, street_pairs
from benchmarks.comparison import MIB
from benchmarks.measured_process import ROOT, MeasuredProcess, Round, start

CONFIG, BATCH = "encnet_cityscapes", 8
PEER = "MMSegmentation, PNG"


def main() -> int:
    arguments = parse(sys.argv[1:])
    with tempfile.TemporaryDirectory(dir=arguments.directory, prefix="input-pipeline-") as name:
        directory = Path(name)
        try:
            pair = (
                street_pairs.read_pair(arguments.image, arguments.label)
                if arguments.image
                else (street_pairs.draw_pair())
            )
            sizes = street_pairs.write_tree(directory / "tree", *pair)
        except (OSError, ValueError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        height, width = pair[1].shape
        print(
            f"{street_pairs.VARIANTS} pairs of {height}x{width}, {'given' if arguments.image else 'drawn'}: PNG of "
            f"{sizes[0] / 1e6:.2f} MB, label {sizes[1] / 1e3:.0f} kB; {arguments.workers} of {os.cpu_count()} cores, "
            f"load {os.getloadavg()[0]:.1f}"
        )
        processes = {}
        try:
            for name, start_pipeline in pipelines(directory, arguments.peer_python, arguments.workers).items():
                add_pipeline(processes, name, start_pipeline)
            require_same_batches(processes)
            rounds = comparison.measure_in_turn(
                processes,
                arguments.rounds,
                arguments.warm_up,
                arguments.batches,
                lambda number, done: print(
                    f"round {number} of {arguments.rounds}: "
                    + ", ".join(f"{name} {turns[-1].rate:.1f}" for name, turns in done.items()),
                    flush=True,
                ),
            )
            peaks = {name: process.peak() for name, process in processes.items()}
        except RuntimeError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        finally:
            for process in processes.values():
                process.close()
    print(table(rounds, peaks))
    print(f"load at the end {os.getloadavg()[0]:.1f}, up to {arguments.workers} of it from these processes")
    if arguments.out:
        results = summarize(rounds, peaks)
        for name, process in processes.items():
            results[name]["versions"] = process.description["versions"]
        arguments.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return 0


def parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.input_pipeline", description=__doc__.partition("\n")[0])
    parser.add_argument("--peer-python", metavar="FILE", help="Python of the peer's environment")
    parser.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count(),
        help="processes of the peer and threads of kseg (default: the number of cores)",
    )
    parser.add_argument("--image", type=Path, metavar="FILE", help="image to measure with (default: a drawn one)")
    parser.add_argument("--label", type=Path, metavar="FILE", help="its label, an 8-bit PNG of Cityscapes' labelIds")
    parser.add_argument("--rounds", type=int, default=7, help="turns of every pipeline (default 7)")
    parser.add_argument("--batches", type=int, default=16, help="batches of 8 timed per turn (default 16)")
    parser.add_argument("--warm-up", type=int, default=8, help="untimed batches before them (default 8)")
    parser.add_argument(
        "--directory", type=Path, help="directory for the temporary pairs (default: the system's temporary directory)"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the results of all rounds as JSON")
    arguments = parser.parse_args(words)
    if (arguments.image is None) != (arguments.label is None):
        parser.error("--image and --label must be given together")
    comparison.require_positive(parser, arguments, "workers", "rounds", "batches")
    return arguments


def pipelines(directory: Path, peer_python: str | None, workers: int) -> dict[str, Callable[[], MeasuredProcess]]:
    """Return {name in the table: function that starts the pipeline}."""
    tree = directory / "tree"
    return {
        PEER: lambda: start_peer(tree, peer_python, workers),
        "kseg, PNG": lambda: start_kseg(tree, workers),
        "kseg, prepare": lambda: start_kseg(prepare(tree, directory / "records", []), workers),
        "kseg, prepare --fast": lambda: start_kseg(prepare(tree, directory / "pixels", ["--fast"]), workers),
    }


def add_pipeline(
    processes: dict[str, MeasuredProcess], name: str, start_pipeline: Callable[[], MeasuredProcess]
) -> None:
    """Start a pipeline and add it; raises RuntimeError if one of kseg's cannot work."""
    if name == PEER:
        process = comparison.start_or_report(name, start_pipeline, set())
        if not process:
            return
    else:
        try:
            process = start_pipeline()
        except RuntimeError as error:
            raise RuntimeError(f"{name}: {error}") from None
    processes[name] = process
    # The next process starts only after this one has finished its imports and filled its buffers.
    process.settle()
    versions = process.description["versions"]
    print(f"{name}: {', '.join(f'{package} {version}' for package, version in versions.items())}")


def require_same_batches(processes: dict[str, MeasuredProcess]) -> None:
    """Raise RuntimeError if the batches of the pipelines differ in shape or dtype."""
    kinds = {json.dumps([process.description[key] for key in ("image", "label")]) for process in processes.values()}
    if len(kinds) != 1:
        raise RuntimeError(f"the batches of the pipelines differ: {' and '.join(sorted(kinds))}")


def start_peer(tree: Path, python: str | None, workers: int) -> MeasuredProcess:
    """Start MMSegmentation's pipeline; raises RuntimeError with the reason if it cannot work."""
    if not python:
        raise RuntimeError("no --peer-python")
    # MMSegmentation's launcher also gives every process one thread if there are several.
    return start(
        [python, "-m", "benchmarks.peer_pipeline", str(tree), str(workers), str(BATCH)],
        {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
    )


def start_kseg(directory: Path, threads: int) -> MeasuredProcess:
    """Start kseg's pipeline for a dataset's directory; raises RuntimeError if it cannot work."""
    return start(
        [
            sys.executable,
            "-m",
            "benchmarks.kseg_pipeline",
            str(threads),
            CONFIG,
            f"data.directory={directory}",
            f"train.global_batch={BATCH}",
        ],
        {"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "2"},
    )


def prepare(tree: Path, directory: Path, options: list[str]) -> Path:
    """Write the tree's pairs as record files by `python -m kseg.data prepare`; raises RuntimeError if it fails."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "kseg.data",
            "prepare",
            "cityscapes",
            "--source",
            tree,
            "--directory",
            directory,
            "--split",
            "train",
            "--subset",
            *options,
        ],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    if done.returncode:
        raise RuntimeError(f"prepare failed: {(done.stderr.strip() or done.stdout.strip()).splitlines()[-1]}")
    bytes_written = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    print(f"{' '.join(['prepare', *options])}: {bytes_written / street_pairs.VARIANTS / 1e6:.2f} MB per pair")
    return directory


def table(rounds: dict[str, list[Round]], peaks: dict[str, int]) -> str:
    """Return the results as text, one line per pipeline."""
    lines = [
        f"{'':24}{'images/s (min..max)':>26}{'x peer':>8}{'CPU ms/image':>14}{'x peer':>8}{'MiB':>7}{'peak MiB':>10}"
    ]
    for name, row in summarize(rounds, peaks).items():
        rates = f"{row['rate']:.1f} ({row['slowest']:.1f}..{row['fastest']:.1f})"
        ratio, cpu_ratio = ("" if row[key] is None else f"{row[key]:.2f}" for key in ("ratio", "cpu_ratio"))
        lines.append(
            f"{name:24}{rates:>26}{ratio:>8}{1000 * row['cpu_seconds']:14.1f}{cpu_ratio:>8}"
            f"{row['resident'] / MIB:7.0f}{row['peak'] / MIB:10.0f}"
        )
    return "\n".join(lines)


def summarize(rounds: dict[str, list[Round]], peaks: dict[str, int]) -> dict:
    """Return {pipeline: medians over its rounds}.

    Ratios within rounds are those of its images/s to the peer's, and of the peer's CPU time per image to its own.
    """
    peer = rounds.get(PEER)
    results = {}
    for name, done in rounds.items():
        rates, cpu = [turn.rate for turn in done], [turn.cpu_seconds for turn in done]
        results[name] = {
            "rate": statistics.median(rates),
            "slowest": min(rates),
            "fastest": max(rates),
            "ratio": comparison.median_ratio(rates, [turn.rate for turn in peer]) if peer else None,
            "ratios": [turn.rate / other.rate for turn, other in zip(done, peer)] if peer else None,
            "rates": rates,
            "cpu_seconds": statistics.median(cpu),
            "cpu_ratio": comparison.median_ratio([turn.cpu_seconds for turn in peer], cpu) if peer else None,
            "resident": max(turn.resident for turn in done),
            "peak": peaks[name],
        }
    return results


if __name__ == "__main__":
    sys.exit(main())
