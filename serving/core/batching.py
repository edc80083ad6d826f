"""Session batching: requests of many clients in one run of the model, as tensorflow_model_server --enable_batching.

Requests for the same tensors of the same model wait in a queue of their own. A batch of them is run when it is full,
or when its first request has waited batch_timeout_micros, by one of num_batch_threads threads that serve all models'
queues in turn. A full queue refuses with UNAVAILABLE.

Three things differ from TensorFlow Serving, in favour of the requests beside a bad one:

- A batch of several requests that fails with INVALID_ARGUMENT or FAILED_PRECONDITION is run again, each request alone,
  so that only the one with, say, a damaged picture fails, and none of those that were only of different sizes. There
  all of them fail. (`isolate=False` does as TensorFlow Serving.)
- A request whose deadline passes in the queue leaves it and is answered RESOURCE_EXHAUSTED at once. There it stays and
  is run, unless the deadlines of all of its batch have passed.
- A request without rows is run by itself. There it waits for others to fill a batch.
"""

import threading
import time
from collections import deque

import grpc
import numpy as np

from serving.core import batch_tensors
from serving.core.batch_tensors import Batch, Settings, Task
from serving.errors import ServingError

EXPIRED = "Run() timeout exceeded while waiting in batching queue"
# What one request's contents may bring on its whole batch.
OF_ONE = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION)
FULL = "The batch scheduling queue to which this task was submitted is full; "


class Scheduler:
    """The threads that run batches, and the queues they take them from."""

    def __init__(self, parameters, monitor, isolate: bool = True):
        """`parameters` is a BatchingParameters message; ServingError INVALID_ARGUMENT where it contradicts itself."""
        self.settings = batch_tensors.read_settings(parameters)
        self.monitor, self.isolate = monitor, isolate
        count, name = batch_tensors.read_threads(parameters)
        # Held for every look at the queues. Threads wait for work on `work`, who closes a model on `idle`.
        self.lock = threading.Lock()
        self.work, self.idle = threading.Condition(self.lock), threading.Condition(self.lock)
        self.queues: deque[Queue] = deque()
        self.stopped = False
        self.threads = [threading.Thread(target=self._run, name=f"{name}_{number}", daemon=True)
                        for number in range(count)]
        for thread in self.threads:
            thread.start()

    def wrap(self, name: str, model, parameters=None) -> "BatchedModel":
        """Return a model whose runs are put together; `parameters` (BatchingParameters) are its own, not the server's.

        Its threads are the server's nevertheless.
        """
        settings = self.settings if parameters is None else batch_tensors.read_settings(parameters)
        return BatchedModel(self, name, model, settings)

    def stop(self) -> None:
        """Run what waits, refuse what comes, and end the threads."""
        with self.lock:
            self.stopped = True
            self.work.notify_all()
        for thread in self.threads:
            thread.join()

    def _run(self) -> None:
        while taken := self._take():
            queue, batch = taken
            try:
                queue.run(batch, self.monitor, self.isolate)
            # Somebody waits for every task, whatever happened to it.
            except Exception as error:
                for task in batch.tasks:
                    if not task.done.is_set():
                        task.fail(error)
            with self.lock:
                queue.running -= 1
                self.idle.notify_all()

    def _take(self) -> "tuple[Queue, Batch] | None":
        """Return the next batch that may run, once there is one; None when all is done after `stop`."""
        with self.lock:
            while True:
                now = time.monotonic()
                for _ in range(len(self.queues)):
                    queue = self.queues[0]
                    # Next time another's turn comes first.
                    self.queues.rotate(-1)
                    if batch := queue.take(now, self.stopped):
                        queue.running += 1
                        # Another thread looks after what is left, which this one may have been waiting for.
                        self.work.notify()
                        return queue, batch
                if self.stopped:
                    return None
                due = min((queue.due() for queue in self.queues if queue.open.tasks), default=None)
                self.work.wait(None if due is None else max(0.0, due - now))


