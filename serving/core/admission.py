"""How many requests run at once, and how many wait for that."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc

from serving.errors import ServingError


class AdmissionControl:
    """Places to run for `running` requests; at most `waiting` wait for one, of `waiting_bytes` together.

    `watch(waiting, running, waiting_bytes)` is told of every change. The first to wait is the first to run.
    """

    def __init__(self, running: int, waiting: int, waiting_bytes: int,
                 watch: Callable[[int, int, int], None] = lambda *_: None):
        self._places, self._most_waiting, self._most_bytes, self._watch = running, waiting, waiting_bytes, watch
        self._lock = threading.Lock()
        self._queue: deque[_Waiter] = deque()
        self._running, self._bytes = 0, 0

    @contextmanager
    def admit(self, size_bytes: int, deadline: float | None) -> Iterator[None]:
        """Hold a place to run a request of that many bytes, waiting for it until `deadline` of time.monotonic().

        Raises ServingError: RESOURCE_EXHAUSTED at once where too much waits already, DEADLINE_EXCEEDED.
        """
        waiter = self._enter(size_bytes)
        if waiter is not None:
            # Locks wait at most TIMEOUT_MAX; a client may well name a deadline of centuries.
            limit = None if deadline is None else min(max(0.0, deadline - time.monotonic()), threading.TIMEOUT_MAX)
            if not waiter.called.wait(limit) and self._withdrew(waiter):
                raise ServingError(grpc.StatusCode.DEADLINE_EXCEEDED, "Timed out waiting for a place to run")
        try:
            yield
        finally:
            self._leave()

    def _enter(self, size_bytes: int) -> "_Waiter | None":
        """Take a place, or stand in the queue for one."""
        with self._lock:
            if self._running < self._places:
                self._running += 1
                waiter = None
            elif len(self._queue) >= self._most_waiting:
                raise ServingError(grpc.StatusCode.RESOURCE_EXHAUSTED,
                                   f"The server is busy: {self._running} requests run and {len(self._queue)} wait")
            elif self._bytes + size_bytes > self._most_bytes:
                raise ServingError(grpc.StatusCode.RESOURCE_EXHAUSTED,
                                   f"The server is busy: {self._running} requests run, and those that wait would with "
                                   f"this one hold {self._bytes + size_bytes} bytes, above {self._most_bytes}")
            else:
                waiter = _Waiter(size_bytes)
                self._queue.append(waiter)
                self._bytes += size_bytes
            self._tell()
        return waiter

    def _withdrew(self, waiter: "_Waiter") -> bool:
        """Leave the queue; False where the place came in the meantime."""
        with self._lock:
            if waiter.called.is_set():
                return False
            self._queue.remove(waiter)
            self._bytes -= waiter.size
            self._tell()
        return True

    def _leave(self) -> None:
        """Give the place to the first in the queue."""
        with self._lock:
            if self._queue:
                waiter = self._queue.popleft()
                self._bytes -= waiter.size
                waiter.called.set()
            else:
                self._running -= 1
            self._tell()

    def _tell(self) -> None:
        self._watch(len(self._queue), self._running, self._bytes)


class _Waiter:
    def __init__(self, size: int):
        self.size, self.called = size, threading.Event()
