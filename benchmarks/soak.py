"""Switch versions under a fully loaded server, compare all answers and watch the server's memory.

    python -m benchmarks.soak --minutes 10 --swap-seconds 30
    python -m benchmarks.soak --encoded --server-flags "--enable_batching --batching_parameters_file=FILE"

Versions are exports of a small model with different weights, whose answers are computed without a server. Every
--swap-seconds a new version appears by a rename. Every fourth change instead removes the newest version, which rolls
back to the previous one. If there are more than three versions, the oldest is removed. A tenth of the requests is bad
and must be refused with the right status. The exit status is 1 after a wrong answer, a failed request, a failed change
or growth of the server's memory.
"""

import argparse
import os
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
from tensorflow_serving.apis import get_model_status_pb2, model_service_pb2_grpc

from benchmarks import small_exports
from benchmarks.served_process import SHIPPED, ServedProcess
from benchmarks.soak_clients import MAX_PROBLEMS, Client, Expected, GrpcClient, RestClient, Tally, Timeline

MODEL = "soak"
SEEDS = (1, 2, 3)
MIB = 2**20
# Every fourth change is a rollback, and three versions stay on disk.
ROLLBACK_EVERY, KEPT = 4, 3
# Maximum time until the server's state matches the directory.
CHANGE_SECONDS = 120.0
# Values of ModelVersionStatus.State.
AVAILABLE, END = 30, 50
# Allocations in the first half do not count as growth, and shorter runs are too noisy to judge.
SETTLED_FRACTION, MIN_MINUTES = 0.5, 4.0


