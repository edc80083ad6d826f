"""kseg's input pipeline beside MMSegmentation's: the same pairs, the same steps, in turn on one machine.

    python -m benchmarks.input_pipeline --peer-python PEER/bin/python
    python -m benchmarks.input_pipeline --image street.png --label street_labelIds.png --out figures.json

Both read pairs of 1024x2048 and make batches of 8 with the augmentation of the 512x1024 recipes; README.md beside this
file says how to make the peer's environment. Without it kseg is measured alone.
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

from benchmarks import street_pairs
from benchmarks.measured_process import MeasuredProcess, Round, start

ROOT = Path(__file__).resolve().parents[1]
CONFIG, BATCH = "encnet_cityscapes", 8
PEER = "MMSegmentation, PNG"
MIB = 2 ** 20


def main() -> int:
    arguments = parse(sys.argv[1:])
    with tempfile.TemporaryDirectory(dir=arguments.directory, prefix="input-pipeline-") as directory:
        place = Path(directory)
        try:
            pair = street_pairs.read_pair(arguments.image, arguments.label) if arguments.image else (
                street_pairs.draw_pair())
            sizes = street_pairs.write_tree(place / "tree", *pair)
        except (OSError, ValueError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        height, width = pair[1].shape
        print(f"{street_pairs.VARIANTS} pairs of {height}x{width}, {'given' if arguments.image else 'drawn'}: PNG of "
              f"{sizes[0] / 1e6:.2f} MB, label {sizes[1] / 1e3:.0f} kB; {arguments.workers} of {os.cpu_count()} cores, "
              f"load {os.getloadavg()[0]:.1f}")
        processes = {}
        try:
            for name, begin in pipelines(place, arguments.peer_python, arguments.workers).items():
                start_one(processes, name, begin)
            require_alike(processes)
            rounds = measure(processes, arguments.rounds, arguments.warm_up, arguments.batches)
            peaks = {name: process.peak() for name, process in processes.items()}
        except RuntimeError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        finally:
            for process in processes.values():
                process.close()
    print(table(rounds, peaks))
    print(f"load at the end {os.getloadavg()[0]:.1f}, of which {arguments.workers} or less are these processes'")
    if arguments.out:
        arguments.out.write_text(json.dumps(figures(rounds, peaks, processes), indent=2) + "\n", encoding="utf-8")
    return 0


def parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measures kseg's input pipeline beside MMSegmentation's.")
    parser.add_argument("--peer-python", metavar="FILE", help="the Python that has MMSegmentation; see README.md")
    parser.add_argument("--workers", type=int, default=os.cpu_count(),
                        help="processes of the peer and threads of kseg (default: one for each core)")
    parser.add_argument("--image", type=Path, metavar="FILE", help="a picture to measure with (default: a drawn one)")
    parser.add_argument("--label", type=Path, metavar="FILE", help="its label, an 8-bit PNG of Cityscapes' labelIds")
    parser.add_argument("--rounds", type=int, default=7, help="rounds in which each pipeline has its turn (default 7)")
    parser.add_argument("--batches", type=int, default=16, help="batches of 8 timed in a round (default 16)")
    parser.add_argument("--warm-up", type=int, default=8, help="batches before them (default 8)")
    parser.add_argument("--directory", type=Path, help="where to write the pairs for the while (default: the system's)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the figures of every round there as JSON too")
    arguments = parser.parse_args(words)
    if (arguments.image is None) != (arguments.label is None):
        parser.error("--image and --label go together")
    for name in ("workers", "rounds", "batches"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be at least 1")
    return arguments


def pipelines(place: Path, peer_python: str | None, workers: int) -> dict[str, Callable[[], MeasuredProcess]]:
    """Return by name in the table how each pipeline is started."""
    tree = place / "tree"
    return {
        PEER: lambda: start_peer(tree, peer_python, workers),
        "kseg, PNG": lambda: start_kseg(tree, workers),
        "kseg, prepare": lambda: start_kseg(prepare(tree, place / "records", []), workers),
        "kseg, prepare --fast": lambda: start_kseg(prepare(tree, place / "pixels", ["--fast"]), workers)}


def start_one(processes: dict[str, MeasuredProcess], name: str, begin: Callable[[], MeasuredProcess]) -> None:
    """Add a started pipeline; a peer that cannot be measured is told and left out.

    Raises RuntimeError where one of kseg's cannot.
    """
    try:
        processes[name] = begin()
    except RuntimeError as error:
        if name != PEER:
            raise RuntimeError(f"{name}: {error}") from None
        print(f"{name}: not measured: {error}")
        return
    # Imports and buffers of one process shall not run into the next one's.
    processes[name].settle()
    versions = processes[name].description["versions"]
    print(f"{name}: {', '.join(f'{package} {version}' for package, version in versions.items())}")


def require_alike(processes: dict[str, MeasuredProcess]) -> None:
    """Raise RuntimeError where the batches of the pipelines differ in shape or type."""
    kinds = {json.dumps([process.description[key] for key in ("image", "label")]) for process in processes.values()}
    if len(kinds) != 1:
        raise RuntimeError(f"the pipelines' batches are not alike: {' and '.join(sorted(kinds))}")


def start_peer(tree: Path, python: str | None, workers: int) -> MeasuredProcess:
    """Start MMSegmentation's pipeline; raises RuntimeError where there is none."""
    if not python:
        raise RuntimeError("no --peer-python")
    # One thread for each process, as its launcher sets it where there are several.
    return start([python, "-m", "benchmarks.peer_pipeline", str(tree), str(workers), str(BATCH)],
                 {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"})


def start_kseg(directory: Path, threads: int) -> MeasuredProcess:
    """Start kseg's pipeline over a data set's directory; raises RuntimeError where it cannot work."""
    # Found wherever this file's checkout lies, installed or not; no GPU, whose memory nobody asks for.
    environment = {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "2"}
    return start([sys.executable, "-m", "benchmarks.kseg_pipeline", str(threads), CONFIG, f"data.directory={directory}",
                  f"train.global_batch={BATCH}"], environment)


def prepare(tree: Path, directory: Path, options: list[str]) -> Path:
    """Let `python -m kseg.data prepare` write the tree's pairs as record files; raises RuntimeError where it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "kseg.data", "prepare", "cityscapes", "--source", tree, "--directory", directory,
         "--split", "train", "--subset", *options], capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)})
    if done.returncode:
        raise RuntimeError(f"preparing failed: {(done.stderr.strip() or done.stdout.strip()).splitlines()[-1]}")
    bytes_written = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    print(f"{' '.join(['prepare', *options])}: {bytes_written / street_pairs.VARIANTS / 1e6:.2f} MB a pair")
    return directory


def measure(processes: dict[str, MeasuredProcess], rounds: int, warm_up: int, batches: int) -> dict[str, list[Round]]:
    """Return each pipeline's rounds; one works at a time, in an order that turns round each time."""
    found: dict[str, list[Round]] = {name: [] for name in processes}
    for number in range(rounds):
        for name in list(processes)[::-1 if number % 2 else 1]:
            found[name].append(processes[name].work(warm_up, batches))
        print(f"round {number + 1} of {rounds}: "
              + ", ".join(f"{name} {done[-1].rate:.1f}" for name, done in found.items()), flush=True)
    return found


def table(rounds: dict[str, list[Round]], peaks: dict[str, int]) -> str:
    """Return the figures as text, one line a pipeline."""
    lines = [f"{'':24}{'images/s (min..max)':>26}{'x peer':>8}{'CPU ms/image':>14}{'x peer':>8}{'MiB':>7}"
             f"{'peak MiB':>10}"]
    for name, values in figures(rounds, peaks, {}).items():
        rates = f"{values['rate']:.1f} ({values['slowest']:.1f}..{values['fastest']:.1f})"
        ratio, saving = ("" if values[key] is None else f"{values[key]:.2f}" for key in ("ratio", "cpu_ratio"))
        lines.append(f"{name:24}{rates:>26}{ratio:>8}{1000 * values['cpu_seconds']:14.1f}{saving:>8}"
                     f"{values['resident'] / MIB:7.0f}{values['peak'] / MIB:10.0f}")
    return "\n".join(lines)


def figures(rounds: dict[str, list[Round]], peaks: dict[str, int], processes: dict[str, MeasuredProcess]) -> dict:
    """Return by pipeline the medians over its rounds.

    So are ratios: of its images/s to the peer's in the same round, and of the peer's CPU time an image to its own.
    """
    peer = rounds.get(PEER)
    result = {}
    for name, done in rounds.items():
        rates = [each.rate for each in done]
        ratios = [each.rate / other.rate for each, other in zip(done, peer)] if peer else None
        savings = [other.cpu_seconds / each.cpu_seconds for each, other in zip(done, peer)] if peer else None
        result[name] = {
            "rate": statistics.median(rates), "slowest": min(rates), "fastest": max(rates),
            "ratio": statistics.median(ratios) if ratios else None, "ratios": ratios, "rates": rates,
            "cpu_seconds": statistics.median(each.cpu_seconds for each in done),
            "cpu_ratio": statistics.median(savings) if savings else None,
            "resident": max(each.resident for each in done), "peak": peaks[name]}
        if name in processes:
            result[name]["versions"] = processes[name].description["versions"]
    return result


if __name__ == "__main__":
    sys.exit(main())