class Queue:
    """The requests of one model for the same tensors, in batches of which the last is open; under the scheduler's lock.
    """

    def __init__(self, name: str, model, signature: str, outputs: tuple[str, ...], settings: Settings):
        self.name, self.model, self.signature, self.outputs = name, model, signature, outputs
        self.settings = settings
        self.feeds = {alias: info.name for alias, info in model.signatures[signature].inputs.items()}
        self.batches: deque[Batch] = deque([Batch()])
        self.running = 0

    @property
    def open(self) -> Batch:
        """The batch that requests still come into."""
        return self.batches[-1]

    def due(self) -> float:
        """Return when the open batch, which is not empty, may run."""
        return self.open.opened + self.settings.timeout

    def is_full(self) -> bool:
        """Return whether the open batch has no room left."""
        return self.open.size >= self.settings.largest_run

    def add(self, inputs: dict[str, np.ndarray], size: int, deadline: float | None) -> list[Task]:
        """Take a request in, in several tasks where it is split; ServingError where it has no place."""
        settings, space = self.settings, self.settings.largest_run - self.open.size
        sizes = [size]
        if size > settings.largest_request:
            raise ServingError(grpc.StatusCode.INVALID_ARGUMENT, (
                f"Task size {size} is larger than maximum input batch size {settings.largest_request}"))
        if settings.splitting:
            capacity = (settings.max_enqueued - len(self.batches)) * settings.largest_run + space
            if size > capacity:
                raise ServingError(grpc.StatusCode.UNAVAILABLE, FULL + (
                    f"task size is {size} but scheduling capacity is only {capacity} (num_enqueued_batches="
                    f"{len(self.batches)}, max_enqueued_batches={settings.max_enqueued}, open_batch_size="
                    f"{self.open.size}, max_execution_batch_size={settings.largest_run})"))
            if size > space:
                whole, rest = divmod(size - space, settings.largest_run)
                sizes = [each for each in (space, *[settings.largest_run] * whole, rest) if each]
        elif size > space and len(self.batches) >= settings.max_enqueued:
            raise ServingError(grpc.StatusCode.UNAVAILABLE, FULL + (
                f"currently {len(self.batches)} batches enqueued and max_enqueued_batches is {settings.max_enqueued}"))
        tasks = batch_tensors.split(inputs, sizes, deadline, time.monotonic())
        for task in tasks:
            if self.open.size + task.size > settings.largest_run:
                self.batches.append(Batch())
            if not self.open.tasks:
                self.open.opened = task.submitted
            self.open.tasks.append(task)
            self.open.size += task.size
            task.batch = self.open
        return tasks

    def withdraw(self, task: Task) -> bool:
        """Take a task out again and return true, unless it is no longer waiting."""
        batch = task.batch
        if batch is None:
            return False
        batch.tasks.remove(task)
        batch.size -= task.size
        if not batch.tasks and batch is not self.open:
            self.batches.remove(batch)
        task.batch = None
        return True

    def take(self, now: float, ending: bool) -> Batch | None:
        """Return a batch that may run now, any at all where the server is `ending`; None if there is none."""
        if len(self.batches) == 1:
            if not self.open.tasks or not (self.is_full() or ending or now >= self.due()):
                return None
            self.batches.append(Batch())
        batch = self.batches.popleft()
        for task in batch.tasks:
            task.batch = None
        return batch

    def run(self, batch: Batch, monitor, isolate: bool) -> None:
        """Answer all tasks of a batch; no lock is held."""
        now, tasks = time.monotonic(), []
        for task in batch.tasks:
            if task.deadline is not None and task.deadline <= now:
                task.fail(_expired())
            else:
                tasks.append(task)
        if not tasks:
            return
        size = sum(task.size for task in tasks)
        monitor.batch(self.name, [now - task.submitted for task in batch.tasks], size,
                      batch_tensors.rounded(size, self.settings))
        try:
            self._answer(tasks)
        except ServingError as error:
            if not (isolate and len(tasks) > 1 and error.code in OF_ONE):
                raise
            for task in tasks:
                monitor.batch(self.name, [], task.size, batch_tensors.rounded(task.size, self.settings))
                try:
                    self._answer([task])
                except ServingError as its_own:
                    task.fail(its_own)

    def _answer(self, tasks: list[Task]) -> None:
        deadlines = [task.deadline for task in tasks]
        # A task that would wait for ever must not be cut short by its neighbours.
        deadline = None if None in deadlines else max(deadlines)
        outputs = self.model.run(self.signature, batch_tensors.merged(tasks, self.settings, self.feeds), self.outputs,
                                 deadline)
        for task, values in zip(tasks, batch_tensors.divide(outputs, tasks, self.settings)):
            task.answer(values)


