"""Processes that work only on request, so that several can be measured in turn; Linux, no dependencies.

A process first prints a line that describes it, or an error. It then answers every line "WARM_UP COUNT" on its standard
input by WARM_UP untimed and COUNT timed steps. Lines on its standard output are JSON.
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

ROOT = Path(__file__).resolve().parents[1]
TICKS = os.sysconf("SC_CLK_TCK")
# A process whose CPU use stays below this fraction for this time has filled its buffers.
QUIET_SECONDS, QUIET_FRACTION = 0.5, 0.04
QUIET_DEADLINE = 20.0


@dataclass(frozen=True)
class Round:
    """Results of a round: items/s of wall time, CPU seconds per item, and bytes resident in the process tree.

    Pages shared by processes of the tree count once.
    """

    rate: float
    cpu_seconds: float
    resident: int


@dataclass(frozen=True)
class MeasuredProcess:
    """A running process and the description it printed."""

    process: subprocess.Popen
    errors: IO[str]
    description: dict

    def work(self, warm_up: int, count: int) -> Round:
        """Run the given numbers of untimed and timed steps; raises RuntimeError if the process exits.

        Wall time covers the timed steps, since the warm-up consumes what was buffered while the process was idle. CPU
        time covers all steps until the process is quiet again and its buffers are as full as before.
        """
        cpu_before = cpu_seconds(self.process.pid)
        # If the process has exited, _read_answer reports the reason.
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(f"{warm_up} {count}\n")
            self.process.stdin.flush()
        answer = _read_answer(self.process, self.errors)
        self.settle()
        used = cpu_seconds(self.process.pid) - cpu_before
        return Round(answer["items"] / answer["seconds"], used / answer["all_items"], resident(self.process.pid))

    def settle(self) -> None:
        """Wait until the process is almost idle; raises RuntimeError if it stays busy."""
        deadline = time.monotonic() + QUIET_DEADLINE
        while time.monotonic() < deadline:
            cpu_before = cpu_seconds(self.process.pid)
            time.sleep(QUIET_SECONDS)
            if cpu_seconds(self.process.pid) - cpu_before < QUIET_FRACTION * QUIET_SECONDS:
                return
        raise RuntimeError(f"process {self.process.pid} is still busy {QUIET_DEADLINE:.0f} s after its last request")

    def peak(self) -> int:
        """Return the sum of the peak resident bytes of the processes in the tree.

        Pages shared by processes count once per process.
        """
        return sum(_status(pid, "VmHWM") for pid in tree(self.process.pid))

    def close(self) -> None:
        """Stop the process."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.errors.close()


def start(command: list[str], environment: dict[str, str]) -> MeasuredProcess:
    """Start a process that calls `serve`; raises RuntimeError with the reason if it cannot work.

    PYTHONPATH is the root of the checkout, so `-m benchmarks.NAME` works under another Python, too.
    """
    errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        )
    except OSError as error:
        errors.close()
        raise RuntimeError(f"{command[0]}: {error.strerror}") from None
    description = _read_answer(process, errors)
    if "error" in description:
        process.wait()
        raise RuntimeError(description["error"])
    return MeasuredProcess(process, errors, description)


def _read_answer(process: subprocess.Popen, errors: IO[str]) -> dict:
    line = process.stdout.readline()
    if line:
        return json.loads(line)
    process.wait()
    errors.seek(0)
    last_line = [line.strip() for line in errors if line.strip()][-1:]
    raise RuntimeError(f"{' '.join(process.args[:3])} exited with status {process.returncode}: {''.join(last_line)}")


def open_answers() -> Callable[[dict], None]:
    """Return a function that prints an answer, and send everything else that is printed to standard error."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    # Libraries print, too, and answers have to be the only output.
    os.dup2(2, 1)
    return lambda answer: print(json.dumps(answer), file=answers)


def serve(build: Callable[[], tuple[dict, Callable[[], int]]]) -> None:
    """Work on request in this process.

    `build` returns the process's description and a step, which returns its number of items. An ImportError in `build`
    is reported as the reason why the process cannot work.
    """
    send = open_answers()
    try:
        description, step = build()
    except ImportError as error:
        send({"error": str(error)})
        return
    send(description)
    for line in sys.stdin:
        warm_up, count = map(int, line.split())
        untimed_items = sum(step() for _ in range(warm_up))
        begin = time.perf_counter()
        items = sum(step() for _ in range(count))
        send({"items": items, "seconds": time.perf_counter() - begin, "all_items": untimed_items + items})


def tree(pid: int) -> list[int]:
    """Return the ids of a process and of all its descendants."""
    pids = [pid]
    for parent in pids:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            pids.extend(int(child) for child in _read(task).split())
    return pids


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process tree, including that of its exited children."""
    total = 0
    for member in tree(pid):
        # The name in parentheses may contain anything. The 14th to 17th values are the user and system time of the
        # process and of its exited children.
        values = _read(Path(f"/proc/{member}/stat")).rpartition(")")[2].split()
        total += sum(int(value) for value in values[11:15])
    return total / TICKS


def resident(pid: int) -> int:
    """Return the resident bytes of a process tree; shared pages count once."""
    return sum(_status(member, "Pss", "smaps_rollup") for member in tree(pid))


def _status(pid: int, key: str, file: str = "status") -> int:
    for line in _read(Path(f"/proc/{pid}/{file}")).splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    return 0


def _read(path: Path) -> str:
    """Return a file's text, or "" if its process has just exited."""
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
