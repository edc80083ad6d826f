"""Processes that work only while they are told to, so that several can be measured in turn; Linux, no dependencies.

A process says in a first line what it is, or why it cannot be, and then answers each line "WARM_UP COUNT" on its
standard input by working so many steps, of which only the last COUNT are timed. Lines are JSON.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

TICKS = os.sysconf("SC_CLK_TCK")
# A process that did next to nothing for so many seconds has filled its buffers.
QUIET_SECONDS, QUIET_SHARE = 0.5, 0.04
QUIET_DEADLINE = 20.0


@dataclass(frozen=True)
class Round:
    """One round's work: items a second of wall time, CPU seconds an item, bytes resident in the process tree after it.

    Pages that processes of the tree share are counted once.
    """

    rate: float
    cpu_seconds: float
    resident: int


@dataclass(frozen=True)
class MeasuredProcess:
    """A running process and what its first line said of itself."""

    process: subprocess.Popen
    errors: IO[str]
    description: dict

    def work(self, warm_up: int, count: int) -> Round:
        """Let it work and return what that took; raises RuntimeError where it ended instead.

        Wall time is taken after the warm-up, which empties what was prepared in idle time. CPU time is taken until the
        process is quiet again, over all items: its buffers are then as full as before.
        """
        before = cpu_seconds(self.process.pid)
        # One that has ended says why below.
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(f"{warm_up} {count}\n")
            self.process.stdin.flush()
        answer = _answer(self.process, self.errors)
        self.settle()
        spent = cpu_seconds(self.process.pid) - before
        return Round(answer["items"] / answer["seconds"], spent / answer["all_items"], resident(self.process.pid))

    def settle(self) -> None:
        """Wait until it does nothing, or next to nothing; raises RuntimeError where it goes on working."""
        deadline = time.monotonic() + QUIET_DEADLINE
        while time.monotonic() < deadline:
            before = cpu_seconds(self.process.pid)
            time.sleep(QUIET_SECONDS)
            if cpu_seconds(self.process.pid) - before < QUIET_SHARE * QUIET_SECONDS:
                return
        raise RuntimeError(f"process {self.process.pid} goes on working for {QUIET_DEADLINE:.0f} s though nothing asks")

    def peak(self) -> int:
        """Return the most bytes that were ever resident, added up over the process tree as it is now.

        Pages that processes share are counted in each.
        """
        return sum(_status(pid, "VmHWM") for pid in tree(self.process.pid))

    def close(self) -> None:
        """End it."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.errors.close()


def start(command: list[str], environment: dict[str, str]) -> MeasuredProcess:
    """Start a process that calls `serve`; raises RuntimeError with the reason where it cannot work."""
    errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
    try:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
                                   env=os.environ | environment)
    except OSError as error:
        errors.close()
        raise RuntimeError(f"{command[0]}: {error.strerror}") from None
    description = _answer(process, errors)
    if "error" in description:
        process.wait()
        raise RuntimeError(description["error"])
    return MeasuredProcess(process, errors, description)


def _answer(process: subprocess.Popen, errors: IO[str]) -> dict:
    line = process.stdout.readline()
    if line:
        return json.loads(line)
    process.wait()
    errors.seek(0)
    last = [line.strip() for line in errors if line.strip()][-1:]
    raise RuntimeError(f"{' '.join(process.args[:2])} ended with status {process.returncode}: {''.join(last)}")


def serve(build: Callable[[], tuple[dict, Callable[[], int]]]) -> None:
    """Be such a process: `build` returns its description and a step, which returns how many items it made.

    An ImportError in `build` is told as the reason why this process cannot work.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    # Libraries print where they like; the answers stay alone.
    os.dup2(2, 1)

    def say(answer: dict) -> None:
        print(json.dumps(answer), file=answers)

    try:
        description, step = build()
    except ImportError as error:
        say({"error": str(error)})
        return
    say(description)
    for line in sys.stdin:
        warm_up, count = map(int, line.split())
        before = sum(step() for _ in range(warm_up))
        begin = time.perf_counter()
        items = sum(step() for _ in range(count))
        say({"items": items, "seconds": time.perf_counter() - begin, "all_items": before + items})


def tree(pid: int) -> list[int]:
    """Return a process and all that descend from it."""
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            found.extend(int(child) for child in _read(task).split())
    return found


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process tree has used, that of its ended children included."""
    total = 0
    for each in tree(pid):
        # The name in parentheses may hold anything; user and system time are the 14th value and the next, and then
        # those of ended children.
        values = _read(Path(f"/proc/{each}/stat")).rpartition(")")[2].split()
        total += sum(int(value) for value in values[11:15])
    return total / TICKS


def resident(pid: int) -> int:
    """Return the bytes of a process tree in memory, shared pages counted once."""
    return sum(_status(each, "Pss", "smaps_rollup") for each in tree(pid))


def _status(pid: int, key: str, file: str = "status") -> int:
    for line in _read(Path(f"/proc/{pid}/{file}")).splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    return 0


def _read(path: Path) -> str:
    """Return a file's text; of a process that has just ended there is none."""
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
