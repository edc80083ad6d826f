"""Session batching: one run of the model for the requests of many clients (tensorflow_model_server --enable_batching).

Requests for the same tensors of the same model wait in one queue. A batch is run when it is full, or when its first
request has waited for batch_timeout_micros. num_batch_threads threads serve the queues of all models in turn. A full
queue refuses requests with UNAVAILABLE.

Three differences from TensorFlow Serving protect requests from others in their batch:

- If a batch of several requests fails with INVALID_ARGUMENT or FAILED_PRECONDITION, its requests are run again one by
  one. Only the request with the damaged image fails, and images of different sizes succeed. In TensorFlow Serving the
  whole batch fails; `isolate=False` does the same.
- A request whose deadline passes in the queue leaves it and gets RESOURCE_EXHAUSTED at once. In TensorFlow Serving it
  stays and is run, unless the deadlines of its whole batch have passed.
- A request without rows is run alone. In TensorFlow Serving it waits for others to fill a batch.
"""

import threading
import time
from collections import deque

import grpc
import numpy as np
from google.protobuf.message import Message

from serving.core import batch_tensors
from serving.core.batch_tensors import Batch, BatchSettings, Task
from serving.core.servable import Servable
from serving.errors import ServingError
from serving.telemetry.monitoring import Monitor

EXPIRED = "Run() timeout exceeded while waiting in batching queue"
# The codes of failures that one request's contents can cause for its whole batch.
ISOLATED_CODES = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION)
FULL = "The batch scheduling queue to which this task was submitted is full; "


class Scheduler:
    """The threads that run batches, and the queues they take them from."""

    def __init__(self, parameters: Message, monitor: Monitor, isolate: bool = True):
        """Start the threads.

        Args:
            parameters: A BatchingParameters message.
            monitor: Counts the batches.
            isolate: Whether the requests of a failed batch are run again one by one.

        Raises:
            ServingError: INVALID_ARGUMENT if the parameters contradict each other.
        """
        self.settings = batch_tensors.read_settings(parameters)
        self.monitor, self.isolate = monitor, isolate
        count, name = batch_tensors.read_threads(parameters)
        # The lock guards all queues. Threads wait on `work` for batches; closing a model waits on `idle`.
        self.lock = threading.Lock()
        self.work, self.idle = threading.Condition(self.lock), threading.Condition(self.lock)
        self.queues: deque[Queue] = deque()
        self.stopped = False
        self.threads = [
            threading.Thread(target=self._run, name=f"{name}_{number}", daemon=True) for number in range(count)
        ]
        for thread in self.threads:
            thread.start()

    def wrap(self, name: str, model: Servable, parameters: Message | None = None) -> "BatchedModel":
        """Return a model whose runs are batched.

        `parameters` are the model's own BatchingParameters; None: the server's. The model uses the server's threads in
        both cases.
        """
        settings = self.settings if parameters is None else batch_tensors.read_settings(parameters)
        return BatchedModel(self, name, model, settings)

    def stop(self) -> None:
        """Run the waiting requests, refuse new ones and end the threads."""
        with self.lock:
            self.stopped = True
            self.work.notify_all()
        for thread in self.threads:
            thread.join()

    def _run(self) -> None:
        while job := self._take():
            queue, batch = job
            try:
                queue.run(batch, self.monitor, self.isolate)
            # A request waits for every task, so every task must get a result or an error.
            except Exception as error:
                for task in batch.tasks:
                    if not task.done.is_set():
                        task.fail(error)
            with self.lock:
                queue.running -= 1
                self.idle.notify_all()

    def _take(self) -> "tuple[Queue, Batch] | None":
        """Wait for a batch that may run and return it; return None once all work is done after `stop`."""
        with self.lock:
            while True:
                now = time.monotonic()
                for _ in range(len(self.queues)):
                    queue = self.queues[0]
                    # The next call starts with another queue.
                    self.queues.rotate(-1)
                    if batch := queue.take(now, self.stopped):
                        queue.running += 1
                        # Another thread takes over the batches that this thread may have been waiting for.
                        self.work.notify()
                        return queue, batch
                if self.stopped:
                    return None
                due = min((queue.due() for queue in self.queues if queue.open.tasks), default=None)
                self.work.wait(None if due is None else max(0.0, due - now))


