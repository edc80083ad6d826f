"""What session batching does to tensors: the rows of several requests in one run, and what each of them gets back.

Texts and rules are those of TensorFlow Serving (batching/batching_session.cc, batching_util.cc), whose
BatchingParameters `read_settings` takes.
"""

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import grpc
import numpy as np

from serving.errors import ServingError, invalid

# What each parameter is where the file leaves it out.
MAX_BATCH_SIZE, TIMEOUT_MICROS, MAX_ENQUEUED = 1000, 0, 10


@dataclass(frozen=True)
class Settings:
    """How one model's requests are put together.

    A request has at most `largest_request` rows, a run at most `largest_run`; more only with `splitting`. A batch that
    is not full waits `timeout` seconds from its first request on. `allowed` are the sizes that runs are padded to.
    """

    largest_request: int
    largest_run: int
    timeout: float
    max_enqueued: int
    allowed: tuple[int, ...]
    pad: bool
    splitting: bool


@dataclass(eq=False)
class Task:
    """The rows of one request, or some of them, that go into one batch; its thread waits for `done`.

    `deadline` is in seconds of time.monotonic(), None for none; `batch` is the one it waits in.
    """

    inputs: dict[str, np.ndarray]
    size: int
    deadline: float | None
    submitted: float
    done: threading.Event = field(default_factory=threading.Event)
    batch: "Batch | None" = None
    outputs: dict[str, np.ndarray] | None = None
    error: Exception | None = None

    def answer(self, outputs: dict[str, np.ndarray]) -> None:
        self.outputs = outputs
        self.done.set()

    def fail(self, error: Exception) -> None:
        self.error = error
        self.done.set()


@dataclass(eq=False)
class Batch:
    """Tasks that will run together; `opened` is when the first came, in seconds of time.monotonic()."""

    tasks: list[Task] = field(default_factory=list)
    size: int = 0
    opened: float = 0.0


def read_settings(parameters) -> Settings:
    """Return the settings of a BatchingParameters message; ServingError INVALID_ARGUMENT where they contradict."""
    largest = _value(parameters, "max_batch_size", MAX_BATCH_SIZE)
    timeout = _value(parameters, "batch_timeout_micros", TIMEOUT_MICROS)
    enqueued = _value(parameters, "max_enqueued_batches", MAX_ENQUEUED)
    splitting = bool(_value(parameters, "enable_large_batch_splitting", False))
    run = _value(parameters, "max_execution_batch_size", largest) if splitting else largest
    for name, value in (("max_batch_size", largest), ("max_enqueued_batches", enqueued),
                        ("max_execution_batch_size", run)):
        if value < 1:
            raise invalid(f"{name} must be positive; was {value}")
    if timeout < 0:
        raise invalid(f"batch_timeout_micros must be non-negative; was {timeout}")
    if run > largest:
        raise invalid(f"When enable_large_batch_splitting is true, max_batch_size must be greater than or equal to "
                      f"max_execution_batch_size; they were {largest} and {run}")
    allowed = tuple(parameters.allowed_batch_sizes)
    if any(after <= before for before, after in zip((0, *allowed), allowed)):
        raise invalid(f"allowed_batch_sizes entries must be monotonically increasing; were {list(allowed)}")
    if allowed and allowed[-1] != run:
        limit = "be equal to max_execution_batch_size" if splitting else "match max_batch_size"
        raise invalid(f"Last entry in allowed_batch_sizes must {limit}; last entry was {allowed[-1]}; expected {run}")
    return Settings(largest, run, timeout / 1e6, enqueued, allowed, parameters.pad_variable_length_inputs, splitting)


def read_threads(parameters) -> tuple[int, str]:
    """Return how many threads run batches, and what their names begin with."""
    count = _value(parameters, "num_batch_threads", os.cpu_count() or 1)
    if count < 1:
        raise invalid(f"num_batch_threads must be positive; was {count}")
    return count, _value(parameters, "thread_pool_name", "batch_threads")


def _value(parameters, name: str, default):
    return getattr(parameters, name).value if parameters.HasField(name) else default