@dataclass
class Versions:
    """The directory that the server watches, and the changes made to it as (seconds, kind)."""

    base: Path
    sources: list[Path]
    present: list[int] = field(default_factory=list)
    next: int = 0
    changes: list[tuple[float, str]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def publish(self) -> int:
        """Add the next version atomically and return its number."""
        version = self.next
        temporary = self.base / f".tmp-{version}"
        shutil.copytree(self.sources[version % len(self.sources)], temporary)
        os.replace(temporary, self.base / str(version))
        self.present.append(version)
        self.next += 1
        return version

    def remove(self, version: int) -> None:
        """Remove a version atomically."""
        removed = self.base / f".gone-{version}"
        os.replace(self.base / str(version), removed)
        shutil.rmtree(removed)
        self.present.remove(version)

    def change(self, timeline: Timeline, stub: model_service_pb2_grpc.ModelServiceStub) -> None:
        """Publish a version or roll back, and wait until the server serves only the right version."""
        rollback = len(self.changes) % ROLLBACK_EVERY == ROLLBACK_EVERY - 1
        old = self.present[-1]
        new = self.present[-2] if rollback else self.next
        timeline.change({old, new})
        begin = time.monotonic()
        if rollback:
            self.remove(old)
        else:
            self.publish()
        states = {}
        while time.monotonic() < begin + CHANGE_SECONDS:
            states = read_states(stub)
            if states == dict.fromkeys(states, END) | {new: AVAILABLE}:
                break
            time.sleep(0.1)
        else:
            self.failures.append(f"from {old} to {new}: the server's states are {states} after {CHANGE_SECONDS:.0f} s")
            return
        timeline.change({new})
        self.changes.append((time.monotonic() - begin, "rollback" if rollback else "new version"))
        if len(self.present) > KEPT:
            self.remove(self.present[0])


def read_states(stub: model_service_pb2_grpc.ModelServiceStub) -> dict[int, int]:
    """Return {version: state} as the server reports it."""
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = MODEL
    return {status.version: status.state for status in stub.GetModelStatus(request, timeout=30).model_version_status}


class Memory(threading.Thread):
    """A thread that samples the server's resident bytes every second as (seconds since the start, bytes)."""

    def __init__(self, server: ServedProcess):
        super().__init__(daemon=True)
        self.server, self.begin, self.stopped = server, time.monotonic(), threading.Event()
        self.samples = [(0.0, server.resident())]

    def run(self) -> None:
        while not self.stopped.wait(1.0):
            self.samples.append((time.monotonic() - self.begin, self.server.resident()))

    def at(self, seconds: float) -> float:
        """Return the MiB at a time since the start."""
        return min(self.samples, key=lambda sample: abs(sample[0] - seconds))[1] / MIB

    def minima(self) -> list[float]:
        """Return the minimum MiB of all whole minutes; at other times an additional version may be loading."""
        minutes = int(self.samples[-1][0] / 60)
        return [
            min(size for seconds, size in self.samples if 60 * minute <= seconds < 60 * (minute + 1)) / MIB
            for minute in range(minutes)
        ]

    def slope(self) -> float:
        """Return the growth of the minima after SETTLED_FRACTION of the time in MiB per minute (least squares)."""
        minima = self.minima()
        settled = minima[int(SETTLED_FRACTION * len(minima)) :]
        return float(np.polyfit(range(len(settled)), settled, 1)[0]) if len(settled) > 1 else 0.0


def main() -> int:
    arguments = parse(sys.argv[1:])
    with tempfile.TemporaryDirectory() as directory:
        print(f"exporting {len(SEEDS)} versions")
        sources = small_exports.export(Path(directory, "sources"), SEEDS)
        requests = small_exports.cases()
        if arguments.encoded:
            requests = [case for case in requests if "image" not in case.inputs]
        expected = Expected(MODEL, requests, [small_exports.answers(source, requests) for source in sources])
        for first, second in zip(expected.answers, expected.answers[1:] + expected.answers[:1]):
            if any(small_exports.equal(*pair) for pair in zip(first, second)):
                raise RuntimeError("two versions give the same answer, so answers do not identify their version")
        versions = Versions(Path(directory, "served"), sources, next=1)
        versions.base.mkdir()
        timeline = Timeline(versions.publish())
        server = ServedProcess(
            MODEL, versions.base, "--file_system_poll_wait_seconds=1", *SHIPPED, *arguments.server_flags.split()
        )
        try:
            memory = Memory(server)
            tally = soak(arguments, server, memory, expected, versions, timeline)
        finally:
            if arguments.log:
                arguments.log.write_text(server.output(), encoding="utf-8")
            status = server.stop()
    return report(arguments, tally, versions, memory, status)


def parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10.0, metavar="M", help="duration (default 10)")
    parser.add_argument(
        "--swap-seconds", type=float, default=30.0, metavar="S", help="interval of changes (default 30)"
    )
    parser.add_argument(
        "--clients",
        type=int,
        default=12,
        metavar="N",
        help="number of clients, every third over REST (default 12, more than two cores run at once)",
    )
    parser.add_argument(
        "--growth",
        type=float,
        default=3.0,
        metavar="MIB",
        help="allowed growth per minute in the second half (default 3); runs shorter than "
        f"{MIN_MINUTES:g} minutes are not judged",
    )
    parser.add_argument(
        "--server-flags", default="", metavar="FLAGS", help="additional flags of the server, in one argument"
    )
    parser.add_argument(
        "--encoded", action="store_true", help="send no pixels: their different sizes cannot be batched"
    )
    parser.add_argument("--log", type=Path, metavar="FILE", help="write the server's log to this file")
    arguments = parser.parse_args(words)
    if arguments.clients < 1 or arguments.minutes <= 0 or arguments.swap_seconds <= 0:
        parser.error("--clients, --minutes and --swap-seconds must be above 0")
    return arguments