class Queue:
    """The batches of one model's requests for the same tensors; only the last batch takes requests.

    The scheduler's lock guards it.
    """

    def __init__(self, name: str, model: Servable, signature: str, outputs: tuple[str, ...], settings: BatchSettings):
        self.name, self.model, self.signature, self.outputs = name, model, signature, outputs
        self.settings = settings
        self.feeds = {alias: info.name for alias, info in model.signatures[signature].inputs.items()}
        self.batches: deque[Batch] = deque([Batch()])
        self.running = 0

    @property
    def open(self) -> Batch:
        """The batch that takes requests."""
        return self.batches[-1]

    def due(self) -> float:
        """Return the time at which the open batch, which is not empty, may run."""
        return self.open.opened + self.settings.timeout

    def is_full(self) -> bool:
        """Return whether the open batch has no room left."""
        return self.open.size >= self.settings.max_run_rows

    def add(self, inputs: dict[str, np.ndarray], size: int, deadline: float | None) -> list[Task]:
        """Add a request of `size` rows and return its tasks, several if it is split.

        Raises ServingError if the request is too large or the queue is full.
        """
        settings, space = self.settings, self.settings.max_run_rows - self.open.size
        sizes = [size]
        if size > settings.max_request_rows:
            raise ServingError(
                grpc.StatusCode.INVALID_ARGUMENT,
                (f"Task size {size} is larger than maximum input batch size {settings.max_request_rows}"),
            )
        if settings.splitting:
            capacity = (settings.max_enqueued - len(self.batches)) * settings.max_run_rows + space
            if size > capacity:
                raise ServingError(
                    grpc.StatusCode.UNAVAILABLE,
                    FULL
                    + (
                        f"task size is {size} but scheduling capacity is only {capacity} (num_enqueued_batches="
                        f"{len(self.batches)}, max_enqueued_batches={settings.max_enqueued}, open_batch_size="
                        f"{self.open.size}, max_execution_batch_size={settings.max_run_rows})"
                    ),
                )
            if size > space:
                whole, rest = divmod(size - space, settings.max_run_rows)
                sizes = [rows for rows in (space, *[settings.max_run_rows] * whole, rest) if rows]
        elif size > space and len(self.batches) >= settings.max_enqueued:
            raise ServingError(
                grpc.StatusCode.UNAVAILABLE,
                FULL
                + (
                    f"currently {len(self.batches)} batches enqueued and "
                    f"max_enqueued_batches is {settings.max_enqueued}"
                ),
            )
        tasks = batch_tensors.split_rows(inputs, sizes, deadline, time.monotonic())
        for task in tasks:
            if self.open.size + task.size > settings.max_run_rows:
                self.batches.append(Batch())
            if not self.open.tasks:
                self.open.opened = task.submitted
            self.open.tasks.append(task)
            self.open.size += task.size
            task.batch = self.open
        return tasks

    def withdraw(self, task: Task) -> bool:
        """Remove a waiting task; return False if it no longer waits."""
        batch = task.batch
        if batch is None:
            return False
        batch.tasks.remove(task)
        batch.size -= task.size
        if not batch.tasks and batch is not self.open:
            self.batches.remove(batch)
        task.batch = None
        return True

    def take(self, now: float, stopping: bool) -> Batch | None:
        """Remove and return a batch that may run now, or None; while `stopping` any batch may run."""
        if len(self.batches) == 1:
            if not self.open.tasks or not (self.is_full() or stopping or now >= self.due()):
                return None
            self.batches.append(Batch())
        batch = self.batches.popleft()
        for task in batch.tasks:
            task.batch = None
        return batch

    def run(self, batch: Batch, monitor: Monitor, isolate: bool) -> None:
        """Run a batch and answer all its tasks; the caller holds no lock."""
        now, tasks = time.monotonic(), []
        for task in batch.tasks:
            if task.deadline is not None and task.deadline <= now:
                task.fail(_expired())
            else:
                tasks.append(task)
        if not tasks:
            return
        size = sum(task.size for task in tasks)
        monitor.batch(
            self.name, [now - task.submitted for task in batch.tasks], size, batch_tensors.round_up(size, self.settings)
        )
        try:
            self._answer(tasks)
        except ServingError as error:
            if not (isolate and len(tasks) > 1 and error.code in ISOLATED_CODES):
                raise
            for task in tasks:
                monitor.batch(self.name, [], task.size, batch_tensors.round_up(task.size, self.settings))
                try:
                    self._answer([task])
                except ServingError as task_error:
                    task.fail(task_error)

    def _answer(self, tasks: list[Task]) -> None:
        deadlines = [task.deadline for task in tasks]
        # The latest deadline applies: a task must not be cut short by another task's deadline.
        deadline = None if None in deadlines else max(deadlines)
        inputs = batch_tensors.merge_tasks(tasks, self.settings, self.feeds)
        outputs = self.model.run(self.signature, inputs, self.outputs, deadline)
        for task, values in zip(tasks, batch_tensors.divide_outputs(outputs, tasks, self.settings)):
            task.answer(values)