def rows(inputs: dict[str, np.ndarray]) -> int:
    """Return how many rows a request has; ServingError INVALID_ARGUMENT where its inputs disagree."""
    if not inputs:
        raise invalid("Batching Run() must have at least one input tensor")
    if any(values.ndim == 0 for values in inputs.values()):
        raise invalid("Batching Run() input tensors must have at least one dimension")
    sizes = {len(values) for values in inputs.values()}
    if len(sizes) > 1:
        raise invalid("Batching Run() input tensors must have equal 0th-dimension size")
    return sizes.pop()


def rounded(size: int, settings: Settings) -> int:
    """Return the smallest allowed size that holds so many rows."""
    return next((allowed for allowed in settings.allowed if allowed >= size), size)


def merged(tasks: Sequence[Task], settings: Settings, feeds: dict[str, str]) -> dict[str, np.ndarray]:
    """Return the inputs of tasks one after the other, with rows of the last task repeated up to an allowed size.

    `feeds` names each input's tensor for messages. ServingError FAILED_PRECONDITION where shapes differ beyond the
    first dimension and are not padded, or cannot be.
    """
    size = sum(task.size for task in tasks)
    surplus = rounded(size, settings) - size
    found = {}
    for name in tasks[0].inputs:
        parts = [task.inputs[name] for task in tasks]
        if any(part.shape[1:] != parts[0].shape[1:] for part in parts):
            parts = _same_shape(parts, settings, feeds[name])
        if surplus:
            # The first row, which is known to be one that somebody sent.
            parts.append(np.repeat(parts[-1][:1], surplus, axis=0))
        found[name] = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return found


def _same_shape(parts: list[np.ndarray], settings: Settings, feed: str) -> list[np.ndarray]:
    if not settings.pad:
        raise ServingError(grpc.StatusCode.FAILED_PRECONDITION, (
            f"Tensors with name '{feed}' from different tasks have different shapes and padding is turned off."
            "Set pad_variable_length_inputs to true, or ensure that all tensors with the same name"
            "have equal dimensions starting with the first dim."))
    if len({part.ndim for part in parts}) > 1:
        raise ServingError(grpc.StatusCode.FAILED_PRECONDITION,
                           f"Tensors with name '{feed}' from different tasks have different ranks")
    if any(part.size == 0 for part in parts):
        raise invalid("Got empty tensor in batch of non-empty tensors.")
    shape = [max(sides) for sides in zip(*(part.shape[1:] for part in parts))]
    padded = []
    for part in parts:
        # Padded with a value that the model has seen, the task's first, as there is none that suits every model.
        values = np.full((len(part), *shape), part.flat[0], part.dtype)
        values[tuple(slice(side) for side in part.shape)] = part
        padded.append(values)
    return padded


def divide(outputs: dict[str, np.ndarray], tasks: Sequence[Task], settings: Settings) -> list[dict[str, np.ndarray]]:
    """Return each task's rows of a run's outputs; what was added to reach an allowed size falls away.

    ServingError FAILED_PRECONDITION where an output has not as many rows as the run's inputs.
    """
    size = sum(task.size for task in tasks)
    for values in outputs.values():
        if values.ndim == 0:
            raise ServingError(grpc.StatusCode.FAILED_PRECONDITION, "Batched output tensor has 0 dimensions")
        if len(values) != rounded(size, settings):
            raise ServingError(grpc.StatusCode.FAILED_PRECONDITION, (
                "Batched output tensor's 0th dimension does not equal the sum of the 0th dimension sizes of the input "
                "tensors"))
    found, start = [], 0
    for task in tasks:
        found.append({name: values[start:start + task.size] for name, values in outputs.items()})
        start += task.size
    return found


def split(inputs: dict[str, np.ndarray], sizes: Sequence[int], deadline: float | None, now: float) -> list[Task]:
    """Return tasks of so many rows each, in the request's order."""
    tasks, start = [], 0
    for size in sizes:
        tasks.append(Task({name: values[start:start + size] for name, values in inputs.items()}, size, deadline, now))
        start += size
    return tasks
