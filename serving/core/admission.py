"""Admission control: limits on the requests that run and that wait."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc

from serving.errors import ServingError


class AdmissionControl:
    """Slots for running requests, and a first-in first-out queue of requests that wait for one."""

    def __init__(
        self,
        max_running: int,
        max_waiting: int,
        max_waiting_bytes: int,
        on_change: Callable[[int, int, int], None] = lambda *_: None,
    ):
        """Create free slots and an empty queue.

        Args:
            max_running: The number of slots.
            max_waiting: The number of requests that may wait.
            max_waiting_bytes: The total size of the requests that may wait.
            on_change: Called with (waiting requests, running requests, waiting bytes) after every change.
        """
        self._max_running, self._max_waiting, self._max_waiting_bytes = max_running, max_waiting, max_waiting_bytes
        self._on_change = on_change
        self._lock = threading.Lock()
        self._queue: deque[_Waiter] = deque()
        self._running, self._waiting_bytes = 0, 0

    @contextmanager
    def admit(self, size_bytes: int, deadline: float | None) -> Iterator[None]:
        """Hold a slot for a request of `size_bytes`, and wait for one until `deadline` of time.monotonic().

        Raises ServingError: RESOURCE_EXHAUSTED at once if the queue is full, DEADLINE_EXCEEDED if no slot became free.
        """
        waiter = self._enter(size_bytes)
        if waiter is not None:
            # A client may set a deadline of centuries, and a lock waits at most TIMEOUT_MAX.
            timeout = None if deadline is None else min(max(0.0, deadline - time.monotonic()), threading.TIMEOUT_MAX)
            if not waiter.admitted.wait(timeout) and self._withdraw(waiter):
                raise ServingError(grpc.StatusCode.DEADLINE_EXCEEDED, "Timed out waiting for a slot to run")
        try:
            yield
        finally:
            self._leave()

    def _enter(self, size_bytes: int) -> "_Waiter | None":
        """Take a free slot and return None, or join the queue."""
        with self._lock:
            if self._running < self._max_running:
                self._running += 1
                waiter = None
            elif len(self._queue) >= self._max_waiting:
                raise ServingError(
                    grpc.StatusCode.RESOURCE_EXHAUSTED,
                    f"The server is busy: {self._running} requests run and {len(self._queue)} wait",
                )
            elif self._waiting_bytes + size_bytes > self._max_waiting_bytes:
                raise ServingError(
                    grpc.StatusCode.RESOURCE_EXHAUSTED,
                    f"The server is busy: {self._running} requests run, and with this one the waiting "
                    f"requests would hold {self._waiting_bytes + size_bytes} bytes, above "
                    f"{self._max_waiting_bytes}",
                )
            else:
                waiter = _Waiter(size_bytes)
                self._queue.append(waiter)
                self._waiting_bytes += size_bytes
            self._report()
        return waiter

    def _withdraw(self, waiter: "_Waiter") -> bool:
        """Leave the queue; return False if the slot was assigned in the meantime."""
        with self._lock:
            if waiter.admitted.is_set():
                return False
            self._queue.remove(waiter)
            self._waiting_bytes -= waiter.size
            self._report()
        return True

    def _leave(self) -> None:
        """Give the slot to the first request in the queue, or free it."""
        with self._lock:
            if self._queue:
                waiter = self._queue.popleft()
                self._waiting_bytes -= waiter.size
                waiter.admitted.set()
            else:
                self._running -= 1
            self._report()

    def _report(self) -> None:
        self._on_change(len(self._queue), self._running, self._waiting_bytes)


class _Waiter:
    def __init__(self, size: int):
        self.size, self.admitted = size, threading.Event()
