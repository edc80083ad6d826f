"""Merge the tensors of several requests into one batch, and divide the outputs again.

The rules and the texts of errors are those of TensorFlow Serving (batching/batching_session.cc, batching_util.cc).
"""

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import grpc
import numpy as np
from google.protobuf.message import Message

from serving.errors import ServingError, invalid

# The defaults of parameters that are not set.
MAX_BATCH_SIZE, TIMEOUT_MICROS, MAX_ENQUEUED = 1000, 0, 10


@dataclass(frozen=True)
class BatchSettings:
    """How one model's requests are batched.

    Attributes:
        max_request_rows: The maximum number of rows of a request.
        max_run_rows: The maximum number of rows of a run, smaller than `max_request_rows` only with `splitting`.
        timeout: Seconds from a batch's first request after which it is run even if it is not full.
        max_enqueued: The maximum number of waiting batches.
        allowed: The sizes that runs are padded to; empty: runs are not padded.
        pad: Whether requests of different shapes are padded to a common one.
        splitting: Whether a request may be split over several batches.
    """

    max_request_rows: int
    max_run_rows: int
    timeout: float
    max_enqueued: int
    allowed: tuple[int, ...]
    pad: bool
    splitting: bool


@dataclass(eq=False)
class Task:
    """All or some rows of one request, which run in one batch.

    Attributes:
        inputs: The rows by input alias.
        size: The number of rows.
        deadline: A value of time.monotonic(), or None.
        submitted: The time of time.monotonic() at which the task was created.
        done: Set when `outputs` or `error` is; the request's thread waits for it.
        batch: The batch that the task waits in, None once it is taken.
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
        """Set the outputs and wake the request's thread."""
        self.outputs = outputs
        self.done.set()

    def fail(self, error: Exception) -> None:
        """Set the error and wake the request's thread."""
        self.error = error
        self.done.set()


@dataclass(eq=False)
class Batch:
    """Tasks that run together; `opened` is the time of time.monotonic() at which the first was submitted."""

    tasks: list[Task] = field(default_factory=list)
    size: int = 0
    opened: float = 0.0


def read_settings(parameters: Message) -> BatchSettings:
    """Return the settings of a BatchingParameters message.

    Raises ServingError INVALID_ARGUMENT if they contradict each other.
    """
    max_request = _value(parameters, "max_batch_size", MAX_BATCH_SIZE)
    timeout = _value(parameters, "batch_timeout_micros", TIMEOUT_MICROS)
    enqueued = _value(parameters, "max_enqueued_batches", MAX_ENQUEUED)
    splitting = bool(_value(parameters, "enable_large_batch_splitting", False))
    max_run = _value(parameters, "max_execution_batch_size", max_request) if splitting else max_request
    for name, value in (
        ("max_batch_size", max_request),
        ("max_enqueued_batches", enqueued),
        ("max_execution_batch_size", max_run),
    ):
        if value < 1:
            raise invalid(f"{name} must be positive; was {value}")
    if timeout < 0:
        raise invalid(f"batch_timeout_micros must be non-negative; was {timeout}")
    if max_run > max_request:
        raise invalid(
            f"When enable_large_batch_splitting is true, max_batch_size must be greater than or equal to "
            f"max_execution_batch_size; they were {max_request} and {max_run}"
        )
    allowed = tuple(parameters.allowed_batch_sizes)
    if any(size <= previous for previous, size in zip((0, *allowed), allowed)):
        raise invalid(f"allowed_batch_sizes entries must be monotonically increasing; were {list(allowed)}")
    if allowed and allowed[-1] != max_run:
        limit = "be equal to max_execution_batch_size" if splitting else "match max_batch_size"
        raise invalid(
            f"Last entry in allowed_batch_sizes must {limit}; last entry was {allowed[-1]}; expected {max_run}"
        )
    return BatchSettings(
        max_request, max_run, timeout / 1e6, enqueued, allowed, parameters.pad_variable_length_inputs, splitting
    )


def read_threads(parameters: Message) -> tuple[int, str]:
    """Return the number of batch threads and the prefix of their names."""
    count = _value(parameters, "num_batch_threads", os.cpu_count() or 1)
    if count < 1:
        raise invalid(f"num_batch_threads must be positive; was {count}")
    return count, _value(parameters, "thread_pool_name", "batch_threads")


