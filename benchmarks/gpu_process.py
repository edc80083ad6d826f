"""Measure the tasks of a system in a process of its own, for benchmarks.gpu; no dependencies.

The process prints a JSON object for each task as soon as it is measured, or one for all of them if it cannot start.
"""

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.measured_process import open_answers

INFERENCE, TRAINING = "inference", "training"
TASKS = (INFERENCE, TRAINING)
# The precision of layers, and whether float32 convolutions and products may be computed in TensorFloat-32.
PRECISIONS = {"bfloat16": ("bfloat16", True), "tf32": ("float32", True), "float32": ("float32", False)}
CPU, GPU = "cpu", "gpu"
WARM_UP = 2


@dataclass(frozen=True)
class Work:
    """Describe a process: a head, a batch of images (N, height, width), a precision and a kind of device.

    Each of `rounds` has `steps` timed steps.
    """

    head: str
    batch: int
    height: int
    width: int
    precision: str
    device: str
    rounds: int
    steps: int

    def words(self) -> list[str]:
        """Return the arguments of a process."""
        return [str(value) for value in vars(self).values()]


def read_work(words: list[str]) -> Work:
    """Return the work that `Work.words` wrote."""
    head, batch, height, width, precision, device, rounds, steps = words
    return Work(head, int(batch), int(height), int(width), precision, device, int(rounds), int(steps))


def timed(step: Callable[[], object], wait: Callable[[object], object], work: Work) -> dict:
    """Return the seconds of the first step, which compiles, and those of a step in every round.

    `wait` returns as soon as the device has computed a step's result.
    """
    begin = time.perf_counter()
    wait(step())
    first = time.perf_counter() - begin
    for _ in range(WARM_UP):
        wait(step())
    seconds = []
    for _ in range(work.rounds):
        begin, result = time.perf_counter(), None
        for _ in range(work.steps):
            result = step()
        wait(result)
        seconds.append((time.perf_counter() - begin) / work.steps)
    return {"first_seconds": first, "seconds": seconds}


def report(build: Callable[[], tuple[dict, dict[str, Callable[[], dict]]]]) -> None:
    """Print the results of all tasks.

    `build` returns the description of the system and its tasks. A task that fails does not end the others.
    """
    send = open_answers()
    # Out of memory has another class in every library, and any failure has to become a row of the table.
    try:
        description, tasks = build()
    except Exception as error:
        send(failure(error))
        return
    for name, task in tasks.items():
        try:
            send(description | {"task": name} | task())
        except Exception as error:
            send(description | {"task": name} | failure(error))


def failure(error: Exception) -> dict:
    """Return the reason of a failure in one line, and its traceback."""
    first_line = str(error).strip().partition("\n")[0]
    return {
        "error": f"{type(error).__name__}: {first_line}"[:200],
        "traceback": "".join(traceback.format_exception(error))[-8000:],
    }
