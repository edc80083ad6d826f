"""A model that records its runs, schedulers around it, and functions that make requests meet in a queue."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
from tensorflow.core.protobuf import meta_graph_pb2

from serving.config import protos
from serving.core.batching import Scheduler
from serving.errors import ServingError, invalid

# Microseconds, longer than any test takes: a test that waited for this timeout would fail.
LONG = 600_000_000


def signature(inputs, outputs):
    made = meta_graph_pb2.SignatureDef()
    for tensors, names in ((made.inputs, inputs), (made.outputs, outputs)):
        for alias in names:
            tensors[alias].name = f"{alias}_tensor:0"
    return made


class FakeModel:
    """A Servable that computes y = 2 x + 1, reverses `text`, fails for some texts, and records its runs.

    Runs wait while `gate` is not set; every run releases `started` before it waits.
    """

    def __init__(self):
        self.directory = Path("model/1")
        self.signatures = {
            "serving_default": signature(["x"], ["y"]),
            "again": signature(["x"], ["y"]),
            "text": signature(["text"], ["turned", "length"]),
            "scalar": signature(["x"], ["scalar"]),
            "short": signature(["x"], ["short"]),
            "two": signature(["x", "z"], ["sum"]),
        }
        self.runs, self.deadlines, self.seen, self.closed = [], [], [], False
        self.gate, self.started = threading.Event(), threading.Semaphore(0)
        self.gate.set()
        self.running = self.max_running = 0
        self.lock = threading.Lock()

    def run(self, signature, inputs, outputs, deadline):
        assert not self.closed
        with self.lock:
            self.runs.append(len(next(iter(inputs.values()))))
            self.deadlines.append(deadline)
            self.seen.append(inputs)
            self.running += 1
            self.max_running = max(self.max_running, self.running)
        self.started.release()
        assert self.gate.wait(60)
        with self.lock:
            self.running -= 1
        computed = getattr(self, signature)(**inputs)
        return {name: computed[name] for name in outputs}

    def serving_default(self, x):
        if x.dtype != np.float32:
            raise invalid(f"Expects arg[0] to be float but {x.dtype} is provided")
        return {"y": 2 * x + 1}

    again = serving_default

    def text(self, text):
        if b"bad" in text.ravel():
            raise invalid("Unknown image file format.")
        if b"broken" in text.ravel():
            raise ServingError(grpc.StatusCode.INTERNAL, "broken")
        if b"bug" in text.ravel():
            raise ZeroDivisionError("a bug")
        turned = np.array([row[::-1] for row in text.ravel()], object).reshape(text.shape)
        return {"turned": turned, "length": np.array([len(row) for row in text.ravel()], np.int32)}

    def scalar(self, x):
        return {"scalar": np.float32(1)}

    def short(self, x):
        return {"short": x[:1]}

    def two(self, x, z):
        return {"sum": x + z}

    def close(self):
        self.closed = True


class RecordingMonitor:
    """A monitor that records the batches: (model, number of requests, rows, rows with padding)."""

    def __init__(self):
        self.batches = []

    def batch(self, model_name, queuing_seconds, input_size, processed_size):
        self.batches.append((model_name, len(queuing_seconds), input_size, processed_size))


def parameters(allowed=(), pad=False, **values):
    message = protos.BatchingParameters(allowed_batch_sizes=allowed, pad_variable_length_inputs=pad)
    for name, value in values.items():
        getattr(message, name).value = value
    return message


@contextmanager
def schedulers() -> Iterator[tuple[Callable, ThreadPoolExecutor]]:
    """Yield a function that makes (scheduler, batched model, model), and threads for requests; stop all at the end."""
    made = []

    def make(isolate=True, **values):
        model = FakeModel()
        scheduler = Scheduler(parameters(**values), RecordingMonitor(), isolate)
        made.append((scheduler, model))
        return scheduler, scheduler.wrap("half", model), model

    with ThreadPoolExecutor(64) as pool:
        try:
            yield make, pool
        finally:
            for scheduler, model in made:
                model.gate.set()
                scheduler.stop()


def ask(batched, rows, signature="serving_default", deadline=None):
    """Return the output of a signature for rows of its input."""
    source = "text" if signature == "text" else "x"
    output = {"text": "turned", "scalar": "scalar", "short": "short"}.get(signature, "y")
    return batched.run(signature, {source: rows}, (output,), deadline)[output]


def strings(*rows):
    return np.array(rows, object)


def floats(*rows):
    return np.array(rows, np.float32)


def until(condition):
    """Wait until another thread has made the condition true."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def waiting_tasks(batched):
    return sum(len(batch.tasks) for queue in batched.queues.values() for batch in queue.batches)


def occupy(pool, batched, model):
    """Occupy the scheduler's only thread with a run of one row, so that later requests wait; return its future."""
    model.gate.clear()
    future = pool.submit(ask, batched, floats(-1))
    assert model.started.acquire(timeout=60)
    return future


def failure(future, code):
    error = future.exception(60)
    assert isinstance(error, ServingError) and error.code is code, error
    return error.message
