"""A model that notes its runs, schedulers around it, and ways to have requests meet in a queue."""

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

# Microseconds, longer than any test: what must not be waited for is not.
LONG = 600_000_000


def signature(inputs, outputs):
    found = meta_graph_pb2.SignatureDef()
    for tensors, names in ((found.inputs, inputs), (found.outputs, outputs)):
        for alias in names:
            tensors[alias].name = f"{alias}_tensor:0"
    return found


class FakeModel:
    """y = 2 x + 1 for each row of x, `text` reversed; fails as a graph does where a row is "bad"; notes every run.

    While `gate` is closed runs stand still; `standing` counts them.
    """

    def __init__(self):
        self.directory = Path("model/1")
        self.signatures = {"serving_default": signature(["x"], ["y"]), "again": signature(["x"], ["y"]),
                           "text": signature(["text"], ["turned", "length"]), "scalar": signature(["x"], ["scalar"]),
                           "short": signature(["x"], ["short"]), "two": signature(["x", "z"], ["sum"])}
        self.runs, self.deadlines, self.seen, self.closed = [], [], [], False
        self.gate, self.standing = threading.Event(), threading.Semaphore(0)
        self.gate.set()
        self.now = self.most = 0
        self.lock = threading.Lock()

    def run(self, signature, inputs, outputs, deadline):
        assert not self.closed
        with self.lock:
            self.runs.append(len(next(iter(inputs.values()))))
            self.deadlines.append(deadline)
            self.seen.append(inputs)
            self.now += 1
            self.most = max(self.most, self.now)
        self.standing.release()
        assert self.gate.wait(60)
        with self.lock:
            self.now -= 1
        found = getattr(self, signature)(**inputs)
        return {name: found[name] for name in outputs}

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


class Counts:
    """Takes what a monitor is told."""

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
    """Give a function that makes (scheduler, batched model, model), and threads to ask from; stop all at the end."""
    made = []

    def make(isolate=True, **values):
        model = FakeModel()
        scheduler = Scheduler(parameters(**values), Counts(), isolate)
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
    """Return one output for rows of a signature's one input."""
    source = "text" if signature == "text" else "x"
    output = {"text": "turned", "scalar": "scalar", "short": "short"}.get(signature, "y")
    return batched.run(signature, {source: rows}, (output,), deadline)[output]


def strings(*rows):
    return np.array(rows, object)


def floats(*rows):
    return np.array(rows, np.float32)


def until(condition):
    """Wait for what another thread is about to do."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def waiting(batched):
    return sum(len(batch.tasks) for queue in batched.queues.values() for batch in queue.batches)


def occupy(pool, batched, model):
    """Have the one thread stand in a run of one row, so that what comes after it waits; returns its future."""
    model.gate.clear()
    future = pool.submit(ask, batched, floats(-1))
    assert model.standing.acquire(timeout=60)
    return future


def failure(future, code):
    error = future.exception(60)
    assert isinstance(error, ServingError) and error.code is code, error
    return error.message
