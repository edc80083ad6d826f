"""Measure processes in turn and compare them within rounds; no dependencies."""

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.measured_process import MeasuredProcess, Round

MIB = 2**20


@dataclass(frozen=True)
class ModelRow:
    """Results of a system for a head.

    `seconds` and `cpu_seconds` are per item of every round. `ratio` and `cpu_ratio` are the medians of their ratios to
    the first system's in the same round. `peak` is in bytes, and `description` is the process's.
    """

    head: str
    system: str
    seconds: list[float]
    ratio: float
    cpu_seconds: list[float]
    cpu_ratio: float
    peak: int
    description: dict


def processor_name() -> str:
    """Return the name of the CPU."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "processor"


def require_positive(parser: argparse.ArgumentParser, arguments: argparse.Namespace, *names: str) -> None:
    """Exit with a usage error unless the named arguments are at least 1."""
    for name in names:
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be at least 1")


def parse_heads(parser: argparse.ArgumentParser, text: str, choices: tuple[str, ...]) -> list[str]:
    """Return the heads in a comma-separated list; exits with a usage error for an unknown one."""
    heads = text.split(",")
    for head in heads:
        if head not in choices:
            parser.error(f"--heads: no head {head!r}; choices: {', '.join(choices)}")
    return heads


def start_or_report(name: str, start: Callable[[], MeasuredProcess], reported: set[str]) -> MeasuredProcess | None:
    """Start a peer; if it cannot work, print the reason once and return None."""
    try:
        return start()
    except RuntimeError as error:
        reason = f"{name}: not measured: {error}"
        if reason not in reported:
            print(reason)
        reported.add(reason)
        return None


def measure_in_turn(
    processes: dict[str, MeasuredProcess],
    rounds: int,
    warm_up: int,
    count: int,
    report: Callable[[int, dict[str, list[Round]]], None] | None = None,
) -> dict[str, list[Round]]:
    """Return the rounds of all processes.

    One process works at a time. The order is reversed in every other round. `report` is called after every round.
    """
    results: dict[str, list[Round]] = {name: [] for name in processes}
    for number in range(rounds):
        for name in list(processes)[:: -1 if number % 2 else 1]:
            results[name].append(processes[name].work(warm_up, count))
        if report:
            report(number + 1, results)
    return results


def median_ratio(values: list[float], references: list[float]) -> float:
    """Return the median of the ratios within rounds, which other work on the machine disturbs less than medians."""
    return statistics.median(value / reference for value, reference in zip(values, references, strict=True))


def spread(values: list[float]) -> str:
    """Return "median (min..max)"."""
    return f"{statistics.median(values):.2f} ({min(values):.2f}..{max(values):.2f})"


def measure_models(head: str, processes: dict[str, MeasuredProcess], rounds: int, count: int) -> list[ModelRow]:
    """Return a row per process, with ratios to the first one."""
    for process in processes.values():
        # The first items choose kernels and fill caches.
        process.work(1, 1)
    results = measure_in_turn(
        processes,
        rounds,
        0,
        count,
        lambda number, done: print(
            f"{head}, round {number} of {rounds}: "
            + ", ".join(f"{name} {1 / rounds_of[-1].rate:.2f} s" for name, rounds_of in done.items()),
            flush=True,
        ),
    )
    seconds = {name: [1 / done.rate for done in results[name]] for name in results}
    cpu = {name: [done.cpu_seconds for done in results[name]] for name in results}
    first = next(iter(processes))
    return [
        ModelRow(
            head,
            name,
            seconds[name],
            median_ratio(seconds[name], seconds[first]),
            cpu[name],
            median_ratio(cpu[name], cpu[first]),
            process.peak(),
            process.description,
        )
        for name, process in processes.items()
    ]


def ratio_cells(row: ModelRow, reference: str) -> tuple[str, str]:
    """Return the wall and CPU ratios of a row for a table; the reference's own are exactly 1."""
    return ("1", "1") if row.system == reference else (f"{row.ratio:.2f}", f"{row.cpu_ratio:.2f}")


def versions(rows: list[ModelRow]) -> str:
    """Return the versions of all systems as text."""
    merged = {name: version for row in rows for name, version in row.description["versions"].items()}
    return ", ".join(f"{name} {version}" for name, version in merged.items())


def compare_models(
    arguments: argparse.Namespace,
    title: str,
    measure_head: Callable[[str, argparse.Namespace, set[str]], list[ModelRow]],
    table: Callable[[list[ModelRow]], str],
) -> int:
    """Measure all heads, print the table and return the exit status.

    `measure_head` gets a head, the arguments and the set of reasons already reported. With `arguments.out`, all results
    are written as JSON after every head, because a head takes minutes.
    """
    print(f"{processor_name()}, {arguments.threads} of {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {title}")
    rows, reported = [], set()
    try:
        for head in arguments.heads:
            rows += measure_head(head, arguments, reported)
            if arguments.out:
                values = [asdict(row) for row in rows]
                values = [row.pop("description") | row for row in values]
                arguments.out.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(table(rows))
    print(f"load at the end {os.getloadavg()[0]:.1f}, up to {arguments.threads} of it from these processes")
    return 0