class BatchedModel:
    """A Servable that sends the runs of another one through a scheduler's queues."""

    def __init__(self, scheduler: Scheduler, name: str, model: Servable, settings: BatchSettings):
        self.scheduler, self.name, self.model, self.settings = scheduler, name, model, settings
        self.directory, self.signatures = model.directory, model.signatures
        self.queues: dict[tuple, Queue] = {}
        self.closed = False

    def run(
        self, signature: str, inputs: dict[str, np.ndarray], outputs: tuple[str, ...], deadline: float | None
    ) -> dict[str, np.ndarray]:
        """Run a signature in a batch and return this request's outputs; see Servable.run.

        Also raises ServingError for a full queue, and RESOURCE_EXHAUSTED if the deadline passes in the queue.
        """
        size = batch_tensors.count_rows(inputs)
        if not size:
            return self.model.run(signature, inputs, outputs, deadline)
        with self.scheduler.lock:
            if self.closed or self.scheduler.stopped:
                raise ServingError(grpc.StatusCode.UNAVAILABLE, f"model {self.name} is being closed")
            queue = self._queue(signature, inputs, outputs)
            tasks = queue.add(inputs, size, deadline)
            # A task that joins an open batch gives the threads no new work until the batch is full.
            if queue.is_full() or tasks[-1] is queue.open.tasks[0]:
                self.scheduler.work.notify(len(tasks))
        # A client may set a deadline of centuries, and an event waits at most TIMEOUT_MAX.
        timeout = None if deadline is None else min(max(0.0, deadline - time.monotonic()), threading.TIMEOUT_MAX)
        if not tasks[-1].done.wait(timeout):
            self._withdraw(queue, tasks)
        for task in tasks:
            task.done.wait()
        for task in tasks:
            if task.error:
                raise task.error
        if len(tasks) == 1:
            return tasks[0].outputs
        return {name: np.concatenate([task.outputs[name] for task in tasks]) for name in tasks[0].outputs}

    def _queue(self, signature: str, inputs: dict[str, np.ndarray], outputs: tuple[str, ...]) -> Queue:
        """Return the queue of the requests that may share a run with this one.

        They have the same dtypes: concatenation would cast a request of a wrong dtype, or the others.
        """
        tensors = self.signatures[signature]
        key = (
            tuple(sorted((alias, tensors.inputs[alias].name, values.dtype.str) for alias, values in inputs.items())),
            tuple(sorted((alias, tensors.outputs[alias].name) for alias in outputs)),
        )
        if key not in self.queues:
            self.queues[key] = Queue(self.name, self.model, signature, outputs, self.settings)
            self.scheduler.queues.append(self.queues[key])
        return self.queues[key]

    def _withdraw(self, queue: Queue, tasks: list[Task]) -> None:
        """Fail the tasks that still wait after their deadline."""
        with self.scheduler.lock:
            waiting = [task for task in tasks if queue.withdraw(task)]
        for task in waiting:
            task.fail(_expired())

    def close(self) -> None:
        """Run the waiting requests, then close the model."""
        with self.scheduler.lock:
            self.closed = True
            for queue in self.queues.values():
                # No more requests come to fill the open batch, so it is due at once.
                queue.open.opened = float("-inf")
            self.scheduler.work.notify_all()
            self.scheduler.idle.wait_for(
                lambda: all(
                    not queue.running and not queue.open.tasks and len(queue.batches) == 1
                    for queue in self.queues.values()
                )
            )
            for queue in self.queues.values():
                self.scheduler.queues.remove(queue)
        self.model.close()


def _expired() -> ServingError:
    return ServingError(grpc.StatusCode.RESOURCE_EXHAUSTED, EXPIRED)