def _value(parameters: Message, name: str, default: int | bool | str) -> int | bool | str:
    return getattr(parameters, name).value if parameters.HasField(name) else default


def count_rows(inputs: dict[str, np.ndarray]) -> int:
    """Return the number of rows of a request; raises ServingError INVALID_ARGUMENT if its inputs differ."""
    if not inputs:
        raise invalid("Batching Run() must have at least one input tensor")
    if any(values.ndim == 0 for values in inputs.values()):
        raise invalid("Batching Run() input tensors must have at least one dimension")
    sizes = {len(values) for values in inputs.values()}
    if len(sizes) > 1:
        raise invalid("Batching Run() input tensors must have equal 0th-dimension size")
    return sizes.pop()


def round_up(size: int, settings: BatchSettings) -> int:
    """Return the smallest allowed size of at least `size` rows."""
    return next((allowed for allowed in settings.allowed if allowed >= size), size)


def merge_tasks(tasks: Sequence[Task], settings: BatchSettings, feeds: dict[str, str]) -> dict[str, np.ndarray]:
    """Return the concatenated inputs of tasks, padded with rows of the last task to an allowed size.

    `feeds` maps input aliases to tensor names for error messages. Raises ServingError FAILED_PRECONDITION if shapes
    differ beyond the first dimension and are not padded or cannot be.
    """
    size = sum(task.size for task in tasks)
    padding = round_up(size, settings) - size
    merged = {}
    for name in tasks[0].inputs:
        parts = [task.inputs[name] for task in tasks]
        if any(part.shape[1:] != parts[0].shape[1:] for part in parts):
            parts = _pad_shapes(parts, settings, feeds[name])
        if padding:
            # A repeated row of a request is a valid input, which a row of zeros may not be.
            parts.append(np.repeat(parts[-1][:1], padding, axis=0))
        merged[name] = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return merged


def _pad_shapes(parts: list[np.ndarray], settings: BatchSettings, feed: str) -> list[np.ndarray]:
    if not settings.pad:
        raise ServingError(
            grpc.StatusCode.FAILED_PRECONDITION,
            (
                f"Tensors with name '{feed}' from different tasks have different shapes and padding is turned off."
                "Set pad_variable_length_inputs to true, or ensure that all tensors with the same name"
                "have equal dimensions starting with the first dim."
            ),
        )
    if len({part.ndim for part in parts}) > 1:
        raise ServingError(
            grpc.StatusCode.FAILED_PRECONDITION, f"Tensors with name '{feed}' from different tasks have different ranks"
        )
    if any(part.size == 0 for part in parts):
        raise invalid("Got empty tensor in batch of non-empty tensors.")
    shape = [max(sides) for sides in zip(*(part.shape[1:] for part in parts))]
    padded = []
    for part in parts:
        # The model accepts the task's first value, while no constant suits every model.
        values = np.full((len(part), *shape), part.flat[0], part.dtype)
        values[tuple(slice(side) for side in part.shape)] = part
        padded.append(values)
    return padded


def divide_outputs(
    outputs: dict[str, np.ndarray], tasks: Sequence[Task], settings: BatchSettings
) -> list[dict[str, np.ndarray]]:
    """Return every task's rows of a run's outputs, without the padding rows.

    Raises ServingError FAILED_PRECONDITION if an output does not have the number of rows of the run's inputs.
    """
    size = sum(task.size for task in tasks)
    for values in outputs.values():
        if values.ndim == 0:
            raise ServingError(grpc.StatusCode.FAILED_PRECONDITION, "Batched output tensor has 0 dimensions")
        if len(values) != round_up(size, settings):
            raise ServingError(
                grpc.StatusCode.FAILED_PRECONDITION,
                (
                    "Batched output tensor's 0th dimension does not equal the sum of the 0th dimension sizes of the "
                    "input tensors"
                ),
            )
    divided, start = [], 0
    for task in tasks:
        divided.append({name: values[start : start + task.size] for name, values in outputs.items()})
        start += task.size
    return divided


def split_rows(inputs: dict[str, np.ndarray], sizes: Sequence[int], deadline: float | None, now: float) -> list[Task]:
    """Split a request into consecutive tasks of the given numbers of rows."""
    tasks, start = [], 0
    for size in sizes:
        tasks.append(Task({name: values[start : start + size] for name, values in inputs.items()}, size, deadline, now))
        start += size
    return tasks
