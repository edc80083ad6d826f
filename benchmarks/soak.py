"""A server at its limit while versions are exchanged under it: every answer compared, its memory watched.

    python -m benchmarks.soak --minutes 10 --swap-seconds 30
    python -m benchmarks.soak --encoded --server-flags "--enable_batching --batching_parameters_file=FILE"

Versions are exports of a small model with different weights, whose answers were computed without a server. Every
--swap-seconds a new one appears by a rename; of every four such changes one takes the newest away instead, which rolls
back to the one before it; of more than three the oldest is taken away. A tenth of the requests is bad and must be
refused with its status. The exit status is 1 after a wrong answer, a failed request, a change that did not come about,
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
from benchmarks.soak_clients import TOLD, Client, GrpcClient, Known, RestClient, Tally, Timeline

MODEL = "soak"
SEEDS = (1, 2, 3)
MIB = 2 ** 20
# Every so many changes one is a rollback; so many versions are left on disk.
ROLLBACK, KEPT = 4, 3
# Until the server's state is what the directory says.
CHANGE_SECONDS = 120.0
AVAILABLE, END = 30, 50
# What is allocated in the first minutes is no growth, and less than these is noise.
SETTLED_SHARE, SHORTEST_MINUTES = 0.5, 4.0


@dataclass
class Versions:
    """The directory that the server watches, and the changes made to it: (seconds it took, what it was)."""

    base: Path
    sources: list[Path]
    present: list[int] = field(default_factory=list)
    next: int = 0
    changes: list[tuple[float, str]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def publish(self) -> int:
        """Let the next version appear, whole, and return its number."""
        version = self.next
        temporary = self.base / f".tmp-{version}"
        shutil.copytree(self.sources[version % len(self.sources)], temporary)
        os.replace(temporary, self.base / str(version))
        self.present.append(version)
        self.next += 1
        return version

    def take_away(self, version: int) -> None:
        """Let a version disappear, whole."""
        gone = self.base / f".gone-{version}"
        os.replace(self.base / str(version), gone)
        shutil.rmtree(gone)
        self.present.remove(version)

    def change(self, timeline: Timeline, stub: model_service_pb2_grpc.ModelServiceStub) -> None:
        """Publish a version, or take the newest away, and wait until the server serves it and nothing else."""
        rollback = len(self.changes) % ROLLBACK == ROLLBACK - 1
        old = self.present[-1]
        new = self.present[-2] if rollback else self.next
        timeline.change({old, new})
        begin = time.monotonic()
        if rollback:
            self.take_away(old)
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
            self.take_away(self.present[0])


def read_states(stub: model_service_pb2_grpc.ModelServiceStub) -> dict[int, int]:
    """Return the state of each version that the server knows."""
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = MODEL
    return {status.version: status.state for status in stub.GetModelStatus(request, timeout=30).model_version_status}


class Memory(threading.Thread):
    """Samples the server's resident bytes every second: (seconds since the start, bytes)."""

    def __init__(self, server: ServedProcess):
        super().__init__(daemon=True)
        self.server, self.begin, self.stopped = server, time.monotonic(), threading.Event()
        self.samples = [(0.0, server.resident())]

    def run(self) -> None:
        while not self.stopped.wait(1.0):
            self.samples.append((time.monotonic() - self.begin, self.server.resident()))

    def at(self, seconds: float) -> float:
        """Return MiB at a time."""
        return min(self.samples, key=lambda sample: abs(sample[0] - seconds))[1] / MIB

    def rests(self) -> list[float]:
        """Return the least MiB of each whole minute: at other times a version more may be there, being loaded."""
        minutes = int(self.samples[-1][0] / 60)
        return [min(size for seconds, size in self.samples if 60 * minute <= seconds < 60 * (minute + 1)) / MIB
                for minute in range(minutes)]

    def slope(self) -> float:
        """Return MiB a minute at rest, least squares over what comes after SETTLED_SHARE of the time."""
        rests = self.rests()
        settled = rests[int(SETTLED_SHARE * len(rests)):]
        return float(np.polyfit(range(len(settled)), settled, 1)[0]) if len(settled) > 1 else 0.0


def main() -> int:
    arguments = parse(sys.argv[1:])
    with tempfile.TemporaryDirectory() as directory:
        print(f"exporting {len(SEEDS)} versions")
        sources = small_exports.export(Path(directory, "sources"), SEEDS)
        asked = small_exports.cases()
        if arguments.encoded:
            asked = [case for case in asked if "image" not in case.inputs]
        known = Known(MODEL, asked, [small_exports.answers(source, asked) for source in sources])
        for first, second in zip(known.answers, known.answers[1:] + known.answers[:1]):
            if any(small_exports.equal(*pair) for pair in zip(first, second)):
                raise RuntimeError("two versions answer alike, and could not be told apart")
        versions = Versions(Path(directory, "served"), sources, next=1)
        versions.base.mkdir()
        timeline = Timeline(versions.publish())
        server = ServedProcess(MODEL, versions.base, "--file_system_poll_wait_seconds=1", *SHIPPED,
                               *arguments.server_flags.split())
        try:
            memory = Memory(server)
            tally = soak(arguments, server, memory, known, versions, timeline)
        finally:
            if arguments.log:
                arguments.log.write_text(server.words(), encoding="utf-8")
            status = server.stop()
    return report(arguments, tally, versions, memory, status)


def parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, metavar="M", help="how long (default 10)")
    parser.add_argument("--swap-seconds", type=float, default=30.0, metavar="S", help="between changes (default 30)")
    parser.add_argument("--clients", type=int, default=12, metavar="N",
                        help="every third of them by REST (default 12, more than requests run at once on two cores)")
    parser.add_argument("--growth", type=float, default=3.0, metavar="MIB",
                        help="a minute in the second half, above which memory grows (default 3); runs of less than "
                             f"{SHORTEST_MINUTES:g} minutes are not judged")
    parser.add_argument("--server-flags", default="", metavar="FLAGS", help="more of the server's, in one argument")
    parser.add_argument("--encoded", action="store_true",
                        help="send no pixels, whose different sizes batching refuses to put together")
    parser.add_argument("--log", type=Path, metavar="FILE", help="write the server's log there")
    arguments = parser.parse_args(words)
    if arguments.clients < 1 or arguments.minutes <= 0 or arguments.swap_seconds <= 0:
        parser.error("--clients, --minutes and --swap-seconds must be above 0")
    return arguments


def soak(arguments: argparse.Namespace, server: ServedProcess, memory: Memory, known: Known, versions: Versions,
         timeline: Timeline) -> Tally:
    """Have the clients ask while versions change, for as long as it shall take; return what they saw."""
    stopped = threading.Event()
    clients: list[Client] = [(RestClient if number % 3 == 2 else GrpcClient)(
        server.rest if number % 3 == 2 else server.grpc, known, timeline, number)
        for number in range(arguments.clients)]
    threads = [threading.Thread(target=client.work, args=(stopped,), daemon=True) for client in clients]
    memory.start()
    for thread in threads:
        thread.start()
    stub = model_service_pb2_grpc.ModelServiceStub(grpc.insecure_channel(server.grpc))
    end, swap = memory.begin + 60 * arguments.minutes, memory.begin + arguments.swap_seconds
    said = memory.begin
    while (now := time.monotonic()) < end and server.process.poll() is None and all(map(threading.Thread.is_alive,
                                                                                        threads)):
        if now >= swap:
            versions.change(timeline, stub)
            swap, now = swap + arguments.swap_seconds, time.monotonic()
        if now >= said + 10:
            said = now
            print(f"{now - memory.begin:.0f} of {60 * arguments.minutes:.0f} s: {told(clients, versions, memory)}",
                  flush=True)
        time.sleep(0.2)
    lived = sum(map(threading.Thread.is_alive, threads))
    stopped.set()
    for thread in threads:
        thread.join(60)
    memory.stopped.set()
    memory.join()
    found = Tally()
    for client in clients:
        found.add(client.tally)
    if lived < len(threads):
        found.problem("failed", f"{len(threads) - lived} clients ended with an error, printed above")
    return found


def told(clients: list[Client], versions: Versions, memory: Memory) -> str:
    """Return where things stand."""
    good = sum(client.tally.good.total() for client in clients)
    return (f"{good} answers, {sum(client.tally.refused.total() for client in clients)} refused, "
            f"{sum(client.tally.failed for client in clients)} failed, {sum(client.tally.wrong for client in clients)} "
            f"wrong, {len(versions.changes)} changes, {memory.samples[-1][1] / MIB:.0f} MiB")


def report(arguments: argparse.Namespace, tally: Tally, versions: Versions, memory: Memory, status: int) -> int:
    """Print the tables and return the exit status."""
    seconds, good = memory.samples[-1][0], tally.good.total()
    kinds = Counter(kind for _, kind in versions.changes)
    slowest = max((took for took, _ in versions.changes), default=0.0)
    slope = memory.slope()
    judged = seconds >= 60 * SHORTEST_MINUTES
    grows = judged and slope > arguments.growth
    rows = [("seconds, clients", f"{seconds:.0f}, {arguments.clients}"),
            ("answers, all compared", f"{good}, {good / seconds:.1f}/s"),
            ("slowest answer", f"{tally.slowest:.2f} s"),
            ("answers by REST", sum(count for name, count in tally.good.items() if name.startswith("REST"))),
            ("bad requests, refused as they must be", tally.refused.total()),
            ("failed requests", tally.failed), ("wrong answers", tally.wrong),
            ("changes of version", f"{len(versions.changes)}: {kinds['new version']} new, {kinds['rollback']} back; "
                                   f"slowest {slowest:.1f} s"),
            ("changes that did not come about", len(versions.failures)),
            ("exit status of the server after SIGTERM", status), ("MiB at the start", f"{memory.at(0):.0f}")]
    rows += [(f"MiB at rest in minute {minute}", f"{size:.0f}") for minute, size in enumerate(memory.rests(), 1)]
    most = max(size for _, size in memory.samples) / MIB
    rows += [("MiB at the end, at most", f"{memory.at(seconds):.0f}, {most:.0f}"),
             ("MiB a minute at rest in the second half", f"{slope:+.2f}" + ("" if judged else " (too short to judge)"))]
    print("\n".join(["", "| | |", "|---|--:|", *(f"| {name} | {value} |" for name, value in rows), "",
                     "| kind | number |", "|---|--:|", *(f"| {name} | {count} |" for name, count in sorted(
                         [*tally.good.items(), *tally.refused.items()])), "", *tally.told[:TOLD], *versions.failures]))
    failed = [text for text, holds in (
        ("wrong answers", tally.wrong), ("failed requests", tally.failed), ("memory grows", grows),
        ("a version was not exchanged", versions.failures), ("the server did not end well", status),
        ("no answers", not good)) if holds]
    print(f"FAILED: {', '.join(failed)}" if failed else "passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