class BatchedModel:
    """A model whose runs go through a scheduler's queues; in all else like the model itself."""

    def __init__(self, scheduler: Scheduler, name: str, model, settings: Settings):
        self.scheduler, self.name, self.model, self.settings = scheduler, name, model, settings
        self.directory, self.signatures = model.directory, model.signatures
        self.queues: dict[tuple, Queue] = {}
        self.closed = False

    def run(self, signature: str, inputs: dict[str, np.ndarray], outputs: tuple[str, ...],
            deadline: float | None) -> dict[str, np.ndarray]:
        """As the model's own `run`; ServingError as the module says, too."""
        size = batch_tensors.rows(inputs)
        if not size:
            return self.model.run(signature, inputs, outputs, deadline)
        with self.scheduler.lock:
            if self.closed or self.scheduler.stopped:
                raise ServingError(grpc.StatusCode.UNAVAILABLE, f"model {self.name} is being closed")
            queue = self._queue(signature, inputs, outputs)
            tasks = queue.add(inputs, size, deadline)
            # One that joins others changes nothing for the threads, until the batch is full.
            if queue.is_full() or tasks[-1] is queue.open.tasks[0]:
                self.scheduler.work.notify(len(tasks))
        # Deadlines far beyond any are more than the clock can wait for.
        left = None if deadline is None else min(max(0.0, deadline - time.monotonic()), threading.TIMEOUT_MAX)
        if not tasks[-1].done.wait(left):
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

        Of the same types too: put together, a wrong one would be converted, or convert the others.
        """
        tensors = self.signatures[signature]
        key = (tuple(sorted((alias, tensors.inputs[alias].name, values.dtype.str) for alias, values in inputs.items())),
               tuple(sorted((alias, tensors.outputs[alias].name) for alias in outputs)))
        if key not in self.queues:
            self.queues[key] = Queue(self.name, self.model, signature, outputs, self.settings)
            self.scheduler.queues.append(self.queues[key])
        return self.queues[key]

    def _withdraw(self, queue: Queue, tasks: list[Task]) -> None:
        """Answer the tasks that still wait though their time is over."""
        with self.scheduler.lock:
            waiting = [task for task in tasks if queue.withdraw(task)]
        for task in waiting:
            task.fail(_expired())

    def close(self) -> None:
        """Run what waits, then close the model."""
        with self.scheduler.lock:
            self.closed = True
            for queue in self.queues.values():
                # What waits for a batch to fill waits for nothing now.
                queue.open.opened = float("-inf")
            self.scheduler.work.notify_all()
            self.scheduler.idle.wait_for(lambda: all(
                not queue.running and not queue.open.tasks and len(queue.batches) == 1
                for queue in self.queues.values()))
            for queue in self.queues.values():
                self.scheduler.queues.remove(queue)
        self.model.close()


def _expired() -> ServingError:
    return ServingError(grpc.StatusCode.RESOURCE_EXHAUSTED, EXPIRED)