def soak(
    arguments: argparse.Namespace,
    server: ServedProcess,
    memory: Memory,
    expected: Expected,
    versions: Versions,
    timeline: Timeline,
) -> Tally:
    """Run the clients while versions change, and return the total of their tallies."""
    stopped = threading.Event()
    clients: list[Client] = [
        (RestClient if number % 3 == 2 else GrpcClient)(
            server.rest if number % 3 == 2 else server.grpc, expected, timeline, number
        )
        for number in range(arguments.clients)
    ]
    threads = [threading.Thread(target=client.work, args=(stopped,), daemon=True) for client in clients]
    memory.start()
    for thread in threads:
        thread.start()
    stub = model_service_pb2_grpc.ModelServiceStub(grpc.insecure_channel(server.grpc))
    end, swap = memory.begin + 60 * arguments.minutes, memory.begin + arguments.swap_seconds
    reported = memory.begin
    while (
        (now := time.monotonic()) < end
        and server.process.poll() is None
        and all(map(threading.Thread.is_alive, threads))
    ):
        if now >= swap:
            versions.change(timeline, stub)
            swap, now = swap + arguments.swap_seconds, time.monotonic()
        if now >= reported + 10:
            reported = now
            print(
                f"{now - memory.begin:.0f} of {60 * arguments.minutes:.0f} s: {progress(clients, versions, memory)}",
                flush=True,
            )
        time.sleep(0.2)
    alive = sum(map(threading.Thread.is_alive, threads))
    stopped.set()
    for thread in threads:
        thread.join(60)
    memory.stopped.set()
    memory.join()
    total = Tally()
    for client in clients:
        total.add(client.tally)
    if alive < len(threads):
        total.problem("failed", f"{len(threads) - alive} clients stopped with the errors printed above")
    return total


def progress(clients: list[Client], versions: Versions, memory: Memory) -> str:
    """Return the counts so far as text."""
    good = sum(client.tally.good.total() for client in clients)
    return (
        f"{good} answers, {sum(client.tally.refused.total() for client in clients)} refused, "
        f"{sum(client.tally.failed for client in clients)} failed, {sum(client.tally.wrong for client in clients)} "
        f"wrong, {len(versions.changes)} changes, {memory.samples[-1][1] / MIB:.0f} MiB"
    )


def report(arguments: argparse.Namespace, tally: Tally, versions: Versions, memory: Memory, status: int) -> int:
    """Print the tables and return the exit status."""
    seconds, good = memory.samples[-1][0], tally.good.total()
    kinds = Counter(kind for _, kind in versions.changes)
    slowest = max((took for took, _ in versions.changes), default=0.0)
    slope = memory.slope()
    judged = seconds >= 60 * MIN_MINUTES
    grows = judged and slope > arguments.growth
    rows = [
        ("seconds, clients", f"{seconds:.0f}, {arguments.clients}"),
        ("answers, all compared", f"{good}, {good / seconds:.1f}/s"),
        ("slowest answer", f"{tally.slowest:.2f} s"),
        ("answers over REST", sum(count for name, count in tally.good.items() if name.startswith("REST"))),
        ("bad requests, refused as required", tally.refused.total()),
        ("failed requests", tally.failed),
        ("wrong answers", tally.wrong),
        (
            "changes of version",
            f"{len(versions.changes)}: {kinds['new version']} new, {kinds['rollback']} "
            f"rollbacks; slowest {slowest:.1f} s",
        ),
        ("failed changes", len(versions.failures)),
        ("exit status of the server after SIGTERM", status),
        ("MiB at the start", f"{memory.at(0):.0f}"),
    ]
    rows += [(f"minimum MiB in minute {minute}", f"{size:.0f}") for minute, size in enumerate(memory.minima(), 1)]
    peak = max(size for _, size in memory.samples) / MIB
    rows += [
        ("MiB at the end, peak", f"{memory.at(seconds):.0f}, {peak:.0f}"),
        (
            "growth of the minimum in the second half, MiB per minute",
            f"{slope:+.2f}" + ("" if judged else " (too short to judge)"),
        ),
    ]
    print(
        "\n".join(
            [
                "",
                "| | |",
                "|---|--:|",
                *(f"| {name} | {value} |" for name, value in rows),
                "",
                "| kind | number |",
                "|---|--:|",
                *(f"| {name} | {count} |" for name, count in sorted([*tally.good.items(), *tally.refused.items()])),
                "",
                *tally.problems[:MAX_PROBLEMS],
                *versions.failures,
            ]
        )
    )
    failed = [
        text
        for text, holds in (
            ("wrong answers", tally.wrong),
            ("failed requests", tally.failed),
            ("memory grows", grows),
            ("a version was not switched", versions.failures),
            ("the server did not stop cleanly", status),
            ("no answers", not good),
        )
        if holds
    ]
    print(f"FAILED: {', '.join(failed)}" if failed else "passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
